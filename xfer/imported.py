"""A ResNet that was trained elsewhere as a run of ours, so that every verb that packs a run packs it too.

Its state dict becomes the branch `main` of a model of one branch, which is not projected, and its `fc` the head: the
same numbers, to rounding, as the network gives with its own classifier, and this is tried before anything else. The
images become shards of a temporary folder, so calibration, search and report are cut from them as from any source.
Nothing is trained here. Images without classes are labelled by what the model says of them: what is measured then is
how often the packed model says the same.
"""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shards.format.fields import read_classes
from shards.format.manifest import manifest_path, splits_in
from shards.format.whole import write_text
from shards.ingest.build import build
from shards.loading.open import open_data
from shards.progress import progress
from shards.settings import ConfigError, dump, parse, read_overrides
from shards.sources import SourceOptions
from shards.sources import files as source_files
from shards.sources.folder import open_folder
from xfer.backbone import BACKBONES, MEAN, STD, differences, read_weights
from xfer.bundle import Origin, Trained, open_model
from xfer.checkpoint import TrainState, describe_file, write_checkpoint
from xfer.config import Recipe
from xfer.evaluate import named_data
from xfer.model import FusionModel, build_model
from xfer.model_config import IMAGENET_SIZE, RESNETS, TIMM
from xfer.predict import image_files, predictions
from xfer.timm_branch import whole_network

BRANCH = "main"
SOURCE = "images"  # the name of the one source
HALF = 0.5  # of the images is for calibration, the rest to measure on, unless data.validation says otherwise
TOLERANCE = 1e-4  # of the largest logit
OVERRIDES = (
    "name",
    "quantize",
    "data.image_size",
    "data.resize",
    "data.validation",
    "data.batch_size",
    "data.workers",
    "data.seed",
    "data.augment",
    "train.precision",
)
"""What of the recipe that is made here can be changed: the rest follows from the weights and the images."""


@contextmanager
def imported(
    weights: Path, arch: str, images: Path, classes: str | None, overrides: Sequence[str]
) -> Iterator[tuple[Trained, Recipe]]:
    """The model of `weights`, a state dict of the network `arch`, as a run whose data are `images`: class folders, a
    folder of images, or a built data set. It is there inside the block. classes: names of the rows of its classifier,
    as `read_classes` takes them. Raises ConfigError.
    """
    try:
        network, classifier, state = _network(weights, arch)
    except ValueError as error:
        raise ConfigError(f"--weights {error}") from None
    rows = state[f"{classifier}.weight"].shape[0]
    names = read_classes(classes)
    if names and len(names) != rows:
        raise ConfigError(f"--classes: must name the {rows} rows of {classifier}, got {len(names)} names")
    found, names = _classes(images, names, rows, classifier)
    with TemporaryDirectory(prefix="xfer-import-") as folder:
        recipe = _recipe(Path(folder), arch, images, overrides)
        _write_run(recipe, names, _model(recipe, network, classifier, state, Path(folder)))
        digest = describe_file(weights)["sha256"][:12]
        origin = Origin(f"{weights.name} (sha256 {digest}...), a {arch}", labelled=found is not None)
        trained = replace(open_model(recipe.folder), origin=origin)
        if not _is_built(images):
            pairs = found if found is not None else _answers(trained, images)
            _build(Path(folder), images, pairs, names)
        yield trained, recipe


def _network(path: Path, arch: str) -> tuple[nn.Module, str, dict[str, Tensor]]:
    """The network with its classifier, the name of that, and the tensors of the file by the network's names. Raises
    ValueError.
    """
    if arch not in RESNETS and not (arch.startswith(TIMM) and arch != TIMM):
        raise ConfigError(f"--arch: must be {', '.join(RESNETS)}, or {TIMM}NAME of a network of timm, got {arch}")
    state = {name: value.float() if value.is_floating_point() else value for name, value in read_weights(path).items()}
    network, classifier = (BACKBONES[arch](), "fc") if arch in RESNETS else whole_network(arch)
    weight = state.get(f"{classifier}.weight")
    if weight is None or weight.dim() != 2:
        known = f"; it has {', '.join(sorted(state)[-3:])}" if state else "; it is empty"
        fitting = "" if arch not in RESNETS else _fitting(state, classifier)
        raise ValueError(f"{path}: has no {classifier}.weight, the classifier of a {arch}{fitting or known}")
    if len(weight) < 2:
        raise ValueError(f"{path}: {classifier}.weight has {len(weight)} row, a classifier needs two classes or more")
    before = network.get_submodule(classifier)
    assert isinstance(before, nn.Linear)
    network.set_submodule(classifier, nn.Linear(before.in_features, len(weight)))
    own = network.state_dict()
    if faults := differences(own, state):
        raise ValueError(f"{path}: not the weights of a {arch}: {'; '.join(faults)}{_fitting(state, classifier, arch)}")
    if broken := [name for name, value in state.items() if not bool(value.isfinite().all())]:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(f"{path}: not finite: {broken[0]}{more}; there is nothing to round")
    state = {**{name: value for name, value in own.items() if name.endswith("num_batches_tracked")}, **state}
    network.load_state_dict(state)
    return network.eval(), classifier, state


def _fitting(state: dict[str, Tensor], classifier: str, arch: str = "") -> str:
    """Which of our ResNets, `arch` apart, these weights are of, in words; empty if of none. Only shapes are made."""
    body = {name: value for name, value in state.items() if not name.startswith(f"{classifier}.")}
    for name in RESNETS:
        with torch.device("meta"):
            own = {n: v for n, v in BACKBONES[name]().state_dict().items() if not n.startswith("fc.")}
        if name != arch and not differences(own, body):
            return f"; they are those of a {name}" + ("" if f"{classifier}.weight" in state else ", without its fc")
    return ""


def _classes(
    images: Path, names: tuple[str, ...], rows: int, classifier: str
) -> tuple[list[tuple[str, str]] | None, tuple[str, ...]]:
    """Files below `images` with their classes, None if these are not known, and the names of all rows. Of a built data
    set, which has both, no files. Raises ConfigError.
    """
    if _is_built(images):
        (subset,) = open_data(named_data([str(images)], IMAGENET_SIZE, option="--images")).train
        there = subset.classes
        if not names and len(there) != rows:
            raise ConfigError(_unequal(images, "classes", len(there), rows, classifier))
        if names and (unknown := sorted(set(there) - set(names))):
            raise ConfigError(f"--images {images}: its classes {', '.join(unknown[:5])} are none of --classes")
        return [], names or tuple(there)
    if not images.is_dir():
        raise ConfigError(f"--images {images}: {'is no folder' if images.exists() else 'no such folder'}")
    if not any(one.is_dir() and not source_files.is_hidden(one.name) for one in images.iterdir()):
        image_files([images])  # raises if there are none
        return None, names or tuple(f"class {row}" for row in range(rows))
    folder = open_folder(images, SourceOptions(kind="folder"))
    there = folder.classes
    if names and set(there) <= set(names):
        said = there
    elif len(there) == rows:
        said = names or there
    else:
        raise ConfigError(_unequal(images, "class folders", len(there), rows, classifier))
    pairs = [(str(item.payload["image"]), said[item.label]) for item in folder.items()]
    return pairs, names or there


def _is_built(images: Path) -> bool:
    """Whether it is a data set of `xfer shards build`, or a split of one."""
    return bool(splits_in(images)) or manifest_path(images.absolute().parent, images.name).is_file()


def _unequal(images: Path, what: str, count: int, rows: int, classifier: str) -> str:
    return (
        f"--images {images}: has {count} {what}, and {classifier} has {rows} rows; without a folder for each row, give "
        "the names of all rows in order with --classes FILE, of which the folders have some; images without classes "
        "lie in a folder without sub-folders"
    )


def _recipe(folder: Path, arch: str, images: Path, overrides: Sequence[str]) -> Recipe:
    """Raises ConfigError, for changes to what follows from weights and images among other faults."""
    foreign = [one for one in overrides if not _may_change(one.split("=")[0])]
    if foreign:
        given = ", ".join(one.split("=")[0] for one in foreign)
        raise ConfigError(f"{given}: follows from --weights and --images; {', '.join(OVERRIDES)} can be changed")
    source: dict[str, Any] = {"path": SOURCE}
    if _is_built(images):
        (one,) = named_data([str(images)], IMAGENET_SIZE, option="--images").sources.values()
        source = {"path": one.path, "split": one.split}
    values = {
        "name": arch.replace("/", "-").replace(".", "-"),
        "output": str(folder),
        "data": {
            "root": str(folder),
            "sources": {SOURCE: source},
            "validation": HALF,
            "image_size": IMAGENET_SIZE,
            "workers": 0,
        },
        "model": {"branches": {BRANCH: {"backbone": arch}}, "fusion": {"width": None}},
    }
    return parse(values, Recipe, *read_overrides(overrides))


def _may_change(path: str) -> bool:
    return any(path == one or path.startswith(f"{one}.") for one in OVERRIDES)


def _model(recipe: Recipe, network: nn.Module, classifier: str, state: dict[str, Tensor], folder: Path) -> FusionModel:
    """With the weights of the network. Raises ConfigError if it says something else."""
    arch = recipe.model.branches[BRANCH].backbone
    head = network.get_submodule(classifier)
    model = build_model(recipe.model, len(state[f"{classifier}.weight"]), 0, load_weights=False)
    if head.in_features != model.head.in_features:
        raise ConfigError(_other_reading(arch, f"{head.in_features} channels, the map has {model.head.in_features}"))
    file = folder / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    try:
        model.branches[BRANCH].load_weights(file)  # type: ignore[operator]
    finally:
        file.unlink()
    model.head.load_state_dict(head.state_dict())
    difference = _difference(model.eval(), network, recipe.data.image_size)
    if not difference <= TOLERANCE:
        raise ConfigError(_other_reading(arch, f"the logits differ by {difference:.1e} of the largest"))
    return model


def _other_reading(arch: str, how: str) -> str:
    return (
        f"--arch {arch}: its classifier reads something else than the mean of the last map over its pixels ({how}); "
        "such networks cannot be taken over"
    )


@torch.inference_mode()
def _difference(model: FusionModel, network: nn.Module, size: int) -> float:
    """Of the logits for two images of noise, over the largest; `network` gets them normalised as it was trained."""
    about = getattr(network, "pretrained_cfg", {"mean": MEAN, "std": STD})
    mean, std = (torch.tensor(about[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    images = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0))
    expected = network((images / 255 - mean) / std)
    return float((model(images) - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _write_run(recipe: Recipe, names: Sequence[str], model: FusionModel) -> None:
    recipe.folder.mkdir(parents=True)
    write_text(recipe.folder / "recipe.yaml", dump(recipe))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_checkpoint(recipe.folder / "checkpoints", TrainState(0, {}, list(names)), tensors, {}, keep=1)


def _answers(trained: Trained, images: Path) -> Iterator[tuple[str, str]]:
    """Files below `images` with what the model says of each; those that cannot be read are left to the build."""
    paths = image_files([images])
    with progress("answers in float", len(paths), "images") as advance:
        for path, answer in predictions(trained, paths):
            said = 0 if isinstance(answer, str) else int(answer.argmax())  # type: ignore[union-attr]
            yield path.relative_to(images).as_posix(), trained.classes[said]
            advance()


def _build(folder: Path, images: Path, pairs: Iterable[tuple[str, str]], names: Sequence[str]) -> None:
    """The shards, from a table of files and classes."""
    table = folder / "images.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        writer.writerows(pairs)
    options = SourceOptions(kind="table", images=images.absolute(), image="image", label="label", classes=tuple(names))
    report = build(table, folder / SOURCE, options, name=SOURCE)
    if report.refused:
        print(
            f"note: {len(report.refused)} images are left out, such as {': '.join(report.refused[0])}", file=sys.stderr
        )
