"""The same in Accelerate's loop: each process asks for its own share, and the loader's state is saved with the model's.

Tried with accelerate 1.15.0 (one process on a CPU).

    accelerate launch examples/loop_accelerate.py data/photos data/drawings
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

import shards


def main(folders: list[str], checkpoint: Path = Path("accelerate"), steps: int = 10) -> float:
    """Trains one pass and returns the last loss. A second call goes on from the checkpoint."""
    accelerator = Accelerator(cpu=True)
    data = shards.open({Path(folder).name: folder for folder in folders}, image_size=32, batch_size=16)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, len(data.classes))
    )
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-3))
    loss = torch.zeros(())
    with data.train(accelerator.process_index, accelerator.num_processes, steps=steps) as loader:
        accelerator.register_for_checkpointing(loader)
        if checkpoint.is_dir():
            accelerator.load_state(str(checkpoint))
        for batch in loader:
            images, targets = batch.to(accelerator.device)
            loss = nn.functional.cross_entropy(model(images.float() / 255), targets)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.save_state(str(checkpoint))
    accelerator.print(f"loss {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    main(sys.argv[1:])
