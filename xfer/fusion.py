"""Fusion of N branches over one explicit weight vector w = softmax(alpha), alpha in R^N.

Symbols: B batch, N branches, d common channels. Features are N tensors [B, d] or [B, d, H, W]; the result has the
shape of one, but for `concat`, which has N*d channels. A one-hot w is exactly the single branch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LOG_ZERO = -1e4  # alpha of a weight of 0: finite, and exp of it is exactly 0 whatever a gate adds


def _mixed(alpha: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Features weighted by channel, alpha [N, d]. One function for both, so a gate at 0 is exactly the weighted sum."""
    w = alpha.softmax(0)
    w = w / w.norm(dim=0)
    shape = (1, -1) + (1,) * (features[0].dim() - 2)
    return torch.stack([w[i].view(shape) * z for i, z in enumerate(features)]).sum(0)


class WeightedSum(nn.Module):
    """z = sum_b w_b z_b / ||w||_2: the norm keeps the variance, so w does not change the head's effective learning
    rate.
    """

    def __init__(self, weights: Sequence[float]):
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

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return _mixed(self.alpha[:, None].expand(-1, features[0].shape[1]), features)


class Gate(WeightedSum):
    """Per channel c: w_bc = softmax_b(alpha_b + gamma_bc); gamma starts at 0, where it is the weighted sum."""

    def __init__(self, weights: Sequence[float], width: int):
        super().__init__(weights)
        self.gamma = nn.Parameter(torch.zeros(len(weights), width))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return _mixed(self.alpha[:, None] + self.gamma, features)


class Concat(nn.Module):
    """Baseline without a weight vector."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(features), dim=1)


FUSIONS = {
    "wsum": lambda weights, width: WeightedSum(weights),
    "gate": Gate,
    "concat": lambda weights, width: Concat(),
}


def kind_of(fusion: nn.Module) -> str:
    """Its name in `FUSIONS`."""
    return next(kind for kind, make in FUSIONS.items() if type(make([1.0], 1)) is type(fusion))
