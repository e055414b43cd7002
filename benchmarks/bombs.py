"""Files that are small on disk and large in memory, given to the real commands: what each says, peak memory, time.

    OMP_NUM_THREADS=1 python benchmarks/bombs.py

The files are those of tests/bombs, made in a temporary folder, one at a time. Each command may have 4 GiB of memory and
60 seconds. It fails the benchmark if its largest process takes more than 1 GiB, if all of them take more than 10
seconds of processor time, or if it ends in anything but the use of the file, its name in the list of what was not
embedded, or one of c3tools' own errors. Costs ten minutes of one core and 4 GiB of memory to make the files. The last
line should say 0 failures; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from measuring import print_table

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.bombs.catalogue import MOST_MEMORY, bombs, run

MOST_SECONDS = 10


def main() -> None:
    """Run all, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="files whose name has this in it")
    arguments = parser.parse_args()
    rows, failures = [], 0
    for bomb in bombs():
        if arguments.only not in bomb.name:
            continue
        with tempfile.TemporaryDirectory(prefix="c3-bombs-") as folder:
            outcome = run(bomb, Path(folder))
        good = outcome.handled and outcome.peak < MOST_MEMORY and outcome.seconds < MOST_SECONDS
        failures += not good
        measured = f"{outcome.peak / 2**20:,.0f}", f"{outcome.seconds:.1f}", "yes" if good else "NO"
        rows.append((bomb.name, f"{outcome.size:,}", f"c3 {bomb.command[0]}", outcome.said[:200], *measured))
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    print_table(("file", "bytes on disk", "command", "what it says", "peak MiB", "s", "good"), rows)
    print(f"{len(rows)} files, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
