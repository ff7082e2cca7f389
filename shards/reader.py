"""Reads samples out of local shards, and notices damage.

One `pread` a sample, at the offset the index gives; the crc32 of the span is checked before anything is parsed, so a
flipped bit never reaches a decoder or another sample's label. Files stay open, at most 64 of them. No state survives
pickling, so a reader can be handed to any process. A sample that fails is read once more: a second try costs little,
a damaged disk gives the same twice.
"""

import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.manifest import open_index
from shards.tar import TarError, parse_sample, sample_key, split_name
from shards.views import View

_OPEN_FILES = 64


class DamagedSampleError(Exception):
    """What is wrong with one sample."""


@dataclass(frozen=True)
class Sample:
    """One sample as stored: its key, class index, encoded image and the image's extension."""

    key: str
    label: int
    image: bytes
    extension: str


class Reader:
    """Samples of several views by (source, shard, row of the view within the shard)."""

    def __init__(self, views: Sequence[View]):
        self.views = tuple(views)
        self._opened()

    def _opened(self) -> None:
        self._indexes: dict[int, np.ndarray] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        self._starts = [(view.shard_starts, view.kept_starts) for view in self.views]

    def __getstate__(self) -> dict:
        return {"views": self.views}

    def __setstate__(self, state: dict) -> None:
        self.views = state["views"]
        self._opened()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def read(self, source: int, shard: int, row: int) -> Sample:
        """One sample. Raises DamagedSampleError if it cannot be read as it was written."""
        view, index_row = self.views[source], self._index_row(source, shard, row)
        entry = self._index(source)[index_row]
        if not 0 <= entry["label"] < len(view.classes):
            raise DamagedSampleError(f"its index row names class {entry['label']} of {len(view.classes)}")
        span = self._span(view, shard, int(entry["offset"]), int(entry["length"]))
        if zlib.crc32(span) != entry["crc32"]:
            raise DamagedSampleError("its bytes changed since the build (crc32 does not match)")
        return _parse(span, int(entry["label"]))

    def locate(self, source: int, i: int) -> tuple[int, int]:
        """Shard and row of the view's i-th sample."""
        kept = self._starts[source][1]
        shard = int(np.searchsorted(kept, i, side="right")) - 1
        return shard, i - int(kept[shard])

    def name(self, source: int, shard: int, row: int) -> str:
        """The key of a sample that may be damaged: as far as its header still tells it, else its place."""
        index_row = self._index_row(source, shard, row)
        try:
            view = self.views[source]
            head = self._span(view, shard, int(self._index(source)[index_row]["offset"]), 100)
            name = re.match(rb"[\x20-\x7e]+", head)
            return sample_key(split_name(name.group().decode())[0]) if name else f"sample {index_row}"
        except (DamagedSampleError, TarError):
            return f"sample {index_row}"

    def _index_row(self, source: int, shard: int, row: int) -> int:
        starts, kept = self._starts[source]
        keep = self.views[source].keep
        return int(starts[shard]) + row if keep is None else int(keep[kept[shard] + row])

    def _index(self, source: int) -> np.ndarray:
        if source not in self._indexes:
            view = self.views[source]
            self._indexes[source] = open_index(view.folder, view.manifest)
        return self._indexes[source]

    def _span(self, view: View, shard: int, offset: int, length: int) -> bytes:
        path = os.path.join(view.folder, view.manifest.shards[shard].path)
        try:
            data = os.pread(self._file(path), length, offset)
        except (OSError, OverflowError) as error:
            raise DamagedSampleError(f"cannot be read: {error}") from None
        if len(data) < length:
            raise DamagedSampleError(f"its shard ends early: {len(data):,} of {length:,} bytes are there")
        return data

    def _file(self, path: str) -> int:
        if path not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[path] = os.open(path, os.O_RDONLY)
        self._files.move_to_end(path)
        return self._files[path]


def read_sample(view: View, i: int) -> Sample:
    """The view's i-th sample. Raises DamagedSampleError. For many of them keep one `Reader`."""
    reader = Reader([view])
    return reader.read(0, *reader.locate(0, i))


def _parse(span: bytes, label: int) -> Sample:
    try:
        key, fields = parse_sample(span)
    except TarError as error:
        raise DamagedSampleError(str(error)) from None
    stored = fields.pop("cls", b"")
    if stored != b"%d" % label:
        raise DamagedSampleError(f"its class file says {stored[:20]!r}, its index row {label}")
    if len(fields) != 1:
        raise DamagedSampleError(f"expected one image beside the class, found {', '.join(fields) or 'none'}")
    ((extension, image),) = fields.items()
    return Sample(sample_key(key), label, image, extension)
