"""One source as a sequence of decoded samples: for looking at data by hand, not for training on it.

Nothing is augmented, cropped or resized. A sample costs one read and one decoding of the whole image; one of a shard
in a store costs the shard's download, which stays in the cache.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from shards.decode import DecodeError, decode
from shards.format.annotations import annotations
from shards.loading.reader import DamagedSampleError, Reader
from shards.loading.subset import Subset
from shards.remote.store import Fetch
from shards.remote.transport import Errand, StoreError


@dataclass(frozen=True)
class Example:
    """One decoded sample.

    image uint8 [3, H, W], upright; target: number of its class, -1 if it has none, and label: its name; boxes None or
    float32 [n, 6]: x0, y0, x1, y1 in the image's pixels, class number, ignored (0 or 1); mask None or uint8 [H, W],
    class number or 255; side: its texts and numbers by name.
    """

    key: str
    image: torch.Tensor
    target: int
    label: str | None
    boxes: torch.Tensor | None
    mask: torch.Tensor | None
    side: Mapping[str, Any]

    def __repr__(self) -> str:
        _, height, width = self.image.shape
        parts = [repr(self.key), f"{width} x {height}", *([repr(self.label)] if self.label is not None else [])]
        parts += [f"{len(self.boxes)} boxes"] if self.boxes is not None else []
        return f"Example({', '.join([*parts, *(['mask'] if self.mask is not None else [])])})"


class Source(Sequence[Example]):
    """The samples of a subset by number. A slice is a shorter one; nothing is read before it is asked for."""

    def __init__(self, subset: Subset, numbers: range | None = None):
        self.subset = subset
        self._numbers = range(subset.num_samples) if numbers is None else numbers
        self._reader = Reader([subset])

    @property
    def classes(self) -> tuple[str, ...]:
        """The source's own class names."""
        return self.subset.classes

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, i: int) -> Example: ...
    @overload
    def __getitem__(self, i: slice) -> "Source": ...
    def __getitem__(self, i: int | slice) -> "Example | Source":
        """Raises IndexError, DamagedSampleError for a sample that is not as it was built, StoreError."""
        if isinstance(i, slice):
            return Source(self.subset, self._numbers[i])
        try:
            number = self._numbers[i]
        except IndexError:
            raise IndexError(f"sample {i} of {self.subset.name!r}, which has {len(self):,}") from None
        return self._example(*self.subset.locate(number))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Source({self.subset.name!r}, {len(self):,} samples, {len(self.classes)} classes)"

    def _example(self, shard: int, row: int) -> Example:
        subset, store = self.subset, self.subset.store
        hold = None
        if store:
            remote = subset.remote(shard)
            hold = store.fetch(Fetch(remote, Errand(remote.url, aloud=True)))
            if hold is None:
                raise StoreError(f"{remote.url}: damaged, and given up")
        try:
            sample = self._reader.read(0, shard, row)
        finally:
            if hold:
                hold.release()
        manifest = subset.manifest
        try:
            said = annotations(sample.fields, manifest.fields, len(manifest.classes)).renumbered(subset.renumber)
            image = decode(sample.image)
        except (DecodeError, ValueError) as error:
            raise DamagedSampleError(f"{subset.name}: {sample.key}: {error}") from None
        own = self.subset.index()["label"][subset.rows_of(shard, subset.index())[row]]
        return Example(
            sample.key,
            torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1),
            sample.label,
            subset.class_names[own] if own >= 0 else None,
            None if said.boxes is None else torch.from_numpy(said.boxes),
            None if said.mask is None else torch.from_numpy(said.mask),
            said.side,
        )
