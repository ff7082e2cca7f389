"""Damage that a run came upon: every sample named once, over all ranks and restarts, and when it is too much.

A rank appends what it lost to a file of its own in the run's folder, and reads those of the others when it counts. So
the budget is one for the whole run: neither a restart nor more ranks make it larger, and no rank waits for another.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shards.loading.subset import Subset

TRAINING, EVALUATION = "damage", "evaluation-damage"
_HANDFUL = 8
_SHOWN = 20


@dataclass(frozen=True)
class DamagedSample:
    """A damaged sample that was asked for: source (index into the subsets), shard's file, key and reason."""

    source: int
    shard: str
    key: str
    reason: str


class DamagedDataError(RuntimeError):
    """More samples are damaged than the configuration accepts; the message lists them."""


class DamageLog:
    """Distinct damaged samples: one damaged image is one sample, however often it comes up."""

    def __init__(
        self,
        subsets: Sequence[Subset],
        budget: Mapping[int, int],
        folder: Path | None = None,
        rank: int = 0,
        name: str = TRAINING,
    ):
        """`budget`: by source, how many may be lost. `folder`: where ranks keep theirs, as `<name>-<rank>.jsonl`; None:
        in this process alone.
        """
        self._subsets, self._budget, self._folder, self._rank = subsets, budget, folder, rank
        self._name = name
        self._known: dict[tuple[int, str, str], DamagedSample] = {}

    def add(self, lost: Sequence[DamagedSample]) -> None:
        """Counts what this rank lost. Raises DamagedDataError if that is too much, OSError if it cannot be kept."""
        if not lost:
            return
        self._keep(lost)
        by_source = Counter(sample.source for sample in self.all())
        if any(count > self._budget.get(source, 0) for source, count in by_source.items()):
            raise DamagedDataError(self.table())

    def table(self) -> str:
        """What was lost so far, by source, with what is accepted."""
        return damage_table(self._subsets, self.all(), self._budget)

    def all(self) -> list[DamagedSample]:
        """Those of every rank so far, restarts included."""
        numbers = {subset.name: number for number, subset in enumerate(self._subsets)}
        for line in read_damage(self._folder, self._name) if self._folder else ():
            if line["source"] in numbers:  # a source that is no longer trained on has no budget
                sample = DamagedSample(**{**line, "source": numbers[line["source"]]})
                self._known.setdefault(_place(sample), sample)
        return list(self._known.values())

    def _keep(self, damaged: Iterable[DamagedSample]) -> None:
        new = {place: sample for sample in damaged if (place := _place(sample)) not in self._known}
        self._known |= new
        if self._folder and new:
            lines = [{**vars(sample), "source": self._subsets[sample.source].name} for sample in new.values()]
            with open(self._folder / f"{self._name}-{self._rank}.jsonl", "a") as file:
                # A line begins with its newline, so one that a kill cuts short spoils no other.
                file.write("".join("\n" + json.dumps(line) for line in lines))


def budget(subsets: Sequence[Subset], max_replaced: float) -> dict[int, int]:
    """How many samples each source may lose: a fraction of them, and a handful in any case."""
    return {number: max(_HANDFUL, int(max_replaced * subset.num_samples)) for number, subset in enumerate(subsets)}


def read_damage(folder: Path, name: str = TRAINING) -> list[dict[str, str]]:
    """What the ranks of a run lost, each sample once: source (name), shard, key, reason. No half-written lines.
    `name`: TRAINING or EVALUATION.
    """
    found = {}
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                sample = json.loads(line)
                found.setdefault((sample["source"], sample["shard"], sample["key"]), sample)
    return list(found.values())


def damage_table(subsets: Sequence[Subset], damaged: Sequence[DamagedSample], budget: Mapping[int, int]) -> str:
    """What was lost, by source, with the budget it exceeds."""
    lines = []
    for source in sorted({sample.source for sample in damaged}):
        subset, lost = subsets[source], [sample for sample in damaged if sample.source == source]
        allowed = budget.get(source, 0)
        lines.append(f"{subset.name} ({subset.folder}): {len(lost)} damaged samples, {allowed} accepted")
        lines += [f"  {sample.shard}  {sample.key}  {sample.reason}" for sample in lost[:_SHOWN]]
        lines += [f"  ... and {len(lost) - _SHOWN} more"] if len(lost) > _SHOWN else []
    return "\n".join([*lines, "copy or build these shards again; `xfer shards verify` lists all damage"])


def _place(sample: DamagedSample) -> tuple[int, str, str]:
    return sample.source, sample.shard, sample.key
