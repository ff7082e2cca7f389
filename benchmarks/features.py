"""How fast are cached features read, and what does a head on them cost?

    python -m benchmarks.features --pacs data/pacs --weights resnet18.safetensors

The features of all PACS images are read from the cache, first as its files alone, then as a run does (weights hashed,
parts found, images put in the order of the blend), beside the same files read as bytes: from the page cache and, its
pages dropped, from the disk. Each is the best of several.
Then a head is fitted on them for each penalty. Writes benchmarks/results/features.md.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.record import commit
from shards.loading.open import open_data
from xfer.begin import initial_model
from xfer.config import Recipe
from xfer.labels import annotated
from xfer.transfer.features import features_of, read_parts
from xfer.transfer.linear import PENALTIES, choose_penalty, fit_linear

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
TRIES = 7
RESULT = Path(__file__).parent / "results" / "features.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, required=True, help="built PACS, a folder a domain")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of a ResNet-18")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("runs/features"))
    options = parser.parse_args()
    recipe = Recipe.model_validate(
        {
            "data": {
                "sources": {domain: {"path": str(options.pacs.resolve() / domain)} for domain in DOMAINS},
                "validation": 0,
                "image_size": options.image_size,
            },
            "model": {"branches": {"main": {"backbone": "resnet18", "weights": str(options.weights.resolve())}}},
        }
    )
    data = open_data(recipe.data)
    model, _ = initial_model(recipe, data)
    count = sum(subset.num_samples for subset in data.train)
    cache = options.out / "cache"
    found = features_of(model, data.train, recipe.data, count, cache)
    paths = sorted(cache.iterdir())
    size = sum(path.stat().st_size for path in paths)
    ways = {
        "the files as bytes": lambda: [path.read_bytes() for path in paths],
        "the files as features": lambda: [value.clone() for part in read_parts(paths) for value in vars(part).values()],
        "as a run does": lambda: features_of(model, data.train, recipe.data, count, cache),
    }
    table = []
    for where, before in (("page cache", lambda: None), ("disk", lambda: _drop(paths))):
        taken = {what: _best(way, before=before) for what, way in ways.items()}
        raw = taken["the files as bytes"]
        table += [
            f"| {what} | {where} | {one:.3f} | {size / 1e6 / one:,.0f} | {raw / one:.2f} |"
            for what, one in taken.items()
        ]
    x, y = found.branches["main"].pooled, found.targets
    masks = annotated(data.train, len(data.classes))[found.sources]
    fits = [
        f"{penalty:g}: {_best(lambda p=penalty: fit_linear(x, y, masks, p), tries=3):.2f} s" for penalty in PENALTIES
    ]
    chosen = _best(lambda: choose_penalty(x, y, masks, found.sources), tries=1)
    lines = [
        "# Cached features: how fast they are read, what a head costs",
        "",
        f"    python -m benchmarks.features --pacs SHARDS --weights RESNET18 --image-size {options.image_size}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}. {count:,} images, {len(paths)} files, {size / 1e6:.0f} MB.",
        "",
        "| | from | seconds | MB/s | of the bytes' rate |",
        "|---|---|---|---|---|",
        *table,
        "",
        f"A head of {len(data.classes)} classes on {len(y):,} x {x.shape[1]} features, by penalty: {', '.join(fits)}. "
        f"Choosing among the {len(PENALTIES)} by {len(DOMAINS)} left-out sources: {chosen:.1f} s.",
    ]
    RESULT.write_text("\n".join(lines) + "\n")


def _drop(paths: Sequence[Path]) -> None:
    """From the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _best(work: Callable[[], object], before: Callable[[], object] = lambda: None, tries: int = TRIES) -> float:
    """Seconds of the fastest of several tries; what is done before each does not count."""
    taken = []
    for _ in range(tries):
        before()
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


if __name__ == "__main__":
    main()
