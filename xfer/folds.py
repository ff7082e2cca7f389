"""Leave one source out: how well a recipe does on a source that its model has never seen.

Every source in turn is left out: an ordinary run is trained on the others and scored on all of the one that it never
saw. Then a run is trained on all sources, and that is the model. A part held out of each training source says how well
a model does on more of the same; what is chosen by it may be worse on a new source. Cost: N + 1 runs for N sources.

With train.select: best these scores choose the step that is the model too (xfer/choice.py). The runs without a source
are trained to their last step then, whatever their own curve says, and handed over at the chosen one like the run on
all sources: so what is evaluated, packed or searched on them is what was chosen.

    runs/<name>/folds/without-<source>/     a run folder each: evaluate, quantize or report it like any other
                leave_one_source_out.json   the scores, by the source that was left out; the step that they chose
"""

import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from shards.config import LEAVE_ONE_OUT
from shards.format.whole import write_json
from shards.loading.open import Splits
from shards.settings import ConfigError, replace
from shards.text import table
from xfer.bundle import Trained, check_replaceable, open_model
from xfer.checkpoint import choose, latest_checkpoint
from xfer.choice import Choice, choose_step, hand_over, read_choice
from xfer.config import Recipe
from xfer.evaluate import evaluate_subsets, score_to_keep
from xfer.history import LEFT_OUT, gain, is_trained, left_out_scores, probe_row, read_metrics
from xfer.learn import keep_learned
from xfer.measure import measure_of, measured
from xfer.metrics import Estimate, mean_of
from xfer.outcomes import Comparison
from xfer.prepare import open_labelled, prepare
from xfer.quantize import Made, compare, make_bundle, quantize_trained
from xfer.run import run_lock
from xfer.tasks.known import task_of

WHAT = "each source, by a model that never saw it"
Failure = TypeVar("Failure")


def folds(recipe: Recipe) -> dict[str, Recipe]:
    """The recipes of the runs that leave one source out, by that source; none unless the recipe validates so."""
    if recipe.data.validation != LEAVE_ONE_OUT:
        return {}
    return {source: _without(recipe, source) for source in sorted(recipe.data.sources)}


def fold_folder(run: Path, source: str) -> Path:
    """Where the run without `source` lies."""
    return run / "folds" / f"without-{source}"


def _without(recipe: Recipe, source: str) -> Recipe:
    folder = fold_folder(recipe.folder, source)
    rest = set(recipe.data.sources) - {source}
    stages = [s for s in recipe.data.stages if any(s.weights.get(name, 0) > 0 for name in rest)]
    plain = [stage.model_dump(mode="json") for stage in stages]
    changes = {"data.validation": [source], "data.test": {}, "data.stages": plain}
    if recipe.selects_by_left_out:
        changes |= {"train.select": "last", "train.keep_evaluated": True}
    return replace(recipe, {"name": folder.name, "output": str(folder.parent), **changes})


def prepare_folds(recipe: Recipe, world_size: int = 1, say: bool = True) -> dict[str, tuple[Recipe, Splits]]:
    """The folds and their data, by the source that is left out. Raises ConfigError with the faults of all of them."""
    prepared, faults = {}, []
    for source, fold in folds(recipe).items():
        try:
            prepared[source] = (fold, prepare(fold, world_size, say)[0])
        except ConfigError as error:
            faults += [f"without {source}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults, "data.validation: leave_one_source_out")
    return prepared


def train_folds(
    recipe: Recipe,
    prepared: Mapping[str, tuple[Recipe, Splits]],
    train: Callable[[Recipe, str], Failure | None],
) -> Failure | None:
    """Trains and scores the folds that are not done yet, and keeps the scores in the run folder: after each of them, or
    after all where they choose the step.

    train: trains a recipe to its last step; gets what to call it. The first failure it returns ends it all, and is
    returned. Raises ConfigError if the run on all sources cannot be handed over at the chosen step.
    """
    if not prepared:
        return None
    print(_cost(recipe, list(prepared)), file=sys.stderr)
    choosing, trained = recipe.selects_by_left_out, set()
    for number, (source, (fold, data)) in enumerate(prepared.items(), 1):
        what = f"fold {number} of {len(prepared)}, without {source}"
        if _is_done(recipe, source, fold, data):
            print(f"{what}: trained and scored already", file=sys.stderr)
            continue
        try:
            with run_lock(fold.folder):
                failure = train(fold, what)
        finally:
            with suppress(OSError):
                fold.folder.parent.rmdir()  # if nothing came of it
        if failure:
            return failure
        trained.add(source)
        if not choosing:
            choose(fold.folder / "checkpoints", None)
            _keep(recipe, {**_known(recipe, prepared), source: _score(fold, data)})
    if choosing:
        _choose(recipe, prepared, trained)
    else:
        hand_over(recipe, None)
    if recipe.learns_by_folds:
        keep_learned(recipe.folder, {source: _weights(fold) for source, (fold, _) in prepared.items()})
    return None


def _weights(fold: Recipe) -> dict[str, float]:
    """Of the fusion, by branch; 0 of those that its model is without."""
    weights = open_model(fold.folder).model.fusion_weights or {}
    return {name: weights.get(name, 0.0) for name in fold.model.branches}


def choose_among_folds(recipe: Recipe) -> Choice | None:
    """Makes the step that the trained folds choose the model of each of them, as `choose_step` does. None, and nothing
    is done, unless the recipe chooses so.
    """
    if not recipe.selects_by_left_out:
        return None
    return choose_step(recipe, {source: fold.folder for source, fold in folds(recipe).items()})


def _choose(recipe: Recipe, prepared: Mapping[str, tuple[Recipe, Splits]], trained: Collection[str]) -> None:
    """Chooses the step, and scores at it what was not: folds `trained` just now, or scored at another step."""
    choice = choose_among_folds(recipe)
    rows = _known(recipe, prepared)
    for source, (fold, data) in prepared.items():
        if source in trained or not _is_scored(recipe, source, fold, data, choice):
            rows[source] = _score(fold, data, choice)
    _keep(recipe, {source: rows[source] for source in prepared}, choice)


def _cost(recipe: Recipe, sources: list[str]) -> str:
    each = ", ".join(f"without {source}" for source in sources)
    until = " up to the step that they choose" if recipe.selects_by_left_out else ""
    return (
        f"leave one source out: {len(sources) + 1} runs of {recipe.steps} steps, {each}, then on all sources{until}; "
        "those that are done are not run again"
    )


def _is_done(recipe: Recipe, source: str, fold: Recipe, data: Splits) -> bool:
    if recipe.selects_by_left_out:
        return is_trained(fold, latest_checkpoint(fold.folder / "checkpoints"))
    return _is_scored(recipe, source, fold, data) and _is_trained(fold.folder, fold)


def _is_scored(recipe: Recipe, source: str, fold: Recipe, data: Splits, choice: Choice | None = None) -> bool:
    row, version = left_out_scores(recipe.folder).get(source, {}), data.validation[0].manifest.version
    step = choice.step if choice else fold.steps
    return (row.get("steps"), row.get("step", row.get("steps")), row.get("version")) == (fold.steps, step, version)


def untrained(run: Path, recipe: Recipe) -> list[str]:
    """The sources whose fold in the folder `run` is not trained to its end."""
    return [source for source, fold in folds(recipe).items() if not _is_trained(fold_folder(run, source), fold)]


def _is_trained(folder: Path, fold: Recipe) -> bool:
    checkpoint = latest_checkpoint(folder / "checkpoints")
    return checkpoint is not None and checkpoint.state.step >= fold.steps


def _score(fold: Recipe, data: Splits, choice: Choice | None = None) -> dict[str, Any]:
    trained, (held,) = open_model(fold.folder), data.validation
    score = evaluate_subsets(trained.model, [held], fold.data, trained.classes, f"score {fold.name}")[held.name]
    begun = probe_row(read_metrics(fold.folder))
    known = begun.get("right", {}).get(held.name)
    return {
        **score_to_keep(score, held.manifest.version),
        "not_counted": held.num_samples - score.count,
        "steps": fold.steps,
        "step": choice.step if choice else fold.steps,
        "probe": measured(begun).get(held.name),
        "gained": gain(known, score.right) if known else None,
    }


def _known(recipe: Recipe, sources: Iterable[str]) -> dict[str, dict[str, Any]]:
    rows = left_out_scores(recipe.folder)
    return {source: rows[source] for source in sources if source in rows}


def _keep(recipe: Recipe, rows: Mapping[str, Mapping[str, Any]], choice: Choice | None = None) -> None:
    mean = _mean(rows)
    content = {"sources": rows, "mean": {_measure(rows): mean.value, "interval": [mean.low, mean.high]}}
    write_json(recipe.folder / LEFT_OUT, content | ({"chosen": choice.to_json()} if choice else {}))


def _mean(rows: Mapping[str, Mapping[str, Any]]) -> Estimate:
    mean = mean_of([Estimate(measured(row), *row["interval"]) for row in rows.values()])
    return Estimate(mean.value, max(0.0, mean.low), min(1.0, mean.high))


def _measure(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return next((name for row in rows.values() if (name := measure_of(row))), "accuracy")


def score_rows(run: Path) -> list[list[str]]:
    """The scores as a table for people, its header first; empty if there are none yet."""
    rows = left_out_scores(run)
    if not rows:
        return []
    shown = [["left out", "images", _measure(rows), "95 % interval"]]
    for source, row in rows.items():
        shown.append([source, f"{row['count']:,}", *_percents(Estimate(measured(row), *row["interval"]))])
    shown += [["mean of sources", "", *_percents(_mean(rows))]] if len(rows) > 1 else []
    probes = [row["probe"] for row in rows.values() if row.get("probe") is not None]
    if len(probes) < len(rows):
        return shown
    probes += [statistics.fmean(probes)] if len(probes) > 1 else []
    column = ["its linear probe", *(f"{100 * probe:.1f} %" for probe in probes)]
    return [[*line, cell] for line, cell in zip(shown, column, strict=True)]


def scores_text(run: Path) -> str:
    """The scores for a terminal; empty if there are none yet."""
    rows = score_rows(run)
    if not rows:
        return ""
    left = {source: row["not_counted"] for source, row in left_out_scores(run).items() if row["not_counted"]}
    notes = [f"  {source}: {count} images not counted, only it has their class" for source, count in left.items()]
    chosen = choice_text(run)
    return "\n".join([f"leave one source out: {WHAT}", *table(rows), *notes, *([chosen] if chosen else [])])


def choice_text(run: Path) -> str:
    """The step that left-out sources chose, in words; empty if they chose none."""
    choice, rows = read_choice(run), left_out_scores(run)
    if choice is None:
        return ""
    return choice.text() if _measure(rows) == "accuracy" else choice.text("before any training")


def _percents(mean: Estimate) -> list[str]:
    return [f"{100 * mean.value:.1f} %", f"{100 * mean.low:.1f} - {100 * mean.high:.1f}"]


def quantize_run(trained: Trained, recipe: Recipe, folder: Path) -> Made:
    """The bundle of a run. It is compared with the run on the folds, if the recipe leaves one source out; if not, on
    what it holds out.
    """
    check_replaceable(folder)
    data = open_labelled(recipe.data, trained.classes, task_of(recipe.model.task))
    return make_bundle(trained, recipe, data, folder, compare_folds(trained.path, recipe))


def compare_folds(run: Path, recipe: Recipe) -> Comparison | None:
    """The runs without a source, and what `recipe.quantize` makes of each, on the source that it never saw. None unless
    the recipe leaves one source out. Raises ConfigError if the folds are not all trained.
    """
    found = folds(recipe)
    if missing := untrained(run, recipe):
        raise ConfigError(
            f"{run}: the run without {', without '.join(missing)} is not trained to its end; run the training command "
            "again, or measure on other images, with data.validation=0 on the test sources"
        )
    before, after, names = {}, {}, ("float32", "packed")
    for source, fold in found.items():
        trained = open_model(fold_folder(run, source))
        data = open_labelled(fold.data, trained.classes, task_of(fold.model.task))
        one = compare(trained, quantize_trained(trained, fold, data), fold.data, WHAT, data.validation)
        before, after, names = before | one.first, after | one.second, one.names
    return Comparison(WHAT, before, after, names, task_of(recipe.model.task).measure) if found else None
