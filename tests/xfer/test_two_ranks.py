"""A whole run on two real ranks, BatchNorm trained: golden losses, and the logged score is that of the checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from shards.ingest.build import build
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.sources import SourceOptions
from tests.xfer.ranks import fit_share
from xfer import run
from xfer.begin import begin
from xfer.bound import rank_times
from xfer.chain import FILE, agreement, read_chain
from xfer.checkpoint import checkpoint_name, chosen, latest_checkpoint
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.evaluate import evaluate_subsets, score_row
from xfer.history import read_metrics, scores
from xfer.model import build_model

pytestmark = [pytest.mark.deepspeed]
GOLDEN = Path(__file__).parent / "golden-two-ranks.json"


@pytest.mark.parametrize(("stage", "ema"), [(1, None), (3, None), (1, 0.9), (3, 0.9)])
def test_the_logged_score_is_that_of_the_checkpoint_and_the_losses_are_golden(two, recipe_values, stage, ema):
    """An average of the weights is what is saved and scored; what is trained, and its losses, stay as they are."""
    recipe_values["train"] |= {"freeze_batchnorm": False, "ema": ema}
    recipe = Recipe.model_validate(recipe_values)
    begin(recipe)
    two.run(fit_share, recipe, stage)
    rows = read_metrics(recipe.folder)
    losses = [loss for row in rows for loss in row.get("losses", ())]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), abs=1e-3)

    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state.step == rows[-1]["step"] == 4
    classes = checkpoint.state.classes
    model = build_model(recipe.model, len(classes), seed=0)
    model.load_state_dict(checkpoint.model())
    row = score_row(evaluate_subsets(model, open_data(recipe.data).validation, recipe.data, classes, "validation"))
    assert rows[-1]["accuracy"] == row["accuracy"]
    assert rows[-1]["right"] == row["right"]
    assert rows[-1]["evaluation_loss"] == pytest.approx(row["evaluation_loss"], abs=1e-5)


def test_patience_ends_two_ranks_where_it_ends_one_process_and_the_same_checkpoint_is_the_model(two, pretrained):
    pretrained["train"] |= {"steps": 12, "evaluate_every": 2, "learning_rate": 0.1, "clip_norm": 1.0}
    pretrained["train"] |= {"select": "best", "patience": 4}
    ends = []
    for name in ("one", "both"):
        recipe = Recipe.model_validate(pretrained | {"name": name})
        begin(recipe)
        if name == "one":
            run.fit(recipe, Slot(), build_engine, lambda row: None)
        else:
            two.run(fit_share, recipe, 1)
        ends.append((max(scores(read_metrics(recipe.folder))), chosen(recipe.folder / "checkpoints")))
    assert ends[0] == ends[1]
    assert ends[0][0] < 12


@pytest.mark.parametrize("stage", [1, 3])
def test_side_inputs_are_learned_alike_where_shares_and_what_is_missing_differ(
    two, images, recipe_values, stage, tmp_path
):
    """Of three samples a step one rank has two and the other one, and a micro-batch of none."""
    rows = [f"{path.parent.name}/{path.stem},h{n % 3},{n % 7}" for n, path in enumerate(images.glob("paint/*/*.jpg"))]
    (tmp_path / "side.csv").write_text("\n".join(["file,hint,price", *rows[::2]]))
    build(images / "paint", tmp_path / "paint", SourceOptions(side_table=tmp_path / "side.csv"), processes=1)
    recipe_values["data"] |= {
        "root": str(tmp_path),
        "sources": {"paint": {"path": "paint"}},
        "test": {},
        "batch_size": 3,
    }
    recipe_values["data"]["image_size"] = 16
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10", "train_from": "none"}}}
    recipe_values["model"] |= {
        "fusion": {"width": 16},
        "side": {"fields": {"hint": "category", "price": "number"}, "leak_limit": 1},
    }
    recipe_values["train"] |= {"steps": 4, "micro_batch": 1, "learning_rate": 0.05}
    found = []
    for name in ("one", "both"):
        recipe = Recipe.model_validate(recipe_values | {"name": name})
        begin(recipe)
        if name == "one":
            run.fit(recipe, Slot(), build_engine, lambda row: None)
        else:
            two.run(fit_share, recipe, stage)
        rows = read_metrics(recipe.folder)
        checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
        assert checkpoint is not None
        found.append(
            ([loss for row in rows for loss in row.get("losses", ())], rows[-1]["with_side"], checkpoint.model())
        )
    (losses, scored, one), (others, again, both) = found
    assert losses == pytest.approx(others, abs=1e-4)
    assert scored == again
    assert all(torch.allclose(value, both[name], atol=1e-4) for name, value in one.items())
    assert one["side.film.weight"].abs().sum() > 0


def test_two_ranks_have_the_images_of_one_and_where_as_many_go_on_they_go_on_to_the_bit(two, recipe_values):
    """By their chains: sums over ranks round otherwise than one process does, so the losses agree only among pairs."""
    recipe_values["train"] |= {"save_every": 1, "keep": 9}
    one, both, again = (Recipe.model_validate(recipe_values | {"name": name}) for name in ("one", "both", "again"))
    for recipe, by in ((one, None), (both, two), (again, two)):
        begin(recipe)
        if by is None:
            run.fit(recipe, Slot(), build_engine, lambda row: None)
        else:
            by.run(fit_share, recipe, 2)
    lines = (both.folder / FILE).read_bytes().splitlines()
    assert (again.folder / FILE).read_bytes().splitlines() == lines
    _same_images(one, both)
    (alone,) = rank_times(one.folder)
    assert alone.exchange == 0
    assert [rank.rank for rank in rank_times(both.folder)] == [0, 1]
    assert all(0 < rank.exchange < rank.step and rank.own for rank in rank_times(both.folder))
    for recipe in (again, one):
        for step in (3, 4):
            shutil.rmtree(recipe.folder / "checkpoints" / checkpoint_name(step))
        two.run(fit_share, recipe, 3 if recipe is one else 2)
    assert (again.folder / FILE).read_bytes().splitlines() == lines
    _same_images(one, both)
    assert [link["ranks"] for link in read_chain(one.folder).steps.values()] == [1, 1, 2, 2]


def _same_images(one: Recipe, other: Recipe) -> None:
    same, said = agreement(read_chain(one.folder), read_chain(other.folder), ("one", "both"))
    assert not same
    assert said.startswith("the same images at every step to 4; the losses differ from step ")
