"""Failures, made on purpose: what happened, how long it took, and whether any sample was lost or came twice.

Each starts from the same shards and compares what was delivered with an undisturbed stream of the same configuration,
position by position: source, label and every pixel. The server is the tests' own, on loopback.

    python -m benchmarks.loader.faults QUESTION.json     (asked by __main__)
"""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.loader.contest import BATCH, SIZE, Source
from shards.config import DataConfig
from shards.format.manifest import read_manifest
from shards.loading.batch import Batch, Slot
from shards.loading.open import open_data
from shards.loading.state import StreamState
from shards.loading.train import TrainStream, train_stream
from shards.remote.transport import StoreError
from shards.settings import ConfigError
from tests.shards.server import FaultyServer

Row = dict[str, Any]
_OUTAGE_S = 30.0
_STEP_S = 0.1
"""Of a training step while the server is gone."""
_BATCHES = 20


def main() -> None:
    question = json.loads(Path(sys.argv[1]).read_text())
    sources = [Source(**source) for sources in question["jobs"].values() for source in sources]
    smallest = min(sources, key=lambda source: source.count)
    shards, workers = Path(smallest.folder) / "shards", max(1, question["workers"])
    rows = [
        _tried("a loader process is killed", lambda: worker_killed(shards, workers)),
        _tried("the server is gone for 30 s", lambda: server_gone(shards, workers)),
        _tried("the cache's disk is full, smaller than the data", lambda: disk_full(shards, workers, 0.5)),
        _tried("the cache's disk is full, smaller than one shard", lambda: disk_full(shards, workers, 0.0)),
    ]
    Path(question["answer"]).write_text(json.dumps(rows))


def _tried(what: str, measure: Callable[[], Row]) -> Row:
    started = time.perf_counter()
    try:
        row = measure()
    except Exception as error:
        row = {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"job": what, **row, "seconds": round(time.perf_counter() - started, 2)}


def configuration(root: str, name: str, workers: int, **values: Any) -> DataConfig:
    """One source of shards, small caches, no validation part."""
    settings = {"root": root, "sources": {"one": {"path": name}}, "validation": 0, "image_size": SIZE // 4}
    return DataConfig.model_validate(
        {**settings, "batch_size": BATCH, "workers": workers, "lanes": 1, "window": 256, **values}
    )


def opened(config: DataConfig, state: StreamState | None = None) -> TrainStream:
    """The training stream."""
    return train_stream(open_data(config).train, config, Slot(), state)


def seen(batch: Batch) -> dict[int, tuple[int, int]]:
    """position -> (label, crc32 of the pixels)."""
    pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
    rows = zip(batch.positions.tolist(), batch.targets.tolist(), pixels, strict=True)
    return {position: (target, zlib.crc32(image)) for position, target, image in rows}


def undisturbed(shards: Path, workers: int, num_batches: int) -> dict[int, tuple[int, int]]:
    """What should have come."""
    whole: dict[int, tuple[int, int]] = {}
    with opened(configuration(str(shards.parent), shards.name, workers)) as stream:
        for _ in range(num_batches):
            whole |= seen(next(stream))
    return whole


def compared(found: dict[int, tuple[int, int]], shards: Path, workers: int) -> Row:
    """How many samples came, and how many are not the ones that should have come."""
    expected = undisturbed(shards, workers, len(found) // BATCH)
    wrong = sum(found.get(position) != value for position, value in expected.items())
    return {"samples": len(found), "lost_or_wrong": wrong, "too_many": len(found.keys() - expected.keys())}


def worker_killed(shards: Path, workers: int) -> Row:
    """SIGKILL to one loader process after some batches; then the stream is opened again where it was."""
    config, found = configuration(str(shards.parent), shards.name, workers), {}
    stream = opened(config)
    for _ in range(_BATCHES):
        found |= seen(next(stream))
    victim = multiprocessing.active_children()[0]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    started = time.perf_counter()
    said = ""
    try:
        while True:
            found |= seen(next(stream))
    except RuntimeError as error:
        said = str(error)
    noticed_s = time.perf_counter() - started
    state = stream.state()
    stream.close()
    started = time.perf_counter()
    with opened(config, state) as again:
        found |= seen(next(again))
        resumed_s = time.perf_counter() - started
        for _ in range(_BATCHES):
            found |= seen(next(again))
    what = f"RuntimeError in the training loop ({said.splitlines()[0][:60]}...), resumed from its state"
    return {"outcome": what, "noticed_s": noticed_s, "resumed_s": resumed_s, **compared(found, shards, workers)}


@contextlib.contextmanager
def published(shards: Path) -> Iterator[FaultyServer]:
    """A server that has the shards."""
    server = FaultyServer()
    server.files = {f"/one/{path.name}": path.read_bytes() for path in shards.iterdir() if path.is_file()}
    try:
        yield server
    finally:
        server.down()


def server_gone(shards: Path, workers: int) -> Row:
    """The server goes in the middle of the run, with a cache that holds a part of the data, and comes back."""
    found: dict[int, tuple[int, int]] = {}
    waits: list[float] = []
    with published(shards) as server, tempfile.TemporaryDirectory() as folder:
        cache = {"folder": folder, "gb": _room(shards, 0.5) / 1e9, "timeout_s": 120}
        with opened(configuration(server.url, "one", workers, cache=cache)) as stream:
            found |= seen(next(stream))
            server.down()
            back = threading.Timer(_OUTAGE_S, come_back, [server])
            back.start()
            after = 0
            while after < _BATCHES:
                started = time.perf_counter()
                found |= seen(next(stream))
                waits.append(time.perf_counter() - started)
                after += not back.is_alive()
                time.sleep(_STEP_S)
            losses = len(stream.damaged)
    calm = sum(wait < 1 for wait in waits) - _BATCHES
    what = f"went on for {max(calm, 0)} batches from its cache, waited, and went on by itself"
    return {"outcome": what, "longest_wait_s": max(waits), "losses": losses, **compared(found, shards, workers)}


def come_back(server: FaultyServer) -> None:
    """At its old address, which somebody may use for a moment."""
    for _ in range(100):
        try:
            return server.up()
        except OSError:
            time.sleep(0.1)
    return None


def disk_full(shards: Path, workers: int, share: float) -> Row:
    """The cache lies on a disk of its own with room for a part of the data only, and believes it has plenty."""
    found: dict[int, tuple[int, int]] = {}
    with (
        published(shards) as server,
        tempfile.TemporaryDirectory() as folder,
        _small_disk(folder, _room(shards, share)),
    ):
        cache = {"folder": folder, "gb": 100, "timeout_s": 20}
        count = 3 * read_manifest(shards, "train").num_samples // (2 * BATCH)
        started = time.perf_counter()
        try:
            with opened(configuration(server.url, "one", workers, cache=cache)) as stream:
                for _ in range(count):
                    found |= seen(next(stream))
        except (StoreError, ConfigError) as error:
            took = time.perf_counter() - started
            return {"outcome": f"stopped: {error}"[:200].replace(folder, "CACHE"), "noticed_s": took}
    return {"outcome": f"{count} batches, 1.5 epochs: room made by evicting", **compared(found, shards, workers)}


def _room(shards: Path, share: float) -> int:
    """Bytes for the index and this share of the shards, or for half a shard."""
    manifest = read_manifest(shards, "train")
    sizes = [shard.bytes for shard in manifest.shards]
    return manifest.index.bytes + 65_536 + int(max(share * sum(sizes), 2.2 * max(sizes)) if share else 0.5 * min(sizes))


@contextlib.contextmanager
def _small_disk(folder: str, size: int) -> Iterator[None]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        raise RuntimeError(f"no small disk could be mounted to try it on: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


if __name__ == "__main__":
    main()
