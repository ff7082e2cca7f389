"""An HTTP server on loopback that fails on demand, as real stores do."""

import threading
from collections import defaultdict, deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DELIVERS_WRONG = ("short", "wrong")
FAILS = ("500", "503", "429", "cut", "refuse")


class FaultyServer:
    """Serves `files` (path -> bytes). Every request uses up one of `faults`; when there are none, it is healthy.

    A fault is a status code; "cut": the connection ends inside the body; "refuse": it ends without an answer; "short":
    the body is cut, and the header agrees; "wrong": a flipped bit; "hang": no answer; "drip": a byte a second.
    """

    def __init__(self, ranges: bool = True):
        self.files: dict[str, bytes] = {}
        self.faults: deque[str] = deque()
        self.always: dict[str, str] = {}
        """path -> the fault that every request for it meets."""
        self.delay_s = 0.0
        self.ranges = ranges
        self.requests: defaultdict[str, int] = defaultdict(int)
        self.queries: list[str] = []
        self._guard = threading.Lock()
        self._ending = threading.Event()
        self._connections: set = set()
        self._port = 0
        self.up()

    def up(self) -> None:
        """Serves, at the same address as before."""
        self._ending.clear()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Nobody listens any more, and open connections are cut."""
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            connection.close()

    @property
    def url(self) -> str:
        """The root."""
        return f"http://127.0.0.1:{self._port}"

    def next_fault(self, path: str) -> str:
        """What happens to this request; it is counted."""
        with self._guard:
            self.requests[path] += 1
            return self.always.get(path) or (self.faults.popleft() if self.faults else "")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FaultyServer

    def setup(self) -> None:
        super().setup()
        self.owner._connections.add(self.connection)

    def finish(self) -> None:
        self.owner._connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError):  # the client went away, or the server went down
            super().handle()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.owner.queries.append(query)
        fault = self.owner.next_fault(path)
        if self.owner.delay_s:
            self.owner._ending.wait(self.owner.delay_s)
        if fault == "hang":
            self.owner._ending.wait()
        if fault in ("refuse", "hang"):
            self.close_connection = True
        elif fault.isdigit() or path not in self.owner.files:
            self._reply(int(fault or 404), b"no")
        else:
            self._serve(self.owner.files[path], fault)

    def _serve(self, body: bytes, fault: str) -> None:
        status, headers = 200, {}
        wanted = self.headers.get("Range", "")
        if wanted and self.owner.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            if int(first) >= len(body):
                self._reply(416, b"")
                return
            headers = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
            status, body = 206, body[int(first) : int(last) + 1]
        if fault == "short":
            body = body[: len(body) // 2]
        elif fault == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        self._reply(status, body, fault, headers)

    def _reply(self, status: int, body: bytes, fault: str = "", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "drip":
            for byte in body:
                self.wfile.write(bytes([byte]))
                if self.owner._ending.wait(1.0):
                    return
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""
