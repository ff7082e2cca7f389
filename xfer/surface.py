"""`xfer.fit` and `xfer.load`: a run and a model for a script or a notebook, by the same functions as the verbs'."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from shards.decode import DecodeError
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.transforms import Pixels, squared, whole
from shards.settings import ConfigError, parse, replace
from shards.settings import load as load_yaml
from xfer import run as runs
from xfer.begin import begin, features_folder
from xfer.bundle import Trained, open_model
from xfer.checkpoint import latest_checkpoint
from xfer.config import Recipe, with_widths
from xfer.engine import build_engine
from xfer.evaluate import evaluate_subsets
from xfer.folds import prepare_folds, quantize_run, train_folds
from xfer.follow import follow
from xfer.history import last_step, left_out_scores, read_metrics
from xfer.metrics import Estimate
from xfer.model import FusionModel
from xfer.predict import answers_to
from xfer.prepare import load_document, prepare
from xfer.report.run import write_run_report
from xfer.seeds import RESULT, check_not_seeded, read_seeds, seed_folder, train_seeds
from xfer.side import Said
from xfer.tasks.known import task_of

Picture = str | Path | np.ndarray | Tensor | Image.Image
"""An image: a file, uint8 [H, W, 3] (NumPy), uint8 [3, H, W] (torch), or PIL's."""


class Model:
    """A model ready for use: of a run or of a bundle, in evaluation mode.

    model: the nn.Module, uint8 or float images [B, 3, S, S] of 0 to 255 -> logits [B, K] of a classifier, or what its
    head gives (`xfer/heads/`); classes: the K names in the order of the logits; image_size: S; bits: storage bits by
    layer, None for a run.
    """

    def __init__(self, trained: Trained):
        self._trained = trained
        self.path, self.classes, self.image_size = trained.path, trained.classes, trained.image_size
        self.model: FusionModel = trained.model
        self.bits = trained.bits
        self.weights_bytes = trained.weights_bytes

    def predict(
        self,
        images: Picture | Iterable[Picture],
        top: int = 3,
        side: Said | Sequence[Said] | None = None,
    ) -> list[Any]:
        """Of each image what the model says. A classifier: its `top` classes with their probabilities, best first. A
        detector: `Detections` of at most 100 boxes float32 [n, 4] in pixels of the image, scores [n], labels [n], best
        first. A segmenter: the class index of each pixel, uint8 [H, W].

        `side`: side inputs by field, of the image or of each; for a model that takes them (`model.side`). Raises
        ConfigError for what is no image, naming its place; OSError and DecodeError for files.
        """
        if top < 1:
            raise ConfigError(f"top: must be at least 1, got {top}")
        one = isinstance(images, (str, Path, np.ndarray, Tensor, Image.Image)) or not isinstance(images, Iterable)
        several: list[Any] = [images] if one else list(cast(Iterable[Picture], images))
        said = [None] * len(several) if side is None else [side] if isinstance(side, Mapping) else list(side)
        if side is not None and self.model.side is None:
            raise ConfigError(f"side: {self.path} takes no side inputs (model.side), and sees images alone")
        if len(said) != len(several):
            raise ConfigError(f"side: must be one mapping for each of {len(several)} images, got {len(said)}")
        pairs = zip(several, said, strict=True)
        return [self._answer(one, at, top, beside) for at, (one, beside) in enumerate(pairs)]

    def _answer(self, image: Picture, at: int, top: int, said: Said | None = None) -> Any:
        size, resize, task = self.image_size, self._trained.resize, task_of(self.model.task)
        if isinstance(image, (str, Path)):
            try:
                seen = whole(Path(image).read_bytes(), size, resize)
            except DecodeError as error:
                raise DecodeError(f"{image}: {error}") from None
        else:
            given = _pixels(image, at)
            seen = Pixels(squared(given, size, resize), original=(given.shape[1], given.shape[0]))
        (answer,) = answers_to(self._trained, [seen], None if said is None else [said])
        return answer if task.sees_whole else task.plain(answer, self.classes, top)

    def __repr__(self) -> str:
        kind = "float32" if self.bits is None else f"{min(self.bits.values())} to {max(self.bits.values())} bits"
        size = f"{self.weights_bytes / 1e6:.2f} MB"
        return f"Model({str(self.path)!r}, {len(self.classes)} classes, {self.image_size} px, {kind}, {size})"


class Run:
    """A run folder."""

    def __init__(self, folder: str | Path):
        """Raises ConfigError if there is no run in the folder."""
        self.folder = Path(folder)
        self.recipe = load_yaml(self.folder / "recipe.yaml", Recipe)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_metrics(self.folder)

    @property
    def left_out(self) -> dict[str, dict[str, Any]]:
        """With data.validation: leave_one_source_out, the score on each source of the run that never saw it: correct,
        count, accuracy, interval, per_class, not_counted, steps. Empty otherwise.
        """
        return left_out_scores(self.folder)

    @property
    def model(self) -> Model:
        """The model of the newest checkpoint."""
        return load(self.folder)

    def evaluate(self, split: str = "validation") -> dict[str, Any]:
        """Scores by source on the `validation` or the `test` part of the run's data. Nothing is recorded."""
        if split not in ("validation", "test"):
            raise ConfigError(f"split: must be validation or test, got {split!r}")
        trained, data = open_model(self.folder), open_data(self.recipe.data)
        subsets = data.validation if split == "validation" else data.test
        if not subsets:
            raise ConfigError(f"{self.folder}: its recipe has no {split} data to evaluate on")
        return evaluate_subsets(trained.model, subsets, self.recipe.data, trained.classes, f"evaluate {split}")

    def quantize(
        self,
        bits: int | None = None,
        groups: Mapping[str, int] | None = None,
        out: str | Path | None = None,
        *,
        budget: int | str | None = None,
        max_drop: float | None = None,
        layers: Mapping[str, int] | None = None,
        finish: int | None = None,
    ) -> Model:
        """Writes a bundle and returns its model, read back; its card says what that costs in accuracy.

        `bits` and `groups`, `budget`, `max_drop` or `layers`, and `finish`, as in the recipe's section `quantize`; none
        of them: as the recipe says. `out`: where it goes; None: <folder>/bundle. Raises ConfigError.
        """
        ways = {"bits": bits, "groups": groups, "budget": budget, "max_drop": max_drop, "layers": layers}
        recipe = with_widths(self.recipe, {name: value for name, value in ways.items() if value is not None})
        recipe = recipe if finish is None else replace(recipe, {"quantize.finish": finish})
        return Model(quantize_run(open_model(self.folder), recipe, Path(out or self.folder / "bundle")).bundle)

    def predict(
        self, images: Picture | Iterable[Picture], top: int = 3, side: Said | Sequence[Said] | None = None
    ) -> list[Any]:
        """As `Model.predict`."""
        return self.model.predict(images, top, side)

    def report(self) -> Path:
        """Writes report.html into the run's folder, as `xfer report` does; its path."""
        return write_run_report(self.folder)

    def __repr__(self) -> str:
        rows = self.metrics
        return f"Run({str(self.folder)!r}, {rows[-1]['step'] if rows else 0} of {last_step(self.recipe)} steps)"


class Seeds:
    """The runs of one recipe with several seeds, and what they come to."""

    def __init__(self, folder: str | Path):
        """Raises ConfigError if there are no such runs in the folder."""
        self.folder, found = Path(folder), read_seeds(Path(folder))
        if not found:
            raise ConfigError(
                f"{folder}: no {RESULT} here, so no runs of several seeds; train them with xfer fit --seeds"
            )
        self.seeds = [Run(seed_folder(self.folder, k)) for k in found["seeds"]]

    @property
    def means(self) -> dict[str, dict[str, Estimate]]:
        """By validation source, and for the `mean of sources`: mean over seeds and its 95 % interval of accuracy, and
        of probe and gain if the runs began as linear probes.
        """
        sources = read_seeds(self.folder)["sources"]
        return {name: {what: Estimate(*each) for what, each in means.items()} for name, means in sources.items()}

    def report(self) -> Path:
        """Writes report.html into the folder, as `xfer report` does; its path."""
        return write_run_report(self.folder)

    def __repr__(self) -> str:
        return f"Seeds({str(self.folder)!r}, {len(self.seeds)} runs)"


Given = str | Path | Mapping[str, Any] | Recipe


@overload
def fit(recipe: Given, overrides: Mapping[str, Any] | Sequence[str] = (), quiet: bool = False) -> Run: ...


@overload
def fit(
    recipe: Given, overrides: Mapping[str, Any] | Sequence[str] = (), quiet: bool = False, *, seeds: int
) -> Seeds: ...


def fit(
    recipe: Given,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    quiet: bool = False,
    *,
    seeds: int | None = None,
) -> Run | Seeds:
    """Trains a recipe in this process, from its newest checkpoint on: what `xfer fit` does. With data.validation:
    leave_one_source_out, the runs that leave a source out come first.

    `recipe`: a YAML file, its values, or a Recipe. `overrides`: values by dotted path, or `path=value` texts. `seeds`:
    that many runs, which differ in their seeds only. Raises ConfigError with every fault.
    """
    config = _recipe(recipe, [overrides] if isinstance(overrides, str) else overrides)
    cache = features_folder(config)
    if seeds is not None:
        train_seeds(config, seeds, lambda one, what: _fit(one, what, quiet, cache, say=False))
        return Seeds(config.folder)
    check_not_seeded(config.folder)
    _fit(config, config.name, quiet, cache)
    return Run(config.folder)


def _fit(recipe: Recipe, what: str, quiet: bool, cache: Path, say: bool = True) -> None:
    """Trains one recipe, the runs that leave a source out first."""
    with runs.run_lock(recipe.folder):
        prepare(recipe, say=say)
        prepared = prepare_folds(recipe, say=say)
        train_folds(recipe, prepared, lambda fold, which: _train(fold, f"{what}, {which}", quiet, cache))
        _train(recipe, what, quiet, cache)


def _train(recipe: Recipe, what: str, quiet: bool, cache: Path) -> None:
    """Trains one recipe, from its newest checkpoint on."""
    if runs.all_done(recipe, what, cache=cache, quiet=quiet):
        return
    begin(recipe, cache=cache)
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    done = checkpoint.state.step if checkpoint else 0
    with nullcontext(lambda row: None) if quiet else follow(what, last_step(recipe), done) as show:
        runs.fit(recipe, Slot(), build_engine, show)


def load(path: str | Path) -> Model:
    """The model of a bundle or of a run's newest checkpoint. Raises ConfigError if it is neither, or damaged."""
    return Model(open_model(path))


def _recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Mapping[str, Any] | Sequence[str]) -> Recipe:
    if isinstance(recipe, (str, Path)):
        texts = overrides
        if isinstance(overrides, Mapping):
            texts = [f"{path}={json.dumps(value, default=str)}" for path, value in overrides.items()]
        return load_document(recipe, Recipe, list(texts))
    if not isinstance(overrides, Mapping):
        if overrides:
            raise ConfigError("overrides: with a recipe that is no file, give values by dotted path")
        overrides = {}
    return replace(recipe, overrides) if isinstance(recipe, Recipe) else parse(recipe, Recipe, overrides)


def _pixels(image: Any, at: int) -> np.ndarray:
    """uint8 [H, W, 3]."""
    given = f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}" if hasattr(image, "shape") else ""
    if isinstance(image, Image.Image):
        image = np.asarray((ImageOps.exif_transpose(image) or image).convert("RGB"))
    elif isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.ndim == 3 else image.cpu().numpy()
    sound = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not sound or not image.size:
        raise ConfigError(
            f"images[{at}]: must be a path, a PIL image, or uint8 [H, W, 3] (NumPy) or [3, H, W] (torch), got "
            f"{given or type(image).__name__}; several images are a list of them"
        )
    return image
