"""Time `c3 serve` with ten clients at once, and send it bad requests.

    python benchmarks/serve_load.py INDEX CAPTIONS.jsonl

INDEX is what `c3 index` made; the queries are the captions. Prints the median and the 99th percentile of 1,000 text
queries, the memory of the server, and the status of every bad request. Takes about a minute on 2 cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
from measuring import print_table

CLIENTS, QUERIES = 10, 1_000
JSON, PNG = {"Content-Type": "application/json"}, {"Content-Type": "image/png"}


def ask(port: int, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> int:
    """Send one request and return its status; -1 if the server closed the connection while it was being sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})  # type: ignore[arg-type]
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (ConnectionError, http.client.HTTPException):
        return -1
    finally:
        connection.close()


def bomb() -> bytes:
    """Return a PNG of 20,000 x 20,000 black pixels in a few bytes of header."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(10**7)))]
    parts = (
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def endless() -> Iterator[bytes]:
    """Yield 100 MB."""
    for _ in range(100):
        yield bytes(10**6)


BAD = {
    "no query": ("GET", "/search"),
    "empty query": ("GET", "/search?q=%20"),
    "query of 10,000 characters": ("GET", "/search?q=" + "x" * 10_000),
    "k=0": ("GET", "/search?q=a&k=0"),
    "k=1000000": ("GET", "/search?q=a&k=1000000"),
    "k=ten": ("GET", "/search?q=a&k=ten"),
    "in=audio": ("GET", "/search?q=a&in=audio"),
    "split=nowhere": ("GET", "/search?q=a&split=nowhere"),
    "../ in the path": ("GET", "/../../etc/passwd"),
    "../ as a thumbnail": ("GET", "/thumbnail/../../../etc/passwd"),
    "encoded ../": ("GET", "/thumbnail/..%2f..%2fetc%2fpasswd"),
    "thumbnail of no row": ("GET", "/thumbnail/999999999999"),
    "DELETE": ("DELETE", "/search"),
    "text as a photo": ("POST", "/search", b"hello", PNG),
    "wrong type": ("POST", "/search", b"hello", {"Content-Type": "text/plain"}),
    "bomb": ("POST", "/search", bomb(), PNG),
    "100 MB": ("POST", "/search", bytes(10**8), PNG),
    "100 MB in chunks": ("POST", "/search", endless(), PNG),
    "broken JSON": ("POST", "/search", b'{"vector": [1,', JSON),
    "nested JSON": ("POST", "/search", b"[" * 10**6, JSON),
    "vector of 2 numbers": ("POST", "/search", b'{"vector": [1, 2]}', JSON),
    "another host's name": ("GET", "/search?q=a", None, {"Host": "example.org"}),
}


def main() -> None:
    """Start the server, measure it, end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("captions", type=Path)
    arguments = parser.parse_args()
    lines = arguments.captions.read_text(encoding="utf-8").splitlines()
    texts = [caption for line in lines for caption in json.loads(line)["captions"]][:QUERIES]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    c3 = [sys.executable, "-c", "from c3tools.cli import main; main()"]
    server = subprocess.Popen([*c3, "serve", "--index", str(arguments.index), "--port", str(port)])
    try:
        while server.poll() is None and socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.2)

        def timed(text: str) -> float:
            start = time.perf_counter()
            if ask(port, "GET", f"/search?k=10&q={quote(text)}") != 200:
                raise SystemExit(f"no answer to {text!r}")
            return 1000 * (time.perf_counter() - start)

        timed(texts[0])
        with ThreadPoolExecutor(CLIENTS) as pool:
            start = time.perf_counter()
            took = list(pool.map(timed, texts))
            rate = len(took) / (time.perf_counter() - start)

        def memory(name: str) -> int:
            status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
            return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name))) // 1024

        before = memory("VmRSS")
        statuses = {name: ask(port, *request) for name, request in BAD.items()}  # type: ignore[arg-type]
        print_table(
            ["median, ms", "99th percentile, ms", "queries/s", "memory, MiB", "peak with bad requests, MiB"],
            [[*(f"{np.percentile(took, p):.0f}" for p in (50, 99)), f"{rate:.0f}", before, memory("VmHWM")]],
        )
        print_table(["bad request", "status"], list(statuses.items()))
        print("afterwards:", ask(port, "GET", "/search?q=a"))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
