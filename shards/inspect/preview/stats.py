"""What a split holds, in numbers: classes, image sizes, colours, boxes, masks, texts.

The manifest knows how often each class occurs, and the mean colour; that costs nothing. All else stands in the samples:
an even share of them is read, chosen by a seed, each image's header alone and its boxes, mask and side inputs whole.
Costs about 0.1 ms a sample, 1 ms with a mask. Values are counted, not kept, rounded to four digits, so that memory does
not grow with the data, but for distinct image sizes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shards.decode import DecodeError, image_size
from shards.format.annotations import VOID, annotations
from shards.format.hashing import permutation
from shards.format.manifest import Manifest
from shards.inspect.glance import Damaged, candidates, read
from shards.loading.reader import Sample
from shards.loading.subset import Subset
from shards.progress import progress

SMALL, LARGE = 32, 96
"""Sides in pixels of the squares between which COCO calls a box medium (Lin et al., ECCV 2014)."""

_DIGITS = 4
_DISTINCT = 1000
_REASONS = 5
_KEY = 6


@dataclass
class Spread:
    """How a number is distributed: value, rounded to four digits -> how often."""

    counts: Counter[float] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[float(f"{value:.{_DIGITS}g}")] += 1

    @property
    def total(self) -> int:
        """How many values there were."""
        return self.counts.total()

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.counts)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.counts)

    def quantile(self, part: float) -> float:
        """The value below or at which this part of the values lies: 0.5, the median."""
        values, counts = list(self.counts), list(self.counts.values())
        return float(np.quantile(values, part, weights=counts, method="inverted_cdf"))

    def histogram(self, edges: Sequence[float]) -> list[int]:
        """How many values lie between each two edges; both outer edges are inside."""
        counts, _ = np.histogram(list(self.counts), edges, weights=list(self.counts.values()))
        return [int(count) for count in counts]


@dataclass
class Side:
    """One side input: how many samples have it, and what it says. `words`: of each text; `texts`: how often each,
    empty if there are very many; `several`: how many texts a sample has, where it has a list.
    """

    samples: int = 0
    numbers: Spread = field(default_factory=Spread)
    words: Spread = field(default_factory=Spread)
    several: Spread = field(default_factory=Spread)
    texts: Counter[str] = field(default_factory=Counter)
    has_many: bool = False

    def add(self, value: str | int | float | list[str]) -> None:
        """Counts what one sample says."""
        self.samples += 1
        if isinstance(value, (int, float)):
            self.numbers.add(value)
            return
        if isinstance(value, list):
            self.several.add(len(value))
        for text in value if isinstance(value, list) else [value]:
            self.words.add(len(text.split()))
            if not self.has_many:
                self.texts[text] += 1
        if len(self.texts) > _DISTINCT:
            self.texts, self.has_many = Counter(), True


@dataclass(eq=False)
class Profile:
    """One split: its manifest, and what was found in the samples that were read.

    `damaged`: how many of them cannot be used, `reasons`: of the first; `bytes`: of the image files; `sizes`: (width,
    height) -> images; `holding`: images with any of each class; `boxes`: in each image; `box_sizes`: of each class, the
    root of the box's part of the image's area; `coco`: boxes that are small, medium, large; `pixels` and `void`: of the
    masks, and those without a class.
    """

    name: str
    folder: str
    manifest: Manifest
    num_read: int = 0
    damaged: int = 0
    reasons: list[Damaged] = field(default_factory=list)
    bytes: Spread = field(default_factory=Spread)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    holding: list[int] = field(default_factory=list)
    boxes: Spread = field(default_factory=Spread)
    box_sizes: list[Spread] = field(default_factory=list)
    coco: list[int] = field(default_factory=lambda: [0, 0, 0])
    pixels: int = 0
    void: int = 0
    side: dict[str, Side] = field(default_factory=dict)

    @property
    def counted(self) -> str:
        """What the manifest's class counts count."""
        roles = self.manifest.fields
        return "boxes" if "boxes" in roles else "pixels" if "mask" in roles else "samples"

    @property
    def counts(self) -> dict[str, int]:
        """How often each class occurs."""
        return dict(zip(self.manifest.classes, self.manifest.stats.class_counts, strict=True))

    @property
    def size_bytes(self) -> int:
        """All shards together."""
        return sum(shard.bytes for shard in self.manifest.shards)

    @property
    def width(self) -> Spread:
        """Of the images."""
        return _sum((size[0], count) for size, count in self.sizes.items())

    @property
    def height(self) -> Spread:
        """Of the images."""
        return _sum((size[1], count) for size, count in self.sizes.items())

    @property
    def aspect(self) -> Spread:
        """Width / height of the images."""
        return _sum((size[0] / size[1], count) for size, count in self.sizes.items())

    @property
    def box_size(self) -> Spread:
        """Of boxes of all classes."""
        return _sum(pair for spread in self.box_sizes for pair in spread.counts.items())


def profile(subset: Subset, count: int | None, seed: int = 0) -> Profile:
    """What a whole split holds; `count` samples are read, all of them if it is None."""
    manifest = subset.manifest
    found = Profile(subset.name, subset.folder, manifest)
    found.holding = [0] * len(manifest.classes)
    found.box_sizes = [Spread() for _ in manifest.classes]
    chosen = _chosen(subset, count, seed)
    with progress(f"read {subset.name}", len(chosen), "samples") as advance:
        for _, sample in read(subset, (int(i) for i in chosen)):
            _add(found, sample)
            advance(1)
    return found


def bins(low: float, high: float, count: int, is_log: bool = False) -> list[float]:
    """The bounds of `count` bins from the smallest to the largest value, with some room if they are the same."""
    if low == high:
        low, high = (low / 2, high * 2) if is_log else (low - 0.5, high + 0.5)
    between = np.geomspace if is_log else np.linspace
    return [low, *between(low, high, count + 1)[1:-1].tolist(), high]


def _chosen(subset: Subset, count: int | None, seed: int) -> Sequence[int] | np.ndarray:
    """Samples to read, ascending: evenly from everywhere."""
    if count is None or count >= subset.num_samples:
        return range(subset.num_samples)
    if not count:
        return []
    among = candidates(subset, count, seed)
    return np.sort(among[permutation(len(among), seed, _KEY)[:count]])


def _add(found: Profile, sample: Sample | Damaged) -> None:
    found.num_read += 1
    if isinstance(sample, Damaged):
        _add_damaged(found, sample)
        return
    num_classes = len(found.manifest.classes)
    try:
        width, height = image_size(sample.image)
        said = annotations(sample.fields, found.manifest.fields, num_classes, width, height)
    except (DecodeError, ValueError) as error:
        _add_damaged(found, Damaged(sample.key, str(error)))
        return
    found.sizes[width, height] += 1
    found.bytes.add(len(sample.image))
    found.formats[sample.extension] += 1
    if said.boxes is not None:
        _add_boxes(found, said.boxes, width, height)
    if said.mask is not None:
        found.pixels += said.mask.size
        found.void += int((said.mask == VOID).sum())
    for label in np.flatnonzero(said.class_counts(-1, num_classes)).tolist():
        found.holding[label] += 1
    for name, value in said.side.items():
        found.side.setdefault(name, Side()).add(value)


def _add_damaged(found: Profile, sample: Damaged) -> None:
    found.damaged += 1
    if len(found.reasons) < _REASONS:
        found.reasons.append(sample)


def _add_boxes(found: Profile, boxes: np.ndarray, width: int, height: int) -> None:
    found.boxes.add(len(boxes))
    areas = (boxes[:, 2] - boxes[:, 0]).astype(np.float64) * (boxes[:, 3] - boxes[:, 1])
    for area, label in zip(areas.tolist(), boxes[:, 4].astype(int).tolist(), strict=True):
        found.box_sizes[label].add((area / (width * height)) ** 0.5)
        found.coco[(area >= SMALL**2) + (area >= LARGE**2)] += 1


def _sum(pairs: Iterable[tuple[float, int]]) -> Spread:
    spread = Spread()
    for value, count in pairs:
        spread.counts[float(f"{value:.{_DIGITS}g}")] += count
    return spread
