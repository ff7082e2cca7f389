"""trials.jsonl: whole lines only, whatever kills the writer; a failed trial keeps its values and its cause."""

from pathlib import Path

import pytest

from tuning.record import Recorder, Row, num_trials, read_history, read_rows


def test_rows_come_back_as_they_were(tmp_path: Path):
    row = Row("1", {"a.b": 4}, 0.5, 10, {"x": 0.5}, {"x": 1}, {"x": 2}, 1.5, "h0", 2, "plain 8 bits", False)
    Recorder(tmp_path).write(row)
    assert read_rows(tmp_path) == [row]


@pytest.mark.parametrize("torn", ['{"trial": "2", "val', '{"trial": "2"}'])
def test_a_torn_last_line_is_not_read_and_does_not_spoil_the_next(tmp_path: Path, torn):
    Recorder(tmp_path).write(Row("1"))
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write(torn)
    assert [row.trial for row in read_rows(tmp_path)] == ["1"]
    Recorder(tmp_path).write(Row("3"))
    assert [row.trial for row in read_rows(tmp_path)] == ["1", "3"]


def test_only_a_torn_line(tmp_path: Path):
    (tmp_path / "trials.jsonl").write_text('{"trial"')
    Recorder(tmp_path).write(Row("1"))
    assert [row.trial for row in read_rows(tmp_path)] == ["1"]


def test_the_last_attempt_counts_and_earlier_ones_stay(tmp_path: Path):
    recorder = Recorder(tmp_path)
    for row in (Row("1", {"a": 1}, error="ValueError: x"), Row("2", {"a": 2}), Row("1", {"a": 1}, 0.5, attempt=2)):
        recorder.write(row)
    assert [(row.trial, row.attempt, row.error) for row in read_rows(tmp_path)] == [("1", 2, None), ("2", 1, None)]
    assert [row.attempt for row in read_history(tmp_path)] == [1, 1, 2]
    assert num_trials([*read_rows(tmp_path), Row("plain", baseline="plain 8 bits")]) == 2


def test_nan_is_never_written(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Recorder(tmp_path).write(Row("1", accuracy=float("nan")))
    assert not (tmp_path / "trials.jsonl").exists()
