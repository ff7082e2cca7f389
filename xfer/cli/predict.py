"""`xfer predict`."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from shards.settings import ConfigError

if TYPE_CHECKING:
    from xfer.bundle import Trained

ANSWERS = {"classification": ("classes", 3), "detection": ("boxes", 100), "segmentation": ("pixels", 3)}
"""By task: under which name JSON has an answer, and of how many parts it is unless --top says it."""


def predict(
    model: Path,
    *images: Path,
    top: Annotated[int | None, Parameter(help="Classes or boxes given for each image (3 classes, 100 boxes).")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="One JSON object a line.")] = False,
    draw: Annotated[Path | None, Parameter(help="A folder for the images with their answers drawn on, as PNG.")] = None,
    masks: Annotated[Path | None, Parameter(help="A folder for the masks of a segmenter, as PNG.")] = None,
    listed: Annotated[
        Path | None,
        Parameter(name="--list", help="A file that names images, one a line; /dev/stdin: what is piped in."),
    ] = None,
    side: Annotated[
        Path | None,
        Parameter(help="Side inputs of the images: a .csv, .tsv or .jsonl with a row for each, by its name."),
    ] = None,
    runtime: Annotated[
        Literal["torch", "onnx"], Parameter(help="onnx: by the model.onnx of the folder, which xfer export makes.")
    ] = "torch",
) -> None:
    """Say what is in images: the most likely classes, boxes, or the class of each pixel.

        xfer predict runs/pacs/bundle cat.jpg dog.png
        xfer predict runs/pacs/bundle photos/ --top 1 --json
        xfer predict runs/cells photos/ --draw drawn/
        xfer predict runs/street photos/ --masks masks/
        xfer predict runs/shop photos/ --side prices.csv
        xfer predict model.int8.onnx photos/
        find photos -newer last | xfer predict runs/cells --list /dev/stdin --json

    Boxes are x0, y0, x1, y1 in pixels of the image as it is shown (EXIF turned), each with a score; a line counts and a
    picture shows those of 0.5 and more, --json has all. A mask has the size of its image; its pixels are class numbers,
    in the order of the model's classes. Both are named after the image, in the sub-folder that it has in a folder that
    is given, and numbered where two would have one name; --json says which file is whose.

    Folders are searched as `xfer shards build` does: hidden files are passed over, and what is no jpg, jpeg, png, webp
    or bmp is counted on stderr. A model that takes side inputs (model.side) sees those of --side; without it, or where
    an image has no row, they are missing. An image that cannot be read is named in its place; the exit status is 1 at
    the end.

    Parameters
    ----------
    model
        A run folder, a bundle folder, or a file that xfer export wrote.
    images
        Image files, or folders of them.
    """
    if top is not None and top < 1:
        raise ConfigError(f"--top: must be at least 1, got {top}")
    from PIL import Image

    from xfer.bundle import open_model
    from xfer.predict import by_ending, drawn_to, image_files, keep_png, predictions, side_of, upright
    from xfer.tasks.known import task_of

    trained, failed = _onnx(model) if runtime == "onnx" or model.suffix == ".onnx" else open_model(model), 0
    task, classes = task_of(trained.model.task), trained.classes
    key, usual = ANSWERS[task.name]
    if masks and task.name != "segmentation":
        raise ConfigError(f"--masks: {model} is for {task.name}, and only a segmenter makes masks; see --draw")
    left_out: Counter[str] = Counter()
    given = [*images, *(_named(listed) if listed else ())]
    files = image_files(given, left_out)
    pictures = drawn_to(draw, files, given) if draw else {}
    layers = drawn_to(masks, files, given) if masks else {}
    beside = side_of(trained, side, files, lambda note: print(f"note: {note}", file=sys.stderr)) if side else None
    for path, answer in predictions(trained, files, beside):
        if isinstance(answer, str):
            failed += 1
            print(json.dumps({"image": str(path), "error": answer}) if as_json else f"{path}: {answer}")
            continue
        plain = task.plain(answer, classes, top or usual)
        made = {}
        if path in pictures:
            keep_png(task.draw(upright(path), answer, classes), pictures[path])
            made["drawn"] = str(pictures[path])
        if path in layers:
            keep_png(Image.fromarray(answer.numpy()), layers[path])
            made["mask"] = str(layers[path])
        print(json.dumps({"image": str(path), key: plain, **made}) if as_json else f"{path}: {task.text(plain)}")
    if left_out:
        print(f"left out, for they are no images that are read here: {by_ending(left_out)}", file=sys.stderr)
    if failed:
        raise RuntimeError(f"{failed} of the images could not be read")


def _onnx(model: Path) -> "Trained":
    from xfer.export.opened import beside, open_onnx

    return open_onnx(beside(model) if model.is_dir() else model)


def _named(listed: Path) -> list[Path]:
    """The images that a file names. Raises ConfigError."""
    try:
        return [Path(line.strip()) for line in listed.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--list: {listed} cannot be read ({why})") from None
