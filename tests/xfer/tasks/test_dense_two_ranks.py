"""A whole run of a detector and of a segmenter on two real ranks: losses and scores of one process."""

import pytest

from shards.settings import replace
from tests.xfer.ranks import fit_share
from tests.xfer.tasks.conftest import Values
from tests.xfer.tasks.runs import fit, losses, scores
from xfer.begin import begin
from xfer.config import Recipe
from xfer.surface import Run

pytestmark = [pytest.mark.deepspeed]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("fcos", 1), ("fcos", 3), ("retinanet", 3), ("faster_rcnn", 3), ("fpn", 1), ("lraspp", 3), ("deeplabv3", 2)],
)
def test_losses_and_scores_are_those_of_one_process_and_of_the_checkpoint(two, values: Values, kind, stage):
    """Batches of 5 have shares of 2 and 3; the evaluation's last batch is filled up on one rank."""
    recipe = Recipe.model_validate(values(kind))
    recipe = replace(recipe, {"data.batch_size": 5, "train.learning_rate": 0.002})
    alone, both = replace(recipe, {"name": "alone"}), replace(recipe, {"name": "both"})
    expected = fit(alone)
    begin(both)
    two.run(fit_share, both, stage)
    assert losses(both.folder) == pytest.approx(expected, abs=1e-4)
    logged = scores(both.folder, kind)
    assert logged == pytest.approx(scores(alone.folder, kind), abs=2e-3)
    found = {name: score.value for name, score in Run(both.folder).evaluate().items()}
    assert logged == pytest.approx(found, abs=1e-6)
