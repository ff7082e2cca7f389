"""Pictures of a split's samples with what the samples say: class, boxes, mask, side inputs; as one sheet, or in a
terminal (`terminal.py`).

The quickest check that labels and images belong together. Samples come evenly from all classes, and each with its key,
so that a wrong one can be found again. One that cannot be read has its place too, with the reason. Costs one decode a
sample; `only` a class that the index does not hold (boxes, masks) reads on until enough are found, and decodes those.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from shards.decode import DecodeError, image_size, open_image, pixels
from shards.format.annotations import VOID, Annotations, annotations
from shards.format.hashing import permutation
from shards.format.whole import whole_file
from shards.inspect.glance import Damaged, candidates, read, scattered
from shards.inspect.preview.paint import (
    VOID_COLOUR,
    Colour,
    colour,
    draw_boxes,
    fitted,
    font,
    legend,
    shortened,
    with_mask,
    wrapped,
)
from shards.loading.reader import Sample
from shards.loading.subset import OfClasses, Subset
from shards.progress import progress
from shards.settings import ConfigError
from shards.text import printable

_SIDE, _LARGE_SIDE = 128, 256
_LINE, _SMALL_LINE, _HEAD, _GAP = 16, 14, 30, 8
_COLUMNS = 8
_SIDE_LINES, _CAPTION_LINES = 2, 4
_LEGEND = 100
_NAMED = 20
_QUICK = 100
_JPEG_SIDE = 65_500

MOST = 512
"""Samples of a subset on one sheet."""


@dataclass(frozen=True)
class Tile:
    """One sample to look at. `said`: its side inputs; `picture`: the image with boxes and mask drawn on it, None if it
    cannot be read, and then `said` is why; `classes`: what was drawn on it.
    """

    key: str
    title: str
    said: tuple[str, ...]
    size: tuple[int, int]
    picture: Image.Image | None
    classes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Preview:
    """How samples are looked at: how many, chosen by which seed, of one class `only`, in squares of how many pixels.

    `names`: write the class onto each box.
    """

    count: int
    seed: int = 0
    only: str | None = None
    side: int = _SIDE
    names: bool = True


def is_drawn_on(subset: Subset) -> bool:
    """Whether samples have boxes or masks, so that pictures should be large."""
    return bool(subset.manifest.fields.keys() & {"boxes", "mask"})


def sheet_preview(subsets: Sequence[Subset], count: int | None, seed: int, only: str | None) -> Preview:
    """The preview for a contact sheet; no `count`: of each subset as many as are seen well on one page."""
    large = any(map(is_drawn_on, subsets))
    few, many = (8, 24) if large else (24, 64)
    return Preview(count or (few if len(subsets) > 1 else many), seed, only, _LARGE_SIDE if large else _SIDE)


def having(subsets: Sequence[Subset], only: str | None) -> list[Subset]:
    """The subsets that have a class `only`. Raises ConfigError if none has it."""
    found = [subset for subset in subsets if only is None or only in subset.classes]
    if found:
        return found
    known = list(dict.fromkeys(name for subset in subsets for name in subset.classes))
    if not known:
        raise ConfigError(f"--only: {only!r}, but these samples have no classes")
    close = difflib.get_close_matches(str(only), known, 1)
    more = f" and {len(known) - _NAMED:,} more" if len(known) > _NAMED else ""
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"--only: no class {only!r}; {hint}there are {', '.join(known[:_NAMED])}{more}")


def tiles(subset: Subset, preview: Preview) -> list[Tile]:
    """Samples evenly from all classes, sorted by class."""
    if preview.only is not None and is_drawn_on(subset):
        return _search(subset, preview)
    if preview.only is not None:
        subset = subset.where(OfClasses((subset.classes.index(preview.only),)))
    among = candidates(subset, 4 * preview.count, preview.seed)
    chosen = among[choose(subset.labels()[among], preview.count, preview.seed)]
    slow = subset.store is not None or len(chosen) > _QUICK
    with progress(f"show {subset.name}", len(chosen), "samples") if slow else nullcontext(_quietly) as advance:
        found = {}
        for i, sample in read(subset, np.sort(chosen).tolist()):
            found[i] = _tile(subset, sample, preview)
            advance(1)
    return [found[i] for i in chosen.tolist()]


def choose(labels: np.ndarray, count: int, seed: int) -> list[int]:
    """Samples to show, labels int [n]: taken from the classes in turn, which are shuffled, until `count` are there;
    sorted by class.
    """
    shuffled = permutation(len(labels), seed, 4)
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, firsts, group = np.unique(labels[grouped], return_index=True, return_inverse=True)
    turn = np.arange(len(grouped)) - firsts[group]
    picked = np.lexsort((permutation(len(firsts), seed, 5)[group], turn))[:count]
    return grouped[np.sort(picked)].tolist()


def contact_sheet(shown: Sequence[tuple[Subset, Sequence[Tile]]], side: int) -> Image.Image:
    """The tiles of each subset in rows under its name and a legend of its colours, as one picture."""
    columns = max(1, min(_COLUMNS * _SIDE // side, max(len(tiles) for _, tiles in shown)))
    width = max(columns * (side + _GAP) + _GAP, 360)
    parts = [part for subset, tiles in shown for part in _section(subset, tiles, side, columns, width)]
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def save(sheet: Image.Image, path: Path) -> None:
    """Writes the picture, whole or not at all. Raises ConfigError."""
    if path.suffix.lower() != ".png" and max(sheet.size) > _JPEG_SIDE:
        raise ConfigError(f"--out: {sheet.height:,} pixels are too high for a .jpg; name a .png, or lower --count")
    with whole_file(path) as temporary:
        sheet.save(temporary, quality=90)


def colours(subset: Subset, tiles: Sequence[Tile]) -> list[tuple[Colour, str]]:
    """What the colours on boxes and masks stand for."""
    if not is_drawn_on(subset):
        return []
    labels = sorted(frozenset[int]().union(*(tile.classes for tile in tiles)))
    entries = [(colour(i), printable(subset.classes[i])) for i in labels[:_LEGEND] if i >= 0]
    entries += [((0, 0, 0), f"... and {len(labels) - _LEGEND} more")] if len(labels) > _LEGEND else []
    return entries + ([(VOID_COLOUR, "no class")] if -1 in labels else [])


def head(subset: Subset, tiles: Sequence[Tile]) -> str:
    """What is shown of what."""
    return f"{printable(subset.name)}/{subset.manifest.split}: {len(tiles)} of {subset.manifest.num_samples:,} samples"


def _quietly(count: int = 1, note: str = "") -> None:
    """No progress is shown for what takes a moment."""


def _search(subset: Subset, preview: Preview) -> list[Tile]:
    assert preview.only is not None
    label, found = subset.classes.index(preview.only), []
    with progress(f"look for {preview.only}", None, "samples") as advance:
        for _, sample in read(subset, scattered(subset, preview.seed)):
            advance(1, f"{len(found)} found")
            if not isinstance(sample, Damaged) and _holds(subset, sample, label):
                found.append(_tile(subset, sample, preview))
                if len(found) == preview.count:
                    break
    return found


def _holds(subset: Subset, sample: Sample, label: int) -> bool:
    try:
        said = annotations(sample.fields, subset.manifest.fields, len(subset.classes))
    except ValueError:
        return False
    return bool(said.class_counts(sample.label, len(subset.classes))[label])


def _tile(subset: Subset, sample: Sample | Damaged, preview: Preview) -> Tile:
    if isinstance(sample, Damaged):
        return _damaged(sample.key, sample.reason)
    roles, num_classes = subset.manifest.fields, len(subset.classes)
    try:
        size = image_size(sample.image)
        image = Image.fromarray(np.ascontiguousarray(pixels(open_image(sample.image)).array))
        said = annotations(sample.fields, roles, num_classes, *size)
    except (DecodeError, ValueError) as error:
        return _damaged(sample.key, str(error))
    picture, scale = fitted(image, preview.side)
    if said.mask is not None:
        picture = with_mask(picture, said.mask)
    if said.boxes is not None:
        draw_boxes(picture, said.boxes, scale, subset.classes if preview.names else None)
    title = subset.classes[sample.label] if sample.label >= 0 else _title(subset, said)
    return Tile(printable(sample.key), printable(title), _side(said), size, picture, _drawn(said, num_classes))


def _damaged(key: str, reason: str) -> Tile:
    return Tile(printable(key), "damaged", (printable(reason),), (0, 0), None)


def _title(subset: Subset, said: Annotations) -> str:
    """How many boxes of which class, or how much of the mask, the most first."""
    if said.boxes is not None:
        counts = Counter(subset.classes[label] for label in said.boxes[:, 4].astype(int).tolist())
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no box"
    if said.mask is not None:
        shares = np.bincount(said.mask.ravel(), minlength=256)[: len(subset.classes)] / said.mask.size
        most = np.argsort(-shares, kind="stable")[:4].tolist()
        return ", ".join(f"{subset.classes[i]} {shares[i]:.0%}" for i in most if shares[i] >= 0.005) or "no class"
    return ""


def _drawn(said: Annotations, num_classes: int) -> frozenset[int]:
    """The classes of boxes and mask; -1 if there are pixels of none."""
    counts = said.class_counts(-1, num_classes)
    void = said.mask is not None and bool((said.mask == VOID).any())
    return frozenset(label for label, count in enumerate(counts) if count) | ({-1} if void else set())


def _side(said: Annotations) -> tuple[str, ...]:
    """The side inputs; the first of several texts, as one is chosen at a time in training too."""
    values = ((name, value[:1] if isinstance(value, list) else [value]) for name, value in said.side.items())
    texts = [(name, str(part[0])) for name, part in values if part]
    return tuple(printable(text if len(texts) == 1 else f"{name}: {text}") for name, text in texts)


def _section(subset: Subset, tiles: Sequence[Tile], side: int, columns: int, width: int) -> Iterator[Image.Image]:
    top = Image.new("RGB", (width, _HEAD), "white")
    ImageDraw.Draw(top).text((_GAP, 8), shortened(head(subset, tiles), font(15), width - 2 * _GAP), "black", font(15))
    yield top
    if entries := colours(subset, tiles):
        yield legend(entries, width)
    for first in range(0, len(tiles), columns):
        yield _row(tiles[first : first + columns], side, width)


def _row(tiles: Sequence[Tile], side: int, width: int) -> Image.Image:
    """Tiles side by side; as high as the highest of them."""
    small = font(11)
    lines = _SIDE_LINES if any(tile.title for tile in tiles) else _CAPTION_LINES
    captions = [_lines(tile.said, lines, side) if tile.picture else [] for tile in tiles]
    high = max(tile.picture.height if tile.picture else min(side, 96) for tile in tiles)
    titled = any(tile.title for tile in tiles)
    below = (_LINE if titled else 2) + _SMALL_LINE * (1 + max(map(len, captions)))
    row = Image.new("RGB", (width, high + below + _GAP), "white")
    for column, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x, draw = _GAP + column * (side + _GAP), ImageDraw.Draw(row)
        if tile.picture:
            row.paste(tile.picture, (x + (side - tile.picture.width) // 2, (high - tile.picture.height) // 2))
        else:
            draw.rectangle((x, 0, x + side - 1, high - 1), outline="red")
            reason = wrapped(tile.said[0], small, side - 10, (high - 8) // _SMALL_LINE)
            draw.multiline_text((x + 5, 4), "\n".join(reason), "red", small, spacing=2)
        draw.text((x, high), shortened(tile.title, font(12), side), "black" if tile.picture else "red", font(12))
        y = high + (_LINE if titled else 2)
        for text in caption:
            draw.text((x, y), text, "#444444", small)
            y += _SMALL_LINE
        draw.text((x, y), shortened(tile.key, small, side, keep_end=True), "#999999", small)
    return row


def _lines(texts: Sequence[str], lines: int, width: int) -> list[str]:
    """Each text on a line of its own, a long one on as many as are to spare."""
    found: list[str] = []
    for number, text in enumerate(texts[:lines], 1):
        found += wrapped(text, font(11), width, lines - len(found) - (min(len(texts), lines) - number))
    return found
