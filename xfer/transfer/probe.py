"""A run with pretrained branches starts as their linear probe, so that training can only be kept where it gains.

The branches stay as they are. Projections get maps that keep what a linear classifier can use, BatchNorm the
statistics it would come to on the training images, and the head is fitted on the fused features of the training images
in evaluation geometry (LP-FT: Kumar et al., Fine-Tuning can Distort Pretrained Features, ICLR 2022, sec. 4). Step 0 of
such a run is a checkpoint like any other: any engine on any number of workers goes on from it, and its score is the
probe's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shards.config import DataConfig
from shards.loading.subset import Subset
from xfer.fusion import WeightedSum, classified
from xfer.labels import annotated, as_sets, sets_of
from xfer.model import FusionModel
from xfer.transfer.features import Seen, features_of
from xfer.transfer.linear import Linear, choose_pooled, fifths, fit_pooled
from xfer.transfer.weights import ChosenWeights, choose_weights

_SOURCES_TO_LEAVE_OUT = 3  # from so many on, a penalty is chosen on sources that were left out
_DEAD = 1e-10  # a variance below this is that of a channel which says nothing


@dataclass(frozen=True)
class Probe:
    """What the probe was fitted on and how. `held_out`: mean accuracy on what each fit left out: whole sources, or a
    fifth at a time. `weights`: of the fusion, if they were chosen.
    """

    images: int
    penalty: float
    held_out: float
    by_sources: bool
    weights: ChosenWeights | None = None

    def __str__(self) -> str:
        what = "source" if self.by_sources else "fifth"
        return (
            f"begins as a linear probe of its pretrained branches, fitted on {self.images:,} training images; penalty "
            f"{self.penalty:g} is best on each {what} when left out ({100 * self.held_out:.1f} %)"
        )


def start_as_probe(
    model: FusionModel,
    subsets: Sequence[Subset],
    config: DataConfig,
    num_images: int | None = None,
    kept: Sequence[str] = (),
    cache: Path | None = None,
    head: Linear | None = None,
    choose_fusion: bool = False,
    delta_penalty: float | None = None,
) -> Probe:
    """Fits projections and head of `model` to `num_images` of the subsets (None: all), a fair mixture of the training
    blend, seen as in evaluation. The subsets are numbered by the model's classes. The branches do not change, nor the
    projections of those that are `kept`; nor does the model's mode. `head`: rows to begin with in place of zero; those
    of classes that no subset has stay so. `choose_fusion`: the weights of its fusion are chosen, by sources that were
    left out (weights.py), if there are two or more. `delta_penalty`: of a head that has a table of names
    (xfer/heads/label_table.py).

    Cost: a forward pass over the images (about 40 a second for a ResNet-18 at 224 px on two cores) unless the folder
    `cache` has their features (see features.py), and seconds of L-BFGS. Raises DamagedDataError.
    """
    training = model.training
    count = sum(subset.num_samples for subset in subsets)
    found = features_of(model, subsets, config, min(count, num_images or count), cache)
    targets, sources = as_sets(found.targets, sets_of(subsets)), found.sources
    masks = annotated(subsets, model.head.out_features)[sources]
    with torch.no_grad():
        for name, projection in model.projections.items():
            if name not in kept and model.projects:
                _set_projection(projection, found.branches[name])
        features = [
            projection(found.branches[name].pooled[:, :, None, None]).flatten(1)
            for name, projection in model.projections.items()
        ]
    pull = model.table.pull(delta_penalty, masks.any(0)) if model.table is not None and delta_penalty else None
    by_sources = len(subsets) >= _SOURCES_TO_LEAVE_OUT
    weights = best = None
    if choose_fusion and isinstance(model.fusion, WeightedSum) and len(sources.unique()) > 1:
        by_branch = dict(zip(model.projections, features, strict=True))
        weights, best = choose_weights(model.fusion, by_branch, targets, masks, sources, model.enter, pull)
    with torch.no_grad():
        parts = classified(model.fusion, features, model.enter)
    if best is None or not by_sources:
        groups = sources if by_sources else fifths(len(targets))
        best = choose_pooled(parts, targets, masks, groups, head, pull)
    weight, bias = fit_pooled(parts, targets, masks, best.penalty, head, pull)
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)
    model.train(training)
    return Probe(len(targets), best.penalty, best.accuracy, by_sources, weights)


def _set_projection(projection: nn.Module, seen: Seen) -> None:
    """The 1 x 1 convolution as by `projection_of`, scaled so that its maps have a variance of 1 over all pixels, and
    their mean and variance as BatchNorm's. Channels beyond those of the branch keep their random directions.
    """
    convolution, norm = projection.children()
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = convolution.weight[:, :, 0, 0]
    fitted = projection_of(seen.pooled, len(weight))
    weight[: len(fitted)] = fitted
    w = weight.double()
    variance = ((w @ seen.covariance) * w).sum(1)
    # scaled to a variance of 1: BatchNorm would make large gradients of small maps
    w = torch.where(variance > _DEAD, variance.clamp_min(_DEAD).rsqrt(), 1.0)[:, None] * w
    weight.copy_(w)
    norm.running_mean.copy_(w @ seen.mean)
    norm.running_var.fill_(1.0)


def projection_of(pooled: Tensor, width: int) -> Tensor:
    """[min(width, c), c] from pooled features [n, c]: the channels as they are, if there is room for all; or as many
    directions as fit of the space in which the standardised features vary most, turned so that each channel has its
    share of all of them: BatchNorm, which gives every channel the same deviation, then leaves the distances between
    images as they were.
    """
    c = pooled.shape[1]
    if width >= c:
        return torch.eye(c)
    x = pooled.double()
    deviation = x.std(0, correction=0).clamp_min(1e-6)
    x = (x - x.mean(0)) / deviation
    directions = torch.linalg.eigh(x.T @ x / len(x)).eigenvectors[:, -width:]  # ascending
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((torch.linalg.qr(noise).Q @ directions.T) / deviation).float()
