"""An address where no cluster is, told before Ray is asked."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cluster import address
from cluster.address import check_dashboard, check_listens, dashboard_at, dashboard_beside
from cluster.config import Job
from cluster.jobs import connect as dashboard
from cluster.session import connect
from shards.settings import ConfigError, parse


class _Dashboard(http.server.HTTPServer):
    def handle_error(self, request, client_address):
        """The one who asked has left before all was said."""


@pytest.fixture
def silent() -> Iterator[str]:
    """Takes connections and never says a word, which is how a head that is busy looks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("given", ["h1", "h1:", ":6379", "h1:six", "h1:70000", "http://h1:8265", "ray://h1:10001"])
def test_what_is_no_address_is_refused_with_the_job(recipe_values, given):
    with pytest.raises(ConfigError, match=r"cluster\.address: must be host:port as `ray start --head` printed it"):
        parse({"recipe": recipe_values, "cluster": {"address": given}}, Job)


@pytest.mark.parametrize("given", ["h1:6379", "10.0.0.1:6379", "[::1]:6379", "auto"])
def test_what_can_be_one_is_taken(recipe_values, given):
    assert parse({"recipe": recipe_values, "cluster": {"address": given}}, Job).cluster.address == given


@pytest.fixture
def closed() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_a_session_at_a_closed_port_ends_before_ray_is_asked(closed, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was asked"))
    with pytest.raises(ConfigError, match=f"no cluster at {closed}"), connect(closed):
        pass


def test_a_closed_port_is_named(closed):
    with pytest.raises(ConfigError, match=f"no cluster at {closed}: Connection refused"):
        check_listens(closed)


def test_a_name_that_nobody_knows_is_named():
    with pytest.raises(ConfigError, match=r"no cluster at no-such-host\.invalid:6379"):
        check_listens("no-such-host.invalid:6379")


def test_a_dashboard_is_not_taken_for_a_cluster():
    with _Dashboard(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(ConfigError, match="a web server answers there, such as Ray's dashboard"):
            check_listens(f"127.0.0.1:{server.server_port}")


def test_what_is_silent_is_left_to_ray(silent, monkeypatch):
    monkeypatch.setattr(address, "ANSWER_S", 0.2)
    started = time.monotonic()
    check_listens(silent)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "given", ["h1", "http://h1", "h1:six", "http://h1:70000", "ray://h1:10001", "auto", "http://:1"]
)
def test_what_names_no_dashboard_is_refused(given):
    with pytest.raises(ConfigError, match=f"must be that of the dashboard, such as http://HOST:8265, got {given}"):
        dashboard_at(given)


def test_a_dashboard_is_named_by_its_url_or_its_port_or_the_cluster_beside_it():
    assert dashboard_at("http://h1:8265/") == dashboard_at("h1:8265") == dashboard_beside("h1:6379") == "http://h1:8265"
    assert dashboard_at("https://ray.example.org") == "https://ray.example.org"
    assert dashboard_beside("auto") == "http://127.0.0.1:8265"


def answering(answer: bytes) -> str:
    """A port that says this to the first who asks, and closes."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as link:
            link.recv(1000)
            link.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "what listens there is no web server"),
        (b"\0\0\x12\x04\0\0\0\0\0", "what listens there is no web server"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "another web server answers there"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "another web server answers there"),
        (b"HTTP/1.1 200 OK\r\n\r\n[1]", "another web server answers there"),
    ],
)
def test_what_is_no_dashboard_is_told(answer, words):
    with pytest.raises(ConfigError, match=words):
        check_dashboard(answering(answer))


@pytest.mark.parametrize(
    "answer", [b'HTTP/1.1 200 OK\r\n\r\n{"ray_version": "2"}', b"HTTP/1.1 401 Unauthorized\r\n\r\n"]
)
def test_a_dashboard_is_known_with_and_without_a_token(answer):
    check_dashboard(answering(answer))


def test_a_dashboard_that_says_nothing_is_waited_for_a_while(silent, monkeypatch):
    monkeypatch.setattr(address, "ANSWER_S", 0.2)
    with pytest.raises(ConfigError, match=r"no answer within 0\.2 s"):
        check_dashboard(f"http://{silent}")


def test_what_named_the_dashboard_is_told(closed, monkeypatch):
    """--address before RAY_ADDRESS before the job's cluster."""
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", f"http://{closed}")
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS: no dashboard at http://{closed}: Connection refused"):
        dashboard(None, "h1:6379")
    with pytest.raises(ConfigError, match=r"^--address: must be"):
        dashboard("h1")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(address, "DASHBOARD_PORT", int(closed.rpartition(":")[2]))
    with pytest.raises(
        ConfigError, match=f"^RAY_ADDRESS: 127.0.0.1:1 names a cluster.*: no dashboard at http://{closed}"
    ):
        dashboard(None)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match=r"^cluster\.address: 127\.0\.0\.1:2 names a cluster"):
        dashboard(None, "127.0.0.1:2")
    with pytest.raises(ConfigError, match="--address: must be given"):
        dashboard(None)
