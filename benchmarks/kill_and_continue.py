"""Kill `c3 embed` at random moments, continue it, and compare the bytes with those of an uninterrupted run.

    python benchmarks/kill_and_continue.py --runs 20

Embeds the bundled photos and their captions once without interruption. Then it repeats the command with a new store,
kills it one to three times at a random moment, and lets it finish. Done markers are compared without their timings.
Takes about 10 minutes on 2 cores. It should end with "20 of 20".
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


def shards_of(store: Path) -> int:
    """Return the number of finished shards."""
    return len(list(store.glob("*/_part-*.json")))


def kill_at(command: list[str | Path], store: Path, draw: random.Random, total: int) -> int | None:
    """Start the command, kill it at a random moment of its work; how many shards there were, None if it had ended.

    A moment is a number of shards, at least what is there, then up to half a second.
    """
    enough = draw.randint(min(shards_of(store), total - 1), total - 1)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and shards_of(store) < enough:
        time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(0.0, 0.5))
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return shards_of(store)


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
        run([*command, folder / "whole"])
        expected = content(folder / "whole")
        total = shards_of(folder / "whole")
        for number in range(arguments.runs):
            store = folder / str(number)
            kills = [kill_at([*command, store], store, draw, total) for _ in range(draw.randint(1, 3))]
            killed_at = [str(count) for count in kills if count is not None]
            run([*command, store])
            equal = content(store) == expected
            same += equal
            print(
                f"run {number}: killed with {' and '.join(killed_at) or 'no'} of {total} shards done: "
                f"{'same' if equal else 'DIFFERENT'}",
                flush=True,
            )
    print(f"{same} of {arguments.runs} stores equal the uninterrupted one byte for byte")


if __name__ == "__main__":
    main()
