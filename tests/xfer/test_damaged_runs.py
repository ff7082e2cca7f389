"""A run folder in which something is broken, out of date, or done already: it is named, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import xfer
from shards.settings import ConfigError
from tests.xfer.command import status
from xfer.surface import Run


@pytest.fixture
def run(recipe_values) -> Run:
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}}
    return xfer.fit(recipe_values, quiet=True)


def damage(run: Run, *steps: int) -> None:
    for step in steps:
        with (run.folder / f"checkpoints/step-{step:08d}/model.safetensors").open("r+b") as file:
            file.seek(5000)
            file.write(b"xx")


def test_a_run_that_is_done_is_left_as_it_is(run, recipe_values, capsys):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.folder.rglob("*") if path.is_file()}
    again = xfer.fit(recipe_values, {"train.steps": 3, "train.learning_rate": 0.5})
    assert "all its steps are done already; nothing is trained, nothing is changed" in capsys.readouterr().err
    after = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.folder.rglob("*") if path.is_file()}
    lock = run.folder / ".lock"
    assert {**after, lock: None} == {**before, lock: None}
    assert again.recipe.train.learning_rate == 0.01
    more = xfer.fit(recipe_values, {"train.steps": 6}, quiet=True)
    assert more.metrics[-1]["step"] == 6
    assert more.recipe.train.steps == 6


def test_a_damaged_newest_checkpoint_is_named_where_an_older_one_is_used(run, recipe_values, capsys):
    damage(run, 4)
    assert status("evaluate", str(run.folder)) == 0
    told = capsys.readouterr().err
    assert "note: passed over, taking step 2: " in told
    assert "step-00000004/model.safetensors: its size or sha256 is not what the manifest says" in told
    xfer.fit(recipe_values, quiet=True)
    assert "note: passed over: " in capsys.readouterr().err
    assert Run(run.folder).metrics[-1]["step"] == 4


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_in_silence(run, recipe_values, capsys):
    damage(run, 2, 4)
    rows = (run.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError) as caught:
        xfer.fit(recipe_values, quiet=True)
    assert [fault.split(": ")[0][-17:] for fault in caught.value.faults[:2]] == ["model.safetensors"] * 2
    assert f"remove {run.folder / 'checkpoints'}" in caught.value.faults[2]
    assert (run.folder / "metrics.jsonl").read_bytes() == rows
    assert status("evaluate", str(run.folder)) == 2
    assert "no checkpoint is whole" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "verb", "named"),
    [
        ("metrics.jsonl", "junk\n", "report", "line 1 is damaged, not JSON any more"),
        ("metrics.jsonl", '{"step": 1}\n[1]\n', "report", "line 2 is damaged, must be an object"),
        ("metrics.jsonl", '{"acc": 1}\n', "report", "line 1 is damaged, it has no step"),
        ("evaluation.json", "{bad", "evaluate", "damaged, not JSON any more"),
        ("evaluation.json", "[]", "report", "damaged, must hold an object, got list"),
        ("leave_one_source_out.json", "{", "report", "damaged, not JSON any more"),
    ],
)
def test_a_damaged_record_is_named_with_its_place(run, capsys, file, text, verb, named):
    (run.folder / file).write_text(text)
    assert status(verb, str(run.folder)) == 2
    told = capsys.readouterr().err
    assert f"{run.folder / file}: " in told
    assert named in told


def test_scores_of_an_earlier_checkpoint_are_not_shown_as_those_of_the_run(run, recipe_values):
    assert status("evaluate", str(run.folder), "--split", "test") == 0
    assert status("report", str(run.folder)) == 0
    assert "Test accuracy" in (run.folder / "report.html").read_text()
    xfer.fit(recipe_values, {"train.steps": 6}, quiet=True)
    assert status("report", str(run.folder)) == 0
    page = (run.folder / "report.html").read_text()
    assert "of an earlier checkpoint: evaluate again" in page
    assert "Test accuracy" not in page


def test_an_evaluation_says_how_many_of_its_images_were_trained_on(run, shards_root, capsys):
    for words in (("data.validation=0.9",), ("data.validation=[paint]",), ("--data", str(shards_root / "paint"))):
        assert status("evaluate", str(run.folder), *words) == 0
        told = capsys.readouterr().out
        (line,) = [line for line in told.splitlines() if line.startswith("  paint: ") and "trained on" in line]
        count, of = (int(word) for word in line.split() if word.isdigit())
        assert 0 < count < of <= 90
    assert status("evaluate", str(run.folder)) == 0
    assert status("evaluate", str(run.folder), "--data", str(shards_root / "neon")) == 0
    assert "trained on" not in capsys.readouterr().out


def loaders(parent: int) -> set[int]:
    """Processes that `parent` forked and that are alive."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(ppid) == parent and state != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_loader_processes_of_a_killed_run_end_and_its_folder_is_free(recipe_values, tmp_path, end):
    recipe_values["data"] |= {"batch_size": 1500, "image_size": 16, "workers": 1}
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}}
    recipe_values["train"] |= {"steps": 1000, "save_every": 1000}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    process = subprocess.Popen([sys.executable, "-m", "xfer", "fit", str(path)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (forked := loaders(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)  # its answers wait to be read
    os.kill(process.pid, end)
    _, told = process.communicate(timeout=120)
    if end == signal.SIGTERM:
        assert process.returncode == 143
        assert told.endswith("xfer: stopped by SIGTERM; the same command goes on from here\n")
        assert "Traceback" not in told
    deadline = time.monotonic() + 60
    while (left := [pid for pid in forked if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert forked
    assert not left
    recipe_values["train"]["steps"] = 1
    recipe_values["data"]["batch_size"] = 12
    assert json.loads(json.dumps(xfer.fit(recipe_values, quiet=True).metrics[-1]["step"])) == 1
