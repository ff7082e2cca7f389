"""One process: a detector and a segmenter train, alike each time, and are scored by their own measures."""

import dataclasses

import pytest
import torch

from shards.format.whole import read_json
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.state import StreamState
from shards.loading.train import train_stream
from shards.settings import replace
from tests.xfer.tasks.conftest import Values
from tests.xfer.tasks.runs import ALIKE, EVERY, KINDS, MEASURES, fit, scores, verb
from xfer.checkpoint import latest_checkpoint
from xfer.config import Recipe
from xfer.history import read_metrics
from xfer.labels import annotated
from xfer.model import build_model
from xfer.surface import Run
from xfer.tasks.known import task_of
from xfer.tasks.task import Supervision

each = pytest.mark.parametrize("kind", KINDS)
every = pytest.mark.parametrize("kind", EVERY)


@each
def test_the_loss_falls_and_the_rows_have_the_measure_by_source(values: Values, kind):
    recipe = Recipe.model_validate(values(kind))
    rates = {"train.optimizer": "adamw", "train.learning_rate": 0.002}
    found = fit(replace(recipe, {"train.steps": 10, "train.evaluate_every": 5, **rates}))
    assert sum(found[-4:]) < 0.9 * sum(found[:4])
    scored = [row for row in read_metrics(recipe.folder) if MEASURES[kind] in row]
    assert [row["step"] for row in scored] == [5, 10]
    assert all(set(row[MEASURES[kind]]) == {"paint", "neon"} for row in scored)
    assert all("accuracy" not in row and "evaluation_loss" not in row for row in scored)


@every
def test_a_run_is_bit_identical_on_repeat_and_with_a_loader_process(values: Values, kind):
    recipe = Recipe.model_validate(values(kind))
    loaded = replace(recipe, {"name": "loaded", "data.workers": 1})
    assert fit(recipe) == fit(loaded)
    assert scores(recipe.folder, kind) == scores(loaded.folder, kind)


@every
def test_accumulation_gives_the_same_losses(values: Values, kind):
    recipe = replace(Recipe.model_validate(values(kind)), {"train.optimizer": "sgd"})  # AdamW enlarges the last digits
    micro = replace(recipe, {"name": "micro", "train.micro_batch": 4})
    assert fit(micro) == pytest.approx(fit(recipe), abs=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ALIKE])  # a head has no part in it
def test_resume_equals_the_uninterrupted_run(values: Values, kind):
    recipe = Recipe.model_validate(values(kind))
    whole, cut = replace(recipe, {"name": "whole"}), replace(recipe, {"name": "cut"})
    expected = fit(whole)
    fit(cut)
    newest = latest_checkpoint(cut.folder / "checkpoints")
    assert newest is not None
    (newest.path / "model.safetensors").write_bytes(b"")  # as a crash would leave it: back to step 2
    assert fit(cut) == expected
    assert scores(cut.folder, kind) == scores(whole.folder, kind)


@each
def test_the_logged_score_is_that_of_the_checkpoint_and_of_every_way_to_ask(trained, kind, capsys):
    recipe = trained(kind)
    logged = scores(recipe.folder, kind)
    assert all(0 < score < 1 for score in logged.values())
    found = Run(recipe.folder).evaluate()
    assert {name: score.value for name, score in found.items()} == pytest.approx(logged, abs=1e-6)
    verb("evaluate", recipe.folder)
    kept = read_json(recipe.folder / "evaluation.json")["validation"]
    assert {name: row[MEASURES[kind]] for name, row in kept.items()} == pytest.approx(logged, abs=1e-6)
    shown = capsys.readouterr().out
    assert MEASURES[kind] in shown
    assert all(f"{100 * score:.1f} %" in shown for score in logged.values())


def test_images_without_boxes_train_as_background(values: Values):
    """A batch of nothing else has a loss, which falls."""
    recipe = Recipe.model_validate(values("fcos"))
    data = open_data(recipe.data)
    stream = train_stream(data.train, recipe.data, Slot(), StreamState())
    batch = next(stream)
    assert batch.boxes is not None
    model = build_model(recipe.model, len(data.classes), 0)
    objective = task_of("detection").loss(Supervision(annotated(data.train, len(data.classes)), ["neon", "paint"]))
    empty = dataclasses.replace(batch, boxes=tuple(boxes[:0] for boxes in batch.boxes))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    found = []
    for _ in range(3):
        loss = objective(model(empty.images), empty)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert 0 < found[2] < found[1] < found[0]
