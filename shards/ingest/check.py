"""Checks one sample before it is packed: what passes here will be read in training.

The image is decoded in full with the decoder that training uses; class, boxes, mask and side inputs are parsed by the
readers that training uses, and boxes and mask are held against the decoded image. A fault refuses the sample, with
one exception on request: an unsound box is dropped and named (`drop_boxes`). Refusing is the default: an image with a
box missing teaches a detector that the object is background, an image left out teaches nothing wrong.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shards.decode import DecodeError, decode
from shards.format.annotations import annotations, check_boxes_fit, parse_boxes
from shards.format.fields import IMAGES
from shards.format.manifest import canonical
from shards.sources import Refused


@dataclass(frozen=True)
class Checked:
    """A sound sample: members to pack, decoded image uint8 [H, W, 3], its extension, class index (-1: none), what it
    holds of each class (samples, boxes, mask pixels), how many of its boxes are ignored, and why boxes were dropped.
    """

    members: dict[str, bytes]
    image: np.ndarray
    extension: str
    label: int
    class_counts: Sequence[int]
    ignored: int
    dropped: tuple[str, ...] = ()


def check(members: dict[str, bytes], roles: Mapping[str, str], num_classes: int, drop_boxes: bool) -> Checked:
    """Raises Refused with the reason. `roles`: the source's `fields`, role -> extension."""
    extension = _image_extension(members)
    label, dropped = -1, []
    try:
        image = decode(members[extension])
        height, width = image.shape[:2]
        if "label" in roles:
            label = _class_index(members, roles["label"], num_classes)
        if drop_boxes and "boxes" in roles:
            members, dropped = _without_bad_boxes(members, roles["boxes"], num_classes, width, height)
        said = annotations(members, roles, num_classes, width, height)
    except (DecodeError, ValueError) as error:
        raise Refused(str(error)) from None
    counts = said.class_counts(label, num_classes)
    return Checked(members, image, extension, label, counts, said.ignored, tuple(dropped))


def _image_extension(members: Mapping[str, bytes]) -> str:
    found = [extension for extension in members if extension in IMAGES]
    if len(found) != 1:
        raise Refused(f"{len(found)} images among its members ({', '.join(members) or 'none'}), expected one")
    return found[0]


def _class_index(members: Mapping[str, bytes], extension: str, num_classes: int) -> int:
    data = members.get(extension, b"")
    if not data.isdigit() or data != b"%d" % int(data) or int(data) >= num_classes:
        raise ValueError(f"its class is {data[:20]!r}, expected an index from 0 to {num_classes - 1}")
    return int(data)


def _without_bad_boxes(
    members: dict[str, bytes], extension: str, num_classes: int, width: int, height: int
) -> tuple[dict[str, bytes], list[str]]:
    """The members with those boxes only that pass by themselves, and the reasons of the others."""
    try:
        _check_boxes(members[extension], num_classes, width, height)
    except ValueError:
        pass
    else:
        return members, []
    content, sound, reasons = json.loads(members[extension]), [], []
    for number, (box, label) in enumerate(zip(content["boxes"], content["labels"], strict=True)):
        try:
            _check_boxes(json.dumps({"boxes": [box], "labels": [label]}).encode(), num_classes, width, height)
            sound.append(number)
        except ValueError as error:
            reasons.append(str(error).replace("box 0", f"box {number}", 1))
    kept = {name: [values[number] for number in sound] for name, values in content.items()}
    return {**members, extension: canonical(kept)}, reasons


def _check_boxes(data: bytes, num_classes: int, width: int, height: int) -> None:
    check_boxes_fit(parse_boxes(data, num_classes), width, height)
