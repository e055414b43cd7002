"""Plant small faults in the package, one at a time, and count how many the tests notice.

    python benchmarks/mutants.py sample --count 150 --seed 0 > mutants.json
    python benchmarks/mutants.py run mutants.json

``sample`` draws faults, spread over the rooms by their size: a comparison turned, a constant
changed, a call left out, two arguments swapped. Read the list before any test is run, and write a
reason into "equivalent" for each fault that changes nothing a user could see. ``run`` runs all
tests once to learn which of them run which line, then plants each fault in a copy of the repository
and runs the tests of its line, the quickest first, the others of its room if these pass, and all
others if those do. Results are added to the file, so a run that ends is continued; the copy is kept
in a folder beside it.

For another commit, run both from a checkout of it, with this file (needs pytest-cov). Most faults
cost a few seconds, but one that survives costs a run of all tests.
It prints a line for each fault and the share that was noticed, with its Wilson interval; at least
90% are expected.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import coverage
import numpy as np

from c3tools.metrics.significance import share_interval

ROOT = Path.cwd()
TURNED = {ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "=="}
TURNED |= {ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"}
Fault = dict[str, Any]
PLUGIN = """
import os
def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ["SECONDS_FILE"], "a") as file:
            file.write(f"{report.nodeid} {report.duration}\\n")
"""


def faults_of(path: Path) -> Iterator[Fault]:
    """Yield every fault that can be planted in a file: its kind, its place in bytes, and the text
    put there.
    """
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def text(node: ast.AST) -> str:
        return source[begin(node) : end(node)].decode()

    def begin(node: Any) -> int:
        return int(starts[node.lineno - 1] + node.col_offset)

    def end(node: Any) -> int:
        return int(starts[node.end_lineno - 1] + node.end_col_offset)

    def fault(kind: str, node: Any, new: str) -> Fault:
        place = {
            "file": str(path.relative_to(ROOT)),
            "line": node.lineno,
            "kind": kind,
            "begin": begin(node),
        }
        return place | {"old": text(node), "new": new, "equivalent": ""}

    for node in behaving(ast.parse(source)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            new = f"{text(node.left)} {TURNED[type(node.ops[0])]} {text(node.comparators[0])}"
            yield fault("comparison turned", node, f"({new})")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = node.value
            changed = (
                not value
                if isinstance(value, bool)
                else value + 1
                if isinstance(value, int)
                else value * 2 + 1
            )
            yield fault("constant changed", node, str(changed))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield fault("call left out", node, "pass")
        elif (
            isinstance(node, ast.Call)
            and len(node.args) > 1
            and text(node.args[0]) != text(node.args[1])
        ):
            first, second = node.args[:2]
            if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                between = source[end(first) : begin(second)].decode()
                head, tail = (
                    source[begin(node) : begin(first)].decode(),
                    source[end(second) : end(node)].decode(),
                )
                yield fault(
                    "arguments swapped", node, f"{head}{text(second)}{between}{text(first)}{tail}"
                )


def behaving(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a module without what never runs or only words a message: annotations, type checking,
    f-strings.
    """
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.JoinedStr | ast.Raise | ast.ImportFrom | ast.arg):
            continue
        if isinstance(child, ast.AnnAssign):
            yield from behaving(ast.Module([child.value] if child.value else [], []))  # type: ignore[list-item]
            continue
        yield child
        yield from behaving(child)


def room_of(file: str) -> str:
    """Return the room of a file: a folder of the package, ``cli``, or ``.`` for what is at its
    root.
    """
    parts = Path(file).parts
    return parts[0] if parts[0] == "cli" else parts[1] if len(parts) > 2 else "."


def sample(count: int, seed: int) -> list[Fault]:
    """Draw faults: as many in each room as its share of all that can be planted, no two in one
    line.
    """
    rooms: dict[str, list[Fault]] = {}
    for top in ("c3tools", "cli"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if not path.is_symlink():
                rooms.setdefault(room_of(str(path.relative_to(ROOT))), []).extend(faults_of(path))
    draw, total, chosen = random.Random(seed), sum(map(len, rooms.values())), list[Fault]()
    for faults in rooms.values():
        draw.shuffle(faults)
        apart = list({(fault["file"], fault["line"]): fault for fault in faults}.values())
        chosen += apart[: max(1, round(count * len(faults) / total))]
    return sorted(chosen, key=lambda fault: (fault["file"], fault["begin"]))


def plant(fault: Fault, copy: Path) -> bytes:
    """Write a file of the copy with the fault in it; return what was there."""
    path = copy / fault["file"]
    before: bytes = path.read_bytes()
    old = fault["old"].encode()
    assert before[fault["begin"] :].startswith(old), (
        f"{fault['file']} is not the file that was sampled"
    )
    path.write_bytes(
        before[: fault["begin"]] + fault["new"].encode() + before[fault["begin"] + len(old) :]
    )
    return before


def statement_of(fault: Fault) -> range:
    """Return the lines of the innermost statement around a fault, up to the fault."""
    source = (ROOT / fault["file"]).read_text("utf-8")
    around = [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= fault["line"] <= (node.end_lineno or 0)
    ]
    return range(max(around, default=fault["line"]), fault["line"] + 1)


def run_all_tests(copy: Path, folder: Path) -> None:
    """Run all tests once, and record which test runs which line, and the seconds that each test
    takes.
    """
    (folder / "seconds.py").write_text(PLUGIN)
    environment = os.environ | {
        "PYTHONPATH": f"{copy}{os.pathsep}{folder}",
        "COVERAGE_FILE": str(folder / "coverage"),
    }
    environment["SECONDS_FILE"] = str(folder / "seconds.txt")
    options = "-q -n 2 --dist worksteal -p seconds -p no:cacheprovider"
    measured = "--cov=c3tools --cov=cli --cov-context=test --cov-report="
    command = [sys.executable, "-m", "pytest", *options.split(), *measured.split()]
    subprocess.run(command, cwd=copy, env=environment, check=False)


def tests_by_line(folder: Path) -> tuple[coverage.CoverageData, dict[str, float]]:
    """Return what `run_all_tests` has recorded."""
    data = coverage.CoverageData(str(folder / "coverage"))
    data.read()
    lines = (line.rsplit(" ", 1) for line in (folder / "seconds.txt").read_text().splitlines())
    return data, {name: float(seconds) for name, seconds in lines}


def noticed_by(
    fault: Fault, copy: Path, data: coverage.CoverageData, seconds: Mapping[str, float]
) -> str:
    """Return what noticed a planted fault: a test of its ``line``, of its ``room``, of ``all``, or
    nothing.
    """
    measured = {
        re.sub(r".*/repository/(c3tools/(?=cli/))?", "", name): name
        for name in data.measured_files()
    }
    contexts = data.contexts_by_lineno(measured.get(fault["file"], ""))
    found = {
        name.rpartition("|")[0] for line in statement_of(fault) for name in contexts.get(line, [])
    }
    own = (
        ("tests/test_", "tests/export/")
        if room_of(fault["file"]) == "."
        else (f"tests/{room_of(fault['file'])}/",)
    )
    room = {name for name in seconds if name.startswith(own)} - found
    stages = {"line": found & seconds.keys(), "room": room, "all": seconds.keys() - found - room}
    before = plant(fault, copy)
    quietly: Any = {
        "cwd": copy,
        "env": os.environ | {"PYTHONPATH": str(copy)},
        "capture_output": True,
    }
    try:
        for name, chosen in stages.items():
            tests = sorted(chosen, key=lambda name: seconds[name])
            (copy / "chosen.txt").write_text(
                "\n".join(tests).replace("/repository/", f"/{copy.name}/")
            )
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "@chosen.txt",
            ]
            # pytest ends a test that hangs
            done = tests and subprocess.run(command, check=False, **quietly)
            if done and done.returncode not in (0, 5):
                return name
    finally:
        (copy / fault["file"]).write_bytes(before)
    return ""


def run(path: Path, jobs: int) -> None:
    """Plant the faults of a file, each in a copy of its own, and write what noticed each into
    it.
    """
    faults: list[Fault] = json.loads(path.read_text())
    folder = path.absolute().with_suffix("")
    copy = folder / "repository"
    if not folder.exists():
        kept = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=kept)
        (copy / "c3tools" / "cli").symlink_to("../cli")
        run_all_tests(copy, folder)
    data, seconds = tests_by_line(folder)
    copies: queue.Queue[Path] = queue.Queue()
    for number in range(jobs):
        shutil.rmtree(folder / f"copy-{number}", ignore_errors=True)
        shutil.copytree(copy, folder / f"copy-{number}", symlinks=True)
        copies.put(folder / f"copy-{number}")

    def judge(fault: Fault) -> Fault:
        own = copies.get()
        try:
            return fault | {"noticed": noticed_by(fault, own, data, seconds)}
        finally:
            copies.put(own)

    left_at = {(fault["file"], fault["begin"]): number for number, fault in enumerate(faults)}
    left = [fault for fault in faults if not fault["equivalent"] and "noticed" not in fault]
    random.Random(0).shuffle(left)  # a run that is stopped has judged a sample of all
    with ThreadPool(jobs) as pool:
        for fault in pool.imap_unordered(judge, left):
            faults[left_at[fault["file"], fault["begin"]]] = fault
            path.write_text(json.dumps(faults, indent=1))
            shown = f"{fault['file']}:{fault['line']} {fault['kind']}"
            change = f"{fault['old'][:60]!r} -> {fault['new'][:60]!r}"
            print(f"{fault['noticed'] or 'SURVIVED':9} {shown}: {change}", flush=True)
    judged = [fault for fault in faults if not fault["equivalent"]]
    noticed = np.array([bool(fault["noticed"]) for fault in judged], float)
    low, high = share_interval(noticed) or (0.0, 1.0)
    print(
        f"{noticed.sum():.0f} of {len(judged)} noticed: {noticed.mean():.1%} ({low:.1%} to "
        f"{high:.1%})"
    )


def main() -> None:
    """Sample or run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    sampling = verbs.add_parser("sample")
    sampling.add_argument("--count", type=int, default=150)
    sampling.add_argument("--seed", type=int, default=0)
    running = verbs.add_parser("run")
    running.add_argument("file", type=Path)
    running.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.verb == "run":
        run(options.file, options.jobs)
    else:
        print(json.dumps(sample(options.count, options.seed), indent=1))


if __name__ == "__main__":
    main()
