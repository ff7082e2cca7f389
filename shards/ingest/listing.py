"""All items of a source in shard order, as a file: memory does not grow with the number of samples.

Items are ordered by a keyed hash of their key, so that shards are class-mixed whatever the source's order. A hash is
uniform, which makes sorting on disk easy: each item is appended to one of 128 files by the first bits of its hash,
then each of these is sorted in memory and appended to the listing. A line is the hash in hexadecimal and the item as
JSON: equal keys come to lie side by side, whoever wants some of the items seeks to their first line and reads on, and
the sha256 of the lines covers all that a source says. Costs about 15 us an item, and its line on disk twice.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from shards.format.hashing import key, name_key
from shards.format.manifest import canonical
from shards.format.tar import BLOCK, padded
from shards.settings import ConfigError
from shards.sources import Item

_BUCKETS = 128
_HEX = 16
_SHOWN = 5
_NEWS_EVERY = 1000


@dataclass(frozen=True)
class Span:
    """Some neighbouring lines of a listing: byte offset of the first, how many, and their size as tar members."""

    offset: int
    count: int
    tar_bytes: int


@dataclass(frozen=True)
class Listing:
    """A written listing, cut into one span for each shard; counts differ by at most one."""

    path: Path
    spans: tuple[Span, ...]
    sha256: str

    @property
    def num_items(self) -> int:
        """Samples listed; refused ones will not become samples."""
        return sum(span.count for span in self.spans)

    @property
    def tar_bytes(self) -> int:
        """Size of all of them as tar members."""
        return sum(span.tar_bytes for span in self.spans)


def write_listing(
    items: Iterable[Item], path: Path, seed: int, shard_bytes: int, advance: Callable[[int], None]
) -> Listing:
    """Sorts `items` into the file `path`, cut into as many spans as shards of `shard_bytes` are needed.

    Raises ConfigError for keys that are no text or come twice. Temporary files lie beside `path`.
    """
    buckets = [path.with_name(f"{path.name}.{number:03d}.tmp") for number in range(_BUCKETS)]
    try:
        num_items, tar_bytes = _spread(items, buckets, seed, advance)
        shards = min(num_items, max(1, -(-tar_bytes // shard_bytes)))
        return _gather(buckets, path, [shard * num_items // shards for shard in range(shards + 1)])
    finally:
        for bucket in buckets:
            bucket.unlink(missing_ok=True)


def read_span(path: Path, span: Span) -> Iterator[Item]:
    """The items of one span."""
    with open(path, "rb") as file:
        file.seek(span.offset)
        for _ in range(span.count):
            yield _item(file.readline())


def item_bytes(item: Item) -> int:
    """Size of an item as tar members: two headers and one block for the class, besides the content."""
    return padded(item.size) + 3 * BLOCK


def _spread(items: Iterable[Item], buckets: list[Path], seed: int, advance: Callable[[int], None]) -> tuple[int, int]:
    """Appends each item to the bucket of its hash; number of items and their size as tar members."""
    files: dict[int, BinaryIO] = {}
    num_items, tar_bytes, odd = 0, 0, []
    try:
        for item in items:
            num_items += 1
            tar_bytes += item_bytes(item)
            try:
                place = key(seed, name_key(item.key))
            except UnicodeEncodeError:
                odd.append(ascii(item.key))
                continue
            bucket = place * _BUCKETS >> 64
            if bucket not in files:
                files[bucket] = open(buckets[bucket], "wb")  # noqa: SIM115  closed below
            files[bucket].write(_line(place, item))
            if num_items % _NEWS_EVERY == 0:
                advance(_NEWS_EVERY)
    finally:
        for file in files.values():
            file.close()
    advance(num_items % _NEWS_EVERY)
    if odd:
        shown = ", ".join(odd[:_SHOWN]) + (", ..." if len(odd) > _SHOWN else "")
        raise ConfigError(f"{len(odd)} names that are not UTF-8 ({shown}); rename them")
    if not num_items:
        raise ConfigError("the source lists no samples")
    return num_items, tar_bytes


def _gather(buckets: list[Path], path: Path, cuts: list[int]) -> Listing:
    """The buckets one after the other, each sorted."""
    digest, twice, num_twice = hashlib.sha256(), [], 0
    offset, row, tar_bytes, spans, first = 0, 0, 0, [], 0
    with open(path, "wb") as file:
        for bucket in buckets:
            lines = sorted(bucket.read_bytes().splitlines(keepends=True)) if bucket.exists() else []
            for a, b in pairwise(lines):
                if a[:_HEX] == b[:_HEX] and _item(a).key == _item(b).key:
                    num_twice += 1
                    twice += [(_item(a), _item(b))] if len(twice) < _SHOWN else []
            for line in lines:
                tar_bytes += item_bytes(_item(line))
                digest.update(line)
                file.write(line)
                offset += len(line)
                row += 1
                if row == cuts[len(spans) + 1]:
                    spans.append(Span(first, row - cuts[len(spans)], tar_bytes))
                    first, tar_bytes = offset, 0
    if twice:
        raise ConfigError(_twice(twice, num_twice))
    return Listing(path, tuple(spans), digest.hexdigest())


def _line(place: int, item: Item) -> bytes:
    # The key comes first: lines of one key are neighbours even where two keys should ever have the same hash.
    return b"%016x%b\n" % (place, canonical([item.key, item.size, item.stamp, item.label, item.payload]))


def _item(line: bytes) -> Item:
    return Item(*json.loads(line[_HEX:]))


def _twice(pairs: list[tuple[Item, Item]], count: int) -> list[str]:
    more = [f"and {count - len(pairs)} more such pairs"] if count > len(pairs) else []
    why = "would both be the sample"
    return [f"{a.origin} and {b.origin} {why} {a.key!r}; rename or remove one" for a, b in pairs] + more
