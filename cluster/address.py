"""Whether a Ray cluster, or its dashboard, can be at an address: asked before Ray, which would try for minutes, in
lines of its own.
"""

import http.client
import json
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from urllib.parse import urlsplit

from shards.settings import ConfigError

ANSWER_S = 5.0
FORM = "must be host:port as `ray start --head` printed it, or auto"
DASHBOARD = "must be that of the dashboard, such as http://HOST:8265"
DASHBOARD_PORT = 8265  # of `ray start`, unless told otherwise


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


def dashboard_at(address: str) -> str:
    """The URL of the dashboard that `address` names: http://host:port, or host:port. Raises ConfigError."""
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port or parts.scheme == "https")
    except ValueError:  # a port that is none
        fits = False
    if not fits:
        raise ConfigError(f"{DASHBOARD}, got {address}")
    return url


def dashboard_beside(address: str) -> str:
    """Where the dashboard of the cluster at `address` (host:port, or auto) is, if it is where it usually is."""
    host = "127.0.0.1" if address == "auto" else address.rpartition(":")[0]
    return f"http://{host}:{DASHBOARD_PORT}"


def check_dashboard(url: str) -> None:
    """Raises ConfigError if no dashboard of Ray answers at `url`: within twice `ANSWER_S`. Whether it wants a token is
    left to Ray.
    """
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=ANSWER_S) as answer:
            known = "ray_version" in json.load(answer)
    except urllib.error.HTTPError as error:
        known = error.code in (401, 403)
    except (ValueError, TypeError):  # not what Ray answers
        known = False
    except http.client.HTTPException:
        raise ConfigError(
            f"no dashboard at {url}: what listens there is no web server, such as the head of a cluster; {DASHBOARD}"
        ) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        cause = _cause(reason) if isinstance(reason, OSError) else str(reason)
        raise ConfigError(f"no dashboard at {url}: {cause}; {DASHBOARD}, with that host up and reachable") from None
    if not known:
        raise ConfigError(f"no dashboard at {url}: another web server answers there; {DASHBOARD}")


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
