"""What a model says of image files, seen as in evaluation."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from shards.decode import DecodeError, open_image, pixels
from shards.format.fields import IMAGES
from shards.format.whole import whole_file
from shards.loading.evaluate import at_once
from shards.loading.frame import Resize, frame_of
from shards.loading.transforms import Pixels, whole
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.side import SideTable
from xfer.bundle import Trained
from xfer.engine import default_device
from xfer.side import Said, fault_of
from xfer.tasks.known import task_of
from xfer.tasks.task import Answer

TOGETHER = 16  # images


def image_files(paths: Sequence[Path], left_out: Counter[str] | None = None) -> list[Path]:
    """`paths` with folders replaced by the images in them, sorted: what `xfer shards build` would take, by the same
    rules, so nothing hidden. `left_out` counts, by ending, the files in them that are no images read here.

    Raises ConfigError naming every path that is not there and every folder without an image.
    """
    faults: list[str] = []
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            faults += [] if path.exists() else [f"{path}: no such file or folder"]
            continue
        inside = [Path(entry.path) for entry in files.walk(path)]
        images = sorted(file for file in inside if files.is_image(file.name))
        others = Counter(file.suffix.lower() for file in inside if not files.is_image(file.name))
        if not images:
            faults.append(f"{path}: no images in this folder ({', '.join(IMAGES)}){_has(others)}")
        found += images
        if left_out is not None:
            left_out.update(others)
    if faults or not found:
        raise ConfigError(faults or "no images given")
    return found


def by_ending(counts: Mapping[str, int]) -> str:
    """`3 .gif, 1 .tiff, 2 without an ending`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in ordered)


def _has(others: Mapping[str, int]) -> str:
    return f"; it has {by_ending(others)}" if others else ""


def predictions(
    trained: Trained, paths: Iterable[Path], said: Mapping[Path, Said] | None = None
) -> Iterator[tuple[Path, Answer | str]]:
    """For each image the answer of the model (see its `Task`); or why it could not be read. In the order of `paths`,
    at most `TOGETHER` at a time. `said`: side inputs of images that have any.
    """
    waiting, count = iter(paths), at_once(TOGETHER, trained.image_size)
    while some := list(islice(waiting, count)):
        seen = {path: _seen(path, trained.image_size, trained.resize) for path in some}
        sound = {path: one for path, one in seen.items() if not isinstance(one, str)}
        answers: dict[Path, Answer] = {}
        if sound:
            beside = [said.get(path, {}) for path in sound] if said else None
            answers = dict(zip(sound, answers_to(trained, list(sound.values()), beside), strict=True))
        yield from ((path, answers[path] if path in answers else cast(str, seen[path])) for path in some)


def answers_to(trained: Trained, seen: Sequence[Pixels], said: Sequence[Said] | None = None) -> list[Answer]:
    """What the model says of images of its size, all at once (see its `Task`). `said`: what is known beside each, of a
    model that takes side inputs.
    """
    device = default_device()
    frames = [frame_of(*one.original, trained.image_size, trained.resize) for one in seen]
    with torch.inference_mode():
        given = [torch.stack([one.image for one in seen]).to(device)]
        if said is not None and trained.model.side is not None:
            given.append(trained.model.side.encode(said, len(said)).to(device))
        output = trained.model.to(device)(*given)
    return task_of(trained.model.task).answers(output, frames)


def _seen(path: Path, size: int, resize: Resize) -> Pixels | str:
    """What the model sees of a file; or why it could not be read."""
    try:
        return whole(path.read_bytes(), size, resize)
    except (DecodeError, OSError) as error:
        return f"not readable as an image ({error})"


def side_of(trained: Trained, table: Path, paths: Sequence[Path], report: Callable[[str], None]) -> dict[Path, Said]:
    """The side inputs of images in a table (.csv, .tsv, .jsonl) with a row for each by its name, and to `report` a line
    for all that counts as missing. Raises ConfigError.
    """
    side = getattr(trained.model, "side", None)
    if side is None:
        raise ConfigError(f"--side: {trained.path} takes no side inputs (model.side), and sees images alone")
    rows = SideTable(table, option="--side")
    wanted = ", ".join(side.fields)
    there = [name for name in side.fields if name in rows.names]
    if not there:
        raise ConfigError(f"--side: {table} has none of the columns {wanted}; it has {', '.join(rows.names)}")
    found = {path: row for path in dict.fromkeys(paths) if (row := rows.of(path.with_suffix("").as_posix()))}
    if not found:
        example = paths[0].with_suffix("").as_posix()
        raise ConfigError(
            f"--side: {table}: no row is of any image: its column {rows.key!r} has {rows.some_keys}, images are called "
            f"{example}"
        )
    if lost := [name for name in side.fields if name not in there]:
        report(f"{table.name} has no column {', '.join(lost)}: missing for all images")
    if count := len(set(paths)) - len(found):
        report(f"{count:,} of {len(set(paths)):,} images have no row in {table.name}: seen without side inputs")
    for name, part in side.by_field:
        values = [row[name] for row in found.values() if name in row]
        kind = side.fields[name]
        sound = [value for value in values if fault_of(kind, value) is None]
        known = ~part.read(sound, frozenset()).isnan().all(1) if sound else torch.zeros(0, dtype=torch.bool)
        if odd := len(values) - int(known.sum()):
            why = {"number": "no numbers", "category": "not known from training", "text": "without words"}[kind]
            report(f"{name}: {odd:,} of {len(values):,} values are {why}, and count as missing")
    return found


def drawn_to(folder: Path, paths: Sequence[Path], given: Sequence[Path]) -> dict[Path, Path]:
    """Where the picture of each image goes: its own name, as PNG, in the sub-folder that it has in one of the folders
    `given`; numbered where several have the same. Raises ConfigError if the folder cannot be made, or has such a file
    that is an image to be read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None
    taken: set[Path] = set()
    found: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):  # an image that is named twice has one picture
        inside = (path.relative_to(one) for one in given if one in path.parents)
        place = folder / next((one for one in inside if ".." not in one.parts), Path(path.name)).with_suffix(".png")
        names = (place if n == 1 else place.with_stem(f"{place.stem}-{n}") for n in range(1, len(paths) + 2))
        found[path] = next(one for one in names if one not in taken)
        taken.add(found[path])
    own = {path.resolve() for path in paths}
    if clash := [target for target in found.values() if target.resolve() in own]:
        raise ConfigError(f"{folder}: {clash[0].name} there is one of the images; give another folder")
    return found


def keep_png(picture: Image.Image, path: Path) -> None:
    """Writes it whole or not at all, in a folder that is made if need be. Raises OSError naming `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        picture.save(draft, "PNG")


def upright(path: Path) -> Image.Image:
    """The picture that answers are drawn on."""
    encoded = open_image(path.read_bytes())
    return Image.fromarray(pixels(encoded).array)
