"""What runs on the cluster for a job: `xfer train` or `xfer tune` below it, and its words, kept in the run folder too.

It is sent along with the job and needs nothing but Python, so that it can tell of a node on which the project is not
installed, or in another version. Signals that end the job reach the command below at the same time; this process waits
for what it says to them.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PACKAGES = ("shards", "xfer", "cluster", "tuning")
LAST_WORDS_S = 5.0  # how long to wait for the output of what outlives the command


def place() -> Path | None:
    """The folder from which this process would import the project; None if it is not installed."""
    spec = importlib.util.find_spec("xfer")
    found = spec and spec.submodule_search_locations
    return Path(found[0]).parent if found else None


def version(root: Path) -> str:
    """Of the project in `root`, with a digest of its code, and of what it stands on."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"{_installed('xfer')} (code {digest.hexdigest()[:8]}, Ray {_installed('ray')}, torch {_installed('torch')})"


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def log_name(submission: str) -> str:
    """Of the file in the run folder that has the words of a job."""
    return f"driver-{submission}.log"


def drive(submission: str, verb: str, document: str, folder: str, submitted: str = "") -> int:
    """Runs `xfer VERB DOCUMENT` and returns its exit status. Its words go to stdout and to the log in `folder`.
    submitted: the version of the project where the job comes from, if it shall be compared.
    """
    say = _tee(_open(Path(folder) / log_name(submission)))
    root = place()
    if root is None:
        say(
            f"xfer: the project is not installed for {sys.executable} on {socket.gethostname()}; install it on every "
            "node, name the Python that has it with --python, or send the code along with --ship-code\n".encode()
        )
        return 2
    here = version(root)
    say(f"job {submission}: xfer {here} in {root} on host {socket.gethostname()}\n".encode())
    if submitted and here != submitted:
        say(
            f"note: submitted by xfer {submitted}, the cluster has xfer {here}; they should be the same, "
            "or send yours along with --ship-code\n".encode()
        )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    command = [sys.executable, "-m", "xfer", verb, document]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout
    reader = threading.Thread(target=_copy, args=(child.stdout, say), daemon=True)
    reader.start()
    status = child.wait()
    reader.join(LAST_WORDS_S)
    if status < 0:
        cause = " (out of memory?)" if status == -signal.SIGKILL else ""
        say(f"xfer: ended by signal {-status}{cause}; submitted again, it goes on from its checkpoint\n".encode())
        return 1
    return status


def _open(path: Path) -> BinaryIO | None:
    """The log, or None where it cannot be written: the run itself says more about that."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab", buffering=0)
    except OSError as error:
        print(f"note: no log in the run folder: {path}: {error.strerror}", flush=True)
        return None


def _tee(log: BinaryIO | None) -> Callable[[bytes], None]:
    def say(text: bytes) -> None:
        nonlocal log
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        try:
            if log:
                log.write(text)
        except OSError as error:  # the disk is full: the job itself may have no need of it
            log = None
            print(f"note: the log in the run folder ends here: {error.strerror}", flush=True)

    return say


def _copy(source: BinaryIO, say: Callable[[bytes], None]) -> None:
    while chunk := os.read(source.fileno(), 65536):
        say(chunk)


if __name__ == "__main__":
    sys.exit(drive(*sys.argv[1:]))
