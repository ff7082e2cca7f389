"""A run that is killed and goes on: every restart logs what it was given, and saves its state after every step.

Used by the test of streams alone and by the one under Ray Train.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.config import DataConfig
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.state import StreamState
from shards.loading.train import TrainStream, train_stream
from shards.settings import replace

Sample = tuple[int, int, int]
"""Source, target, and crc32 of the image's pixels as the model sees them."""


@dataclass(frozen=True)
class Run:
    """Where a run keeps its state and its logs, and at which position it ends."""

    folder: Path
    config: DataConfig
    end: int

    def state(self) -> StreamState:
        """Where the next restart goes on."""
        path = self.folder / "state.json"
        return StreamState(**json.loads(path.read_text())) if path.exists() else StreamState()

    def logs(self) -> list[Path]:
        """Those of each rank of each restart; a restart is named by when it began."""
        return sorted(self.folder.glob("*.log"))


class End(Exception):
    """This restart is to end at the step that is done."""


def run_rank(run: Run, restart: int, slot: Slot, batch_size: int, together: Callable[[], object]) -> None:
    """One rank of one restart: until the end of the run, or until it is killed.

    `together` waits for the other ranks; it ends the restart on all of them by raising End.
    """
    config = replace(run.config, {"batch_size": batch_size})
    with (
        train_stream(open_data(config).train, config, slot, run.state()) as stream,
        open(run.folder / f"{restart:03d}-{stream.position:06d}-{slot.rank}.log", "a") as log,
    ):
        together()  # all have read the state
        while stream.position < run.end:
            log.write(json.dumps(list(_step(stream))) + "\n")
            log.flush()
            together()
            if slot.rank == 0:
                draft = run.folder / "state.json.draft"
                draft.write_text(json.dumps(stream.state().to_json()))
                os.replace(draft, run.folder / "state.json")


def _step(stream: TrainStream) -> Iterator[tuple[int, Sample]]:
    batch = next(stream)
    rows = zip(batch.positions.tolist(), batch.sources.tolist(), batch.targets.tolist(), batch.images, strict=True)
    for position, source, target, image in rows:
        yield position, (source, target, zlib.crc32(image.contiguous().numpy().tobytes()))


def delivered(run: Run) -> dict[int, Sample]:
    """What counts of the logs: of each start what lies before the next one. Fails if a position counts twice."""
    restarts: dict[int, tuple[int, list[Path]]] = {}
    for path in run.logs():
        restart, start, _ = path.stem.split("-")
        restarts.setdefault(int(restart), (int(start), []))[1].append(path)
    starts = [start for start, _ in restarts.values()] + [run.state().position]
    assert starts == sorted(starts)
    found: dict[int, Sample] = {}
    for (_, paths), next_start in zip(restarts.values(), starts[1:], strict=True):
        for position, sample in _rows(paths):
            if position < next_start:
                assert position not in found, f"position {position} twice"
                found[position] = sample
    return found


def _rows(paths: list[Path]) -> Iterator[tuple[int, Sample]]:
    for path in paths:
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # the last one may be cut
                for position, sample in json.loads(line):
                    yield position, tuple(sample)


def uninterrupted(run: Run) -> dict[int, Sample]:
    """What one process without loader processes is given, from the first position to the end."""
    config = replace(run.config, {"workers": 0})
    with train_stream(open_data(config).train, config, Slot()) as stream:
        found: dict[int, Sample] = {}
        while stream.position < run.end:
            found.update(_step(stream))
    return found
