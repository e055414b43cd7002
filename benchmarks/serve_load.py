"""Time text queries: of an open index in Python, and of `c3 serve` with 1, 10 and 50 clients at
once, while half-open connections try to keep it busy.

    python benchmarks/serve_load.py c3-store                    # 2,000 photos, their captions
    python benchmarks/serve_load.py c3-store --rows 1000000     # and that many random rows

STORE holds photos with captions and was made by c3-mini. The queries are captions of photos that
are not in the index. 200 connections that have sent half of the headers of a request are opened
before the clients begin, and again when the server ends them. Prints medians and 99th percentiles
in milliseconds, queries per second, and the peak memory of the server.

Each number of clients is measured for a minute. It takes five minutes on 2 cores, and ten more with
a million rows.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from threading import Event, Thread
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
from measuring import print_table

import c3tools
from c3tools.store import Rows, Store

HALF_A_REQUEST = b"GET /search?q=dog HTTP/1.1\r\nHost: localhost\r\n"
IN_PYTHON = 200  # queries


def write_json_lines(path: Path, records: Sequence[dict[str, str]]) -> None:
    """Write one record a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def build_photo_index(images: Rows, texts: Rows, work: Path) -> Path:
    """Build an index of photos and texts."""
    np.save(work / "image.npy", images.embeddings)
    np.save(work / "text.npy", texts.embeddings)
    write_json_lines(work / "image.jsonl", [{"id": key} for key in images.keys])
    text_records = []
    for key, image_key, caption in zip(texts.keys, texts.items, texts.captions, strict=True):
        text_records.append({"id": key, "image_key": image_key, "caption": caption})
    write_json_lines(work / "text.jsonl", text_records)
    c3tools.import_embeddings(
        store=work / "photos",
        image=work / "image.npy",
        text=work / "text.npy",
        meta=work / "image.jsonl",
        text_meta=work / "text.jsonl",
        model="c3-mini",
    )
    return c3tools.build_index(work / "photos", output=work / "photos-index").path


def build_random_index(count: int, dim: int, work: Path) -> Path:
    """Build an index of random rows, half of them images and half texts."""
    draw = np.random.default_rng(0)
    for modality in ("image", "text"):
        rows = draw.normal(size=(count // 2, dim)).astype(np.float16)
        np.save(work / f"{modality}.npy", rows)
    c3tools.import_embeddings(
        store=work / "random",
        image=work / "image.npy",
        text=work / "text.npy",
        model="c3-mini",
    )
    return c3tools.build_index(work / "random", output=work / "random-index").path


def milliseconds(seconds: Sequence[float]) -> list[str]:
    """Return the median and the 99th percentile in milliseconds."""
    percentiles: npt.NDArray[np.float64] = np.percentile(seconds, (50, 99))
    return [f"{1000 * value:.1f}" for value in percentiles]


def measure_python(index: Path, texts: Sequence[str]) -> list[str]:
    """Time searches of an open index, whose model is loaded; return a row of the table."""
    opened = c3tools.Index.open(index)
    opened.search(texts[0])
    seconds = []
    for text in texts[:IN_PYTHON]:
        start = time.perf_counter()
        opened.search(text)
        seconds.append(time.perf_counter() - start)
    return ["Index.search", *milliseconds(seconds), f"{len(seconds) / sum(seconds):.0f}"]


@contextmanager
def served(index: Path) -> Iterator[tuple[int, int]]:
    """Run `c3 serve` in the block; yield its port and its process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    c3 = [sys.executable, "-c", "from c3tools.cli import main; main()"]
    server = subprocess.Popen([*c3, "serve", "--index", str(index), "--port", str(port)])
    try:
        while server.poll() is None and socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.2)
        yield port, server.pid
    finally:
        server.terminate()
        server.wait()


@contextmanager
def half_open(port: int, count: int) -> Iterator[None]:
    """Keep so many connections with half a request open in the block."""
    is_over = Event()

    def keep_open() -> None:
        while not is_over.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(HALF_A_REQUEST)
                connection.settimeout(1)
                while not is_over.is_set():
                    with suppress(TimeoutError):
                        if not connection.recv(1024):
                            break

    threads = [Thread(target=keep_open) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def measure_clients(port: int, texts: Sequence[str], clients: int, seconds: float) -> list[str]:
    """Let clients ask one query after the other for some seconds; return a row of the table."""
    end = time.monotonic() + seconds

    def ask(client: int) -> list[float]:
        durations = []
        for text in cycle(texts[client::clients]):
            if time.monotonic() > end:
                break
            start = time.perf_counter()
            address = f"http://127.0.0.1:{port}/search?k=10&q={quote(text)}"
            with urlopen(address, timeout=60) as answer:
                json.load(answer)
            durations.append(time.perf_counter() - start)
        return durations

    with ThreadPoolExecutor(clients) as pool:
        durations = [duration for part in pool.map(ask, range(clients)) for duration in part]
    name = f"c3 serve, {clients} client" + "s" * (clients > 1)
    return [name, *milliseconds(durations), f"{len(durations) / seconds:.0f}"]


def peak_memory(process: int) -> str:
    """Return the peak memory of a process in MiB."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return f"{int(line.split()[1]) / 1024:.0f}"
    return "?"


def measure_index(index: Path, texts: Sequence[str], arguments: argparse.Namespace) -> None:
    """Print the table of an index."""
    rows = [[*measure_python(index, texts), ""]]
    with served(index) as (port, process):
        measure_clients(port, texts, 1, 1)
        for clients in arguments.clients:
            with half_open(port, arguments.half_open):
                row = measure_clients(port, texts, clients, arguments.seconds)
            rows.append([*row, peak_memory(process)])
    print_table(["", "median, ms", "99th percentile, ms", "queries/s", "peak, MiB"], rows)


def main() -> None:
    """Build the indexes and measure them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--photos", type=int, default=2_000, help="in the first index")
    parser.add_argument("--rows", type=int, default=0, help="of a second index, random ones")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--half-open", type=int, default=200, help="connections")
    parser.add_argument("--seconds", type=float, default=60, help="for each number of clients")
    parser.add_argument("--work", type=Path, help="where to write; by default a temporary folder")
    arguments = parser.parse_args()

    store = Store.open(arguments.store)
    images = store.load("image")
    texts = store.load("text")
    images = images.select(np.arange(arguments.photos))
    image_keys = set(images.keys)
    is_indexed = np.array([item in image_keys for item in texts.items])
    queries = texts.select(~is_indexed).captions

    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        texts = texts.select(is_indexed)
        print(f"{len(images):,} photos, {len(texts):,} captions")
        measure_index(build_photo_index(images, texts, work), queries, arguments)
        if arguments.rows:
            print(f"{arguments.rows:,} random rows")
            index = build_random_index(arguments.rows, store.info.dim, work)
            measure_index(index, queries, arguments)


if __name__ == "__main__":
    main()
