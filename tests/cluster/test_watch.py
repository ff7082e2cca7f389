"""The words of a job over connections that break."""

import asyncio
import gc
from types import SimpleNamespace

import pytest

from cluster import watch
from cluster.jobs import ending
from shards.settings import ConfigError
from xfer.__main__ import _Terminated

LOG = ["first\n", "second\nthird\n", "fourth\n"]


class Dashboard:
    """Its answers, one a question: how many chunks of the log come before the connection ends, and how; None: it is
    away; 404: it does not know the job. An event: it falls silent.
    """

    def __init__(self, *answers):
        self.answers, self.knows, self.ended = list(answers), True, False

    def get_address(self) -> str:
        return "http://h1:8265"

    def get_job_info(self, submission: str) -> SimpleNamespace:
        if self.answers and self.answers[0] == 404 and self.knows:
            self.knows = False
            raise RuntimeError("Request failed with status code 404: no such job.")
        if self.answers and self.answers[0] is None:
            self.answers.pop(0)
            raise ConnectionError("refused")
        status = SimpleNamespace(is_terminal=lambda: self.ended, value="SUCCEEDED")
        return SimpleNamespace(status=status, submission_id=submission, metadata={"folder": "/runs/tiny"})

    def list_jobs(self) -> list:
        return []

    async def tail_job_logs(self, submission: str):
        chunks, error = self.answers.pop(0)
        for chunk in LOG[:chunks]:
            yield chunk
        if isinstance(error, asyncio.Event):
            await error.wait()
        elif error:
            raise error
        self.ended = chunks == len(LOG)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(watch, "RETRY_S", 0.01)
    monkeypatch.setattr(watch, "check_dashboard", lambda url: None)


def test_a_log_is_read_on_behind_what_was_shown(capsys):
    """A connection that ends without an error, one with, a dashboard that is away, all of it once more."""
    dashboard = Dashboard((1, None), (2, RuntimeError("closed")), None, None, (3, None), (3, None))
    assert watch.follow(dashboard, "tiny-1").submission_id == "tiny-1"
    shown = capsys.readouterr()
    assert shown.out == "".join(LOG)
    assert shown.err.count("the dashboard at http://h1:8265 does not answer; the job is left alone") == 1
    assert shown.err.endswith("the dashboard at http://h1:8265 answers again\n")


def test_a_dashboard_that_stays_away_is_given_up_and_the_log_named(monkeypatch):
    monkeypatch.setattr(watch, "AWAY_S", 0.05)
    with pytest.raises(
        RuntimeError, match=r"stays away \(refused\).*its words are kept in /runs/tiny/driver-tiny-1.log"
    ):
        watch.follow(Dashboard((1, None), *[None] * 1000), "tiny-1")


def test_a_cluster_that_was_started_anew_is_told_from_one_that_never_had_the_job():
    with pytest.raises(ConfigError, match="no job tiny-1 on http://h1:8265; there are none"):
        watch.follow(Dashboard(404), "tiny-1")
    dashboard = Dashboard((1, None), 404)
    with pytest.raises(RuntimeError, match="was started anew, without job tiny-1"):
        watch.follow(dashboard, "tiny-1")


@pytest.mark.parametrize("end", [KeyboardInterrupt, _Terminated])
def test_who_stops_watching_is_told_how_to_go_on(end, caplog):
    with pytest.raises(end, match=r"job tiny-1 goes on: xfer cluster logs tiny-1 -f --address http://h1:8265"):
        watch.follow(Dashboard((2, end())), "tiny-1")
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_dashboard_that_falls_silent_is_asked_whether_it_is_there(monkeypatch, capsys):
    asked = []

    def check(url: str) -> None:
        asked.append(url)
        if len(asked) == 3:  # the first is before anything is shown
            raise ConfigError("no answer")

    monkeypatch.setattr(watch, "IDLE_S", 0.01)
    monkeypatch.setattr(watch, "check_dashboard", check)
    watch.follow(Dashboard((1, asyncio.Event()), (3, None)), "tiny-1")
    shown = capsys.readouterr()
    assert (shown.out, asked[:3]) == ("".join(LOG), ["http://h1:8265"] * 3)
    assert "answers again" in shown.err


@pytest.mark.parametrize(
    ("status", "code", "expected", "words"),
    [
        ("SUCCEEDED", 0, 0, ""),
        ("FAILED", 1, 1, ""),
        ("FAILED", 2, 2, ""),
        ("FAILED", None, 1, "job tiny-1 failed: the node died"),
        ("FAILED", 127, 1, "--python"),
        ("STOPPED", None, 1, "goes on from its newest checkpoint"),
    ],
)
def test_how_a_job_ended_is_the_exit_status(status, code, expected, words):
    details = SimpleNamespace(
        status=SimpleNamespace(value=status), driver_exit_code=code, submission_id="tiny-1", message="the node died\n"
    )
    found, said = ending(details)
    assert found == expected
    assert words in said
    assert bool(words) == bool(said)
