"""A linear classifier on features that do not change, by L-BFGS: seconds for thousands of images.

The L2 penalty is on weights of standardised features (each to a deviation of 1), as in a logistic regression on
standardised inputs, and not on biases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xfer.labels import is_right, masked_cross_entropy

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
ITERATIONS = 100
Linear = tuple[Tensor, Tensor]  # weight [K, d], bias [K]
Pool = Sequence[
    tuple[float, Tensor]
]  # of each classifier: its share of the logits, the features [n, d] it is fitted on
_FLAT = 1e-6  # a deviation below this is that of a constant


def minimise(parameters: Sequence[Tensor], loss: Callable[[], Tensor], iterations: int = ITERATIONS) -> None:
    """Moves `parameters` to where `loss` is least: L-BFGS with strong Wolfe line search (Nocedal & Wright, Numerical
    Optimization, ch. 7).
    """
    optimizer = torch.optim.LBFGS(list(parameters), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def fit_linear(
    features: Tensor,
    targets: Tensor,
    masks: Tensor,
    penalty: float,
    start: Linear | None = None,
    pull: Tensor | None = None,
) -> Linear:
    """Weight [K, d] and bias [K] of least masked cross-entropy plus `penalty` x the squared norm of the weight.

    features [n, d] float; targets [n] int64, or [n, K] bool for sets of classes; masks [n, K] bool: the classes that
    each sample's source annotates.
    `start`: weight and bias from which the penalty counts, in place of zero. A row that no mask has is that of `start`,
    to the bit: nothing but the loss moves it.
    `pull`: P float [K, K], symmetric, by which classes cost each other: half the sum of P_jk w_j . w_k beside the
    penalty, rows of the weight as they count there. Its rows of classes that no mask has are 0.
    """
    mean, deviation = features.mean(0), features.std(0, correction=0)
    scale = torch.where(deviation > _FLAT, 1 / deviation.clamp_min(_FLAT), 0)
    x = (features - mean) * scale
    weight = torch.zeros(masks.shape[1], x.shape[1], requires_grad=True)
    bias = torch.zeros(masks.shape[1], requires_grad=True)
    before = torch.nn.functional.linear(features, *start) if start else 0

    def loss() -> Tensor:
        logits = before + torch.nn.functional.linear(x, weight, bias)
        value = masked_cross_entropy(logits, targets, masks).mean() + penalty * weight.square().sum()
        return value if pull is None else value + (weight * (pull @ weight)).sum() / 2

    minimise([weight, bias], loss)
    unscaled = weight.detach() * scale
    fitted = unscaled, bias.detach() - unscaled @ mean
    return (start[0] + fitted[0], start[1] + fitted[1]) if start else fitted


def fit_pooled(
    parts: Pool,
    targets: Tensor,
    masks: Tensor,
    penalty: float,
    start: Linear | None = None,
    pull: Tensor | None = None,
) -> Linear:
    """The classifiers of a pool, each fitted alone: their weights side by side [K, sum of d], and the pool's bias."""
    fitted = [(share, fit_linear(features, targets, masks, penalty, start, pull)) for share, features in parts]
    if len(fitted) == 1:
        return fitted[0][1]
    weights = torch.cat([weight for _, (weight, _) in fitted], 1)
    return weights, torch.stack([share * bias for share, (_, bias) in fitted]).sum(0)


@dataclass(frozen=True)
class LeftOut:
    """How the best penalty did on groups that were left out. accuracy: the mean over groups; right, known: [n] bool,
    which samples were classified rightly, and which have a class that the other groups have.
    """

    penalty: float
    accuracy: float
    right: Tensor
    known: Tensor


def choose_penalty(
    features: Tensor,
    targets: Tensor,
    masks: Tensor,
    groups: Tensor,
    start: Linear | None = None,
    pull: Tensor | None = None,
) -> LeftOut:
    """The penalty with the best mean accuracy over groups, each classified by what was fitted on the others. groups [n]
    int64. A sample whose class the others do not have is not counted. Classes that no mask has are no answers: no
    sample here is of them, so the penalty that never answers them would seem best.
    """
    return choose_pooled([(1.0, features)], targets, masks, groups, start, pull)


def choose_pooled(
    parts: Pool,
    targets: Tensor,
    masks: Tensor,
    groups: Tensor,
    start: Linear | None = None,
    pull: Tensor | None = None,
) -> LeftOut:
    """The same of a pool of classifiers, the same penalty for all."""
    found = (_left_out(penalty, parts, targets, masks, groups, start, pull) for penalty in PENALTIES)
    return max(found, key=lambda one: one.accuracy)


def _left_out(
    penalty: float,
    parts: Pool,
    targets: Tensor,
    masks: Tensor,
    groups: Tensor,
    start: Linear | None,
    pull: Tensor | None,
) -> LeftOut:
    unasked = ~masks.any(0)
    right, known = (torch.zeros(len(targets), dtype=torch.bool) for _ in range(2))
    scores = []
    for group in groups.unique().tolist():
        inside = groups == group
        logits = torch.zeros(int(inside.sum()), masks.shape[1])
        for share, features in parts:
            if share:
                weight, bias = fit_linear(features[~inside], targets[~inside], masks[~inside], penalty, start, pull)
                logits += share * (features[inside] @ weight.T + bias)
        logits = logits.masked_fill(unasked, -torch.inf)
        known[inside] = _seen(targets[inside], targets[~inside])
        right[inside] = is_right(logits.argmax(1), targets[inside])
        counted = inside & known
        if counted.any():
            scores.append(right[counted].double().mean().item())
    return LeftOut(penalty, sum(scores) / len(scores) if scores else 0.0, right, known)


def _seen(targets: Tensor, others: Tensor) -> Tensor:
    """Whether each target, or any class of it, is among others; bool [n]."""
    return torch.isin(targets, others) if targets.ndim == 1 else (targets & others.any(0)).any(1)


def fifths(count: int) -> Tensor:
    """Fifths of so many samples, the same ones each time; [count] int64."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order % min(5, max(2, count))
