"""Runs of `c3 embed` killed with SIGKILL at random moments and continued, compared byte for byte with a whole run.

    python benchmarks/kill_and_continue.py --runs 20

Embeds the bundled photos and their captions once without interruption; then, again and again into a new store, kills
the command at a random moment of its run one to three times, and lets it end. Done markers are compared without their
timings. Costs about 8 minutes on 2 cores; it should end with "20 of 20".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from measuring import C3, run

from c3tools.assets.paths import PHOTOS


def content(store: Path) -> dict[str, bytes]:
    """Every byte of a store, without the lock and the timings in done markers."""
    found = {}
    for path in sorted(store.rglob("*")):
        if path.is_file() and path.name != ".lock":
            found[str(path.relative_to(store))] = path.read_bytes()
            if path.name.startswith("part-") and path.suffix == ".json":
                marker = json.loads(path.read_text())
                del marker["timings"]
                found[str(path.relative_to(store))] = json.dumps(marker).encode()
    return found


def main() -> None:
    """Kill, continue, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    same = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [*C3, "embed", str(PHOTOS), "--shard-size", "8", "--store"]
        start = time.perf_counter()
        run([*command, folder / "whole"])
        took = time.perf_counter() - start
        expected = content(folder / "whole")
        for number in range(arguments.runs):
            store = folder / str(number)
            killed_at = []
            for _ in range(draw.randint(1, 3)):
                moment = draw.uniform(0.2, 1.0) * took
                process = subprocess.Popen([*command, store], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    killed_at.append(f"{moment:.1f} s ({len(list(store.glob('*/part-*.json')))} shards)")
            run([*command, store])
            equal = content(store) == expected
            same += equal
            print(
                f"run {number}: killed at {', '.join(killed_at) or 'no time'}: {'same' if equal else 'DIFFERENT'}",
                flush=True,
            )
    print(f"{same} of {arguments.runs} stores equal the uninterrupted one byte for byte")


if __name__ == "__main__":
    main()
