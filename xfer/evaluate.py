"""One exact pass over finite splits: every sample counted once on any number of ranks, scores by source."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from shards.config import DataConfig
from shards.loading.batch import Batch, Slot
from shards.loading.evaluate import eval_stream
from shards.loading.subset import Subset
from shards.progress import progress
from xfer.engine import default_device
from xfer.labels import LabelSpace, unify
from xfer.metrics import Accuracy, Score


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    sources: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    device: torch.device,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
    after_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, Score]:
    """Scores of `model` on `sources` (name -> its class names, in the order of the batches' source indices).

    `total` adds up over ranks. The model is left in evaluation mode. Samples whose class the model does not know are
    left out of the counts; `unknown_classes` names them.
    """
    model.eval()
    names = list(sources)
    table = LabelSpace(tuple(classes), {}).table(names, sources).to(device)
    accuracy = Accuracy(names, classes, device)
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            targets = unify(table, batch.sources, batch.targets)
            accuracy.add(model(batch.images), targets, batch.sources, batch.valid)
            after_batch(int(batch.valid.sum()))
    return accuracy.scores(total(accuracy.sums))


def evaluate_subsets(
    model: nn.Module, subsets: Sequence[Subset], config: DataConfig, classes: Sequence[str], what: str
) -> dict[str, Score]:
    """Scores of `model` on `subsets` in this process, with progress."""
    device = default_device()
    batches = eval_stream(subsets, config, Slot())
    sources = {subset.name: subset.classes for subset in subsets}
    with progress(what, sum(subset.num_samples for subset in subsets), "images") as advance:
        return evaluate(model.to(device), batches, sources, classes, device, after_batch=advance)


def unknown_classes(sources: Mapping[str, Sequence[str]], classes: Sequence[str]) -> dict[str, list[str]]:
    """Per source, the classes the model cannot name."""
    unknown = {name: sorted(set(own) - set(classes)) for name, own in sources.items()}
    return {name: found for name, found in unknown.items() if found}


def score_row(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Scores as plain numbers: {"accuracy": {source: value}, "evaluation_loss": {source: value}}."""
    return {
        "accuracy": {name: score.accuracy for name, score in scores.items()},
        "evaluation_loss": {name: score.loss for name, score in scores.items()},
    }
