"""Maps, boxes and batches for tests of heads of detectors."""

import torch
from torch import Tensor

from shards.loading.batch import Batch

K = 5
ALL = torch.ones(1, K, dtype=torch.bool)
MASKS = torch.tensor([[True, True, False, False, False], [False, True, True, True, True]])
SIZES = [(128, 128), (224, 224), (96, 160), (100, 100)]
SHARED = ("points", "anchors", "level")  # parts of an output that all images have in common


def maps(size: tuple[int, int], images: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """As a ResNet makes them: each half the size of the one before, rounded up."""
    drawn = torch.Generator().manual_seed(seed)
    shapes = {level: [-(-side // 2**level) for side in size] for level in (3, 4, 5, 2)}
    return {f"C{level}": torch.randn(images, 32, *shape, generator=drawn) for level, shape in shapes.items()}


def boxes(size: tuple[int, int], n: int, seed: int = 0) -> Tensor:
    """[n, 6], none ignored."""
    drawn = torch.Generator().manual_seed(seed)
    whole = torch.tensor([size[1], size[0]])
    corners = (torch.rand(n, 2, 2, generator=drawn) * whole).sort(1).values
    labels = torch.randint(0, K, (n, 1), generator=drawn)
    return torch.cat([corners.flatten(1), labels, torch.zeros(n, 1)], 1)


def batch(own: list[Tensor] | None, sources: list[int] | None = None, valid: list[bool] | None = None) -> Batch:
    n = len(own) if own is not None else len(sources or [0])
    return Batch(
        torch.zeros(n, 3, 8, 8, dtype=torch.uint8),
        torch.full((n,), -1),
        torch.tensor(sources or [0] * n),
        torch.arange(n),
        torch.tensor(valid or [True] * n),
        None if own is None else tuple(own),
    )


def part(output: dict[str, Tensor], i: int | slice) -> dict[str, Tensor]:
    """The output on some of the images."""
    own = slice(i, i + 1) if isinstance(i, int) else i
    return {name: value if name in SHARED else value[own] for name, value in output.items()}
