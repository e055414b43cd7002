"""Measure memory and time of planning what to embed, as the captions grow.

    python benchmarks/planning_memory.py --rows 1000000,10000000

Captions are made in ten Parquet files, and `c3 embed --dry-run` plans them in a process of its own; no model is run.
Ten million captions need 1 GiB of disk and some minutes of one core. It should print at most 3 GiB.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from measuring import C3, print_table, run

FILES = 10


def main() -> None:
    """Make, plan, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,2000000", help="numbers of captions, with commas")
    table = []
    for rows in map(int, parser.parse_args().rows.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for number in range(FILES):
                first, last = number * rows // FILES, (number + 1) * rows // FILES
                captions = [
                    f"a photo of thing {n} beside another thing, on a sunny afternoon" for n in range(first, last)
                ]
                pq.write_table(pa.table({"caption": captions}), folder / f"texts-{number}.parquet")
            done = run([*C3, "embed", f"{folder}/texts-*.parquet", "--store", folder / "store", "--dry-run", "--json"])
            table.append((f"{rows:,}", f"{done.seconds:.0f}", f"{done.peak_mib:,.0f}"))
    print_table(("captions", "seconds", "peak memory, MiB"), table)


if __name__ == "__main__":
    main()
