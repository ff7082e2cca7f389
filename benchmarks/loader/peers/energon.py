"""Megatron-Energon, reading our shards: `energon prepare` indexes them, a task encoder decodes and crops.

Blend: a metadataset with weights. Resume: `save_state_rank` / `restore_state_rank` of a savable loader.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from megatron import energon

from benchmarks.loader.contest import BATCH, Batches, Job, Loader
from benchmarks.loader.dataset import Image
from benchmarks.loader.decoding import crop_and_flip, with_ours
from benchmarks.loader.peers import ours


def prepare(images: Sequence[Image], folder: Path) -> None:
    if not (folder / "shards").exists():
        ours.prepare(images, folder)
    out = folder / "energon"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for tar in sorted((folder / "shards").glob("*.tar")):
        (out / tar.name).hardlink_to(tar)
    fields = json.dumps({"image": "jpg,png", "label": "cls"})
    subprocess.run(
        [
            *(Path(sys.executable).with_name("energon"), "prepare", out, "--non-interactive", "--split-ratio", "1,0,0"),
            *("--sample-type", "ImageClassificationSample", "--field-map", fields, "--num-workers", "1"),
        ],
        check=True,
        capture_output=True,
    )


class _Encoder(energon.DefaultTaskEncoder):
    def __init__(self, decoder: str, firsts: dict[str, int]):
        super().__init__()
        self.own, self.firsts = decoder == "own", firsts
        self.decoder = energon.SampleDecoder(image_decode="torchrgb8") if self.own else None

    @energon.stateless
    def encode_sample(self, sample: energon.ImageClassificationSample) -> energon.ImageClassificationSample:
        first = self.firsts[str(Path(str(sample.__sources__[0].dataset_path)).parent.name)]
        label = int(sample.label)
        sample.image = crop_and_flip(sample.image) if self.own else with_ours(sample.image, label)
        sample.label = torch.tensor(first + label)
        return sample


def open_loader(job: Job) -> Loader:
    path = job.sources[0].folder / "energon" if len(job.sources) == 1 else _blend(job)
    dataset = energon.get_train_dataset(
        path,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=job.workers),
        batch_size=BATCH,
        shuffle_buffer_size=1000,
        max_samples_per_sequence=100,
        task_encoder=_Encoder(job.decoder, {source.name: source.first for source in job.sources}),
    )
    loader = energon.get_savable_loader(dataset)
    if job.state is not None:
        loader.restore_state_rank(job.state)
    return Loader(_batches(loader), loader.save_state_rank)


def _blend(job: Job) -> Path:
    lines = [f"      - path: {s.folder / 'energon'}\n        weight: {s.weight}\n" for s in job.sources]
    path = job.sources[0].folder.parent / "energon-blend.yaml"
    path.write_text(
        "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n    blend:\n" + "".join(lines)
    )
    return path


def _batches(loader) -> Batches:
    for batch in loader:
        yield batch.image, batch.label
