"""What frozen branches make of images, seen once and kept: pooled features, and sums over the pixels of the maps.

    <output>/.features/<key>.safetensors    of one branch on one part of a source; may be removed at any time

The samples of a source are ranked, and every choice of some of them is a beginning of that ranking (see
shards/loading/few.py). It is cut into parts, a file each, so runs with other sources beside it, such as those that
leave one source out, or with more images share the parts that are whole: fewer than `PART` images of a source are seen
again. Mean and covariance over any choice of images come exactly from the sums that are kept with each part.

The key is a hash of all that decides the numbers: the branch's tensors, the size it sees, the decoder, torch's version
and device, the source's samples and which of them are in the part. Other weights, data or geometry have other keys, so
a file is never out of date; a damaged one is made anew.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from shards import decode
from shards.config import DataConfig
from shards.format.whole import whole_file
from shards.loading.batch import Batch
from shards.loading.few import few, ranking, turns
from shards.loading.subset import Subset
from shards.progress import Advance, progress
from xfer.engine import default_device
from xfer.model import FusionModel

VERSION = 2  # of the files, and of the ranking
PART = 512  # images; the sums of a part take as much room as the features of 2 c images
_BATCH = 32


@dataclass(frozen=True)
class Seen:
    """Of one branch on some images: pooled last maps [n, c] float32; positions [n] int64, of each in its source; total
    [c] and squares [c, c], sums over all pixels of the maps and of the products of their channels, float64; pixels
    int64 [].
    """

    pooled: Tensor
    positions: Tensor
    total: Tensor
    squares: Tensor
    pixels: Tensor

    @property
    def mean(self) -> Tensor:
        """[c] float64, over all pixels of the maps."""
        return self.total / self.pixels

    @property
    def covariance(self) -> Tensor:
        """[c, c] float64, over all pixels of the maps."""
        return self.squares / self.pixels - self.mean[:, None] * self.mean


@dataclass(frozen=True)
class Features:
    """By branch name, on the same images; targets [n] and sources [n] int64."""

    branches: Mapping[str, Seen]
    targets: Tensor
    sources: Tensor


class _Sum:
    """What was seen so far. Sums are added up as they come: a part's take more room than its features."""

    def __init__(self, parts: Iterable[Seen] = ()):
        self.pooled: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.sums: list[Tensor] = []
        for part in parts:
            self.add(part)

    def __len__(self) -> int:
        return sum(map(len, self.positions))

    def add(self, part: Seen) -> None:
        self.pooled.append(part.pooled)
        self.positions.append(part.positions)
        sums = [part.total, part.squares, part.pixels]
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums

    def seen(self) -> Seen:
        return Seen(torch.cat(self.pooled), torch.cat(self.positions), *self.sums)


def features_of(
    model: FusionModel, subsets: Sequence[Subset], config: DataConfig, num_images: int, cache: Path | None = None
) -> Features:
    """What each branch makes of `num_images` of the subsets, a fair mixture of the training blend, seen as in
    evaluation; from `cache`, a folder, where they are kept already. Images without a known class have no features, but
    count in the statistics. Leaves the model on the CPU, in evaluation mode.

    Cost: a forward pass over the images that are not in the cache. Raises DamagedDataError.
    """
    turn = torch.from_numpy(turns([subset.num_samples for subset in subsets], subsets, config, "proportional"))
    turn = turn[:num_images]
    counts = torch.bincount(turn, minlength=len(subsets)).tolist()
    found = [(s, seen) for s, seen in enumerate(seen_by(model, subsets, counts, config, cache)) if seen]
    targets, sources, places = [], [], []
    for source, seen in found:
        positions = next(iter(seen.values())).positions
        targets.append(torch.from_numpy(subsets[source].labels()[positions.numpy()]))
        sources.append(torch.full_like(positions, source))
        places.append((turn == source).nonzero().flatten()[: len(positions)])
    order = torch.cat(places).argsort()
    targets, sources = torch.cat(targets)[order], torch.cat(sources)[order]
    counted = targets >= 0
    branches = {}
    for name in model.branches:
        whole = _Sum(seen[name] for _, seen in found).seen()
        of_all = vars(whole) | {part: vars(whole)[part][order][counted] for part in ("pooled", "positions")}
        branches[name] = Seen(**of_all)
    return Features(branches, targets[counted], sources[counted])


def seen_by(
    model: FusionModel, subsets: Sequence[Subset], counts: Sequence[int], config: DataConfig, cache: Path | None = None
) -> list[dict[str, Seen]]:
    """What each branch, by name, makes of the first sound images of each subset's ranking, `counts` of them; empty for
    a subset of which none is asked for. Otherwise as `features_of`.
    """
    weights = {name: _hash_of(branch) for name, branch in model.branches.items()}
    sources = [
        _Source(model, weights, subset, count, config, cache) for subset, count in zip(subsets, counts, strict=True)
    ]
    if missing := sum(source.missing for source in sources):
        model.to(default_device())
        with progress("features", missing, "images") as advance:
            for source in sources:
                source.look(advance)
    model.to("cpu").eval()
    return [source.seen() for source in sources]


class _Source:
    """The first `count` images of a source's ranking, part by part: those that are kept, and those still to see."""

    def __init__(
        self,
        model: FusionModel,
        weights: Mapping[str, str],
        subset: Subset,
        count: int,
        config: DataConfig,
        cache: Path | None,
    ):
        self.model, self.config = model, config
        self.subset = subset.numbered(subset.class_names)  # the ranking looks at classes: at all of them
        count = min(count, subset.num_samples)
        self.sizes = [min(PART, count - start) for start in range(0, count, PART)]
        self.paths: dict[str, list[Path | None]] = {
            name: [
                cache / f"{self._key(name, weights[name], part)}.safetensors" if cache else None
                for part in range(len(self.sizes))
            ]
            for name in model.branches
        }
        self.kept = {name: _Sum(read_parts(paths)) for name, paths in self.paths.items()}

    @property
    def _known(self) -> dict[str, int]:
        """Parts of each branch that are there."""
        return {name: len(kept.pooled) for name, kept in self.kept.items()}

    @property
    def missing(self) -> int:
        """Images still to see by some branch."""
        return sum(self.sizes[min(self._known.values()) :])

    def look(self, advance: Advance) -> None:
        """Sees what is missing, and keeps it."""
        known = self._known
        first = min(known.values())
        names = [name for name, count in known.items() if count < len(self.sizes)]
        if not names:
            return
        before = next(kept for name, kept in self.kept.items() if known[name] == first)
        skip = 0
        if first:
            skip = int(np.flatnonzero(ranking(self.subset) == int(before.positions[-1][-1]))[0]) + 1
        sizes = self.sizes[first:]
        batches = few([self.subset], self.config, sum(sizes), batch_size=_BATCH, skip=skip)
        for part, seen in enumerate(self._parts(names, batches, sizes, advance), first):
            for name, one in seen.items():
                if part < known[name]:
                    continue
                if path := self.paths[name][part]:
                    _write(path, one)
                self.kept[name].add(one)

    def _parts(
        self, names: Sequence[str], batches: Iterator[Batch], sizes: Sequence[int], advance: Advance
    ) -> Iterator[dict[str, Seen]]:
        self.model.eval()
        for _, pieces in groupby(_pieces(batches, sizes), key=itemgetter(0)):
            sums = {name: _Sum() for name in names}
            for _, images, positions in pieces:
                for name, seen in _see(self.model, names, images, positions).items():
                    sums[name].add(seen)
                advance(len(positions))
            yield {name: one.seen() for name, one in sums.items()}

    def seen(self) -> dict[str, Seen]:
        return {name: kept.seen() for name, kept in self.kept.items() if len(kept)}

    def _key(self, name: str, weights: str, part: int) -> str:
        content = {
            "version": VERSION,
            "weights": weights,
            "sees": self.model.sizes[name] or self.config.image_size,
            "image_size": self.config.image_size,
            **({"resize": self.config.resize} if self.config.resize != "centre" else {}),
            "decoder": decode.VERSION,
            "torch": [torch.__version__, default_device().type],
            "source": self.subset.identity(),
            "images": [part * PART, self.sizes[part]],
            "damage": [self.config.strict, self.config.max_replaced],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _pieces(batches: Iterator[Batch], sizes: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number of a part, images uint8 [B, 3, S, S] and positions int64 [B] of a piece of it. Pieces are counted from the
    beginning of each part, however the batches are cut: a part is the same to the bit whatever was seen before it.
    """
    images, positions = torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    for part, size in enumerate(sizes):
        for start in range(0, size, _BATCH):
            count = min(_BATCH, size - start)
            while len(positions) < count and (batch := next(batches, None)):
                images = torch.cat([images, batch.images]) if len(images) else batch.images
                positions = torch.cat([positions, batch.positions])
            if not len(positions):  # the source has fewer sound images
                return
            yield part, images[:count], positions[:count]
            images, positions = images[count:], positions[count:]


@torch.no_grad()
def _see(model: FusionModel, names: Sequence[str], images: Tensor, positions: Tensor) -> dict[str, Seen]:
    found = {}
    for name, maps in model.maps(images.to(default_device()), names).items():
        rows = maps.flatten(2).transpose(1, 2).flatten(0, 1).double()
        sums = rows.sum(0).cpu(), (rows.T @ rows).cpu()
        found[name] = Seen(maps.mean((2, 3)).float().cpu(), positions, *sums, torch.tensor(len(rows)))
    return found


def _hash_of(branch: torch.nn.Module) -> str:
    weights = hashlib.sha256()
    for part, value in branch.state_dict().items():
        weights.update(f"{part} {value.dtype} {list(value.shape)}".encode())
        weights.update(value.cpu().contiguous().numpy().tobytes())
    return weights.hexdigest()


def read_parts(paths: Iterable[Path | None]) -> Iterator[Seen]:
    """Up to the first that is not there, or is damaged."""
    for path in paths:
        try:
            yield Seen(**safetensors.torch.load_file(path or ""))
        except (OSError, SafetensorError, TypeError):
            return


def _write(path: Path, seen: Seen) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        safetensors.torch.save_file(vars(seen), draft)
