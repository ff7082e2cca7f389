"""What scoring costs in memory: AP over 10^6 detections, mIoU over 10^4 masks, beside the process that holds neither.

    python -m benchmarks.scores

Each in a process of its own: its peak memory before anything was added and at the end, and CPU seconds. Boxes: 10,000
images with 100 detections and 10 true boxes each, 80 classes. Masks: 10,000 images of 240 x 180 pixels, 20 classes.
pycocotools scores the same boxes for comparison. Writes benchmarks/results/scores.md.
"""

import argparse
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import commit

RESULT = Path(__file__).parent / "results" / "scores.md"
IMAGES, FOUND, TRUE, BATCH = 10_000, 100, 10, 16
Row = tuple[str, float, float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    rows = [_apart(work, options.images) for work in (boxes, pycocotools, masks)]
    lines = [
        "# What scoring costs in memory",
        "",
        f"    python -m benchmarks.scores --images {options.images}",
        "",
        f"Commit {commit()} with this benchmark, {platform.machine()}, torch {torch.__version__}. Peak memory (MB) of "
        "a process before anything was added, and at the end; CPU seconds. pycocotools has no intervals.",
        "",
        "| what | before | at the end | more | CPU s | value |",
        "|---|---|---|---|---|---|",
        *(f"| {what} | {a:,.0f} | {b:,.0f} | {b - a:,.0f} | {s:.0f} | {v:.4f} |" for what, a, b, s, v in rows),
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print(RESULT.read_text())


def _apart(work: Callable[[int], Row], images: int) -> Row:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (images,))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _drawn(number: int) -> tuple[np.ndarray, np.ndarray]:
    """True boxes [n, 6] and detections [m, 6] (box, class, score) of an image; half of the true ones are found."""
    drawn = np.random.default_rng(number)
    corners = drawn.uniform(0, 400, (TRUE, 2))
    true = np.concatenate([corners, corners + drawn.uniform(10, 200, (TRUE, 2))], 1)
    classes = drawn.integers(0, 80, (TRUE, 1))
    near = true[drawn.integers(0, TRUE, FOUND)] + drawn.normal(0, 8, (FOUND, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    labels = np.where(drawn.random((FOUND, 1)) < 0.5, drawn.integers(0, 80, (FOUND, 1)), classes[0])
    return np.concatenate([true, classes, np.zeros((TRUE, 1))], 1), np.concatenate(
        [near, labels, drawn.random((FOUND, 1))], 1
    )


def boxes(images: int) -> Row:
    """Ours."""
    from xfer.heads.detections import Detections
    from xfer.tasks.average_precision import BoxScores

    scores = BoxScores(["s"], [f"c{i}" for i in range(80)], torch.ones(1, 80, dtype=torch.bool))
    before, started = _peak(), time.process_time()
    for start in range(0, images, BATCH):
        places = range(start, min(start + BATCH, images))
        drawn = [tuple(torch.from_numpy(one).float() for one in _drawn(place)) for place in places]
        found = [Detections(d[:, :4], d[:, 5], d[:, 4].long()) for _, d in drawn]
        scores.add(found, [true for true, _ in drawn], [0] * len(places), list(places))
    value = scores.result()["s"].ap
    return f"AP, {images * FOUND:,} boxes", before, _peak(), time.process_time() - started, value


def pycocotools(images: int) -> Row:
    """The same boxes."""
    from contextlib import redirect_stdout
    from io import StringIO

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    before, started = _peak(), time.process_time()
    truth: list[dict] = []
    found: list[np.ndarray] = []
    for place in range(images):
        true, said = _drawn(place)
        for x0, y0, x1, y1, label, _ in true.tolist():
            width, height = x1 - x0, y1 - y0
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": place + 1,
                    "category_id": int(label) + 1,
                    "bbox": [x0, y0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        sides = said[:, 2:4] - said[:, :2]
        found.append(
            np.concatenate([np.full((len(said), 1), place + 1), said[:, :2], sides, said[:, 5:], said[:, 4:5] + 1], 1)
        )
    with redirect_stdout(StringIO()):
        coco = COCO()
        vars(coco)["dataset"] = {
            "images": [{"id": place + 1} for place in range(images)],
            "annotations": truth,
            "categories": [{"id": i + 1} for i in range(80)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(np.concatenate(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return f"pycocotools, {images * FOUND:,} boxes", before, _peak(), time.process_time() - started, evaluation.stats[0]


def masks(images: int) -> Row:
    """Ours."""
    from xfer.tasks.pixels import MaskScores

    scores = MaskScores(["s"], [f"c{i}" for i in range(20)], torch.ones(1, 20, dtype=torch.bool))
    before, started = _peak(), time.process_time()
    for place in range(images):
        drawn = np.random.default_rng(place)
        truth = (
            torch.from_numpy(drawn.integers(0, 20, (6, 8), np.uint8)).repeat_interleave(30, 0).repeat_interleave(30, 1)
        )
        answer = torch.where(torch.from_numpy(drawn.random((180, 240)) < 0.8), truth, torch.zeros_like(truth))
        scores.add([answer], [truth], [0], [place])
    value = scores.result()["s"].miou
    return f"mIoU, {images:,} masks", before, _peak(), time.process_time() - started, value


if __name__ == "__main__":
    main()
