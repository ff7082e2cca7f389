"""Pictures in a terminal: two pixels a character, the upper one as its ink and the lower one as its ground.

Needs nothing of the terminal but colours: 24 bits, or the nearest of 256. Without them, in a file or a pipe, samples
are shown in words, one on a line.
"""

import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from shards.inspect.preview.paint import Colour
from shards.inspect.preview.show import Preview, Tile, colours, head, is_drawn_on
from shards.loading.subset import Subset

_CELLS, _LARGE_CELLS, _MOST_CELLS = 24, 44, 64
_GAP = 2
_ROWS, _WORDS = 3, 20
_TITLE, _KEY = 40, 60
_LINES = 3


def shows_pictures(console: Console) -> bool:
    """Whether a console has colours enough to draw with."""
    return console.color_system in ("256", "truecolor", "windows") and not console.no_color


def terminal_preview(
    console: Console, subsets: Sequence[Subset], count: int | None, seed: int, only: str | None
) -> Preview:
    """The preview for a console; no `count`: some rows of pictures, or lines of words, of each subset."""
    if not shows_pictures(console):
        return Preview(count or _WORDS, seed, only)
    across, cells = _columns(console, any(map(is_drawn_on, subsets)))
    return Preview(count or (_ROWS if len(subsets) == 1 else 2) * across, seed, only, cells, names=False)


def print_tiles(console: Console, subset: Subset, tiles: Sequence[Tile], side: int) -> None:
    """Prints the tiles in rows, as pictures or in words, under what they are of."""
    console.print(Text(head(subset, tiles), "bold"), soft_wrap=True)
    if not shows_pictures(console):
        for line in _words(tiles):
            console.print(Text(line), soft_wrap=True)
        return
    if entries := colours(subset, tiles):
        for line in _legend(entries, console.width):
            console.print(line, soft_wrap=True)
    console.print()
    across = max(1, (console.width + _GAP) // (side + _GAP))
    for first in range(0, len(tiles), across):
        row = tiles[first : first + across]
        console.print(Segments(list(_row(row, side))), end="", soft_wrap=True)
        console.print()


def _columns(console: Console, large: bool) -> tuple[int, int]:
    """How many pictures fit side by side, and how many characters wide each is."""
    across = max(1, (console.width + _GAP) // ((_LARGE_CELLS if large else _CELLS) + _GAP))
    return across, max(1, min(_MOST_CELLS, (console.width - _GAP * (across - 1)) // across))


def _words(tiles: Sequence[Tile]) -> Iterator[str]:
    """Key, size, class and side inputs, in columns."""
    rows = [
        (tile.key, f"{tile.size[0]}x{tile.size[1]}" if tile.picture else "", tile.title, " · ".join(tile.said))
        for tile in tiles
    ]
    wide = (
        [min(limit, max(len(row[at]) for row in rows)) for at, limit in enumerate((_KEY, _KEY, _TITLE))] if rows else []
    )
    for row in rows:
        yield "  ".join(
            [*(f"{text:<{width}}" for text, width in zip(row, wide, strict=False) if width), row[3]]
        ).rstrip()


def _legend(entries: Sequence[tuple[Colour, str]], width: int) -> Iterator[Text]:
    """Colours and what they stand for, as many on a line as fit."""
    line = Text()
    for ink, name in entries:
        if line and len(line) + len(name) + 2 * _GAP + 1 > width:
            yield line
            line = Text()
        line.append(" " * _GAP if line else "").append("██", Style(color=Color.from_rgb(*ink))).append(f" {name}")
    yield line


def _row(tiles: Sequence[Tile], cells: int) -> Iterator[Segment]:
    """Pictures side by side, below each its title, side inputs and key; every line ends with a newline."""
    pictures = [_picture(tile, cells) for tile in tiles]
    high = max(map(len, pictures))
    columns = []
    for tile, picture in zip(tiles, pictures, strict=True):
        below = [Segment(_fit(tile.title, cells), Style(bold=True, color=None if tile.picture else "red"))]
        below += [
            Segment(_fit(line, cells)) for text in (tile.said if tile.picture else ()) for line in _wrap(text, cells)
        ]
        below += [Segment(_fit(tile.key, cells, keep_end=True), Style(dim=True))]
        blank = [[Segment(" " * cells)] for _ in range(high - len(picture))]
        columns.append([*picture, *blank, *([part] for part in below if part.text.strip())])
    for number in range(max(map(len, columns))):
        for place, column in enumerate(columns):
            yield Segment(" " * _GAP if place else "")
            yield from column[number] if number < len(column) else [Segment(" " * cells)]
        yield Segment.line()


def _picture(tile: Tile, cells: int) -> list[list[Segment]]:
    """A picture of at most `cells` pixels a side, as lines of `cells` characters, in the middle of them."""
    if tile.picture is None:
        return [[Segment(_fit(line, cells), Style(color="red"))] for line in textwrap.wrap(tile.said[0], cells)]
    pixels = np.asarray(tile.picture.convert("RGB"))
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    left = (cells - pixels.shape[1]) // 2
    right = cells - pixels.shape[1] - left
    return [
        [Segment(" " * left), *_blocks(pixels[y], pixels[y + 1]), Segment(" " * right)]
        for y in range(0, len(pixels), 2)
    ]


def _blocks(upper: np.ndarray, lower: np.ndarray) -> list[Segment]:
    return [
        Segment("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True)
    ]


def _wrap(text: str, cells: int) -> list[str]:
    return textwrap.wrap(text, cells, max_lines=_LINES, placeholder="…")


def _fit(text: str, cells: int, keep_end: bool = False) -> str:
    if cell_len(text) > cells:
        kept = set_cell_size(text[::-1] if keep_end else text, cells - 1)
        text = "…" + kept[::-1] if keep_end else kept + "…"
    return set_cell_size(text, cells)
