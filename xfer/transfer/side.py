"""What the training data tells of side inputs, before a run begins: `side.json` of its folder.

    fields     by field: kind, the part of the samples without it, and what its encoder has to know (xfer/side.py)
    leak       how well the fields alone tell the class, all together and one by one

A side input that is the class under another name makes a model that has learned nothing of images, and no score on the
same kind of data shows it. So a linear classifier is fitted to side inputs alone, on two thirds of the samples at a
time, and answers for the last third. What it says beyond the most frequent class is the leak: 0 nothing, 1 all of it.
Above `model.side.leak_limit` there is no training.

Read are the side inputs of at most `READ` training samples, a fair mixture of the blend; no image is decoded. Costs a
read of each sample, and some seconds for the probe.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.format.whole import read_json, write_json
from shards.loading.few import few
from shards.loading.open import Splits
from shards.settings import ConfigError
from shards.text import counted
from xfer.config import PROBES, Recipe
from xfer.labels import annotated, as_sets, is_right, sets_of
from xfer.model import FusionModel
from xfer.side import Said, SideInputs, fault_of, hash_of, joined_form, scrubbed
from xfer.transfer.linear import fit_linear

FILE = "side.json"
READ = 20_000  # samples
GLANCE = 1000  # samples that a recipe is checked by
PROBED = 3000  # samples of the leak probe
PARTS = 3  # of them, each answered by what the others say
PENALTIES = (1e-3, 1e-1)
_SHOWN = 20  # field names


@dataclass(frozen=True)
class Leak:
    """`accuracy`: of side inputs alone on samples they were not fitted on; `majority`: of the most frequent class
    alone; `by_field`: the leak of each field on its own.
    """

    samples: int
    accuracy: float
    majority: float
    by_field: Mapping[str, float]

    @property
    def value(self) -> float:
        """0 to 1."""
        return leak_of(self.accuracy, self.majority)

    def __str__(self) -> str:
        most = max(self.by_field, key=lambda name: self.by_field[name])
        each = f", most of it {most} ({self.by_field[most]:.2f} alone)" if len(self.by_field) > 1 else f": {most}"
        return (
            f"side inputs alone name the class of {100 * self.accuracy:.1f} % of {self.samples:,} training samples "
            f"that were held out of it, the most frequent class {100 * self.majority:.1f} %; a leak of "
            f"{self.value:.2f}{each}"
        )


def leak_of(accuracy: float, majority: float) -> float:
    """The part of what the most frequent class gets wrong that is got right."""
    return max(0.0, (accuracy - majority) / (1 - majority)) if majority < 1 else 0.0


@dataclass(frozen=True)
class Told:
    """What samples say beside their images; targets [n] int64 or [n, K] bool, masks [n, K] bool."""

    said: Sequence[Said]
    targets: Tensor
    masks: Tensor


def side_faults(recipe: Recipe, data: Splits) -> list[str]:
    """Why a model cannot take the side inputs that a recipe names; what is only odd is said on stderr."""
    side, faults = recipe.model.side, []
    if side is None:
        return []
    if recipe.transfer.mode in PROBES:
        faults.append(
            f"model.side: must be left out with transfer.mode: {recipe.transfer.mode}, which trains nothing but a head "
            "on images; with full and train_from: none in every branch, side inputs are trained above frozen branches"
        )
    without = [one.name for one in data.train if "side" not in one.manifest.fields]
    if len(without) == len(data.train):
        how = "xfer shards build takes them with --side or --side-table, xfer shards index with --side"
        return [*faults, f"model.side: no training source has side inputs ({', '.join(without)}); {how}"]
    if without:
        print(f"note: {', '.join(without)} has no side inputs: all its samples are without", file=sys.stderr)
    return faults + _field_faults(recipe, _read(recipe, data, GLANCE).said)


def _field_faults(recipe: Recipe, said: Sequence[Said]) -> list[str]:
    assert recipe.model.side
    faults, there = [], sorted({name for one in said for name in one})
    listed = ", ".join(there[:_SHOWN]) + (", ..." if len(there) > _SHOWN else "") or "none"
    for name, kind in recipe.model.side.fields.items():
        if name not in there:
            faults.append(f"model.side.fields.{name}: no sample looked at has such a field; there are {listed}")
            continue
        values = [one[name] for one in said if name in one]
        wrong = [(value, why) for value in values if (why := fault_of(kind, value))]
        if wrong:
            value, why = wrong[0]
            others = "category or text" if kind == "number" else "text"
            faults.append(
                f"model.side.fields.{name}: must be {others}, got {kind}: {str(value)[:40]!r} {why}, and so are "
                f"{len(wrong) - 1:,} more of {len(values):,} values"
            )
    return faults


def learn_side(recipe: Recipe, data: Splits) -> None:
    """Writes `side.json` of a run that is about to begin, if its model takes side inputs, and says what is in it on
    stderr. Raises ConfigError, also if side inputs alone say too much of the class.
    """
    config = recipe.model.side
    if config is None:
        return
    told = _read(recipe, data, READ)
    if faults := _field_faults(recipe, told.said):
        raise ConfigError(faults)
    side = SideInputs(config.fields, 1, len(data.classes))
    side.name(data.classes)
    facts: dict[str, dict[str, Any]] = {}
    for name, part in side.by_field:
        values = [one[name] for one in told.said if name in one]
        facts[name] = {"kind": config.fields[name], "missing": 1 - len(values) / len(told.said), **part.learn(values)}
        part.know(facts[name])
        if config.fields[name] == "text":
            taken, emptied = _num_scrubbed(values, data.classes)
            missing = 1 - (len(values) - emptied) / len(told.said)  # a text of which nothing is left says nothing
            facts[name] |= {"scrubbed": taken, "emptied": emptied, "missing": missing}
    for name, one in facts.items():
        print(f"side input {name}: {fact_text(one)}", file=sys.stderr)
    leak = probe_leak(side, told)
    if leak.value > config.leak_limit:
        raise ConfigError(
            f"model.side: {leak}, above model.side.leak_limit {config.leak_limit:g}. If a field is the class under "
            "another name, or will not be known at prediction, leave it out of model.side.fields; with "
            "model.side.leak_limit: 1 it is trained all the same"
        )
    print(leak, file=sys.stderr)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    write_json(recipe.folder / FILE, {"fields": facts, "leak": {**asdict(leak), "leak": leak.value}})


def know(model: FusionModel, folder: Path) -> None:
    """Has the side inputs of a model know what was learned for the run of a folder, if anything was."""
    facts = read_json(folder / FILE).get("fields", {})
    if model.side is not None and facts:
        for name, part in model.side.by_field:
            part.know(facts[name])


def read_side(folder: Path) -> dict[str, Any]:
    """What was learned for a run; empty if its model takes no side inputs."""
    return read_json(folder / FILE)


def fact_text(fact: Mapping[str, Any]) -> str:
    """`category, 250 values, 63 more that are too rare to learn; missing in 12.0 % of the samples`."""
    said = [str(fact["kind"])]
    if "values" in fact:
        count, others = len(fact["values"]), fact["others"]
        said.append(f"{counted(count, 'value')}" + (f", {others:,} more too rare to be known" if others else ""))
        if count + others < 2:
            said.append("the same in all samples, so it tells nothing")
    if "mean" in fact:
        said.append(f"mean {fact['mean']:.4g}, deviation {fact['deviation']:.4g}")
    if fact.get("scrubbed"):
        rest = f", and nothing is left of {fact['emptied']:,}" if fact["emptied"] else ""
        said.append(f"names of classes taken out of {counted(fact['scrubbed'], 'text')}{rest}")
    missing = f"missing in {100 * fact['missing']:.1f} % of the samples" if fact["missing"] else "never missing"
    missing += ", so it tells nothing" if fact["missing"] >= 1 else ""
    return f"{', '.join(said)}; {missing}"


def _num_scrubbed(values: Sequence[Any], classes: Sequence[str]) -> tuple[int, int]:
    """Texts that lose a word, and those of them that lose all."""
    names, none = frozenset(hash_of(joined_form(name)) for name in classes), frozenset[int]()
    texts = [" ".join(value) if isinstance(value, list) else str(value) for value in values]
    left = [len(scrubbed(text, names)) for text in texts if scrubbed(text, names) != scrubbed(text, none)]
    return len(left), left.count(0)


def _read(recipe: Recipe, data: Splits, count: int) -> Told:
    """What some training samples of a known class say, a fair mixture of the blend."""
    said: list[Said] = []
    targets, sources = [], []
    for batch in few(data.train, recipe.data, count, sources="proportional", batch_size=256, decoded=False):
        known = (batch.targets >= 0).tolist()
        rows = batch.side or [{}] * len(batch)
        said += [row for row, counts in zip(rows, known, strict=True) if counts]
        targets.append(batch.targets[batch.targets >= 0])
        sources.append(batch.sources[batch.targets >= 0])
    masks = annotated(data.train, len(data.classes))
    return Told(said, as_sets(torch.cat(targets), sets_of(data.train)), masks[torch.cat(sources)])


def probe_leak(side: SideInputs, told: Told) -> Leak:
    """How well side inputs alone tell the class, by linear classifiers."""
    count = min(PROBED, len(told.said))
    said, targets, masks = told.said[:count], told.targets[:count], told.masks[:count]
    features = side.linear(side.encode(said, count))
    counts = torch.bincount(targets) if targets.ndim == 1 else targets.sum(0)
    majority = counts.max().item() / count
    together = _accuracy(torch.cat(list(features.values()), 1), targets, masks)
    alone = {name: together if len(features) == 1 else _accuracy(x, targets, masks) for name, x in features.items()}
    return Leak(count, together, majority, {name: leak_of(one, majority) for name, one in alone.items()})


def _accuracy(features: Tensor, targets: Tensor, masks: Tensor) -> float:
    """By the better of the penalties, on samples that were not fitted to."""
    part = torch.arange(len(targets)) % min(PARTS, len(targets))
    best = 0.0
    for penalty in PENALTIES:
        right = 0
        for held in part.unique().tolist():
            inside = part == held
            weight, bias = fit_linear(features[~inside], targets[~inside], masks[~inside], penalty)
            answers = (features[inside] @ weight.T + bias).masked_fill(~masks[inside], -torch.inf).argmax(1)
            right += int(is_right(answers, targets[inside]).sum())
        best = max(best, right / len(targets))
    return best
