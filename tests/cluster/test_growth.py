"""Fewer workers than a job may have: how many are started, and when more are worth a restart; without workers."""

from typing import Any

import pytest

from cluster import attempts, capacity, growth
from cluster.attempts import _with_micro_batch
from cluster.config import Between, ClusterConfig, Job
from cluster.failure import Failure
from cluster.growth import Growth
from shards.settings import ConfigError
from xfer.config import Recipe

Nodes = list[dict[str, float]]


class Cluster:
    """A clock, what each node has, and what of it is free."""

    def __init__(self):
        self.now = 100.0
        self.total: Nodes = []
        self.free: Nodes = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster()
    for module in (capacity, growth):
        monkeypatch.setattr(module, "time", type("clock", (), {"monotonic": found.time, "sleep": found.sleep}))
    monkeypatch.setattr(capacity, "total", lambda: found.total)
    monkeypatch.setattr(capacity, "free", lambda: found.free)
    monkeypatch.setattr(growth, "free", lambda: found.free)
    return found


def some(least: int, most: int, **more: Any) -> ClusterConfig:
    return ClusterConfig(workers=Between(min=least, max=most), **more)


def test_as_many_are_started_as_there_is_room_for(cluster):
    cluster.total = cluster.free = [{"CPU": 2}, {"CPU": 1}]
    assert capacity.check_capacity(some(1, 8), batch_size=64) == 3
    assert capacity.check_capacity(some(1, 2), batch_size=64) == 2
    assert capacity.check_capacity(ClusterConfig(workers=3), batch_size=64) == 3


def test_what_has_just_ended_is_given_a_moment_to_leave_and_no_more(cluster):
    cluster.total, cluster.free = [{"CPU": 4}], [{"CPU": 1}]
    begun = cluster.now
    assert capacity.check_capacity(some(1, 4), batch_size=64) == 1
    assert capacity.SETTLE_S <= cluster.now - begun <= capacity.SETTLE_S + 2 * capacity.POLL_S


def test_a_host_that_was_lost_is_waited_for_by_a_job_that_needs_it(cluster, capsys):
    cluster.total = cluster.free = [{"CPU": 1}]
    back = cluster.now + 100

    def sleep(seconds: float) -> None:
        cluster.now += seconds
        if cluster.now > back:
            cluster.total = cluster.free = [{"CPU": 1}, {"CPU": 1}]

    capacity.time.sleep = sleep
    assert capacity.await_return(ClusterConfig(workers=2)) == 2
    assert cluster.now >= back
    assert "waiting for room" in capsys.readouterr().err


def test_fewer_than_the_least_are_refused_with_numbers(cluster):
    cluster.total = cluster.free = [{"CPU": 1}]
    with pytest.raises(ConfigError) as caught:
        capacity.check_capacity(some(2, 4), batch_size=64)
    assert "2 workers of 1 CPU each do not fit" in str(caught.value)
    with pytest.raises(ConfigError, match="5 workers cannot share"):
        capacity.check_capacity(some(1, 5), batch_size=4)


def test_the_least_must_not_be_more_than_the_most():
    with pytest.raises(ValueError, match="at most max, 2, got 3"):
        Between(min=3, max=2)


class Attempt:
    """An attempt that trains a step in a second."""

    def __init__(self, cluster: Cluster, workers: int, steps: int):
        self.cluster, self.asked, self.begun, self.trained = cluster, 0, cluster.now, 0
        self.growth = Growth(some(1, 4), workers, lambda: self.trained, steps, self.ask)

    def ask(self) -> None:
        self.asked += 1

    def goes_on(self, seconds: int) -> None:
        for _ in range(seconds):
            self.cluster.now += 1
            self.trained += 1
            self.growth.check()


def test_room_that_stays_is_taken_once(cluster):
    attempt = Attempt(cluster, workers=1, steps=1000)
    attempt.goes_on(60)
    assert not attempt.growth.is_asked
    cluster.free = [{"CPU": 2}]
    attempt.goes_on(20)
    assert not attempt.asked
    attempt.goes_on(100)
    assert attempt.asked == 1
    assert attempt.growth.workers == 3


def test_room_that_goes_again_is_left(cluster):
    attempt = Attempt(cluster, workers=1, steps=1000)
    for _ in range(5):
        cluster.free = [{"CPU": 2}]
        attempt.goes_on(20)
        cluster.free = []
        attempt.goes_on(20)
    assert not attempt.asked


def test_a_run_that_is_about_to_end_is_left_alone(cluster):
    attempt = Attempt(cluster, workers=1, steps=200)
    cluster.free = [{"CPU": 2}]
    attempt.goes_on(150)
    assert not attempt.asked


def test_as_many_as_the_job_may_have_ask_for_no_more(cluster):
    attempt = Attempt(cluster, workers=4, steps=1000)
    cluster.free = [{"CPU": 2}]
    attempt.goes_on(200)
    assert not attempt.asked


def test_fewer_workers_take_more_micro_batches_and_none_of_more_samples(recipe_values):
    recipe = Recipe.model_validate(recipe_values)
    job = Job(recipe=recipe, cluster=some(1, 4))
    assert _with_micro_batch(job).recipe.train.micro_batch == recipe.data.batch_size // 4
    assert _with_micro_batch(Job(recipe=recipe, cluster=ClusterConfig(workers=4))).recipe == recipe
    own = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch": 1})})
    assert _with_micro_batch(Job(recipe=own, cluster=some(1, 4))).recipe == own


class Started:
    """In place of the workers: what each start of them comes to, and how many there were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: Failure | None, room: int = 2, grows: bool = False):
        self.workers: list[int] = []
        left = iter(ends)

        def start(job: Job, workers: int, growth: Growth) -> Failure | None:
            self.workers.append(workers)
            growth.workers += int(grows and len(self.workers) == 1)
            return next(left)

        monkeypatch.setattr(attempts, "_attempt", start)
        monkeypatch.setattr(attempts, "await_return", lambda config: room)


@pytest.fixture
def elastic(recipe_values) -> Job:
    recipe = Recipe.model_validate(recipe_values)
    recipe.folder.mkdir(parents=True)
    return Job(recipe=recipe, cluster=some(1, 4, max_failures=1))


def test_a_restart_takes_as_many_as_there_are_and_only_failures_count(elastic, monkeypatch, capsys):
    lost = Failure("a host was lost")
    started = Started(monkeypatch, lost, lost, room=3)
    assert attempts.attempt(elastic, 4, lambda: None) is lost
    assert started.workers == [4, 3]
    assert "going on with 3 workers, not 4" in capsys.readouterr().err
    started = Started(monkeypatch, None, lost, None, room=2, grows=True)
    assert attempts.attempt(elastic, 1, lambda: None) is None
    assert started.workers == [1, 2, 2]
    assert "room for 2 workers, not 1: restart" in capsys.readouterr().err


def test_a_run_that_was_told_to_end_is_not_started_again_whatever_its_workers_came_to(elastic, monkeypatch):
    class Ended(Exception):
        pass

    def ended() -> None:
        raise Ended

    for end in (None, Failure("a host was lost")):
        started = Started(monkeypatch, end, grows=True)
        with pytest.raises(Ended):
            attempts.attempt(elastic, 1, ended)
        assert started.workers == [1]
