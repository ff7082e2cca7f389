"""What loader processes are asked for; they answer with a `BatchBuilder`."""

from dataclasses import dataclass

from shards.format.hashing import Ints
from shards.loading.damage import DamagedSample


@dataclass(frozen=True)
class Request:
    """Samples by source, shard and row of the subset, with their positions; int64 [n] each. `fill`: rows to pad with.

    `damaged`: found before loaders see the request. `buffer`: where the images go; -1: into memory of their own.
    """

    source: Ints
    shard: Ints
    row: Ints
    positions: Ints
    fill: int = 0
    damaged: tuple[DamagedSample, ...] = ()
    buffer: int = -1

    def __len__(self) -> int:
        return len(self.positions)
