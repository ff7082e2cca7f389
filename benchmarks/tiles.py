"""Large images whole and in tiles: memory, time, and how far the answers are apart.

    python -m benchmarks.tiles

A detector and a segmenter of one ResNet-18 see one image; each way is a process of its own, on one thread. Memory is
the most that the process held, less what it held before it saw the image; time is that of the second look. The largest
difference of the fused maps, by level, is relative to their largest value; weights are random, which see further than
trained ones. Writes benchmarks/results/tiles.md.
"""

import argparse
import platform
import resource
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import commit, each_on_a_core
from xfer.model import DenseModel, build_model
from xfer.model_config import ModelConfig

WAYS = (None, (512, 128), (512, 256), (1024, 128))
RESULT = Path(__file__).parent / "results" / "tiles.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=2048)
    options = parser.parse_args()
    todo = [(kind, way, options.image_size) for kind in ("fcos", "fpn") for way in WAYS]
    rows = {row["what"]: row for row in each_on_a_core("tiles", 1, _row, todo)}
    lines = [
        "# Large images in tiles",
        "",
        f"    python -m benchmarks.tiles --image-size {options.image_size}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, one thread, torch {torch.__version__}. One "
        f"image of {options.image_size} x {options.image_size} pixels, a ResNet-18 with random weights, width 128.",
        "",
        "| head | tiles | memory, MB | seconds | largest difference of the fused maps |",
        "|---|---|---|---|---|",
    ]
    for kind, way, _ in todo:
        row = rows[kind, way]
        tiles = f"{way[0]}, overlap {way[1]}" if way else "none"
        apart = ", ".join(f"{level} {value:.2g}" for level, value in row["apart"].items()) if way else ""
        lines.append(f"| {kind} | {tiles} | {row['mb']:,.0f} | {row['seconds']:.1f} | {apart} |")
    RESULT.write_text("\n".join(lines) + "\n")


@torch.inference_mode()
def _row(kind: str, way: tuple[int, int] | None, size: int) -> dict[str, Any]:
    values = {"branches": {"main": {"backbone": "resnet18"}}, "fusion": {"width": 128}, "head": {"kind": kind}}
    model = build_model(ModelConfig.model_validate(values), 5, seed=0).eval()
    assert isinstance(model, DenseModel)
    images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tiles = {"size": way[0], "overlap": way[1]} if way else None
    model.tile = ModelConfig.model_validate({**values, "tile": tiles}).tile
    model(images[..., :256, :256])
    before = _held()
    model(images)
    held = _held() - before
    started = time.perf_counter()
    model(images)
    seconds = time.perf_counter() - started
    found = model.features(images)
    model.tile = None
    whole = model.features(images)
    apart = {level: float((found[level] - z).abs().max() / z.abs().max()) for level, z in whole.items()}
    return {"what": (kind, way), "mb": held, "seconds": seconds, "apart": apart}


def _held() -> float:
    """MB, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
