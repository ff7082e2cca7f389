"""A few samples are a fair mixture, the same ones in whatever order they are stored, and read without a GPU."""

import io
import shutil
import tarfile
from collections import Counter

import pytest

from shards.ingest.index import index
from shards.loading.damage import DamagedDataError
from shards.loading.few import few
from shards.loading.open import open_data
from shards.loading.reader import read_sample
from tests.shards.images import built, config
from tests.shards.members import members_of

PER_CLASS = 20


def sorted_copy(tmp, name: str, reverse: bool) -> None:
    """The samples of shards/a in one indexed tar, class after class."""
    folder = tmp / "shards" / name
    folder.mkdir(parents=True)
    rows = sorted(members_of(tmp / "shards" / "a").items(), key=lambda row: (row[1]["cls"], row[0]), reverse=reverse)
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        for key, fields in rows:
            for extension, data in fields.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    index(folder, processes=1, classes=("cat", "dog", "owl"))


def keys(settings, count: int, **options) -> list[str]:
    """Source and key of each sample, in order."""
    (subset,) = open_data(settings).train
    batches = list(few([subset], settings, count, **options))
    return [read_sample(subset, int(position)).key for batch in batches for position in batch.positions]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The same samples class by class, and in the opposite order."""
    tmp = tmp_path_factory.mktemp("few")
    built(tmp, "a", per_class=PER_CLASS)
    sorted_copy(tmp, "up", reverse=False)
    sorted_copy(tmp, "down", reverse=True)
    return tmp


def test_class_sorted_tars_give_a_mixture_and_the_stored_order_does_not_matter(stored):
    up, down = (keys(config(stored, name, validation=0), 30) for name in ("up", "down"))
    assert up == down
    settings = config(stored, "up", validation=0)
    counts = Counter(int(t) for batch in few(open_data(settings).train, settings, 30) for t in batch.targets)
    assert counts == {0: 10, 1: 10, 2: 10}


def test_what_is_skipped_and_what_comes_after_it_are_the_whole_choice(stored):
    settings = config(stored, "up", validation=0)
    assert keys(settings, 20) + keys(settings, 15, skip=20) == keys(settings, 35)
    assert keys(settings, 100, skip=50) == keys(settings, 100)[50:]
    assert keys(settings, 5, skip=100) == []


def test_it_reads_on_the_cpu_whatever_decode_says_and_never_augments(stored):
    plain = config(stored, "up", validation=0)
    gpu = config(stored, "up", validation=0, decode="gpu", augment={"scale": [0.1, 0.2], "flip": 1.0})
    (ours,), (theirs,) = (few(open_data(one).train, one, 12) for one in (plain, gpu))
    assert ours.images.equal(theirs.images)
    assert ours.valid.all()


def test_sources_get_equal_parts_or_those_of_the_blend_as_far_as_they_have_samples(tmp_path):
    built(tmp_path, "a", per_class=20, seed=1)
    built(tmp_path, "b", per_class=5, seed=2)
    settings = config(tmp_path, "a", "b", validation=0)
    subsets = open_data(settings).train

    def counts(count: int, **options) -> list[int]:
        batches = list(few(subsets, settings, count, **options))
        return [sum(int((batch.sources == source).sum()) for batch in batches) for source in (0, 1)]

    assert counts(20) == [10, 10]
    assert counts(20, sources="proportional") == [16, 4]
    assert counts(60) == [45, 15]
    assert counts(1000) == [60, 15]
    sizes = [len(batch) for batch in few(subsets, settings, 65, batch_size=64)]
    assert max(sizes) - min(sizes) <= 1


def test_damaged_samples_are_passed_over_named_and_too_many_of_them_stop(stored, tmp_path):
    for number, name in enumerate(("one", "many")):
        shutil.copytree(stored / "shards" / "up", tmp_path / "shards" / name)
        tar = tmp_path / "shards" / name / "train-000000.tar"
        data = bytearray(tar.read_bytes())
        step = (len(data), len(data) // 40)[number]
        for at in range(1024, len(data), step):
            data[at] ^= 255
        tar.write_bytes(data)
    reported: list[str] = []
    settings = config(tmp_path, "one", validation=0)
    batches = list(few(open_data(settings).train, settings, 60, passed_over=reported.append))
    assert sum(map(len, batches)) == 59
    assert len(reported) == 1
    assert "crc32" in reported[0]
    settings = config(tmp_path, "many", validation=0)
    with pytest.raises(DamagedDataError, match="damaged samples, 8 accepted"):
        list(few(open_data(settings).train, settings, 60, passed_over=reported.append))
