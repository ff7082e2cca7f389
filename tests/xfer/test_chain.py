"""chain.jsonl: two runs are the same run exactly when their chains are."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from shards.loading.batch import Slot
from shards.settings import ConfigError, replace
from tests.xfer.command import status
from xfer import run
from xfer.begin import begin
from xfer.chain import FILE, Chain, agreement, append, cut, linked, of_weights, packed, read_chain, unpacked
from xfer.checkpoint import checkpoint_name, latest_checkpoint
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.history import read_metrics
from xfer.timing import read_timing


def trained(recipe: Recipe) -> Path:
    """The run folder."""
    begin(recipe)
    run.fit(recipe, Slot(), build_engine, lambda row: None)
    return recipe.folder


def told(one: Path, other: Path) -> str:
    return agreement(read_chain(one), read_chain(other), ("one", "other"))[1]


def back_to(folder: Path, step: int) -> None:
    """As if the run had been killed before its next checkpoint."""
    for path in (folder / "checkpoints").glob("step-*"):
        if path.name > checkpoint_name(step):
            shutil.rmtree(path)


@pytest.fixture
def recipe(recipe_values) -> Recipe:
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}}
    recipe_values["data"] |= {"batch_size": 6, "image_size": 16}
    return Recipe.model_validate(recipe_values)


def test_a_run_that_was_killed_and_goes_on_has_the_chain_of_one_that_was_not(recipe):
    whole = (trained(replace(recipe, {"name": "whole"})) / FILE).read_bytes()
    folder = trained(recipe)
    assert (folder / FILE).read_bytes() == whole
    back_to(folder, 2)
    with (folder / FILE).open("a") as file:
        file.write('{"step": 5, "ran')  # killed while it wrote
    trained(recipe)
    assert (folder / FILE).read_bytes() == whole
    before: dict = {}
    for step, loss in enumerate((loss for row in read_metrics(folder) for loss in row.get("losses", ())), 1):
        before = linked(before, step, 1, 0, loss)  # a digest of all losses so far
        assert read_chain(folder).steps[step]["losses"] == before["losses"]
    weights = latest_checkpoint(folder / "checkpoints").weights_sha256
    assert json.loads(whole.splitlines()[-1]) == of_weights(4, weights)
    (folder / FILE).unlink()  # its newest links are in the checkpoint, too
    trained(replace(recipe, {"train.steps": 6}))
    longer = trained(replace(recipe, {"name": "longer", "train.steps": 6}))
    assert told(folder, longer).startswith("the same images at every step to 6; the losses differ from step 5 on, or")
    assert sorted(read_chain(folder).steps) == [5, 6], "another schedule, so other losses, and the same images"


def test_what_differs_between_two_runs_is_told_with_the_step(recipe):
    folder = trained(recipe)
    changed = {
        "other images from step 1 on": {"data.seed": 9},
        "the same images at every step to 4; the losses differ from step 1 on": {"train.seed": 9},
        "the same images at every step to 4; the losses differ from step 2 on": {"train.learning_rate": 0.02},
        "the same run to step 4: images and losses of every step, and the weights of 1 checkpoint": {
            "train.save_every": 100,
            "data.workers": 1,
        },
    }
    for number, (said, changes) in enumerate(changed.items()):
        assert told(folder, trained(replace(recipe, {"name": f"n{number}", **changes}))) == said


def test_a_damaged_sample_that_is_replaced_is_another_image(recipe, tmp_path):
    folder = trained(recipe)
    root = shutil.copytree(recipe.data.root, tmp_path / "shards")
    for shard in (root / "paint").glob("*.tar"):
        data = bytearray(shard.read_bytes())
        for at in range(2000, len(data), 9000):
            data[at] ^= 0xFF
        shard.write_bytes(data)
    other = trained(replace(recipe, {"name": "damaged", "data.root": str(root), "data.max_replaced": 0.9}))
    assert "other images from step " in told(folder, other)


def chain(*rows: tuple[int, int, float], weights: dict[int, str] | None = None, start: int = 1) -> Chain:
    """Of steps given as (ranks, sum of fingerprints, loss)."""
    links, before = {}, {}
    for step, row in enumerate(rows, start):
        links[step] = before = linked(before, step, *row)
    return Chain(links, weights or {})


A, B, C = (1, 5, 0.5), (1, 6, 0.25), (1, 7, 0.125)


@pytest.mark.parametrize(
    ("other", "same", "said"),
    [
        (chain(A, B, C), True, "the same run to step 3: images and losses of every step"),
        (chain(A, B), True, "the same run to step 2: images and losses of every step; one goes on to step 3"),
        (chain(A, (1, 9, 0.25), C), False, "the same images to step 1, then other images from step 2 on"),
        (chain(B, A, C), False, "other images from step 1 on"),
        (
            chain(A, (2, 6, 0.26), (2, 7, 0.125), B),
            False,
            "the same images at every step to 3; the losses differ from step 2 on (1 rank against 2); other goes on to "
            "step 4",
        ),
        (chain(C, start=3), False, "other images from step 3 on, or before"),
        (chain(C, start=9), False, "they have no step in common"),
        (
            chain(A, B, C, weights={3: "other"}),
            False,
            "the same images and losses to step 3, but other weights at step 3",
        ),
    ],
)
def test_what_chains_share_is_said_in_words(other, same, said):
    one = chain(A, B, C, weights={3: "w"} if other.weights else None)
    assert agreement(one, other, ("one", "other")) == (same, said)


def test_sums_over_ranks_are_exact_and_the_losses_stay_float32():
    generator = torch.Generator().manual_seed(0)
    prints = torch.randint(-(2**63), 2**63 - 1, (5, 4), dtype=torch.int64, generator=generator)  # of 5 ranks, 4 steps
    losses = torch.rand(5, 4, generator=generator)
    total = torch.stack([packed(list(a), list(b)) for a, b in zip(losses, prints, strict=True)]).sum(0)
    means, images = unpacked(total)
    assert images == [sum(column) % 2**64 for column in prints.T.tolist()]
    assert means == losses.double().sum(0).float().tolist()


def test_a_chain_is_cut_at_the_checkpoint_and_says_its_weights(tmp_path):
    links = list(chain(A, B, C).steps.values())
    append(tmp_path, [*links[:2], of_weights(2, "a" * 64), links[2], of_weights(3, "b" * 64)])
    cut(tmp_path, 2, of_weights(2, "c" * 64))
    assert read_chain(tmp_path) == Chain(dict(enumerate(links[:2], 1)), {2: "c" * 16})
    append(tmp_path, [{"step": 3}])
    with pytest.raises(ConfigError, match="line 4 is damaged, it is no link"):
        cut(tmp_path, 3, None)


def test_the_verb_tells_by_its_exit_status_and_names_what_has_no_chain(recipe, tmp_path, capsys):
    one = trained(recipe)
    two = shutil.copytree(one, one.with_name("copy"))
    assert status("compare", str(one), str(two), "--same-run") == 0
    assert capsys.readouterr().out.startswith("tiny and copy: the same run to step 4")
    other = trained(replace(recipe, {"name": "other", "data.seed": 9}))
    assert status("compare", str(one), str(two), str(other), "--same-run") == 1
    assert capsys.readouterr().out.endswith("tiny and other: other images from step 1 on\n")
    assert status("compare", str(one), str(tmp_path), "--same-run", "--split", "test") == 2
    errors = capsys.readouterr().err
    assert "leave out --split and --data" in errors
    assert f"{tmp_path}: has no chain.jsonl" in errors


def test_a_chain_of_which_a_link_was_changed_or_taken_out_is_no_proof():
    links = {step: {"step": step, "ranks": 1, "images": f"i{step}", "losses": f"l{step}"} for step in (1, 2, 3)}
    changed = {**links, 2: {**links[2], "losses": "other"}}
    same, said = agreement(Chain(links, {}), Chain(changed, {}), ("one", "other"))
    assert not same
    assert "damaged: the losses of step 2 differ" in said


def test_a_chain_with_a_step_missing_is_refused(tmp_path):
    rows = [{"step": step, "ranks": 1, "images": "i", "losses": "l"} for step in (1, 3)]
    append(tmp_path, rows)
    with pytest.raises(ConfigError, match="step 2 is missing"):
        read_chain(tmp_path)


def test_a_folder_that_is_not_there_and_a_chain_of_nothing_that_can_be_read_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        read_chain(tmp_path / "nope")
    (tmp_path / FILE).write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="is damaged"):
        read_chain(tmp_path)


def test_timing_says_the_step_that_a_start_went_on_from_also_with_other_batches(recipe):
    trained(replace(recipe, {"train.steps": 2}))
    folder = trained(replace(recipe, {"data.batch_size": 18, "data.on_change": "continue"}))
    assert {row["step"]: row["since"] for row in read_timing(folder)} == {1: 0, 2: 0, 3: 2, 4: 2}
