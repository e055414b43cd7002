"""Crashes and faults at every operation on files, and at every request to an object store, for all that writes.

    OMP_NUM_THREADS=1 python benchmarks/crash_points.py
    python benchmarks/crash_points.py --commands embed,merge --faults ENOSPC --requests ""
    python benchmarks/crash_points.py --every 5

Each command runs on a tiny input. At each operation (a file opened for writing, fsync, a rename, a removal, a change of
mode, a folder made or removed) the state of the disk is kept, as it is and as a power cut could leave it: contents that
were not synced torn in half or empty, names that were not synced lost. Each state is put in place, the same command
runs, and the result is compared with that of a run without a crash, byte for byte but for measured times; no other file
may be left. What a command has finished is there after a power cut. Then each operation, reading included, fails once
for each error, and the command runs again. ``cut`` lets files become no larger than a limit, for each size that a file
has, and half of it: that is how writes of C libraries (Parquet, safetensors, FAISS) fail.

In the second table the n-th request to an S3 server fails: by a 500; by an answer that comes too late or is torn though
what was asked is done; and with all later requests, as if the run was cut off.

With ``--every 5``, each kind of fault takes every fifth operation or request, and the next kind those one later: the
five errors together still take each operation once. Crashes are always tried at all operations.

Both tables should say "survived" everywhere. Costs hours on one core, since each fault is two runs of its command;
``--every 5`` takes a fifth of them.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from measuring import print_table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tests.conftest
from c3tools.encoders import Encoder, load_encoder
from c3tools.errors import C3Error
from tests.crashes.harness import Outcome, Scenario, crash_everywhere, cut_everywhere, fail_everywhere
from tests.crashes.object_store import KINDS, fail_requests, remote_scenarios
from tests.crashes.scenarios import NAMES, all_scenarios
from tests.servers import Faults, s3_credentials, s3_server

assert tests.conftest  # sets the environment

ERRORS = ("ENOSPC", "EIO", "EACCES", "EMFILE", "EINTR")
_EXPECTED = (C3Error, OSError)
Try = Callable[[Scenario, Path], Outcome]
Choose = Callable[[list[int]], list[int]]


def main() -> None:
    """Try all, print two tables; exit with 1 if something was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default=",".join(NAMES))
    parser.add_argument("--faults", default=",".join(("crash", "cut", *ERRORS)))
    parser.add_argument("--requests", default=",".join(KINDS), help="ways in which requests to an object store fail")
    parser.add_argument("--every", type=int, default=1, help="of the operations and requests, take every n-th")
    arguments = parser.parse_args()
    commands = arguments.commands.split(",")
    encoder = load_encoder("c3-mini", backend="torch", precision="fp32")
    problems = []
    if arguments.faults:
        names = arguments.faults.split(",")
        tries = {name: _on_files(name, _every(arguments.every, place)) for place, name in enumerate(names)}
        problems += _try_all(all_scenarios(encoder), commands, "operations", tries)
    if arguments.requests:
        problems += _on_requests(encoder, commands, arguments.requests.split(","), arguments.every)
    sys.exit(bool(problems))


def _every(count: int, first: int) -> Choose:
    return lambda numbers: numbers[first % min(count, len(numbers)) :: count]


def _on_files(name: str, choose: Choose) -> Try:
    if name == "crash":
        return crash_everywhere
    if name == "cut":
        return lambda scenario, folder: cut_everywhere(scenario, folder, _EXPECTED, choose)
    return lambda scenario, folder: fail_everywhere(scenario, folder, getattr(errno, name), _EXPECTED, choose)


def _on_requests(encoder: Encoder, commands: Iterable[str], kinds: Sequence[str], every: int) -> list[str]:
    import s3fs

    faults = Faults()
    with s3_server(faults) as endpoint:
        os.environ.update(s3_credentials(endpoint))
        s3fs.S3FileSystem().mkdir("bucket")
        tries = {kind: _of_kind(faults, kind, _every(every, place)) for place, kind in enumerate(kinds)}
        return _try_all(remote_scenarios(encoder), commands, "requests", tries)


def _of_kind(faults: Faults, kind: str, choose: Choose) -> Try:
    return lambda scenario, folder: fail_requests(scenario, folder, faults, kind, choose)


def _try_all(scenarios: dict[str, Scenario], commands: Iterable[str], unit: str, tries: dict[str, Try]) -> list[str]:
    """Print a table, a row for each command that there is, a column for each kind of fault; return the problems."""
    rows, problems = [], []
    for name in [name for name in commands if name in scenarios]:
        outcomes = []
        for attempt in tries.values():
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(attempt(scenarios[name], Path(folder) / "work"))
        rows.append([name, f"{outcomes[0].points:,}", *map(_cell, outcomes)])
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
        found = [f"{name}: {problem}" for outcome in outcomes for problem in outcome.problems]
        problems += found
        print(*found, sep="\n", end="\n" * bool(found), file=sys.stderr, flush=True)
    print_table(["command", unit, *tries], rows)
    return problems


def _cell(outcome: Outcome) -> str:
    failed = len(outcome.problems)
    return f"{outcome.tried:,} survived" if not failed else f"{failed:,} problems in {outcome.tried:,}"


if __name__ == "__main__":
    main()
