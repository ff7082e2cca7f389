"""transfer.head: keep. A model with new classes keeps the old ones, and their rows of the head."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import xfer
from shards.settings import ConfigError
from xfer.bundle import Trained, open_model
from xfer.surface import Run
from xfer.transfer.linear import choose_penalty, fit_linear

KEEP = {"transfer.head": "keep", "transfer.mode": "feature"}
OLD = ("circle", "cross", "square", "star")  # of paint and outline


@pytest.fixture
def task(recipe_values, source) -> dict[str, Any]:
    """A new source that has two of the old classes and a part of neon as test, from that run."""
    neon = {"path": "neon", "where": {"classes": ["circle", "star"]}}
    recipe_values["data"] |= {"sources": {"neon": neon}, "test": {}, "validation": 0.2}
    recipe_values["model"] = {"from": str(source.folder)}
    recipe_values["train"] |= {"learning_rate": 1e-4, "select": "last"}
    return recipe_values


def rows(model: Trained, *names: str) -> torch.Tensor:
    """[n, d + 1]: weight and bias of these classes."""
    places = [model.classes.index(name) for name in names]
    return torch.cat([model.model.head.weight[places], model.model.head.bias[places, None]], 1).detach()


def test_rows_of_classes_that_no_source_has_stay_to_the_bit_and_the_others_are_fitted(task, source, capsys):
    run = xfer.fit(task, KEEP, quiet=True)
    told = capsys.readouterr().err
    assert "head, kept     cross, square: no source has them, they stay as they are" in told
    assert "head, taken    circle, star: fitted on from what they were" in told
    assert "head, new" not in told
    ours, theirs = open_model(run.folder), open_model(source.folder)
    assert ours.classes == OLD
    assert torch.equal(rows(ours, "cross", "square"), rows(theirs, "cross", "square"))
    assert not torch.equal(rows(ours, "circle", "star"), rows(theirs, "circle", "star"))


@pytest.fixture
def renamed(images: Path, tmp_path: Path) -> Path:
    """Shards of an old class and a new one: neon's squares by another name."""
    from shards.ingest.build import build

    for theirs, ours in {"circle": "circle", "square": "box"}.items():
        shutil.copytree(images / "neon" / theirs, tmp_path / "renamed" / ours)
    build(tmp_path / "renamed", tmp_path / "shards", name="renamed", shard_mb=0.05, processes=1)
    return tmp_path / "shards"


def test_new_classes_stand_beside_the_old_ones_and_old_test_data_is_scored_on(
    task, source, renamed, shards_root, capsys
):
    task["data"] |= {"sources": {"renamed": {"path": str(renamed)}}}
    task["data"]["test"] = {"old": {"path": "neon", "where": {"classes": ["cross", "star"]}}}
    run = xfer.fit(task, KEEP, quiet=True)
    told = capsys.readouterr().err
    assert "head, new      box" in told
    assert "head, taken    circle" in told
    ours, theirs = open_model(run.folder), open_model(source.folder)
    assert ours.classes == ("box", "circle", "cross", "square", "star")
    assert torch.equal(rows(ours, "cross", "square", "star"), rows(theirs, "cross", "square", "star"))
    assert rows(ours, "box").abs().sum() > 0
    assert run.evaluate("test")["old"].count == 60, "of classes that the sources do not have"
    bundle = run.quantize(bits=8)
    assert yaml.safe_load((bundle.path / "labels.yaml").read_text())["classes"] == list(ours.classes)
    assert rows(open_model(bundle.path), "star").shape == (1, 17)
    # the whole chain: what comes from it keeps the rows that it kept
    task["data"] |= {"sources": {"outline": {"path": "outline"}}, "test": {}}
    third = xfer.fit(task | {"name": "third"}, KEEP | {"model.from": str(run.folder)}, quiet=True)
    assert open_model(third.folder).classes == ours.classes
    assert torch.equal(rows(open_model(third.folder), "square"), rows(theirs, "square"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_moves_no_row_that_no_source_has(task, source, optimizer):
    """Neither by weight decay, nor by momentum, nor by the moving average."""
    changes = {"transfer.head": "keep", "train.optimizer": optimizer, "train.weight_decay": 0.1, "train.ema": 0.9}
    run = xfer.fit(task, changes, quiet=True)
    ours, theirs = open_model(run.folder), open_model(source.folder)
    assert torch.equal(rows(ours, "cross", "square"), rows(theirs, "cross", "square"))
    begun = Trained(**{**vars(ours), "model": xfer.bundle.restore(run.recipe, 4, start(run))})
    assert not torch.equal(rows(ours, "circle"), rows(begun, "circle")), "those that a source has are trained"


def start(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.folder / "checkpoints" / "step-00000000" / "model.safetensors")


def test_a_run_goes_on_without_the_model_it_came_from(task, source, tmp_path, capsys):
    moved = shutil.copytree(source.folder, tmp_path / "copied")
    branches = yaml.safe_load((moved / "recipe.yaml").read_text())["model"]
    task["model"] = {"from": str(moved)} | {key: branches[key] for key in ("branches", "fusion")}
    whole = xfer.fit(task | {"name": "whole"}, {"transfer.head": "keep"}, quiet=True)
    half = xfer.fit(task, {"transfer.head": "keep", "train.steps": 2}, quiet=True)
    shutil.rmtree(moved)
    shutil.copytree(half.folder, half.folder.parent / "half")
    run = xfer.fit(task, {"transfer.head": "keep"}, quiet=True)
    assert open_model(run.folder).classes == open_model(whole.folder).classes == OLD
    with pytest.raises(ConfigError, match=r"transfer.head: was keep, is now fit"):
        xfer.fit(task, {"transfer.head": "fit"}, quiet=True)


def test_rows_of_a_bundle_are_kept_on_packed_branches_and_packed_again(task, source, capsys):
    run = xfer.fit(task, KEEP | {"transfer.mode": "quant", "model.from": str(source.folder / "bundle")}, quiet=True)
    ours, theirs = open_model(run.folder), open_model(source.folder / "bundle")
    assert torch.equal(rows(ours, "cross", "square"), rows(theirs, "cross", "square"))
    bundle = run.quantize(bits=8)
    assert bundle.classes == OLD


def test_leaving_a_source_out_keeps_the_rows_in_every_fold(task, source, renamed):
    """A fold is scored on a source whose classes only the kept rows know."""
    task["data"] |= {"sources": {"renamed": {"path": str(renamed)}}, "validation": "leave_one_source_out"}
    task["data"]["sources"]["neon"] = {"path": "neon", "where": {"classes": ["cross", "star"]}}
    run = xfer.fit(task, KEEP, quiet=True)
    assert run.left_out["neon"]["count"] == 60
    assert run.quantize(bits=8).classes == open_model(run.folder).classes


def test_what_the_rows_were_not_made_for_is_refused_by_name(task, source):
    def faults(changes: dict[str, Any]) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            xfer.fit(task, KEEP | changes, quiet=True)
        assert not (Path(task["output"]) / "tiny").exists()
        return caught.value.faults

    why = "; transfer.head: keep takes rows that were made for its fused features"
    of = f"as in {source.folder}, got"
    assert faults({"model.fusion": {"kind": "gate", "width": 16}}) == [
        f"model.fusion.kind: must be wsum, {of} gate{why}"
    ]
    assert faults({"model.fusion": {"width": 16, "weights": {"fine": 0.2, "coarse": 0.8}}}) == [
        f"model.fusion.weights: must be coarse 0.300, fine 0.700, {of} coarse 0.800, fine 0.200{why}"
    ]
    two = {"data.sources": {name: {"path": name} for name in ("neon", "outline")}}
    assert faults({"model.fusion": {"width": 16, "weights": "left_out"}, **two}) == [
        f"model.fusion.weights: must be coarse 0.300, fine 0.700, {of} left_out{why}"
    ]
    fine = {"model.branches": {"fine": {"backbone": "resnet10", "stem": "small"}}, "model.fusion": {"width": 16}}
    assert faults(fine) == [f"model.branches: must be coarse, fine, {of} fine{why}"]
    assert faults({"data.image_size": 48}) == [f"data.image_size: must be 32 px, {of} 48 px for branch fine{why}"]
    (fault,) = faults({"model.from": None, "model.branches": {"fine": {"weights": str(source.folder) + ":fine"}}})
    assert fault == "transfer.head: keep takes rows of the head of another model: give model.from, or use fit"
    gone = {"branches": {"fine": {"backbone": "resnet10"}}, "fusion": {"width": 16}, "from": "nowhere"}
    (fault,) = faults({"model": gone})
    assert fault.startswith("model.from: ")
    assert "no such folder" in fault


def test_classes_that_are_never_told_apart_are_said(task, source, images, tmp_path, capsys):
    from shards.ingest.build import build

    for theirs, ours in {"square": "box", "cross": "Star"}.items():
        shutil.copytree(images / "neon" / theirs, tmp_path / "apart" / ours)
    build(tmp_path / "apart", tmp_path / "shards", name="apart", shard_mb=0.05, processes=1)
    task["data"]["sources"] = {"apart": {"path": str(tmp_path / "shards")}}
    xfer.fit(task, KEEP, quiet=True)
    told = capsys.readouterr().err
    assert f"these sources share no class: apart (Star, box); {source.folder} (rows kept) (circle, cross" in told
    assert f"`Star` of apart and `star` of {source.folder} (rows kept) look the same: xfer labels propose" in told


def test_the_fit_from_a_start_is_pulled_to_it_and_unasked_rows_are_it_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(90, 6, generator=generator)
    features[:, 5] = 3.0  # a constant
    targets, groups = torch.arange(90) % 3, torch.arange(90) // 3 % 5
    features[:, 0] += 2.0 * targets
    masks = torch.tensor([True, True, True, False]).expand(90, 4)
    start = torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    held, free = (fit_linear(features, targets, masks, penalty, start) for penalty in (1e6, 1e-4))
    for weight, bias in (held, free):
        assert torch.equal(weight[3], start[0][3])
        assert torch.equal(bias[3], start[1][3])
    torch.testing.assert_close(held[0], start[0], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(free[0][:3], start[0][:3], atol=0.1)
    assert ((features @ free[0].T + free[1])[:, :3].argmax(1) == targets).double().mean() > 0.8
    # a row that no sample is of is no answer, however loud it is
    start[1][3] = 1e6
    assert choose_penalty(features, targets, masks, groups, start).accuracy > 0.6


def test_a_fault_elsewhere_makes_no_false_one_of_old_test_data(task, renamed, tmp_path):
    task["data"] |= {"sources": {"renamed": {"path": str(renamed)}}}
    task["data"]["test"] = {"old": {"path": "neon", "where": {"classes": ["cross", "star"]}}}
    task["train"]["step"] = task["train"].pop("steps")
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(task | {"transfer": {"head": "keep", "mode": "feature"}}))
    with pytest.raises(ConfigError) as caught:
        xfer.fit(path, quiet=True)
    (fault,) = caught.value.faults
    assert fault.startswith("train.step: unknown key")
