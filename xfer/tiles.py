"""The maps of a large image, made tile by tile: memory for one tile of a branch instead of all of the image.

Tiles overlap, and of each only what is at least half an overlap away from a cut is kept, so every place of the maps is
seen with that much around it. They are laid on the coarsest grid of the network, where a tile's places are places of
the whole image, so what is put together has the shape that the whole would give; and it is the same where half an
overlap is more than the network sees around a place. What follows the branches (projections, fusion, head) works on
the whole: an object larger than a tile is not cut in two, and nothing has to be merged.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import starmap

import torch
from torch import Tensor

from xfer.model_config import TileConfig

Maps = Mapping[str, Tensor]


def tiled(see: Callable[[Tensor], Maps], images: Tensor, tile: TileConfig) -> dict[str, Tensor]:
    """What `see` makes of images [B, 3, H, W], each map put together of those of the tiles. H and W are multiples of
    32. Cost: the pixels of the tiles over those of the image, (size / (size - overlap))^2 for a large one, in time.
    """
    down, across = (list(_spans(length, tile)) for length in images.shape[-2:])
    rows: dict[str, list[Tensor]] = {}
    for top, bottom, kept in down:
        strip: dict[str, list[Tensor]] = {}
        for left, right, of in across:
            for level, seen in see(images[..., top:bottom, left:right]).items():
                strip.setdefault(level, []).append(_cut(seen, (bottom - top, right - left), kept, of))
        for level, parts in strip.items():
            rows.setdefault(level, []).append(torch.cat(parts, 3))
    return {level: torch.cat(parts, 2) for level, parts in rows.items()}


def _spans(length: int, tile: TileConfig) -> Iterator[tuple[int, int, slice]]:
    """Where each tile along a side begins and ends, and which of its pixels are kept. The last one ends at the edge,
    and keeps what those before it have not.
    """
    size, margin = min(tile.size, length), tile.overlap // 2
    done = 0
    while done < length:
        start = max(0, min(done - margin, length - size))
        end = length if start + size == length else start + size - margin
        yield start, start + size, slice(done - start, end - start)
        done = end


def _cut(seen: Tensor, sides: tuple[int, int], *kept: slice) -> Tensor:
    """What is kept of the map of a tile of so many pixels."""
    strides = [side // places for side, places in zip(sides, seen.shape[-2:], strict=True)]
    down, across = starmap(lambda part, by: slice(part.start // by, part.stop // by), zip(kept, strides, strict=True))
    return seen[..., down, across]
