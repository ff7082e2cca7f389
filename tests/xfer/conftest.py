"""What tests of models share."""

from collections.abc import Iterator

import pytest

from shards.loading.batch import Slot
from tests.xfer.ranks import Ranks, started
from xfer import run as one_process
from xfer.begin import begin
from xfer.bundle import Trained, open_model
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.prepare import open_labelled


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    """Two ranks."""
    with started(2) as ranks:
        yield ranks


@pytest.fixture
def looks(monkeypatch) -> list[tuple[str, int]]:
    """Of which source how many images were asked for, each time any are read."""
    from xfer.transfer import features

    asked: list[tuple[str, int]] = []
    real = features.few

    def noted(subsets, config, count, **options):
        asked.extend((subset.name, count) for subset in subsets)
        return real(subsets, config, count, **options)

    monkeypatch.setattr(features, "few", noted)
    return asked


@pytest.fixture
def fast(monkeypatch) -> None:
    """One penalty, where it does not matter how well a head is fitted."""
    from xfer.transfer import linear

    monkeypatch.setattr(linear, "PENALTIES", (1e-2,))


@pytest.fixture(scope="module")
def recipe(request, tmp_path_factory) -> Recipe:
    """Of a run that is trained."""
    root = request.getfixturevalue("shards_root")
    data = {
        "root": str(root),
        "sources": {"paint": {"path": "paint"}, "outline": {"path": "outline"}},
        "test": {"neon": {"path": "neon"}},
        "validation": 0.2,
        "image_size": 32,
        "batch_size": 24,
        "workers": 0,
    }
    values = {
        "name": "tiny",
        "output": str(tmp_path_factory.mktemp("runs")),
        "data": data,
        "model": {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}},
        "train": {"steps": 20, "warmup": 4, "learning_rate": 0.02},
        "quantize": {"calibration": 32},
    }
    recipe = Recipe.model_validate(values)
    begin(recipe)
    one_process.fit(recipe, Slot(), build_engine, lambda row: None)
    return recipe


@pytest.fixture(scope="module")
def trained(recipe) -> Trained:
    return open_model(recipe.folder)


@pytest.fixture(scope="module")
def data(recipe):
    return open_labelled(recipe.data)
