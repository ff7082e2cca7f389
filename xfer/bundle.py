"""The shipped model: a folder that loads without Ray, DeepSpeed, the training data or a pickle.

    bundle/weights.safetensors   packed codes, scales, biases (xfer/quant/pack.py)
           recipe.yaml           model section of the recipe, and what the images look like
           labels.yaml           the class names, in the order of the logits
           bits.yaml             storage bits of each layer, 32 for float: what `quantize --bits-file` takes
           card.md               where it comes from, what it weighs, how good it is
           manifest.json         size and sha256 of every file: the bundle is whole or refused; which images what
                                 its card says was chosen and measured on
           model.onnx, ...       what `xfer export` added

`open_model` reads a bundle or a run folder alike.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from shards.format.whole import read_json, whole_folder
from shards.loading.frame import Resize
from shards.settings import ConfigError, Strict, dump, load
from xfer.checkpoint import Checkpoint, damage, model_checkpoint, sha256_of, start_weights, write_manifest
from xfer.config import Recipe
from xfer.model import FusionModel, build_model
from xfer.model_config import ModelConfig
from xfer.optimizer import between
from xfer.quant.bits import FLOAT, layers
from xfer.quant.cost import predicted_bytes, sizes_of
from xfer.quant.fold import fold
from xfer.quant.keep import keep, kept
from xfer.quant.pack import pack, unpack
from xfer.quant.weights import Codes, Quantized
from xfer.tasks.known import task_of
from xfer.trained_on import TrainedOn, read_entries, without_folder

FORMAT = 1
FILES = frozenset({"weights.safetensors", "recipe.yaml", "labels.yaml", "bits.yaml", "card.md"})
LATER = frozenset({"bits.yaml"})  # older bundles lack it
ADDED = frozenset({"model.onnx", "model.int8.onnx", "decode.py"})
"""Files that a bundle may have beside these: other forms of its weights (xfer/export)."""


class BundleRecipe(Strict):
    """What is needed to rebuild the model and prepare an image for it."""

    name: str
    image_size: int
    resize: Resize = "centre"
    model: ModelConfig
    trained_on: tuple[TrainedOn, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Of a model that was not trained here. weights: where they come from, in words; labelled: whether the classes of
    its images are known; if not, they are what the model itself says, and what is measured is agreement with it.
    """

    weights: str
    labelled: bool

    @property
    def held_out(self) -> str:
        """The images that a packed model is compared on, in words."""
        of = "" if self.labelled else ", with the answers in float"
        return f"images that nothing was calibrated on{of}"

    @property
    def measure(self) -> str:
        return "accuracy" if self.labelled else "agreement"


@dataclass(frozen=True)
class Trained:
    """A model ready for use, in evaluation mode. `codes`: of the layers that are packed, for a bundle, or that will be,
    for a run with transfer.mode: quant; such a model is folded. None: a run in float32. `dropped`: weights by name
    of the branches that the run was trained with and its model is without (model.fusion.prune). `origin`: of a model
    that was trained elsewhere.
    """

    path: Path
    weights_file: Path
    name: str
    model: FusionModel
    classes: tuple[str, ...]
    image_size: int
    resize: Resize = "centre"
    codes: Mapping[str, Codes] | None = None
    dropped: Mapping[str, float] = field(default_factory=dict)
    origin: Origin | None = None

    @property
    def bits(self) -> dict[str, int] | None:
        """Storage bits by layer; None: in float32."""
        return None if self.codes is None else {name: codes.bits for name, codes in self.codes.items()}

    @property
    def measure(self) -> str:
        """By what it is compared with what is packed of it."""
        return self.origin.measure if self.origin else task_of(self.model.task).measure

    @property
    def form(self) -> str:
        """In what form its weights are, in words."""
        if self.bits is None:
            return "float32"
        return f"{min(self.bits.values())} to {max(self.bits.values())} bits" if "head" in self.bits else "head float32"

    @property
    def weights_sha256(self) -> str:
        """By the manifest beside the weights file."""
        return sha256_of(self.weights_file)

    @property
    def weights_bytes(self) -> int:
        """Size of the weights file on disk."""
        return os.path.getsize(self.weights_file)


def open_model(path: str | Path) -> Trained:
    """The model of a run folder (its newest checkpoint) or of a bundle. Raises ConfigError if it is neither or
    damaged.
    """
    path = Path(path)
    if is_bundle(path):
        return _open_bundle(path)
    checkpoint = _checkpoint(path)
    recipe, classes = load(path / "recipe.yaml", Recipe), checkpoint.state.classes
    model = restore(recipe, len(classes), handed_over(recipe, checkpoint)).eval()
    dropped = model.drop_below(recipe.model.fusion.prune)
    packed = recipe.transfer.mode == "quant"
    codes = {name: one for name, one in kept(model).items() if one} if packed else None
    weights = checkpoint.path / "model.safetensors"
    size, resize = recipe.data.image_size, recipe.data.resize
    return Trained(path, weights, recipe.name, model, tuple(classes), size, resize, codes, dropped)


def dropped_text(trained: Trained) -> str:
    """Which branches the model of a run is without, in words; empty if it has all."""
    gone = ", ".join(f"{name} (weight {w:.3f})" for name, w in trained.dropped.items())
    left = ", ".join(trained.model.branches)
    return f"left out of the model, for its weight is below model.fusion.prune: {gone}; it has {left}" if gone else ""


def classes_of(path: str | Path) -> tuple[str, ...]:
    """The classes of a run or a bundle, whose model is not loaded. Raises ConfigError as `open_model` does."""
    path = Path(path)
    return _bundle_classes(path) if is_bundle(path) else tuple(_checkpoint(path).state.classes)


def _checkpoint(path: Path) -> Checkpoint:
    """That of the model of a run. Raises ConfigError."""
    if (path / "weights.safetensors").is_file() and (path / "recipe.yaml").is_file():
        raise ConfigError(f"{path}: a bundle whose manifest.json is missing or damaged; copy or make it again")
    if (path / "recipe.yaml").is_file():
        checkpoint, lost = model_checkpoint(path / "checkpoints")
        if checkpoint is None and (path / "bundle").is_dir():
            raise ConfigError(f"{path}: this is a study; the model it chose is {path / 'bundle'}")
        if checkpoint is None and lost:
            raise ConfigError(lost, f"{path}: no checkpoint is whole")
        if checkpoint is None:
            raise ConfigError(f"{path}: this run has no whole checkpoint yet; run its training command again")
        for fault in lost:
            print(f"note: passed over, taking step {checkpoint.state.step}: {fault}", file=sys.stderr)
        return checkpoint
    if (path / "seeds").is_dir():
        raise ConfigError(f"{path}: runs of several seeds; give one of them, such as {path / 'seeds' / '0'}")
    what = "no such folder" if not path.exists() else "neither a run folder (recipe.yaml) nor a bundle (manifest.json)"
    raise ConfigError(f"{path}: {what}")


def handed_over(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What a run's checkpoint gives its model: its weights, mixed with those of step 0 if transfer.wise_ft says so; but
    not the fusion's weight vector, which is chosen or learned by itself.
    """
    tensors, share = checkpoint.model(), recipe.transfer.wise_ft
    if share == 1:
        return tensors
    start = start_weights(checkpoint.path.parent)
    mixed = {name: value for name, value in tensors.items() if value.is_floating_point() and name != "fusion.alpha"}
    return tensors | {name: between(start[name], value, share) for name, value in mixed.items()}


def restore(recipe: Recipe, num_classes: int, tensors: Mapping[str, Tensor]) -> FusionModel:
    """The model of a run's checkpoint; with transfer.mode: quant it is folded, and its body keeps its codes."""
    model = build_model(recipe.model, num_classes, 0, load_weights=False)
    if recipe.transfer.mode == "quant":
        model = fold(model)
        assert isinstance(model, FusionModel)
        keep(model, dict.fromkeys(body(model)))
    model.load_state_dict(tensors)
    return model


def body(model: FusionModel) -> list[str]:
    """The layers of branches and projections: all that can be packed, but for the head."""
    return [name for name in layers(model) if name.split(".")[0] != "head"]


def trained_on(path: Path) -> list[TrainedOn]:
    """What the model of a run or a bundle was trained on, and those that it began with; empty if that is not known, as
    of a run that has not begun. A bundle in its run's folder knows from there where the data was. Raises ConfigError.
    """
    if not is_bundle(path):
        return read_entries(path)
    beside = {str(without_folder(one)): one for one in read_entries(path.absolute().parent)}
    found = load(path / "recipe.yaml", BundleRecipe).trained_on
    return [beside.get(str(one), one) for one in found]


def weights_sha256(path: Path) -> str | None:
    """Of the weights that a run or a bundle has now, by its manifest, without loading them; None if there are none."""
    if is_bundle(path):
        return sha256_of(path / "weights.safetensors")
    checkpoint, _ = model_checkpoint(path / "checkpoints")
    return checkpoint.weights_sha256 if checkpoint else None


def is_bundle(folder: Path) -> bool:
    """Whether a folder is one of our bundles, whole or damaged: its manifest says so. The names of its files alone say
    nothing: other people have a labels.yaml too.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return False
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return isinstance(files, dict) and (files.keys() | LATER) - ADDED == FILES and "format" in manifest


def check_replaceable(folder: Path) -> None:
    """Raises ConfigError unless a bundle may be written to `folder`: nothing is there, an empty folder, or a bundle of
    ours with nothing else in it.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ConfigError(f"{folder}: exists and is no bundle; it is left alone, give another folder")
    there = {path.name for path in folder.iterdir()}
    if there and not is_bundle(folder):
        raise ConfigError(f"{folder}: exists and is no bundle; it is left alone, give another folder")
    foreign = sorted(there - FILES - ADDED - {"manifest.json", "__pycache__"})  # Python's, of a decode.py that was used
    if foreign:
        raise ConfigError(
            f"{folder}: beside the bundle there lies {', '.join(foreign[:5])}, which replacing it would remove; "
            "move it away, or give another folder"
        )


def add_files(folder: Path, files: Mapping[str, Callable[[Path], Any]]) -> None:
    """Gives a bundle files of `ADDED`, by name what writes each: all of them, or the bundle is as it was. Raises
    ConfigError if it is not whole, or something else lies in its folder; OSError.
    """
    assert files.keys() <= ADDED
    check_replaceable(folder)
    if faults := damage(folder):
        raise ConfigError(faults, f"{folder} is not whole")
    listed = read_json(folder / "manifest.json")
    with whole_folder(folder) as draft:
        for name in listed["files"].keys() - files.keys():
            shutil.copyfile(folder / name, draft / name)
        for name, write in files.items():
            write(draft / name)
        write_manifest(draft, {key: value for key, value in listed.items() if key != "files"})


def _bundle_classes(path: Path) -> tuple[str, ...]:
    """Raises ConfigError if the bundle is not whole."""
    if faults := damage(path):
        raise ConfigError(faults, f"{path} is not whole")
    return tuple(yaml.safe_load((path / "labels.yaml").read_text())["classes"])


def _open_bundle(path: Path) -> Trained:
    classes, recipe = _bundle_classes(path), load(path / "recipe.yaml", BundleRecipe)
    model = fold(build_model(recipe.model, len(classes), 0, load_weights=False))
    assert isinstance(model, FusionModel)
    weights = path / "weights.safetensors"
    try:
        codes = unpack(weights, model).codes
    except ValueError as error:
        raise ConfigError(str(error), path) from None
    return Trained(path, weights, recipe.name, model, classes, recipe.image_size, recipe.resize, codes)


def write_bundle(
    folder: Path,
    recipe: Recipe,
    trained: Trained,
    quantized: Quantized,
    extra: Mapping[str, Any],
    card: str,
    about: Mapping[str, Any],
) -> Path:
    """Writes the bundle of a run under a temporary name and puts it in place of an older one. Returns `folder`. extra:
    what the weights file says beside the weights; about: the manifest beside the files.

    Raises ConfigError if something that is not a bundle lies there.
    """
    check_replaceable(folder)  # once more: quantizing took a while
    # Where weights came from on the training machine is nobody's business later.
    there = {name: b for name, b in recipe.model.branches.items() if name in trained.model.branches}
    branches = {name: b.model_copy(update={"weights": None}) for name, b in there.items()}
    fusion = recipe.model.fusion
    if fusion.learn or fusion.prune:  # what was learned, or is left, stands where weights that are given do
        left = {"learn": None, "prune": None, "weights": trained.model.fusion_weights}
        fusion = fusion.model_copy(update=left)
    model = recipe.model.model_copy(update={"branches": branches, "from_": None, "fusion": fusion})
    seen = tuple(without_folder(one) for one in trained_on(trained.path))
    described = BundleRecipe(
        name=recipe.name, image_size=recipe.data.image_size, resize=recipe.data.resize, model=model, trained_on=seen
    )
    with whole_folder(folder) as draft:
        coded = recipe.quantize.coded
        pack(quantized, draft / "weights.safetensors", dict(extra), coded)
        (draft / "recipe.yaml").write_text(dump(described))
        (draft / "labels.yaml").write_text(yaml.safe_dump({"classes": list(trained.classes)}, allow_unicode=True))
        (draft / "bits.yaml").write_text(yaml.safe_dump(all_bits(quantized), sort_keys=False))
        (draft / "card.md").write_text(card)
        _check_size(draft / "weights.safetensors", quantized, extra, recipe.quantize.budget, coded)
        write_manifest(draft, {"format": FORMAT, **about})
    return folder


def all_bits(quantized: Quantized) -> dict[str, int]:
    """Storage bits of every layer, 32 for float."""
    return {name: codes.bits if (codes := quantized.codes.get(name)) else FLOAT for name in layers(quantized.model)}


def _check_size(file: Path, quantized: Quantized, extra: Mapping[str, Any], budget: int | None, coded: bool) -> None:
    """The file is as large as was foretold, and no larger than it may be."""
    sizes = sizes_of(quantized.codes) if coded else None
    found, foretold = os.path.getsize(file), predicted_bytes(quantized.model, all_bits(quantized), extra, sizes)
    if abs(found - foretold) > 1e-3 * foretold or (budget is not None and found > budget):
        allowed = "" if budget is None else f", {budget:,} were allowed"
        raise RuntimeError(f"{file.name} has {found:,} bytes, {foretold:,} were foretold{allowed}; nothing is written")
