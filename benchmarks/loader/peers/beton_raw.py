"""FFCV as its quickstart has it: `write_mode="raw"`, pixels stored from the start. It decodes nothing; the file is as
large as the pixels.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.loader.dataset import Image
from benchmarks.loader.peers import beton

open_loader = partial(beton.open_loader, write_mode="raw")


def prepare(images: Sequence[Image], folder: Path) -> None:
    beton.prepare(images, folder, "raw")
