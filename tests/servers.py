"""Servers on this machine: files over HTTP, and S3 by moto; both can fail every so often."""

from __future__ import annotations

import http.server
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

_POLL = 0.02  # seconds until a server notices that it is to stop


class Faults:
    """Which requests fail: every ``every``-th, none for 0; all after the ``last`` one; and with which answer.

    `hold_after` keeps later requests waiting, and fails them when they are released.
    """

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self.last: int | None = None
        self.held = threading.Event()  # set when the first request waits
        self._released = threading.Event()
        self._held_from: int | None = None
        self.answer = "500 Internal Server Error"
        self.requests = 0
        self.failed = 0
        self._lock = threading.Lock()

    def hold_after(self, count: int) -> None:
        """Let ``count`` more requests through, then keep all others waiting until `release`."""
        with self._lock:
            self.held.clear()
            self._released.clear()
            self._held_from = self.requests + count

    def release(self) -> None:
        """Fail the requests that wait, and let later ones through."""
        with self._lock:
            self._held_from = None
        self._released.set()

    def next_fails(self) -> bool:
        with self._lock:
            self.requests += 1
            holds = self._held_from is not None and self.requests > self._held_from
            fails = bool(self.every) and self.requests % self.every == 0
            fails = fails or holds or (self.last is not None and self.requests > self.last)
            self.failed += fails
        if holds:
            self.held.set()
            self._released.wait(120)
        return fails


class FileHandler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, as real servers give them; Python's own server knows none."""

    def __init__(self, *arguments: Any, faults: Faults, ranges: bool, **options: Any) -> None:
        self.faults, self.ranges = faults, ranges
        super().__init__(*arguments, **options)

    def do_HEAD(self) -> None:
        if not self._refused():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path == "/drip":
            self._drip()
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not self.ranges or wanted is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop}/{len(content)}")
        self.send_header("Content-Length", str(stop + 1 - start))
        self.end_headers()
        self.wfile.write(content[start : stop + 1])

    def _drip(self) -> None:
        """Send a byte now and then, and never end."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)

    def _refused(self) -> bool:
        if not self.faults.next_fails():
            return False
        self.send_error(503)
        return True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def web_server(folder: Path, faults: Faults, *, ranges: bool = True) -> Iterator[str]:
    """Serve a folder; yields its address."""
    handler = partial(FileHandler, directory=str(folder), faults=faults, ranges=ranges)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with _running(lambda: server.serve_forever(poll_interval=_POLL), server.shutdown, server.server_close):
        yield f"http://127.0.0.1:{server.server_port}"


@contextmanager
def s3_server(faults: Faults) -> Iterator[str]:
    """An S3 in memory; yields its endpoint."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            pass

    store = DomainDispatcherApplication(create_backend_app)

    def application(environment: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if faults.next_fails():
            # a server that closes the connection without reading what was sent leaves the client with a broken pipe
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start_response(faults.answer, [("Content-Length", "0")])
            return [b""]
        return store(environment, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    with _running(lambda: server.serve_forever(poll_interval=_POLL), server.shutdown, server.server_close):
        endpoint = f"http://127.0.0.1:{server.server_port}"
        # what moto keeps belongs to the process, not to the server
        with urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b""):
            pass
        yield endpoint


@contextmanager
def _running(serve: Callable[[], Any], *stop: Callable[[], Any]) -> Iterator[None]:
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        for call in stop:
            call()
        thread.join()
