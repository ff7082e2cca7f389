"""The demo's page, without the demo: what it shows of the sources."""

from shards.loading.open import open_data
from tuning.demo import _few
from xfer.config import Recipe
from xfer.report.page import tiles


def test_the_tiles_show_a_sample_of_each_class_whatever_the_stored_order(recipe_values):
    recipe = Recipe.model_validate(recipe_values)
    data = open_data(recipe.data)
    shown = {subset.name: _few(subset, recipe.data) for subset in (*data.train, *data.test)}
    for subset in (*data.train, *data.test):
        assert sorted(name for _, name in shown[subset.name]) == sorted(subset.classes)
    assert len(_few(data.train[0], recipe.data, 1)) == 1
    made = tiles(shown)
    assert len(made) == sum(map(len, shown.values()))
    assert all(uri.startswith("data:image/png;base64,") for uri, _, _ in made)
