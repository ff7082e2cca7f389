"""The head `labels`: a classifier whose rows are near to what the names of their classes say.

    logits_k = V_k . u + b_k,   u = sqrt(d) z / |z|,   V_k = A t_k + Delta_k

z [d] is the fused feature, t_k [DIMS] the vector of a name (xfer/encoders.py), of length 1. As V_k . u is
sqrt(d) |V_k| cos(V_k, z), it is a cosine classifier with a scale and a bias for each class. A maps names to features,
the same for all classes; Delta_k is what images say of class k alone, and `delta_penalty`, here L, is what that costs:
the loss has the part

    min over A of  L / 2 sum_k |Delta_k|^2 + COST / 2 |A|^2

0 is an ordinary cosine classifier, for which names are nothing; the larger, the more a row has to be what A makes of
its name, and then the classes of like names have like rows.

Two choices keep this simple and exact. There is no map of z of its own: the projections that z is the sum of are
trained linear maps already. And A is no parameter: for given rows V the best A is a ridge regression of the rows on the
names, in closed form,

    A' = T' (T T' + COST / L)^-1 V,   Delta = V - T A' = P V / L,   P = L (1 + L / COST T T')^-1   [K, K]

and the gradient of the penalty at V is L Delta = P V. So the rows of any linear classifier on u are rows of this head,
with the Delta that they have: a pretrained run begins as its probe exactly, whatever the penalty, and the probe is
fitted with the penalty, which is quadratic in V. What is trained, packed and exported is a linear layer. The other way,
A and Delta as parameters with Delta = 0 at first, cannot begin as a probe: its rows would be the names'.

While the vectors of the names are linearly independent, some A fits any rows; what a large penalty does then is decided
by COST: sums of rows are cheap where names are alike, differences dear.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from xfer.encoders import DIMS

COST = 0.01


class UnitLength(nn.Module):
    """z [B, d] -> u [B, d] of length sqrt(d), so that its numbers are as large as those of z."""

    def forward(self, z: Tensor) -> Tensor:
        return normalize(z, dim=-1) * z.shape[-1] ** 0.5


class LabelTable(nn.Module):
    """T, the vectors of the names: a buffer float32 [K, DIMS], in the order of the rows."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.vectors: Tensor
        self.register_buffer("vectors", torch.zeros(num_classes, DIMS))

    def pull(self, penalty: float, taught: Tensor) -> Tensor:
        """P [K, K] float32 for these classes alone, `taught` bool [K]; the rows and columns of others are 0: a class
        that no source annotates is not pulled.
        """
        at = taught.nonzero()[:, 0]
        gram, pull = self._gram(at), torch.zeros(len(taught), len(taught))
        eye = torch.eye(len(at), dtype=torch.float64)
        inverse = torch.linalg.inv(eye + penalty / COST * gram)
        pull[at[:, None], at] = (penalty * (inverse + inverse.T) / 2).float()
        return pull

    @torch.no_grad()
    def named(self, vectors: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """Weight [n, d] and bias [n] of classes that are known by the vectors of their names [n, DIMS] alone: A t, as
        long as the rows `weight` [K, d] are in the mean, and the mean of their `bias` [K]. Where names say nothing
        (penalty 0, nothing in common) the weight is 0.
        """
        gram = self._gram(torch.arange(len(self.vectors)))
        eye = torch.eye(len(gram), dtype=torch.float64)
        mapped = torch.linalg.solve(COST * eye + penalty * gram, penalty * weight.double())
        found = normalize(vectors.double() @ self.vectors.double().T @ mapped)
        return (weight.norm(dim=1).mean() * found).float(), bias.mean().expand(len(vectors))

    def _gram(self, at: Tensor) -> Tensor:
        """T T' of some classes, float64."""
        vectors = self.vectors[at].double().cpu()
        return vectors @ vectors.T
