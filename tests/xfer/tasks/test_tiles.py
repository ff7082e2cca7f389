"""Large images in tiles: the same maps, in less memory, through every verb."""

import pytest
import torch

from shards.loading.batch import Slot
from shards.loading.evaluate import at_once, eval_stream
from shards.loading.open import open_data
from shards.settings import ConfigError, dump, load, replace
from tests.xfer.tasks.conftest import Values
from tests.xfer.tasks.runs import MEASURES, fit, scores
from xfer.backbone import Branch
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.evaluate import evaluate_subsets
from xfer.export.write import check_export
from xfer.model import build_model
from xfer.model_config import TileConfig
from xfer.surface import Run
from xfer.tiles import tiled

TILES = {"data": {"image_size": 128, "batch_size": 6}, "model": {"tile": {"size": 96, "overlap": 64}}}


@pytest.fixture
def large(values: Values):
    """Of a kind, a recipe of images that are larger than its tiles."""

    def make(kind: str) -> Recipe:
        given = values(kind)
        return Recipe.model_validate({**given, **{name: {**given[name], **more} for name, more in TILES.items()}})

    return make


@pytest.mark.parametrize(("height", "width"), [(384, 512), (224, 416), (160, 160)])
def test_the_maps_are_those_of_the_whole_where_tiles_overlap_by_more_than_is_seen(height, width):
    torch.manual_seed(0)
    branch = Branch("resnet10").eval()
    images = torch.randn(1, 3, height, width)
    seen = []

    def see(part):
        seen.append(part.shape[-1])
        return branch(part)

    with torch.no_grad():
        whole, found = branch(images), tiled(see, images, TileConfig(size=224, overlap=192))
    assert max(seen) <= 224
    for level, maps in whole.items():
        assert found[level].shape == maps.shape
        assert torch.allclose(found[level], maps, atol=2e-3 * float(maps.abs().max())), level


def test_every_place_is_kept_once_and_lies_half_an_overlap_from_a_cut():
    for length in range(256, 1024, 32):
        for size, overlap in ((64, 0), (96, 64), (224, 128), (256, 192)):
            places = torch.arange(length).expand(1, 1, 64, length).float()
            found = tiled(lambda part: {"C0": part}, places, TileConfig(size=size, overlap=overlap))
            assert torch.equal(found["C0"], places), (length, size, overlap)
            inside = tiled(_distance_to_a_cut(length), places, TileConfig(size=size, overlap=overlap))["C0"][0, 0, 0]
            assert inside.min() >= overlap // 2, (length, size, overlap)


def _distance_to_a_cut(length: int):
    def see(part):
        first, last = int(part[0, 0, 0, 0]), int(part[0, 0, 0, -1])
        left = torch.arange(part.shape[-1]).float() if first else torch.full((part.shape[-1],), 1e9)
        right = torch.arange(part.shape[-1]).flip(0).float() if last < length - 1 else torch.full_like(left, 1e9)
        return {"C0": torch.minimum(left, right + 1).expand(part.shape)}

    return see


@pytest.mark.parametrize("kind", ["fcos", "fpn"])
def test_a_run_is_trained_on_tiles_and_answers_for_whole_images(large, kind):
    recipe = replace(large(kind), {"train.steps": 2})
    assert recipe.data.train_size == 96
    assert recipe.data.augment.scale == pytest.approx((0.7 * 0.5625, 1.4 * 0.5625))
    assert load_again(recipe) == recipe
    fit(recipe)
    trained, seen = open_model(recipe.folder), []
    branch = trained.model.branches["main"]
    branch.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[-2:])))
    data = open_data(recipe.data)
    found = evaluate_subsets(trained.model, data.validation, recipe.data, trained.classes, "validation")
    assert set(seen) == {(96, 96)}, "never more than a tile"
    assert {name: score.value for name, score in found.items()} == scores(recipe.folder, kind)
    bundle = Run(recipe.folder).quantize(bits=8)
    assert "in tiles of 96 that overlap by 64" in (bundle.path / "card.md").read_text()
    with pytest.raises(ConfigError, match=r"sees its images in tiles \(model.tile\)"):
        check_export(open_model(bundle.path), None, "model.onnx")
    packed = open_model(bundle.path).model
    assert packed.tile == recipe.model.tile
    images = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one = packed(images)
        packed.tile = None
        other = packed(images)
    parts = zip(*(value.values() if isinstance(value, dict) else [value] for value in (one, other)), strict=True)
    assert any(not torch.equal(a, b) for a, b in parts), f"{MEASURES[kind]} of tiles"


def load_again(recipe: Recipe) -> Recipe:
    """As a run folder has it."""
    recipe.folder.mkdir(parents=True)
    (recipe.folder / "recipe.yaml").write_text(dump(recipe))
    return load(recipe.folder / "recipe.yaml", Recipe)


def test_sizes_that_are_given_stay(large):
    given = replace(large("fcos"), {"data.train_size": 64, "data.augment.scale": [0.5, 1.0]})
    assert (given.data.train_size, given.data.augment.scale) == (64, (0.5, 1.0))


def test_training_sees_what_it_is_given_whole(large):
    model = build_model(large("fpn").model, 3, seed=0).train()
    seen = []
    model.branches["main"].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    model(images)
    model.eval()(images)
    assert seen == [128, 96, 96, 96, 96]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.tile.size": 128}, r"model.tile.size: must be less than what a branch sees .*128, got 128"),
        ({"model.tile.size": 100}, r"model.tile.size: .*multiple of 32"),
        ({"model.tile.overlap": 32}, r"model.tile.overlap: .*multiple of 64"),
        ({"model.tile.overlap": 128}, r"overlap: must be less than size, 96, got 128"),
        ({"data.image_size": 120}, r"data.image_size: must be a multiple of 32 with model.tile.* got 120"),
        ({"model.branches.main.backbone": "timm/resnet18"}, r"tile: must be left out for timm/resnet18"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(large, changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(large("fcos"), changes)


def test_large_images_are_scored_a_few_at_a_time(large, monkeypatch):
    recipe = large("fpn")
    validation = open_data(recipe.data).validation
    whole = eval_stream(validation, recipe.data, Slot())
    monkeypatch.setattr("shards.loading.evaluate.MOST_PIXELS", 2 * 128**2)
    parts = eval_stream(validation, recipe.data, Slot())
    assert (whole.batch_size, parts.batch_size) == (6, 2)
    assert eval_stream(validation, recipe.data, Slot(0, 2)).batch_size == 4, "of two ranks"
    one, other = (torch.cat([batch.images[batch.valid] for batch in stream]) for stream in (whole, parts))
    assert torch.equal(one, other)
    assert [at_once(16, size) for size in (64, 128, 1000)] == [8, 2, 1]
