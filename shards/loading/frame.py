"""How an upright image lies in the square that the model sees, and the way back from there.

`centre` shows the largest centred square. `letterbox` shows all of the image, its ratio kept: its longer side becomes
the square's, it lies at the top left, and what is right of it or below is padded. `stretch` shows all of it, its ratio
given up. Only whole pixels are filled, so the two scales of a letterbox differ by up to half a pixel of the shorter
side; each is exact.
"""

from typing import Literal, NamedTuple

import torch

Resize = Literal["centre", "letterbox", "stretch"]

PADDING = (124, 116, 104)
"""Colour of what is padded: ImageNet's mean, about 0 once it is normalised."""


class Region(NamedTuple):
    """A part of an upright image, in its pixels."""

    left: float
    top: float
    width: float
    height: float


class Frame(NamedTuple):
    """An upright image of `width` x `height` pixels: `seen` of it fills `rows` and `columns` at the square's top left.

    Place (x, y) of the image is ((x - seen.left) * scale_x, (y - seen.top) * scale_y) in the square; `seen` begins at
    (0, 0), but for `centre`.
    """

    width: int
    height: int
    seen: Region
    rows: int
    columns: int

    @property
    def scale_x(self) -> float:
        """Pixels of the square for one of the image, from left to right."""
        return self.columns / self.seen.width

    @property
    def scale_y(self) -> float:
        """The same from top to bottom."""
        return self.rows / self.seen.height

    def to_original(self, boxes: torch.Tensor) -> torch.Tensor:
        """Boxes x0, y0, x1, y1 in pixels of the square, [n, 4] -> float32 [n, 4] in pixels of the image, cut at its
        edges.
        """
        boxes = boxes.float()
        scale = boxes.new_tensor((self.scale_x, self.scale_y) * 2)
        start = boxes.new_tensor((self.seen.left, self.seen.top) * 2)
        return (boxes / scale + start).clamp(min=0).minimum(boxes.new_tensor((self.width, self.height) * 2))


def frame_of(width: int, height: int, size: int, resize: Resize) -> Frame:
    """How an upright image of this size lies in a square of `size` pixels in evaluation."""
    if resize == "centre":
        side = min(width, height)
        return Frame(width, height, Region((width - side) // 2, (height - side) // 2, side, side), size, size)
    rows, columns = fitted(width, height, size) if resize == "letterbox" else (size, size)
    return Frame(width, height, Region(0, 0, width, height), rows, columns)


def fitted(width: float, height: float, size: int) -> tuple[int, int]:
    """Rows and columns of what is scaled so that its longer side has `size` pixels; at least one of each."""
    longer = max(width, height)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))
