"""An address where no cluster is, told before Ray is asked."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cluster import address
from cluster.address import check_listens
from cluster.config import Job
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
