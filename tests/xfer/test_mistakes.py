"""The surest mistakes, of a model that is sure of nothing too."""

import torch

from shards.loading.batch import Batch
from shards.loading.open import open_data
from xfer.config import Recipe
from xfer.mistakes import Mistakes


def test_images_without_a_class_of_the_model_and_answers_that_are_no_numbers_are_no_mistakes(recipe_values):
    (neon,) = open_data(Recipe.model_validate(recipe_values).data).test
    found = Mistakes([neon], ["a", "b"])
    logits = torch.tensor([[5.0, 0.0], [2.0, 0.0], [torch.nan, 0.0], [9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
    targets = torch.tensor([1, 1, 1, -1, 0, 1])
    valid = torch.tensor([True, True, True, True, True, False])
    zeros = torch.zeros(6, dtype=torch.int64)
    found.add(Batch(torch.zeros(6, 3, 8, 8), targets, zeros, torch.arange(6), valid), logits)
    assert [(one.row, one.truth, one.answer) for one in found.result()["neon"]] == [(0, "b", "a"), (1, "b", "a")]
