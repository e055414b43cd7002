"""Servers on this machine: files over HTTP, and S3 by moto; both can fail every so often."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

_POLL = 0.02  # seconds until a server notices that it is to stop


@dataclass
class Faults:
    """Which requests fail: every ``every``-th, none for 0; all after the ``last`` one; and with
    which answer: a status, or ``cut``, the right one without its last third."""

    every: int = 0
    last: int | None = None
    answer: str = "500 Internal Server Error"
    requests: int = 0
    failed: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def next_fails(self) -> bool:
        """Return whether the next request fails."""
        with self.lock:
            self.requests += 1
            fails = bool(self.every) and self.requests % self.every == 0
            fails = fails or (self.last is not None and self.requests > self.last)
            self.failed += fails
        return fails


class FileHandler(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, as real servers give them; Python's own server knows none."""

    faults: Faults
    ranges: bool

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if fails := self.faults.next_fails():
            self.send_error(int(self.faults.answer.split()[0]))
        return not fails

    def do_GET(self) -> None:
        if self.path == "/drip":  # a byte now and then, without an end
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not self.ranges or wanted is None or not path.is_file():
            super().do_GET()
            return
        content, start = path.read_bytes(), int(wanted[1])
        part = content[start : int(wanted[2]) + 1 if wanted[2] else None]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def web_server(folder: Path, faults: Faults, *, ranges: bool = True) -> Iterator[str]:
    """Serve a folder; yields its address."""
    handler = type("Handler", (FileHandler,), {"faults": faults, "ranges": ranges})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(handler, directory=str(folder))
    )
    with _running(server) as endpoint:
        yield endpoint


def s3_credentials(endpoint: str) -> dict[str, str]:
    """Return the variables of the environment by which clients find this S3."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


@contextmanager
def s3_server(faults: Faults) -> Iterator[str]:
    """An S3 in memory; yields its endpoint."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    store = DomainDispatcherApplication(create_backend_app)

    def application(environment: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        fails = faults.next_fails()
        if fails and faults.answer == "cut":
            content = b"".join(store(environment, start_response))
            return [content[: 2 * len(content) // 3]]  # shorter than its header says
        if fails:
            # a server that closes the connection without reading what was sent leaves the client
            # with a broken pipe
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start_response(faults.answer, [("Content-Length", "0")])
            return [b""]
        return store(environment, start_response)

    quiet = type("Quiet", (WSGIRequestHandler,), {"log": lambda *_: None})
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=quiet)
    with _running(server) as endpoint:
        # what moto keeps belongs to the process, not to the server
        with urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b""):
            pass
        yield endpoint


@contextmanager
def _running(server: Any) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, args=(_POLL,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Hub:
    """What a hub holds, and who may do what.

    Attributes:
        endpoint: its address.
        files: by ``models/ORG/NAME`` or ``datasets/ORG/NAME`` the files of each commit, oldest
            first.
        private: whether new repositories were asked to be private.
        token: what requests that write have to bring.
    """

    endpoint: str = ""
    files: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    token: str = "hf_test"

    def last(self, repository: str) -> dict[str, bytes]:
        return self.files[repository][-1]


class HubHandler(http.server.BaseHTTPRequestHandler):
    """The requests of the Hugging Face hub that uploads and downloads of small files make."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        api = re.fullmatch(
            r"/api/((?:models|datasets)/[^/]+/[^/]+)(/tree|/revision)?(?:/(.+))?", path
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        name = api[1] if api else f"{file[1] or 'models/'}{file[2]}" if file else ""
        commits = self.hub.files.get(name)
        if commits is None:
            self._missing("Repo")
        elif file and file[3] not in commits[-1]:
            self._missing("Entry")
        elif file:
            content = commits[-1][file[3]]
            self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": _sha(commits)})
        elif api and api[2] == "/tree":
            entries = commits[-1].items()
            self._answer(
                [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in entries]
            )
        elif api and api[3] not in (None, "main", _sha(commits)):
            self._missing("Revision")
        else:
            siblings = [{"rfilename": file} for file in commits[-1]]
            self._answer({"id": name.partition("/")[2], "sha": _sha(commits), "siblings": siblings})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        path = urllib.parse.unquote(self.path.partition("?")[0])
        found = re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/(preupload|commit)/.+", path)
        if (
            self.headers.get("Authorization") != f"Bearer {self.hub.token}"
            and path != "/api/validate-yaml"
        ):
            self._send(401, b"{}", {})
        elif found and found[2] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            self._answer(
                {
                    "files": [
                        {"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files
                    ]
                }
            )
        elif found:
            content = dict(self.hub.last(found[1]))
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del content[line["value"]["path"]]
            self.hub.files[found[1]].append(content)
            oid = _sha(self.hub.files[found[1]])
            address = f"{self.hub.endpoint}/{found[1].removeprefix('models/')}/commit/{oid}"
            self._answer(
                {"success": True, "commitOid": oid, "commitUrl": address, "hookOutput": ""}
            )
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('type') or 'model'}s/{asked['organization']}/{asked['name']}"
            there = repository in self.hub.files
            self.hub.private.setdefault(
                repository, asked.get("visibility") == "private" or bool(asked.get("private"))
            )
            self.hub.files.setdefault(repository, [{}])
            url = f"{self.hub.endpoint}/{repository.removeprefix('models/')}"
            self._answer(
                {"url": url, **({"error": "it exists"} if there else {})}, 409 if there else 200
            )
        else:
            self._answer({"errors": [], "warnings": []})

    def _chunks(self) -> bytes:
        """Read a body that comes in chunks."""
        body = b""
        while self.headers.get("Transfer-Encoding") == "chunked" and (
            size := int(self.rfile.readline(), 16)
        ):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body

    def _missing(self, what: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": f"{what}NotFound"})

    def _answer(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _oid(content: bytes) -> str:
    """Return the name that Git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha(commits: list[dict[str, bytes]]) -> str:
    """Return the name of the last commit."""
    state = "".join(f"{path}{_oid(content)}" for path, content in sorted(commits[-1].items()))
    return hashlib.sha1(f"{len(commits)}{state}".encode()).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hugging Face hub in memory."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub})
    )
    with _running(server) as hub.endpoint:
        yield hub
