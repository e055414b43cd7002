"""Plant small faults in the package, one at a time, and count how many the tests notice.

    python benchmarks/mutants.py sample --count 150 --seed 0 > mutants.json
    python benchmarks/mutants.py run mutants.json

``sample`` draws faults, spread over the rooms by their size: a comparison turned, a constant changed, a call left out,
two arguments swapped. Read the list before any test is run, and write a reason into "equivalent" for each fault that
changes nothing a user could see. ``run`` plants each of the others in a copy of the repository, and runs the tests of
its room, then, if these pass, all of `make test`. Results are added to the file, so a run that ends is continued.

For another commit, run both from a checkout of it, with this file. A fault costs some 20 seconds, one that survives its
room a whole test run; 150 take about two hours on two cores. It prints a line for each fault and the share that was
noticed, with its Wilson interval; at least 90 % are expected.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path.cwd()
TURNED = {ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "=="}
TURNED |= {ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is"}
SECONDS = {"room": 900, "all": 3600}
Fault = dict[str, Any]


def faults_of(path: Path) -> Iterator[Fault]:
    """Yield every fault that can be planted in a file: its kind, its place in bytes, and the text put there."""
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
        return {
            "file": str(path.relative_to(ROOT)),
            "line": node.lineno,
            "kind": kind,
            "begin": begin(node),
            "old": text(node),
            "new": new,
            "equivalent": "",
        }

    for node in behaving(ast.parse(source)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            new = f"{text(node.left)} {TURNED[type(node.ops[0])]} {text(node.comparators[0])}"
            yield fault("comparison turned", node, f"({new})")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = node.value
            new = (
                str(not value)
                if isinstance(value, bool)
                else str(value + 1 if isinstance(value, int) else value * 2 + 1)
            )
            yield fault("constant changed", node, new)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield fault("call left out", node, "pass")
        elif isinstance(node, ast.Call) and len(node.args) > 1 and text(node.args[0]) != text(node.args[1]):
            first, second = node.args[:2]
            if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
                between = source[end(first) : begin(second)].decode()
                head, tail = source[begin(node) : begin(first)].decode(), source[end(second) : end(node)].decode()
                yield fault("arguments swapped", node, f"{head}{text(second)}{between}{text(first)}{tail}")


def behaving(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a module without what never runs or only words a message: annotations, type checking, f-strings."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.JoinedStr | ast.Raise | ast.ImportFrom):
            continue
        if isinstance(child, ast.AnnAssign):
            yield from behaving(ast.Module([child.value] if child.value else [], []))  # type: ignore[list-item]
            continue
        if isinstance(child, ast.arg):
            continue
        yield child
        yield from behaving(child)


def room_of(file: str) -> str:
    """Return the room of a file: a folder of the package, ``cli``, or ``.`` for what is at its root."""
    parts = Path(file).parts
    return parts[0] if parts[0] == "cli" else parts[1] if len(parts) > 2 else "."


def sample(count: int, seed: int) -> list[Fault]:
    """Draw faults: as many in each room as its share of all that can be planted, no two in one line."""
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
    assert before[fault["begin"] :].startswith(old), f"{fault['file']} is not the file that was sampled"
    path.write_bytes(before[: fault["begin"]] + fault["new"].encode() + before[fault["begin"] + len(old) :])
    return before


def noticed_by(fault: Fault, copy: Path) -> str:
    """Return what noticed a planted fault: ``room``, ``all``, or nothing."""
    before = plant(fault, copy)
    room = room_of(fault["file"])
    own = copy / "tests" / (room if room != "." else "")
    stem = Path(fault["file"]).stem
    files = [own] if room != "." and own.is_dir() else sorted((copy / "tests").glob(f"test_{stem}*.py"))
    environment = os.environ | {"PYTHONPATH": str(copy)}
    try:
        for name, paths in (("room", files), ("all", [copy / "tests"])):
            if not paths:
                continue
            options = ["-x", "-q", "-p", "no:cacheprovider", "-n", "2"]
            command = [sys.executable, "-m", "pytest", *options, *map(str, paths)]
            try:
                done = subprocess.run(
                    command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS[name], check=False
                )
            except subprocess.TimeoutExpired:
                return name
            if done.returncode not in (0, 5):
                return name
    finally:
        (copy / fault["file"]).write_bytes(before)
    return ""


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    z, share = 1.96, hits / n
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def run(path: Path) -> None:
    """Plant the faults of a file one after another, and write what noticed each into it."""
    faults: list[Fault] = json.loads(path.read_text())
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "repository"
        kept = shutil.ignore_patterns(".git", ".venv", "build", "dist", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=kept)
        (copy / "c3tools" / "cli").symlink_to(copy / "cli")
        for fault in faults:
            if not fault["equivalent"] and "noticed" not in fault:
                fault["noticed"] = noticed_by(fault, copy)
                path.write_text(json.dumps(faults, indent=1))
                shown = f"{fault['file']}:{fault['line']} {fault['kind']}"
                print(
                    f"{fault['noticed'] or 'SURVIVED':9} {shown}: {fault['old'][:60]!r} -> {fault['new'][:60]!r}",
                    flush=True,
                )
    judged = [fault for fault in faults if not fault["equivalent"]]
    hits = sum(bool(fault["noticed"]) for fault in judged)
    low, high = wilson(hits, len(judged))
    print(f"{hits} of {len(judged)} noticed: {hits / len(judged):.1%} ({low:.1%} to {high:.1%})")


def main() -> None:
    """Sample or run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    sampling = verbs.add_parser("sample")
    sampling.add_argument("--count", type=int, default=150)
    sampling.add_argument("--seed", type=int, default=0)
    verbs.add_parser("run").add_argument("file", type=Path)
    options = parser.parse_args()
    if options.verb == "run":
        run(options.file)
    else:
        print(json.dumps(sample(options.count, options.seed), indent=1))


if __name__ == "__main__":
    main()
