"""Crashes and faults at every operation on files, for every command that writes.

    python benchmarks/crash_points.py
    python benchmarks/crash_points.py --commands embed,merge --errors ENOSPC

Each command runs on a tiny input. At each operation (a file opened for writing, a rename, a removal, a folder made or
removed) the state of the disk is kept, as it is and as a power cut could leave it: contents that were not synced torn
in half or empty, names that were not synced lost. Each state is put in place, the same command runs, and the result is
compared with that of a run without a crash, byte for byte but for measured times. Then each operation fails, once for
each error, and the command runs again. The table should say "survived" everywhere.

What C libraries write (Parquet, FAISS) goes to temporary files; a crash amid such a write is the state "torn". Costs
about half an hour on one core.
"""

from __future__ import annotations

import argparse
import errno
import sys
import tempfile
from pathlib import Path

from measuring import print_table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests.conftest
from c3tools.encoders import load_encoder
from c3tools.errors import C3Error
from tests.crashes.harness import Outcome, crash_everywhere, fail_everywhere
from tests.crashes.scenarios import NAMES, all_scenarios

assert tests.conftest  # sets the environment


def main() -> None:
    """Try all, print a table; exit with 1 if something was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default=",".join(NAMES))
    parser.add_argument("--errors", default="ENOSPC,EIO,EACCES,EMFILE,EINTR")
    arguments = parser.parse_args()
    errors = [name for name in arguments.errors.split(",") if name]
    scenarios = all_scenarios(load_encoder("c3-mini", backend="torch", precision="fp32"))
    rows, problems = [], []
    for name in arguments.commands.split(","):
        with tempfile.TemporaryDirectory() as folder:
            outcomes = [crash_everywhere(scenarios[name], Path(folder) / "work")]
            for error in errors:
                number = getattr(errno, error)
                outcomes.append(fail_everywhere(scenarios[name], Path(folder) / error, number, (C3Error, OSError)))
        rows.append([name, f"{outcomes[0].points:,}", *map(_cell, outcomes)])
        problems += [f"{name}: {problem}" for outcome in outcomes for problem in outcome.problems]
        print(*rows[-1], sep="  ", flush=True)
    print_table(["command", "operations", "crashes", *errors], rows)
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))


def _cell(outcome: Outcome) -> str:
    failed = len(outcome.problems)
    return f"{outcome.tried:,} survived" if not failed else f"{failed:,} problems in {outcome.tried:,}"


if __name__ == "__main__":
    main()
