"""How well features suit a task, without training on it: LogME, H-score and k-nearest-neighbour accuracy.

    log_evidence    log marginal likelihood of the labels, a sample, under a Bayesian linear model of the features
    h_score         how much of the features' variance lies between the classes: high where classes are apart
    knn_votes       which class the nearest of a set of labelled images have: no assumption of linearity

Each costs seconds for thousands of images. They rank features on one task; their values are not comparable between
tasks, and only the last is a fraction of images.
"""

import math

import torch
from torch import Tensor

NEIGHBOURS = 20
_TEMPERATURE = 0.07
_ROOM = 1 << 24  # similarities held at once
_ITERATIONS = 100
_TINY = 1e-12


def log_evidence(features: Tensor, targets: Tensor) -> float:
    """LogME: for each class, the log evidence p(y | F) of its 0/1 labels under y = F w + noise, w ~ N(0, 1/alpha),
    noise ~ N(0, 1/beta), at the alpha and beta of most evidence; divided by n, mean over the classes that occur.

    features [n, d] float; targets [n] int64. You et al., LogME: Practical Assessment of Pre-trained Models for Transfer
    Learning, ICML 2021, Algorithm 1, with the fixed-point iteration of You et al., Ranking and Tuning Pre-trained
    Models, JMLR 2022. Cost: one eigendecomposition of min(n, d) squared.
    """
    f = features.double()
    n = len(f)
    y = torch.nn.functional.one_hot(targets.unique(return_inverse=True)[1]).double()  # [n, K]
    squared, z2 = _spectrum(f, y)  # [k], [k, K]
    outside = y.square().sum(0) - z2.sum(0)

    def at(ratio: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best weights' squared norm and residual for a ratio alpha / beta, and the alpha and beta they ask for."""
        shrunk = squared[:, None] + ratio
        norm = (squared[:, None] * z2 / shrunk.square()).sum(0).clamp_min(_TINY)
        residual = (outside + (z2 * (ratio / shrunk).square()).sum(0)).clamp_min(_TINY)
        used = (squared[:, None] / shrunk).sum(0)
        return norm, residual, (used / norm).clamp_min(_TINY), (n - used).clamp_min(_TINY) / residual

    ratio = torch.ones(y.shape[1], dtype=f.dtype)
    for _ in range(_ITERATIONS):
        _, _, alpha, beta = at(ratio)
        before, ratio = ratio, alpha / beta
        if ((ratio - before).abs() <= 1e-6 * before).all():
            break
    norm, residual, alpha, beta = at(ratio)
    evidence = len(squared) * alpha.log() - (alpha + beta * squared[:, None]).log().sum(0)
    evidence += n * (beta / (2 * math.pi)).log() - beta * residual - alpha * norm
    return (evidence / (2 * n)).mean().item()


def _spectrum(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values of f [n, d] above rounding, [k], and squared coordinates of y [n, K] along the left
    singular vectors, [k, K]; by the smaller of the two Gram matrices.
    """
    tall = f.shape[0] >= f.shape[1]
    squared, vectors = torch.linalg.eigh(f.T @ f if tall else f @ f.T)
    kept = squared > squared[-1].clamp_min(0) * max(f.shape) * torch.finfo(f.dtype).eps
    squared, vectors = squared[kept], vectors[:, kept]
    along = vectors.T @ (f.T @ y) / squared.sqrt()[:, None] if tall else vectors.T @ y
    return squared, along.square()


def h_score(features: Tensor, targets: Tensor, shrinkage: float | None = None) -> float:
    """H-score: trace of cov(f)^-1 cov(E[f | y]), from 0 to the smaller of d and classes - 1.

    features [n, d] float; targets [n] int64. Bao et al., An Information-Theoretic Approach to Transferability in Task
    Transfer Learning, ICIP 2019. The covariance is shrunk towards a multiple of the identity, and the score with it, as
    in Ibrahim et al., Newer is not always better: Rethinking Transferability Metrics, ECML PKDD 2022: few samples of
    many features would give any labels a high score. `shrinkage`: how much, from 0 to 1; None: by `ledoit_wolf`.
    """
    f = features.double()
    f = f - f.mean(0)
    classes, counts = targets.unique(return_inverse=True, return_counts=True)[1:]
    means = torch.zeros(len(counts), f.shape[1], dtype=f.dtype).index_add_(0, classes, f) / counts[:, None]
    between = (means * counts[:, None]).T @ means / len(f)
    amount = ledoit_wolf(f) if shrinkage is None else shrinkage
    covariance = f.T @ f / len(f)
    level = covariance.diagonal().mean()
    covariance = (1 - amount) * covariance + amount * level * torch.eye(len(covariance), dtype=f.dtype)
    return (1 - amount) * torch.linalg.pinv(covariance, hermitian=True).mul(between).sum().item()


def ledoit_wolf(features: Tensor) -> float:
    """How much of level x identity the covariance of least expected squared error has; features [n, d] of mean 0.

    Ledoit & Wolf, A well-conditioned estimator for large-dimensional covariance matrices, J. Multivariate Analysis
    2004.
    """
    n = len(features)
    covariance = features.T @ features / n
    level = covariance.diagonal().mean()
    distance = covariance.square().sum() - len(covariance) * level.square()
    noise = (features.square().sum(1).square().mean() - covariance.square().sum()) / n
    return (noise.clamp_min(0).minimum(distance) / distance).item() if distance > 0 else 1.0


def knn_votes(
    queries: Tensor, bank: Tensor, targets: Tensor, k: int = NEIGHBOURS, among_themselves: bool = False
) -> Tensor:
    """The class that the `k` of the bank nearest to each query vote for, int64 [q].

    queries [q, d] and bank [n, d] float; targets [n] int64 of the bank. Votes weigh exp(cosine / 0.07): Wu et al.,
    Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.
    `among_themselves`: the queries are the bank, and none is its own neighbour. Holds 2^24 similarities at a time.
    """
    queries, bank = (torch.nn.functional.normalize(x.float(), dim=1) for x in (queries, bank))
    k = min(k, len(bank) - among_themselves)
    count, found = int(targets.max()) + 1, []
    step = max(1, _ROOM // len(bank))
    for start in range(0, len(queries), step):
        similar = queries[start : start + step] @ bank.T
        if among_themselves:
            similar[torch.arange(len(similar)), start + torch.arange(len(similar))] = -torch.inf
        near = similar.topk(k, dim=1)
        votes = torch.zeros(len(similar), count)
        # the nearest has a weight of 1: only ratios count, and none overflows
        votes.scatter_add_(1, targets[near.indices], ((near.values - near.values[:, :1]) / _TEMPERATURE).exp())
        found.append(votes.argmax(1))
    return torch.cat(found)
