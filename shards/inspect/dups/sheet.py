"""Pairs of the same picture side by side on one sheet: leaks first, then contradicting labels, then the others.

Some of each are drawn, most of them those that only look alike, evenly from the surest to the least sure: what an eye
has to judge is whether the last ones are still the same picture. Costs one decode of each picture drawn.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from shards.decode import DecodeError, open_image, pixels
from shards.inspect.dups.copies import KINDS, Found, Pair
from shards.inspect.dups.leaks import all_pairs, contradictions, leaks
from shards.inspect.dups.text import kind_and_distance
from shards.inspect.glance import Damaged, read
from shards.inspect.preview.paint import fitted, font, shortened
from shards.text import counted, printable

_SIDE, _COLUMNS, _MARGIN, _INSIDE = 128, 4, 10, 4
_HEAD, _LINE = 32, 15
_EACH, _SURE = 24, 4
_PAIR = 2 * _SIDE + 3 * _INSIDE
_Shown = dict[int, tuple[str, Image.Image | None]]


def pairs_sheet(found: Found) -> Image.Image:
    """Up to 24 leaks, contradictions and other pairs; there must be a pair."""
    sections = [(title, pairs) for title, pairs in _sections(found) if pairs]
    shown = _load(found, sorted({sample for _, pairs in sections for pair in pairs for sample in pair[:2]}))
    columns = min(_COLUMNS, max(2, *(len(pairs) for _, pairs in sections)))
    parts = [_section(found, title, pairs, shown, columns) for title, pairs in sections]
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts) + _MARGIN), "white")
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def _sections(found: Found) -> list[tuple[str, list[Pair]]]:
    """What is drawn, under which title."""
    leaked, contradicting = leaks(found), contradictions(found)
    reported = {frozenset(pair[:2]) for pair in (*leaked, *contradicting)}
    a_group = max(1, _EACH // max(1, len(found.groups)))
    taken, others = Counter[int](), []
    for number, pair in all_pairs(found):
        if taken[number] < a_group and frozenset(pair[:2]) not in reported:
            taken[number] += 1
            others.append(pair)
    others.sort(key=lambda pair: (KINDS.index(pair.kind), pair.distance))
    rest = _evenly(others)
    return [
        (f"Leaks: {_of(leaked)}, held out on the left, trained on on the right", _evenly(leaked)),
        (f"Labels that contradict: {_of(contradicting)}", _evenly(contradicting)),
        (f"Other copies: {_of(rest)} of {len(taken):,} groups", rest),
    ]


def _of(pairs: Sequence[Pair]) -> str:
    few = min(len(pairs), _EACH)
    return f"{few:,} of {len(pairs):,} pairs" if few < len(pairs) else counted(few, "pair")


def _evenly(pairs: Sequence[Pair]) -> list[Pair]:
    """Some of the pairs, which come surest first; few of equal bytes or pixels, if there are others."""
    sure = [pair for pair in pairs if pair.kind in ("exact", "pixels")]
    others = pairs[len(sure) :]
    num_sure = min(len(sure), max(_SURE, _EACH - len(others)))
    return [*_spread(sure, num_sure), *_spread(others, min(len(others), _EACH - num_sure))]


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    places = np.linspace(0, len(pairs) - 1, count).round().astype(int)
    return [pairs[place] for place in places.tolist()]


def _load(found: Found, samples: Sequence[int]) -> _Shown:
    """Key and picture of each sample."""
    shown: _Shown = {}
    for split in found.splits:
        end = split.first + split.subset.num_samples
        own = [sample - split.first for sample in samples if split.first <= sample < end]
        for i, sample in read(split.subset, own):
            picture = None if isinstance(sample, Damaged) else _picture(sample.image)
            shown[split.first + i] = (printable(sample.key), picture)
    return shown


def _picture(data: bytes) -> Image.Image | None:
    try:
        array = np.ascontiguousarray(pixels(open_image(data)).array)
    except DecodeError:
        return None
    return fitted(Image.fromarray(array), _SIDE)[0]


def _section(found: Found, title: str, pairs: Sequence[Pair], shown: _Shown, columns: int) -> Image.Image:
    has_classes = any(found.class_name(sample) for pair in pairs for sample in pair[:2])
    high = _SIDE + (4 if has_classes else 3) * _LINE + 2 * _INSIDE
    size = (columns * (_PAIR + _MARGIN) + _MARGIN, _HEAD + -(-len(pairs) // columns) * (high + _MARGIN))
    part = Image.new("RGB", size, "white")
    ImageDraw.Draw(part).text((_MARGIN, 8), title, "black", font(15))
    for place, pair in enumerate(pairs):
        x = _MARGIN + place % columns * (_PAIR + _MARGIN)
        y = _HEAD + place // columns * (high + _MARGIN)
        ImageDraw.Draw(part).rectangle((x, y, x + _PAIR - 1, y + high - 1), "#f1f3f5")
        _draw_pair(part, (x + _INSIDE, y + _INSIDE), found, pair, shown)
    return part


def _draw_pair(part: Image.Image, corner: tuple[int, int], found: Found, pair: Pair, shown: _Shown) -> None:
    draw, small, (x, y) = ImageDraw.Draw(part), font(11), corner
    classes = [found.class_name(sample) for sample in pair[:2]]
    ink = "black" if classes[0] == classes[1] else "#c1121f"
    below = y + _SIDE + 3
    for sample, name in zip(pair[:2], classes, strict=True):
        key, picture = shown[sample]
        if picture:
            part.paste(picture, (x + (_SIDE - picture.width) // 2, y + (_SIDE - picture.height) // 2))
        lines = [(found.splits[found.place(sample)].name, "black"), *([(name, ink)] if any(classes) else [])]
        for number, (text, colour) in enumerate([*lines, (key, "#777777")]):
            text = shortened(printable(text), small, _SIDE, keep_end=text == key)
            draw.text((x, below + number * _LINE), text, colour, small)
        x += _SIDE + _INSIDE
    how = kind_and_distance(pair)
    middle = corner[0] + (_PAIR - 2 * _INSIDE - small.getlength(how)) / 2
    draw.text((middle, below + (3 if any(classes) else 2) * _LINE), how, "#1d4ed8", small)
