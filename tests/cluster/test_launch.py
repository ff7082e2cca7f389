"""What the terminal says while workers start."""

import json
import time

from cluster import launch


def test_waiting_for_the_first_step_is_said_until_it_comes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "POLL_S", 0.01)
    monkeypatch.setattr(launch, "PATIENCE_S", 0.1)
    shown, told, deadline = [], [], time.monotonic() + 20
    with launch._tail(tmp_path, 0, shown.append):
        while len(told) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            told += capsys.readouterr().err.splitlines()
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
        while not shown and time.monotonic() < deadline:
            time.sleep(0.01)
        capsys.readouterr()
        time.sleep(0.3)
    assert len(told) >= 2
    assert all("no step yet: Ray starts processes" in line for line in told)
    assert shown == [{"step": 1, "loss": 2.0}]
    assert capsys.readouterr().err == "", "it waits no more"
