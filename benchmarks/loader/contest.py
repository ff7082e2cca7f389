"""What every loader in the contest is given, and what it gives back.

A label is the number of its sample: so each batch can be checked for samples that are missing, doubled or of the wrong
source, and nobody is faster by doing less.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SIZE = 224
BATCH = 64
DRIFT = 50  # batches after which shares are compared with the wanted ones
SCALE = (0.08, 1.0)  # RandomResizedCrop's own
SEED = 0

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""(images uint8 [64, 3, 224, 224], labels [64]) without end."""


@dataclass(frozen=True)
class Source:
    """Prepared images: `folder` has them in every format; their labels are `first` .. `first + count - 1`."""

    name: str
    folder: Path
    first: int
    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class Job:
    """One thing to load. `decoder`: "own", as the loader's documents say, or "ours", given to it."""

    sources: tuple[Source, ...]
    decoder: str
    workers: int
    state: Any = None
    """What `Loader.save` of another loader of the same job gave: go on from there."""

    @property
    def only(self) -> Source:
        """The source of a job that has one."""
        assert len(self.sources) == 1
        return self.sources[0]

    @property
    def num_samples(self) -> int:
        return sum(source.count for source in self.sources)


@dataclass(frozen=True)
class Loader:
    """An opened loader. `save`: the state after the last batch that was taken; None: it has none to save."""

    batches: Batches
    save: Callable[[], Any] | None = None
    close: Callable[[], None] = field(default=lambda: None)


class CannotError(Exception):
    """Why a loader cannot do a job: becomes a row of the report, never a silent gap."""
