"""One exact pass over finite splits: every sample counted once on any number of ranks, scores by source."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

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
from xfer.metrics import Score, Scores, mean_accuracy
from xfer.mistakes import Mistakes


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    sources: Sequence[str],
    classes: Sequence[str],
    device: torch.device,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
    after_batch: Callable[[Batch, Tensor], None] = lambda batch, logits: None,
) -> dict[str, Score]:
    """Scores of `model` by source. `sources`: their names, in the order of the batches' source indices; `classes`: the
    model's, by which the batches' targets are numbered.

    `total` adds up over ranks; `after_batch` sees each batch and its logits [B, K] on the device. The model is left
    in evaluation mode. Samples whose class the model does not know are left out of the counts; `unknown_classes`
    names them.
    """
    model.eval()
    scores = Scores(sources, classes, device)
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            logits = model(batch.images)
            scores.add(logits, batch.targets, batch.sources, batch.valid)
            after_batch(batch, logits)
    return scores.result(total)


def evaluate_subsets(
    model: nn.Module, subsets: Sequence[Subset], config: DataConfig, classes: Sequence[str], what: str
) -> dict[str, Score]:
    """Scores of `model` on `subsets` in this process, its surest mistakes among them, with progress. Damaged images
    that were left out are named on stderr.
    """
    device, names = default_device(), [subset.name for subset in subsets]
    batches = eval_stream([subset.numbered(classes) for subset in subsets], config, Slot())
    mistakes = Mistakes(subsets, classes)
    with progress(what, batches.num_samples, "images") as advance:

        def after_batch(batch: Batch, logits: Tensor) -> None:
            mistakes.add(batch, logits)
            advance(int(batch.valid.sum()))

        scores = evaluate(model.to(device), batches, names, classes, device, after_batch=after_batch)
    if batches.damaged:
        print(f"left out of {what}: {batches.damage.table()}", file=sys.stderr)
    return {name: replace(scores[name], mistakes=found) for name, found in mistakes.result().items()}


def named_data(folders: Sequence[str], image_size: int, option: str = "--data") -> DataConfig:
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
    return DataConfig.model_validate({"sources": sources, "validation": 0, "image_size": image_size})


def _new_name(folder: str, taken: Iterable[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", os.path.basename(folder.rstrip("/"))).strip("-") or "data"
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 10**6))
    return next(one for one in names if one not in taken)


def unknown_classes(sources: Mapping[str, Sequence[str]], classes: Sequence[str]) -> dict[str, list[str]]:
    """Per source, the classes the model cannot name."""
    unknown = {name: sorted(set(own) - set(classes)) for name, own in sources.items()}
    return {name: found for name, found in unknown.items() if found}


def score_to_keep(score: Score, version: str) -> dict[str, Any]:
    """A score as plain values, with the version of the data it was counted on."""
    return {
        "correct": score.correct,
        "count": score.count,
        "accuracy": score.accuracy,
        "interval": score.interval,
        "per_class": dict(score.per_class),
        "top5": score.top5 / score.count if score.count else None,
        "calibration": score.calibration if score.count else None,
        "confusion": score.confusion,
        "mistakes": [asdict(one) for one in score.mistakes],
        "version": version,
    }


def score_row(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Scores as plain numbers: {"accuracy": {source: value}, "evaluation_loss": {source: value}}. A source of which
    nothing could be counted has none.
    """
    counted = {name: score for name, score in scores.items() if score.count}
    return {
        "accuracy": {name: score.accuracy for name, score in counted.items()},
        "evaluation_loss": {name: score.loss for name, score in counted.items()},
    }


def score_rows(scores: Mapping[str, Score], what: str, num_classes: int) -> list[list[str]]:
    """Scores as a table for people, its header first; top 5 where there are more classes than that."""
    rows = [[what, "images", "accuracy", "95 % interval", "top 5", "calibration error"]]
    for name, score in scores.items():
        if not score.count:
            rows.append([name, "0", "-", "", "", ""])
            continue
        low, high = score.interval
        shown = score.accuracy, score.top5 / score.count, score.calibration
        accuracy, top5, calibration = (f"{100 * value:.1f} %" for value in shown)
        rows.append([name, f"{score.count:,}", accuracy, f"{100 * low:.1f} - {100 * high:.1f}", top5, calibration])
    if len(scores) > 1:
        rows.append(["mean of sources", "", f"{100 * mean_accuracy(scores):.1f} %", "", "", ""])
    return rows if num_classes > 5 else [[*row[:4], row[5]] for row in rows]


def confusions(scores: Mapping[str, Score], most: int = 3) -> list[str]:
    """What is most often taken for what, a line for each source in which anything is."""
    lines = []
    for name, score in scores.items():
        pairs = [(count, truth, said) for truth, row in score.confusion.items() for said, count in row.items()]
        pairs = [pair for pair in pairs if pair[1] != pair[2]]
        pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
        shown = ", ".join(f"{truth} for {said} ({count})" for count, truth, said in pairs[:most])
        lines += [f"{name}: most often took {shown}"] if pairs else []
    return lines
