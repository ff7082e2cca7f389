"""Should BatchNorm move when a pretrained model is trained on a few sources? PACS, by the two domains left out.

    python -m benchmarks.batchnorm --pacs data/pacs --weights resnet18.safetensors

Each run trains on two domains and is scored on the two others, before (the linear probe) and after. A run for each pair
of domains, optimizer and rate, and BatchNorm as it is or moving. Writes benchmarks/results/batchnorm.md.
"""

import argparse
import itertools
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import xfer
from benchmarks.record import commit

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PAIRS = (("art_painting", "photo"), ("cartoon", "sketch"))
RATES = (("sgd", 0.001), ("sgd", 0.004), ("sgd", 0.01), ("adamw", 1e-4))
RESULT = Path(__file__).parent / "results" / "batchnorm.md"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, on one core each")
    parser.add_argument("--out", type=Path, default=Path("runs/batchnorm"))
    options = parser.parse_args()
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,), max_tasks_per_child=1) as pool:
        runs = [
            pool.submit(_run, options, frozen, optimizer, rate, pair)
            for frozen in (True, False)
            for optimizer, rate in RATES
            for pair in PAIRS
        ]
        _write(options, [run.result() for run in runs])


def _run(options: argparse.Namespace, frozen: bool, optimizer: str, rate: float, pair: tuple[str, str]) -> Row:
    sources: dict[str, Any] = {domain: {"path": str(options.pacs.resolve() / domain)} for domain in DOMAINS}
    for domain in pair:
        sources[domain]["where"] = {"hash": [0, 0.3]}
    train = {"steps": options.steps, "optimizer": optimizer, "learning_rate": rate, "freeze_batchnorm": frozen}
    branch = {"backbone": "resnet18", "weights": str(options.weights.resolve())}
    recipe = {
        "name": f"{'still' if frozen else 'moving'}-{optimizer}-{1e5 * rate:g}-{'-'.join(pair)}",
        "output": str(options.out.resolve()),
        "data": {
            **{"sources": sources, "validation": list(pair), "image_size": options.image_size},
            **{"batch_size": 32, "workers": 1},
        },
        "model": {"branches": {"main": branch}, "fusion": {"width": 512}},
        "train": {
            **train,
            "precision": "bf16",
            "evaluate_every": options.steps,
            "save_every": options.steps,
            "keep": 1,
        },
    }
    rows = [row["accuracy"] for row in xfer.fit(recipe, quiet=True).metrics if row.get("accuracy")]
    return {"frozen": frozen, "rate": f"{optimizer} {rate:g}", "probe": rows[0], "end": rows[-1]}


def _write(options: argparse.Namespace, rows: list[Row]) -> None:
    command = "python -m benchmarks.batchnorm --pacs SHARDS --weights RESNET18"
    lines = [
        "# BatchNorm of a pretrained model, still or moving",
        "",
        f"    {command} --image-size {options.image_size} --steps {options.steps}",
        "",
        f"Commit {commit()}, {platform.machine()}, torch {torch.__version__}, one seed. ResNet-18 with ImageNet "
        "weights, begun as its linear probe, all layers trained, batches of 32, bf16; trained on two domains of PACS, "
        "accuracy (%) on 30 % of each of the two others, which nothing was trained on.",
        "",
        f"| BatchNorm | rate | {' | '.join(domain for pair in PAIRS for domain in pair)} | mean | less its probe |",
        "|---|---|" + "---|" * (sum(map(len, PAIRS)) + 2),
    ]
    probe = [score for row in rows[: len(PAIRS)] for score in row["probe"].values()]
    lines.append(f"| the probe | | {' | '.join(f'{100 * one:.1f}' for one in probe)} | {_mean(probe)} | |")
    for (frozen, rate), group in itertools.groupby(rows, key=lambda row: (row["frozen"], row["rate"])):
        end = [score for row in group for score in row["end"].values()]
        gain = 100 * (statistics.fmean(end) - statistics.fmean(probe))
        cells = " | ".join(f"{100 * one:.1f}" for one in end)
        lines.append(f"| {'still' if frozen else 'moving'} | {rate} | {cells} | {_mean(end)} | {gain:+.1f} |")
    RESULT.write_text("\n".join(lines) + "\n")


def _mean(scores: list[float]) -> str:
    return f"{100 * statistics.fmean(scores):.1f}"


if __name__ == "__main__":
    main()
