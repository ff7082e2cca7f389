"""Leave one domain out on PACS: which input size, does a second scale pay, and which rule chooses rightly?

    python -m benchmarks.pacs --shards data/pacs --weights resnet18.safetensors

The branches are frozen, so their pooled features are computed once (about 10,000 images at each size, some minutes on
two cores) and kept beside the shards; then every model is a small head, trained by full-batch L-BFGS in seconds. For
each of the 4 target domains and each seed, L2 strength and (where it is searched) the weight vector over the scales are
chosen on the three training domains alone, by one of two rules:

    random    a tenth of every training domain, drawn by seed, is held out: the usual validation
    sources   each training domain in turn is left out, and the mean over them decides (leave one source out)

Both fit the chosen head anew, `random` on what it did not hold out, `sources` on everything. The target domain is read
once, after everything is chosen.

Rows written to benchmarks/results/pacs.md: accuracy by target, mean over targets by seed, mean over seeds with a 95 %
t-interval, and the paired difference to the probe at 224 px.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.record import commit, over_seeds
from shards.config import DataConfig
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from shards.progress import progress
from xfer.fusion import WeightedSum
from xfer.metrics import Estimate
from xfer.model import FusionModel, build_model
from xfer.model_config import ModelConfig

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
SEEDS = range(5)
SCALES = (64, 112, 224)  # pixels; the weights were made at 224
PENALTIES = (1e-4, 1e-3, 1e-2)
SINGLE = {64: (1.0, 0.0, 0.0), 112: (0.0, 1.0, 0.0), 224: (0.0, 0.0, 1.0)}
SMALL = [SINGLE[112], SINGLE[64], *((s, 1 - s, 0.0) for s in (0.25, 0.5, 0.75))]  # 112 px, 64 px, and both
LARGE = [SINGLE[224], SINGLE[112], *((0.0, s, 1 - s) for s in (0.25, 0.5, 0.75))]
MODELS: dict[str, list[tuple[float, ...]]] = {
    "probe at 64 px": [SINGLE[64]],
    "probe at 112 px": [SINGLE[112]],
    "probe at 224 px": [SINGLE[224]],
    "112 + 64 px, equal weights": [(0.5, 0.5, 0.0)],
    "112 + 64 px, searched (single scales among them)": SMALL,
    "224 + 112 px, equal weights": [(0.0, 0.5, 0.5)],
    "224 + 112 px, searched (single scales among them)": LARGE,
}


@dataclass(frozen=True)
class Domain:
    """Pooled C5 of every branch [n, N, 512] float32, class [n], and the layout of the data they came from."""

    features: Tensor
    targets: Tensor


class Head(nn.Module):
    """The fusion model behind its branches: standardise, fuse by w, classify. One branch: the linear probe."""

    def __init__(self, mean: Tensor, std: Tensor, weights: Sequence[float], classes: int):
        super().__init__()
        self.mean, self.std = mean, std
        self.fusion = WeightedSum(weights)
        self.linear = nn.Linear(mean.shape[-1], classes)
        nn.init.zeros_(self.linear.weight)

    def forward(self, features: Tensor) -> Tensor:
        z = (features - self.mean) / self.std
        return self.linear(self.fusion(list(z.unbind(1))))


def cached_features(shards: Path, weights: Path) -> dict[str, Domain]:
    """Features of every domain at every scale, from the caches beside the shards or computed now."""
    scales = []
    for size in SCALES:
        path = shards / f"features-{size}.safetensors"
        if not path.is_file():
            save_file(_compute(shards, weights, size), path)
        scales.append(load_file(path))
    return {d: Domain(torch.stack([s[f"{d}.features"] for s in scales], 1), scales[0][f"{d}.targets"]) for d in DOMAINS}


def _compute(shards: Path, weights: Path, size: int) -> dict[str, Tensor]:
    config = DataConfig.model_validate(
        {
            "root": str(shards),
            "sources": {d: {"path": d} for d in DOMAINS},
            "validation": 0,
            "image_size": 128,
            "batch_size": 64,
            "workers": 0,
        }
    )
    branches = {"only": {"backbone": "resnet18", "weights": str(weights), "size": size}}
    model = build_model(ModelConfig.model_validate({"branches": branches}), 7, seed=0).eval()
    model = model.to(memory_format=torch.channels_last)
    result = {}
    for subset in open_data(config).train:
        features, targets = [], []
        with torch.inference_mode(), progress(f"{size} px {subset.name}", subset.num_samples, "images") as advance:
            for batch in eval_stream([subset], config, Slot()):
                features.append(_pooled(model, batch.images, size)[batch.valid])
                targets.append(batch.targets[batch.valid])
                advance(int(batch.valid.sum()))
        result |= {f"{subset.name}.features": torch.cat(features), f"{subset.name}.targets": torch.cat(targets)}
    return result


def _pooled(model: FusionModel, images: Tensor, size: int) -> Tensor:
    x = (images.float() / 255 - model.mean) / model.std
    x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return model.branches["only"](x)[5].mean((2, 3))


def fit_head(train: Domain, weights: Sequence[float], penalty: float) -> Head:
    """Cross-entropy + penalty * ||W||^2, full batch, from zero: no randomness."""
    head = Head(train.features.mean(0, keepdim=True)[0], train.features.std(0) + 1e-6, weights, 7)
    optimizer = torch.optim.LBFGS(head.linear.parameters(), max_iter=60, line_search_fn="strong_wolfe")
    with torch.no_grad():
        fused = head.fusion(list(((train.features - head.mean) / head.std).unbind(1)))

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(head.linear(fused), train.targets) + penalty * head.linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head


@torch.no_grad()
def accuracy(head: Head, data: Domain) -> float:
    return (head(data.features).argmax(1) == data.targets).float().mean().item()


def joined(domains: Sequence[Domain]) -> Domain:
    return Domain(torch.cat([d.features for d in domains]), torch.cat([d.targets for d in domains]))


def random_tenth(domains: Sequence[Domain], seed: int) -> list[tuple[Domain, list[Domain]]]:
    """One fold: a tenth of every domain held out by seed, (training, held out by domain)."""
    generator = torch.Generator().manual_seed(seed)
    train, held = [], []
    for domain in domains:
        order = torch.randperm(len(domain.targets), generator=generator)
        cut = len(order) // 10
        held.append(Domain(domain.features[order[:cut]], domain.targets[order[:cut]]))
        train.append(Domain(domain.features[order[cut:]], domain.targets[order[cut:]]))
    return [(joined(train), held)]


def left_out(domains: Sequence[Domain], seed: int) -> list[tuple[Domain, list[Domain]]]:
    """A fold for each domain: trained on the others, scored on it. Nothing is drawn, so the seed changes nothing."""
    return [(joined([d for d in domains if d is not out]), [out]) for out in domains]


RULES = {"random": random_tenth, "sources": left_out}


def choose(
    folds: Sequence[tuple[Domain, list[Domain]]], candidates: Sequence[Sequence[float]]
) -> tuple[Sequence[float], float, float]:
    """Weights and penalty with the highest mean accuracy over the folds' held-out parts, and that accuracy."""
    tried = []
    for weights in candidates:
        for penalty in PENALTIES:
            scores = []
            for train, held in folds:
                head = fit_head(train, weights, penalty)
                scores += [accuracy(head, part) for part in held]
            tried.append((statistics.fmean(scores), weights, penalty))
    score, weights, penalty = max(tried, key=lambda t: t[0])
    return weights, penalty, score


def run(domains: dict[str, Domain]) -> list[dict]:
    """One row for each model, rule, target and seed."""
    rows = []
    with progress("leave one domain out", len(DOMAINS) * len(SEEDS) * len(MODELS), "models") as advance:
        for target in DOMAINS:
            sources = [domains[d] for d in DOMAINS if d != target]
            for name, candidates in MODELS.items():
                known = None
                for seed in SEEDS:
                    for rule, folds_of in RULES.items():
                        if rule == "sources" and known is not None:
                            rows.append({**known, "seed": seed})
                            continue
                        folds = folds_of(sources, seed)
                        weights, penalty, score = choose(folds, candidates)
                        final = folds[0][0] if rule == "random" else joined(sources)
                        row = {"model": name, "rule": rule, "target": target, "seed": seed}
                        row |= {"accuracy": accuracy(fit_head(final, weights, penalty), domains[target])}
                        row |= {"weights": list(weights), "penalty": penalty, "validation": score}
                        rows.append(row)
                        known = row if rule == "sources" else known
                    advance()
    return rows


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _half(mean: Estimate) -> str:
    return f"± {mean.high - mean.value:.2f}"


def table(rows: list[dict]) -> str:
    """Markdown: a line for each model and rule."""
    rules = [(model, rule) for model in MODELS for rule in RULES]

    def of(model: str, rule: str) -> list[dict]:
        return [row for row in rows if row["model"] == model and row["rule"] == rule]

    def means(model: str, rule: str) -> list[float]:
        return [100 * statistics.fmean(r["accuracy"] for r in of(model, rule) if r["seed"] == seed) for seed in SEEDS]

    lines = [
        "| model, rule | "
        + " | ".join(DOMAINS)
        + " | mean | SD | 95 % | minus the probe at 224 px | validation said |",
        "|---|" + "---|" * (len(DOMAINS) + 5),
    ]
    probe = means("probe at 224 px", "random")
    for model, rule in rules:
        found = of(model, rule)
        by_domain = [100 * statistics.fmean(r["accuracy"] for r in found if r["target"] == d) for d in DOMAINS]
        mean, gap = over_seeds(means(model, rule)), over_seeds(_minus(means(model, rule), probe))
        said = 100 * statistics.fmean(row["validation"] for row in found)
        cells = [
            *(f"{v:.1f}" for v in by_domain),
            f"**{mean.value:.2f}**",
            f"{statistics.stdev(means(model, rule)):.2f}",
            _half(mean),
        ]
        lines.append(f"| {model}, {rule} | " + " | ".join(cells) + f" | {gap.value:+.2f} {_half(gap)} | {said:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="folder with the four built domains")
    parser.add_argument("--weights", type=Path, required=True, help="torchvision ResNet-18, .safetensors or .pth")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pacs.md")
    arguments = parser.parse_args()
    rows = run(cached_features(arguments.shards, arguments.weights))
    text = f"""# PACS, leave one domain out, frozen ImageNet ResNet-18

Command: `python -m benchmarks.pacs --shards SHARDS --weights WEIGHTS`
Commit: {commit()}. Machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, \
torch {torch.__version__}, CPU.
Data: PACS at a shorter side of 128 px. Weights: torchvision ResNet-18 layout, 66.7 % ImageNet top-1. Selection \
rules: `random`, a tenth of the training domains; `sources`, each training domain left out in turn. Seeds: {len(SEEDS)}
(the random tenth; `sources` draws nothing). Intervals: Student's t over seeds; differences are paired by seed.
"validation said" is the accuracy that the rule chose by.

{table(rows)}

The heads have no other randomness than their training split, so the spread over seeds is small and says nothing about
other weights or other images. The fusion here is the model's own `WeightedSum` on standardised pooled features, without
the learned projections. Raw rows:

```
{chr(10).join(json.dumps(row) for row in rows)}
```
"""
    arguments.out.write_text(text)
    print(table(rows))
    print(f"\nwritten: {arguments.out}")


if __name__ == "__main__":
    main()
