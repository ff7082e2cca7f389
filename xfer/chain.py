"""Proof of what was trained: two hash chains over the steps of a run, in chain.jsonl of its folder.

    {"step": 1, "ranks": 2, "images": "0f6a...", "losses": "93bd..."}    each step: everything up to it
    {"step": 100, "weights": "5b1e..."}                                  each checkpoint: sha256 of its model

**Two runs are the same run exactly when their chains are**; where they part, the first line that differs is the step.
There are two chains because runs agree in two ways. `images` is over the step and the images that all ranks were given
for it, whichever rank had which: the same at any number of ranks. `losses` is over the step and the bits of its loss,
the mean over the global batch: the same again only on as many ranks, as sums of floats depend on how they are split.
Weights stand beside them, not in them: a run that was stopped has a checkpoint more than one that was not, and is
the same run.

What is chained is what happened, not what was planned. Positions alone would prove nothing, as every run counts them
from 0; so each sample that a loader process has read carries 64 bits of its source, key, stored bytes and position
(`Batch.fingerprints`), which also tell where a damaged one was replaced. Their sum modulo 2^64 does not depend on the
order of samples or ranks (Clarke et al., *Incremental Multiset Hash Functions*, ASIACRYPT 2003), so it travels with the
losses in the one reduction that every row makes anyway: it costs no message of its own. This finds faults, by chance or
by mistake; it does not hold against someone who forges a run.

The newest links are kept in the checkpoint too. A resumed run cuts the file at the checkpoint's step, a torn last line
with it, and goes on from there.

Cost: two sha256 of 30 bytes and a line of 90 bytes a step (benchmarks/results/records.md).
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.format.whole import naming, read_json_lines, write_text
from shards.settings import ConfigError
from shards.text import counted

FILE = "chain.jsonl"
LENGTH = 16  # hexadecimal digits of what is kept of a digest
_HALF = 32  # bits: a float64 adds integers of that size exactly, on 2^21 ranks
Link = dict[str, Any]
_STEP = {"step": int, "ranks": int, "images": str, "losses": str}
_CHECKPOINT = {"step": int, "weights": str}


def packed(losses: Sequence[Tensor], images: Sequence[Tensor]) -> Tensor:
    """Of n steps this rank's part of the mean loss and the sum of its fingerprints (float32, int64 scalars), as float64
    [n, 3]. Its sum over ranks is what `unpacked` takes.
    """
    sums = torch.stack(list(images)).to(losses[0].device)
    halves = sums & (1 << _HALF) - 1, sums >> _HALF & (1 << _HALF) - 1
    return torch.stack([torch.stack(list(losses)).double(), *(half.double() for half in halves)], dim=1)


def unpacked(total: Tensor) -> tuple[list[float], list[int]]:
    """The mean loss of each step, a float32, and the sum of all its fingerprints modulo 2^64."""
    low, high = (total[:, at].long().tolist() for at in (1, 2))
    images = [(one + (other << _HALF)) % (1 << 64) for one, other in zip(low, high, strict=True)]
    return total[:, 0].float().tolist(), images


def linked(before: Mapping[str, str], step: int, ranks: int, images: int, loss: float) -> Link:
    """The link of a step to the one `before`; of the first step, to nothing."""
    return {
        "step": step,
        "ranks": ranks,
        "images": _digest(before.get("images", ""), step, struct.pack("<Q", images)),
        "losses": _digest(before.get("losses", ""), step, struct.pack("<f", loss)),
    }


def _digest(before: str, step: int, value: bytes) -> str:
    return hashlib.sha256(before.encode() + struct.pack("<Q", step) + value).hexdigest()[:LENGTH]


def ends(link: Mapping[str, Any]) -> dict[str, str]:
    """What the next link needs, for a checkpoint."""
    return {name: link[name] for name in ("images", "losses") if name in link}


def of_weights(step: int, sha256: str) -> Link:
    return {"step": step, "weights": sha256[:LENGTH]}


def append(folder: Path, links: Iterable[Link]) -> None:
    """To the chain of a run folder."""
    with naming(folder / FILE), (folder / FILE).open("a") as file:
        file.write("".join(json.dumps(link) + "\n" for link in links))


def cut(folder: Path, step: int, weights: Link | None) -> None:
    """Leaves the links up to a step, which is the checkpoint's with these `weights`; None: there is none. A torn last
    line goes.
    """
    kept = [link for link in _read(folder) if link["step"] <= step]
    if weights and weights not in kept:  # saved, then killed before it was written here
        kept = [link for link in kept if link["step"] < step or "weights" not in link] + [weights]
    write_text(folder / FILE, "".join(json.dumps(link) + "\n" for link in kept))


def _read(folder: Path) -> list[Link]:
    links = read_json_lines(folder / FILE)
    for number, link in enumerate(links, 1):
        if {name: type(value) for name, value in link.items()} not in (_STEP, _CHECKPOINT):
            raise ConfigError(f"{folder / FILE}: line {number} is damaged, it is no link; move the file away")
    return links


@dataclass(frozen=True)
class Chain:
    """A run's links: `steps` by step, `weights` by the step of their checkpoint."""

    steps: Mapping[int, Link]
    weights: Mapping[int, str]


def read_chain(folder: Path) -> Chain:
    """Raises ConfigError if there is none, or it is damaged."""
    links = _read(folder)
    steps = {link["step"]: link for link in links if "ranks" in link}
    if not steps:
        file, why = folder / FILE, f"has no {FILE} with a step in it: no run, or not trained by this version"
        if file.is_file() and file.stat().st_size:
            why = f"its {FILE} is damaged, no step can be read"
        raise ConfigError(f"{folder}: {why if folder.is_dir() else 'no such folder'}")
    if gap := next((step for step in range(min(steps), max(steps)) if step not in steps), None):
        raise ConfigError(f"{folder / FILE}: is damaged, step {gap} is missing; move the file away")
    return Chain(steps, {link["step"]: link["weights"] for link in links if "weights" in link})


def agreement(one: Chain, other: Chain, names: tuple[str, str]) -> tuple[bool, str]:
    """Whether two chains are of the same run as far as both go, and in words what they share."""
    both = sorted(one.steps.keys() & other.steps.keys())
    if not both:
        return False, "they have no step in common"
    first, last = both[0], both[-1]
    parted: dict[str, int] = {}
    for what in ("images", "losses"):
        differs = [step for step in both if one.steps[step][what] != other.steps[step][what]]
        if differs and last not in differs:  # a digest stands for all steps before it too
            return False, f"a chain is damaged: the {what} of step {differs[0]} differ, and those of later steps do not"
        parted |= {what: differs[0]} if differs else {}
    images, losses = parted.get("images"), parted.get("losses")
    notes = _notes(one, other, names, last)
    if images:
        return False, f"{_same_until('images', images, first)}other images{_since(images, first)}{notes}"
    if losses:
        ranks = [chain.steps[losses]["ranks"] for chain in (one, other)]
        why = f" ({counted(ranks[0], 'rank')} against {ranks[1]})" if ranks[0] != ranks[1] else ""
        return False, f"the same images at every step to {last}; the losses differ{_since(losses, first)}{why}{notes}"
    found = sorted(step for step in one.weights.keys() & other.weights.keys() if step <= last)
    broken = [step for step in found if one.weights[step] != other.weights[step]]
    if broken:
        return False, f"the same images and losses to step {last}, but other weights at step {broken[0]}{notes}"
    begun = f" from step {first} on, where their chains begin," if first > 1 else ""
    checkpoints = f", and the weights of {counted(len(found), 'checkpoint')}" if found else ""
    return True, f"the same run{begun} to step {last}: images and losses of every step{checkpoints}{notes}"


def _same_until(what: str, parted: int, first: int) -> str:
    return f"the same {what} to step {parted - 1}, then " if parted > first else ""


def _since(step: int, first: int) -> str:
    return f" from step {step} on" if step > first or step == 1 else f" from step {step} on, or before"


def _notes(one: Chain, other: Chain, names: tuple[str, str], last: int) -> str:
    """What only one of them has."""
    further = [(name, max(chain.steps)) for name, chain in zip(names, (one, other), strict=True)]
    return "".join(f"; {name} goes on to step {end}" for name, end in further if end > last)
