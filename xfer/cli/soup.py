"""`xfer soup`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def soup(runs: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)], /, *, out: Path) -> None:
    """Average the weights of runs that began alike, as long as held-out images say that it helps.

        xfer soup runs/seed-0 runs/seed-1 runs/seed-2 --out runs/soup
        xfer evaluate runs/soup --split test

    The runs need the same pretrained weights, classes and held-out data, and differ in what you like: seeds, rates,
    augmentation. Taken in the order of their accuracy, each stays in the average if that gets no worse. BatchNorm's
    statistics are made again on training images. The result is a run folder like any other.

    Parameters
    ----------
    runs
        Run folders, at least two.
    out
        The run folder to write; it must not hold anything yet.
    """
    from xfer.soup import make_soup

    print(make_soup(runs, out).text())
    print(f"written: {out}\nnext: xfer compare {runs[0]} {out}")
