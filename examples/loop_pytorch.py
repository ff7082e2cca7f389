"""A training loop of plain PyTorch over sources with different classes, with a checkpoint that resumes mid-epoch.

python examples/loop_pytorch.py data/photos data/drawings
"""

import sys
from pathlib import Path

import torch
from torch import nn

import shards


def main(folders: list[str], checkpoint: Path = Path("pytorch.pt"), epochs: int = 2, steps: int = 20) -> float:
    """Trains, and returns the accuracy on what is held out. A second call goes on from the checkpoint."""
    data = shards.open({Path(folder).name: folder for folder in folders}, image_size=32, batch_size=16)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.LazyLinear(64))
    model = nn.Sequential(model, nn.ReLU(), nn.Linear(64, len(data.classes)))
    model(torch.zeros(1, 3, 32, 32))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    with data.train(steps=steps) as loader:
        done = 0
        if checkpoint.is_file():
            saved = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            loader.load_state_dict(saved["loader"])
            done = saved["epoch"]
        for epoch in range(done, epochs):
            for images, targets in loader:
                loss = nn.functional.cross_entropy(model(images.float() / 255), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            states = {"model": model, "optimizer": optimizer, "loader": loader}
            torch.save({"epoch": epoch + 1, **{name: one.state_dict() for name, one in states.items()}}, checkpoint)
    right = total = 0
    with torch.no_grad():
        for batch in data.validation():
            answers = model(batch.images.float() / 255).argmax(1)
            right += int(((answers == batch.targets) & batch.valid).sum())
            total += int(batch.valid.sum())
    print(f"{right} of {total} held-out images right: {right / total:.1%}")
    return right / total


if __name__ == "__main__":
    main(sys.argv[1:])
