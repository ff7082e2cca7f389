"""What each option of training is worth on a style nobody has seen: PACS, two domains trained on, two left out.

    python -m benchmarks.options --pacs data/pacs --weights resnet18.safetensors

Every option is tried by itself (and those of `TOGETHER` at once) beside the recipe as it is: full fine-tuning of an
ImageNet ResNet-18 on each of the six pairs of domains, scored on half of each of the two others, by hash. The
difference is paired by run. What would be chosen for a target by the runs that have nothing of it, neither to train
nor to score on, is named too, so a later run on that target may use it and its test images are still unread.

Every run is a process of its own on one core; its row is added to benchmarks/results/options.jsonl, and the same
command goes on with those that are missing. The table is options.md beside it.
"""

import argparse
import itertools
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

import xfer
from benchmarks.record import cell, commit, each_on_a_core, keep, kept_rows

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PAIRS = tuple(itertools.combinations(DOMAINS, 2))
AS_IS = "as it is"
OPTIONS: dict[str, dict[str, Any]] = {
    AS_IS: {},
    "EMA of 0.98": {"train.ema": 0.98},
    "TrivialAugment": {"data.augment.policy": "trivial"},
    "TrivialAugment, EMA": {"data.augment.policy": "trivial", "train.ema": 0.98},
    "layer rates of 0.7": {"train.layer_decay": 0.7},
    "MixUp of 0.2": {"data.augment.mixup": 0.2},
    "CutMix of 1": {"data.augment.cutmix": 1.0},
    "label smoothing of 0.1": {"train.label_smoothing": 0.1},
    "L2-SP of 0.01": {"transfer.l2_sp": 0.01},
    "twice the steps": {"train.steps": 400},
}
SETTING: dict[str, Any] = {"train.steps": 200, "train.precision": "bf16", "data.image_size": 128, "data.batch_size": 32}
SHARE = 0.5  # of a left-out domain's images that are scored
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, on one core each")
    parser.add_argument("--out", type=Path, default=Path("runs/options"))
    arguments = parser.parse_args()
    kept = RESULTS / "options.jsonl"
    rows = kept_rows(kept)
    known = {(row["option"], tuple(row["trained"])) for row in rows}
    recipe = {"output": str(arguments.out.resolve()), "data.root": str(arguments.pacs.resolve()), **SETTING}
    recipe["model.branches.main.weights"] = str(arguments.weights.resolve())
    todo = [(recipe, option, pair) for option, pair in itertools.product(OPTIONS, PAIRS) if (option, pair) not in known]
    for row in each_on_a_core("options", arguments.jobs, _run, todo):
        rows.append(row)
        keep(kept, row)
        _write(rows)
    _write(rows)


def _run(setting: dict[str, Any], option: str, pair: tuple[str, str]) -> Row:
    values = {
        "name": f"{list(OPTIONS).index(option)}-{'-'.join(pair)}",
        "data": {
            "sources": {name: {"path": name} for name in pair},
            "test": {name: {"path": name, "where": {"hash": [0, SHARE]}} for name in DOMAINS if name not in pair},
            "validation": 0,
        },
        "model": {"branches": {"main": {"backbone": "resnet18"}}, "fusion": {"width": 512}},
    }
    changes = {**setting, **OPTIONS[option]}
    once = dict.fromkeys(("train.evaluate_every", "train.save_every"), changes["train.steps"])
    run = xfer.fit(values, {**changes, **once, "train.keep": 1}, quiet=True)
    scores = {name: round(score.accuracy, 5) for name, score in run.evaluate("test").items()}
    return {"option": option, "trained": pair, "scores": scores, "commit": commit()}


def _write(rows: list[Row]) -> None:
    of = {(row["option"], tuple(row["trained"])): row["scores"] for row in rows}
    whole = [option for option in OPTIONS if all((option, pair) in of for pair in PAIRS)]
    size, batch = SETTING["data.image_size"], SETTING["data.batch_size"]
    lines = [
        "# What each option of training is worth",
        "",
        "    python -m benchmarks.options --pacs SHARDS --weights RESNET18",
        "",
        f"{platform.machine()}, one core a run, torch {torch.__version__}. Full fine-tuning of a ResNet-18 with "
        f"ImageNet weights at {size} px, {SETTING['train.steps']} steps of {batch}, bf16, the rest as by default. "
        "Trained on two domains of PACS, accuracy (%) on half of each domain that was left out: the mean over the "
        "three runs that left it out, and over all. Less as it is: paired by run, the mean over the six runs ± half of "
        "the 95 % t-interval.",
        "",
        f"| option | {' | '.join(DOMAINS)} | mean | less {AS_IS} |",
        "|---|" + "---|" * (len(DOMAINS) + 2),
    ]
    for option in whole:
        cells = [_accuracy(of, option, without=name, on=name) for name in DOMAINS]
        paired = [
            100 * (statistics.fmean(of[option, pair].values()) - statistics.fmean(of[AS_IS, pair].values()))
            for pair in PAIRS
        ]
        less = "" if option == AS_IS else cell(paired, signed=True)
        lines.append(f"| {option} | {' | '.join(f'{one:.1f}' for one in [*cells, statistics.fmean(cells)])} | {less} |")
    lines += ["", "The best for a target by runs that have nothing of it:", "", "| target | option |", "|---|---|"]
    for target in DOMAINS:
        best = max(whole, key=lambda option: _chosen(of, option, target), default="-")
        lines.append(f"| {target} | {best} |")
    lines += ["", "Every run, with the commit it was made by: [options.jsonl](options.jsonl)."]
    (RESULTS / "options.md").write_text("\n".join(lines) + "\n")


def _accuracy(of: dict[Any, Any], option: str, without: str, on: str) -> float:
    """In percent: the mean on one domain over the runs that were not trained on another."""
    return 100 * statistics.fmean(
        of[option, pair][on] for pair in PAIRS if without not in pair and on not in pair and (option, pair) in of
    )


def _chosen(of: dict[Any, Any], option: str, target: str) -> float:
    """The mean on the three other domains, each over the run of the other two."""
    return statistics.fmean(_accuracy(of, option, without=target, on=name) for name in DOMAINS if name != target)


if __name__ == "__main__":
    main()
