"""One small data set of each kind: classes, boxes, masks, captions, and their shards."""

import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from shards.format.manifest import open_index, read_manifest
from shards.ingest.build import build
from shards.sources import SourceOptions
from tests.shards.images import encoded, image_folder, picture

BOXES = {"a": [("rat", (4, 2, 16, 12)), ("ox", (0, 0, 24, 20))], "b": [("ox", (8, 4, 14, 10))], "c": []}
"""Image of 24 x 20 pixels -> its boxes as class and corners."""


def zoo(tmp: Path, name: str = "zoo", classes: tuple[str, ...] = ("cat", "dog", "owl"), per_class: int = 10) -> Path:
    """Classes in folders."""
    image_folder(tmp / "raw" / name, classes, per_class)
    build(tmp / "raw" / name, tmp / name, processes=1, shard_mb=0.03)
    return tmp / name


def cells(tmp: Path) -> Path:
    """Boxes, see BOXES."""
    raw, names = tmp / "raw" / "cells", ("ox", "rat", "yak")
    raw.mkdir(parents=True)
    notes = [
        {"image_id": number, "category_id": names.index(label), "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for number, boxes in enumerate(BOXES.values())
        for label, (x0, y0, x1, y1) in boxes
    ]
    for number, key in enumerate(BOXES):
        (raw / f"{key}.jpg").write_bytes(encoded(number))
    content = {
        "images": [{"id": number, "file_name": f"{key}.jpg"} for number, key in enumerate(BOXES)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [{"id": number, **note} for number, note in enumerate(notes)],
    }
    (raw / "cells.json").write_text(json.dumps(content))
    build(raw / "cells.json", tmp / "cells", SourceOptions(kind="coco"), processes=1)
    return tmp / "cells"


def street(tmp: Path) -> Path:
    """Masks of 24 x 20 pixels: upper half sky, lower half road, but for the leftmost quarter, which is void."""
    raw = tmp / "raw" / "street"
    mask = np.zeros((20, 24), np.uint8)
    mask[10:], mask[:, :6] = 1, 255
    for number in range(4):
        for folder in ("images", "masks"):
            (raw / folder).mkdir(parents=True, exist_ok=True)
        (raw / "images" / f"{number}.jpg").write_bytes(encoded(number))
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        (raw / "masks" / f"{number}.png").write_bytes(buffer.getvalue())
    build(raw, tmp / "street", SourceOptions(classes=("sky", "road", "car")), processes=1)
    return tmp / "street"


def captions(tmp: Path, count: int = 12) -> Path:
    """Captions of 1, 2, ... words and a number, no classes; images of (20 + n) x 30 pixels."""
    raw = tmp / "raw" / "captions"
    raw.mkdir(parents=True)
    with open(raw / "rows.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "text", "year"])
        for number in range(count):
            picture(number, 20 + number, 30).save(raw / f"{number}.jpg")
            rows.writerow([f"{number}.jpg", " ".join(["word"] * number + ["end"]), 1990 + number])
    build(raw / "rows.csv", tmp / "captions", SourceOptions(side=("text", "year")), processes=1)
    return tmp / "captions"


KINDS = {"classes": zoo, "boxes": cells, "masks": street, "captions": captions}


def damage(folder: Path, row: int, at: int = 1030) -> None:
    """Flips the bits of one byte of a sample."""
    manifest = read_manifest(folder, "train")
    starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
    shard = int(np.searchsorted(starts, row, side="right")) - 1
    with open(folder / manifest.shards[shard].path, "r+b") as file:
        file.seek(int(open_index(folder, manifest)[row]["offset"]) + at)
        byte = file.read(1)
        file.seek(-1, io.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
