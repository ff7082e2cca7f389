"""LogME, H-score and nearest neighbours against what defines them, written out."""

import math

import numpy as np
import pytest
import torch

from xfer.transfer import transferability
from xfer.transfer.transferability import h_score, knn_votes, ledoit_wolf, log_evidence


def drawn(n: int, d: int, classes: int, signal: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of which each class has a mean of its own, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % classes
    means = torch.randn(classes, d, generator=generator)
    return signal * means[targets] + torch.randn(n, d, generator=generator), targets


def evidence_of(f: np.ndarray, y: np.ndarray, alpha: float, beta: float) -> float:
    """log N(y | 0, I / beta + F F^T / alpha) / n: the labels' likelihood with the weights integrated out."""
    covariance = np.eye(len(f)) / beta + f @ f.T / alpha
    _, log_determinant = np.linalg.slogdet(covariance)
    fit = y @ np.linalg.solve(covariance, y)
    return -0.5 * (len(f) * math.log(2 * math.pi) + log_determinant + fit) / len(f)


def most_evidence(f: np.ndarray, y: np.ndarray) -> float:
    """Over a grid of alpha and beta that closes in on the best."""
    centre, width, best = np.zeros(2), 6.0, -np.inf
    for _ in range(12):
        for a in np.linspace(-width, width, 9):
            for b in np.linspace(-width, width, 9):
                place = centre + np.array([a, b])
                value = evidence_of(f, y, *np.exp(place))
                if value > best:
                    best, at = value, place
        centre, width = at, width * 0.5
    return best


@pytest.mark.parametrize(("n", "d", "classes"), [(60, 5, 3), (40, 30, 2), (24, 40, 3)])
def test_logme_is_the_greatest_evidence_of_the_labels_mean_over_classes(n, d, classes):
    features, targets = drawn(n, d, classes, 0.7)
    f, y = features.double().numpy(), torch.nn.functional.one_hot(targets).double().numpy()
    expected = np.mean([most_evidence(f, y[:, k]) for k in range(classes)])
    assert log_evidence(features, targets) == pytest.approx(expected, abs=2e-4)
    assert log_evidence(features, 7 * targets + 2) == pytest.approx(expected, abs=2e-4), "numbers of classes are names"


def test_h_score_is_the_trace_and_is_shrunk_as_ledoit_and_wolf_say():
    features, targets = drawn(80, 6, 4, 1.0)
    x = features.double().numpy()
    means = np.stack([x[targets == k].mean(0) for k in range(4)])[targets]
    s, between = np.cov(x.T, ddof=0), np.cov(means.T, ddof=0)
    assert h_score(features, targets, shrinkage=0) == pytest.approx(np.trace(np.linalg.inv(s) @ between))
    assert 0 < h_score(features, targets, shrinkage=0) < 3
    centred, level = x - x.mean(0), np.trace(s) / 6
    noise = sum(((np.outer(row, row) - s) ** 2).sum() for row in centred) / 80**2
    amount = min(noise, ((s - level * np.eye(6)) ** 2).sum()) / ((s - level * np.eye(6)) ** 2).sum()
    assert ledoit_wolf(torch.from_numpy(centred)) == pytest.approx(amount)
    shrunk = (1 - amount) * s + amount * level * np.eye(6)
    expected = (1 - amount) * np.trace(np.linalg.inv(shrunk) @ between)
    assert h_score(features, targets) == pytest.approx(expected)


@pytest.mark.parametrize("among_themselves", [False, True])
def test_neighbours_vote_as_in_a_plain_loop_in_whatever_pieces(monkeypatch, among_themselves):
    bank, targets = drawn(70, 8, 5, 0.5)
    queries = bank if among_themselves else drawn(30, 8, 5, 0.5, seed=1)[0]
    plain = []
    for i, query in enumerate(queries.double()):
        near = []
        for j, one in enumerate(bank.double()):
            if not (among_themselves and i == j):
                near.append((float(query @ one / query.norm() / one.norm()), int(targets[j])))
        votes = [0.0] * 5
        for cosine, label in sorted(near, reverse=True)[:20]:
            votes[label] += math.exp(cosine / 0.07)
        plain.append(votes.index(max(votes)))
    assert knn_votes(queries, bank, targets, among_themselves=among_themselves).tolist() == plain
    monkeypatch.setattr(transferability, "_ROOM", 7 * 70)
    assert knn_votes(queries, bank, targets, among_themselves=among_themselves).tolist() == plain
    few = knn_votes(queries, bank[:3], targets[:3], among_themselves=False)
    assert set(few.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("score", [log_evidence, h_score])
def test_features_in_which_the_classes_are_apart_score_above_noise(score):
    found = [score(*drawn(200, 20, 4, signal)) for signal in (0.0, 0.3, 1.0)]
    assert found == sorted(found)
    features, targets = drawn(200, 20, 4, 0.0)
    knowing = torch.cat([features, torch.nn.functional.one_hot(targets).float()], 1)
    assert score(knowing, targets) > found[1]


def test_labels_without_any_relation_have_next_to_no_h_score_even_from_many_features():
    features, targets = drawn(100, 200, 4, 0.0)
    assert h_score(features, targets, shrinkage=0) > 2.9, "as it was published"
    assert h_score(features, targets) < 0.1


def test_a_constant_feature_changes_nothing_and_features_that_are_all_alike_say_nothing():
    features, targets = drawn(90, 5, 3, 1.0)
    constant = torch.cat([features, torch.zeros(90, 1)], 1)
    assert log_evidence(constant, targets) == pytest.approx(log_evidence(features, targets), abs=1e-9)
    assert math.isfinite(log_evidence(torch.zeros(90, 3), targets))
    assert h_score(torch.ones(90, 3), targets) == 0
