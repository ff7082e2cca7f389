"""What makes a vector of a class name: `ENCODERS`, each from names to float32 [K, DIMS] of length 1; and of a text of
several words, by the same n-grams.

`hash-ngram` needs nothing but the name. It knows spelling and no meaning: `shirt` is near to `t-shirt`, and as near to
`skirt`; `sofa` and `couch` have nothing in common. The same name gives the same numbers on every machine and in every
release, for a bundle is added to by them: another rule is another encoder of another name.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn.functional import normalize

from xfer.spelling import plain

DIMS = 256
_LENGTHS = (3, 4, 5)  # of n-grams, with the marks of where a name begins and ends


def hash_ngram(names: Sequence[str]) -> Tensor:
    """Each name in its plain form among these (xfer/spelling.py), between < and >, is cut into its n-grams of 3 to 5
    letters (Bojanowski et al., Enriching Word Vectors with Subword Information, TACL 2017, sec. 3.2); each adds 1 or -1
    to one of the numbers, both by its hash (Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML
    2009, sec. 2).
    """
    forms = plain(names)
    return normalize(torch.stack([_hashed(_grams(f"<{forms[name]}>")) for name in names]))


def hash_text(words: Sequence[str]) -> Tensor:
    """The n-grams of each word of a text, as of a name: float32 [DIMS] of length 1, or 0 without a word."""
    return normalize(_hashed([gram for word in words for gram in _grams(f"<{word}>")]), dim=0)


def _hashed(grams: Sequence[str]) -> Tensor:
    """How often each number occurs by the hash of a gram, counted up or down by its sign; float32 [DIMS]."""
    counts = [0.0] * DIMS
    for gram in grams:
        hashed = int.from_bytes(blake2b(gram.encode(), digest_size=8).digest(), "little")
        counts[(hashed >> 1) % DIMS] += 1 if hashed & 1 else -1
    return torch.tensor(counts)


def _grams(text: str) -> list[str]:
    return [text[at : at + n] for n in _LENGTHS for at in range(len(text) - n + 1)]


ENCODERS: dict[str, Callable[[Sequence[str]], Tensor]] = {"hash-ngram": hash_ngram}
