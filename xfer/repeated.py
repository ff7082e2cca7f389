"""Intervals over runs that differ in their seeds only: what a recipe does, not what one run of it happened to do.

Legend: R runs, one a seed; n images of a source. Every run of the R sees the same images, so runs and images are
crossed, and both are samples of what could have been: other seeds, other images.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from xfer.metrics import Estimate

MOST_FREEDOM = 1000  # degrees of freedom beyond which Student's t is 1.96 to three digits


def student_t(freedom: int) -> float:
    """The t that holds 95 % of Student's distribution between -t and t.

    Its closed form for whole degrees of freedom (Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and
    26.7.4), halved until it fits.
    """
    freedom = min(freedom, MOST_FREEDOM)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < 0.95 else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """The probability between -t and t for t = sqrt(freedom) tan(angle)."""
    odd, square = freedom % 2, math.cos(angle) ** 2
    factors = [square * (k - 1) / k for k in range(2 + odd, freedom, 2)]
    terms = sum(accumulate([1.0, *factors], lambda term, factor: term * factor))
    if not odd:
        return math.sin(angle) * terms
    return 2 / math.pi * (angle + (math.sin(angle) * math.cos(angle) * terms if freedom > 1 else 0.0))


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, R of them, and Student's t-interval (Student, The Probable Error of a Mean,
    Biometrika 1908).
    """
    n, mean = len(values), float(np.mean(values))
    half = student_t(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(mean, mean - half, mean + half)


def difference_over_seeds(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    """How much more often b is right than a, over seeds and images: the unweighted mean of sources.

    pairs: for each source (a, b), bool [R, n] each, run k of a beside run k of b on the same images.

    The variance is that of the means of the runs plus that of the means of the images, each over its number: two-way
    clustering (Cameron, Gelbach & Miller, Robust Inference With Multiway Clustering, JBES 2011) without taking off what
    both hold, which is on the safe side and never negative. t has the degrees of freedom of Satterthwaite (An
    Approximate Distribution of Estimates of Variance Components, Biometrics 1946), rounded down, so that few seeds that
    differ much count as few. As in `paired_difference`, an image is added on either side of each source: where nothing
    differs the interval is not of width zero.
    """
    raw, grown = [], []
    for a, b in pairs:
        if a.shape != b.shape or a.ndim != 2:
            raise ValueError(f"outcomes of shapes {a.shape} and {b.shape} are not paired")
        difference = b.astype(np.float64) - a
        raw.append(difference.mean())
        grown.append(np.concatenate([difference, np.ones((len(a), 1)), -np.ones((len(a), 1))], 1))
    runs = np.mean([one.mean(1) for one in grown], 0)
    parts = [(runs.var(ddof=1) / len(runs), len(runs) - 1)]
    for one in grown:
        images = one.mean(0)
        parts.append((images.var(ddof=1) / images.size / len(pairs) ** 2, images.size - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    half, centre = student_t(max(1, int(freedom))) * math.sqrt(variance), float(runs.mean())
    return Estimate(float(np.mean(raw)), max(-1.0, centre - half), min(1.0, centre + half))
