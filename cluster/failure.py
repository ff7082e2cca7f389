"""Why an attempt of the workers ended: one message that names the host, and whether another attempt can help."""

import re
import socket
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.loading.damage import DamagedDataError
from shards.settings import ConfigError
from xfer.train import DivergedError

OURS = (ConfigError, DivergedError, DamagedDataError)
"""Of the user's input or data: their messages say all."""
PASSING = (RuntimeError, OSError, EOFError, MemoryError)
"""Raised for a lost peer, the network, storage, memory. All that is neither one of these nor Ray's is a fault in the
program, which would be met again.
"""
NOT_PASSING = (*OURS, NotImplementedError, RecursionError)
LOST_PEER = re.compile(r"connection|peer|remote process|nccl", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """`comes_again`: another attempt would fail alike. `faults`: what of the user's job or files is at fault."""

    message: str
    comes_again: bool = False
    faults: Sequence[str] = ()


def failure_of(error: Any, nodes: Sequence[Mapping[str, Any]] = ()) -> Failure:
    """Of Ray Train's TrainingFailedError. Of several workers, those that know the cause speak alone: the others lost
    them. nodes: `ray.nodes()`, for the names of hosts.
    """
    failed: Mapping[int, BaseException] = getattr(error, "worker_failures", None) or {
        -1: getattr(error, "controller_failure", None) or error
    }
    causes = {rank: _cause(failure) for rank, failure in sorted(failed.items())}
    final = {rank: cause for rank, cause in causes.items() if comes_again(cause)}
    dead = {rank: cause for rank, cause in causes.items() if _is_death(cause)}
    known = final or dead or causes
    messages = dict.fromkeys(_message(rank, cause, nodes) for rank, cause in known.items())
    faults = dict.fromkeys(
        f"{fault}{_notes(cause)}"
        for cause in final.values()
        if isinstance(cause, ConfigError)
        for fault in cause.faults
    )
    return Failure("\n".join(messages), bool(final), list(faults))


def note_place(error: BaseException) -> None:
    """Called on the worker, where the traceback still is: the error says on which host, and of a fault in the program
    in which line, it was raised.
    """
    error.add_note(f"on host {socket.gethostname()}")
    if comes_again(error) and not isinstance(error, OURS):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        error.add_note(f"{frame.filename}, line {frame.lineno}")


def is_lost_peer(error: BaseException) -> bool:
    """Whether it may be that another rank has gone: this one knows only that it does not answer."""
    return isinstance(error, RuntimeError) and not comes_again(error) and bool(LOST_PEER.search(str(error)))


def comes_again(error: BaseException) -> bool:
    """Whether another attempt would end in the same error."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    return isinstance(error, NOT_PASSING) or not isinstance(error, (*PASSING, RayError, RayTrainError))


def _cause(failure: Any) -> BaseException:
    """What was raised, inside Ray's wrappers."""
    for name in ("_base_exc", "health_check_failure", "cause"):
        inner = getattr(failure, name, None)
        if isinstance(inner, BaseException):
            return _cause(inner)
    return failure


def _is_death(cause: BaseException) -> bool:
    from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError

    return isinstance(cause, ActorDiedError | ActorUnavailableError | NodeDiedError)


def _message(rank: int, cause: BaseException, nodes: Sequence[Mapping[str, Any]]) -> str:
    who = f"worker of rank {rank}" if rank >= 0 else "Ray Train's controller"
    text = str(cause).strip()
    if not _is_death(cause):
        return f"{who}{_notes(cause)}: {type(cause).__name__}: {text or 'no message'}"
    who += _host(text, nodes)
    if "temporarily unavailable" in text:  # all that is known before Ray has noticed which
        return f"{who}: it does not answer, its process or its host was lost"
    if re.search(r"node (has )?(died|was terminated)|node.{0,40}\bdead\b", text, re.IGNORECASE):
        return f"{who}: the host was lost"
    if "SIGKILL" in text or "unexpectedly" in text or not text:
        return f"{who}: its process was killed, as by signal 9 (out of memory?)"
    return f"{who}: {text}"


def _notes(cause: BaseException) -> str:
    return "".join(f" ({note})" for note in getattr(cause, "__notes__", ()))


def _host(text: str, nodes: Sequence[Mapping[str, Any]]) -> str:
    found = re.search(r"\bip: ([^\s,]+)|\bipv4:([0-9.]+):", text)
    address = found.group(1) or found.group(2) if found else ""
    for node in nodes:
        if node["NodeID"] in text or node["NodeManagerAddress"] == address:
            return f" on host {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    return f" on host {address}" if address else ""
