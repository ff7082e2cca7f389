"""`xfer bench`: the ways to run a model, timed in turns."""

import json

import pytest

from shards.settings import ConfigError
from tests.xfer.tasks.runs import verb
from xfer import bench as timing


def test_bench_times_each_way_in_turns_and_says_where_the_machine_cannot_tell(
    bundled, in_float, tmp_path, monkeypatch, capsys
):
    kept, file = tmp_path / "bench.json", in_float("linear")
    bundle = file.parent
    monkeypatch.setattr(timing, "busy_share", lambda: 0.5)
    with pytest.raises(ConfigError, match="other programs use 50% of the CPUs"):
        verb("bench", bundle)
    monkeypatch.setattr(timing, "busy_share", lambda: 0.0)
    monkeypatch.setattr(timing, "SPREAD", 0.0)
    every = timing.ways_of(bundle)
    here = [(bundle, name) for name in (timing.EAGER, timing.COMPILED, timing.BF16)]
    assert [way[:2] for way in every[:4]] == [*here, (file, timing.ONNX)], "model.int8.onnx too, where there is one"
    monkeypatch.setattr(timing, "ways_of", lambda path: [every[0], every[3]])
    with pytest.raises(RuntimeError, match=r"too noisy to tell: the rounds of .* differ by"):
        verb("bench", bundle, "--batch", 4, 1, "--seconds", 0.2, "--threads", 1, "--json", kept)
    said, rows = capsys.readouterr().out, json.loads(kept.read_text())["rows"]
    assert [row["way"] for row in rows] == ["eager fp32", "onnxruntime"]
    assert "1 threads" in said
    for row in rows:
        assert row["model"] in said
        assert list(row["milliseconds"]) == ["1", "4"]
        assert 0 < row["milliseconds"]["1"] < row["milliseconds"]["4"]
        assert row["memory_mb"] > 10
    assert rows[1]["file_mb"] == (bundle / "model.onnx").stat().st_size / 1e6


def test_bench_says_what_is_wrong_with_its_arguments(tmp_path):
    for words, said in (
        ((), "give a run, a bundle or a file"),
        ((tmp_path, "--batch", 0, "--seconds", 0), "--batch: must be at least 1, got 0"),
        ((tmp_path, "--threads", 0), "--threads: must be at least 1, got 0"),
        ((tmp_path, "--json", tmp_path / "none" / "x.json"), "there is no folder"),
        ((tmp_path,), "neither a run folder (recipe.yaml) nor a bundle"),
    ):
        with pytest.raises(ConfigError) as caught:
            verb("bench", *words)
        assert said in str(caught.value)
