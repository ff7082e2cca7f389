"""Damage that a run came upon: every loss named once, over all ranks and lives of the run, and when it is too much.

A rank appends what it lost to a file of its own in the run's folder, and reads those of the others when it counts. So
the budget is one for the whole run: neither a restart nor more ranks make it larger, and no rank waits for another.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from shards.loading.request import Delivery, Loss
from shards.loading.subset import View

_HANDFUL = 8
_SHOWN = 20


class DamagedDataError(RuntimeError):
    """More samples are damaged than the configuration accepts; the message lists them."""


class Losses:
    """Distinct damaged samples: one damaged image is one loss, however often it comes up."""

    def __init__(self, views: Sequence[View], budget: Mapping[int, int], folder: Path | None = None, rank: int = 0):
        """`budget`: by source, how many may be lost. `folder`: where ranks keep theirs, as `damage-<rank>.jsonl`; None:
        in this process alone.
        """
        self._views, self._budget, self._folder, self._rank = views, budget, folder, rank
        self._known: dict[tuple[int, str, str], Loss] = {}

    def count(self, delivery: Delivery) -> None:
        """Counts what this rank lost. Raises DamagedDataError if that is too much, OSError if it cannot be kept."""
        if not delivery.losses:
            return
        self._add(delivery.losses)
        losses = self.all()
        lost = Counter(loss.source for loss in losses)
        nothing_sound = not delivery.batch.valid.all()
        if nothing_sound or any(count > self._budget.get(source, 0) for source, count in lost.items()):
            raise DamagedDataError(damage_table(self._views, losses, self._budget))

    def all(self) -> list[Loss]:
        """Those of every rank and life so far."""
        numbers = {view.name: number for number, view in enumerate(self._views)}
        for line in read_losses(self._folder) if self._folder else ():
            if line["source"] in numbers:  # a source that is no longer trained on has no budget
                loss = Loss(**{**line, "source": numbers[line["source"]]})
                self._known.setdefault(_place(loss), loss)
        return list(self._known.values())

    def _add(self, losses: Iterable[Loss]) -> None:
        new = {place: loss for loss in losses if (place := _place(loss)) not in self._known}
        self._known |= new
        if self._folder and new:
            lines = [{**vars(loss), "source": self._views[loss.source].name} for loss in new.values()]
            with open(self._folder / f"damage-{self._rank}.jsonl", "a") as file:
                # A line begins with its newline, so one that a kill cuts short spoils no other.
                file.write("".join("\n" + json.dumps(line) for line in lines))


def budget(views: Sequence[View], max_replaced: float) -> dict[int, int]:
    """How many samples each source may lose: a fraction of them, and a handful in any case."""
    return {number: max(_HANDFUL, int(max_replaced * view.num_samples)) for number, view in enumerate(views)}


def read_losses(folder: Path) -> list[dict[str, str]]:
    """What the ranks of a run lost, each sample once: source (name), shard, key, reason. No half-written lines."""
    found = {}
    for path in sorted(folder.glob("damage-*.jsonl")):
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                loss = json.loads(line)
                found.setdefault((loss["source"], loss["shard"], loss["key"]), loss)
    return list(found.values())


def damage_table(views: Sequence[View], losses: Sequence[Loss], budget: Mapping[int, int]) -> str:
    """What was lost, by source, with the budget it exceeds."""
    lines = []
    for source in sorted({loss.source for loss in losses}):
        view, lost = views[source], [loss for loss in losses if loss.source == source]
        allowed = budget.get(source, 0)
        lines.append(f"{view.name} ({view.folder}): {len(lost)} damaged samples, {allowed} accepted")
        lines += [f"  {loss.shard}  {loss.key}  {loss.reason}" for loss in lost[:_SHOWN]]
        lines += [f"  ... and {len(lost) - _SHOWN} more"] if len(lost) > _SHOWN else []
    return "\n".join([*lines, "copy or build these shards again; `xfer shards verify` lists all damage"])


def _place(loss: Loss) -> tuple[int, str, str]:
    return loss.source, loss.shard, loss.key
