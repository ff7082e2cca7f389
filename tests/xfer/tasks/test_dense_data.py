"""Sources that annotate different classes, images of extreme shapes, and damaged ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from shards.format.annotations import VOID
from shards.ingest.build import build
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.frame import PADDING
from shards.loading.open import open_data
from shards.loading.state import StreamState
from shards.loading.train import train_stream
from shards.settings import replace
from shards.sources.source import SourceOptions
from tests.xfer.tasks.conftest import Values
from tests.xfer.tasks.runs import ALIKE, BOXES, EVERY, KINDS, MEASURES, fit, verb
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.evaluate import evaluate_subsets, named_data
from xfer.history import read_metrics
from xfer.labels import annotated
from xfer.model import build_model
from xfer.surface import load
from xfer.tasks.known import task_of
from xfer.tasks.task import Supervision

SHAPES = [(1, 1), (2000, 3), (3, 2000), (50, 40)]  # width, height


def last_layer(model, kind: str) -> torch.nn.Module:
    """What gives the logits of classes."""
    head = model.head.head if kind in (*BOXES, "lraspp") else model.head
    if kind in BOXES:
        return head.classification_head.cls_logits
    return [part for part in head.modules() if isinstance(part, torch.nn.Conv2d)][-1]


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind not in ALIKE])
def test_a_source_gives_no_gradient_to_classes_that_it_does_not_annotate(values: Values, kind):
    """A batch of neon alone, which has no squares: to the bit, through loader, numbering, model and loss."""
    recipe = Recipe.model_validate(values(kind))
    data = open_data(recipe.data)
    assert "square" in data.classes
    stream = train_stream(data.train, recipe.data, Slot(), StreamState())
    neon = [subset.name for subset in data.train].index("neon")
    while not ((batch := next(stream)).sources == neon).any():
        pass
    own = (batch.sources == neon).nonzero()[:, 0].tolist()
    batch = next(iter(replaced(batch, own)))
    model = build_model(recipe.model, len(data.classes), 0)
    names = [subset.name for subset in data.train]
    loss = task_of(model.task).loss(Supervision(annotated(data.train, len(data.classes)), names))
    loss(model(batch.images), batch).backward()
    grad = last_layer(model, kind).weight.grad
    assert isinstance(grad, torch.Tensor)
    anchors = 9 if kind == "retinanet" else 1
    assert len(grad) == anchors * len(data.classes)
    grad = grad.view(anchors, len(data.classes), -1).transpose(0, 1)
    square, circle = data.classes.index("square"), data.classes.index("circle")
    assert (grad[square] == 0).all()
    assert (grad[circle] != 0).any()


def test_what_a_letterbox_pads_has_no_class(values: Values):
    """Pictures are wider than high, or square: below them are pixels that say nothing."""
    recipe = Recipe.model_validate(values("fpn"))
    data = open_data(recipe.data)
    padded = torch.tensor(PADDING)[:, None, None]
    for batch in eval_stream(data.validation, recipe.data, Slot()):
        assert batch.masks is not None
        below = (batch.images == padded).all(1).all(2)  # rows of nothing but padding
        assert below.any()
        assert (batch.masks[below] == VOID).all()
        assert (batch.masks[~below & batch.valid[:, None]] != VOID).all()


def replaced(batch, places: list[int]):
    """The batch of these samples only."""
    import dataclasses

    changed = {
        name: tuple(value[i] for i in places) if isinstance(value, tuple) else value[places]
        for name, value in vars(batch).items()
        if value is not None
    }
    yield dataclasses.replace(batch, **changed)


@pytest.fixture
def odd(tmp_path):
    """Of a kind, shards with images of extreme shapes."""

    def make(kind: str):
        images, masks = tmp_path / "images", tmp_path / "masks"
        images.mkdir()
        masks.mkdir()
        rows, boxes = [], []
        for i, (width, height) in enumerate(SHAPES):
            drawn = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(drawn).save(images / f"{i}.png")
            Image.fromarray(np.ones((height, width), np.uint8)).save(masks / f"{i}.png")
            rows.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
            box = {"bbox": [0, 0, width, height], "area": width * height, "category_id": 1, "iscrowd": 0}
            boxes.append({"id": i, "image_id": i, **box})
        if kind in BOXES:
            content = {"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "circle"}]}
            (tmp_path / "coco.json").write_text(json.dumps(content))
            build(tmp_path / "coco.json", tmp_path / "odd", SourceOptions(images=images), processes=1)
        else:
            options = SourceOptions(masks=masks, classes=("background", "circle"))
            build(images, tmp_path / "odd", options, processes=1)
        return tmp_path / "odd", images

    return make


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_one_pixel_and_of_thin_lines_are_scored_trained_on_and_answered(
    trained, values: Values, odd, kind, resize
):
    folder, images = odd(kind)
    model = open_model(trained(kind).folder)
    config = named_data([str(folder)], model.image_size, resize=resize)
    (score,) = evaluate_subsets(model.model, open_data(config).train, config, model.classes, "odd").values()
    assert score.count == len(SHAPES)
    assert 0 <= score.value <= 1
    if kind not in BOXES:
        assert score.pixels == sum(width * height for width, height in SHAPES), "those of the originals"
    answers = load(trained(kind).folder).predict([images / f"{i}.png" for i in range(len(SHAPES))])
    if kind not in BOXES:
        assert [tuple(answer.shape) for answer in answers] == [(height, width) for width, height in SHAPES]
    given = values(kind)
    given["data"] |= {"sources": {"odd": {"path": str(folder)}}, "validation": 0, "batch_size": 4, "resize": resize}
    if kind in BOXES and kind not in ALIKE:  # its masks have one class and the background
        given["data"]["sources"]["neon"] = {"path": "neon"}
    assert all(np.isfinite(fit(Recipe.model_validate(given))))


@pytest.mark.parametrize("kind", ["fcos", "fpn"])
def test_a_damaged_image_is_left_out_of_the_score_and_named(values: Values, scene_shards, tmp_path, kind, capsys):
    what = "boxes" if kind in BOXES else "masks"
    root = shutil.copytree(scene_shards / what, tmp_path / "shards")
    given = values(kind)
    given["data"]["root"] = str(root)
    recipe = Recipe.model_validate(given)
    held = next(subset for subset in open_data(recipe.data).validation if subset.name == "neon")
    row = int(held.rows[0])
    shard = int(np.searchsorted(held.shard_starts, row, side="right")) - 1
    path, entry = root / "neon" / held.manifest.shards[shard].path, held.index()[row]
    data = bytearray(path.read_bytes())
    data[int(entry["offset"]) + 700 : int(entry["offset"]) + 1100] = bytes(400)
    path.write_bytes(data)
    recipe = replace(recipe, {"data.sources.neon.path": "neon"})
    fit(recipe)
    last = [one for one in read_metrics(recipe.folder) if MEASURES[kind] in one][-1]
    assert last["left_out"] == 1
    capsys.readouterr()
    verb("evaluate", recipe.folder)
    shown = capsys.readouterr()
    assert "left out of evaluate validation" in shown.err
    assert "neon" in shown.err.split("left out of")[1]
