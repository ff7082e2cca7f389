"""Do LogME, H-score and nearest neighbours tell which source suits a target? PACS, each domain for each other one.

    python -m benchmarks.transferability --shards data/pacs --weights resnet18.safetensors

For the 12 pairs of a source and a target: what `xfer features` says of them, against the accuracy on the target of a
model trained on the source alone: its linear probe (what transfer.mode: feature fits), and with --steps a fine-tuned
model (full).
Rank correlations over all pairs, and within each target, where the choice is made. Written to
benchmarks/results/transferability.md. Every run is kept in --out, and the same command goes on with those missing.
"""

import argparse
import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import xfer
from benchmarks.record import commit
from shards.loading.open import open_data
from xfer.config import Recipe
from xfer.model import build_model
from xfer.transfer.pairs import Pair, transferability

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
MEASURES = {"k-NN": "knn", "LogME": "log_evidence", "H-score": "h_score"}
Accuracies = dict[tuple[str, str], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1500, help="at most so many of each domain")
    parser.add_argument("--steps", type=int, default=0, help="of fine-tuning; 0: none")
    parser.add_argument("--scored", type=float, default=0.3, help="part of the target a fine-tuned model is scored on")
    parser.add_argument("--out", type=Path, default=Path("runs/transferability"))
    parser.add_argument("--report", type=Path, default=Path(__file__).parent / "results" / "transferability.md")
    options = parser.parse_args()
    recipe = Recipe.model_validate(_recipe(options, "all", DOMAINS))
    data = open_data(recipe.data)
    model = build_model(recipe.model, len(data.classes), 0)
    found = transferability(model, data.train, data.train, recipe.data, options.images, options.out / ".features")
    outcomes = {"probe": {(p.source, p.target): p.linear or 0.0 for p in found.pairs}}
    _write(options, found.pairs, outcomes)
    if options.steps:
        outcomes["fine-tuned"] = {}
        for source in DOMAINS:
            run = xfer.fit(_recipe(options, source, [source]))
            for target, score in run.evaluate("test").items():
                outcomes["fine-tuned"][source, target] = score.accuracy
        _write(options, found.pairs, outcomes)


def _recipe(options: argparse.Namespace, name: str, sources: Sequence[str]) -> dict[str, Any]:
    part = {"hash": [0, options.scored]}
    return {
        "name": name,
        "output": str(options.out),
        "data": {
            "root": str(options.shards),
            "sources": {domain: {"path": domain} for domain in sources},
            "test": {domain: {"path": domain, "where": part} for domain in DOMAINS if domain not in sources},
            "validation": 0,
            "image_size": options.image_size,
            "batch_size": 32,
        },
        "model": {
            "branches": {"main": {"backbone": "resnet18", "weights": str(options.weights)}},
            "fusion": {"width": 512},
        },
        "train": {
            "steps": max(1, options.steps),
            "learning_rate": 0.004,
            "save_every": 1000,
            "probe_images": options.images,
        },
    }


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of ranks, none of them tied."""
    return statistics.correlation(*([float(sorted(values).index(value)) for value in values] for values in (a, b)))


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Pairs in the same order less those in opposite order, of all."""
    signs = [
        math.copysign(1, (a[i] - a[j]) * (b[i] - b[j])) * (a[i] != a[j] and b[i] != b[j])
        for i in range(len(a))
        for j in range(i)
    ]
    return statistics.fmean(signs)


def interval(rho: float, n: int) -> tuple[float, float]:
    """95 % for independent pairs: Fisher's z, variance 1.06 / (n - 3) (Fieller et al., Biometrika 1957)."""
    z, half = math.atanh(rho), 1.96 * math.sqrt(1.06 / (n - 3))
    return math.tanh(z - half), math.tanh(z + half)


def _rows(pairs: Sequence[Pair], outcome: Accuracies, name: str) -> list[str]:
    lines = []
    for measure, key in MEASURES.items():
        said = {(p.source, p.target): getattr(p, key) for p in pairs}
        x, y = ([values[pair] for pair in said] for values in (said, outcome))
        rho, tau = spearman(x, y), kendall(x, y)
        low, high = interval(rho, len(x))
        within, best = [], 0
        for target in DOMAINS:
            of = [pair for pair in said if pair[1] == target]
            within.append(kendall([said[pair] for pair in of], [outcome[pair] for pair in of]))
            best += max(of, key=lambda pair: said[pair]) == max(of, key=lambda pair: outcome[pair])
        cells = [
            f"{rho:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{tau:.2f}",
            f"{statistics.fmean(within):.2f}",
            f"{best} of 4",
        ]
        lines.append(f"| {name} | {measure} | {' | '.join(cells)} |")
    return lines


def _write(options: argparse.Namespace, pairs: Sequence[Pair], outcomes: dict[str, Accuracies]) -> None:
    command = (
        f"python -m benchmarks.transferability --shards SHARDS --weights RESNET18 --image-size {options.image_size}"
    )
    tuned = f", {options.steps} steps of 32 images at 0.004, scored on {options.scored:.0%} of the target"
    lines = [
        "# Which source suits a target: what the measures of `xfer features` say, and what came of it",
        "",
        f"    {command} --images {options.images} --steps {options.steps} --scored {options.scored}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, CPU, torch {torch.__version__}. PACS, ImageNet "
        f"ResNet-18 at {options.image_size} px, at most {options.images:,} images of each domain. Outcome: accuracy on "
        "the target of a model trained on the source alone. `probe`: its linear probe, on the same images of the "
        "target as the measures." + (f" `fine-tuned`: all layers, one seed{tuned}." if options.steps else ""),
        "",
        "The 12 pairs share sources and targets, so they are fewer than 12 independent ones: the interval, which takes "
        "them for independent, is too narrow. Within a target there are three sources to rank.",
        "",
        "| outcome | measure | Spearman, 12 pairs | 95 % | Kendall, 12 pairs | Kendall within a target, mean of 4 "
        "| best source named |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, outcome in outcomes.items():
        lines += _rows(pairs, outcome, name)
    head = ["source", "target", *MEASURES, *outcomes]
    lines += ["", "## Raw rows", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for p in pairs:
        accuracies = [f"{100 * outcome[p.source, p.target]:.1f}" for outcome in outcomes.values()]
        values = [f"{100 * (p.knn or 0):.1f}", f"{p.log_evidence:.4f}", f"{p.h_score:.4f}"]
        lines.append(f"| {' | '.join([p.source, p.target, *values, *accuracies])} |")
    options.report.write_text("\n".join(lines) + "\n")
    print(f"written: {options.report}")


if __name__ == "__main__":
    main()
