"""What a model that begins as its probe is trained with unless told otherwise, and what it is then."""

import pytest

import xfer
from shards.settings import load, parse, replace
from xfer.config import PRETRAINED_RATES, RATES, Recipe
from xfer.folds import folds
from xfer.surface import Run

KEYS = ("learning_rate", "freeze_batchnorm", "select")


@pytest.fixture
def values(pretrained):
    """A recipe that says nothing of these."""
    for key in KEYS:
        del pretrained["train"][key]
    return pretrained


def trained_with(values, **changes) -> tuple:
    train = parse(values, Recipe, changes).train
    return tuple(getattr(train, key) for key in KEYS)


def test_a_model_of_pretrained_branches_is_trained_gently_and_chosen_by_validation(values, tmp_path):
    assert trained_with(values) == (PRETRAINED_RATES["sgd"], True, "best")
    assert trained_with(values, **{"train.optimizer": "adamw"}) == (PRETRAINED_RATES["adamw"], True, "best")
    assert trained_with(values, **{"data.validation": 0})[2] == "last"
    assert trained_with(values, **{"transfer.mode": "feature"})[2] == "last"
    given = {"train.learning_rate": 0.5, "train.freeze_batchnorm": False, "train.select": "last"}
    assert trained_with(values, **given) == (0.5, False, "last")


def test_any_other_model_is_trained_from_scratch(values):
    only = values["model"]["branches"]["only"]
    scratch = {"model.branches": {"only": {"backbone": "resnet10"}}}
    assert trained_with(values, **scratch) == (RATES["sgd"], False, "last")
    assert trained_with(values, **scratch, **{"train.optimizer": "adamw"}) == (RATES["adamw"], False, "last")
    assert trained_with(values, **{"train.probe_images": 0}) == (RATES["sgd"], False, "last")
    mixed = {"model.branches": {"only": only, "new": {"backbone": "resnet10"}}}
    assert trained_with(values, **mixed) == (RATES["sgd"], False, "last")


def test_a_model_from_another_begins_as_its_probe_too_unless_it_has_a_new_branch(values):
    first = xfer.fit(values, {"name": "first", "transfer.mode": "feature"}, quiet=True)
    values["model"] = {"from": str(first.folder)}
    assert trained_with(values) == (PRETRAINED_RATES["sgd"], True, "best")
    branches = {"only": {"backbone": "resnet10"}, "new": {"backbone": "resnet10"}}
    values["model"] |= {"branches": branches, "fusion": {"width": 512}}
    assert trained_with(values) == (RATES["sgd"], False, "last")


def test_a_recipe_that_was_read_is_complete_with_its_folds(values, tmp_path):
    recipe = parse(values, Recipe, {"data.validation": "leave_one_source_out"})
    assert recipe.selects_by_left_out
    for fold in folds(recipe).values():
        assert (fold.train.learning_rate, fold.train.freeze_batchnorm) == (PRETRAINED_RATES["sgd"], True)
    kept = replace(recipe, {"model.branches": {"only": {"backbone": "resnet10"}}}).train
    assert (kept.learning_rate, kept.freeze_batchnorm) == (PRETRAINED_RATES["sgd"], True)


def test_a_run_that_training_spoils_is_its_probe(values, capsys):
    """At a rate that loses what the probe knew."""
    spoiling = {"train.learning_rate": 0.1, "train.clip_norm": 1, "train.steps": 6}
    run = xfer.fit(values, spoiling, quiet=True)
    assert load(run.folder / "recipe.yaml", Recipe).train.select == "best"
    first, last = run.metrics[0]["accuracy"], run.metrics[-1]["accuracy"]
    assert sum(last.values()) < sum(first.values())
    found = Run(run.folder).evaluate()
    assert {name: score.accuracy for name, score in found.items()} == pytest.approx(first)
    assert "the probe is the model" in run.report().read_text()
