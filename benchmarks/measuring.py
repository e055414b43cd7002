"""Tools of several benchmarks: commands with their time and memory, the peer's command, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

# a process knows its own peak; the one that its parent sees begins with the parent's
PEAK = """
import atexit, pathlib, sys
def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), file=sys.stderr)
atexit.register(peak)
"""
C3 = [sys.executable, "-P", "-c", f"{PEAK}\nfrom c3tools.cli import main; main()"]
MODEL = "ViT-B-32"


@dataclass(frozen=True)
class Run:
    """A command that has ended: its wall-clock time, its peak memory if it has `PEAK`, and what it
    printed.
    """

    seconds: float
    peak_mib: float
    stdout: str


def run(command: Sequence[object]) -> Run:
    """Run a command to its end; one that fails ends the benchmark with what it said."""
    start = time.perf_counter()
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    last = done.stderr.split()[-1:] or ["0"]
    return Run(
        time.perf_counter() - start, int(last[0]) / 1024 if last[0].isdigit() else 0.0, done.stdout
    )


def processor_seconds(
    command: list[str], folder: Path, environment: dict[str, str]
) -> tuple[float, float]:
    """Run a command in a folder, where what it prints is kept in output.txt, and return its CPU
    seconds and its peak memory in MB.
    """
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            output.seek(0)
            sys.exit(f"{command} failed:\n{output.read()[-3000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def c3_embed(inputs: Path, store: Path, *options: object) -> tuple[dict[str, Any], Run]:
    """Run `c3 embed --json` into a new store; return what it says of itself, and the run."""
    done = run([*C3, "embed", inputs, "--store", store, *options, "--json"])
    return json.loads(done.stdout), done


def clip_retrieval(command: Path, inputs: Path, output: Path, weights: Path, kind: str) -> float:
    """Run `clip-retrieval inference` on ``image`` or ``text`` files; return items per second by its
    own clock.

    Its clock starts after loading and warming up.
    """
    options = [f"--enable_{name}={name == kind}" for name in ("image", "text")]
    model = f"--clip_model=open_clip:{MODEL}/{weights}"
    places = [f"--input_dataset={inputs}", f"--output_folder={output}"]
    run([command, "inference", *places, model, "--enable_metadata=False", *options])
    stats = [json.loads(path.read_text()) for path in (output / "stats").glob("*.json")]
    seconds = max(s["end_time"] for s in stats) - min(s["start_time"] for s in stats)
    return float(sum(s["sample_count"] for s in stats) / seconds)


def random_weights(path: Path) -> Path:
    """Write a file with random weights of the benchmark's model, the same for everybody who reads
    it.
    """
    if not path.exists():
        import open_clip
        import torch

        torch.manual_seed(0)
        torch.save(open_clip.create_model(MODEL).state_dict(), path)
    return path


def timed(work: Callable[[], int]) -> float:
    """Return the items per second of a function that returns how many it did."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean ± sample standard deviation, the latter where there are several values."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
