"""Fusion of N branches over one explicit weight vector w = softmax(alpha), alpha in R^N.

Symbols: B batch, N branches, d common channels. Features are N tensors [B, d] or [B, d, H, W]; the result has the
shape of one, but for `concat` and `late`, which have N*d channels. A one-hot w is exactly the single branch, and what
an operator learns beside alpha begins where it is exactly the weighted sum. A branch of weight 0 has no part in
anything: without it the result is the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

LOG_ZERO = -1e4  # alpha of a weight of 0: finite, and exp of it is exactly 0
_SQUEEZE = 16  # d over the hidden width of `InputGate`: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, sec. 3.2


def _unit(alpha: Tensor) -> Tensor:
    """w / ||w||_2, w = softmax(alpha) of each channel, alpha [N, d]. One function for all, so a gate at 0 is exactly
    the weighted sum.
    """
    w = alpha.softmax(0)
    return w / w.norm(dim=0)


def _weighted(w: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """The features, each times its row of w [N, d]."""
    shape = (1, -1) + (1,) * (features[0].dim() - 2)
    return [w[i].view(shape) * z for i, z in enumerate(features)]


class WeightedSum(nn.Module):
    """z = sum_b w_b z_b / ||w||_2: the norm keeps the variance, so w does not change the head's effective learning
    rate.
    """

    stacks: ClassVar[bool] = False  # whether the result has the branches' channels side by side
    by_branch: ClassVar[tuple[str, ...]] = ("alpha",)  # tensors that have a row for each branch

    def __init__(self, weights: Sequence[float], width: int = 0):
        """`width`: d, for operators that have to know it."""
        super().__init__()
        self.alpha: Tensor
        self.register_buffer("alpha", torch.zeros(len(weights)))
        self.set_weights(weights)

    def set_weights(self, weights: Sequence[float]) -> None:
        """Sets w to `weights`, scaled to sum 1. Raises ValueError unless there is one of at least 0 for each branch,
        and one above 0.
        """
        w = torch.tensor(weights, dtype=torch.float64)
        if w.shape != self.alpha.shape or not w.isfinite().all() or (w < 0).any() or not w.sum() > 0:
            raise ValueError(
                f"fusion weights: must be {len(self.alpha)} numbers of at least 0, one of them above 0, "
                f"got {list(weights)}"
            )
        self.alpha.copy_((w / w.sum()).log().clamp_min(LOG_ZERO))

    @property
    def weights(self) -> Tensor:
        """w [N], float32, sums to 1."""
        return self.alpha.softmax(0)

    def below(self, share: float) -> list[int]:
        """The branches of a weight below `share`, by number; never the one of the largest."""
        w = self.weights
        return [b for b, one in enumerate(w.tolist()) if one < share and b != int(w.argmax())]

    @contextmanager
    def ignoring(self, branches: Sequence[int]) -> Iterator[None]:
        """Inside, these have a weight of 0."""
        before = self.alpha.clone()
        self.alpha[list(branches)] = LOG_ZERO
        try:
            yield
        finally:
            self.alpha.copy_(before)

    @torch.no_grad()
    def keep(self, branches: Sequence[int]) -> None:
        """Leaves all other branches out: exactly what it is with a weight of 0 for them."""
        for name in self.by_branch:
            kept = getattr(self, name)[list(branches)].clone()
            setattr(self, name, nn.Parameter(kept) if name in self._parameters else kept)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.stack(self._parts(features)).sum(0)

    def _parts(self, features: Sequence[Tensor]) -> list[Tensor]:
        """w_b z_b / ||w||_2 of each branch."""
        return _weighted(_unit(self.alpha[:, None].expand(-1, features[0].shape[1])), features)

    def _shifted(self, shift: Tensor, features: Sequence[Tensor]) -> Tensor:
        """The weighted sum with w = softmax(alpha + shift), shift [N, B] or [N, B, H, W].

        As softmax(alpha + s) / ||.|| = w e^s / ||w e^s||, the weights are those of the weighted sum times a factor,
        which is exactly 1 at s = 0; two softmaxes over tensors of other shapes are not equal to the bit.
        """
        w, dims = self.weights, [1] * (shift.dim() - 1)
        shift = shift.float().masked_fill((self.alpha <= LOG_ZERO).view(-1, *dims), -torch.inf)
        growth = (shift - shift.detach().amax(0)).exp()
        factor = growth * _norm(w) / _norm([one * by for one, by in zip(w, growth, strict=True)])
        shape = factor.shape[:2] + (1,) + (factor.shape[2:] or (1,) * (features[0].dim() - 2))
        return torch.stack([by * z for by, z in zip(factor.view(shape), self._parts(features), strict=True)]).sum(0)


def _norm(values: Sequence[Tensor] | Tensor) -> Tensor:
    """Over the first axis, number by number: the same values give the same norm, whatever their shape."""
    return sum((one * one for one in values[1:]), values[0] * values[0]).sqrt()


class Gate(WeightedSum):
    """Per channel c: w_bc = softmax_b(alpha_b + gamma_bc); gamma starts at 0, where it is the weighted sum."""

    by_branch = ("alpha", "gamma")

    def __init__(self, weights: Sequence[float], width: int):
        super().__init__(weights)
        self.gamma = nn.Parameter(torch.zeros(len(weights), width))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.stack(_weighted(_unit(self.alpha[:, None] + self.gamma), features)).sum(0)


class InputGate(WeightedSum):
    """Per image: w_b = softmax_b(alpha_b + s_b), s = V relu(U p + c), p the pooled features of all branches side by
    side [B, N*d]; V starts at 0, where it is the weighted sum (Shazeer et al., Outrageously Large Neural Networks, ICLR
    2017, sec. 2, without noise and without leaving experts out). U and V are kept by branch: enter [N, h, d], leave
    [N, h].
    """

    by_branch = ("alpha", "enter", "leave")

    def __init__(self, weights: Sequence[float], width: int):
        super().__init__(weights)
        hidden, fan_in = max(8, width // _SQUEEZE), len(weights) * width
        self.enter = nn.Parameter(torch.randn(len(weights), hidden, width) * (2 / fan_in) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.leave = nn.Parameter(torch.zeros(len(weights), hidden))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        there = (self.alpha > LOG_ZERO).view(-1, 1, 1)
        pooled = torch.stack([z.flatten(2).mean(2) if z.dim() > 2 else z for z in features]).where(there, 0)
        hidden = (torch.einsum("nbd,nhd->bh", pooled, self.enter) + self.bias).relu()
        return self._shifted(torch.einsum("bh,nh->nb", hidden, self.leave), features)


class Attention(WeightedSum):
    """Per place: w_b = softmax_b(log w_b + q.z_b / sqrt d), q in R^d the same for all branches; q starts at 0, where it
    is the weighted sum (scaled products: Vaswani et al., Attention Is All You Need, NeurIPS 2017, sec. 3.2.1). A
    classifier's features are pooled before they are fused: there it is per image.
    """

    def __init__(self, weights: Sequence[float], width: int):
        super().__init__(weights)
        self.q = nn.Parameter(torch.zeros(width))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        products = [torch.einsum("bd...,d->b...", z, self.q) for z in features]
        return self._shifted(torch.stack(products) / len(self.q) ** 0.5, features)


class Late(WeightedSum):
    """The log-linear pool of the branches' classifiers (Genest & Zidek, Combining Probability Distributions, Stat. Sci.
    1986, sec. 3): log p ~ sum_b w_b l_b. z = [w_1 z_1, ..., w_N z_N], so the linear head on it holds the
    classifiers l_b = W_b z_b + c side by side; they share the bias, for w sums to 1.
    """

    stacks = True

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat(_weighted(self.weights[:, None].expand(-1, features[0].shape[1]), features), dim=1)


class Concat(nn.Module):
    """Baseline without a weight vector."""

    stacks: ClassVar[bool] = True

    def __init__(self, weights: Sequence[float], width: int = 0):
        super().__init__()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(features), dim=1)


FUSIONS: dict[str, type[WeightedSum] | type[Concat]] = {
    "wsum": WeightedSum,
    "gate": Gate,
    "input_gate": InputGate,
    "attention": Attention,
    "late": Late,
    "concat": Concat,
}


def classified(
    fusion: nn.Module, features: Sequence[Tensor], enter: nn.Module | None = None
) -> list[tuple[float, Tensor]]:
    """What linear classifiers are fitted on, each alone, with its share in the pool of their logits: the fused features
    [n, d], or the branches' own. `enter`: what comes between fusion and
    classifier, if anything does.
    """
    if isinstance(fusion, Late):
        return list(zip(fusion.weights.tolist(), features, strict=True))
    fused = fusion(features)
    return [(1.0, enter(fused) if enter else fused)]


def kind_of(fusion: nn.Module) -> str:
    """Its name in `FUSIONS`."""
    return next(kind for kind, made in FUSIONS.items() if made is type(fusion))
