"""Fusion weights that the probe chooses by sources left out: what a second branch is worth on images from elsewhere."""

import pytest
import torch

import xfer
from shards.settings import ConfigError
from tests.xfer.command import status
from xfer.bundle import open_model
from xfer.fusion import WeightedSum
from xfer.transfer.linear import choose_penalty, fifths
from xfer.transfer.weights import choose_weights, read_chosen

N, SOURCES, CLASSES = 600, 3, 4


@pytest.fixture
def task():
    """Targets, masks, sources, and a generator of noise."""
    order = torch.arange(N)
    targets, sources = order % CLASSES, order // CLASSES % SOURCES
    return targets, torch.ones(N, CLASSES, dtype=torch.bool), sources, torch.Generator().manual_seed(0)


def noise(generator: torch.Generator, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(N, 16, generator=generator)


def signal(codes: torch.Tensor) -> torch.Tensor:
    """One of 16 directions for each code."""
    return 2.0 * torch.nn.functional.one_hot(codes, 16).float()


def test_a_branch_that_only_knows_the_sources_it_is_fitted_on_gets_no_weight(task):
    targets, masks, sources, generator = task
    plain = signal(targets) + noise(generator, 1.3)
    local = signal(targets * SOURCES + sources) + noise(generator, 0.3)  # a class looks otherwise in each source
    features = {"plain": plain, "local": local}
    fusion = WeightedSum([1.0, 1.0])
    chosen, _ = choose_weights(fusion, features, targets, masks, sources)
    assert chosen.weights == {"plain": 1.0, "local": 0.0}
    assert fusion.weights.tolist() == [1.0, 0.0]
    assert chosen.accuracy == chosen.alone["plain"] > chosen.equal > chosen.alone["local"]
    assert "local adds nothing: leave it out" in str(chosen)
    both = WeightedSum([1.0, 1.0])(list(features.values()))
    by_fifths = [choose_penalty(z, targets, masks, fifths(N)).accuracy for z in (plain, both)]
    assert by_fifths[1] > by_fifths[0], "a random part of every source would choose both"
    alone = choose_penalty(fusion(list(features.values())), targets, masks, sources)
    assert chosen.accuracy == alone.accuracy


def test_branches_that_know_different_things_are_both_used(task):
    targets, masks, sources, generator = task
    halves = {
        "first": signal(targets // 2) + noise(generator, 0.7),
        "second": signal(2 + targets % 2).roll(7, 1) + noise(generator, 0.7),
    }
    chosen, _ = choose_weights(WeightedSum([1.0, 1.0]), halves, targets, masks, sources)
    assert chosen.accuracy >= chosen.equal > max(chosen.alone.values()) + 0.2
    assert all(w >= 0.25 for w in chosen.weights.values())
    assert "adds nothing" not in str(chosen)


def test_a_third_branch_joins_two_and_noise_does_not(task):
    targets, masks, sources, generator = task
    features = {
        "noise": noise(generator),
        "first": signal(targets // 2) + noise(generator, 0.7),
        "second": signal(2 + targets % 2).roll(7, 1) + noise(generator, 0.7),
    }
    chosen, _ = choose_weights(WeightedSum([1.0] * 3), features, targets, masks, sources)
    assert chosen.weights["noise"] == 0
    assert chosen.weights["first"] > 0 < chosen.weights["second"]


def test_a_gain_within_the_noise_of_the_images_is_no_gain(task):
    """The same knowledge twice, once worse: both together are right about 2 more of 600 images, by chance."""
    targets, masks, sources, generator = task
    generator.manual_seed(1)
    one = signal(targets) + noise(generator)
    same = {"one": one, "other": one + noise(generator, 0.2)}
    chosen, _ = choose_weights(WeightedSum([1.0, 1.0]), same, targets, masks, sources)
    assert chosen.weights == {"one": 1.0, "other": 0.0}
    assert chosen.equal > chosen.accuracy


@pytest.fixture
def two(pretrained):
    """Two pretrained branches of the same weights: one sees the images, one sees them in 16 pixels."""
    branch = pretrained["model"]["branches"].pop("only")
    pretrained["model"]["branches"] = {"sharp": {**branch}, "blurred": {**branch, "size": 16}}
    pretrained["train"] |= {"steps": 1}
    return pretrained


def test_a_run_of_pretrained_branches_chooses_and_says_so(two, capsys):
    run = xfer.fit(two, {"transfer.mode": "feature"}, quiet=True)
    said = capsys.readouterr().err
    chosen = read_chosen(run.folder)
    assert chosen is not None
    assert f"fusion weights by left-out sources: blurred {chosen.weights['blurred']:.2f}, sharp" in said
    assert open_model(run.folder).model.fusion_weights == pytest.approx(dict(chosen.weights), abs=1e-6)
    assert chosen.accuracy >= max(chosen.alone.values())
    assert "Fusion weights by left-out sources: blurred" in run.report().read_text()
    trained = xfer.fit(two, {"name": "trained"}, quiet=True)
    assert open_model(trained.folder).model.fusion_weights == pytest.approx(dict(chosen.weights), abs=1e-6)


def test_weights_that_are_given_or_cannot_be_chosen_stay(two):
    given = {"sharp": 0.25, "blurred": 0.75}
    run = xfer.fit(two, {"name": "given", "model.fusion.weights": given}, quiet=True)
    assert open_model(run.folder).model.fusion_weights == pytest.approx(given)
    assert read_chosen(run.folder) is None
    one = xfer.fit(two, {"name": "one", "data.sources": {"paint": {"path": "paint"}}}, quiet=True)
    assert read_chosen(one.folder) is None
    whole = xfer.fit(two, {"name": "whole", "model": {"from": str(run.folder)}}, quiet=True)
    assert open_model(whole.folder).model.fusion_weights == pytest.approx(given)
    asked = {"from": str(run.folder), "fusion": {"width": 512, "weights": "left_out"}}
    again = xfer.fit(two, {"name": "asked", "model": asked}, quiet=True)
    chosen = read_chosen(again.folder)
    assert chosen is not None
    last = xfer.fit(two, {"name": "last", "model": {"from": str(again.folder)}}, quiet=True)
    assert read_chosen(last.folder) is None
    assert open_model(last.folder).model.fusion_weights == pytest.approx(dict(chosen.weights), abs=1e-6)
    new = {**two["model"]["branches"], "new": {"backbone": "resnet10"}}
    random = xfer.fit(two, {"name": "random", "model.branches": new}, quiet=True)
    assert read_chosen(random.folder) is None


def test_what_cannot_be_chosen_is_refused(two):
    def faults(**values) -> str:
        with pytest.raises(ConfigError) as caught:
            xfer.fit(two, {"model.fusion.weights": "left_out", **values}, quiet=True)
        return str(caught.value)

    assert "needs two branches or more" in faults(**{"model.branches": {"main": two["model"]["branches"]["sharp"]}})
    assert "which has no weight vector" in faults(**{"model.fusion.kind": "concat"})
    new = {**two["model"]["branches"], "new": {"backbone": "resnet10"}}
    assert "probe of pretrained branches, and new has no weights" in faults(**{"model.branches": new})
    assert "there is only one" in faults(**{"data.sources": {"paint": {"path": "paint"}}})
    assert "train.probe_images: 0 has none" in faults(**{"train.probe_images": 0})
    assert "model.fusion.weights" in faults(**{"model.fusion.weights": "left-out"})


def test_every_fold_chooses_by_the_sources_it_has(two):
    two["data"] |= {"sources": {name: {"path": name} for name in ("neon", "outline", "paint")}, "test": {}}
    run = xfer.fit(two, {"data.validation": "leave_one_source_out", "transfer.mode": "feature"}, quiet=True)
    assert read_chosen(run.folder)
    for source in ("neon", "outline", "paint"):
        assert read_chosen(run.folder / "folds" / f"without-{source}")
    assert status("report", str(run.folder)) == 0
