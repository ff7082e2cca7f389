"""When damage is too much: one error, one readable table."""

from collections.abc import Mapping, Sequence

from shards.request import Loss
from shards.views import View

_SHOWN = 20


class DamagedDataError(RuntimeError):
    """More samples are damaged than the configuration accepts; the message lists them."""


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
