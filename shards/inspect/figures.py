"""The style of our figures, and how they are written. What is drawn is with what it shows.

No pyplot, so no figure outlives its use; rcParams are afterwards what they were before.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from shards.format.whole import whole_file

COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#db2777", "#65a30d")
MUTED = ("#475569", "#92733a", "#5b8a6f", "#a35d5d", "#76669a", "#4a8792", "#a5678a", "#8b964a")
"""A second set, for things that are not those of the first."""
GREY = "#cbd5e1"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "text.parse_math": False,  # names of classes may hold dollar signs
}


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure whole or not at all; the ending of the name says in which format."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in our style, without leaving it behind."""

    @wraps(draw)
    def drawn(*values: object, **options: object) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*values, **options)

    return drawn


def palette(count: int) -> list[str]:
    """So many colours, told apart as well as they can be."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    ramp = matplotlib.colormaps["turbo"]
    return [to_hex(ramp(0.05 + 0.9 * number / (count - 1))) for number in range(count)]
