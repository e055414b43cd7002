"""Millions of damaged and hostile files against every reader: captions, Parquet, recipes, stores, imports, records.

    OMP_NUM_THREADS=1 python benchmarks/fuzz.py --runs 2000000

The valid files and the changes made to them are those of tests/fuzz, drawn by chance from the seed; a run changes one
file and reads it, in this process and in memory (/dev/shm). A run is a failure if it ends in anything but one of
c3tools' own errors, takes more than 5 seconds, or brings the process over 1 GiB of memory. Readers take turns, in
rounds; what was done is printed after each round. One core makes about 1,700 runs a second: 2,000,000 take 20 minutes.
The last line should say 0 failures, and the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import random
import re
import sys
import time
from pathlib import Path

from measuring import print_table

sys.path.insert(0, str(Path(__file__).parent.parent))

import pyarrow as pa

from tests.fuzz.harness import MOST_MEMORY, Runner, peak_memory, workspace
from tests.fuzz.targets import targets


def main() -> None:
    """Run all targets, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200_000, help="in all; each target gets its share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--minutes", type=float, help="stop after the round in which so many have passed")
    parser.add_argument("--only", default="", help="targets whose name has this in it")
    parser.add_argument("--save", type=Path, help="a folder for the files that fail")
    arguments = parser.parse_args()
    faulthandler.enable()
    pa.set_cpu_count(1)
    chosen = [target for target in targets() if arguments.only in target.name]
    parts = arguments.rounds * sum(target.share for target in chosen)
    draw, start = random.Random(arguments.seed), time.monotonic()
    with contextlib.ExitStack() as stack:
        runners = [(target, Runner(target, stack.enter_context(workspace(target)))) for target in chosen]
        outcomes = {target.name: runner.outcome for target, runner in runners}
        for _ in range(arguments.rounds):
            for target, runner in runners:
                runner.run(-(-arguments.runs * target.share // parts), draw)
            total = sum(outcome.runs for outcome in outcomes.values())
            failures = sum(outcome.counts.total() for outcome in outcomes.values())
            print(
                f"{total:,} runs in {time.process_time():,.0f} s of processor time, {failures} failures",
                file=sys.stderr,
                flush=True,
            )
            if arguments.minutes is not None and time.monotonic() - start > 60 * arguments.minutes:
                break
    for name, outcome in outcomes.items():
        for problem, count in outcome.counts.most_common():
            file, content = outcome.problems[problem]
            print(f"{name}: {count} x {problem}\n  {file}: {content[:300]!r}", file=sys.stderr, flush=True)
            if arguments.save is not None:
                save(arguments.save, f"{name} {problem}", file, content)
    rows = [
        (name, f"{outcome.runs:,}", f"{outcome.refused:,}", f"{outcome.slowest:.2f}", outcome.counts.total())
        for name, outcome in outcomes.items()
    ]
    print_table(("reader", "runs", "refused", "slowest, s", "failures"), rows)
    print(f"{total:,} runs, {failures} failures, peak memory {peak_memory() / 2**20:,.0f} MiB")
    sys.exit(1 if failures or peak_memory() > MOST_MEMORY else 0)


def save(folder: Path, problem: str, file: str, content: bytes) -> None:
    """Keep a file that fails, under a name made of what happens."""
    path = folder / re.sub(r"\W+", "-", problem)[:100] / Path(file).name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    main()
