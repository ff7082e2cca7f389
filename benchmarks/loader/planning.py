"""What only our order can be asked: 10^9 samples, position 10^12, and what 8 nodes fetch in an epoch.

Each is simulated from numbers of samples alone, with `shards.order.order`; memory is the growth of a fresh process.
An order needs 8 bytes a shard; a manifest, which also names each shard and its sha256, is measured beside it.

    python -m benchmarks.loader.planning QUESTION.json     (asked by __main__)
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader.contest import BATCH, SIZE, Source
from benchmarks.loader.dataset import BLEND_WEIGHTS
from shards.config import DataConfig
from shards.format.manifest import File, Manifest, Stats, manifest_path, read_manifest, write_manifest
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.state import StreamState
from shards.loading.subset import Subset
from shards.loading.train import Requests, train_stream
from shards.order.blend import Stage
from shards.order.order import Order, rank_share

Row = dict[str, Any]
_SHARDS, _SAMPLES_A_SHARD, _NODES = 1_000_000, 1_000, 8
_FAR = 10**12


def main() -> None:
    question = json.loads(Path(sys.argv[1]).read_text())
    sources = [Source(**source) for source in next(iter(question["jobs"].values()))]
    rows = [
        _alone(plan_order, "order of 10^6 shards, 10^9 samples"),
        _planned_manifest(),
        _alone(order_cost, "order, one source"),
        _alone(order_cost_blend, "order, blend of four"),
        *(
            _alone(lambda at=at: first_batch(sources[0], question["workers"], at), f"first batch at position {at:,}")
            for at in (0, _FAR)
        ),
        *(_alone(lambda lanes=lanes: egress(lanes, 1), f"egress, one source, {lanes} lanes") for lanes in (16, 1)),
        *(
            _alone(lambda lanes=lanes: egress(lanes, len(BLEND_WEIGHTS)), f"egress, blend of four, {lanes} lanes")
            for lanes in (16, 128, 1)
        ),
    ]
    Path(question["answer"]).write_text(json.dumps(rows))


def _alone(measure: Callable[[], Row], what: str) -> Row:
    """Measured in a process of its own: what it adds to the memory of one that has only imported."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(measure, sender))
    process.start()
    sender.close()
    try:
        return {"job": what, **receiver.recv()}
    except EOFError:
        return {"job": what, "error": "its process died"}
    finally:
        process.join()


def _send(measure: Callable[[], Row], sender) -> None:
    # A fork begins with its parent's peak; only what is above today's pages is its own.
    before = _resident_mb()
    try:
        row = measure()
    except Exception as error:
        row = {"error": f"{type(error).__name__}: {error}"[:300]}
    grown = {"held_mb": _resident_mb() - before, "peak_mb": max(0.0, _peak_mb() - before)}
    sender.send({**grown, **row})


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def plan_order() -> Row:
    """Builds the order and finds the first batch; then one in the middle of the second epoch."""
    started = time.perf_counter()
    order = Order({"web": np.full(_SHARDS, _SAMPLES_A_SHARD)}, [Stage(0, {"web": 1})], seed=0, block=BATCH)
    order.batch(0, BATCH)
    first_s = time.perf_counter() - started
    started = time.perf_counter()
    order.batch(_SHARDS * _SAMPLES_A_SHARD * 3 // 2, BATCH)
    return {"seconds": first_s, "jump_s": time.perf_counter() - started}


def _planned_manifest() -> Row:
    with tempfile.TemporaryDirectory() as folder:
        _alone(lambda: write_simulated(folder), "")
        return _alone(lambda: plan_manifest(folder), "manifest of 10^6 shards, from its file to the subset's shape")


def write_simulated(folder: str) -> Row:
    """A manifest without shards beside it."""
    shards = tuple(File(f"train-{n:06d}.tar", 10**8, _SAMPLES_A_SHARD, f"{n:064x}") for n in range(_SHARDS))
    index = File("train.index.npy", 28 * _SHARDS * _SAMPLES_A_SHARD, _SHARDS * _SAMPLES_A_SHARD, "0" * 64)
    stats = Stats((_SHARDS * _SAMPLES_A_SHARD,), (1, 1), (1, 1), (0, 0, 0), (1, 1, 1))
    write_manifest(folder, Manifest("web", "train", ("one",), {"image": "jpg"}, shards, index, stats))
    return {}


def plan_manifest(folder: str) -> Row:
    """Reads the manifest, checks it, and asks its subset how many samples each shard has."""
    started = time.perf_counter()
    subset = Subset("web", folder, read_manifest(folder, "train"))
    assert subset.shard_samples.sum() == _SHARDS * _SAMPLES_A_SHARD
    return {"seconds": time.perf_counter() - started, "file_mb": manifest_path(folder, "train").stat().st_size / 1e6}


def order_cost() -> Row:
    """us for each sample of batches in a row, located as a stream does."""
    return _cost({"a": np.full(2_000, 500)}, {"a": 1.0})


def order_cost_blend() -> Row:
    """The same for four sources."""
    names = "abcd"
    return _cost({name: np.full(500, 500) for name in names}, dict(zip(names, BLEND_WEIGHTS, strict=True)))


def _cost(shapes: dict[str, np.ndarray], weights: dict[str, float]) -> Row:
    row: Row = {}
    for batch in (BATCH, 1024):
        order = Order(shapes, [Stage(0, weights)], seed=0, block=batch)
        requests = iter(Requests(order, 0, batch, Slot()))
        next(requests)
        count = 65_536 // batch
        started = time.perf_counter()
        for _ in range(count):
            next(requests)
        row[f"us_a_sample_{batch}"] = (time.perf_counter() - started) / (count * batch) * 1e6
    return row


def first_batch(source: Source, workers: int, position: int) -> Row:
    """Opening the data and going on from a position, until the batch is there; modules are imported already."""
    config = DataConfig.model_validate(
        {
            "sources": {source.name: {"path": str(Path(source.folder) / "shards")}},
            "validation": 0,
            "image_size": SIZE,
            "batch_size": BATCH,
            "workers": workers,
        }
    )
    started = time.perf_counter()
    with train_stream(open_data(config).train, config, Slot(), StreamState(position)) as stream:
        next(stream)
        return {"seconds": time.perf_counter() - started}


def egress(lanes: int, num_sources: int) -> Row:
    """Shards that 8 nodes fetch in one epoch, a node each shard once, over the shards there are."""
    generator = np.random.default_rng(0)
    shapes = {f"s{n}": generator.integers(80, 121, 1024 // num_sources) for n in range(num_sources)}
    weights = {name: float(rows.sum()) for name, rows in shapes.items()}
    batch = _NODES * BATCH
    order = Order(shapes, [Stage(0, weights)], seed=0, block=batch, lanes=lanes)
    total = sum(int(rows.sum()) for rows in shapes.values())
    fetched: list[set[tuple[int, int]]] = [set() for _ in range(_NODES)]
    for start in range(0, total, batch):
        at = order.locate(np.arange(start, min(start + batch, total)))
        for node, seen in enumerate(fetched):
            mine = rank_share(at.lane, node, _NODES)
            seen.update(zip(at.source[mine].tolist(), at.shard[mine].tolist(), strict=True))
    return {"times": sum(map(len, fetched)) / 1024, "num_shards": 1024}


if __name__ == "__main__":
    main()
