"""`xfer predict`."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shards.settings import ConfigError


def predict(
    model: Path,
    *images: Path,
    top: Annotated[int, Parameter(help="Classes shown for each image.")] = 3,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="One JSON object a line.")] = False,
) -> None:
    """Name what is in images, most likely class first.

        xfer predict runs/pacs/bundle cat.jpg dog.png
        xfer predict runs/pacs/bundle photos/ --top 1 --json

    Folders are searched as `xfer shards build` does: hidden files are passed over, and what is no jpg, jpeg, png, webp
    or bmp is counted on stderr. An image that cannot be read is named in its place; the exit status is 1 at the end.

    Parameters
    ----------
    model
        A run folder or a bundle folder.
    images
        Image files, or folders of them.
    """
    if top < 1:
        raise ConfigError(f"--top: must be at least 1, got {top}")
    from xfer.bundle import open_model
    from xfer.predict import by_ending, image_files, predictions

    trained, failed = open_model(model), 0
    left_out: Counter[str] = Counter()
    for path, answer in predictions(trained, image_files(images, left_out), top):
        wrong = isinstance(answer, str)
        failed += wrong
        if as_json:
            print(json.dumps({"image": str(path), "error" if wrong else "classes": answer}))
        else:
            text = answer if isinstance(answer, str) else "   ".join(f"{n} {100 * p:.1f} %" for n, p in answer.items())
            print(f"{path}: {text}")
    if left_out:
        print(f"left out, for they are no images that are read here: {by_ending(left_out)}", file=sys.stderr)
    if failed:
        raise RuntimeError(f"{failed} of the images could not be read")
