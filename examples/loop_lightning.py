"""The same in Lightning's loop, which saves and restores the loader's state with its checkpoints.

Tried with lightning 2.6.6 (torch 2.x, one process on a CPU).

    python examples/loop_lightning.py data/photos data/drawings
"""

import sys
from pathlib import Path

import lightning
import torch
from torch import nn

import shards


class Classifier(lightning.LightningModule):
    """A small network; batches are `shards.Batch`."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, num_classes)
        )

    def training_step(self, batch: shards.Batch, index: int) -> torch.Tensor:
        images, targets = batch
        return nn.functional.cross_entropy(self.net(images.float() / 255), targets)

    def validation_step(self, batch: shards.Batch, index: int) -> None:
        right = (self.net(batch.images.float() / 255).argmax(1) == batch.targets)[batch.valid]
        self.log("accuracy", right.float().mean(), batch_size=len(right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def main(folders: list[str], root: Path = Path("lightning_logs"), epochs: int = 2) -> lightning.Trainer:
    """Trains; each rank reads its own share, so Lightning adds no sampler."""
    data = shards.open({Path(folder).name: folder for folder in folders}, image_size=32, batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        default_root_dir=root,
        use_distributed_sampler=False,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rank, world_size = trainer.global_rank, trainer.world_size
    with data.train(rank, world_size, steps=10) as loader:
        trainer.fit(Classifier(len(data.classes)), loader, data.validation(rank, world_size))
    return trainer


if __name__ == "__main__":
    main(sys.argv[1:])
