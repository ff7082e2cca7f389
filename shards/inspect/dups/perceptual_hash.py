"""What shows that two pictures are one: a digest of the file, and a perceptual hash, of what is to be seen.

The hash is made of signs. The upright picture, in grey and made 32 x 32 pixels, goes through a cosine transform, and
of the 512 lowest frequencies the sign is kept. Another encoding, size, brightness or contrast changes how large the
coefficients are, and hardly any sign. A coefficient smaller than one level of grey has no sign that means anything,
and neither has one finer than the pixels: these are unknown, so flat, symmetric and tiny pictures do not look alike for
all that they lack. The distance of two hashes is the share of the signs known in both that differ; with fewer than 128
known in both there is none. Mirroring a picture turns the signs of the odd horizontal frequencies, so a mirrored copy
is known by its hash too. Pictures turned by 90 degrees, or cut by more than about 3 %, are not.

Signs of a cosine transform instead of a picture: Ito and Kiya, "DCT sign-only correlation with application to image
matching", ICASSP 2007; as bits to be counted: Zauner, "Implementation and benchmarking of perceptual image hash
functions", 2010. How well it separates copies from others, and why 512 and not 64: benchmarks/results/dups.md. Costs
one decode, shrunken where that is cheaper, and 0.05 ms; 160 bytes a picture.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.decode import SHRINKS, Raster, open_image, pixels
from shards.format.hashing import Ints

VERSION = 1
"""Raised when the same bytes would give another hash: what is kept on disk goes by it."""

BITS = 512
FEWEST = 128
"""Signs known in both that a distance needs: of unrelated pictures, one pair in 10^11 is that close by chance."""

HASH = np.dtype([("file", "<u8", 2), ("pixels", "<u8", 2), ("signs", "<u8", BITS // 64), ("known", "<u8", BITS // 64)])
"""`file`: digest of the encoded image; 0: there is no hash. `pixels`: digest of the pixels, where too few signs are
known to compare them; else 0. `signs`, `known`: a bit for each frequency, the lowest first; unknown signs are 0.
"""

_SIDE = 32
_FLOOR = 1.0


def _transform() -> NDArray[np.float32]:
    """The orthonormal cosine transform (DCT-II) of 32 values, float32 [32, 32]."""
    n = np.arange(_SIDE)
    matrix = np.cos(np.pi * (2 * n + 1) * n[:, None] / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def _lowest() -> tuple[Ints, Ints]:
    """Vertical and horizontal frequency of each bit: by their sum, and diagonals from the middle."""
    down, across = (part.ravel() for part in np.indices((_SIDE, _SIDE)))
    order = np.lexsort((np.abs(down - across), down + across))[1 : BITS + 1]  # the first is the mean
    return down[order], across[order]


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """64 bits to a word, the first bit the lowest."""
    return np.packbits(bits, bitorder="little").view("<u8")


_DCT = _transform()
_DOWN, _ACROSS = _lowest()
_TURNED = _packed(_ACROSS % 2 == 1)


def take_hash(data: bytes) -> np.ndarray:
    """The hash of an encoded image, HASH []. Raises DecodeError."""
    encoded = open_image(data)
    raster = pixels(encoded, _shrink(min(encoded.width, encoded.height)))
    coefficients = (_DCT @ _grey(raster) @ _DCT.T)[_DOWN, _ACROSS]
    known = (np.abs(coefficients) >= _FLOOR) & (encoded.height > _DOWN) & (encoded.width > _ACROSS)
    row = np.zeros((), HASH)
    row["file"] = digest(data)
    row["signs"], row["known"] = _packed(known & (coefficients > 0)), _packed(known)
    if known.sum() < FEWEST:
        row["pixels"] = digest_pixels(data)
    return row


def digest(data: bytes) -> NDArray[np.uint64]:
    """128 bits that no two contents share, uint64 [2]."""
    return np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), "<u8")


def digest_pixels(data: bytes) -> NDArray[np.uint64]:
    """`digest` of what an encoded image shows, uint64 [2]: the same for any lossless encoding. Raises DecodeError."""
    array = np.ascontiguousarray(pixels(open_image(data)).array)
    return digest(repr(array.shape).encode() + array.tobytes())


def distances(a: np.ndarray, b: np.ndarray) -> NDArray[np.float32]:
    """How much hashes differ, pair by pair, HASH [n] each: 0 is the same, 0.5 unrelated, infinity unknown."""
    known = a["known"] & b["known"]
    count = np.bitwise_count(known).sum(-1, dtype=np.int64)
    differing = np.bitwise_count((a["signs"] ^ b["signs"]) & known).sum(-1, dtype=np.int64)
    return np.where(count >= FEWEST, differing / np.maximum(count, 1), np.inf).astype(np.float32)


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """The hashes of the mirrored pictures, without their digests; HASH [n]."""
    turned = np.zeros(hashes.shape, HASH)
    turned["known"] = hashes["known"]
    turned["signs"] = hashes["signs"] ^ (_TURNED & hashes["known"])
    return turned


def comparable(hashes: np.ndarray) -> NDArray[np.bool_]:
    """Which hashes can be compared at all: the others are of flat or tiny pictures, or there is none; bool [n]."""
    return np.bitwise_count(hashes["known"]).sum(-1, dtype=np.int64) >= FEWEST


def _shrink(shorter: int) -> int:
    """By how much a JPEG may be shrunken while it is decoded: twice the pixels that are needed must be left."""
    return next(shrink for shrink in SHRINKS if shrink == 1 or shorter // shrink >= 2 * _SIDE)


def _grey(raster: Raster) -> NDArray[np.float32]:
    """float32 [32, 32]. A triangle filter, which forgives small shifts best of those that Pillow has."""
    image = Image.fromarray(np.ascontiguousarray(raster.array)).convert("L")
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), np.float32)
