"""A contact sheet: thumbnails of a split's samples with their labels, sorted by class, as one picture.

The quickest check that labels and images belong together. Pillow only.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.decode import DecodeError, decode
from shards.order import permutation
from shards.reader import DamagedSampleError, Reader
from shards.views import View

_SIDE, _TEXT, _GAP, _COLUMNS = 96, 16, 6, 8


def contact_sheet(view: View, count: int = 64, seed: int = 0) -> Image.Image:
    """`count` samples, evenly from all classes and chosen by `seed`, sorted by class."""
    reader = Reader([view])
    chosen = choose(view.labels(), count, seed)
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    width, height = _SIDE + _GAP, _SIDE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    for place, i in enumerate(chosen):
        corner = (_GAP + place % columns * width, _GAP + place // columns * height)
        _paste(sheet, corner, view, reader, i)
    return sheet


def choose(labels: np.ndarray, count: int, seed: int) -> list[int]:
    """Samples to show: taken from the classes in turn until `count` are there, sorted by class; labels int [n]."""
    shuffled = permutation(len(labels), seed, 4)
    order = np.argsort(labels[shuffled], kind="stable")
    grouped = shuffled[order]
    firsts = np.searchsorted(labels[grouped], labels[grouped], side="left")
    turn = np.arange(len(grouped)) - firsts
    picked = np.sort(np.argsort(turn, kind="stable")[:count])
    return grouped[picked].tolist()


def _paste(sheet: Image.Image, corner: tuple[int, int], view: View, reader: Reader, i: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    try:
        sample = reader.read(0, *reader.locate(0, i))
        thumbnail = Image.fromarray(decode(sample.image).permute(1, 2, 0).numpy())
        thumbnail.thumbnail((_SIDE, _SIDE))
        left, top = (_SIDE - thumbnail.width) // 2, (_SIDE - thumbnail.height) // 2
        sheet.paste(thumbnail, (corner[0] + left, corner[1] + top))
        label, ink = view.classes[sample.label], "black"
    except (DamagedSampleError, DecodeError):
        draw.rectangle((*corner, corner[0] + _SIDE, corner[1] + _SIDE), outline="red")
        label, ink = "damaged", "red"
    while len(label) > 1 and font.getlength(label) > _SIDE:
        label = label[:-2] + "…"
    draw.text((corner[0], corner[1] + _SIDE), label, fill=ink, font=font)
