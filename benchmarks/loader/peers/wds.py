"""webdataset, reading our shards: shuffle of shards, split by worker, shuffle buffer, decode, batches made in the
workers and mixed again between them, as its README shows.

Blend: `RandomMix`. No state to resume from.
"""

from collections.abc import Sequence
from pathlib import Path

import webdataset as wds

from benchmarks.loader.contest import BATCH, Batches, Job, Loader, Source
from benchmarks.loader.dataset import Image
from benchmarks.loader.decoding import crop_and_flip, with_ours
from benchmarks.loader.peers import ours


def prepare(images: Sequence[Image], folder: Path) -> None:
    if not (folder / "shards").exists():
        ours.prepare(images, folder)


def open_loader(job: Job) -> Loader:
    parts = [_samples(source, job.decoder) for source in job.sources]
    if len(parts) == 1:
        mixed = parts[0]
    else:
        mixed = wds.DataPipeline(wds.RandomMix(parts, [source.weight for source in job.sources]))
    batches = (
        mixed.compose(wds.batched(BATCH, partial=False)) if len(parts) > 1 else mixed.batched(BATCH, partial=False)
    )
    loader = wds.WebLoader(batches, batch_size=None, shuffle=False, num_workers=job.workers)
    return Loader(_batches(loader))


def _samples(source: Source, decoder: str) -> wds.WebDataset:
    urls = sorted(str(path) for path in (source.folder / "shards").glob("*.tar"))
    data = wds.WebDataset(urls, shardshuffle=100, nodesplitter=wds.split_by_node, empty_check=False).repeat()
    data = data.shuffle(1000)
    if decoder == "own":
        data = data.decode("torchrgb8")
    return data.to_tuple("jpg;png", "cls").map(lambda sample: _finished(sample, decoder, source.first))


def _finished(sample: tuple, decoder: str, first: int) -> tuple:
    image, label = sample[0], int(sample[1])
    return (with_ours(image, label) if decoder == "ours" else crop_and_flip(image)), first + label


def _batches(loader) -> Batches:
    while True:
        yield from loader
