"""A run folder as text and back."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from cluster import pack
from cluster.fetch import _between_marks, _unpack
from shards.format.whole import whole_folder


@pytest.fixture
def run_folder(tmp_path) -> Path:
    folder = tmp_path / "run"
    for name in (
        "metrics.jsonl",
        "folds/a/metrics.jsonl",
        "checkpoints/step-1/model.safetensors",
        "folds/a/checkpoints/step-1/model.safetensors",
        "run.ray/state",
        ".lock",
        ".draft/half",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name * 3000)
    return folder


def printed(folder: Path, checkpoints: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        assert pack.main(str(folder), checkpoints) == 0
    return out.getvalue()


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_is_printed_on_the_cluster_becomes_the_folder_again(run_folder, tmp_path):
    log = f"Ray: words before\n{printed(run_folder, '-')}"
    with whole_folder(tmp_path / "out") as draft:
        _unpack(_between_marks(log), draft)
    assert names(tmp_path / "out") == {"metrics.jsonl", "folds/a/metrics.jsonl"}
    assert (tmp_path / "out/folds/a/metrics.jsonl").read_bytes() == (run_folder / "folds/a/metrics.jsonl").read_bytes()


def test_checkpoints_come_where_they_are_asked_for(run_folder, tmp_path):
    _unpack(_between_marks(printed(run_folder, "checkpoints")), tmp_path / "out")
    assert {name for name in names(tmp_path / "out") if "checkpoints" in name} == {
        "checkpoints/step-1/model.safetensors",
        "folds/a/checkpoints/step-1/model.safetensors",
    }


def test_what_did_not_arrive_whole_is_refused(run_folder):
    log = printed(run_folder, "-")
    lines = log.splitlines(keepends=True)
    for damaged in (log[: len(log) // 2], "".join(lines[:1] + lines[2:]), ""):
        with pytest.raises(RuntimeError, match="did not arrive whole"):
            _between_marks(damaged)


def test_a_folder_that_is_too_large_is_said_to_be(run_folder, monkeypatch, capsys):
    monkeypatch.setattr(pack, "LARGEST_MB", 0)
    assert pack.main(str(run_folder), "-") == 1
    assert "the job server carries 0 MB at most" in capsys.readouterr().out
    assert pack.main(str(run_folder / "gone"), "-") == 1
