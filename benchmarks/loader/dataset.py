"""The images of the contest, prepared once in every format.

Each source becomes a folder of class folders with one image each: the class is the sample's number. Small sets are
repeated until an epoch is longer than a measurement: starting an epoch anew is not what is measured.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from benchmarks.loader.contest import Source

BLEND_WEIGHTS = (0.2, 0.3, 0.1, 0.4)
"""Of the first folder's sub-folders, in the order of their names."""
_IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Image:
    """A file and its label, counted within its source."""

    path: Path
    label: int


def images_of(folder: Path) -> list[Image]:
    """The images of a prepared source, in the order of their labels."""
    return [Image(path, int(path.parent.name)) for path in sorted((folder / "images").glob("*/*"))]


def prepare_images(root: Path, folder: Path, least: int) -> int:
    """Links (or copies) the images below `root` into `folder/images/<label>/`, again and again until there are
    `least`; once. Gives their number.
    """
    done = folder / "count.json"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _IMAGES)
        if not files:
            raise SystemExit(f"{root}: no images; expected {', '.join(_IMAGES)} in any depth")
        for label, path in enumerate(islice(cycle(files), least)):
            place = folder / "images" / f"{label:06d}"
            place.mkdir(parents=True)
            _link(path, place / f"image{path.suffix.lower()}")
        done.write_text(str(least))
    return json.loads(done.read_text())


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # another disk
        shutil.copyfile(path, to)


def prepare_sources(folders: Sequence[Path], out: Path, least: int) -> dict[str, tuple[Source, ...]]:
    """Every job's sources by the job's name: one for each folder, and a blend of the first one's sub-folders."""
    jobs = {folder.name: (_source(folder, folder.name, out, least),) for folder in folders}
    parts = sorted(path for path in folders[0].iterdir() if path.is_dir())[: len(BLEND_WEIGHTS)]
    blend: list[Source] = []
    for part, weight in zip(parts, BLEND_WEIGHTS, strict=False):
        source = _source(part, f"{folders[0].name}-{part.name}", out, least // 4)
        first = blend[-1].first + blend[-1].count if blend else 0
        blend.append(replace(source, first=first, weight=weight))
    return jobs | ({f"{folders[0].name} blend": tuple(blend)} if len(blend) > 1 else {})


def _source(root: Path, name: str, out: Path, least: int) -> Source:
    return Source(name, out / name, 0, prepare_images(root, out / name, least))


def every_source(jobs: Iterable[tuple[Source, ...]]) -> list[Source]:
    """Each source once."""
    return list({source.name: source for sources in jobs for source in sources}.values())
