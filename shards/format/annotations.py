"""What a sample says besides its image: boxes, masks and side inputs, parsed and checked.

One reader for all who look at them (loaders, `verify`, `show`), so what is accepted in one place is accepted in all.
Every fault is a `ValueError` with its reason: bytes come from anywhere. Boxes stay numbers in pixels of the upright
decoded image, and a mask keeps its size: whether they fit an image is `check_boxes_fit` and `check_mask_fits`, for
those who know its size. Costs about 50 us for ten boxes and 0.5 ms for a mask of 240 x 180 pixels.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

VOID = 255
"""Mask value of pixels that have no class."""

_IGNORED = "crowd", "difficult"
_SLACK = 1.0
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3


@dataclass(frozen=True)
class Annotations:
    """What a sample says besides image and class: boxes float32 [n, 6], mask uint8 [H, W], side inputs by name."""

    boxes: np.ndarray | None = None
    mask: np.ndarray | None = None
    side: Mapping[str, str | int | float | list[str]] = field(default_factory=dict)

    def renumbered(self, numbers: np.ndarray) -> "Annotations":
        """With other class numbers; numbers int64 [classes], -1 for a class that has none: its boxes are left out, its
        pixels are void.
        """
        boxes, mask = self.boxes, self.mask
        if boxes is None and mask is None:
            return self
        if boxes is not None:
            new = numbers[boxes[:, 4].astype(np.int64)]
            boxes = np.concatenate([boxes[:, :4], new[:, None].astype(np.float32), boxes[:, 5:]], 1)[new >= 0]
        if mask is not None:
            table = np.full(256, VOID, np.uint8)
            table[: len(numbers)] = np.where(numbers >= 0, numbers, VOID)[:256]
            mask = table[mask]
        return replace(self, boxes=boxes, mask=mask)

    @property
    def ignored(self) -> int:
        """How many boxes are crowds or difficult objects."""
        return 0 if self.boxes is None else int(self.boxes[:, 5].sum())

    def class_counts(self, label: int, num_classes: int) -> list[int]:
        """How often each class occurs: as the sample's own class (`label`; -1: none), as boxes, as pixels."""
        counts = np.zeros(num_classes, np.int64)
        if label >= 0:
            counts[label] += 1
        if self.boxes is not None:
            counts += np.bincount(self.boxes[:, 4].astype(np.int64), minlength=num_classes)
        if self.mask is not None:
            counts += np.bincount(self.mask.ravel(), minlength=256)[:num_classes]
        return counts.tolist()


def annotations(
    members: Mapping[str, bytes], roles: Mapping[str, str], num_classes: int, width: int = 0, height: int = 0
) -> Annotations:
    """All that a sample's members (by extension) say about its image.

    Raises ValueError, also if the image's size is given (not 0) and they do not fit it.

    `roles`: the manifest's `fields`, role -> extension. A sample without the boxes or the mask that its split has is
    refused; one without side inputs is not.
    """
    boxes = mask = None
    if "boxes" in roles:
        boxes = parse_boxes(_member(members, roles["boxes"]), num_classes)
        if width:
            check_boxes_fit(boxes, width, height)
    if "mask" in roles:
        mask = parse_mask(_member(members, roles["mask"]), num_classes)
        if width:
            check_mask_fits(mask, width, height)
    side = roles.get("side", "")
    if side not in members:
        return Annotations(boxes, mask)
    texts = parse_side(members[side]) if side == "json" else {side: members[side].decode(errors="replace")}
    return Annotations(boxes, mask, texts)


def _member(members: Mapping[str, bytes], extension: str) -> bytes:
    if extension not in members:
        raise ValueError(f"has no {extension}; it has {', '.join(sorted(members)) or 'nothing'} beside the image")
    return members[extension]


def parse_boxes(data: bytes, num_classes: int) -> np.ndarray:
    """float32 [n, 6]: x0, y0, x1, y1, class index, ignored of each box in a `boxes.json`. Raises ValueError.

    Ignored, 1 and not 0, is a `crowd` (COCO) or a `difficult` object (VOC): to find it is neither right nor wrong.
    """
    content = _object(data)
    boxes, labels = content.get("boxes"), content.get("labels")
    if not isinstance(boxes, list) or not isinstance(labels, list):
        raise ValueError("expected the lists `boxes` and `labels`")
    for name in ("labels", "polygons", "runs", *_IGNORED):
        parts = content.get(name)
        if parts is not None and (not isinstance(parts, list) or len(parts) != len(boxes)):
            count = len(parts) if isinstance(parts, list) else "no list of"
            raise ValueError(f"{len(boxes)} boxes, but {count} {name}")
    for number, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < num_classes:
            raise ValueError(f"box {number} has class {label!r}, expected 0 to {num_classes - 1}")
    ignored = np.zeros((len(boxes), 1), np.float32)
    for name in _IGNORED:
        for number, flag in enumerate(content.get(name) or []):
            if flag not in (0, 1):
                raise ValueError(f"{name} of box {number} is {flag!r}, expected 0 or 1")
            if flag:
                ignored[number] = 1
    for number, polygons in enumerate(content.get("polygons") or []):
        _check_polygons(number, polygons)
    for number, lengths in enumerate(content.get("runs") or []):
        if lengths is not None and not (isinstance(lengths, list) and all(type(n) is int and n >= 0 for n in lengths)):
            raise ValueError(f"runs of box {number}: expected a list of whole numbers, 0 or more")
    corners = _numbers(boxes)
    return np.concatenate([corners, np.array(labels, np.float32).reshape(-1, 1), ignored], axis=1)


def parse_mask(data: bytes, num_classes: int | None = None) -> np.ndarray:
    """uint8 [H, W]: class index of each pixel of a `mask.png`, VOID where there is none. Raises ValueError.

    With `num_classes`, any other value than a class or VOID is refused.
    """
    # Pillow stretches 1, 2 and 4-bit greys to 0..255: what was class 1 would come back as 85.
    if data[:8] != _PNG or len(data) < 26 or data[24] != 8 or data[25] not in (_GREY, _PALETTE):
        raise ValueError(f"not a PNG of 8 bits and one channel; it begins with {data[:26]!r}")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 1 << 27):
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            mask = np.array(image)
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError, struct.error, ... on damage
        raise ValueError(f"damaged mask: {error or type(error).__name__}") from None
    if num_classes is not None:
        wrong = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[num_classes:VOID])
        if len(wrong):
            values = ", ".join(str(value + num_classes) for value in wrong[:5])
            raise ValueError(f"it has pixels of class {values}; expected 0 to {num_classes - 1}, or {VOID} for none")
    return mask


def parse_side(data: bytes) -> dict[str, str | int | float | list[str]]:
    """The side inputs in a `json` member: name -> text, number or list of texts. Raises ValueError."""
    content = _object(data)
    for name, value in content.items():
        texts = isinstance(value, list) and all(isinstance(text, str) for text in value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
        if not (isinstance(value, str) or texts or number):
            raise ValueError(f"{name!r} is {_shown(value)}, expected a text, a number, or a list of texts")
    return content


def check_boxes_fit(boxes: np.ndarray, width: int, height: int) -> None:
    """Raises ValueError if a box (float32 [n, 6]) reaches more than a pixel beyond an image of this size."""
    beyond = (boxes[:, :2].min(1) < -_SLACK) | (boxes[:, 2] > width + _SLACK) | (boxes[:, 3] > height + _SLACK)
    if beyond.any():
        number = int(np.argmax(beyond))
        corners = ", ".join(f"{value:g}" for value in boxes[number, :4])
        raise ValueError(f"box {number} ({corners}) reaches beyond the image of {width} x {height} pixels")


def check_mask_fits(mask: np.ndarray, width: int, height: int) -> None:
    """Raises ValueError if a mask (uint8 [H, W]) is not as large as its image."""
    if mask.shape != (height, width):
        raise ValueError(f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the image {width} x {height}")


def _object(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {_shown(content)}")
    return content


def _numbers(boxes: list[Any]) -> np.ndarray:
    """float32 [n, 4] of lists of four numbers, each with x0 < x1 and y0 < y1."""
    for number, box in enumerate(boxes):
        if not _is_numbers(box) or len(box) != 4:
            raise ValueError(f"box {number} is {_shown(box)}, expected four numbers")
    try:
        # Checked as float32: what is used must hold, not what was written.
        with np.errstate(over="ignore"):
            corners = np.array(boxes, np.float64).astype(np.float32).reshape(-1, 4)
    except OverflowError:
        raise ValueError("a box has a number that is too large") from None
    sound = np.isfinite(corners).all(1) & (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])
    if not sound.all():
        number = int(np.argmin(sound))
        raise ValueError(f"box {number} is {_shown(boxes[number])}, expected x0 < x1 and y0 < y1, all finite")
    return corners


def _check_polygons(number: int, polygons: Any) -> None:
    if polygons is None:
        return
    fine = isinstance(polygons, list) and all(
        _is_numbers(points) and len(points) >= 6 and len(points) % 2 == 0 for points in polygons
    )
    if not fine:
        raise ValueError(f"polygons of box {number}: expected lists of x, y, x, y, ... with three points or more")


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(part) in (int, float) for part in value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
