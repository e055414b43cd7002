"""Run commands one at a time and measure their time and peak memory, for the embedding benchmarks."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c3tools.metrics.significance import mean_and_std

C3 = [sys.executable, "-P", "-c", "from c3tools.cli import main; main()"]
MODEL = "ViT-B-32"
ROOT = Path(__file__).resolve().parents[1]


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


def c3_embed(
    inputs: Path, store: Path, model: Sequence[object], *options: object, source: Path | None = None
) -> tuple[dict[str, Any], Run]:
    """`c3 embed --json` into a new store: what it says of itself, and the run; of the `checkout` at ``source``."""
    environment = os.environ | ({"PYTHONPATH": str(source)} if source else {})
    done = run([*C3, "embed", inputs, "--store", store, *model, *options, "--json"], env=environment)
    return json.loads(done.stdout), done


def checkout(commit: str, folder: Path) -> Path:
    """Write the package of a commit to a folder, to be imported from there with the packages that are installed."""
    archive = subprocess.run(["git", "archive", commit], check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    (folder / "cli").rename(folder / "c3tools" / "cli")
    return folder


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


def operations(model: str, modality: str, length: int = 16) -> tuple[float, int]:
    """Return floating-point operations of one image, or of a text of so many tokens, and the bytes of the weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from c3tools.encoders import load_encoder
    from c3tools.encoders.backends.towers import use_plain_attention

    encoder = load_encoder(model, device="cpu", backend="torch", precision="fp32")
    tower: Any = encoder.backend._forward[modality]  # type: ignore[attr-defined]
    if modality == "image":
        batch = torch.zeros((1, *encoder.preprocess.size, 3), dtype=torch.uint8)
    else:
        batch = torch.as_tensor(encoder.tokenise(["a dog"])[:, :length])
    use_plain_attention(tower.model)  # the counter does not look into torch's own
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tower(batch)
    network = tower.model
    own = network.visual if modality == "image" else getattr(network, "text", None) or network.transformer
    return counter.get_total_flops(), sum(4 * weights.numel() for weights in own.parameters())


def matrix_product(precision: str) -> float:
    """Return the operations per second of a large matrix product on all threads: the best of five."""
    import torch

    size = 2048
    a, b = (torch.ones(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32) for _ in range(2))
    if precision == "int8":
        a, b = a.to(torch.int8), b.to(torch.int8)
    product = torch._int_mm if precision == "int8" else torch.mm
    return max(timed(lambda: len(product(a, b)) * 2 * size**2) for _ in range(6))


def copy_bandwidth() -> float:
    """Return bytes per second that a copy on all threads reads and writes: the median of five."""
    import torch

    source = torch.ones(2**26)  # 256 MiB, more than any cache
    target = torch.empty_like(source)
    return statistics.median(timed(lambda: target.copy_(source).numel() * 8) for _ in range(6))


def what_limits(model: str, modality: str, rate: float, precision: str, batch: int, length: int = 16) -> str:
    """Return a sentence: what a rate asks of the machine's products and memory, and what these reach by themselves."""
    flops, weights = operations(model, modality, length)
    reached, possible = rate * flops, matrix_product(precision)
    moved, bandwidth = rate / batch * weights, copy_bandwidth()
    share, of_memory = reached / possible, moved / bandwidth
    verdict = (
        "the products are the limit"
        if share > 0.6
        else "memory is the limit"
        if of_memory > 0.6
        else "the limit is between them: layers too small to fill the cores, their activations, decoding"
    )
    return (
        f"{rate:,.1f} {modality}s/s in {precision} are {reached / 1e9:,.0f} GFLOP/s of {flops / 1e9:.2f} GFLOP each, "
        f"{share:.0%} of this machine's own matrix product in {precision} ({possible / 1e9:,.0f}); reading the weights "
        f"for every batch of {batch} takes {moved / 1e9:.2f} GB/s, {of_memory:.0%} of what a copy reaches "
        f"({bandwidth / 1e9:.1f}): {verdict}."
    )


def peer_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the peer's command."""
    parser.add_argument(
        "--peer", type=Path, help="clip-retrieval's command, in its own environment; left out where not given"
    )
    parser.add_argument("--before", metavar="COMMIT", help="a commit of c3tools to measure beside this one")


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean ± sample standard deviation, the latter where there are several values."""
    mean, std = mean_and_std(values)
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


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
