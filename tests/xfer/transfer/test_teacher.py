"""train.teacher: a trained model's answers are learned from."""

import pytest
import torch
from torch.nn import functional as F

import xfer
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.train import train_stream
from shards.settings import ConfigError, replace
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.labels import Objective, annotated
from xfer.model import build_model
from xfer.prepare import prepare
from xfer.train import set_training
from xfer.transfer.teacher import TEMPERATURE, Teacher


@pytest.fixture
def teacher(recipe_values) -> xfer.Run:
    """Trained for some steps at another image size."""
    return xfer.fit(recipe_values, {"name": "teacher", "data.image_size": 24, "train.steps": 3}, quiet=True)


def taught(teacher: xfer.Run, share: float) -> dict[str, object]:
    return {"train.teacher": {"from": str(teacher.folder), "share": share}, "train.freeze_batchnorm": True}


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_first_loss_is_the_mixture_of_labels_and_the_teachers_softened_answers(recipe_values, teacher, share):
    run = xfer.fit(recipe_values, taught(teacher, share), quiet=True)
    recipe, data = run.recipe, open_data(run.recipe.data)
    batch = next(train_stream(data.train, recipe.data, Slot()))
    model = set_up(recipe, len(data.classes))
    logits, answers = (
        model(batch.images),
        open_model(teacher.folder).model(
            F.interpolate(batch.images.float(), size=(24, 24), mode="bilinear", antialias=True)
        ),
    )
    p = (answers / TEMPERATURE).softmax(1)
    divergence = (p * (p.log() - (logits / TEMPERATURE).log_softmax(1))).sum(1).mean() * TEMPERATURE**2
    objective = Objective(annotated(data.train, len(data.classes)), [subset.name for subset in data.train])
    labels = objective(logits, batch) / len(batch)
    expected = ((1 - share) * labels + share * divergence).item()
    assert run.metrics[0]["losses"][0] == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(labels.item(), abs=1e-3)


def set_up(recipe, num_classes: int) -> torch.nn.Module:
    model = build_model(recipe.model, num_classes, recipe.train.seed)
    set_training(model, freeze_batchnorm=True)
    return model


def test_classes_are_matched_by_name():
    answers = torch.tensor([[3.0, 1.0, 2.0]])
    teacher = Teacher(torch.nn.Flatten(), 1, torch.tensor([2, 0, 1]), 0.5)
    images = answers[:, :, None, None]
    assert teacher(answers[:, [2, 0, 1]], images).item() == pytest.approx(0, abs=1e-6)
    assert teacher(answers, images).item() > 0.1


def test_a_teacher_that_is_none_or_knows_other_classes_is_refused(recipe_values, teacher, tmp_path):
    for path, words in (("nowhere", "no such folder"), (str(tmp_path), "neither a run folder")):
        with pytest.raises(ConfigError, match=rf"train\.teacher\.from: .*{words}"):
            xfer.fit(recipe_values, {"train.teacher": {"from": path}}, quiet=True)
    fewer = {"data.sources": {"paint": {"path": "paint"}}, "data.sources.paint.where": {"classes": ["circle", "star"]}}
    with pytest.raises(ConfigError, match=r"train\.teacher\.from: must have the classes of this run; .* differ in"):
        xfer.fit(recipe_values, {**fewer, "data.test": {}, **taught(teacher, 0.5)}, quiet=True)
    with pytest.raises(ConfigError, match=r"train\.teacher\.share: must be at most 1"):
        xfer.fit(recipe_values, taught(teacher, 2), quiet=True)


def test_what_is_checked_before_training_loads_no_teacher(recipe_values, teacher, monkeypatch):
    loaded = []
    real = open_model
    monkeypatch.setattr("xfer.transfer.teacher.open_model", lambda path: loaded.append(path) or real(path))
    recipe = replace(Recipe.model_validate(recipe_values), taught(teacher, 0.5))
    bundle = teacher.quantize(bits=8)
    for path in (teacher.folder, bundle.path):
        prepare(replace(recipe, {"train.teacher.from": str(path)}))
    assert loaded == []
    weights = bundle.path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"train\.teacher\.from: .*not what the manifest says"):
        prepare(replace(recipe, {"train.teacher.from": str(bundle.path)}))


def test_a_teacher_that_has_seen_the_test_images_is_refused(recipe_values, teacher):
    swapped = {"data.sources": {"neon": {"path": "neon"}}, "data.test": {"paint": {"path": "paint"}}}
    with pytest.raises(ConfigError, match=r"data\.test\.paint: .* images are among what .*teacher was trained on"):
        xfer.fit(recipe_values, {**swapped, **taught(teacher, 0.5)}, quiet=True)


def test_a_bundle_teaches_too_and_nothing_of_it_is_trained(recipe_values, teacher):
    bundle = teacher.quantize(bits=8)
    before = (bundle.path / "weights.safetensors").read_bytes()
    run = xfer.fit(recipe_values, {"train.teacher": {"from": str(bundle.path)}}, quiet=True)
    plain = xfer.fit(replace(run.recipe, {"train.teacher": None, "name": "plain"}), quiet=True)
    assert run.metrics[0]["losses"] != plain.metrics[0]["losses"]
    assert (bundle.path / "weights.safetensors").read_bytes() == before
