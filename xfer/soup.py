"""Greedy soup: the weights of several runs that began alike, averaged as long as held-out images say that it helps.

Runs are taken in the order of their held-out accuracy; each is averaged in, and kept if the mean over sources does not
get worse (Wortsman et al., Model soups, ICML 2022, recipe 1). Averages make sense only of runs that were fine-tuned
from the same weights, so all have to share their step 0. BatchNorm's statistics are not those of the averaged weights
any more: they are made again on training images (Izmailov et al., Averaging Weights Leads to Wider Optima, UAI 2018,
sec. 3.2), and the accuracy is told before and after.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from shards.format.whole import read_json, write_json, write_text
from shards.loading.few import few
from shards.loading.open import Splits, open_data
from shards.progress import progress
from shards.settings import ConfigError, dump, load, replace
from shards.text import table
from xfer.bundle import handed_over
from xfer.checkpoint import START, Checkpoint, TrainState, model_checkpoint, write_checkpoint
from xfer.config import Recipe
from xfer.evaluate import evaluate_subsets, score_row
from xfer.measure import measured
from xfer.model import FusionModel, build_model
from xfer.tasks.known import task_of
from xfer.train import Row, set_training
from xfer.trained_on import keep_entries, read_entries
from xfer.transfer.settle import settle

STATISTICS_IMAGES = 1024
RESULT = "soup.json"
_BATCH = 32


@dataclass(frozen=True)
class Ingredient:
    """A run: the checkpoint of its model, and the sha256 of the weights that it began with."""

    path: Path
    recipe: Recipe
    checkpoint: Checkpoint
    start: str

    def weights(self) -> dict[str, Tensor]:
        return handed_over(self.recipe, self.checkpoint)


@dataclass(frozen=True)
class Soup:
    """The accuracy, or what else `measure` names, on the held-out parts: of each run alone, and of the soup before and
    after BatchNorm's statistics were made again; used: the runs that are in it.
    """

    measure: str
    alone: Mapping[str, float]
    used: Sequence[str]
    before: float
    after: float

    def text(self) -> str:
        """For a terminal."""
        rows = [["run", f"{self.measure} alone", "in the soup"]]
        rows += [
            [name, f"{100 * value:.1f} %", "yes" if name in self.used else "no"] for name, value in self.alone.items()
        ]
        best = max(self.alone.values())
        won = (
            f"{len(self.used)} of {len(self.alone)} in the soup: {100 * self.after:.1f} % on the images that chose it, "
            f"{100 * (self.after - best):+.1f} points on the best run ({100 * self.before:.1f} % before BatchNorm's "
            "statistics were made again)"
        )
        return "\n".join([*table(rows), won])


def make_soup(runs: Sequence[Path], out: Path) -> Soup:
    """Writes a run folder `out`: the greedy soup of `runs`, with the recipe of the best one. Raises ConfigError with
    every reason why they cannot be averaged.
    """
    found = _ingredients(runs)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; it is left alone, give another folder")
    data = open_data(found[0].recipe.data).numbered(found[0].checkpoint.state.classes)
    if not data.validation:
        raise ConfigError(f"{found[0].path}: its recipe holds nothing out to choose by; it needs data.validation")
    model = build_model(found[0].recipe.model, len(data.classes), 0, load_weights=False)
    rows = {one.path: _score(model, one.weights(), found[0], data, f"{one.path}") for one in found}
    order = sorted(found, key=lambda one: -_accuracy(rows[one.path]))
    best = order[0]
    used, soup, row = [best], best.weights(), rows[best.path]
    before = _accuracy(row)
    for one in order[1:]:
        what = f"{len(used) + 1} runs, with {one.path}"
        mean = _mean([part.weights() for part in (*used, one)])
        raw = _accuracy(_score(model, mean, found[0], data, what))
        settled = _settled(model, found[0], data)
        tried = _score(model, settled, found[0], data, f"{what}, statistics made again")
        if _accuracy(tried) >= _accuracy(row):
            used, soup, row, before = [*used, one], settled, tried, raw
    alone = {str(one.path): _accuracy(rows[one.path]) for one in order}
    result = Soup(task_of(model.task).measure, alone, [str(one.path) for one in used], before, _accuracy(row))
    _write(out, best, soup, result, row)
    keep_entries(out, [entry for one in used for entry in read_entries(one.path)])
    return result


def _accuracy(row: Row) -> float:
    return fmean(measured(row).values())


def _score(model: FusionModel, weights: Mapping[str, Tensor], first: Ingredient, data: Splits, what: str) -> Row:
    """On the held-out parts."""
    model.load_state_dict(weights)
    scores = evaluate_subsets(model, data.validation, first.recipe.data, data.classes, what)
    return score_row(scores, task_of(model.task).measure)


def _settled(model: FusionModel, first: Ingredient, data: Splits) -> dict[str, Tensor]:
    """The model's weights with statistics of training images."""
    count = min(STATISTICS_IMAGES, sum(subset.num_samples for subset in data.train))
    batches = few(data.train, first.recipe.data, count, sources="proportional", batch_size=_BATCH)
    with progress("statistics", count, "images") as advance:
        set_training(model, first.recipe.train.freeze_batchnorm)
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d) and part.training]
        settle(model, (batch.images for batch in batches), norms, advance)
    return {name: value.cpu().clone() for name, value in model.state_dict().items()}


def _mean(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of each tensor in float64; counters as in the first."""
    first = models[0]
    return {
        name: torch.stack([model[name].double() for model in models]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def _ingredients(runs: Sequence[Path]) -> list[Ingredient]:
    if len(runs) < 2:
        raise ConfigError(f"runs: must be at least 2 run folders, got {len(runs)}")
    if len({run.absolute() for run in runs}) < len(runs):
        raise ConfigError(f"a run is given twice: {', '.join(map(str, runs))}")
    found, faults = [], []
    for run in runs:
        try:
            found.append(_ingredient(run))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError(faults)
    first = found[0]
    for one in found[1:]:
        faults += [f"{one.path}: {fault}" for fault in _differences(first, one)]
    if faults:
        raise ConfigError(faults, f"they cannot be averaged with {first.path}")
    return found


def _ingredient(run: Path) -> Ingredient:
    if not (run / "recipe.yaml").is_file():
        raise ConfigError(f"{run}: no run folder, it has no recipe.yaml")
    recipe = load(run / "recipe.yaml", Recipe)
    if recipe.transfer.mode == "quant":
        raise ConfigError(f"{run}: transfer.mode is quant: packed weights cannot be averaged")
    checkpoint, lost = model_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise ConfigError([*lost, "it has no whole checkpoint"], run)
    for fault in lost:
        print(f"note: passed over, taking step {checkpoint.state.step}: {fault}", file=sys.stderr)
    files = read_json(run / "checkpoints" / START / "manifest.json").get("files", {})
    if "model.safetensors" not in files:
        raise ConfigError(
            f"{run}: no checkpoint of step 0 says what it began with; runs with pretrained weights can be averaged"
        )
    return Ingredient(run, recipe, checkpoint, files["model.safetensors"]["sha256"])


def _differences(first: Ingredient, one: Ingredient) -> Iterable[str]:
    if one.start != first.start:
        yield "began with other weights (step 0 differs): the mean of such runs is no model"
        if one.recipe.model.is_dense and one.recipe.train.seed != first.recipe.train.seed:
            yield f"train.seed: {one.recipe.train.seed}, not {first.recipe.train.seed}: it draws the head of step 0"
    if one.checkpoint.state.classes != first.checkpoint.state.classes:
        yield f"has other classes: {', '.join(one.checkpoint.state.classes)}"
    for key in ("validation", "image_size", "resize", "sources"):
        if getattr(one.recipe.data, key) != getattr(first.recipe.data, key):
            yield f"data.{key}: is not that of the first run, so held-out images of one may be trained on in the other"


def _write(out: Path, best: Ingredient, soup: Mapping[str, Tensor], result: Soup, row: Row) -> None:
    its_own = {"name": out.name, "output": str(out.absolute().parent), "transfer.wise_ft": 1.0}  # mixed already
    recipe = replace(best.recipe, its_own)
    out.mkdir(parents=True, exist_ok=True)
    step = best.checkpoint.state.step
    state = TrainState(step, best.checkpoint.state.stream, best.checkpoint.state.classes)
    write_checkpoint(out / "checkpoints", state, soup, {}, keep=1)
    write_text(out / "recipe.yaml", dump(recipe))
    write_text(out / "metrics.jsonl", json.dumps({"step": step, **row}) + "\n")
    write_json(out / RESULT, vars(result))
