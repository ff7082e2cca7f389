"""Leave one domain out on PACS: fusion of two scales of one frozen ResNet-18 against a linear probe on it.

    python benchmarks/pacs.py --shards data/pacs --weights resnet18.safetensors

The branches are frozen, so their pooled features are computed once (about 10,000 images, a few minutes on two cores)
and kept beside the shards; then every model is a small head, trained by full-batch L-BFGS in seconds. For each of the
4 target domains and each seed: a tenth of the three training domains, drawn by seed, is held out; L2 strength, and
for the fusion model its weight vector, are chosen on it alone (training-domain validation). The target domain is read
once, after everything is chosen.

Rows written to benchmarks/results/pacs.md: accuracy by target, mean over targets by seed, mean over seeds with a 95 %
t-interval, and the paired difference to the probe.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from shards.config import DataConfig
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from shards.progress import progress
from xfer.config import ModelConfig
from xfer.fusion import WeightedSum
from xfer.model import FusionModel, build_model

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
SEEDS = range(5)
SCALES = (192, 256)  # pixels, either side of the 224 that the weights were made at
PENALTIES = (1e-4, 1e-3, 1e-2)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the second branch: the weight vectors tried; 0 and 1 are the single branches
T_95 = 2.776  # Student's t, 4 degrees of freedom


@dataclass(frozen=True)
class Domain:
    """Pooled C5 of every branch [n, N, 512] float32, class [n], and the layout of the data they came from."""

    features: Tensor
    targets: Tensor


class Head(nn.Module):
    """The fusion model behind its branches: standardise, fuse by w, classify. One branch: the linear probe."""

    def __init__(self, mean: Tensor, std: Tensor, weights: list[float], classes: int):
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


def fit_head(train: Domain, weights: list[float], penalty: float) -> Head:
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


def split(domains: list[Domain], seed: int) -> tuple[Domain, list[Domain]]:
    """A tenth of every domain held out, by seed: (training, held out by domain)."""
    generator = torch.Generator().manual_seed(seed)
    train, held = [], []
    for domain in domains:
        order = torch.randperm(len(domain.targets), generator=generator)
        cut = len(order) // 10
        held.append(Domain(domain.features[order[:cut]], domain.targets[order[:cut]]))
        train.append(Domain(domain.features[order[cut:]], domain.targets[order[cut:]]))
    return Domain(torch.cat([d.features for d in train]), torch.cat([d.targets for d in train])), held


def best_on_validation(train: Domain, held: list[Domain], candidates: list[list[float]]) -> tuple[Head, dict]:
    """The head of the (weights, penalty) with the highest mean accuracy over the held-out parts."""
    tried = []
    for weights in candidates:
        for penalty in PENALTIES:
            head = fit_head(train, weights, penalty)
            score = statistics.fmean(accuracy(head, part) for part in held)
            tried.append((score, {"weights": weights, "penalty": penalty}, head))
    score, chosen, head = max(tried, key=lambda t: t[0])
    return head, {**chosen, "validation": score}


MODELS: dict[str, Callable[[], list[list[float]]]] = {
    "linear probe, 192 px": lambda: [[1.0, 0.0]],
    "linear probe, 256 px": lambda: [[0.0, 1.0]],
    "fusion, equal weights": lambda: [[0.5, 0.5]],
    "fusion, searched weights": lambda: [[1 - s, s] for s in SHARES],
}


def run(domains: dict[str, Domain]) -> list[dict]:
    """One row for each model, target and seed."""
    rows = []
    with progress("leave one domain out", len(DOMAINS) * len(SEEDS) * len(MODELS), "fits") as advance:
        for seed in SEEDS:
            for target in DOMAINS:
                train, held = split([domains[d] for d in DOMAINS if d != target], seed)
                for name, candidates in MODELS.items():
                    head, chosen = best_on_validation(train, held, candidates())
                    test = accuracy(head, domains[target])
                    rows.append({"model": name, "target": target, "seed": seed, "accuracy": test, **chosen})
                    advance()
    return rows


def interval(values: list[float]) -> tuple[float, float, float]:
    """(mean, SD, half width of the 95 % t-interval) over seeds."""
    sd = statistics.stdev(values)
    return statistics.fmean(values), sd, T_95 * sd / math.sqrt(len(values))


def table(rows: list[dict]) -> str:
    def means(model: str) -> list[float]:
        return [
            100 * statistics.fmean(r["accuracy"] for r in rows if r["model"] == model and r["seed"] == seed)
            for seed in SEEDS
        ]

    short = {"art_painting": "art"}
    lines = [
        "| model | " + " | ".join(short.get(d, d) for d in DOMAINS) + " | mean | SD | 95 % | minus the better probe |",
        "|---|" + "---|" * (len(DOMAINS) + 4),
    ]
    probe = max((means(m) for m in MODELS if "probe" in m), key=statistics.fmean)
    for model in MODELS:
        by_domain = [
            100 * statistics.fmean(r["accuracy"] for r in rows if r["model"] == model and r["target"] == d)
            for d in DOMAINS
        ]
        mean, sd, half = interval(means(model))
        gap, _, gap_half = interval([a - b for a, b in zip(means(model), probe, strict=True)])
        cells = [*(f"{v:.1f}" for v in by_domain), f"**{mean:.2f}**", f"{sd:.2f}", f"± {half:.2f}"]
        lines.append(f"| {model} | " + " | ".join(cells) + f" | {gap:+.2f} ± {gap_half:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="folder with the four built domains")
    parser.add_argument("--weights", type=Path, required=True, help="torchvision ResNet-18, .safetensors or .pth")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pacs.md")
    arguments = parser.parse_args()
    rows = run(cached_features(arguments.shards, arguments.weights))
    text = f"""# PACS, leave one domain out, frozen ImageNet ResNet-18

Command: `python benchmarks/pacs.py --shards SHARDS --weights WEIGHTS`
Commit: {_commit()}. Machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, \
torch {torch.__version__}, CPU.
Data: PACS at a shorter side of 128 px. Weights: torchvision ResNet-18 layout, 66.7 % ImageNet top-1. Selection rule: \
training-domain validation. Seeds: {len(SEEDS)} (the held-out tenth of the training domains).
Intervals: Student's t over seeds; the last column is paired by seed.

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


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
