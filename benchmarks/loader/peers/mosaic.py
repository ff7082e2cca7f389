"""MosaicML Streaming: MDS shards, a `StreamingDataset` whose `__getitem__` decodes, and a `StreamingDataLoader`.

Blend: `Stream(proportion=...)` and "stratified" batching, the way it has to make every batch alike. Resume:
`state_dict` / `load_state_dict` of the loader.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import streaming
from streaming.base.util import clean_stale_shared_memory

from benchmarks.loader.contest import BATCH, SEED, Batches, Job, Loader
from benchmarks.loader.dataset import Image
from benchmarks.loader.decoding import chosen


def prepare(images: Sequence[Image], folder: Path) -> None:
    with streaming.MDSWriter(out=str(folder / "mds"), columns={"image": "bytes", "label": "int"}) as writer:
        for image in images:
            writer.write({"image": image.path.read_bytes(), "label": image.label})


class _Samples(streaming.StreamingDataset):
    def __init__(self, job: Job):
        streams = [
            streaming.Stream(local=str(s.folder / "mds"), proportion=s.weight if len(job.sources) > 1 else None)
            for s in job.sources
        ]
        super().__init__(
            streams=streams,
            shuffle=True,
            batch_size=BATCH,
            shuffle_seed=SEED + 9176,
            batching_method="stratified" if len(job.sources) > 1 else "random",
        )
        self.decoder, self.firsts = job.decoder, [source.first for source in job.sources]

    def __getitem__(self, at):
        sample = super().__getitem__(at)
        stream = int(np.searchsorted(self.sample_offset_per_stream, at, "right")) - 1
        return chosen(self.decoder, sample["image"], sample["label"]), self.firsts[stream] + sample["label"]


def open_loader(job: Job) -> Loader:
    clean_stale_shared_memory()
    dataset = _Samples(job)
    loader = streaming.StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=job.workers, drop_last=True, persistent_workers=True
    )
    if job.state is not None:
        loader.load_state_dict(job.state)
    return Loader(_batches(loader), loader.state_dict)


def _batches(loader) -> Batches:
    while True:
        yield from loader
