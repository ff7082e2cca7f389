"""Does a second branch that was pretrained on other data pay? PACS, each domain left out; frozen features.

    python -m benchmarks.two_branches --pacs data/pacs --weights resnet18.safetensors --second runs/clothing

`--second`: a run of one ResNet-18, such as ImageNet's fine-tuned on clothing. For each target domain a linear probe is
fitted on a random part of the three others and read on the target once: on each branch alone, on both with equal
weights, with weights chosen by a random part of each source and by sources left out (as a run chooses them), and on the
ImageNet branch at sqrt(2) times the size, which costs what two branches cost. Intervals are over seeds, which draw the
training images. Writes benchmarks/results/two-branches.md.
"""

import argparse
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import commit, over_seeds
from shards.loading.open import open_data
from shards.progress import progress
from xfer.begin import initial_model
from xfer.config import Recipe
from xfer.fusion import WeightedSum
from xfer.transfer.features import Features, features_of
from xfer.transfer.linear import choose_penalty, fifths, fit_linear
from xfer.transfer.weights import choose_weights

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PART = 0.6  # of each training domain's images, drawn by the seed
IMAGENET, SECOND, LARGE = "ImageNet", "second", "ImageNet, larger"
EQUAL, RANDOM, LEFT_OUT = "both, equal weights", "both, chosen by random fifths", "both, chosen by left-out sources"
ROWS = (IMAGENET, SECOND, EQUAL, RANDOM, LEFT_OUT, LARGE)
RESULT = Path(__file__).parent / "results" / "two-branches.md"
Row = tuple[str, str, int, float, float]  # what, target, seed, accuracy, weight of the ImageNet branch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--second", type=Path, required=True, help="a run of one ResNet-18, pretrained on other data")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/two-branches"))
    options = parser.parse_args()
    size, large = options.image_size, round(options.image_size * 2**0.5)
    imagenet = {"backbone": "resnet18", "weights": str(options.weights.resolve())}
    second = {"backbone": "resnet18", "weights": str(options.second.resolve())}
    found = _features(options, size, {IMAGENET: imagenet, SECOND: second})
    larger = _features(options, large, {LARGE: imagenet})
    stored = {name: (_scaled(found[name]) | _scaled(larger[name]), found[name].targets) for name in DOMAINS}
    rows: list[Row] = []
    with progress("targets and seeds", len(DOMAINS) * options.seeds, "fitted") as advance:
        for target in DOMAINS:
            for seed in range(options.seeds):
                rows += _rows(stored, target, seed)
                _write(options, rows)
                advance()


def _features(options: argparse.Namespace, size: int, branches: Mapping[str, Any]) -> dict[str, Features]:
    """Of every image of each domain."""
    names = {name: name.replace(", ", "-") for name in branches}
    recipe = Recipe.model_validate(
        {
            "data": {
                "sources": {domain: {"path": str(options.pacs.resolve() / domain)} for domain in DOMAINS},
                "validation": 0,
                "image_size": size,
            },
            "model": {"branches": {names[name]: branch for name, branch in branches.items()}},
        }
    )
    data = open_data(recipe.data)
    model, _ = initial_model(recipe, data)
    found = {}
    for subset in data.train:
        of = features_of(model, [subset], recipe.data, subset.num_samples, options.out / ".features")
        found[subset.name] = Features({name: of.branches[names[name]] for name in branches}, of.targets, of.sources)
    return found


def _scaled(found: Features) -> dict[str, tuple[Tensor, Tensor]]:
    """By branch: pooled features, and the variance of its maps over all pixels."""
    return {name: (seen.pooled, seen.covariance.diagonal().float()) for name, seen in found.branches.items()}


def _rows(
    stored: Mapping[str, tuple[Mapping[str, tuple[Tensor, Tensor]], Tensor]], target: str, seed: int
) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)
    sources = [domain for domain in DOMAINS if domain != target]
    chosen = {}
    for domain in sources:
        count = len(stored[domain][1])
        chosen[domain] = torch.randperm(count, generator=generator)[: round(PART * count)]
    y = torch.cat([stored[domain][1][chosen[domain]] for domain in sources])
    groups = torch.cat([torch.full((len(chosen[domain]),), place) for place, domain in enumerate(sources)])
    x, held = {}, {}
    for name in (IMAGENET, SECOND, LARGE):  # scaled as the projections of a run are
        variance = torch.stack([stored[domain][0][name][1] for domain in sources]).mean(0).clamp_min(1e-10)
        x[name] = torch.cat([stored[domain][0][name][0][chosen[domain]] for domain in sources]) / variance.sqrt()
        held[name] = stored[target][0][name][0] / variance.sqrt()
    masks = torch.ones(len(y), int(y.max()) + 1, dtype=torch.bool)
    truth = stored[target][1]

    def accuracy(fused: Tensor, unseen: Tensor) -> float:
        weight, bias = fit_linear(fused, y, masks, choose_penalty(fused, y, masks, groups).penalty)
        return ((unseen @ weight.T + bias).argmax(1) == truth).double().mean().item()

    rows: list[Row] = [(name, target, seed, accuracy(x[name], held[name]), 1.0) for name in (IMAGENET, SECOND, LARGE)]
    both = {name: x[name] for name in (IMAGENET, SECOND)}
    fusion = WeightedSum([1.0, 1.0])
    for what, by in ((EQUAL, None), (RANDOM, fifths(len(y))), (LEFT_OUT, groups)):
        fusion.set_weights([1.0, 1.0])
        w = choose_weights(fusion, both, y, masks, by)[0].weights[IMAGENET] if by is not None else 0.5
        fused, unseen = (fusion([z[name] for name in both]) for z in (x, held))
        rows.append((what, target, seed, accuracy(fused, unseen), w))
    return rows


def _write(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    seeds = sorted({seed for *_, seed, _, _ in rows if sum(row[2] == seed for row in rows) == len(ROWS) * len(DOMAINS)})
    if len(seeds) < 2:
        return
    of = {(what, target, seed): 100 * accuracy for what, target, seed, accuracy, _ in rows}
    weights = {(what, target, seed): w for what, target, seed, _, w in rows}
    lines = [
        "# A second branch, pretrained on other data",
        "",
        "    python -m benchmarks.two_branches --pacs SHARDS --weights RESNET18 --second RUN "
        f"--image-size {options.image_size} --seeds {options.seeds}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, CPU, torch {torch.__version__}. Two ResNet-18, "
        f"one with ImageNet weights and one of the run {options.second.name}, frozen; a linear probe on {PART:.0%} of "
        "each of three domains of PACS, accuracy (%) on the fourth, read once. ± is half of the 95 % t-interval over "
        f"{len(seeds)} seeds, which draw the training images. `w`: mean weight of the ImageNet branch.",
        "",
        f"| features | {' | '.join(DOMAINS)} | mean | less {IMAGENET} | w |",
        "|---|" + "---|" * (len(DOMAINS) + 3),
    ]
    for what in ROWS:
        cells = [f"{over_seeds([of[what, target, seed] for seed in seeds]).value:.1f}" for target in DOMAINS]
        means = [sum(of[what, target, seed] for target in DOMAINS) / len(DOMAINS) for seed in seeds]
        first = [sum(of[IMAGENET, target, seed] for target in DOMAINS) / len(DOMAINS) for seed in seeds]
        mean, gain = over_seeds(means), over_seeds([a - b for a, b in zip(means, first, strict=True)])
        w = sum(weights[what, target, seed] for target in DOMAINS for seed in seeds) / len(DOMAINS) / len(seeds)
        less = "" if what == IMAGENET else f"{gain.value:+.1f} ± {gain.high - gain.value:.1f}"
        shown = f"{w:.2f}" if what in (EQUAL, RANDOM, LEFT_OUT) else ""
        lines.append(
            f"| {what} | {' | '.join(cells)} | {mean.value:.1f} ± {mean.high - mean.value:.1f} | {less} | {shown} |"
        )
    lines += ["", "Raw rows: features, target, seed, accuracy, w:", "", "```"]
    lines += [f"{what} | {target} {seed} {value:.4f} {w:.2f}" for what, target, seed, value, w in rows]
    RESULT.write_text("\n".join([*lines, "```", ""]))


if __name__ == "__main__":
    main()
