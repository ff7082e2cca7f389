"""At which addresses processes listen, read from /proc."""

import contextlib
import ipaddress
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LISTEN = "0A"


def addresses(pid: int) -> set[str]:
    """Those of the TCP sockets at which the process listens now."""
    sockets = set()
    with contextlib.suppress(OSError):  # it may end meanwhile
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(entry.path))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[column] for column in (1, 3, 9))
            if state == LISTEN and f"socket:[{inode}]" in sockets:
                found.add(_address(local.partition(":")[0]))
    return found


def _address(digits: str) -> str:
    """The kernel writes each 32 bits of an address as a number of this machine."""
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return str(getattr(address, "ipv4_mapped", None) or address)


@contextmanager
def listening_of(title: str) -> Iterator[set[str]]:
    """The addresses at which processes below this one with `title` in their name listen during the block."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, IndexError):
                    if title in process.cmdline()[0]:
                        seen.update(addresses(process.pid))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
