"""One loader in its own process: how long to the first batch, images/s, memory, and whether the batches are right.

python -m benchmarks.loader.measure QUESTION.json     (asked by __main__)
"""

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.loader.contest import BATCH, DRIFT, SIZE, CannotError, Job, Loader, Source
from benchmarks.loader.dataset import images_of
from benchmarks.loader.peers import PEERS
from benchmarks.loader.process import memory_mb

_WARM_BATCHES = 12
_LOOKED_AT = 6  # batches before and after what is timed, whose pixels are looked at: looking takes a tenth of the time


def main() -> None:
    question = json.loads(Path(sys.argv[1]).read_text())
    rows = []
    peer = PEERS[question["peer"]]
    for name, sources in question["jobs"].items():
        job = Job(
            tuple(Source(**{**source, "folder": Path(source["folder"])}) for source in sources),
            question["decoder"],
            question["workers"],
        )
        row: dict[str, Any] = {"job": name}
        try:
            if question["what"] == "prepare":
                peer.prepare(images_of(job.only.folder), job.only.folder)
                rows.append(row)
                continue
            if not rows:
                row["version"] = _version(peer.package)
            opener = peer.opener()
            if question["what"] == "speed":
                row |= speed(opener, job, question["seconds"])
                if not rows:  # the process is cold only once
                    row["cold_s"] = row["first_at"] - question["started"]
            else:
                row |= resume(opener, job)
        except CannotError as error:
            row["cannot"] = str(error)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:300]
            if "--debug" in sys.argv:
                raise
        row.pop("first_at", None)
        rows.append(row)
        gc.collect()
    Path(question["answer"]).write_text(json.dumps(rows))
    os._exit(0)  # some never come back from their own clean-up; the caller ends what is left


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def speed(opener, job: Job, seconds: float) -> dict[str, Any]:
    """images/s over `seconds` after the first batches, and what the batches were."""
    opened = time.perf_counter()
    loader: Loader = opener(job)
    batches = iter(loader.batches)
    labels = [_checked(next(batches), job, look=True)]
    first_at, open_s = time.time(), time.perf_counter() - opened
    while len(labels) < _WARM_BATCHES:
        labels.append(_checked(next(batches), job, look=len(labels) < _LOOKED_AT))
    warm, started = len(labels), time.perf_counter()
    while time.perf_counter() - started < seconds:
        labels.append(_checked(next(batches), job))
    images_s = (len(labels) - warm) * BATCH / (time.perf_counter() - started)
    labels += [_checked(next(batches), job, look=True) for _ in range(_LOOKED_AT)]
    row = {"images_s": images_s, "open_s": open_s, "first_at": first_at, **memory_mb(os.getpid())}
    row |= _judged(torch.stack(labels), job)
    _close(loader, batches)
    return row


def _checked(batch: tuple[torch.Tensor, torch.Tensor], job: Job, look: bool = False) -> torch.Tensor:
    """The labels of a batch that is what it should be. `look`: at pixels too, that no two images are the same."""
    images, labels = batch
    assert images.shape == (BATCH, 3, SIZE, SIZE), f"images are {tuple(images.shape)}"
    assert images.dtype == torch.uint8, f"images are {images.dtype}"
    assert len(labels) == BATCH, f"{len(labels)} labels"
    if look and images.any():  # the bare loops keep their pixels
        distinct = len(torch.unique(images[:, :, ::16, ::16].reshape(BATCH, -1), dim=0))
        assert distinct > BATCH * 0.8, f"only {distinct} of {BATCH} images differ"
    return labels.clone().long()


def _judged(labels: torch.Tensor, job: Job) -> dict[str, Any]:
    """`distinct`: share of different samples among the first of an epoch; with several sources, errors of the blend:
    of a batch, and `blend_drift`, samples too many or too few after `DRIFT` batches.
    """
    assert int(labels.min()) >= 0, "a label that no sample has"
    assert int(labels.max()) < job.num_samples, "a label that no sample has"
    first = labels.flatten()[: job.num_samples // 2]
    row: dict[str, Any] = {"distinct": len(first.unique()) / len(first), "batches": len(labels)}
    if len(job.sources) == 1:
        assert row["distinct"] > 0.9, f"only {row['distinct']:.0%} of the samples differ in half an epoch"
        return row
    total = sum(source.weight for source in job.sources)
    errors = torch.stack(
        [((labels >= s.first) & (labels < s.first + s.count)).double().mean(1) - s.weight / total for s in job.sources],
        1,
    )
    return row | {
        "blend_worst": float(errors.abs().max()),
        "blend_mean": float(errors.abs().max(1).values.mean()),
        "blend_drift": float(errors[:DRIFT].sum(0).abs().max()) * BATCH,
    }


def resume(opener, job: Job) -> dict[str, Any]:
    """Seconds from opening at 70 % of an epoch to the batch that comes next, and whether it is that one.

    A loader without a state is read up to there. Modules are imported already, the page cache is warm.
    """
    loader: Loader = opener(job)
    batches, before = iter(loader.batches), job.num_samples * 7 // 10 // BATCH
    if loader.save is None:
        started = time.perf_counter()
        for _ in range(before + 1):
            next(batches)
        _close(loader, batches)
        return {"resume_s": time.perf_counter() - started, "how": "reads all that came before"}
    for _ in range(before):
        next(batches)
    state = loader.save()
    expected = _next_labels(batches)
    _close(loader, batches)
    del loader, batches
    gc.collect()
    started = time.perf_counter()
    again: Loader = opener(replace(job, state=state))
    batches = iter(again.batches)
    found = [next(batches)[1].clone()]
    taken = time.perf_counter() - started
    same = torch.equal(torch.cat([*found, *_next_labels(batches, 3)]).long(), torch.cat(expected).long())
    _close(again, batches)
    return {"resume_s": taken, "how": "from its state", "same_samples": same}


def _next_labels(batches: Iterator, count: int = 4) -> list[torch.Tensor]:
    return [next(batches)[1].clone() for _ in range(count)]


def _close(loader: Loader, batches: Iterator) -> None:
    close = getattr(batches, "close", None)
    if close:
        close()
    loader.close()


if __name__ == "__main__":
    main()
