"""Which way up boxes and masks are, where an EXIF tag turns the image that they belong to.

Some tools draw on the pixels as they are stored, others on the image as the tag shows it, and neither says which. Here
everything is of the upright image. A size of the upright image alone settles it. Any other is doubtful: some tools
measure the stored pixels and draw on what a browser turns, both frames may have one size (a half turn, a square), and
there may be none. Such a sample is refused, and `--frame stored` or `--frame upright` settles it. A mask that has the
size of the stored pixels alone is of them, and is turned. What is turned is counted and reported.
"""

from collections.abc import Sequence

import numpy as np

from shards.decode import DecodeError, Encoded, open_image
from shards.sources.notes import Notes
from shards.sources.source import Refused

FRAMES = ("stored", "upright")
_TURNED = "images turned by their EXIF tag whose {what} were of the stored pixels: turned with them"
_SETTLE = "say which with --frame stored or --frame upright"


class OtherSize(Refused):
    """What was drawn is of an image of another size."""


class Frame:
    """Takes boxes, polygons and masks of one image from the frame they were drawn in to that of the upright image."""

    def __init__(self, image: Encoded, stored: bool):
        self.width, self.height = image.width, image.height
        self.exchanged, self.upside_down, self.mirrored = image.turn if stored else (False, False, False)

    @property
    def turns(self) -> bool:
        """Whether there is anything to do."""
        return self.exchanged or self.upside_down or self.mirrored

    @property
    def drawn_on(self) -> tuple[int, int]:
        """Height and width of the frame that they were drawn in."""
        return (self.width, self.height) if self.exchanged else (self.height, self.width)

    def points(self, points: Sequence[float]) -> list[float]:
        """x, y, x, y, ... of the upright image."""
        turned = [self._point(x, y) for x, y in zip(points[::2], points[1::2], strict=True)]
        return [part for point in turned for part in point]

    def box(self, box: Sequence[float]) -> list[float]:
        """x0, y0, x1, y1 of the upright image; an unsound box stays unsound."""
        xa, ya, xb, yb = self.points(box)
        x0, x1 = (xb, xa) if self._flips(0) else (xa, xb)
        y0, y1 = (yb, ya) if self._flips(1) else (ya, yb)
        return [x0, y0, x1, y1]

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 [H, W] of the upright image."""
        mask = mask.T if self.exchanged else mask
        return mask[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]

    def _point(self, x: float, y: float) -> tuple[float, float]:
        if self.exchanged:
            x, y = y, x
        return self.width - x if self.mirrored else x, self.height - y if self.upside_down else y

    def _flips(self, axis: int) -> bool:
        return (self.mirrored, self.upside_down)[axis]


def frame_of(data: bytes, size: tuple[int, int] | None, given: str | None, what: str, notes: Notes) -> Frame:
    """The frame in which `what` ('boxes', 'mask') of an image was drawn.

    `data`: the encoded image; `size`: width and height that its annotation names, or that a mask has; `given`: one of
    FRAMES, if the user says it. Raises Refused.
    """
    try:
        image = open_image(data)
    except DecodeError as error:
        raise Refused(str(error)) from None
    upright = image.width, image.height
    stored = upright[::-1] if image.turn[0] else upright
    turned = any(image.turn)
    if given:
        return _of(image, turned and given == "stored", what, notes)
    if size is not None and size not in (stored, upright):
        raise OtherSize(
            f"its {what} are of an image of {size[0]} x {size[1]} pixels, the image has {upright[0]} x {upright[1]}; "
            f"if they fit it all the same, say so with --frame upright"
        )
    if not turned or (size == upright and stored != upright):
        return Frame(image, False)
    if what == "mask" and stored != upright:
        return _of(image, True, what, notes)
    why = "nothing says" if size is None else f"the size {size[0]} x {size[1]} does not say"
    if stored != upright and size is not None:
        why = f"the size {size[0]} x {size[1]} is that of the stored pixels, so that it is not certain"
    raise Refused(f"its EXIF tag turns it, and {why} whether its {what} were drawn before or after that; {_SETTLE}")


def _of(image: Encoded, stored: bool, what: str, notes: Notes) -> Frame:
    if stored:
        notes.tell(_TURNED.format(what=what))
    return Frame(image, stored)
