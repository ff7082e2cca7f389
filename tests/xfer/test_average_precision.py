"""Average precision: COCO's number, by any division over ranks, with an interval that can be believed."""

import contextlib
import io
import math
from types import ModuleType

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest
import torch
from torch import Tensor

from xfer.heads.detections import Detections
from xfer.tasks import average_precision
from xfer.tasks.average_precision import BoxScore, BoxScores

CLASSES = ("bird", "cat", "dog", "eel")
MASKS = torch.tensor([[True, True, True, False]])
Images = list[tuple[Detections, Tensor]]


def boxes(drawn: np.random.Generator, n: int) -> np.ndarray:
    """Of all three sizes, in images of 300 pixels a side."""
    corner, size = drawn.uniform(0, 200, (n, 2)), np.exp(drawn.uniform(2, 5, (n, 2)))
    return np.concatenate([corner, corner + size], 1)


def some(num_images: int, seed: int = 0, crowd: float = 0.15, most: int = 12, grid: int = 100, step: int = 0) -> Images:
    """Truth, and detections that are a bit beside it, twice as many as there are objects; scores on a grid, so that
    some are equal. One image in ten has no objects. `step`: all sides are multiples of it, so overlaps are equal too.
    """
    drawn = np.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        n = drawn.integers(0, most) if drawn.random() > 0.1 else 0
        true, labels = boxes(drawn, n), drawn.integers(0, 3, n)
        ignored = drawn.random(n) < crowd
        beside = true + drawn.normal(0, 0.06, (n, 4)) * np.tile(true[:, 2:] - true[:, :2], 2)
        beside[:, 2:] = np.maximum(beside[:, 2:], beside[:, :2] + 1)
        found = np.concatenate([beside, beside + drawn.normal(0, 1, beside.shape), boxes(drawn, 3)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        if step:
            true, found = ((x // step + [0, 0, 1, 1]) * step for x in (true, found))
        said = np.concatenate([labels, labels, drawn.integers(0, 3, 3)])
        score = drawn.integers(1, grid, len(found)) / grid
        order = np.argsort(-score, kind="stable")
        rows = np.concatenate([true, labels[:, None], ignored[:, None]], 1).astype(np.float32)
        detections = (found[order].astype(np.float32), score[order].astype(np.float32), said[order])
        images.append((Detections(*map(torch.from_numpy, detections)), torch.from_numpy(rows)))
    return images


def add(scores: BoxScores, images: Images, start: int = 0, batch: int = 7) -> BoxScores:
    for at in range(0, len(images), batch):
        part = images[at : at + batch]
        positions = range(start + at, start + at + len(part))
        scores.add([d for d, _ in part], [t for _, t in part], [0] * len(part), positions)
    return scores


def score(images: Images) -> BoxScore:
    return add(BoxScores(["a"], CLASSES, MASKS), images).result()["a"]


def as_coco(images: Images, coco: ModuleType, evaluation: type) -> tuple[np.ndarray, np.ndarray]:
    """By a library: ap, ap50, ap75, small, medium, large, ar; and by class, NaN without truth."""

    def xywh(box: Tensor) -> list[float]:
        x0, y0, x1, y1 = box.double().tolist()
        return [x0, y0, x1 - x0, y1 - y0]

    true, found = [], []
    for image, (detections, rows) in enumerate(images):
        for row in rows:
            box = xywh(row[:4])
            own = {"image_id": image, "bbox": box, "area": box[2] * box[3], "id": len(true) + 1}
            true.append(own | {"category_id": int(row[4]), "iscrowd": int(row[5])})
        for box, value, label in zip(*detections, strict=True):
            own = {"image_id": image, "bbox": xywh(box), "score": float(value), "category_id": int(label)}
            found.append(own)
    names = [{"id": i, "name": name} for i, name in enumerate(CLASSES[:3])]
    places = [{"id": i, "width": 500, "height": 500} for i in range(len(images))]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {"images": places, "annotations": true, "categories": names}
        truth.createIndex()
        measured = evaluation(truth, truth.loadRes(found), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    each = measured.eval["precision"][:, :, :, 0, -1]
    by_class = [part[part > -1].mean() if (part > -1).any() else math.nan for part in np.moveaxis(each, 2, 0)]
    stats = np.array([*measured.stats[:6], measured.stats[8]])
    return np.where(stats < 0, math.nan, stats), np.array(by_class)


def numbers(of: BoxScore) -> list[float]:
    return [of.ap, of.ap50, of.ap75, of.ap_small, of.ap_medium, of.ap_large, of.ar]


LIBRARIES = {
    "pycocotools": (pycocotools.coco, pycocotools.cocoeval.COCOeval),
    "faster-coco-eval": (faster_coco_eval, faster_coco_eval.COCOeval_faster),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "images",
    [
        some(40),
        some(40, seed=1, crowd=0),
        some(15, seed=2, crowd=0.6),
        some(5, seed=3, most=80, grid=10**6),  # more than 100 detections of a class in an image
        some(30, seed=4, grid=4),  # most scores are equal
        some(40, seed=6, most=40, step=32),
        some(4, seed=5, most=2),
    ],
    ids=["usual", "no crowd", "mostly crowd", "full images", "equal scores", "equal overlaps", "nearly nothing"],
)
def test_the_numbers_are_those_of_coco(images, library):
    own = score(images)
    want, by_class = as_coco(images, *LIBRARIES[library])
    assert numbers(own) == pytest.approx(want, abs=1e-6, nan_ok=True)
    assert [own.per_class.get(name, math.nan) for name in CLASSES[:3]] == pytest.approx(by_class, abs=1e-6, nan_ok=True)
    assert own.count == len(images)
    assert own.boxes == sum(int((rows[:, 5] == 0).sum()) for _, rows in images)


def test_the_cases_above_have_something_to_count():
    assert all(0.1 < value < 0.9 for value in numbers(score(some(40))))


def test_ranks_together_have_the_score_of_one():
    images = some(33)
    halves = [BoxScores(["a"], CLASSES, MASKS) for _ in range(2)]
    add(halves[0], images[20:], 20)
    add(halves[1], images[:20])
    kept: list[list[Tensor]] = []
    for half in halves:
        rows: list[Tensor] = []
        half.result(lambda own, rows=rows: rows.append(own) or own)
        kept.append(rows)
    assert all(rows.dtype == torch.float64 and rows.ndim == 2 for rows in kept[0])
    joined = iter([torch.cat(rows) for rows in zip(*kept, strict=True)])
    assert halves[0].result(lambda own: next(joined))["a"] == score(images)


def test_ranks_without_images_can_gather():
    assert math.isnan(BoxScores(["a"], CLASSES, MASKS).result(lambda rows: torch.cat([rows, rows]))["a"].ap)


def test_sources_have_scores_of_their_own():
    one, two = some(10), some(10, seed=1)
    scores = BoxScores(["a", "b"], CLASSES, MASKS.expand(2, -1))
    both = [pair for pairs in zip(one, two, strict=True) for pair in pairs]
    positions = [i // 2 for i in range(20)]
    scores.add([d for d, _ in both], [t for _, t in both], [0, 1] * 10, positions)
    assert scores.result() == {"a": score(one), "b": score(two)}


def test_nothing_is_known_of_classes_that_a_source_does_not_annotate():
    images = some(10)
    strange = torch.tensor([[0.0, 0, 9, 9, -1, 0], [0, 0, 9, 9, 3, 0]])  # of no class, and of one that is not annotated
    more = [
        (
            Detections(d.boxes.repeat(2, 1), d.scores.repeat(2), torch.cat([d.labels * 0 + 3, d.labels])),
            torch.cat([true, strange]),
        )
        for d, true in images
    ]
    assert score(more) == score(images)


def test_what_only_fills_a_batch_up_does_not_count():
    images = some(8)
    scores = BoxScores(["a"], CLASSES, MASKS)
    valid = torch.tensor([True] * 5 + [False] * 3)
    scores.add([d for d, _ in images], [t for _, t in images], torch.zeros(8, dtype=torch.int64), range(8), valid)
    assert scores.result()["a"] == score(images[:5])


NONE = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def test_without_true_boxes_there_is_nothing_to_count():
    scores = BoxScores(["a"], CLASSES, MASKS)
    scores.add([NONE, some(1)[0][0]], None, [0, 0], [0, 1])
    scores.add([], [], [], [])
    score = scores.result()["a"]
    assert all(math.isnan(value) for value in numbers(score))
    assert (score.count, score.boxes, score.per_class, score.interval) == (0, 0, {}, (0.0, 1.0))
    ignored = [(NONE, torch.tensor([[0.0, 0, 9, 9, 1, 1]]))]
    assert math.isnan(add(scores, ignored).result()["a"].ap)


def test_without_detections_the_score_is_zero():
    images = [(NONE, rows) for _, rows in some(10)]
    own = score(images)
    assert numbers(own) == [0] * 7
    assert own.interval == (0, 0)


def test_all_found_is_one():
    images = [(Detections(t[:, :4], torch.ones(len(t)), t[:, 4].long()), t) for _, t in some(10, crowd=0, most=5)]
    assert score(images).ap == pytest.approx(1)
    assert score(images).interval == pytest.approx((1, 1))


def test_the_interval_holds_the_value_and_narrows_with_more_images():
    widths = []
    for n in (20, 320):
        own = score(some(n))
        low, high = own.interval
        assert 0 <= low < own.ap < high <= 1
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]
    assert score([image for image in some(20) if len(image[1])][:1]).interval == (0.0, 1.0), "one image says nothing"


def test_the_interval_is_that_of_images_drawn_again(monkeypatch):
    """As if each resample had been scored whole, an image that is drawn twice being two images."""
    images, drawn = some(20, grid=10**6), np.random.default_rng(7)
    interval = score(images).interval
    monkeypatch.setattr(average_precision, "_RESAMPLES", 1)
    values = [score([images[i] for i in drawn.integers(20, size=20)]).ap for _ in range(100)]
    assert interval == pytest.approx(np.percentile(values, (2.5, 97.5)), abs=0.02)


def test_a_detection_takes_fifty_bytes():
    scores, sizes = BoxScores(["a"], CLASSES, MASKS), []
    add(scores, some(50)).result(lambda rows: sizes.append(rows.nbytes) or rows)
    assert sizes[0] <= 50 * sum(len(d.scores) for d, _ in some(50))
