"""Causes are never lost, and what would come again is known as such."""

import pytest

from cluster.failure import failure_of, is_lost_peer, note_place
from cluster.session import set_environment
from shards.loading.damage import DamagedDataError
from shards.settings import ConfigError
from xfer.train import DivergedError

pytestmark = [pytest.mark.ray]

set_environment()  # before Ray is imported


def wrapped(**failures: BaseException):
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    # Ray's own text of an error that crossed processes may be this
    inner = {i: UserExceptionWithTraceback(error, "NoneType: None") for i, error in enumerate(failures.values())}
    return failure_of(WorkerGroupError("2 workers", inner))


def test_the_cause_is_that_of_the_worker_that_knows():
    damaged = DamagedDataError("paint: 3 samples")
    note_place(damaged)
    failure = wrapped(lost=RuntimeError("Connection closed by peer"), cause=damaged)
    assert failure.message.startswith("worker of rank 1 (on host ")
    assert failure.message.endswith("): DamagedDataError: paint: 3 samples")
    assert failure.comes_again
    assert not failure.faults


@pytest.mark.parametrize(
    ("error", "comes_again"),
    [
        (ConfigError("train.steps: must be at least 1"), True),
        (DivergedError("loss is nan at step 3"), True),
        (DamagedDataError("paint: 3 samples"), True),
        (KeyError("x"), True),
        (ValueError("operands"), True),
        (ZeroDivisionError(), True),
        (NotImplementedError(), True),
        (RuntimeError("Connection reset by peer"), False),
        (RuntimeError(), False),
        (OSError(28, "No space left on device"), False),
        (MemoryError(), False),
    ],
)
def test_what_a_retry_cannot_fix(error, comes_again):
    failure = wrapped(one=error)
    assert failure.comes_again == comes_again
    assert type(error).__name__ in failure.message
    assert "NoneType: None" not in failure.message
    assert list(failure.faults) == (["train.steps: must be at least 1"] if isinstance(error, ConfigError) else [])


def test_a_fault_of_the_program_says_where():
    with pytest.raises(KeyError) as caught:
        {}["x"]
    note_place(caught.value)
    assert f"({__file__}, line " in wrapped(one=caught.value).message


def test_only_a_broken_connection_may_be_a_lost_peer():
    assert is_lost_peer(RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:4"))
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_peer(DivergedError("connection of nan"))


def test_of_a_death_the_host_is_named():
    from ray.exceptions import ActorDiedError, ActorUnavailableError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    nodes = [{"NodeID": "ab12", "NodeManagerAddress": "10.1.0.7", "NodeManagerHostname": "seven"}]
    died = ActorDiedError()
    died.error_msg = "The actor is dead because its node has died. Node Id: ab12"
    lost = WorkerGroupError("", {1: WorkerHealthCheckFailedError("", died), 0: RuntimeError("Connection closed")})
    failure = failure_of(lost, nodes)
    assert failure.message == "worker of rank 1 on host seven (10.1.0.7): the host was lost"
    assert not failure.comes_again
    silent = ActorUnavailableError("temporarily unavailable: RpcError: ipv4:10.1.0.7:914: Connection refused", None)
    lost = WorkerGroupError("", {0: WorkerHealthCheckFailedError("", silent)})
    assert failure_of(lost, nodes).message == (
        "worker of rank 0 on host seven (10.1.0.7): it does not answer, its process or its host was lost"
    )
