"""Classes added to a trained model: what becomes of the old ones, with and without their sources in the blend?

    python -m benchmarks.classes_added --shards data --weights resnet18.safetensors

`data` holds built PACS photo and cartoon, a folder each, and clothing with the splits train and test. The old model is
trained on photo and cartoon (7 classes), then clothing (10 other classes) is a new source. Without --steps the ImageNet
ResNet-18 is frozen (transfer.mode: feature), so a model is its head, fitted on the training images; with them all of it
is trained (full, bf16). `old` begins with the weights, all others with `model.from` the old one:

    blend fit     photo, cartoon and clothing, a new head
    blend keep    the same sources, transfer.head: keep
    new keep      clothing alone, transfer.head: keep: the old rows stay to the bit
    new fit       clothing alone, a new head, which has no old classes any more

Five runs of each, on training images of their own (each a fifth of what is not tested on, so the five have no image in
common); the penalty is chosen on training images, and the tested parts
are read once, at the end. Accuracy among all classes of a model, and, to tell forgetting from taking an old class for a
new one, among those of the image's own data set alone. Written to benchmarks/results/classes-added.md, with 95 %
t-intervals over the runs, differences paired by run.
"""

import argparse
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import xfer
from benchmarks.record import commit, over_seeds
from shards.config import DataConfig
from shards.loading.open import open_data
from shards.loading.subset import Subset
from xfer.bundle import Trained, open_model
from xfer.metrics import Estimate
from xfer.transfer.features import seen_by

OLD, NEW = ("photo", "cartoon"), ("clothing",)
SEEDS = range(5)
TESTED = 0.25  # of photo and cartoon, by the hash of the key
ARMS = {
    "old": (OLD, "fit"),
    "blend fit": ((*OLD, *NEW), "fit"),
    "blend keep": ((*OLD, *NEW), "keep"),
    "new keep": (NEW, "keep"),
    "new fit": (NEW, "fit"),
}


class Row(NamedTuple):
    """One run on one tested source: accuracy among all classes of the model, and among those of the source."""

    arm: str
    seed: int
    source: str
    images: int
    of_all: float
    of_its_own: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="built photo, cartoon and clothing, a folder each")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=0, help="of training all of the network; 0: its head alone")
    parser.add_argument("--out", type=Path, default=Path("runs/classes-added"))
    parser.add_argument("--report", type=Path, default=Path(__file__).parent / "results" / "classes-added.md")
    options = parser.parse_args()
    config = DataConfig.model_validate(_data(options, _parts((*OLD, *NEW))) | {"test": _tested()})
    tested = open_data(config).test
    rows: list[Row] = []
    for seed in SEEDS:
        for arm, (sources, head) in ARMS.items():
            model = {"branches": {"main": {"backbone": "resnet18", "weights": str(options.weights)}}}
            recipe = {
                "name": f"{arm.replace(' ', '-')}-{seed}",
                "output": str(options.out),
                "data": _data(options, _parts(sources, seed)),
                "model": {**model, "fusion": {"width": 512}},
            }
            if arm != "old":
                recipe["model"] = {"from": str(options.out / f"old-{seed}")}
            run = xfer.fit(recipe, {"transfer.head": head, **_training(options.steps)}, quiet=True)
            rows += [Row(arm, seed, *row) for row in _scores(open_model(run.folder), tested, config, options.out)]
        if seed:
            options.report.write_text(_report(options, rows))
    print(f"written: {options.report}")


def _training(steps: int) -> dict[str, Any]:
    if not steps:
        return {"transfer.mode": "feature"}
    once = dict.fromkeys(("train.steps", "train.evaluate_every", "train.save_every"), steps)
    return {**once, "train.precision": "bf16", "train.keep": 1}


def _tested() -> dict[str, dict[str, Any]]:
    old = {name: {"path": name, "where": {"hash": [0, TESTED]}} for name in OLD}
    return {**old, **{name: {"path": name, "split": "test"} for name in NEW}}


def _parts(sources: Sequence[str], seed: int | None = None) -> dict[str, dict[str, Any]]:
    """The training images of a seed; None: of all."""
    parts = {}
    for name in sources:
        begin = TESTED if name in OLD else 0.0
        width = (1 - begin) / len(SEEDS)
        ends = [begin, 1] if seed is None else [begin + seed * width, begin + (seed + 1) * width]
        parts[name] = {"path": name, "where": {"hash": ends}}
    return parts


def _data(options: argparse.Namespace, sources: dict[str, Any]) -> dict[str, Any]:
    return {
        "root": str(options.shards),
        "sources": sources,
        "validation": 0,
        "image_size": options.image_size,
        "batch_size": 32,
        "workers": 0,
    }


@torch.no_grad()
def _scores(
    trained: Trained, tested: Sequence[Subset], config: DataConfig, out: Path
) -> list[tuple[str, int, float, float]]:
    """By tested source: name, images, and both accuracies; 0 where the model has none of its classes."""
    model, found = trained.model, []
    every = [subset.num_samples for subset in tested]
    for subset, seen in zip(tested, seen_by(model, tested, every, config, out / ".features"), strict=True):
        pooled, positions = seen["main"].pooled, seen["main"].positions
        targets = torch.from_numpy(subset.numbered(trained.classes).labels()[positions.numpy()])
        logits = model.classify([model.projections["main"](pooled[:, :, None, None]).flatten(1)])
        own = torch.tensor([name in subset.classes for name in trained.classes])
        among = logits.masked_fill(~own, -torch.inf)
        found.append((subset.name, len(targets), _right(logits, targets), _right(among, targets)))
    return found


def _right(logits: Tensor, targets: Tensor) -> float:
    return (logits.argmax(1) == targets).double().mean().item()


def _cell(found: Estimate, sign: str = "") -> str:
    """`-` where no run had any of the classes."""
    if not sign and not found.value:
        return "-"
    return f"{found.value:{sign}.1f} ± {found.high - found.value:.1f}"


def _report(options: argparse.Namespace, rows: list[Row]) -> str:
    images = {row.source: row.images for row in rows}
    seeds = sorted({row.seed for row in rows})
    steps = f" --steps {options.steps}" if options.steps else ""
    how = f"all of it trained for {options.steps} steps of 32" if steps else "frozen, transfer.mode: feature"
    lines = [
        "# Classes added to a trained model",
        "",
        "    python -m benchmarks.classes_added --shards SHARDS --weights RESNET18 "
        f"--image-size {options.image_size}{steps}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, CPU, torch {torch.__version__}. PACS photo and "
        "cartoon (7 classes), then clothing (10 others); ImageNet ResNet-18 at "
        f"{options.image_size} px, {how}. Tested on "
        + ", ".join(f"{count:,} of {name}" for name, count in images.items())
        + f". Accuracy (%), {len(seeds)} runs on training images of their own, 95 % t-interval; `of all`: among all "
        "classes of the model, as evaluation does; `of its own`: among those of the image's data set. Old: mean of "
        "photo and cartoon.",
        "",
        "| model | old, of all | minus before | old, of its own | new, of all | new, of its own | old and new, mean |",
        "|---|---|---|---|---|---|---|",
    ]

    def values(arm: str, sources: Sequence[str], of_all: bool = True) -> list[float]:
        found = [row for row in rows if row.arm == arm and row.source in sources]
        by_seed = [[100 * (r.of_all if of_all else r.of_its_own) for r in found if r.seed == seed] for seed in seeds]
        return [statistics.fmean(one) for one in by_seed]

    before = values("old", OLD)
    for arm in ARMS:
        old, new = values(arm, OLD), values(arm, NEW)
        lost = [after - one for after, one in zip(old, before, strict=True)]
        both = [(a + b) / 2 for a, b in zip(old, new, strict=True)]
        own = [values(arm, part, of_all=False) for part in (OLD, NEW)]
        cells = [_cell(over_seeds(one), sign) for one, sign in ((old, ""), (lost, "+"), (own[0], ""))]
        cells += [_cell(over_seeds(one)) for one in (new, own[1], both)]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", "Raw rows: model, run, tested source, images, accuracy of all, of its own:", "", "```"]
    lines += [f"{r.arm}, {r.seed} {r.source} {r.images} {r.of_all:.4f} {r.of_its_own:.4f}" for r in rows]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    main()
