"""connect(): one Ray session, safe by default. The only file of the project that touches the environment.

A local session listens on loopback, asks for a token and sends no usage statistics; Ray's interfaces without a token
are remote code execution for anyone who can reach them (CVE-2023-48022).
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # keeps Ray on loopback
TOKEN_FILE = Path("~/.ray/auth_token")


@contextmanager
def connect(address: str | None = None, timeout_s: float = 1800) -> Iterator[None]:
    """A Ray session for the time of the block: a running cluster, or one on this machine that ends with the block."""
    set_environment(address, timeout_s)
    import ray

    if ray.is_initialized():  # a test or a notebook has a session already: it stays theirs
        yield
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    here: dict[str, Any] = {"num_cpus": os.cpu_count(), "include_dashboard": False}
    options: dict[str, Any] = {"address": address} if address else here
    ray.init(**options, log_to_driver=False, logging_level=logging.WARNING, configure_logging=True)
    try:
        yield
    finally:
        ray.shutdown()


def set_environment(address: str | None = None, timeout_s: float = 1800) -> None:
    """What Ray reads when it is imported: before that."""
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = f"{timeout_s:g}"  # Ray's own default is to wait for ever
    for name, value in {**DEFAULTS, **({} if address else LOCAL)}.items():
        os.environ.setdefault(name, value)
    if os.environ["RAY_AUTH_MODE"] == "token":
        _make_token()


def beside_main(call: Callable[[], Any]) -> None:
    """Runs `call` beside the main thread: in it, Ray Train and Tune would take Ctrl-C for themselves.

    Train would exit with status 1, Tune return as if it were done. Here KeyboardInterrupt reaches the caller, the
    session ends, and the workers with it.
    """
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            done.result(timeout=0.5)
            return
        except TimeoutError:
            if done.done():
                raise


def hide_gpus() -> None:
    """This process sees no GPU: in a worker that asked for none, before CUDA starts there.

    Ray would leave all of them visible (RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO above), and all would share the first.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _make_token() -> None:
    """A token in a file only this user can read, unless one is given already."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path = TOKEN_FILE.expanduser()
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
