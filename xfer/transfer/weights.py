"""Fusion weights by sources that were left out: on features of frozen branches it costs seconds.

Held-out images of the sources that are trained on prefer what memorises these sources; a second branch that looks good
there can be worse on images from elsewhere. So each candidate w is scored as a linear probe on each source, fitted on
the others. Candidates come by ensemble selection: the best single branch, then one part more of whichever branch helps
most (Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004, sec. 2), for as long as the gain over the
images is above its standard error (the one-standard-error rule: Breiman et al., Classification and Regression Trees,
1984, sec. 3.4.3). A branch that adds nothing has no part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shards.format.whole import read_json, write_json
from shards.progress import progress
from xfer.fusion import WeightedSum, classified
from xfer.transfer.linear import LeftOut, choose_pooled

PARTS = 4  # of which w is made at most
FILE = "fusion-weights.json"  # of a run folder


@dataclass(frozen=True)
class ChosenWeights:
    """`weights`: w by branch. `accuracy`: of the probe with it, the mean over left-out sources; `alone`: that of each
    branch alone; `equal`: that of equal weights.
    """

    weights: Mapping[str, float]
    accuracy: float
    alone: Mapping[str, float]
    equal: float

    def __str__(self) -> str:
        w = ", ".join(f"{name} {one:.2f}" for name, one in self.weights.items())
        others = ", ".join(f"{name} alone {100 * one:.1f} %" for name, one in self.alone.items())
        text = (
            f"fusion weights by left-out sources: {w} ({100 * self.accuracy:.1f} %; {others}, "
            f"equal weights {100 * self.equal:.1f} %)"
        )
        idle = [name for name, one in self.weights.items() if one == 0]
        return f"{text}; {', '.join(idle)} adds nothing: leave it out and save its cost" if idle else text

    def keep(self, run: Path) -> None:
        """Into a run folder."""
        write_json(run / FILE, vars(self))


def read_chosen(run: Path) -> ChosenWeights | None:
    """Of a run folder; None if its weights were not chosen."""
    found = read_json(run / FILE)
    return ChosenWeights(**found) if found else None


def choose_weights(
    fusion: WeightedSum,
    features: Mapping[str, Tensor],
    targets: Tensor,
    masks: Tensor,
    sources: Tensor,
    enter: nn.Module | None = None,
    pull: Tensor | None = None,
) -> tuple[ChosenWeights, LeftOut]:
    """Sets the weights of `fusion` to those of the best probe on left-out sources; and how that probe did on them.

    features: by branch, in the fusion's order, [n, d] float; targets [n] int64; masks [n, K] bool; sources [n] int64,
    two or more; enter: what comes between fusion and classifier; pull: as for `fit_linear`. Cost: up to 4 N + 1
    candidates of N branches, each `choose_pooled`.
    """
    names, n = list(features), len(features)
    tried: dict[tuple[float, ...], LeftOut] = {}

    def score(parts: Sequence[int]) -> LeftOut:
        w = tuple(one / sum(parts) for one in parts)
        if w not in tried:
            fusion.set_weights(w)
            with torch.no_grad():
                pool = classified(fusion, list(features.values()), enter)
            tried[w] = choose_pooled(pool, targets, masks, sources, pull=pull)
            advance()
        return tried[w]

    with progress("fusion weights", None, "candidates") as advance:
        singles = [_plus([0] * n, b) for b in range(n)]
        alone = {name: score(single).accuracy for name, single in zip(names, singles, strict=True)}
        equal = score([1] * n).accuracy
        parts = max(singles, key=lambda single: score(single).accuracy)
        while sum(parts) < PARTS:
            more = max((_plus(parts, b) for b in range(n)), key=lambda one: score(one).accuracy)
            if not _is_better(score(more), score(parts), sources):
                break
            parts = more
    best = score(parts)
    fusion.set_weights([one / sum(parts) for one in parts])
    return ChosenWeights(dict(zip(names, fusion.weights.tolist(), strict=True)), best.accuracy, alone, equal), best


def _plus(parts: Sequence[int], branch: int) -> list[int]:
    return [count + (b == branch) for b, count in enumerate(parts)]


def _is_better(one: LeftOut, other: LeftOut, sources: Tensor) -> bool:
    """By more than the standard error of the mean over sources of what each image gains."""
    means, variances = [], []
    for source in sources.unique().tolist():
        counted = (sources == source) & one.known
        if counted.any():
            gain = one.right[counted].double() - other.right[counted].double()
            means.append(gain.mean())
            variances.append(gain.var(correction=0) / len(gain))
    if not means:
        return False
    error = torch.stack(variances).sum().sqrt() / len(means)
    return bool(torch.stack(means).mean() > error)
