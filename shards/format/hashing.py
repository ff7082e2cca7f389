"""Keyed hashes: randomness that is a pure function of integers, the same on every platform and NumPy version.

Everything that looks random in a run (order, augmentation, replacement, splits) comes from here, so there is no
generator whose state has to be saved. splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 4  # of a Feistel network: Luby and Rackoff's bound for a strong pseudorandom permutation
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(x: int) -> int:
    """The splitmix64 finaliser: a bijection of 64-bit integers whose every output bit depends on every input bit."""
    x = ((x ^ (x >> 30)) * _MIX[0]) & _MASK
    x = ((x ^ (x >> 27)) * _MIX[1]) & _MASK
    return x ^ (x >> 31)


def mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix` of each element, uint64 [n]."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX[1])
    return x ^ (x >> np.uint64(31))


def key(*parts: int) -> int:
    """Folds integers into one 64-bit key."""
    folded = _GOLDEN
    for part in parts:
        folded = mix(((folded ^ (part & _MASK)) + _GOLDEN) & _MASK)
    return folded


def name_key(name: str) -> int:
    """The 64-bit key of a source's or a sample's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def content_key(data: bytes) -> int:
    """The 64-bit key of an encoded image: two of a billion different images share one with a probability of 3 %."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def fold(folded: NDArray[np.uint64], *parts: Ints | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`key` of many at once: `fold(key(a), b)` is `key(a, b)`, element by element, uint64 [n]."""
    for part in parts:
        folded = mix_array((folded ^ part.astype(np.uint64)) + np.uint64(_GOLDEN))
    return folded


def permutation(n: int, *parts: int) -> Ints:
    """A shuffle of 0..n-1 that depends on `parts` alone, int64 [n]: a stable sort by keyed hash."""
    hashed = mix_array(np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key(*parts)))
    return np.argsort(hashed, kind="stable").astype(np.int64, copy=False)


def shuffled(index: Ints, size: Ints, keys: NDArray[np.uint64]) -> Ints:
    """Where a shuffle of 0..size-1 puts each index, int64 [n]; each element has a size and a key of its own.

    A Feistel network over a * b >= size values, walked until it ends inside (Black and Rogaway, "Ciphers with
    arbitrary finite domains", CT-RSA 2002): no table, so a shuffle of any size costs no memory and no first use.
    Domains below 64 are widened: over fewer values not every permutation would be equally likely.
    """
    x, n = index.astype(np.uint64), size.astype(np.uint64)
    a = np.maximum(np.sqrt((n - np.uint64(1)).astype(np.float64)).astype(np.uint64) + np.uint64(1), np.uint64(8))
    b = (np.maximum(n, np.uint64(64)) + a - np.uint64(1)) // a
    rounds = np.arange(_ROUNDS, dtype=np.uint64)[:, None] * np.uint64(_GOLDEN)
    keys = mix_array(keys[None] + rounds)
    outside = np.arange(len(x))
    while len(outside):
        x[outside] = _feistel(x[outside], a[outside], b[outside], keys[:, outside])
        outside = outside[x[outside] >= n[outside]]
    return x.astype(np.int64)


def _feistel(x: NDArray, a: NDArray, b: NDArray, keys: NDArray) -> NDArray[np.uint64]:
    """A permutation of 0 .. a*b - 1, element by element; keys uint64 [rounds, n]."""
    left, right = np.divmod(x, b)
    for number, round_key in enumerate(keys):
        if number % 2:
            right = (right + mix_array(left * np.uint64(_GOLDEN) + round_key)) % b
        else:
            left = (left + mix_array(right * np.uint64(_GOLDEN) + round_key)) % a
    return left * b + right


def uniforms(count: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each key, that depend on it alone; float64 [n, count]."""
    hashed = mix_array(keys[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN))
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def in_share(hashes: NDArray[np.uint64], low: float, high: float) -> NDArray[np.bool_]:
    """Whether each hash, read as a fraction, lies in [low, high); bool [n]."""
    fraction = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (fraction >= low) & (fraction < high)
