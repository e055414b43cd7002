"""Hundreds of thousands of damaged and hostile files against every reader: captions, Parquet, recipes, stores, imports.

    OMP_NUM_THREADS=1 python benchmarks/fuzz.py --runs 200000

The valid files and the changes made to them are those of tests/fuzz, drawn by hypothesis from the seed; a run changes
one file and reads it, in this process and in memory (/dev/shm). A run is a failure if it ends in anything but one of
c3tools' own errors, takes more than 5 seconds, or brings the process over 1 GiB of memory. 200,000 runs take about 20
minutes of one core; the last line should say 0 failures, and the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from pathlib import Path

from measuring import print_table

sys.path.insert(0, str(Path(__file__).parent.parent))

import pyarrow as pa

from tests.fuzz.harness import MOST_MEMORY, peak_memory, run_target
from tests.fuzz.targets import targets


def main() -> None:
    """Run all targets, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200_000, help="in all; each target gets its share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets whose name has this in it")
    arguments = parser.parse_args()
    faulthandler.enable()
    pa.set_cpu_count(1)
    chosen = [target for target in targets() if arguments.only in target.name]
    shares = sum(target.share for target in chosen)
    rows, failures, total = [], 0, 0
    for number, target in enumerate(chosen):
        runs = -(-arguments.runs * target.share // shares)
        start = time.perf_counter()
        outcome = run_target(target, runs, start=arguments.seed * 10_000_019 + number * 1_000_003)
        seconds = time.perf_counter() - start
        failed = sum(outcome.counts.values())
        failures, total = failures + failed, total + outcome.runs
        rows.append((target.name, f"{outcome.runs:,}", f"{outcome.refused:,}", f"{outcome.slowest:.2f}", failed))
        print(
            f"{target.name}: {outcome.runs:,} runs in {seconds:,.0f} s, {failed} failures", file=sys.stderr, flush=True
        )
        for problem, count in outcome.counts.most_common():
            print(f"  {count} x {problem}\n    {outcome.problems[problem]}", file=sys.stderr, flush=True)
    print_table(("reader", "runs", "refused", "slowest, s", "failures"), rows)
    print(f"{total:,} runs, {failures} failures, peak memory {peak_memory() / 2**20:,.0f} MiB")
    sys.exit(1 if failures or peak_memory() > MOST_MEMORY else 0)


if __name__ == "__main__":
    main()
