"""One exact pass over finite splits: every sample counted once on any number of ranks, scores by source."""

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from shards.config import DataConfig
from shards.format.manifest import manifest_path, splits_in
from shards.loading.batch import Batch, Slot
from shards.loading.evaluate import eval_stream
from shards.loading.subset import Subset
from shards.progress import progress
from shards.settings import ConfigError, is_url
from xfer.engine import default_device
from xfer.measure import WITH_SIDE
from xfer.metrics import Score as ClassScore
from xfer.mistakes import Mistakes, index_row
from xfer.model import FusionModel
from xfer.side import has_side, inputs
from xfer.tasks.known import task_of
from xfer.tasks.task import Output, Score, Scores


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    scores: Scores,
    device: torch.device,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    after_batch: Callable[[Batch, Output], None] = lambda batch, output: None,
    with_side: Scores | None = None,
) -> Mapping[str, Score]:
    """Scores of `model` by source, collected by `scores` (see `Task.scores`): on images alone. `with_side`: collects
    those of the same model with side inputs, which become a part of the others; costs another pass over each image.

    `total` and `gather`: over ranks; `after_batch` sees each batch and what the model makes of it, on the device. The
    model is left in evaluation mode. What is of a class that the model does not know is left out of the counts;
    `unknown_classes` names these.
    """
    model.eval()
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            output = model(batch.images)
            scores.add(output, batch)
            if with_side is not None:
                with_side.add(model(*inputs(model, batch)), batch)
            after_batch(batch, output)
    alone = scores.result(total, gather)
    if with_side is None:
        return alone
    seen = with_side.result(total, gather)
    return {name: replace(cast(Any, score), with_side=seen[name]) for name, score in alone.items()}


def evaluate_subsets(
    model: FusionModel,
    subsets: Sequence[Subset],
    config: DataConfig,
    classes: Sequence[str],
    what: str,
    also: Callable[[Batch, Output], None] = lambda batch, output: None,
) -> dict[str, Any]:
    """Scores of `model` on `subsets` in this process, with progress; those of a classifier with its surest mistakes.
    Damaged images that were left out are named on stderr. `also` sees each batch and what the model makes of it.
    """
    device, task = default_device(), task_of(model.task)
    subsets = [subset.numbered(classes) for subset in subsets]
    batches = eval_stream(subsets, config, Slot(), originals=task.sees_whole)
    mistakes = Mistakes(subsets, classes) if not task.sees_whole else None
    with progress(what, batches.num_samples, "images") as advance:

        def after_batch(batch: Batch, output: Output) -> None:
            if mistakes:
                mistakes.add(batch, output)
            also(batch, output)
            advance(int(batch.valid.sum()))

        first, *second = (task.scores(subsets, classes, config.resize, device) for _ in range(1 + has_side(model)))
        collected = {"after_batch": after_batch, "with_side": second[0] if second else None}
        scores = dict(evaluate(model.to(device), batches, first, device, **collected))
    if batches.damaged:
        print(f"left out of {what}: {batches.damage.table()}", file=sys.stderr)
    if mistakes:
        return {name: replace(cast(Any, scores[name]), mistakes=found) for name, found in mistakes.result().items()}
    return _with_rows(scores, subsets)


def _with_rows(scores: Mapping[str, Any], subsets: Sequence[Subset]) -> dict[str, Any]:
    """The worst images by their rows in their split's index, in place of positions."""
    found, first = {}, 0
    for subset in subsets:
        score = scores[subset.name]
        rows = tuple(one._replace(place=index_row(subset, one.place - first)) for one in score.worst)
        found[subset.name] = replace(score, worst=rows)
        first += subset.num_samples
    return found


def named_data(folders: Sequence[str], image_size: int, option: str = "--data", resize: str = "centre") -> DataConfig:
    """Built data sets, each a folder or FOLDER/SPLIT, as sources to evaluate on whole. A folder of one split needs no
    SPLIT. `option`: by which the user names them. Raises ConfigError.
    """
    sources: dict[str, dict[str, str]] = {}
    faults: list[str] = []
    for given in folders:
        folder, split = given, "train"
        if not is_url(given):
            folder = os.path.abspath(os.path.expanduser(given))
            splits = [name for name in splits_in(folder) if "@" not in name]
            if not splits and manifest_path(os.path.dirname(folder), os.path.basename(folder)).is_file():
                folder, split = os.path.split(folder)
            elif len(splits) > 1:
                such = f"give one, such as {given.rstrip('/')}/{splits[0]}"
                faults.append(f"{option} {given}: has the splits {', '.join(splits)}; {such}")
            else:
                split = (splits or ["train"])[0]
        sources[_new_name(folder, sources)] = {"path": folder, "split": split}
    if faults:
        raise ConfigError(faults)
    seen = {"image_size": image_size, "resize": resize}
    return DataConfig.model_validate({"sources": sources, "validation": 0, **seen})


def _new_name(folder: str, taken: Iterable[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(folder.rstrip("/"))).strip("-") or "data"
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 10**6))
    return next(one for one in names if one not in taken)


def unknown_classes(subsets: Iterable[Subset], classes: Sequence[str]) -> dict[str, list[str]]:
    """Per source, the classes of which the model knows neither the name nor a part."""
    unknown = {one.name: sorted(set(one.classes) - set(one.known_in(classes))) for one in subsets}
    return {name: found for name, found in unknown.items() if found}


def score_to_keep(score: Score, version: str) -> dict[str, Any]:
    """A score as plain values, with the version of the data it was counted on."""
    return score.kept() | {"version": version}


def score_row(scores: Mapping[str, Score], measure: str = "accuracy") -> dict[str, dict[str, Any]]:
    """Scores as plain values: {measure: {source: value}}, and of a classifier "evaluation_loss" and "right", which
    images are (`metrics.as_text`), alike; of one that takes side inputs "with_side", the measure with these. A source
    of which nothing could be counted has none.
    """
    counted = {name: score for name, score in scores.items() if score.count}
    of_classes = {name: score for name, score in counted.items() if isinstance(score, ClassScore)}
    row: dict[str, dict[str, Any]] = {measure: {name: score.value for name, score in counted.items()}}
    if of_classes or not counted:
        row["evaluation_loss"] = {name: score.loss for name, score in of_classes.items()}
        row["right"] = {name: score.right for name, score in of_classes.items()}
    if seen := {name: score.with_side.accuracy for name, score in of_classes.items() if score.with_side}:
        row[WITH_SIDE] = seen
    return row


def mean_value(scores: Mapping[str, Score]) -> float:
    """Unweighted mean over sources: a big source does not hide a small one."""
    values = [score.value for score in scores.values() if score.count]
    return sum(values) / len(values) if values else math.nan


def score_rows(scores: Mapping[str, Score], what: str, num_classes: int, measure: str = "accuracy") -> list[list[str]]:
    """Scores as a table for people, its header first; top 5 where there are more classes than that."""
    extras = list(dict.fromkeys(name for score in scores.values() for name in score.extras))
    extras = [name for name in extras if name != "top 5" or num_classes > 5]
    rows = [[what, "images", measure, "95 % interval", *extras]]
    for name, score in scores.items():
        if not score.count:
            rows.append([name, "0", "-", "", *("" for _ in extras)])
            continue
        low, high = score.interval
        more = [percent(score.extras[extra]) for extra in extras]
        rows.append([name, f"{score.count:,}", percent(score.value), f"{100 * low:.1f} - {100 * high:.1f}", *more])
    if len(scores) > 1:
        rows.append(["mean of sources", "", percent(mean_value(scores)), "", *("" for _ in extras)])
    return rows


def percent(value: float) -> str:
    """`93.1 %`; `-` where there is nothing to count."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"


def confusions(scores: Mapping[str, Any], most: int = 3) -> list[str]:
    """What is most often taken for what, a line for each source in which anything is."""
    lines = []
    for name, score in scores.items():
        confusion = getattr(score, "confusion", {})
        pairs = [(count, truth, said) for truth, row in confusion.items() for said, count in row.items()]
        pairs = [pair for pair in pairs if pair[1] != pair[2]]
        pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
        unit = " pixels" if hasattr(score, "pixels") else ""
        shown = ", ".join(f"{truth} for {said} ({count:,}{unit})" for count, truth, said in pairs[:most])
        lines += [f"{name}: most often took {shown}"] if pairs else []
    return lines
