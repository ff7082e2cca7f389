"""Does it help to tie a classifier's rows to the names of their classes, and what is a class worth by its name alone?

    python -m benchmarks.label_head --clothing shards/clothing --weights resnet18.safetensors

Clothing (10 classes), frozen features of an ImageNet ResNet-18. A seed draws 5 or 20 images a class of the split train,
or four fifths of all of them. On these are fitted: a linear head on the features as they are, one on features of one
length (`delta_penalty: 0`), one whose rows are tied to the names as the recipe does it unless told otherwise, and one
with the `delta_penalty` that is best on thirds of the drawn images that were left out. So is the penalty of the weights
chosen for each of them. The split test is scored once by each, and chooses nothing.

Then each class in turn is left out of all of train and added by its name (`xfer classes add`): how many test images of
it are found among all ten, against a row that knows no name (of the same length in a drawn direction), and what that
costs the other nine.

Writes benchmarks/results/label-head.md, with 95 % t-intervals over the seeds.
"""

import argparse
import platform
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from benchmarks.labels import Source, frozen_features
from benchmarks.record import cell, commit
from shards.progress import progress
from xfer.encoders import ENCODERS
from xfer.heads.label_table import LabelTable, UnitLength
from xfer.model_config import NAMES_DEFAULTS
from xfer.transfer.linear import choose_penalty, fit_linear

COUNTS = (5, 20, 0)  # images a class; 0: all
DEFAULT = float(NAMES_DEFAULTS["delta_penalty"])
DELTAS = (0.0, 1e-2, DEFAULT, 100.0)
ARMS = ("linear", "one length", "tied", "tied, chosen")
ALL_PENALTY = 1e-2  # of the heads on all images that classes are added to
ADDED_SEEDS = 20  # drawn directions
RESULT = Path(__file__).parent / "results" / "label-head.md"


class Row(NamedTuple):
    """Of a seed and arm: images a class (0: all), the penalty of the weights, that of Delta, accuracy on test."""

    arm: str
    count: int
    seed: int
    penalty: float
    delta: float
    accuracy: float


class Added(NamedTuple):
    """Of a class that was added by its name: the known one whose name is nearest; of its test images the part that is
    called by it, the same by rows in drawn directions, and what images of the other classes lose.
    """

    name: str
    nearest: str
    found: float
    drawn: float
    lost: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clothing", type=Path, required=True, help="built clothing, with the splits train and test")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/label-head"))
    options = parser.parse_args()
    splits = {split: {"path": str(options.clothing.resolve()), "split": split} for split in ("train", "test")}
    clothing = frozen_features(splits, options.weights, options.image_size, 4096, options.out / ".features")
    train, test = clothing["train"], clothing["test"]
    started, rows, added = time.process_time(), [], []
    with progress("heads", options.seeds * len(COUNTS) + len(train[0]), "done") as advance:
        for name in train[0]:
            added.append(_added(train, test, name))
            advance()
        for count in COUNTS:
            for seed in range(options.seeds):
                rows += _rows(train, test, count, seed)
                advance()
    RESULT.write_text(_report(options, rows, added, time.process_time() - started))
    print(f"written: {RESULT}")


def _table(names: list[str]) -> LabelTable:
    table = LabelTable(len(names))
    table.vectors.copy_(ENCODERS[str(NAMES_DEFAULTS["encoder"])](names))
    return table


def _rows(train: Source, test: Source, count: int, seed: int) -> list[Row]:
    names, x, labels = train
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    drawn = order[: len(order) * 4 // 5]
    if count:
        drawn = torch.cat([order[labels[order] == place][:count] for place in range(len(names))])
    x, y, unit, table = x[drawn], labels[drawn], UnitLength(), _table(list(names))
    groups = torch.randperm(len(y), generator=generator) % 3
    masks = torch.ones(len(y), len(names), dtype=torch.bool)

    along, seen = unit(x), unit(test[1])
    pulls = {delta: table.pull(delta, masks[0]) if delta else None for delta in DELTAS}
    tied = {delta: choose_penalty(along, y, masks, groups, pull=pull) for delta, pull in pulls.items()}
    best = max(tied, key=lambda delta: tied[delta].accuracy)

    def row(arm: str, penalty: float, delta: float, train_on: Tensor = along, score_on: Tensor = seen) -> Row:
        weight, bias = fit_linear(train_on, y, masks, penalty, pull=pulls[delta])
        right = linear(score_on, weight, bias).argmax(1) == test[2]
        return Row(arm, count, seed, penalty, delta, right.double().mean().item())

    return [
        row("linear", choose_penalty(x, y, masks, groups).penalty, 0.0, x, test[1]),
        row("one length", tied[0.0].penalty, 0.0),
        row("tied", tied[DEFAULT].penalty, DEFAULT),
        row("tied, chosen", tied[best].penalty, best),
    ]


def _added(train: Source, test: Source, name: str) -> Added:
    names, x, labels = train
    known = [one for one in names if one != name]
    place, unit = names.index(name), UnitLength()
    rest, table = labels != place, _table(known)
    y = labels[rest] - (labels[rest] > place).long()
    masks = torch.ones(len(y), len(known), dtype=torch.bool)
    weight, bias = fit_linear(unit(x[rest]), y, masks, ALL_PENALTY, pull=table.pull(DEFAULT, masks[0]))
    vector = ENCODERS[str(NAMES_DEFAULTS["encoder"])]([*known, name])[-1:]
    row, own = table.named(vector, weight, bias, DEFAULT)
    seen, new = unit(test[1]), test[2] == place
    before = linear(seen, weight, bias).argmax(1)
    truth = test[2] - (test[2] > place).long()

    def found(row: Tensor) -> tuple[float, float]:
        answers = linear(seen, torch.cat([weight, row]), torch.cat([bias, own])).argmax(1)
        lost = ((before == truth) & ~new).sum() - ((answers == truth) & ~new).sum()
        return (answers[new] == len(known)).double().mean().item(), lost.item() / int((~new).sum())

    generator = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(ADDED_SEEDS, row.shape[1], generator=generator)) * row.norm()
    by_chance = sum(found(one[None])[0] for one in directions) / ADDED_SEEDS
    nearest = known[int((vector @ table.vectors.T).argmax())]
    return Added(name, nearest, found(row)[0], by_chance, found(row)[1])


def _report(options: argparse.Namespace, rows: list[Row], added: list[Added], seconds: float) -> str:
    by = {
        (arm, count): [row for row in rows if (row.arm, row.count) == (arm, count)] for arm in ARMS for count in COUNTS
    }
    lines = [
        "# A head whose rows are tied to names",
        "",
        "    python -m benchmarks.label_head --clothing SHARDS --weights RESNET18 "
        f"--image-size {options.image_size} --seeds {options.seeds}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, torch {torch.__version__}, {seconds:.0f} s of "
        f"CPU beside the features. Clothing, frozen ImageNet ResNet-18 at {options.image_size} px, accuracy (%) on the "
        f"split test; ± is half of the 95 % t-interval over {options.seeds} seeds, which draw the images (all: four "
        "fifths of them); differences are paired by seed. Penalties are chosen on thirds of the drawn images that were "
        f"left out. Tied: `delta_penalty: {DEFAULT:g}`; chosen: of {', '.join(f'{one:g}' for one in DELTAS)}.",
        "",
        "| images a class | head | accuracy | less linear | less one length |",
        "|---|---|---|---|---|",
    ]
    for count in COUNTS:
        for arm in ARMS:
            values = [100 * one.accuracy for one in by[arm, count]]
            cells = [cell(values, False)]
            for place, other in enumerate(ARMS[:2]):
                less = [a - 100 * b.accuracy for a, b in zip(values, by[other, count], strict=True)]
                cells.append(cell(less, True) if ARMS.index(arm) > place else "")
            lines.append(f"| {count or 'all'} | {arm} | {' | '.join(cells)} |")
    lines += [
        "",
        "Each class left out of training and added by its name: of its test images the part (%) that is called by it "
        "among all ten classes; the same of a row that knows no name, the mean over "
        f"{ADDED_SEEDS} drawn directions; and the points that images of the other nine lose.",
        "",
        "| class | nearest name | found | without a name | the others lose |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.name} | {one.nearest} | {100 * one.found:.1f} | {100 * one.drawn:.1f} | {100 * one.lost:.1f} |"
        for one in added
    ]
    lines += ["", "Raw rows: head, images a class, seed, penalty, delta_penalty, accuracy:", "", "```"]
    lines += [f"{r.arm} | {r.count} {r.seed} {r.penalty:g} {r.delta:g} {r.accuracy:.4f}" for r in rows]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    main()
