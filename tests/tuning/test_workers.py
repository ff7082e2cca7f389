"""Worker processes on a cluster of three nodes: all of them work, and the death of one is no answer."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import session
from shards.settings import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Three nodes of one CPU each, on this machine."""
    session.set_environment()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    with session.connect(cluster.address):
        yield cluster
    cluster.shutdown()


def make() -> Callable[..., dict[str, Any]]:
    """Work that says where it ran; values make it fail in the ways that trials do."""
    born = time.monotonic()

    import ray

    def work(seconds: float = 0.3, kill: str = "", error: BaseException | None = None) -> dict[str, Any]:
        import torch

        time.sleep(seconds)
        if error:
            raise error
        if kill and not os.path.exists(kill):
            if not kill.endswith("always"):
                open(kill, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        node = ray.get_runtime_context().get_node_id()
        return {"node": node, "pid": os.getpid(), "born": born, "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
                "threads": torch.get_num_threads()}  # fmt: skip

    return work


def run(tasks: list[dict[str, Any]], count: int | None = None) -> list[Any]:
    from tuning.workers import Task, Workers

    answers, left = [], [Task(str(i), arguments) for i, arguments in enumerate(tasks)]
    with Workers(make, {"CPU": 1.0}, count) as workers:
        deadline = time.monotonic() + 120
        while len(answers) < len(tasks) and time.monotonic() < deadline:
            while left and workers.free > 0:
                workers.begin(left.pop(0))
            answers += workers.wait()
    return sorted(answers, key=lambda answer: int(answer.task.name))


def results(answers: list[Any]) -> list[dict[str, Any]]:
    assert [answer.error for answer in answers] == [None] * len(answers)
    return [answer.result or {} for answer in answers]


def test_all_nodes_work_and_each_worker_starts_once(nodes):
    found = results(run([{"seconds": 1.0}] * 24))
    shares = [[r["node"] for r in found].count(node) for node in {r["node"] for r in found}]
    assert len(shares) == 3
    assert min(shares) >= 3
    assert len({r["pid"] for r in found}) == 3
    assert {(r["gpus"], r["threads"]) for r in found} == {("", 1)}


def test_count_bounds_the_workers(nodes):
    assert len({r["pid"] for r in results(run([{}] * 4, count=1))}) == 1


def test_an_error_is_an_answer_with_its_cause_and_the_worker_goes_on(nodes):
    answers = run([{"error": ValueError("so bad")}, {"error": SystemExit(3)}, {"error": ValueError()}, {}], count=1)
    assert [answer.error for answer in answers] == [
        "ValueError: so bad", "SystemExit: 3", "ValueError: no message", None,
    ]  # fmt: skip
    assert "raise error" in answers[0].traceback
    assert all(answer.host for answer in answers)


def test_work_of_a_killed_worker_is_done_by_another(nodes, tmp_path):
    answers = run([{"kill": str(tmp_path / "once")}, {}, {}], count=2)
    assert [answer.task.attempt for answer in answers] == [2, 1, 1]
    results(answers)


def test_work_that_kills_every_worker_is_given_up_with_its_cause_and_others_are_done(nodes, tmp_path):
    answers = run([{"kill": str(tmp_path / "always")}, {}, {}], count=1)
    assert answers[0].task.attempt == 3
    assert answers[0].error
    assert answers[0].error.startswith("WorkerDiedError: its worker died in each of 3 attempts, the last on ")
    results(answers[1:])


def test_work_of_a_lost_node_is_done_on_another(nodes):
    from tuning.workers import Task, Workers

    lost = nodes.add_node(num_cpus=2)
    answers, left = [], [Task(str(i), {"seconds": 1.5}) for i in range(8)]
    gone = False
    with Workers(make, {"CPU": 1.0}) as workers:
        deadline = time.monotonic() + 120
        while len(answers) < 8 and time.monotonic() < deadline:
            while left and workers.free > 0:
                workers.begin(left.pop(0))
            answers += workers.wait()
            if not gone and len([slot for slot in workers.slots if slot.task]) == len(workers.slots):
                nodes.remove_node(lost, allow_graceful=False)
                gone = True
    assert gone
    assert len(answers) == 8
    assert sum(answer.task.attempt > 1 for answer in answers) >= 1
    results(answers)


def test_room_that_others_hold_is_not_counted(nodes):
    import ray

    holder = ray.remote(type("Holder", (), {"ready": lambda self: 1})).options(num_cpus=1).remote()
    ray.get(holder.ready.remote())  # pyright: ignore[reportAttributeAccessIssue]
    try:
        assert len({r["pid"] for r in results(run([{"seconds": 1.0}] * 8))}) == 2
    finally:
        ray.kill(holder)


def test_what_no_node_has_is_refused(nodes):
    from tuning.workers import Workers

    with pytest.raises(ConfigError, match="a trial asks for 1 CPU and 1 GPU; no node has that"):
        Workers(make, {"CPU": 1.0, "GPU": 1.0})
