"""What do side inputs bring a classifier of images, and what does it lose where they are missing?

    D=clothing-dataset-small
    for split in train validation test; do
      xfer shards build $D/$split shards/clothing --split $split --side-table $D/metadata.csv --side sender_id,kids
    done
    python -m benchmarks.side --clothing shards/clothing --weights resnet18.safetensors

Clothing (10 classes), frozen features of an ImageNet ResNet-18, standardised. A seed draws four fifths of the split
train; a linear probe is fitted to them, and from there head and side inputs are trained with AdamW for the same number
of steps: nothing but the head (images alone), and with side inputs that a part of the samples is seen without. The
learning rate of each is the better of two on the split validation: for the side model by the mean of its accuracy with
and without. The split test is scored once and chooses nothing.

Fields: the two that are published, the sender of a picture and whether it is of kids; and two that are constructed, a
category that is the class for a part of the images and a drawn one for the others.

Writes benchmarks/results/side.md, with 95 % t-intervals over the seeds.
"""

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.labels import frozen_features
from benchmarks.record import cell, commit
from shards.config import DataConfig
from shards.loading.few import few
from shards.loading.open import open_data
from shards.progress import progress
from xfer.model_config import FieldKind
from xfer.side import SideInputs
from xfer.transfer.linear import fit_linear
from xfer.transfer.side import Told, probe_leak

FIELDS: dict[str, dict[str, FieldKind]] = {
    "sender and kids": {"sender_id": "category", "kids": "category"},
    "right for 1 in 5": {"hint 0.2": "category"},
    "right for half": {"hint 0.5": "category"},
}
HINTS = {"hint 0.2": 0.2, "hint 0.5": 0.5}
DROPOUTS = (0.0, 0.3)
RATES = (3e-4, 3e-3)
PENALTY, STEPS, BATCH, DECAY = 1e-2, 600, 64, 1e-2
RESULT = Path(__file__).parent / "results" / "side.md"


class Part(NamedTuple):
    """A split: features [n, d], labels [n], what is said of each image."""

    x: Tensor
    labels: Tensor
    said: Sequence[Mapping[str, Any]]


class Row(NamedTuple):
    """Of a seed: the fields (none: images alone), dropout, rate, and accuracy on test of images alone and with side
    inputs; the leak of the fields.
    """

    fields: str
    dropout: float
    seed: int
    rate: float
    alone: float
    side: float
    leak: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clothing", type=Path, required=True, help="built clothing with its side inputs, three splits"
    )
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/side-benchmark"))
    options = parser.parse_args()
    names = ("train", "validation", "test")
    splits = {one: {"path": str(options.clothing.resolve()), "split": one} for one in names}
    features = frozen_features(splits, options.weights, options.image_size, 4096, options.out / ".features")
    classes = list(features["train"][0])
    assert all(list(features[one][0]) == classes for one in names)
    parts = {one: _part(splits[one], features[one][1], features[one][2], number) for number, one in enumerate(names)}
    mean, deviation = parts["train"].x.mean(0), parts["train"].x.std(0).clamp_min(1e-6)
    parts = {one: part._replace(x=(part.x - mean) / deviation) for one, part in parts.items()}
    started, rows = time.process_time(), []
    with progress("seeds", options.seeds, "done") as advance:
        for seed in range(options.seeds):
            rows += _rows(parts, len(classes), seed)
            advance()
    RESULT.write_text(_report(options, rows, time.process_time() - started))
    print(f"written: {RESULT}")


def _part(split: Mapping[str, str], x: Tensor, labels: Tensor, number: int) -> Part:
    """With what is said of its images, in the order that features have."""
    config = DataConfig.model_validate({"sources": {"one": split}, "validation": 0})
    said, seen = [], []
    for batch in few(open_data(config).train, config, len(labels), decoded=False):
        said += batch.side or [{}] * len(batch)
        seen.append(batch.targets)
    assert torch.equal(torch.cat(seen), labels)
    generator = torch.Generator().manual_seed(number)
    rows = [dict(one) for one in said]
    for name, share in HINTS.items():
        told = torch.rand(len(labels), generator=generator) < share
        drawn = torch.randint(0, int(labels.max()) + 1, (len(labels),), generator=generator)
        for row, hint in zip(rows, torch.where(told, labels, drawn).tolist(), strict=True):
            row[name] = f"hint {hint}"
    return Part(x, labels, rows)


def _rows(parts: Mapping[str, Part], classes: int, seed: int) -> list[Row]:
    train, validation, test = parts["train"], parts["validation"], parts["test"]
    drawn = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    drawn = drawn[: len(drawn) * 4 // 5]
    own = Part(train.x[drawn], train.labels[drawn], [train.said[i] for i in drawn.tolist()])
    masks = torch.ones(len(drawn), classes, dtype=torch.bool)
    probe = fit_linear(own.x, own.labels, masks, PENALTY)
    score = (nn.functional.linear(test.x, *probe).argmax(1) == test.labels).double().mean().item()
    rows = [Row("probe", 0.0, seed, 0.0, score, score, 0.0)]
    for fields, kinds in {"images alone": {}, **FIELDS}.items():
        for dropout in DROPOUTS if kinds else (0.0,):
            found = []
            for rate in RATES:
                torch.manual_seed(seed)
                side = SideInputs(kinds, own.x.shape[1], classes) if kinds else None
                leak = _learn(side, own, masks)
                head = nn.Linear(own.x.shape[1], classes)
                head.load_state_dict({"weight": probe[0], "bias": probe[1]})
                _train(head, side, own, rate, dropout, seed)
                held, said = _scores(head, side, validation), _scores(head, side, test)
                found.append((sum(held), Row(fields, dropout, seed, rate, *said, leak)))
            rows.append(max(found)[1])
    return rows


def _learn(side: SideInputs | None, own: Part, masks: Tensor) -> float:
    """Has the encoders know the training data; the leak."""
    if side is None:
        return 0.0
    for name, part in side.by_field:
        part.know(part.learn([one[name] for one in own.said if name in one]))
    return probe_leak(side, Told(own.said, own.labels, masks)).value


def _train(head: nn.Linear, side: SideInputs | None, own: Part, rate: float, dropout: float, seed: int) -> None:
    modules = nn.ModuleList([head] if side is None else [head, side])
    optimizer = torch.optim.AdamW(modules.parameters(), rate, weight_decay=DECAY)
    rows = None if side is None else side.encode(own.said, len(own.said))
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / STEPS)
        at = torch.randint(0, len(own.labels), (BATCH,), generator=generator)
        z = own.x[at]
        if side is not None and rows is not None:
            gone = torch.rand(BATCH, 1, generator=generator) < dropout
            z = side(z, rows[at].masked_fill(gone, torch.nan))
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(z), own.labels[at]).backward()
        optimizer.step()


@torch.no_grad()
def _scores(head: nn.Linear, side: SideInputs | None, part: Part) -> tuple[float, float]:
    """Accuracy on images alone, and with side inputs."""
    alone, both = part.x, part.x
    if side is not None:
        alone, both = side(part.x), side(part.x, side.encode(part.said, len(part.said)))
    found = [(head(z).argmax(1) == part.labels).double().mean().item() for z in (alone, both)]
    return found[0], found[1]


def _report(options: argparse.Namespace, rows: list[Row], seconds: float) -> str:
    of = {
        key: [row for row in rows if (row.fields, row.dropout) == key] for key in [(r.fields, r.dropout) for r in rows]
    }
    plain = [row.alone for row in of["images alone", 0.0]]
    lines = [
        "# Side inputs beside images",
        "",
        "    python -m benchmarks.side --clothing SHARDS --weights RESNET18 "
        f"--image-size {options.image_size} --seeds {options.seeds}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, torch {torch.__version__}, {seconds:.0f} s of "
        f"CPU beside the features. Clothing, frozen ImageNet ResNet-18 at {options.image_size} px, {STEPS} steps of "
        f"{BATCH} above it; accuracy (%) on the split test; ± is half of the 95 % t-interval over {options.seeds} "
        "seeds; differences are paired by seed and taken to the model of images alone that was trained as long. "
        "dropout: the part of the training samples that is seen without side inputs. Leak: see docs/xfer.md. `kids` is "
        "False for every picture of this version of the data, so it tells nothing.",
        "",
        "| side inputs | leak | dropout | images alone at test | difference | with side inputs at test | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for (fields, dropout), found in of.items():
        cells = []
        for values in ([row.alone for row in found], [row.side for row in found]):
            less = [100 * (a - b) for a, b in zip(values, plain, strict=True)]
            cells += [cell([100 * one for one in values], False), cell(less, True)]
        if fields in ("probe", "images alone"):
            what = {"probe": "none: the linear probe", "images alone": "none, trained"}[fields]
            lines.append(f"| {what} | | | {cells[0]} | {cells[1]} | | |")
        else:
            leak = sum(row.leak for row in found) / len(found)
            lines.append(f"| {fields} | {leak:.2f} | {dropout:g} | {' | '.join(cells)} |")
    lines += ["", "Raw rows: side inputs, dropout, seed, rate, accuracy of images alone, with them, leak:", "", "```"]
    lines += [f"{r.fields} | {r.dropout:g} {r.seed} {r.rate:g} {r.alone:.4f} {r.side:.4f} {r.leak:.3f}" for r in rows]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    main()
