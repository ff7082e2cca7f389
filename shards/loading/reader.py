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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from shards.format.fields import is_index, member_text
from shards.format.hashing import Ints
from shards.format.manifest import Manifest
from shards.format.tar import TarError, parse_sample, sample_key, split_name
from shards.loading.subset import Subset
from shards.remote.cache import why_missing

_OPEN_FILES = 64


class DamagedSampleError(Exception):
    """What is wrong with one sample."""


class Sample(NamedTuple):
    """One sample as stored: its key in the tar, the subset's class index (-1: none of its own), the encoded image with
    its extension, every other member by extension, and 64 bits that stand for its key and its bytes, as the index has
    them and the read found them.
    """

    member: str
    label: int
    image: bytes
    extension: str
    fields: Mapping[str, bytes]
    fingerprint: int = 0

    @property
    def key(self) -> str:
        """The sample's key; decoded when asked for, which training never does."""
        return sample_key(self.member)


class Reader:
    """Samples of several subsets by (source, shard, row of the subset within the shard)."""

    def __init__(self, subsets: Sequence[Subset]):
        self.subsets = tuple(subsets)
        self._opened()

    def _opened(self) -> None:
        self._indexes: dict[int, np.ndarray] = {}
        self._files: OrderedDict[str, int] = OrderedDict()
        self._shard = lru_cache(maxsize=_OPEN_FILES)(self._find_shard)
        self._images = [tuple(subset.manifest.fields.get("image", "").split(", ")) for subset in self.subsets]

    def __getstate__(self) -> dict:
        return {"subsets": self.subsets}

    def __setstate__(self, state: dict) -> None:
        self.subsets = state["subsets"]
        self._opened()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def read(self, source: int, shard: int, row: int) -> Sample:
        """One sample. Raises DamagedSampleError if it cannot be read as it was written."""
        subset = self.subsets[source]
        path, rows = self._shard(source, shard)
        offset, length, crc32, key, label = self._index(source)[rows[row]].item()
        if not -1 <= label < len(subset.manifest.classes):
            raise DamagedSampleError(f"its index row names class {label} of {len(subset.manifest.classes)}")
        span = self._span(subset, shard, path, offset, length)
        if zlib.crc32(span) != crc32:
            raise DamagedSampleError("its bytes changed since the build (crc32 does not match)")
        member, fields, extension = self._parse(source, span, label)
        image = fields.pop(extension)
        number = int(subset.renumber[label]) if label >= 0 else -1
        return Sample(member, number, image, extension, fields, key ^ crc32 << 32)

    def locate(self, source: int, i: int) -> tuple[int, int]:
        """Shard and row of the subset's i-th sample."""
        return self.subsets[source].locate(i)

    def name(self, source: int, shard: int, row: int) -> str:
        """The key of a sample that may be damaged: as far as its header still tells it, else its place."""
        path, rows = self._shard(source, shard)
        index_row = int(rows[row])
        try:
            offset = int(self._index(source)[index_row]["offset"])
            head = self._span(self.subsets[source], shard, path, offset, 100)
            name = re.match(rb"[\x20-\x7e]+", head)
            return sample_key(split_name(name.group().decode())[0]) if name else f"sample {index_row}"
        except (DamagedSampleError, TarError):
            return f"sample {index_row}"

    def _find_shard(self, source: int, shard: int) -> tuple[str, Ints]:
        """Where a shard is, and the index rows of the subset's samples in it."""
        subset = self.subsets[source]
        return subset.shard_path(shard), subset.rows_of(shard, self._index(source))

    def _parse(self, source: int, span: bytes, label: int) -> tuple[str, dict[str, bytes], str]:
        """Key in the tar, members by extension, and which of them is the image."""
        try:
            member, fields = parse_sample(span, verified=True)
        except TarError as error:
            raise DamagedSampleError(str(error)) from None
        _check_label(fields, self.subsets[source].manifest, label)
        images = [extension for extension in self._images[source] if extension in fields]
        if len(images) != 1:
            raise DamagedSampleError(f"expected one image, found {len(images)} among {', '.join(fields)}")
        return member, fields, images[0]

    def _index(self, source: int) -> np.ndarray:
        if source not in self._indexes:
            subset = self.subsets[source]
            self._indexes[source] = subset.index()
        return self._indexes[source]

    def _span(self, subset: Subset, shard: int, path: str, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._file(path), length, offset)
        except FileNotFoundError:
            reason = why_missing(subset.cache, subset.manifest.shards[shard]) if subset.cache else None
            raise DamagedSampleError(f"its shard is not there: {reason or path}") from None
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


def _check_label(fields: Mapping[str, bytes], manifest: Manifest, label: int) -> None:
    """Raises DamagedSampleError unless the sample says the same of its class as its index row does."""
    role = manifest.fields.get("label")
    if role is None or fields.get(role) == b"%d" % label:
        return
    try:
        text = member_text(fields, role)
    except ValueError as error:
        raise DamagedSampleError(str(error)) from None
    # In tars of others it may stand as a name, or as `007`.
    if not (label >= 0 and (text == manifest.classes[label] or (is_index(text) and int(text) == label))):
        raise DamagedSampleError(f"its label {role} is {text!r}, its index row says class {label}")


def read_sample(subset: Subset, i: int) -> Sample:
    """The subset's i-th sample. Raises DamagedSampleError. For many of them keep one `Reader`."""
    reader = Reader([subset])
    return reader.read(0, *reader.locate(0, i))
