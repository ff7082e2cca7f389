"""`xfer predict`."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def predict(
    model: Path,
    *images: Path,
    top: Annotated[int, Parameter(help="Classes shown for each image.")] = 3,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help="One JSON object a line.")] = False,
) -> None:
    """Name what is in images, most likely class first.

        xfer predict runs/pacs/bundle cat.jpg dog.png --json

    Parameters
    ----------
    model
        A run folder or a bundle folder.
    images
        Image files, or folders of them.
    """
    from xfer.bundle import open_model
    from xfer.predict import image_files, predictions

    trained = open_model(model)
    failed = 0
    for path, answer in predictions(trained, image_files(images), top):
        if isinstance(answer, str):
            failed += 1
        if as_json:
            print(
                json.dumps(
                    {"image": str(path), **({"error": answer} if isinstance(answer, str) else {"classes": answer})}
                )
            )
        else:
            text = answer if isinstance(answer, str) else "   ".join(f"{n} {100 * p:.1f} %" for n, p in answer.items())
            print(f"{path}: {text}")
    if failed:
        raise RuntimeError(f"{failed} of the images could not be read")
