"""Run commands one at a time and measure their time and peak memory, for the embedding benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

C3 = [sys.executable, "-c", "from c3tools.cli import main; main()"]
MODEL = "ViT-B-32"


@dataclass(frozen=True)
class Run:
    """A command that has ended.

    Attributes:
        seconds: wall-clock time of the whole command, start-up included.
        peak_mib: peak resident memory of its main process.
        tree_mib: largest memory of the process and its children together, shared pages counted once (PSS).
        stdout: what it printed.
    """

    seconds: float
    peak_mib: float
    tree_mib: float
    stdout: str


def run(command: Sequence[object], **options: Any) -> Run:
    """Run a command to its end; one that fails ends the benchmark with what it said."""
    start = time.perf_counter()
    words = [str(word) for word in command]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    peak = tree = 0.0
    while True:
        try:
            stdout, stderr = process.communicate(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, _status(process.pid, "status", "VmHWM"))
            tree = max(tree, sum(_status(pid, "smaps_rollup", "Pss") for pid in family(process.pid)))
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{stderr[-3000:]}")
    return Run(seconds, peak, tree, stdout)


def c3_embed(inputs: Path, store: Path, model: Sequence[object], *options: object) -> tuple[dict[str, Any], Run]:
    """`c3 embed --json` into a new store: what it says of itself, and the run."""
    done = run([*C3, "embed", inputs, "--store", store, *model, *options, "--json"])
    return json.loads(done.stdout), done


def clip_retrieval(command: Path, inputs: Path, output: Path, weights: Path, kind: str) -> tuple[float, Run]:
    """`clip-retrieval inference` on ``image`` or ``text`` files: items per second by its own clock, and the run.

    Its clock starts after loading and warming up.
    """
    options = [f"--enable_{name}={name == kind}" for name in ("image", "text")]
    done = run(
        [
            command,
            "inference",
            f"--input_dataset={inputs}",
            f"--output_folder={output}",
            f"--clip_model=open_clip:{MODEL}/{weights}",
            "--enable_metadata=False",
            *options,
        ]
    )
    stats = [json.loads(path.read_text()) for path in (output / "stats").glob("*.json")]
    seconds = max(s["end_time"] for s in stats) - min(s["start_time"] for s in stats)
    return sum(s["sample_count"] for s in stats) / seconds, done


def random_weights(path: Path) -> Path:
    """Write a file with random weights of the benchmark's model, the same for everybody who reads it."""
    if not path.exists():
        import open_clip
        import torch

        torch.manual_seed(0)
        torch.save(open_clip.create_model(MODEL).state_dict(), path)
    return path


def timed(work: Callable[[], int]) -> float:
    """Items per second of a function that returns how many it did."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def copy_files(sources: Sequence[Path], folder: Path) -> Path:
    """Make a folder with copies of these files: a part of a corpus."""
    folder.mkdir(parents=True)
    for source in sources:
        shutil.copyfile(source, folder / source.name)
    return folder


def processor_seconds() -> float:
    """Processor time that this process, those it started and those that they started have taken; of Linux."""
    ticks = 0
    for pid in family(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])  # own, and of children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def peer_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the peer's command."""
    parser.add_argument(
        "--peer", type=Path, help="clip-retrieval's command, in its own environment; left out where not given"
    )


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Return a Markdown table."""
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def _status(pid: int, file: str, name: str) -> float:
    """Return a field of /proc/PID/FILE in MiB; 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
    except (OSError, StopIteration):
        return 0.0


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it and still run."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found
