"""Checkpoints: whole or not there."""

import json
import os
import re
import socket
import subprocess

import pytest
import torch

from xfer.checkpoint import TrainState, choose, damage, latest_checkpoint, prune, write_checkpoint

TENSORS = {"w": torch.arange(6.0).reshape(2, 3)}


def write(folder, step):
    return write_checkpoint(
        folder, TrainState(step, {"position": step * 8}, ["a"]), TENSORS, {"w/exp_avg": -TENSORS["w"]}
    )


def test_what_was_written_comes_back(tmp_path):
    write(tmp_path, 5)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.state == TrainState(5, {"position": 40}, ["a"])
    assert torch.equal(found.model()["w"], TENSORS["w"])
    assert torch.equal(found.optimizer()["w/exp_avg"], -TENSORS["w"])


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_the_first_the_chosen_one_and_those_that_are_named_are_kept_too(tmp_path):
    for step in range(6):
        write_checkpoint(tmp_path, TrainState(step), TENSORS, {}, keep=9)
    choose(tmp_path, 2)
    prune(tmp_path, 1, (3,))
    assert sorted(p.name[-1] for p in tmp_path.glob("step-*")) == ["0", "2", "3", "5"]


@pytest.mark.parametrize("how", ["cut", "flip", "missing", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, how):
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    tensors, manifest = newest / "model.safetensors", newest / "manifest.json"
    data = tensors.read_bytes()
    if how == "cut":
        tensors.write_bytes(data[:-4])
    elif how == "flip":
        tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "missing":
        tensors.unlink()
    elif how == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.state.step == 1


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    path = write(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": "0"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert any("not a plain file name" in fault for fault in damage(path))


def test_drafts_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    for name in (f".step-00000002.{host}.{dead.pid}", f".step-00000004.{host}.{os.getppid()}", ".step-by-step"):
        (tmp_path / name).mkdir()
    write(tmp_path, 6)
    left = [f".step-00000004.{host}.{os.getppid()}", ".step-by-step", "step-00000006"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    import xfer.checkpoint as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
