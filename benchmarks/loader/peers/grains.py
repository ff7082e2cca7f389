"""Grain: ArrayRecord files, `MapDataset` shuffled and repeated, read ahead by worker processes.

Grain has no decoder; its tutorials use PIL, then any transform. Blend: `MapDataset.mix`. Resume: the iterator's state.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import grain
import numpy as np
import torch
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.loader.contest import BATCH, SEED, Batches, Job, Loader, Source
from benchmarks.loader.dataset import Image
from benchmarks.loader.decoding import chosen


def prepare(images: Sequence[Image], folder: Path) -> None:
    # Random access needs groups of one record, say its documents.
    writer = ArrayRecordWriter(str(folder / "images.array_record"), "group_size:1")
    for image in images:
        writer.write(image.label.to_bytes(4, "little") + image.path.read_bytes())
    writer.close()


def open_loader(job: Job) -> Loader:
    parts = [_dataset(source, job.decoder) for source in job.sources]
    mixed = parts[0]
    if len(parts) > 1:
        mixed = grain.MapDataset.mix(parts, [source.weight for source in job.sources])
    data = mixed.batch(BATCH, drop_remainder=True).to_iter_dataset(grain.ReadOptions(num_threads=1))
    iterator = iter(data.mp_prefetch(grain.MultiprocessingOptions(num_workers=job.workers), worker_init_fn=_one_thread))
    if job.state is not None:
        iterator.set_state(job.state)
    return Loader(_batches(iterator), iterator.get_state, getattr(iterator, "close", lambda: None))


def _one_thread(worker: int, workers: int) -> None:
    torch.set_num_threads(1)


def _dataset(source: Source, decoder: str):
    records = grain.sources.ArrayRecordDataSource(str(source.folder / "images.array_record"))
    data = grain.MapDataset.source(records).seed(SEED).shuffle().repeat()
    return data.map(partial(_finished, decoder=decoder, first=source.first))


def _finished(record: bytes, decoder: str, first: int) -> tuple[np.ndarray, int]:
    label = int.from_bytes(record[:4], "little")
    return chosen(decoder, record[4:], label).numpy(), first + label


def _batches(iterator) -> Batches:
    for images, labels in iterator:
        yield torch.from_numpy(images), torch.from_numpy(labels)
