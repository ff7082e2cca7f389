"""Which sources suit which targets, and which pretrained branches: tables that cost one look at each image.

Of a source and a target: a linear head is fitted to the features of the source alone. LogME and H-score are of its
logits on the target's images, against the target's labels: what the source taught is its classes, so a target may have
others. `knn` is the accuracy of naming the target's images by the nearest ones of the source, `linear` that of the
head; both over images of classes that the source has (`shared`). Of a branch and a target: the same of the branch's own
features, each image named by the nearest others; that says which pretrained weights suit the target.

LogME and H-score of different targets, and of sources with different numbers of classes, are not comparable.

All of it looks at the target's labels. What was chosen by it is not to be reported on the same target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from shards.config import DataConfig
from shards.loading.subset import Subset
from shards.progress import progress
from xfer.model import FusionModel
from xfer.transfer.features import seen_by
from xfer.transfer.linear import choose_penalty, fifths, fit_linear
from xfer.transfer.transferability import h_score, knn_votes, log_evidence

TILT = 1.0


@dataclass(frozen=True)
class Pair:
    """How a source suits a target. `images` of the target, `shared` of a class that the source has; knn and linear:
    accuracies on these, None if there are none. `same`: both are parts of one data set.
    """

    source: str
    target: str
    images: int
    shared: int
    knn: float | None
    linear: float | None
    log_evidence: float
    h_score: float
    same: bool


@dataclass(frozen=True)
class Suited:
    """How a branch suits a target, before any training."""

    branch: str
    target: str
    images: int
    knn: float
    log_evidence: float
    h_score: float


@dataclass(frozen=True)
class Transferability:
    """All pairs of sources and targets, and all pairs of branches and targets."""

    pairs: Sequence[Pair]
    branches: Sequence[Suited]

    @property
    def scores(self) -> dict[str, float]:
        """For `data.sources.*.score`: what part of a target's images the nearest ones of the source name rightly, less
        the mean of the sources on this target; mean over targets. Images of classes that the source lacks count as
        wrong, a target of the source's own data set is left out. Empty if no target tells two sources apart.
        """
        gains: dict[str, list[float]] = {pair.source: [] for pair in self.pairs}
        for target in dict.fromkeys(pair.target for pair in self.pairs):
            of = [pair for pair in self.pairs if pair.target == target and not pair.same]
            parts = {pair.source: (pair.knn or 0) * pair.shared / pair.images for pair in of}
            if len(parts) > 1:
                mean = sum(parts.values()) / len(parts)
                for source, part in parts.items():
                    gains[source].append(part - mean)
        if not any(gains.values()):
            return {}
        return {source: sum(found) / len(found) if found else 0.0 for source, found in gains.items()}

    def rows(self) -> list[list[str]]:
        """Sources against targets as a table for people, its header first."""
        shown = [["target", "source", "images", "shared", "k-NN", "linear", "LogME", "H-score"]]
        for p in self.pairs:
            accuracies = [f"{100 * value:.1f} %" if value is not None else "-" for value in (p.knn, p.linear)]
            counts = [f"{p.images:,}", f"{p.shared:,}"]
            shown.append([p.target, p.source, *counts, *accuracies, f"{p.log_evidence:.3f}", f"{p.h_score:.3f}"])
        return shown

    def branch_rows(self) -> list[list[str]]:
        """Branches against targets as a table for people, its header first."""
        shown = [["target", "branch", "images", "k-NN", "LogME", "H-score"]]
        for b in self.branches:
            values = [f"{100 * b.knn:.1f} %", f"{b.log_evidence:.3f}", f"{b.h_score:.3f}"]
            shown.append([b.target, b.branch, f"{b.images:,}", *values])
        return shown

    def block(self) -> str:
        """What to paste into a recipe; empty without scores."""
        if not self.scores:
            return ""
        lines = [f"    {source}: {{score: {round(score, 3) + 0.0:.3f}}}" for source, score in self.scores.items()]
        return "\n".join(["data:", f"  tilt: {TILT}", "  sources:", *lines])

    def to_json(self) -> dict[str, Any]:
        """Plain values: `pairs`, `branches`, `scores`."""
        pairs, branches = ([asdict(one) for one in part] for part in (self.pairs, self.branches))
        return {"pairs": pairs, "branches": branches, "scores": self.scores}


@dataclass(frozen=True)
class Sample:
    """Images of a source or a target: pooled features [n, c] by branch; labels [n], places among the class names of
    all.
    """

    subset: Subset
    branches: Mapping[str, Tensor]
    labels: Tensor

    @property
    def features(self) -> Tensor:
        """[n, sum of c]: of all branches, side by side."""
        return torch.cat(list(self.branches.values()), 1)

    @property
    def directions(self) -> Tensor:
        """As `features`, so that each branch has the same say in a cosine."""
        return torch.cat([normalize(value, dim=1) for value in self.branches.values()], 1)


def transferability(
    model: FusionModel,
    sources: Sequence[Subset],
    targets: Sequence[Subset],
    config: DataConfig,
    num_images: int,
    cache: Path | None = None,
) -> Transferability:
    """How each source and each branch suits each target, from at most `num_images` of each source and target, classes
    in their proportions. A source is not compared with itself.

    Cost: a forward pass over the images that are not in the cache (see features.py), and seconds for each pair.
    """
    names = sorted({name for subset in (*sources, *targets) for name in subset.classes})
    samples = samples_of(model, [*sources, *targets], names, config, num_images, cache)
    of, on = samples[: len(sources)], samples[len(sources) :]
    pairs, branches = [], []
    with progress("transferability", len(of) + len(on) * len(model.branches), "compared") as advance:
        for source in of:
            others = [target for target in on if target.subset.identity() != source.subset.identity()]
            pairs += _pairs(source, others)
            advance()
        for target in on:
            for name in model.branches:
                branches.append(_suited(name, target))
                advance()
    order = [subset.name for subset in targets]
    return Transferability(sorted(pairs, key=lambda pair: order.index(pair.target)), branches)


def samples_of(
    model: FusionModel,
    subsets: Sequence[Subset],
    names: Sequence[str],
    config: DataConfig,
    num_images: int,
    cache: Path | None,
) -> list[Sample]:
    """A source that is a target too is looked at once."""
    different = {str(subset.identity()): subset for subset in subsets}
    counts = [num_images] * len(different)
    found = dict(zip(different, seen_by(model, list(different.values()), counts, config, cache), strict=True))
    samples = []
    for subset in subsets:
        seen = found[str(subset.identity())]
        positions = next(iter(seen.values())).positions.numpy()
        labels = torch.from_numpy(subset.numbered(names).labels()[positions])
        samples.append(Sample(subset, {name: one.pooled for name, one in seen.items()}, labels))
    return samples


def _pairs(source: Sample, targets: Sequence[Sample]) -> list[Pair]:
    if not targets:
        return []
    known, labels = source.labels.unique(return_inverse=True)
    features, masks = source.features, torch.ones(len(labels), len(known), dtype=torch.bool)
    penalty = choose_penalty(features, labels, masks, fifths(len(labels))).penalty
    weight, bias = fit_linear(features, labels, masks, penalty)
    pairs = []
    for target in targets:
        logits, truth = target.features @ weight.T + bias, target.labels
        shared = torch.isin(truth, known)
        knn = linear = None
        if shared.any():
            said = knn_votes(target.directions[shared], source.directions, source.labels)
            knn = _accuracy(said, truth[shared])
            linear = _accuracy(known[logits[shared].argmax(1)], truth[shared])
        of_logits = log_evidence(logits, truth), h_score(logits, truth)
        same = target.subset.manifest.version == source.subset.manifest.version
        counts = len(truth), int(shared.sum())
        pairs.append(Pair(source.subset.name, target.subset.name, *counts, knn, linear, *of_logits, same))
    return pairs


def _suited(name: str, target: Sample) -> Suited:
    x, truth = target.branches[name], target.labels
    knn = _accuracy(knn_votes(x, x, truth, among_themselves=True), truth)
    return Suited(name, target.subset.name, len(truth), knn, log_evidence(x, truth), h_score(x, truth))


def _accuracy(said: Tensor, truth: Tensor) -> float:
    return (said == truth).double().mean().item()
