"""A whole run on two real ranks, BatchNorm trained: golden losses, and the logged score is that of the checkpoint."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from shards.loading.batch import Slot
from shards.loading.open import open_data
from tests.xfer.ranks import Ranks, started
from xfer import run
from xfer.checkpoint import latest_checkpoint
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.evaluate import evaluate_subsets, score_row
from xfer.model import build_model

pytestmark = [pytest.mark.deepspeed]
GOLDEN = Path(__file__).parent / "golden-two-ranks.json"


def fit(values: dict[str, Any], stage: int) -> None:
    """This rank's part of a run."""
    engine = partial(build_engine, kind="deepspeed", zero_stage=stage)
    run.fit(Recipe.model_validate(values), Slot(dist.get_rank(), dist.get_world_size()), engine, lambda row: None)


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with started(2) as ranks:
        yield ranks


@pytest.mark.parametrize("stage", [1, 3])
def test_the_logged_score_is_that_of_the_checkpoint_and_the_losses_are_golden(two, recipe_values, stage):
    recipe_values["train"] |= {"freeze_batchnorm": False}
    recipe = Recipe.model_validate(recipe_values)
    run.begin(recipe)
    two.run(fit, recipe_values, stage)
    rows = run.read_metrics(recipe.folder)
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
    assert rows[-1]["evaluation_loss"] == pytest.approx(row["evaluation_loss"], abs=1e-5)
