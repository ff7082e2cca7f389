"""The rows that a shard or tar leaves when it is written or scanned, and the files of a split that they become.

A row is that of the index and the hash of the encoded image, which says in another data set, another build or another
order whether it is the same image. The two go to files of their own: the index decides what a split is, the hashes are
derived from the shards and no part of its version.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from shards.format.manifest import CONTENT, INDEX, File, content_name, describe, write_rows

PART = np.dtype([*((name, INDEX[name]) for name in INDEX.names or ()), ("content", CONTENT)])


def write_files(
    state: Path, out: Path, split: str, parts: Callable[[], Iterator[np.ndarray]], num_rows: int
) -> tuple[File, File]:
    """Index and content hashes of a split, put in place from PART arrays; their entries for the manifest."""
    found = []
    for name, kind, pick in (
        (f"{split}.index.npy", INDEX, _index),
        (content_name(split), CONTENT, lambda part: part["content"]),
    ):
        write_rows(state / name, map(pick, parts()), num_rows, kind)
        found.append(describe(state / name, name, num_rows))
        os.replace(state / name, out / name)
    return found[0], found[1]


def _index(part: np.ndarray) -> np.ndarray:
    """PART [n] -> INDEX [n]."""
    rows = np.empty(len(part), INDEX)
    for name in INDEX.names or ():
        rows[name] = part[name]
    return rows
