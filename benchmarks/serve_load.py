"""Time `c3 serve` with ten clients at once.

    python benchmarks/serve_load.py INDEX CAPTIONS.jsonl

INDEX is what `c3 index` made; the queries are the captions. Prints the median and the 99th
percentile of 1,000 text queries, and the memory of the server. Takes about a minute on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
from measuring import print_table

CLIENTS, QUERIES = 10, 1_000


def main() -> None:
    """Start the server, measure it, end it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
            with urlopen(
                f"http://127.0.0.1:{port}/search?k=10&q={quote(text)}", timeout=60
            ) as answer:
                json.load(answer)
            return 1000 * (time.perf_counter() - start)

        timed(texts[0])
        with ThreadPoolExecutor(CLIENTS) as pool:
            start = time.perf_counter()
            took = list(pool.map(timed, texts))
            rate = len(took) / (time.perf_counter() - start)

        status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
        peak = (
            int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
            // 1024
        )
        numbers = [*(f"{np.percentile(took, p):.0f}" for p in (50, 99)), f"{rate:.0f}", peak]
        print_table(
            ["median, ms", "99th percentile, ms", "queries/s", "peak memory, MiB"], [numbers]
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
