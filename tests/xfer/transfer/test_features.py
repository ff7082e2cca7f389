"""The features of frozen branches are made once and kept: the next run begins in a moment, and exactly the same."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import xfer
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from tests.xfer.transfer.test_stages import saved
from xfer.backbone import Branch
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.fusion import FUSIONS
from xfer.model import build_model
from xfer.transfer import features
from xfer.transfer.features import features_of


@pytest.fixture
def feature(pretrained, fast):
    pretrained["transfer"] = {"mode": "feature"}
    return pretrained


def start(values, name: str, **changes) -> dict[str, torch.Tensor]:
    """Step 0 of a run."""
    return saved(xfer.fit({**values, "name": name}, changes.get("changes", {}), quiet=True).folder)[0]


def test_the_next_run_reads_no_image_and_begins_bit_by_bit_as_the_first(feature, looks, tmp_path):
    first = start(feature, "first")
    assert looks == [("outline", 75), ("paint", 79)]
    second = start(feature, "second", changes={"train.learning_rate": 0.5, "train.seed": 9, "data.batch_size": 4})
    assert len(looks) == 2
    assert all(torch.equal(first[name], second[name]) for name in first)
    kept = list((tmp_path / "runs" / ".features").iterdir())
    assert sorted(load_file(path)["pooled"].shape for path in kept) == [(75, 512), (79, 512)]
    for path in kept:
        path.unlink()
    again = start(feature, "again")
    assert len(looks) == 4
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"train.probe_images": 50}, {"outline", "paint"}),
        ({"data.image_size": 40}, {"outline", "paint"}),
        ({"data.resize": "letterbox"}, {"outline", "paint"}),
        ({"model.branches.only.size": 48}, {"outline", "paint"}),
        ({"data.validation": 0.3}, {"outline", "paint"}),
        ({"data.sources.paint.where": {"classes": ["circle", "star"]}}, {"paint"}),
        ({"data.sources": {"paint": {"path": "neon"}}, "data.test": {}}, {"paint"}),
        ({"data.sources.paint.weight": 3, "data.sources.outline.weight": 1}, set()),
        ({"data.sources": {"other-name": {"path": "paint"}}}, set()),
        ("other weights", {"outline", "paint"}),
    ],
)
def test_what_was_seen_of_other_images_or_by_another_branch_is_never_used(feature, looks, tmp_path, change, seen):
    start(feature, "first")
    looks.clear()
    if change == "other weights":
        path = feature["model"]["branches"]["only"]["weights"]
        state = load_file(path)
        state["layer4.0.bn2.bias"][0] += 1e-3
        save_file(state, tmp_path / "other.safetensors")
        change = {"model.branches.only.weights": str(tmp_path / "other.safetensors")}
    start(feature, "second", changes=change)
    assert {name for name, _ in looks} == seen


def test_a_damaged_file_is_made_anew(feature, looks, tmp_path):
    first = start(feature, "first")
    kept = next((tmp_path / "runs" / ".features").iterdir())
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    second = start(feature, "second")
    assert len(looks) == 3
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert kept.read_bytes() == whole


def test_of_several_branches_only_those_that_are_new_look(feature, looks):
    start(feature, "first")
    weights = feature["model"]["branches"]["only"]["weights"]
    feature["model"]["branches"]["coarse"] = {"backbone": "resnet10", "weights": weights, "size": 16}
    seen: list[tuple[int, ...]] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: seen.append(tuple(inputs[0].shape)) if isinstance(module, Branch) else None
    )
    try:
        start(feature, "second", changes={"data.validation": 0.2})
    finally:
        hook.remove()
    before_scoring = [shape[-1] for shape in seen[: seen.index(next(s for s in seen if s[-1] == 32))]]
    assert set(before_scoring) == {16}, "the fine branch's features were kept"
    assert len(looks) == 4


def test_runs_that_leave_one_source_out_see_each_image_once(feature, looks):
    feature["data"] |= {"validation": "leave_one_source_out", "test": {}}
    feature["data"]["sources"]["neon"] = {"path": "neon"}
    xfer.fit(feature, quiet=True)
    assert sorted(looks) == [("neon", 120), ("outline", 90), ("paint", 90)]


def damage(shards: Path, places: int) -> None:
    """Flips a byte in some of the images of a data set, evenly."""
    for tar in shards.glob("*.tar"):
        data = bytearray(tar.read_bytes())
        for at in range(1024, len(data), len(data) // places):
            data[at] ^= 255
        tar.write_bytes(data)


@pytest.mark.parametrize("damaged", [False, True])
def test_more_images_or_fewer_share_the_parts_that_are_whole(
    pretrained, looks, monkeypatch, shards_root, tmp_path, damaged
):
    """Whatever was asked for before, what comes of it is what a look without a cache gives."""
    monkeypatch.setattr(features, "PART", 16)
    if damaged:
        pretrained["data"]["root"] = str(shutil.copytree(shards_root, tmp_path / "shards"))
        damage(tmp_path / "shards" / "paint", 2)
    recipe = Recipe.model_validate(pretrained)
    data = open_data(recipe.data)
    model = build_model(recipe.model, len(data.classes), 0)
    for count, looked in ((70, [34, 36]), (130, [31, 35]), (100, [1, 3]), (500, [27, 15]), (70, [])):
        looks.clear()
        found = features_of(model, data.train, recipe.data, count, tmp_path / "cache")
        assert [number for _, number in looks] == looked, count
        plain = features_of(model, data.train, recipe.data, count)
        assert torch.equal(found.targets, plain.targets)
        assert torch.equal(found.sources, plain.sources)
        mine, theirs = vars(found.branches["only"]), vars(plain.branches["only"])
        assert all(torch.equal(mine[part], theirs[part]) for part in mine), "to the bit"
    assert len(found.targets) == 70
    lost = 154 - len(features_of(model, data.train, recipe.data, 500, tmp_path / "cache").targets)
    assert bool(lost) == damaged


def test_mean_and_covariance_are_those_of_the_maps_pixels(pretrained):
    recipe = Recipe.model_validate(pretrained | {"data": pretrained["data"] | {"image_size": 64}})
    data = open_data(recipe.data)
    model = build_model(recipe.model, len(data.classes), 0)
    seen = features_of(model, data.train, recipe.data, 500).branches["only"]
    with torch.no_grad():
        maps = [model.maps(batch.images[batch.valid])["only"] for batch in eval_stream(data.train, recipe.data, Slot())]
    pixels = torch.cat(maps).permute(0, 2, 3, 1).flatten(0, 2).double()
    assert len(pixels) == 154 * 4
    torch.testing.assert_close(seen.mean, pixels.mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.covariance, pixels.T.cov(correction=0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", FUSIONS)
def test_a_head_fitted_to_the_cache_says_of_the_images_what_it_says_of_their_features(feature, kind, tmp_path):
    """Logits of the whole model on training images, and its accuracy, against head and fusion on what is cached."""
    branches = feature["model"]["branches"]
    branches["coarse"] = {**branches["only"], "size": 16}
    run = xfer.fit(feature, {"model.fusion.kind": kind}, quiet=True)
    data, model = open_data(run.recipe.data), open_model(run.folder).model
    assert list((tmp_path / "runs" / ".features").iterdir())
    cached = features_of(model, data.train, run.recipe.data, 500, tmp_path / "runs" / ".features")
    with torch.no_grad():
        pooled = [projection(cached.branches[name].pooled[:, :, None, None]).flatten(1)
                  for name, projection in model.projections.items()]  # fmt: skip
        of_features = model.classify(pooled)
        of_images = torch.empty_like(of_features)
        right = 0
        for batch in eval_stream(data.train, run.recipe.data, Slot()):
            logits = model(batch.images)
            right += int((logits.argmax(1) == batch.targets)[batch.valid].sum())
            firsts = torch.tensor([0, data.train[0].num_samples])
            for row in batch.valid.nonzero().flatten().tolist():
                source, position = batch.sources[row], batch.positions[row] - firsts[batch.sources[row]]
                place = (cached.sources == source) & (cached.branches["only"].positions == position)
                of_images[place] = logits[row]
    torch.testing.assert_close(of_features, of_images, atol=1e-3, rtol=1e-3)
    assert int((of_features.argmax(1) == cached.targets).sum()) == right > 154 / 3
