"""The plan of a build: which items go into which shard, decided before anything is written.

Items are ordered by a keyed hash of their key, so shards are class-mixed whatever the folder's order, and cut into
equal counts. `hash` covers all that decides the result, and each file's size and change time: a changed image is
another plan.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shards import order
from shards.manifest import File, canonical, write_json
from shards.sources import Item, Listing
from shards.tar import BLOCK, padded
from shards.write import Task

_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """Items in shard order, and where to cut."""

    name: str
    split: str
    source: str
    seed: int
    shard_bytes: int
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    ignored: int

    @property
    def num_items(self) -> int:
        """Images listed; refused ones will not become samples."""
        return len(self.items)

    @cached_property
    def hash(self) -> str:
        """sha256 of everything that decides the shards."""
        items = [[i.key, i.label, i.extension, i.size, i.changed_ns] for i in self.items]
        content = [_VERSION, self.name, self.split, self.seed, self.shard_bytes, self.classes, items]
        return "sha256:" + hashlib.sha256(canonical(content)).hexdigest()

    def summary(self) -> dict:
        """What tells this plan from another, for reports."""
        return {
            "plan": self.hash,
            "name": self.name,
            "split": self.split,
            "source": self.source,
            "items": self.num_items,
            "seed": self.seed,
            "shard_bytes": self.shard_bytes,
        }

    def tasks(self, state: str) -> list[Task]:
        """One task for each shard; counts differ by at most one."""
        n, shards = self.num_items, max(1, -(-tar_bytes(self.items) // self.shard_bytes))
        shards = min(shards, n)
        cuts = [shard * n // shards for shard in range(shards + 1)]
        return [
            Task(
                f"{self.split}-{shard:06d}.tar",
                state,
                self.hash,
                self.items[cuts[shard] : cuts[shard + 1]],
                len(self.classes),
            )
            for shard in range(shards)
        ]


def make(listing: Listing, source: str, name: str, split: str, shard_bytes: int, seed: int) -> Plan:
    """The plan for a listing; a pure function of its arguments."""
    shuffled = sorted(listing.items, key=lambda item: (order.key(seed, order.name_key(item.key)), item.key))
    return Plan(name, split, source, seed, shard_bytes, listing.classes, tuple(shuffled), listing.ignored)


def open_state(out: Path, plan: Plan) -> Path:
    """The folder in which the plan's shards are prepared, with what an earlier run of the same plan left there."""
    state = out / f".build-{plan.split}"
    if read_json(state / "plan.json").get("plan") != plan.hash:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        write_json(state / "plan.json", plan.summary())
    for partial in state.glob("*.tmp*"):
        partial.unlink(missing_ok=True)
    return state


def tar_bytes(items: Sequence[Item]) -> int:
    """Size of the items as tar members: two headers and one block for the class, besides the image."""
    return sum(padded(item.size) + 3 * BLOCK for item in items)


def describe(path: Path, name: str, samples: int) -> File:
    """The manifest entry of a file on disk."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(name, path.stat().st_size, samples, digest)


def read_json(path: Path) -> dict:
    """A JSON object, or an empty one if there is none to read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
