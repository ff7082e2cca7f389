"""A run with pretrained branches starts as their linear probe: the score of step 0, the report, resume."""

import json

import numpy as np
import pytest
import torch

import xfer
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from shards.settings import ConfigError, dump
from xfer.__main__ import app
from xfer.backbone import Branch
from xfer.bundle import open_model
from xfer.checkpoint import choose
from xfer.config import Recipe
from xfer.folds import score_rows
from xfer.fusion import FUSIONS
from xfer.history import against_probe
from xfer.labels import annotated, masked_cross_entropy
from xfer.metrics import as_text, mean_of, paired_difference
from xfer.model import MEAN, STD, build_model
from xfer.transfer.linear import PENALTIES, choose_penalty, fit_linear
from xfer.transfer.probe import projection_of, start_as_probe


def pooled(values, part: str):
    """What a plain script sees: pooled last maps of the branch, targets and sources of a part of the data."""
    recipe = Recipe.model_validate(values)
    data = open_data(recipe.data)
    subsets = getattr(data, part)
    branch = Branch("resnet10").eval()
    branch.load_weights(recipe.model.branches["only"].weights or "")
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    features, targets, sources = [], [], []
    with torch.no_grad():
        for batch in eval_stream(subsets, recipe.data, Slot()):
            maps = branch((batch.images.float() / 255 - mean) / std)["C5"]
            features.append(maps.mean((2, 3))[batch.valid])
            targets.append(batch.targets[batch.valid])
            sources.append(batch.sources[batch.valid])
    sources = torch.cat(sources)
    return torch.cat(features), torch.cat(targets), sources, annotated(subsets, len(data.classes))[sources]


def test_step_0_scores_what_a_plain_probe_of_the_same_features_scores(pretrained, capsys):
    run = xfer.fit(pretrained, quiet=True)
    said = capsys.readouterr().err
    assert "begins as a linear probe of its pretrained branches, fitted on 154 training images" in said
    penalty = float(said.split("penalty ")[1].split()[0])
    features, targets, _, masks = pooled(pretrained, "train")
    weight, bias = fit_linear(features, targets, masks, penalty)
    held, truth, sources, _ = pooled(pretrained, "validation")
    right = (held @ weight.T + bias).argmax(1) == truth
    first = run.metrics[0]
    assert first["step"] == 0
    for number, name in enumerate(["outline", "paint"]):
        plain = right[sources == number].double().mean().item()
        assert first["accuracy"][name] == pytest.approx(plain, abs=0.002)
    assert sum(first["accuracy"].values()) / 2 > 0.33, "of four classes; a random head has 0.25"


def test_fewer_channels_than_the_branch_has_keep_most_of_the_probe(pretrained):
    wide = xfer.fit(pretrained, {"train.steps": 1}, quiet=True).metrics[0]["accuracy"]
    narrow = xfer.fit(pretrained, {"train.steps": 1, "name": "narrow", "model.fusion.width": 64}, quiet=True)
    wider = xfer.fit(pretrained, {"train.steps": 1, "name": "wider", "model.fusion.width": 600}, quiet=True)
    for found in (narrow.metrics[0]["accuracy"], wider.metrics[0]["accuracy"]):
        assert sum(found.values()) > sum(wide.values()) - 0.2


def test_a_narrow_projection_keeps_what_varies_in_equal_shares():
    """Eight latents in 64 channels, the first eight of which are one and the same: eight channels hold them all."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(500, 8, generator=generator)
    pooled = latents @ torch.randn(8, 64, generator=generator)
    pooled[:, :8] = latents[:, :1]
    projected = pooled @ projection_of(pooled, 8).T
    centred, latents = projected - projected.mean(0), latents - latents.mean(0)
    fitted = centred @ torch.linalg.lstsq(centred, latents).solution
    assert torch.allclose(fitted, latents, atol=1e-3)
    shares = projected.var(0) / projected.var(0).sum()
    assert shares.max() < 3 / 8
    assert torch.equal(projection_of(pooled, 64), torch.eye(64))


def test_what_batchnorm_sees_in_training_is_what_the_probe_was_fitted_with(pretrained):
    """Statistics of maps, not of pooled features: in training mode, a batch of everything gives the same."""
    pretrained["data"] |= {"batch_size": 154, "image_size": 64}
    recipe = Recipe.model_validate(pretrained)
    data = open_data(recipe.data)
    model = build_model(recipe.model, len(data.classes), recipe.train.seed)
    start_as_probe(model, data.train, recipe.data, 4096)
    batch = next(iter(eval_stream(data.train, recipe.data, Slot())))
    projection = model.projections["only"]
    with torch.no_grad():
        (maps,) = model.eval().maps(batch.images).values()
        still, moving = projection.eval()(maps), projection.train()(maps)
    assert maps.shape[-1] > 1
    assert (still - moving).std() < 0.01 * still.std()


def test_a_run_that_begins_as_its_probe_is_resumed_and_repeated_bit_by_bit(pretrained):
    whole = xfer.fit(pretrained, quiet=True)
    again = xfer.fit(pretrained | {"name": "again"}, quiet=True)
    cut = xfer.fit(pretrained | {"name": "cut"}, {"train.steps": 2}, quiet=True)
    assert [row["step"] for row in cut.metrics if "accuracy" in row] == [0, 2]
    losses = [row["loss"] for row in whole.metrics if "loss" in row]
    assert losses == [row["loss"] for row in again.metrics if "loss" in row]
    assert whole.metrics[0]["accuracy"] == again.metrics[0]["accuracy"]
    model, other = (open_model(run.folder).model.state_dict() for run in (whole, again))
    assert all(torch.equal(model[name], other[name]) for name in model)


def test_probe_images_0_and_branches_without_weights_begin_as_they_did(pretrained):
    none = xfer.fit(pretrained, {"train.probe_images": 0}, quiet=True)
    assert none.metrics[0]["step"] == 1
    pretrained["model"]["branches"]["only"].pop("weights")
    assert xfer.fit(pretrained | {"name": "new"}, quiet=True).metrics[0]["step"] == 1


def test_probe_images_bounds_what_the_probe_is_fitted_on(pretrained, capsys):
    xfer.fit(pretrained, {"train.probe_images": 40, "train.steps": 1}, quiet=True)
    assert "fitted on 40 training images" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"train.probe_images: must be at least 0, got -1"):
        xfer.fit(pretrained, {"train.probe_images": -1})


def test_branches_that_train_from_a_stage_and_several_branches_begin_so_too(pretrained):
    branches = pretrained["model"]["branches"]
    branches["coarse"] = {**branches["only"], "size": 16}
    for kind in FUSIONS:
        changes = {"name": kind, "model.fusion.kind": kind, "train.steps": 1}
        scores = xfer.fit(pretrained, changes, quiet=True).metrics[0]["accuracy"]
        assert sum(scores.values()) / 2 > 0.33


def test_with_three_sources_the_penalty_is_chosen_on_those_left_out(pretrained, capsys):
    pretrained["data"]["sources"]["neon"] = {"path": "neon"}
    pretrained["data"]["test"] = {}
    xfer.fit(pretrained, {"train.steps": 1}, quiet=True)
    assert "best on each source when left out" in capsys.readouterr().err


def test_leaving_one_source_out_shows_the_probe_of_each_run_beside_its_score(pretrained):
    pretrained["data"] |= {"validation": "leave_one_source_out"}
    run = xfer.fit(pretrained, {"train.steps": 1}, quiet=True)
    for source, row in run.left_out.items():
        (first, *_) = xfer.surface.Run(run.folder / "folds" / f"without-{source}").metrics
        assert row["probe"] == first["accuracy"][source]
    head, *lines = score_rows(run.folder)
    assert head[-1] == "its linear probe"
    assert len(lines) == 3
    assert all(line[-1].endswith(" %") for line in lines)


def test_the_penalty_is_the_one_that_does_best_on_what_is_left_out():
    """Few samples of many noisy features ask for the largest penalty, many of few clean ones for none."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.ones(60, 2, dtype=torch.bool)
    targets, groups = torch.arange(60) % 2, torch.arange(60) // 2 % 5
    noisy = torch.randn(60, 300, generator=generator)
    noisy[:, :20] += 0.5 * (2 * targets[:, None] - 1)
    by_penalty = {}
    for penalty in PENALTIES:
        right = []
        for group in range(5):
            inside = groups == group
            weight, bias = fit_linear(noisy[~inside], targets[~inside], masks[~inside], penalty)
            right.append(((noisy[inside] @ weight.T + bias).argmax(1) == targets[inside]).double().mean().item())
        by_penalty[penalty] = sum(right) / 5
    assert max(by_penalty.values()) > min(by_penalty.values())
    best = choose_penalty(noisy, targets, masks, groups)
    assert (best.penalty, best.accuracy) == max(by_penalty.items(), key=lambda pair: pair[1])


def test_classes_that_the_other_groups_lack_are_not_counted():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    features = torch.nn.functional.one_hot(targets, 3).float() + 0.1 * torch.randn(90, 3, generator=generator)
    groups = torch.where(targets == 2, 2, torch.arange(90) // 3 % 2)  # a group of its own has class 2
    best = choose_penalty(features, targets, torch.ones(90, 3, dtype=torch.bool), groups)
    assert best.accuracy == 1
    assert not best.known[targets == 2].any()


def test_the_fit_is_the_minimum_and_a_constant_feature_counts_for_nothing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    x[:, 4] = 7
    targets, masks = (x[:, 0] + x[:, 1] > 0).long(), torch.ones(200, 2, dtype=torch.bool)
    weight, bias = fit_linear(x, targets, masks, 0.01)
    assert weight[:, 4].abs().max() == 0
    scaled = weight.clone().requires_grad_()
    deviation = x.std(0, correction=0)
    loss = masked_cross_entropy(x @ scaled.T + bias, targets, masks).mean()
    loss = loss + 0.01 * (scaled * deviation).square().sum()
    loss.backward()
    assert scaled.grad[:, :4].abs().max() < 1e-3


def test_what_training_gained_over_the_probe_is_said(tmp_path):
    def said(*rows: dict[str, object]) -> str:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return against_probe(tmp_path)

    rows = [{"step": 0, "accuracy": {"a": 0.5, "b": 0.7}}, {"step": 4, "loss": 1.0}]
    assert said(*rows) == ""
    better, worse = {"step": 4, "accuracy": {"a": 0.6, "b": 0.7}}, {"step": 8, "accuracy": {"a": 0.4, "b": 0.6}}
    assert "65.0 % (mean of sources), 5.0 points above the linear probe it began as" in said(*rows, better)
    assert "10.0 points below the linear probe it began as: training gained nothing" in said(*rows, better, worse)
    first, last = ({"right": {"a": as_text(np.arange(40) < n), "b": as_text(np.arange(40) < 28)}} for n in (20, 36))
    sure = paired_difference(np.arange(40) < 20, np.arange(40) < 36)
    same = paired_difference(np.arange(40) < 28, np.arange(40) < 28)
    mean = mean_of([sure, same])
    trust = f"(95 % interval {100 * mean.low:+.1f} to {100 * mean.high:+.1f})"
    assert trust in said(rows[0] | first, better | last)
    assert "; these images do not tell whether training gained)" in said(rows[0] | first, better | first)
    assert said({"step": 4, "accuracy": {"a": 0.4}}, {"step": 8, "accuracy": {"a": 0.4}}) == ""
    (tmp_path / "checkpoints").mkdir()
    choose(tmp_path / "checkpoints", 4)
    assert "65.0 % (mean of sources) at step 4, the best, 5.0 points above the linear" in said(*rows, better, worse)
    choose(tmp_path / "checkpoints", 0)
    assert "no step scored above the linear probe it began as, 60.0 % on validation" in said(*rows, worse)


def test_fit_and_the_report_end_with_the_probe(pretrained, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(dump(Recipe.model_validate(pretrained)))
    for command in (["fit", str(tmp_path / "recipe.yaml")], ["report", str(tmp_path / "runs" / "tiny")]):
        app(command, result_action="return_value", exit_on_error=False)
    assert "the linear probe it began as" in capsys.readouterr().out
    assert "the linear probe it began as" in (tmp_path / "runs" / "tiny" / "report.html").read_text()


def test_another_number_of_probe_images_is_another_run(pretrained):
    xfer.fit(pretrained, {"train.steps": 1}, quiet=True)
    with pytest.raises(ConfigError, match=r"train.probe_images: was 4096, is now 100"):
        xfer.fit(pretrained, {"train.steps": 2, "train.probe_images": 100}, quiet=True)
