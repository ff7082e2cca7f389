"""Portable checkpoints: whole tensors by name in safetensors, the rest in JSON, and a manifest that says when it is
whole.

A checkpoint is written under a temporary name, its manifest (size and sha256 of each file) last, and then renamed: a
process killed at any moment leaves nothing that is taken for a checkpoint. Reading needs neither Ray, DeepSpeed nor
pickle.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.format.whole import read_json, remove_drafts, whole_folder, write_text
from shards.settings import ConfigError

FORMAT = 1
PREFIX = "step-"
WEIGHTS = "model.safetensors"
CHOSEN = "chosen"  # a file with the name of the checkpoint that is the model, if that is not the newest one


def checkpoint_name(step: int) -> str:
    return f"{PREFIX}{step:08d}"


START = checkpoint_name(0)


@dataclass
class TrainState:
    """All of resume, beside the tensors: `step` whole steps are done, `stream` says what was delivered by then."""

    step: int = 0
    stream: dict[str, Any] = field(default_factory=dict)  # shards.loading.state.StreamState as JSON
    classes: list[str] = field(default_factory=list)
    chain: dict[str, str] = field(default_factory=dict)  # the ends of both chains at `step` (xfer/chain.py)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: TrainState

    @property
    def weights_sha256(self) -> str:
        return sha256_of(self.path / WEIGHTS)

    def model(self) -> dict[str, Tensor]:
        return load_file(self.path / WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        return load_file(self.path / "optimizer.safetensors")


def write_checkpoint(
    folder: Path,
    state: TrainState,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    keep: int = 2,
    steps: Collection[int] = (),
) -> Path:
    """Writes `<folder>/step-<n>` and removes others as `prune` does. Returns its path. Raises OSError if it cannot."""
    final = folder / checkpoint_name(state.step)
    remove_stale_drafts(folder)
    with whole_folder(final) as draft:
        save_file(dict(model), draft / WEIGHTS)
        save_file(dict(optimizer), draft / "optimizer.safetensors")
        (draft / "state.json").write_text(json.dumps(asdict(state)))
        write_manifest(draft, {"format": FORMAT})
    prune(folder, keep, steps)
    return final


def prune(folder: Path, keep: int, steps: Collection[int] = ()) -> None:
    """Removes all checkpoints but the newest `keep`, step 0, which pretrained runs began with, the chosen one, and
    those of `steps`.
    """
    kept = {START, chosen(folder), *map(checkpoint_name, steps)}
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        if old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)


def remove_stale_drafts(folder: Path) -> None:
    """Removes what writers left half-written that were killed."""
    remove_drafts(folder, rf"{PREFIX}\d+")


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None if there is none. Reads and hashes every file of the one it returns."""
    return find_checkpoint(folder)[0]


def choose(folder: Path, step: int | None) -> None:
    """Makes the checkpoint of a step the model of its run; None: the newest one."""
    path = folder / CHOSEN
    if step is None:
        path.unlink(missing_ok=True)
    elif chosen(folder) != checkpoint_name(step):
        write_text(path, checkpoint_name(step))


def chosen(folder: Path) -> str | None:
    """The name of the checkpoint that was chosen; None: the newest one is the model."""
    try:
        return (folder / CHOSEN).read_text()
    except FileNotFoundError:
        return None


def model_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that is the model of a run: the chosen one, or the newest one that is whole. None if there is
    none; and what is wrong with others that would come first, a line for each file.
    """
    name, faults = chosen(folder), []
    if name is not None:
        faults = damage(folder / Path(name).name)
        if not faults:
            return _read(folder / name), []
    found, others = find_checkpoint(folder)
    return found, [*faults, *others]


def start_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of step 0. Raises ConfigError if that checkpoint is gone or damaged."""
    if faults := damage(folder / START):
        needed = "transfer.l2_sp and transfer.wise_ft need the weights of step 0"
        raise ConfigError([*faults, needed], folder.parent)
    return _read(folder / START).model()


def find_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """As `latest_checkpoint`; and what is wrong with newer ones, a line for each file."""
    faults: list[str] = []
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        found = damage(path)
        if not found:
            return _read(path), faults
        faults += found
    return None, faults


def _read(path: Path) -> Checkpoint:
    return Checkpoint(path, TrainState(**json.loads((path / "state.json").read_text())))


def write_manifest(folder: Path, extra: Mapping[str, Any]) -> None:
    """`manifest.json`: size and sha256 of every file of `folder`, and `extra`."""
    files = {p.name: describe_file(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({**extra, "files": files}, indent=1))


def describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def sha256_of(file: Path) -> str:
    """Of a file, by the manifest beside it."""
    return read_json(file.parent / "manifest.json")["files"][file.name]["sha256"]


def damage(folder: Path) -> list[str]:
    """What is wrong with a folder that has a manifest: a line for each file; empty if it is whole."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / 'manifest.json'}: not readable ({type(error).__name__})"]
    faults = []
    for name, expected in files.items():
        path = folder / name
        if Path(name).name != name:
            faults.append(f"{name!r} in {folder}/manifest.json: not a plain file name")
        elif not path.is_file():
            faults.append(f"{path}: missing")
        elif describe_file(path) != expected:
            faults.append(f"{path}: its size or sha256 is not what the manifest says")
    return faults
