"""What reaches the model: the same for every world and worker count, resumable anywhere, and undamaged."""

import itertools
import os
import signal

import numpy as np
import pytest
import torch

from shards.format.manifest import open_index
from shards.inspect.verify import verify
from shards.loading.batch import Batch, Slot
from shards.loading.buffers import Buffers
from shards.loading.damage import EVALUATION, DamagedDataError, read_damage
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from shards.loading.request import Request
from shards.loading.state import StreamState
from shards.loading.train import train_stream
from shards.settings import ConfigError
from tests.shards.images import built, config


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Two sources, a (60 samples) and b (30), and a test source, c."""
    tmp = tmp_path_factory.mktemp("zoo")
    for seed, (name, per_class) in enumerate([("a", 20), ("b", 10), ("c", 5)]):
        built(tmp, name, per_class, seed, shard_mb=0.015)
    return tmp


def rows(batches) -> dict[int, tuple]:
    """position -> (source, target, pixels) of all samples."""
    found = {}
    for batch in batches:
        for i, position in enumerate(batch.positions.tolist()):
            found[position] = (int(batch.sources[i]), int(batch.targets[i]), batch.images[i].numpy().tobytes())
    return found


def take(zoo, count, slot=None, position=0, **values) -> dict[int, tuple]:
    settings = config(zoo, "a", "b", **values)
    with train_stream(open_data(settings).train, settings, slot or Slot(), StreamState(position)) as stream:
        return rows(itertools.islice(stream, count))


def damage(folder, row: int, at: int = 520) -> None:
    """Flips bits of one sample, `at` bytes into it."""
    from shards.format.manifest import read_manifest

    manifest = read_manifest(folder, "train")
    entry = open_index(folder, manifest)[row]
    shard = int(np.searchsorted(np.cumsum([s.samples for s in manifest.shards]), row, side="right"))
    with open(folder / manifest.shards[shard].path, "r+b") as file:
        file.seek(int(entry["offset"]) + at)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


def test_batches_have_the_stated_shape(zoo):
    settings = config(zoo, "a", "b")
    with train_stream(open_data(settings).train, settings, Slot()) as stream:
        batch = next(stream)
        assert stream.position == 12
    assert (batch.images.shape, batch.images.dtype) == ((12, 3, 16, 16), torch.uint8)
    assert {t.dtype for t in (batch.targets, batch.sources, batch.positions)} == {torch.int64}
    assert batch.valid.all()
    assert batch.valid.dtype == torch.bool


@pytest.mark.parametrize("world", [2, 3, 5])
def test_every_world_delivers_the_same_samples(zoo, world):
    whole = take(zoo, 8)
    together: dict[int, tuple] = {}
    for rank in range(world):
        share = take(zoo, 8, Slot(rank, world))
        assert not together.keys() & share.keys()
        together |= share
    assert together == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(zoo, workers):
    assert take(zoo, 8, workers=workers) == take(zoo, 8)


def test_a_batch_that_is_kept_is_never_written_over(zoo):
    """Loader processes write into memory that is used again, once nobody has a tensor that shows it."""
    settings = config(zoo, "a", "b", workers=1)
    with train_stream(open_data(settings).train, settings, Slot()) as stream:
        parts = [next(stream).images[3] for _ in range(12)]
        images = [part.clone() for part in parts]
        for _ in range(12):
            next(stream)
    assert all(torch.equal(part, image) for part, image in zip(parts, images, strict=True))


def test_memory_of_batches_is_used_again():
    buffers, none = Buffers(1, 2, 8), np.zeros(2, np.int64)
    request = Request(none, none, none, none)
    assert [r.buffer for r in buffers.assigned([request, request])] == [0, -1]
    image = buffers.lend(0, 2)[1]
    assert next(buffers.assigned([request])).buffer == -1
    del image
    assert next(buffers.assigned([request])).buffer == 0


def test_resume_anywhere_with_another_batch_size(zoo):
    whole = take(zoo, 10, block=12)
    first = take(zoo, 3, block=12)
    rest = take(zoo, 6, position=36, block=12, batch_size=14)
    assert first | rest == {p: row for p, row in whole.items() if p < 120} | {
        p: row for p, row in rest.items() if p >= 120
    }


def test_an_epoch_is_every_training_sample_once(zoo):
    settings = config(zoo, "a")
    (subset,) = open_data(settings).train
    seen = [value[2] for value in rows(_take(subset, settings)).values()]
    assert len(set(seen)) == len(seen) == subset.num_samples


def _take(subset, settings):
    plain = settings.model_copy(
        update={
            "augment": settings.augment.model_copy(update={"scale": (1.0, 1.0), "flip": 0.0}),
            "batch_size": subset.num_samples,
        }
    )
    with train_stream([subset], plain, Slot()) as stream:
        return [next(stream)]


def test_targets_belong_to_images(zoo):
    """Each batch image, looked up among the source files, lies in the folder of its class."""
    from shards.loading.transforms import centre

    settings = config(zoo, "a", validation=0)
    (subset,) = open_data(settings).train
    classes = {}
    for path in (zoo / "raw" / "a").rglob("*.jpg"):
        classes[centre(path.read_bytes(), 16).image.numpy().tobytes()] = path.parent.name
    delivered = rows(eval_stream([subset], settings, Slot()))
    delivered.pop(-1, None)
    assert len(delivered) == 60
    assert all(classes[pixels] == subset.classes[target] for _, target, pixels in delivered.values())


def test_validation_is_never_trained_on_and_does_not_move(zoo):
    one, other = (open_data(config(zoo, *names, seed=seed)) for names, seed in ((("a", "b"), 0), (("a",), 5)))
    for train, held in zip(one.train, one.validation, strict=True):
        assert not set(train.rows) & set(held.rows)
        assert train.num_samples + held.num_samples == train.manifest.num_samples
    assert (one.validation[0].rows == other.validation[0].rows).all()


def test_fractions_of_a_view(zoo):
    (subset,) = open_data(config(zoo, "a")).train
    low, high = subset.fraction(0, 0.5), subset.fraction(0.5, 1)
    assert sorted([*low.rows, *high.rows]) == list(subset.rows)
    assert low.num_samples > 10
    assert high.num_samples > 10


def test_the_order_of_the_mapping_does_not_matter(zoo):
    forward, backward = config(zoo, "a", "b"), config(zoo, "b", "a")
    plans = []
    for settings in (forward, backward):
        with train_stream(open_data(settings).train, settings, Slot()) as stream:
            plans.append((stream.state().fingerprint, rows([next(stream)])))
    assert plans[0] == plans[1]


def test_the_fingerprint_tells_what_matters(zoo):
    def mark(world=1, **values):
        settings = config(zoo, "a", "b", **values)
        with train_stream(open_data(settings).train, settings, Slot(0, world)) as stream:
            return stream.state().fingerprint

    same = mark(block=12)
    assert mark(world=3, block=12) == mark(batch_size=6, block=12) == mark(workers=1) == same
    others = [{"seed": 1}, {"block": 6}, {"lanes": 2}, {"window": 8}, {"validation": 0.2}, {"augment": {"flip": 0}}]
    others.append({"sources": {"a": {"path": "a", "weight": 3}, "b": {"path": "b", "weight": 1}}})
    assert len({same, *(mark(**{"block": 12, **other}) for other in others)}) == len(others) + 1


def test_weights_decide_the_blend(zoo):
    weighted = {"a": {"path": "a", "weight": 1}, "b": {"path": "b", "weight": 3}}
    sources = [source for source, _, _ in take(zoo, 5, sources=weighted).values()]
    assert (sources.count(0), sources.count(1)) == (15, 45)


def test_nothing_draws_from_the_global_generator(zoo):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    take(zoo, 2, workers=1)
    assert (torch.random.get_rng_state() == before).all()


def test_micro_batches(zoo):
    settings = config(zoo, "a", "b", batch_size=13)
    with train_stream(open_data(settings).train, settings, Slot()) as stream:
        batch = next(stream)
    parts = list(batch.split(4))
    assert [len(part) for part in parts] == [4, 3, 3, 3]
    assert (torch.cat([part.images for part in parts]) == batch.images).all()
    assert isinstance(batch.to("cpu"), Batch)


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [7, 90, 200])
def test_evaluation_is_one_exact_pass(zoo, world, batch_size):
    settings = config(zoo, "a", "b", batch_size=batch_size, validation=0)
    subsets = open_data(settings).train
    positions, counts = [], set()
    for rank in range(world):
        stream = eval_stream(subsets, settings, Slot(rank, world))
        for _ in range(2):
            batches = list(stream)
            assert len(batches) == len(stream)
            assert len({len(batch) for batch in batches}) == 1
        counts.add(len(batches))
        positions += [p for batch in batches for p in batch.positions[batch.valid].tolist()]
        assert all((batch.positions[~batch.valid] == -1).all() for batch in batches)
    assert sorted(positions) == list(range(90))
    assert len(counts) == 1


@pytest.mark.parametrize("at", [0, 130, 520, 1100, 1600])
def test_a_damaged_sample_is_replaced_and_named(tmp_path, at):
    folder = built(tmp_path, "a", per_class=10)
    settings = config(tmp_path, "a", validation=0)
    whole = take_one(tmp_path, settings)[0]
    damage(folder, row=4, at=at)
    found, losses = take_one(tmp_path, settings)
    assert len(losses) == 1
    assert losses[0].shard.startswith("train-00000")
    different = [position for position in whole if whole[position] != found[position]]
    assert len(different) == 1, "every other sample is delivered"
    again, _ = take_one(tmp_path, settings, Slot(0, 1), workers=1)
    assert again == found, "each replay replaces it by the same sample"


def take_one(tmp, settings, slot=None, workers=0):
    """One epoch of 30 samples and what was lost."""
    settings = settings.model_copy(update={"batch_size": 15, "workers": workers, "block": 15})
    with train_stream(open_data(settings).train, settings, slot or Slot()) as stream:
        return rows(itertools.islice(stream, 2)), stream.damaged


def test_too_much_damage_stops_with_a_table(tmp_path):
    folder = built(tmp_path, "a", per_class=10)
    for row in range(9):
        damage(folder, row)
    with pytest.raises(DamagedDataError, match=r"a \(.*\): 9 damaged samples, 8 accepted(?s:.*)crc32") as caught:
        take_one(tmp_path, config(tmp_path, "a", validation=0))
    assert "cat/" in str(caught.value) or "dog/" in str(caught.value) or "owl/" in str(caught.value)


def test_the_same_damage_again_is_not_more_damage(tmp_path):
    damage(built(tmp_path, "a", per_class=10), 4)
    settings = config(tmp_path, "a", validation=0, batch_size=30)
    with train_stream(open_data(settings).train, settings, Slot()) as stream:
        for _ in range(12):
            next(stream)
        assert len(stream.damaged) == 1


def test_the_budget_is_one_for_all_ranks_and_restarts(tmp_path):
    """Eight may be lost. Two ranks lose some, are killed in the middle of a line, and begin again."""
    folder, log = built(tmp_path, "a", per_class=10), tmp_path / "run"
    log.mkdir()
    settings = config(tmp_path, "a", validation=0, batch_size=10)
    for row in (0, 1, 2, 3, 27, 28, 29):
        damage(folder, row)
    for _ in range(2):
        for rank in (0, 1):
            with train_stream(open_data(settings).train, settings, Slot(rank, 2), damage_log=log) as stream:
                for _ in range(3):
                    next(stream)
            with open(log / f"damage-{rank}.jsonl", "a") as file:
                file.write('\n{"source": "a", "sha')
    assert len(stream.damaged) == len(read_damage(log)) == 7
    assert all(len((log / f"damage-{rank}.jsonl").read_text().splitlines()) > 4 for rank in (0, 1))
    for row in (14, 15):
        damage(folder, row)
    with (
        train_stream(open_data(settings).train, settings, Slot(), damage_log=log) as stream,
        pytest.raises(DamagedDataError, match="9 damaged samples, 8 accepted"),
    ):
        list(itertools.islice(stream, 3))


def test_strict_stops_at_the_first(tmp_path):
    damage(built(tmp_path, "a", per_class=10), 4)
    with pytest.raises(DamagedDataError, match="1 damaged samples, 0 accepted"):
        take_one(tmp_path, config(tmp_path, "a", validation=0, strict=True))


def test_evaluation_leaves_out_and_names_a_damaged_sample_and_never_replaces_it(tmp_path):
    damage(built(tmp_path, "a", per_class=10), 4)
    settings = config(tmp_path, "a", validation=0)
    subsets = open_data(settings).train
    stream = eval_stream(subsets, settings, Slot(), damage_log=tmp_path)
    for _ in range(2):  # the same image again is no more damage
        valid = torch.cat([batch.valid[batch.positions >= 0] for batch in stream])
        assert int((~valid).sum()) == 1
    assert len(stream.damaged) == 1
    assert read_damage(tmp_path, EVALUATION)[0]["key"] == stream.damaged[0].key
    assert read_damage(tmp_path) == []  # training has its own budget
    with pytest.raises(DamagedDataError, match="1 damaged samples, 0 accepted"):
        list(eval_stream(subsets, config(tmp_path, "a", validation=0, strict=True), Slot()))


def test_too_much_damage_stops_an_evaluation(tmp_path):
    folder = built(tmp_path, "a", per_class=10)
    for tar in folder.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    settings = config(tmp_path, "a", validation=0)
    with pytest.raises(DamagedDataError, match="8 accepted"):
        list(eval_stream(open_data(settings).train, settings, Slot()))


def test_a_shard_that_was_cut(tmp_path):
    folder = built(tmp_path, "a", per_class=10, shard_mb=1)
    path = folder / "train-000000.tar"
    os.truncate(path, path.stat().st_size - 10240 - 2000)
    _, losses = take_one(tmp_path, config(tmp_path, "a", validation=0))
    assert losses
    assert all("ends early" in loss.reason for loss in losses)
    with pytest.raises(DamagedDataError, match=r"bytes, .* were written"):
        verify(folder)


def test_verify_lists_every_damaged_sample(tmp_path):
    folder = built(tmp_path, "a", per_class=10)
    for row in (1, 7):
        damage(folder, row)
    with pytest.raises(DamagedDataError) as caught:
        verify(folder)
    assert str(caught.value).count("crc32") == 2


def test_no_more_ranks_than_samples_in_a_batch(zoo):
    settings = config(zoo, "a")
    with pytest.raises(ConfigError, match="12 samples for 13 ranks"):
        train_stream(open_data(settings).train, settings, Slot(0, 13))


def test_ctrl_c_reaches_the_training_process_only(zoo):
    """Workers ignore SIGINT: the batch after it still comes, and closing leaves no process behind."""
    import multiprocessing

    settings = config(zoo, "a", "b", workers=2)
    with train_stream(open_data(settings).train, settings, Slot()) as stream:
        next(stream)
        workers = multiprocessing.active_children()
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)
        for _ in range(20):
            next(stream)
        assert all(worker.is_alive() for worker in workers)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("changes", [{}, {"augment": {"mixup": 0.4}}])
def test_fingerprints_add_up_to_the_same_on_any_number_of_ranks_and_tell_images_and_places_apart(zoo, changes):
    """A rank's neighbours, which are mixed in, are not counted twice."""

    def sums(world_size: int, **values) -> list[int]:
        settings = config(zoo, "a", "b", **values)
        found = []
        for rank in range(world_size):
            with train_stream(open_data(settings).train, settings, Slot(rank, world_size)) as stream:
                found.append([int(batch.fingerprints.sum()) for batch in itertools.islice(stream, 8)])
        return [sum(step) % 2**64 for step in zip(*found, strict=True)]

    expected = sums(1)
    assert len(set(expected)) == 8
    assert sums(3, **changes) == expected
    assert not set(sums(1, seed=5)) & set(expected)
    with train_stream(open_data(config(zoo, "a")).train, config(zoo, "a"), Slot()) as stream:
        whole = torch.cat([batch.fingerprints for batch in itertools.islice(stream, 15)])
    assert len(set(whole.tolist())) == 180  # three epochs: an image at another position is another


def test_fingerprints_tell_other_bytes_under_the_same_name_apart(tmp_path):
    found = []
    for seed in (0, 1):
        built(tmp_path / str(seed), "a", 4, seed, shard_mb=1)
        settings = config(tmp_path / str(seed), "a", validation=0)
        with train_stream(open_data(settings).train, settings, Slot()) as stream:
            found.append(set(next(stream).fingerprints.tolist()))
    assert not found[0] & found[1]
