"""A file that `xfer export` wrote, in the place of the model it is of: whatever takes a `Trained` takes it."""

import json
from pathlib import Path
from typing import Any, cast

from shards.loading.frame import Resize
from shards.settings import ConfigError
from xfer.bundle import Trained
from xfer.export.onnx_model import OnnxModel
from xfer.export.session import FORMAT, check_installed, open_session
from xfer.export.write import FLOAT_FILE
from xfer.tasks.known import task_of


def open_onnx(path: Path, threads: int = 0) -> Trained:
    """What the file says of itself, and its graph in onnxruntime with `threads` (0: as many as there are cores).

    Raises ConfigError if it is none of ours.
    """
    check_installed()
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; xfer export makes one of a run or a bundle")
    try:
        session = open_session(path.read_bytes(), threads=threads)
    except ConfigError:
        raise ConfigError(f"{path}: onnxruntime cannot open it; it is damaged, or no ONNX file") from None
    about: dict[str, str] = session.get_modelmeta().custom_metadata_map
    if about.get("format") != FORMAT:
        found = f"says {about['format']}" if "format" in about else "does not say what it is"
        raise ConfigError(f"{path}: {found}; expected {FORMAT}, as xfer export writes it")
    try:
        model = cast(Any, OnnxModel(session, task_of(about["task"]).name))
        classes, size, resize = tuple(json.loads(about["classes"])), int(about["image_size"]), about["resize"]
        return Trained(path, path, about["name"], model, classes, size, cast(Resize, resize))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: what it says of itself is not whole ({error})") from None


def beside(folder: Path) -> Path:
    """The file in float of a run or a bundle. Raises ConfigError if there is none."""
    path = folder / FLOAT_FILE
    if not path.is_file():
        raise ConfigError(f"--runtime: {folder} has no {FLOAT_FILE}; make it with xfer export {folder} --onnx")
    return path
