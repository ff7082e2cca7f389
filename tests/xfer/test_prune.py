"""model.fusion.prune: a branch of a low weight is no part of the model that is handed over, which shrinks for it."""

from typing import Any

import pytest
import torch
from torch import nn

import xfer
from shards.settings import ConfigError, load
from xfer.bundle import BundleRecipe, open_model
from xfer.cli.ending import run_ending
from xfer.fusion import FUSIONS, WeightedSum
from xfer.model import build_model
from xfer.model_config import ModelConfig

IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BRANCHES = {name: {"backbone": "resnet10"} for name in ("a", "b", "c")}


def built(kind: str, weights: dict[str, float], head: str = "linear") -> Any:
    fusion = {"kind": kind, "width": 32, "weights": weights}
    config = ModelConfig.model_validate({"branches": BRANCHES, "fusion": fusion, "head": {"kind": head}})
    model: Any = build_model(config, 3, seed=0).eval()
    for p in model.fusion.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    return model


@pytest.mark.parametrize("kind", [kind for kind, made in FUSIONS.items() if issubclass(made, WeightedSum)])
def test_without_a_branch_a_model_says_what_it_says_where_that_has_no_weight(kind):
    whole, smaller = (built(kind, {"a": 0.6, "b": 0.03, "c": 0.37}) for _ in range(2))
    assert smaller.drop_below(0.05) == pytest.approx({"b": 0.03})
    assert list(smaller.branches) == list(smaller.projections) == list(smaller.sizes) == ["a", "c"]
    with torch.no_grad():
        before = whole(IMAGES)
        with whole.fusion.ignoring(whole.fusion.below(0.05)):
            torch.testing.assert_close(smaller(IMAGES), whole(IMAGES), atol=1e-6, rtol=1e-5)
        assert torch.equal(whole(IMAGES), before), "put back"


def test_a_detector_loses_a_branch_on_every_level():
    whole, smaller = (built("attention", {"a": 0.6, "b": 0.03, "c": 0.37}, "fpn") for _ in range(2))
    smaller.drop_below(0.05)
    with torch.no_grad(), whole.fusion.ignoring([1]):
        torch.testing.assert_close(smaller(IMAGES), whole(IMAGES), atol=1e-5, rtol=1e-4)


def test_the_branch_of_the_largest_weight_always_stays():
    model = built("wsum", {"a": 0.34, "b": 0.33, "c": 0.33})
    assert list(model.drop_below(0.45)) == ["b", "c"]
    assert model.fusion_weights == {"a": 1.0}


def test_a_run_hands_over_a_smaller_model_and_says_so(recipe_values):
    recipe_values["model"]["fusion"] |= {"weights": {"fine": 0.97, "coarse": 0.03}}
    recipe_values["train"] |= {"steps": 2, "evaluate_every": 2}
    whole = xfer.fit(recipe_values, quiet=True)
    pruned = xfer.fit(recipe_values, {"name": "pruned", "model.fusion.prune": 0.05}, quiet=True)
    assert list(pruned.model.model.branches) == ["fine"]
    assert pruned.metrics[-1]["accuracy"] == {name: score.accuracy for name, score in pruned.evaluate().items()}, (
        "scored as it is handed over"
    )
    said = run_ending(pruned.recipe)
    assert "left out of the model, for its weight is below model.fusion.prune: coarse (weight 0.030)" in said
    assert "coarse (weight 0.030)" in pruned.report().read_text()
    big, small = whole.quantize(), pruned.quantize()
    assert small.weights_bytes < 0.6 * big.weights_bytes
    described = load(small.path / "recipe.yaml", BundleRecipe).model
    assert list(described.branches) == ["fine"]
    assert described.fusion.given == {"fine": 1.0}
    again = xfer.fit(recipe_values, {"name": "pruned", "model.fusion.prune": 0.05, "train.steps": 3}, quiet=True)
    assert again.metrics[-1]["step"] == 3, "its checkpoints have all branches"
    values = {**recipe_values, "name": "next", "model": {"from": str(pruned.folder)}}
    with pytest.raises(ConfigError, match=r"branches.coarse: is no part of .* whose model.fusion.prune left it out"):
        xfer.fit(values, quiet=True)
    onward = xfer.fit({**values, "model": {"from": str(small.path)}}, {"train.steps": 1}, quiet=True)
    assert list(open_model(onward.folder).model.branches) == ["fine"]


REFUSED = {
    "concat": ({"kind": "concat"}, "linear", "fusion.prune: must be left out for concat"),
    "sizes": ({}, "fpn", "fusion.prune: must be left out for the head fpn where branches see other sizes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_is_refused(name):
    fusion, head, reason = REFUSED[name]
    branches = {"a": {"backbone": "resnet10"}, "b": {"backbone": "resnet10", "size": 16}}
    with pytest.raises(ValueError, match=reason):
        ModelConfig.model_validate({"branches": branches, "fusion": {"prune": 0.05, **fusion}, "head": {"kind": head}})
