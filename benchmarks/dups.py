"""How well perceptual hashes tell copies of a picture from other pictures, and what the search for them costs.

    python -m benchmarks.dups                                   # drawn images
    python -m benchmarks.dups shards/photo shards/clothing      # folders of shards

Copies are made of some images of each data set, in every way listed: how many are recognised? Then all images are
compared with each other: two of different data sets that look the same are a mistake; two of one data set are one, or
are a copy that was there before, and then `results/dups-same.csv` lists them if somebody has looked at them. Beside
hashes stand two hashes in wide use, of 64 bits: dHash, and pHash as the package ImageHash makes it.
"""

import argparse
import csv
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.record import commit
from shards.decode import open_image, pixels
from shards.format.manifest import splits_in
from shards.generate import generate
from shards.ingest.build import build
from shards.inspect.dups.near import find_near, num_sorts
from shards.inspect.dups.perceptual_hash import BITS, FEWEST, HASH, distances, mirrored, take_hash
from shards.inspect.glance import Damaged, read
from shards.loading.open import open_subset

RESULTS = Path(__file__).parent / "results"
LOWEST = 8
THRESHOLDS = {"ours": (0.1, 0.15, 0.2, 0.25), "64 lowest signs": (4, 6, 8), "pHash": (4, 6, 8), "dHash": (2, 4, 6)}
STYLES = {style: ["circle", "square", "star", "cross", "heart", "arrow"] for style in ("paint", "outline", "neon")}
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def resized(image: Image.Image, scale: float, how: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)


def cropped(image: Image.Image, part: float, rng: np.random.Generator) -> Image.Image:
    """Without `part` of width and height, cut off at random sides."""
    width, height = image.size
    x, y = rng.random() * part * width, rng.random() * part * height
    return image.crop((round(x), round(y), round(x + width * (1 - part)), round(y + height * (1 - part))))


def linear(image: Image.Image, factor: float, offset: float = 0) -> Image.Image:
    values = np.asarray(image, np.float32) * factor + offset
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def with_quality(quality: int) -> Change:
    return lambda image, rng: jpeg(image, quality)


def with_size(scale: float) -> Change:
    return lambda image, rng: resized(image, scale)


def with_cut(part: float) -> Change:
    return lambda image, rng: cropped(image, part, rng)


CHANGES: dict[str, Change] = {
    **{f"JPEG quality {quality}": with_quality(quality) for quality in (95, 75, 50, 30)},
    **{f"{scale:g} x the size": with_size(scale) for scale in (0.5, 0.75, 1.5, 2)},
    "0.5 x, nearest pixel": lambda image, rng: resized(image, 0.5, Image.Resampling.NEAREST),
    "height x 0.8": lambda image, rng: image.resize((image.width, round(image.height * 0.8))),
    **{f"{part:.0%} cut off": with_cut(part) for part in (0.02, 0.03, 0.05, 0.1)},
    "brightness x 1.25": lambda image, rng: linear(image, 1.25),
    "brightness x 0.75": lambda image, rng: linear(image, 0.75),
    "contrast x 1.3": lambda image, rng: linear(image, 1.3, -38),
    "contrast x 0.7": lambda image, rng: linear(image, 0.7, 38),
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "mirrored": lambda image, rng: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "0.75 x, quality 50": lambda image, rng: jpeg(resized(image, 0.75), 50),
    "3% cut off, 0.5 x, quality 30": lambda image, rng: jpeg(resized(cropped(image, 0.03, rng), 0.5), 30),
}


def dhash(image: Image.Image) -> np.uint64:
    values = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), np.int16)
    return np.packbits(values[:, 1:] > values[:, :-1]).view("<u8")[0]


def phash(image: Image.Image) -> np.uint64:
    n = np.arange(32)
    matrix = np.cos(np.pi * (2 * n + 1) * n[:8, None] / 64)
    values = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = matrix @ values @ matrix.T
    return np.packbits(low > np.median(low)).view("<u8")[0]


def take(data: bytes) -> tuple[np.ndarray, np.uint64, np.uint64]:
    image = Image.fromarray(np.ascontiguousarray(pixels(open_image(data)).array))
    return take_hash(data), phash(image), dhash(image)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def images_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Key and image of every sample of every split."""
    for split in splits_in(folder):
        subset = open_subset(folder, split)
        for _, sample in read(subset, range(subset.num_samples)):
            if not isinstance(sample, Damaged):
                yield sample.key, sample.image


def recall(name: str, images: list[bytes], rng: np.random.Generator) -> list[dict[str, Any]]:
    """The share of copies that is recognised, by change, method and threshold."""
    before = [take(data) for data in images]
    rows = []
    for change, make in CHANGES.items():
        after = [
            take(encoded(make(Image.fromarray(np.ascontiguousarray(pixels(open_image(data)).array)), rng)))
            for data in images
        ]
        first, second = (np.stack([one[0] for one in side]) for side in (before, after))
        second = mirrored(second) if change == "mirrored" else second
        low = np.bitwise_count(first["signs"][:, 0] ^ second["signs"][:, 0])
        values = {
            "ours": np.where(low <= LOWEST, distances(first, second), np.inf),
            "64 lowest signs": low,
            "pHash": np.array([np.bitwise_count(a[1] ^ b[1]) for a, b in zip(before, after, strict=True)]),
            "dHash": np.array([np.bitwise_count(a[2] ^ b[2]) for a, b in zip(before, after, strict=True)]),
        }
        for method, thresholds in THRESHOLDS.items():
            for most in thresholds:
                share = float((values[method] <= most).mean())
                rows.append({"data": name, "change": change, "method": method, "most": most, "recall": share})
    return rows


def pairs_found(taken: list[np.ndarray], which: np.ndarray, turned: bool) -> dict[str, np.ndarray]:
    """Pairs, int64 [n, 2], that each method finds at its largest threshold, and how far apart; columns a, b, value."""
    hashes, phashes, dhashes = taken
    others = mirrored(hashes) if turned else hashes
    signed, signed_others = (_signed(rows) for rows in (hashes, others))
    known = np.abs(signed)
    found: dict[str, list[np.ndarray]] = {method: [] for method in THRESHOLDS}
    for start in range(0, len(hashes), 1000):
        part = slice(start, start + 1000)
        count = known[part] @ known.T
        share = (count - signed[part] @ signed_others.T) / 2 / np.maximum(count, 1)
        low = np.bitwise_count(hashes["signs"][part, None, 0] ^ others["signs"][None, :, 0])
        share[(count < FEWEST) | (low > LOWEST)] = np.inf
        values = {"ours": share, "64 lowest signs": low}
        if not turned:
            values["pHash"] = np.bitwise_count(phashes[part, None] ^ phashes[None])
            values["dHash"] = np.bitwise_count(dhashes[part, None] ^ dhashes[None])
        for method, value in values.items():
            a, b = np.nonzero(value <= THRESHOLDS[method][-1])
            once = a + start < b
            found[method].append(np.stack([a[once] + start, b[once], value[a[once], b[once]]], axis=1))
    return {method: np.concatenate(parts) for method, parts in found.items() if parts}


def _signed(hashes: np.ndarray) -> np.ndarray:
    """Signs as -1 and 1, unknown ones 0; float32 [n, BITS]."""
    signs, known = (
        np.unpackbits(np.ascontiguousarray(hashes[part]).view(np.uint8), axis=1, bitorder="little").astype(np.float32)
        for part in ("signs", "known")
    )
    return (2 * signs - 1) * known


def precision(names: list[str], keys: list[str], sets: np.ndarray, taken: list[np.ndarray]) -> list[dict[str, Any]]:
    """How many pairs of pictures that nobody copied here are found; and how many of these are the same by eye."""
    same = same_by_eye()
    rows = []
    for turned in (False, True):
        for method, found in pairs_found(taken, sets, turned).items():
            a, b = found[:, 0].astype(int), found[:, 1].astype(int)
            looked = [frozenset((keys[i], keys[j])) for i, j in zip(a.tolist(), b.tolist(), strict=True)]
            eye = np.array([(names[sets[i]], pair) in same for i, pair in zip(a.tolist(), looked, strict=True)], bool)
            for most in THRESHOLDS[method]:
                near = found[:, 2] <= most
                for number, name in [*enumerate(names), (-1, "across data sets")]:
                    here = near & ((sets[a] == number) & (sets[b] == number) if number >= 0 else sets[a] != sets[b])
                    counts = {"found": int(here.sum()), "same": int((here & eye).sum())}
                    rows.append({"data": name, "mirrored": turned, "method": method, "most": most, **counts})
    return rows


def same_by_eye() -> set[tuple[str, frozenset[str]]]:
    """Pairs that somebody looked at and found the same: data set and two keys."""
    with open(RESULTS / "dups-same.csv") as file:
        return {(row["data"], frozenset((row["a"], row["b"]))) for row in csv.DictReader(file)}


def search(count: int) -> dict[str, Any]:
    """Time and memory of finding planted pairs among random words; each word has a mirrored one, as in `dups`."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, 2 * count, dtype=np.uint64)
    planted = count // 100
    words[count : count + planted] = words[:planted]
    for _ in range(LOWEST):
        words[count : count + planted] ^= np.uint64(1) << rng.integers(0, 64, planted, dtype=np.uint64)
    before, started = forget_peak(), time.perf_counter()
    found = find_near(words, LOWEST, lambda a, b: np.ones(len(a), bool))
    seconds = time.perf_counter() - started
    pairs = set(zip(found.a.tolist(), found.b.tolist(), strict=True))
    hits = sum((n, count + n) in pairs for n in range(planted))
    return {
        "images": count,
        "sorts": num_sorts(2 * count, LOWEST),
        "seconds": round(seconds, 1),
        "memory_mb": round(peak_mb() - before),
        "planted": planted,
        "found": hits,
        "others": len(pairs) - hits,
    }


def peak_mb() -> float:
    """Most memory that this process held since `forget_peak`, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) * 1024 / 1e6


def forget_peak() -> float:
    """Sets the peak to what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def one_search(count: int) -> dict[str, Any]:
    """Measures in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dups", "--one", str(count)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def speed(images: list[bytes]) -> float:
    """Hashes a second, one process: the best of five rounds, as others may work beside it."""
    rounds = []
    for _ in range(5):
        started = time.perf_counter()
        for data in images:
            take_hash(data)
        rounds.append(len(images) / (time.perf_counter() - started))
    return max(rounds)


def drawn(folder: Path) -> list[Path]:
    """Folders of shards of drawn images, a data set for each style."""
    generate(folder / "raw", STYLES, per_class=50, side=96)
    for style in STYLES:
        build(folder / "raw" / style, folder / style, name=style, processes=1)
    return [folder / style for style in STYLES]


def recall_table(rows: list[dict[str, Any]]) -> list[str]:
    columns = [(method, most) for method, thresholds in THRESHOLDS.items() for most in thresholds]
    names = list(dict.fromkeys(row["data"] for row in rows))
    lines = ["| change | " + " | ".join(f"{method} {most}" for method, most in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for change in CHANGES:
        cells = []
        for method, most in columns:
            shares = [r["recall"] for r in rows if (r["change"], r["method"], r["most"]) == (change, method, most)]
            cells.append(f"{100 * sum(shares) / len(names):.1f}")
        lines.append(f"| {change} | " + " | ".join(cells) + " |")
    return lines


def precision_table(rows: list[dict[str, Any]]) -> list[str]:
    kinds = dict.fromkeys((row["method"], row["most"], row["mirrored"]) for row in rows)
    names = list(dict.fromkeys(row["data"] for row in rows))
    lines = ["| method | at most | " + " | ".join(names) + " |", "|---|---:|" + "---:|" * len(names)]
    for method, most, turned in sorted(kinds, key=lambda kind: (kind[2], list(THRESHOLDS).index(kind[0]), kind[1])):
        cells = []
        for name in names:
            (row,) = [
                r for r in rows if (r["method"], r["most"], r["mirrored"], r["data"]) == (method, most, turned, name)
            ]
            cells.append(f"{row['found']:,}" + (f" ({row['same']})" if row["same"] else ""))
        lines.append(f"| {method}{', mirrored' if turned else ''} | {most} | " + " | ".join(cells) + " |")
    return lines


def gathered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with all limits of a method as a list."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        values = {name: row[name] for name in ("recall", "found", "same") if name in row}
        head = {name: value for name, value in row.items() if name not in values and name != "most"}
        one = found.setdefault(json.dumps(head), {**head, **{name: [] for name in values}})
        for name, value in values.items():
            one[name].append(value)
    return list(found.values())


def search_row(row: dict[str, Any]) -> str:
    cells = [f"{row[name]:,}" for name in ("images", "sorts", "seconds", "memory_mb", "planted", "found")]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="folders of shards; none: drawn images")
    parser.add_argument("--count", type=int, default=200, help="images of each data set that are copied")
    parser.add_argument("--search", type=int, nargs="*", default=[100_000, 1_000_000], help="numbers of images")
    parser.add_argument("--out", type=Path, default=RESULTS / "dups.md")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(search(arguments.one)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folders = arguments.folders or drawn(Path(temporary))
        data = {folder.name: list(images_in(folder)) for folder in folders}
    busy, rng = os.getloadavg()[0], np.random.default_rng(0)
    recalls, rates = [], {}
    for name, items in data.items():
        chosen = [items[i][1] for i in rng.choice(len(items), min(arguments.count, len(items)), replace=False)]
        rates[name] = round(speed(chosen))
        recalls += recall(name, chosen, rng)
        print(f"{name}: {len(items):,} images, {rates[name]:,} hashes/s", file=sys.stderr)
    everything = [take(image) for items in data.values() for _, image in items]
    taken = [np.array([one[0] for one in everything], HASH), *(np.array([o[k] for o in everything]) for k in (1, 2))]
    sets = np.repeat(np.arange(len(data)), [len(items) for items in data.values()])
    precisions = precision(list(data), [key for items in data.values() for key, _ in items], sets, taken)
    searches = [one_search(count) for count in arguments.search]
    command = ["python -m benchmarks.dups", *(folder.name for folder in arguments.folders)]
    command += [f"--count {arguments.count} --search", *map(str, arguments.search)]
    pairs = sum(len(items) for items in data.values())
    arguments.out.write_text(
        f"""# Copies of pictures: what is recognised, what is mistaken, and what the search costs

Command: `{" ".join(command)}`
Commit: {commit()}. Machine: {platform.machine()}, {os.cpu_count()} CPUs, numpy {np.__version__}.
Load average: {busy:.1f} before, {os.getloadavg()[0]:.1f} after; where others worked beside it, times do not hold.

Data: {", ".join(f"{name} {len(items):,} images ({rates[name]:,} hashes/s)" for name, items in data.items())}.

`ours`: at most {LOWEST} of the 64 lowest signs of a cosine transform differ, and at most that share of all known ones
of {BITS}. The others are 64 bits of which at most so many differ: the lowest signs alone, pHash, dHash. With hashes and
signs a mirrored copy is compared with its mirror image.

## Copies that are recognised, in %

Mean over the data sets, {arguments.count} images each.

{chr(10).join(recall_table(recalls))}

## Pairs that are found among images that nobody copied here

Of {pairs * (pairs - 1) // 2:,} pairs. Across data sets each one is a mistake. Within one, those that were the same to
an eye (`dups-same.csv`: copies that the data set came with, also with other colours or a watermark) are in brackets;
the others are mistakes, but for frames of one video (camvid), which nobody judged.

{chr(10).join(precision_table(precisions))}

## The search

Random words, two for each image (it and its mirror image), and pairs planted with up to {LOWEST} bits changed.

| images | sorts | seconds | MB | planted pairs | found |
|---:|---:|---:|---:|---:|---:|
{chr(10).join(search_row(row) for row in searches)}

Raw rows; a list has a number for each of the limits {json.dumps(THRESHOLDS)}:

```
{chr(10).join(json.dumps(row) for row in [*searches, *gathered(recalls), *gathered(precisions)])}
```
"""
    )


if __name__ == "__main__":
    main()
