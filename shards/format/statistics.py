"""Statistics of a split: sums over images, exact integers, so that adding shards in any order gives the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shards.format.manifest import Stats

_VALUES = np.arange(256)


@dataclass
class Tally:
    """Sums over images. `class_counts`: samples, boxes or mask pixels of each class; `ignored`: how many of these boxes
    are crowds or difficult objects; `images`: extensions met.
    """

    class_counts: list[int]
    ignored: int = 0
    width: list[int] = field(default_factory=lambda: [1 << 30, 0])
    height: list[int] = field(default_factory=lambda: [1 << 30, 0])
    pixels: int = 0
    channel_sum: list[int] = field(default_factory=lambda: [0, 0, 0])
    channel_squares: list[int] = field(default_factory=lambda: [0, 0, 0])
    images: list[str] = field(default_factory=list)

    def add(self, image: np.ndarray, extension: str, class_counts: Sequence[int], ignored: int) -> None:
        """Counts one image, uint8 [H, W, 3], and what its annotation holds of each class."""
        height, width = image.shape[:2]
        self.class_counts = [a + int(b) for a, b in zip(self.class_counts, class_counts, strict=True)]
        self.ignored += ignored
        self.width = [min(self.width[0], width), max(self.width[1], width)]
        self.height = [min(self.height[0], height), max(self.height[1], height)]
        self.pixels += height * width
        for channel in range(3):
            counts = np.bincount(image[:, :, channel].ravel(), minlength=256)
            self.channel_sum[channel] += int(counts @ _VALUES)
            self.channel_squares[channel] += int(counts @ _VALUES**2)
        self.images = sorted({*self.images, extension})

    def merge(self, other: "Tally") -> None:
        """Adds another shard's sums."""
        self.class_counts = [a + b for a, b in zip(self.class_counts, other.class_counts, strict=True)]
        self.ignored += other.ignored
        self.width = [min(self.width[0], other.width[0]), max(self.width[1], other.width[1])]
        self.height = [min(self.height[0], other.height[0]), max(self.height[1], other.height[1])]
        self.pixels += other.pixels
        for channel in range(3):
            self.channel_sum[channel] += other.channel_sum[channel]
            self.channel_squares[channel] += other.channel_squares[channel]
        self.images = sorted({*self.images, *other.images})

    def stats(self) -> Stats:
        """What the manifest says; mean and standard deviation of R, G, B in 0..1."""
        mean = np.array(self.channel_sum) / self.pixels
        std = np.sqrt(np.array(self.channel_squares) / self.pixels - mean**2)
        red, green, blue = (mean / 255).round(6).tolist()
        red_std, green_std, blue_std = (std / 255).round(6).tolist()
        return Stats(
            tuple(self.class_counts),
            (self.width[0], self.width[1]),
            (self.height[0], self.height[1]),
            (red, green, blue),
            (red_std, green_std, blue_std),
            self.ignored,
        )
