"""Which rule finds the fusion weights that hold on a domain nobody has seen? PACS, frozen features.

    python -m benchmarks.fusion --pacs data/pacs --weights resnet18.safetensors

The branches are one ImageNet ResNet-18 that sees the images at 224, 128 and 64 px. Each domain in turn is the target,
read once; on the three others, a random part of each drawn by the seed, every rule chooses w and its head anew. A head
is a linear probe (xfer/transfer/linear.py) with the same penalty for all.

    best branch          the branch with the best probe on left-out sources
    equal                equal weights
    learned, training    exponentiated gradient on the loss of the head on the images that it is fitted on
    learned, tenth       the same on a tenth of each source that it is not fitted on
    learned, sources     the same on each source by a head fitted on the others, the mean gradient
    grid                 the best of a grid of step 1/4 by left-out sources
    greedy               greedy selection, with replacement, of the branches' predictions on left-out sources (Caruana
                         et al., ICML 2004), as weights of the late ensemble
    late                 the log-linear pool of a classifier for each branch, equal weights
    concat               the features side by side

Writes benchmarks/results/fusion.md.
"""

import argparse
import itertools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.record import cell, commit
from shards.loading.open import open_data
from shards.progress import progress
from xfer.begin import initial_model
from xfer.config import Recipe
from xfer.fusion import FUSIONS, WeightedSum, classified
from xfer.labels import masked_cross_entropy
from xfer.learn import LEAST, RATE
from xfer.transfer.features import features_of
from xfer.transfer.linear import Linear, fit_linear, fit_pooled

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
SIZES = (224, 128, 64)
IMAGES = 1536  # of each domain at most, as the ranking of few.py has them
PART = 0.1  # of a training domain's images, drawn by the seed
STEPS, PENALTY = 12, 1e-2  # of alpha; of every head
RESULT = Path(__file__).parent / "results" / "fusion.md"
Domain = tuple[list[Tensor], Tensor]  # features of each branch [n, c], targets [n]
Row = tuple[str, str, int, float, tuple[float, ...]]  # rule, target, seed, accuracy, w


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/fusion"))
    options = parser.parse_args()
    domains = _features(options)
    rows: list[Row] = []
    started = time.process_time()
    with progress("targets and seeds", len(DOMAINS) * options.seeds, "fitted") as advance:
        for seed in range(options.seeds):
            for target in DOMAINS:
                rows += _rows(domains, target, seed)
                advance()
            _write(options, rows, time.process_time() - started)


def _features(options: argparse.Namespace) -> dict[str, Domain]:
    """Each branch's features, scaled to a deviation of 1 over the pixels of its maps, as the projections of a run."""
    found: dict[str, list[Tensor]] = {domain: [] for domain in DOMAINS}
    targets: dict[str, Tensor] = {}
    for size in SIZES:
        sources = {domain: {"path": str(options.pacs.resolve() / domain)} for domain in DOMAINS}
        branch = {"backbone": "resnet18", "weights": str(options.weights.resolve())}
        recipe = Recipe.model_validate(
            {"data": {"sources": sources, "validation": 0, "image_size": size}, "model": {"branches": {"main": branch}}}
        )
        data = open_data(recipe.data)
        model, _ = initial_model(recipe, data)
        variances = []
        for subset in data.train:
            count = min(IMAGES, subset.num_samples)
            of = features_of(model, [subset], recipe.data, count, options.out / ".features")
            found[subset.name].append(of.branches["main"].pooled)
            variances.append(of.branches["main"].covariance.diagonal().float())
            targets[subset.name] = of.targets
        scale = torch.stack(variances).mean(0).clamp_min(1e-10).rsqrt()
        for parts in found.values():
            parts[-1] = parts[-1] * scale
    return {domain: (found[domain], targets[domain]) for domain in DOMAINS}


class Task:
    """The training images of one target and seed, and the target's."""

    def __init__(self, domains: Mapping[str, Domain], target: str, seed: int):
        generator = torch.Generator().manual_seed(seed)
        xs, ys, by = [], [], []
        for place, name in enumerate(one for one in DOMAINS if one != target):
            features, y = domains[name]
            chosen = torch.randperm(len(y), generator=generator)[: round(PART * len(y))]
            xs.append([z[chosen] for z in features])
            ys.append(y[chosen])
            by.append(torch.full((len(chosen),), place))
        self.x = [torch.cat(parts) for parts in zip(*xs, strict=True)]
        self.y, self.sources = torch.cat(ys), torch.cat(by)
        self.masks = torch.ones(len(self.y), int(max(y.max() for _, y in domains.values())) + 1, dtype=torch.bool)
        self.unseen, self.truth = domains[target]
        self.tenth = torch.rand(len(self.y), generator=generator) < 0.1

    def accuracy(self, kind: str, w: Sequence[float], fitted: Tensor | None = None) -> float:
        """On the target, of the fusion `kind` with w; its head is fitted on the images `fitted` (None: all)."""
        fusion = FUSIONS[kind](list(w), self.x[0].shape[1])
        inside = torch.ones_like(self.tenth) if fitted is None else fitted
        pool = classified(fusion, [z[inside] for z in self.x])
        weight, bias = fit_pooled(pool, self.y[inside], self.masks[inside], PENALTY)
        return ((fusion(self.unseen) @ weight.T + bias).argmax(1) == self.truth).double().mean().item()

    def left_out(self, w: Sequence[float]) -> float:
        """Accuracy of the weighted sum on left-out sources, their mean."""
        z, found = WeightedSum(w)(self.x), []
        for group in self.sources.unique().tolist():
            inside = self.sources == group
            weight, bias = fit_linear(z[~inside], self.y[~inside], self.masks[~inside], PENALTY)
            found.append(((z[inside] @ weight.T + bias).argmax(1) == self.y[inside]).double().mean().item())
        return sum(found) / len(found)


def learned(task: Task, groups: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """w by exponentiated gradient from equal weights. groups: pairs of [n] bool, on which a head is fitted, anew for
    each w, and on which w learns.
    """
    fusion = WeightedSum([1.0] * len(SIZES))
    for step in range(STEPS):
        gradient = torch.zeros_like(fusion.alpha)
        for fitted, learns in groups:
            weight, bias = _head(task, fusion, fitted)
            alpha = fusion.alpha.requires_grad_()
            logits = fusion([z[learns] for z in task.x]) @ weight.T + bias
            loss = masked_cross_entropy(logits, task.y[learns], task.masks[learns]).mean()
            gradient += torch.autograd.grad(loss, alpha)[0] / len(groups)
            alpha.requires_grad_(False)
        moved = fusion.alpha - RATE * (1 - step / STEPS) * gradient / fusion.weights.clamp_min(LEAST)
        fusion.alpha.copy_(moved - moved.amax())
    return fusion.weights.tolist()


@torch.no_grad()
def _fused(task: Task, fusion: WeightedSum, inside: Tensor) -> Tensor:
    return fusion([z[inside] for z in task.x])


def _head(task: Task, fusion: WeightedSum, inside: Tensor) -> Linear:
    return fit_linear(_fused(task, fusion, inside), task.y[inside], task.masks[inside], PENALTY)


def greedy(task: Task, rounds: int = 10) -> list[float]:
    """How often each branch's predictions on left-out sources are taken."""
    logits = []
    for z in task.x:
        found = torch.zeros(len(task.y), task.masks.shape[1])
        for group in task.sources.unique().tolist():
            inside = task.sources == group
            weight, bias = fit_linear(z[~inside], task.y[~inside], task.masks[~inside], PENALTY)
            found[inside] = (z[inside] @ weight.T + bias).log_softmax(1)
        logits.append(found)
    counts = [0] * len(logits)

    def score(parts: Sequence[int]) -> float:
        pooled = sum((n * one for n, one in zip(parts, logits, strict=True)), torch.zeros(()))
        right = (pooled.argmax(1) == task.y).double()
        return float(torch.stack([right[task.sources == group].mean() for group in task.sources.unique()]).mean())

    for _ in range(rounds):
        counts = max(([n + (i == b) for i, n in enumerate(counts)] for b in range(len(logits))), key=score)
    return [n / rounds for n in counts]


def _rows(domains: Mapping[str, Domain], target: str, seed: int) -> list[Row]:
    task, n = Task(domains, target, seed), len(SIZES)
    every = torch.ones_like(task.tenth)
    sources = [task.sources == group for group in task.sources.unique().tolist()]
    hot = [[float(i == b) for i in range(n)] for b in range(n)]
    grid = [[part / 4 for part in parts] for parts in itertools.product(range(5), repeat=n) if sum(parts) == 4]
    known = {tuple(w): task.left_out(w) for w in grid}
    rules: dict[str, Callable[[], list[float]]] = {
        "best branch": lambda: max(hot, key=lambda w: known[tuple(w)]),
        "equal": lambda: [1 / n] * n,
        "learned, training": lambda: learned(task, [(every, every)]),
        "learned, tenth": lambda: learned(task, [(~task.tenth, task.tenth)]),
        "learned, sources": lambda: learned(task, [(~inside, inside) for inside in sources]),
        "grid": lambda: max(grid, key=lambda w: known[tuple(w)]),
    }
    rows: list[Row] = []
    for rule, choose in rules.items():
        w = choose()
        fitted = ~task.tenth if rule == "learned, tenth" else None
        rows.append((rule, target, seed, task.accuracy("wsum", w, fitted), tuple(w)))
    w = greedy(task)
    rows.append(("greedy", target, seed, task.accuracy("late", w), tuple(w)))
    for rule in ("late", "concat"):
        rows.append((rule, target, seed, task.accuracy(rule, [1 / n] * n), ()))
    return rows


def _write(options: argparse.Namespace, rows: Sequence[Row], seconds: float) -> None:
    seeds = sorted({seed for _, _, seed, _, _ in rows})
    of = {(rule, target, seed): 100 * accuracy for rule, target, seed, accuracy, _ in rows}
    rules = list(dict.fromkeys(rule for rule, *_ in rows))
    sizes = " / ".join(map(str, SIZES))
    lines = [
        "# Rules for fusion weights, on a domain nobody has seen",
        "",
        f"    python -m benchmarks.fusion --pacs SHARDS --weights RESNET18 --seeds {options.seeds}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, torch {torch.__version__}, {seconds:.0f} s of "
        f"CPU beside the features. A frozen ImageNet ResNet-18 at {sizes} px; a linear probe on {PART:.0%} of at most "
        f"{IMAGES:,} images of each of three domains of PACS, accuracy (%) on the fourth, read once. ± is half of the "
        f"95 % t-interval over {len(seeds)} seeds, which draw the training images; the difference is paired by seed. "
        "w: mean over targets and seeds.",
        "",
        f"| rule | {' | '.join(DOMAINS)} | mean | less best branch | w at {sizes} px |",
        "|---|" + "---|" * (len(DOMAINS) + 3),
    ]

    def means(rule: str) -> list[float]:
        return [sum(of[rule, target, seed] for target in DOMAINS) / len(DOMAINS) for seed in seeds]

    for rule in rules:
        by_target = [cell([of[rule, target, seed] for seed in seeds], False) for target in DOMAINS]
        less = [a - b for a, b in zip(means(rule), means("best branch"), strict=True)]
        found = [w for name, _, _, _, w in rows if name == rule and w]
        mean = " / ".join(f"{sum(column) / len(found):.2f}" for column in zip(*found, strict=True)) if found else ""
        gain = "" if rule == "best branch" else cell(less, True)
        lines.append(f"| {rule} | {' | '.join(by_target)} | {cell(means(rule), False)} | {gain} | {mean} |")
    lines += ["", "Raw rows: rule, target, seed, accuracy, w:", "", "```"]
    for rule, target, seed, accuracy, w in rows:
        lines.append(f"{rule} | {target} {seed} {accuracy:.4f} {' '.join(f'{one:.3f}' for one in w)}".rstrip())
    RESULT.write_text("\n".join([*lines, "```", ""]))


if __name__ == "__main__":
    main()
