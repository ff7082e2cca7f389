"""connect(): one Ray session, safe by default. The only file of the project that touches the environment.

A local session listens on loopback, asks for a token and sends no usage statistics; Ray's interfaces without a token
are remote code execution for anyone who can reach them (CVE-2023-48022).
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.address import check_listens
from cluster.cpus import usable_cpus
from shards.settings import ConfigError

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
TOKEN_FILE = "~/.ray/auth_token"
LONGEST_FOLDER = 20  # bytes; Unix sockets have 107, of which Ray's session and socket names take up to 75, ours 14
REMOVAL_S = 5.0


@contextmanager
def connect(address: str | None = None, timeout_s: float = 1800) -> Iterator[None]:
    """A Ray session for the time of the block: a running cluster, or one on this machine that ends with the block."""
    set_environment(address, timeout_s)
    import ray

    if ray.is_initialized():  # a test or a notebook has a session already: it stays theirs
        _check_joined(address)
        yield
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": True}
    if address:
        check_listens(address)
        with _session(address=address, **quiet):
            yield
        return
    with _session_folder() as folder:
        # "local": neither RAY_ADDRESS nor what an earlier `ray start` left behind is joined
        here = {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False, "_temp_dir": str(folder)}
        with _session(**here, **quiet):
            yield


@contextmanager
def _session(**options: Any) -> Iterator[None]:
    import ray

    try:
        _start(options)
    except (ConnectionError, ValueError) as error:
        if options["address"] == "local":
            raise
        raise ConfigError(f"cluster.address: no cluster at {options['address']}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _start(options: Mapping[str, Any]) -> None:
    """Ray would answer SIGTERM itself, with its own words and status 1. Who has an answer already keeps it: it unwinds
    what runs here, the session among it, and says what comes next.
    """
    import ray

    answer = signal.getsignal(signal.SIGTERM)
    if not callable(answer) or threading.current_thread() is not threading.main_thread():
        ray.init(**options)
        return
    try:
        ray.init(**options)
    except SystemExit:  # Ray's answer, while it starts
        answer(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, answer)


def _check_joined(address: str | None) -> None:
    """Raises ConfigError if this process is in another cluster than `address`: Ray allows one a process."""
    import ray

    joined = ray.get_runtime_context().gcs_address
    if address in (None, "auto", joined):
        return
    host, _, port = str(address).rpartition(":")
    joined_host, _, joined_port = joined.rpartition(":")
    if port == joined_port and _is_host(host, joined_host):
        return
    raise ConfigError(
        f"cluster.address: this process has a Ray session already, at {joined}, got {address}; "
        "give that address or none, or end the session first (ray.shutdown())"
    )


def _is_host(name: str, joined: str) -> bool:
    """Ray rewrites a loopback address to the outward one of this machine."""
    import ray

    try:
        numeric = socket.gethostbyname(name)
    except OSError:
        return False
    return numeric == joined or (numeric.startswith("127.") and joined == ray.util.get_node_ip_address())


@contextmanager
def _session_folder() -> Iterator[Path]:
    """A folder of this session alone, readable by this user alone, removed when the session has ended."""
    folder = Path(tempfile.mkdtemp(prefix="xfer-", dir=_short_folder()))
    try:
        yield folder
    finally:
        deadline = time.monotonic() + REMOVAL_S
        while folder.exists():  # a process of Ray that is about to end may still write its log there
            shutil.rmtree(folder, ignore_errors=True)
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)


def _short_folder() -> str:
    """The first temporary folder that can be written and leaves room for the names of Ray's Unix sockets."""
    candidates = [os.environ.get("RAY_TMPDIR", ""), tempfile.gettempdir(), "/tmp", "/dev/shm"]
    for folder in filter(None, candidates):
        short = len(os.fsencode(os.path.abspath(folder))) <= LONGEST_FOLDER
        if short and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return os.path.abspath(folder)
    raise ConfigError(
        f"RAY_TMPDIR: Ray needs a folder that can be written, with a path of at most {LONGEST_FOLDER} bytes; "
        f"none of {', '.join(filter(None, candidates))} is one"
    )


def set_environment(address: str | None = None, timeout_s: float = 1800) -> None:
    """What Ray reads when it is imported: before that."""
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = f"{timeout_s:g}"  # Ray's own default is to wait for ever
    for name, value in {**DEFAULTS, **({} if address else LOCAL)}.items():
        os.environ.setdefault(name, value)
    if os.environ["RAY_AUTH_MODE"] == "token":
        _make_token(address)


def dashboard_given() -> str | None:
    """The address of a dashboard, or of a cluster, that the environment names, as Ray reads it for jobs."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or None


def set_dashboard(url: str) -> None:
    """What Ray's job client reads when it is imported: before that. A token is passed on if there is one; none is made,
    since the cluster would not know it.
    """
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # RAY_ADDRESS would win over what the client is told
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or os.access(Path(TOKEN_FILE).expanduser(), os.R_OK):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def beside_main(call: Callable[[], Any], check: Callable[[], None]) -> None:
    """Runs `call` beside the main thread, which calls `check` meanwhile: what that raises ends the wait.

    In the main thread Ray Train would take Ctrl-C for itself and exit with status 1. Here KeyboardInterrupt reaches the
    caller, the session ends, and the workers with it.
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
            check()


def hide_gpus() -> None:
    """This process sees no GPU: in a worker that asked for none, before CUDA starts there.

    Ray would leave all of them visible (RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO above), and all would share the first.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def set_gloo_interface(name: str) -> None:
    """Where gloo listens in this process, unless the user has said it: before the process group is made."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _make_token(address: str | None) -> None:
    """A token in a file only this user can read, unless one is given already."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    try:
        _write_token(Path(TOKEN_FILE).expanduser())
    except (OSError, RuntimeError) as error:  # a home folder that is not there, or not ours to write
        if address:
            raise ConfigError(
                f"RAY_AUTH_TOKEN_PATH: no token for the cluster at {address}, and {TOKEN_FILE} cannot be used "
                f"({error}); set it to the file that holds the cluster's token"
            ) from None
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this process and those it starts


def _write_token(path: Path) -> None:
    """Makes the file whole at once: another run may be about to read it, or to make it too."""
    if path.exists():
        if not os.access(path, os.R_OK):
            raise PermissionError(f"{path} cannot be read")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent)  # 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
