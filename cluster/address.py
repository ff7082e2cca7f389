"""Whether a Ray cluster can be at an address: asked before Ray, which would try for minutes, in lines of its own."""

import socket
from contextlib import suppress

from shards.settings import ConfigError

ANSWER_S = 5.0
FORM = "must be host:port as `ray start --head` printed it, or auto"


def address_fault(address: str) -> str:
    """What is wrong with how an address is written; empty if nothing is."""
    if address == "auto":
        return ""
    scheme, _, _ = address.rpartition("://")
    if scheme == "ray":
        return f"{FORM}; Ray's client (ray://) cannot train, run the command on a node of the cluster"
    if scheme:
        return f"{FORM}; {scheme}:// is what the dashboard and the job server have"
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return FORM
    return ""


def check_listens(address: str) -> None:
    """Raises ConfigError if nothing takes connections at `address`, or what does is no head of a cluster: within twice
    `ANSWER_S`. `auto` is left to Ray.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as link:
            speaks_http = _speaks_http(link)
    except OSError as error:
        raise ConfigError(
            f"cluster.address: no cluster at {address}: {_cause(error)}; {FORM}, with that host up and reachable"
        ) from None
    if speaks_http:
        raise ConfigError(
            f"cluster.address: no cluster at {address}: a web server answers there, such as Ray's dashboard; {FORM}"
        )


def _speaks_http(link: socket.socket) -> bool:
    """HTTP/1, that is: the head speaks gRPC, which ends such a conversation."""
    with suppress(OSError):
        link.settimeout(ANSWER_S)
        link.sendall(b"GET / HTTP/1.1\r\nHost: xfer\r\nConnection: close\r\n\r\n")
        return link.recv(5) == b"HTTP/"
    return False


def _cause(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {ANSWER_S:g} s"
    return error.strerror or str(error)
