"""SIGTERM while workers train, without the workers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.stopping import saving_first
from xfer.history import write_metrics
from xfer.stop import is_asked, stoppable


class Ended(Exception):
    """What SIGTERM does to the command."""


@pytest.fixture(autouse=True)
def answer() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise Ended

    before = signal.signal(signal.SIGTERM, end)
    yield
    assert signal.signal(signal.SIGTERM, before) is end  # put back, whatever came of it


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_trained_is_asked_to_save_and_then_ended(tmp_path: Path, capsys):
    write_metrics(tmp_path, [{"step": 5}, {"step": 6}])
    with stoppable(tmp_path), saving_first(tmp_path, 5) as end:
        assert not is_asked(tmp_path)
        terminate()
        assert is_asked(tmp_path)
        with pytest.raises(Ended):
            end()
    assert "the run saves at its next row of losses" in capsys.readouterr().err
    assert not (tmp_path / ".stop").exists()


def test_a_second_one_does_not_wait(tmp_path):
    write_metrics(tmp_path, [{"step": 1}])
    with stoppable(tmp_path), saving_first(tmp_path, 0):
        terminate()
        with pytest.raises(Ended):
            terminate()


def test_before_anything_was_trained_there_is_nothing_to_save(tmp_path):
    write_metrics(tmp_path, [{"step": 5}])
    with pytest.raises(Ended), stoppable(tmp_path), saving_first(tmp_path, 5):
        terminate()


def test_a_run_that_nobody_stops_ends_as_it_does(tmp_path):
    with stoppable(tmp_path), saving_first(tmp_path, 0) as end:
        end()
    assert list(tmp_path.iterdir()) == []
