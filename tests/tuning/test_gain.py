"""What a run gained over the linear probe it began as, where its model is packed or searched: in the card, in words."""

import copy
from pathlib import Path

import pytest

import xfer
from cluster.config import Job
from shards.loading.open import open_data
from shards.settings import dump
from tests.xfer.command import status
from tuning.config import Study
from tuning.record import Recorder, Row
from tuning.trial import share, trial
from xfer.checkpoint import start_weights
from xfer.folds import fold_folder
from xfer.history import gain_rows, gains, probe_and_model
from xfer.metrics import Estimate, paired_difference
from xfer.outcomes import outcomes_on
from xfer.surface import Run


@pytest.fixture
def run(pretrained) -> Run:
    """Of a rate that loses what the probe knew."""
    return xfer.fit(pretrained, {"train.learning_rate": 0.1, "train.clip_norm": 1, "train.steps": 6}, quiet=True)


def percents(*values: float) -> list[str]:
    return [f"{100 * value:.1f} %" for value in values]


def test_quantize_and_the_card_say_by_source_and_mean_what_the_probe_scored(run, capsys):
    first, last = run.metrics[0]["accuracy"], run.metrics[-1]["accuracy"]
    assert sum(last.values()) < sum(first.values())
    assert status("quantize", str(run.folder)) == 0
    said, card = capsys.readouterr().out, (run.folder / "bundle" / "card.md").read_text()
    mean = [sum(one.values()) / 2 for one in (first, last)]
    for name, numbers in [("paint", (first["paint"], last["paint"])), ("mean of sources", mean)]:
        gained = f"{100 * (numbers[1] - numbers[0]):+.1f}"
        assert f"| {name} | {' | '.join([*percents(*numbers), gained])} |" in card
        line = next(line for line in said.splitlines() if line.strip().startswith(name))
        assert f" {gained} " in line
        assert all(number in line for number in percents(*numbers))
    for text in (said, card):
        assert "below the linear probe it began as: training gained nothing" in text


def of_images(run: xfer.Run) -> dict[str, Estimate]:
    """What a run gained, from its probe and its model, both shown what it holds out."""
    model, data = run.model, open_data(run.recipe.data)
    probe = copy.deepcopy(model.model)
    probe.load_state_dict(start_weights(run.folder / "checkpoints"))
    found = outcomes_on({"probe": probe, "model": model.model}, data.validation, run.recipe.data, model.classes, "held")
    return {name: paired_difference(found["probe"][name], right) for name, right in found["model"].items()}


def test_the_gain_has_the_paired_interval_of_the_images_that_the_run_holds_out(run):
    assert gains(run.folder) == of_images(run)
    (shown,) = [row for row in gain_rows(run.folder) if row[0] == "paint"]
    low, high = (f"{100 * end:+.1f}" for end in of_images(run)["paint"][1:])
    assert shown[-1] == f"{low} to {high}"


def test_with_one_source_left_out_the_gain_is_that_on_sources_never_seen(pretrained, capsys):
    pretrained["data"]["validation"] = "leave_one_source_out"
    run = xfer.fit(pretrained, {"train.learning_rate": 0.1, "train.clip_norm": 1}, quiet=True)
    assert status("quantize", str(run.folder)) == 0
    said = capsys.readouterr().out
    assert "accuracy on sources it never saw" in said
    probe, model = probe_and_model(run.folder)
    assert probe == {name: row["probe"] for name, row in run.left_out.items()}
    assert model == {name: row["accuracy"] for name, row in run.left_out.items()}
    assert [row[0] for row in gain_rows(run.folder)] == ["source", "outline", "paint", "mean of sources"]
    for source, gain in gains(run.folder).items():
        fold = xfer.Run(fold_folder(run.folder, source))
        assert gain == of_images(fold)[source]
    assert status("report", str(run.folder)) == 0
    lead = (run.folder / "report.html").read_text().split("<h1>")[1].split("</p>")[0]
    assert "the linear probe it began as" in lead


def test_a_run_that_began_as_no_probe_or_is_one_says_nothing(pretrained, capsys):
    plain = xfer.fit(pretrained, {"train.probe_images": 0, "name": "plain"}, quiet=True)
    probe = xfer.fit(pretrained, {"transfer.mode": "feature", "name": "probe"}, quiet=True)
    for run in (plain, probe):
        assert status("quantize", str(run.folder)) == 0
        assert "linear probe" not in capsys.readouterr().out + (run.folder / "bundle" / "card.md").read_text()


@pytest.mark.parametrize("trains", [False, True])
def test_a_search_says_it_of_the_run_that_its_choice_is_of(run, tmp_path, capsys, trains):
    """All its trials have ended, so that it needs no cluster."""
    job = Job.model_validate({"recipe": run.recipe.model_dump(mode="json")})
    space = {"train.label_smoothing": {"choice": [0.0]}} if trains else {"quantize.bits": {"choice": [8]}}
    study = Study.model_validate({"name": "search", "job": job, "space": space, "search": {"trials": 1, "images": 24}})
    folder = Path(run.recipe.output) / "search"
    folder.mkdir()
    recorder = Recorder(folder)
    shared = None if trains else share(job, 24)
    for name, values, baseline in (
        ("plain-8-bits", {path: d.choice[0] for path, d in study.space.items() if d.choice}, "plain 8 bits"),
        ("plain-4-bits", {"quantize.bits": 4}, "plain 4 bits"),
    ):
        found = trial(values, folder / "trials" / "baseline" / "run", job.model_dump(mode="json"), 24, shared)
        recorder.write(Row(name, values, baseline=baseline, in_space=baseline == "plain 8 bits", **found))
    path = tmp_path / "study.yaml"
    path.write_text(dump(study))
    if trains:  # what it says is of the trial's own run
        (run.folder / "metrics.jsonl").unlink()
    assert status("tune", str(path)) == 0, capsys.readouterr().err
    words = "below the linear probe it began as: training gained nothing"
    assert words in capsys.readouterr().out
    assert words in (folder / "report.html").read_text().split("<h1>")[1].split("</p>")[0]
    if not trains:
        assert words in (folder / "bundle" / "card.md").read_text()
