"""Whatever becomes of the bytes of a shard, each damaged sample is reported and every other one is delivered."""

import itertools
import shutil
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.format.manifest import open_index, read_manifest
from shards.inspect.verify import inspect
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.train import train_stream
from tests.shards.images import built, config

EPOCH = 60
places = st.floats(0, 1, exclude_max=True)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Sixty samples in a few shards."""
    tmp = tmp_path_factory.mktemp("zoo")
    built(tmp, "a")
    return tmp


def flip(shards: list[bytearray], shard: int, at: int, length: int) -> None:
    for number in range(at, min(at + length, len(shards[shard]))):
        shards[shard][number] ^= 1 << number % 8


def zero(shards: list[bytearray], shard: int, at: int, length: int) -> None:
    at, end = at // 512 * 512, min(at + 512 * length, len(shards[shard]))
    shards[shard][at:end] = bytes(end - at)


def cut(shards: list[bytearray], shard: int, at: int, _: int) -> None:
    del shards[shard][at:]


def swap(shards: list[bytearray], shard: int, at: int, _: int) -> None:
    other = at % len(shards)
    shards[shard], shards[other] = shards[other], shards[shard]


def epoch(root: Path) -> tuple[dict[int, tuple[int, int]], int]:
    """position -> (target, crc32 of the pixels) of each sample of an epoch, and how many were lost."""
    settings = config(root, "a", validation=0, max_replaced=0.99)
    with train_stream(open_data(settings).train, settings, Slot()) as stream:
        found = {}
        for batch in itertools.islice(stream, EPOCH // settings.batch_size):
            pixels = [zlib.crc32(image.contiguous().numpy().tobytes()) for image in batch.images]
            found |= dict(zip(batch.positions.tolist(), zip(batch.targets.tolist(), pixels, strict=True), strict=True))
        return found, len(stream.damaged)


def spoiled(whole: Path, damaged: Path) -> int:
    """How many samples have a byte that is not what it was."""
    manifest = read_manifest(whole, "train")
    rows, first, count = open_index(whole, manifest), 0, 0
    for shard in manifest.shards:
        before, after = (Path(folder, shard.path).read_bytes() for folder in (whole, damaged))
        spans = [
            slice(int(row["offset"]), int(row["offset"]) + int(row["length"])) for row in rows[first:][: shard.samples]
        ]
        count += sum(before[span] != after[span] for span in spans)
        first += shard.samples
    return count


@pytest.mark.parametrize("harm", [flip, zero, cut, swap])
@settings(max_examples=25, deadline=None)
@given(which=places, place=places, length=st.integers(1, 40))
def test_damage_is_told_and_every_other_sample_is_delivered(zoo, harm, which, place, length):
    whole, _ = epoch(zoo)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "shards", "a")
        shutil.copytree(zoo / "shards" / "a", folder)
        paths = sorted(folder.glob("*.tar"))
        shards = [bytearray(path.read_bytes()) for path in paths]
        shard = int(which * len(shards))
        harm(shards, shard, int(place * len(shards[shard])), length)
        for path, data in zip(paths, shards, strict=True):
            path.write_bytes(data)
        lost = spoiled(zoo / "shards" / "a", folder)
        found, reported = epoch(Path(name))
        assert reported == lost
        assert found.keys() == whole.keys(), "a damaged sample is replaced"
        assert sum(found[position] != whole[position] for position in whole) <= lost
        assert sum(fault.row is not None for fault in inspect(folder).faults) == lost
