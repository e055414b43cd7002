"""Measure the memory of trainings that read rows from a temporary file, and the time until the first step.

    python benchmarks/training_memory.py --rows 300000,3000000

For each number of captions, the script makes a store of synthetic embeddings (512 dimensions, float16, five captions
per image, 500 images in the split val) and runs two commands on it, each in a process of its own: `c3 train-decoder
--size tiny` and `c3 connect heads`. It interrupts each after a few steps, as Ctrl-C does, so that the state is saved.
The table shows the peak resident memory, the seconds until the first step began, and the seconds per step.

Three million captions take 3.7 GB of disk for the store, as much for temporary files (in TMPDIR), and about 10 minutes
on 2 cores, half of it to make the store. It should print less than 2 GiB (measured: 1.1 GiB and 1.9 GiB).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from measuring import print_table

from c3tools.identity import ModelIdentity
from c3tools.reporter import Progress, Reporter
from c3tools.store import StoreInfo, create_store, finish_store
from c3tools.store.shards import ROW_GROUP_ROWS, shard_schema, write_batches

DIM = 512
CAPTIONS = 5
VAL_IMAGES = 500
SHARD_ROWS = 100_000
WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "woman",
    "child",
    "horse",
    "red",
    "small",
    "old",
    "runs",
    "sits",
    "jumps",
    "sleeps",
    "on",
    "in",
    "near",
    "under",
    "grass",
    "beach",
]
COMMANDS = ("train-decoder", "connect heads")


def make(path: Path, rows: int) -> None:
    """Write a store of so many captions, and of a fifth as many images."""
    info = StoreInfo(ModelIdentity(name="synthetic"), DIM)
    create_store(path, info)
    for modality, count in (("image", rows // CAPTIONS), ("text", rows)):
        for part, start in enumerate(range(0, count, SHARD_ROWS)):
            write_batches(path, info, modality, part, batches(info, modality, start, min(start + SHARD_ROWS, count)))
    finish_store(path)


def batches(info: StoreInfo, modality: str, first: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows ``first`` to ``stop`` of one modality: an embedding is its image's, its modality's and noise."""
    schema = shard_schema(modality, info)
    for start in range(first, stop, ROW_GROUP_ROWS):
        numbers = np.arange(start, min(start + ROW_GROUP_ROWS, stop))
        images = numbers // CAPTIONS if modality == "text" else numbers
        draw = np.random.default_rng((modality == "text", start))
        named = np.random.default_rng(0).normal(size=(97, DIM)).astype(np.float32)
        values = named[images % 97] + draw.standard_normal((len(numbers), DIM), np.float32) + (modality == "text")
        values = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)
        keys = [f"{image:09d}" for image in images]
        words = draw.integers(len(WORDS), size=(len(numbers), 11))
        columns = {
            "key": keys if modality == "image" else [f"{k}#{n % CAPTIONS}" for k, n in zip(keys, numbers, strict=True)],
            "image_key": keys,
            "caption": [" ".join(WORDS[word] for word in row) for row in words],
            "split": ["val" if image < VAL_IMAGES else "train" for image in images],
        }
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), info.dim)
            if field.name == "embedding"
            else pa.array(columns.get(field.name, [None] * len(numbers)), type=field.type)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


class Interrupting(Reporter):
    """A reporter that presses Ctrl-C after some steps of the training, and notes when the first one began."""

    def __init__(self, steps: int) -> None:
        self.start = time.perf_counter()
        self.steps, self.first, self.last = steps, 0.0, 0.0

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        """Count the steps of the progress that is called after the training, not of reading."""
        yield _Steps(self) if label.startswith(("Training", "Connecting")) else Progress()


class _Steps(Progress):
    def __init__(self, owner: Interrupting) -> None:
        self._owner, self._done = owner, 0
        owner.first = owner.last = time.perf_counter()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count ``count`` steps."""
        self._done += count
        self._owner.last = time.perf_counter()
        if count and self._done == self._owner.steps:
            signal.raise_signal(signal.SIGINT)


def train(command: str, store: Path, output: Path, steps: int) -> dict[str, float]:
    """Train a few steps in this process, and return its memory in MiB and the seconds."""
    reporter = Interrupting(steps)
    try:
        if command == "train-decoder":
            from c3tools import train_captioner

            train_captioner(store, output=output, size="tiny", device="cpu", precision="fp32", reporter=reporter)
        else:
            from c3tools.connect import connect_heads, read_features

            connect_heads(read_features(store=store), output, device="cpu", precision="fp32", reporter=reporter)
    except KeyboardInterrupt:
        pass
    return {
        "memory": peak_memory(),
        "first": reporter.first - reporter.start,
        "step": (reporter.last - reporter.first) / steps,
    }


def peak_memory() -> float:
    """Return the largest resident memory of this process in MiB; getrusage would begin with that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    """Parse, make the stores, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="300000", help="numbers of captions")
    parser.add_argument("--steps", type=int, default=30, help="of each training")
    parser.add_argument("--folder", type=Path, help="keep the stores here, and use those that are there")
    parser.add_argument("--train", nargs=3, metavar=("COMMAND", "STORE", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        command, store, output = arguments.train
        print(json.dumps(train(command, Path(store), Path(output), arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = []
        for rows in (int(count) for count in arguments.rows.replace("_", "").split(",")):
            store = (arguments.folder or Path(temporary)) / f"captions-{rows}"
            if not store.is_dir():
                make(store, rows)
            for command in COMMANDS:
                output = Path(temporary) / f"{command}-{rows}"
                again = [sys.executable, __file__, "--steps", str(arguments.steps)]
                done = subprocess.run(
                    [*again, "--train", command, store, output], capture_output=True, text=True, check=False
                )
                if done.returncode != 0:
                    raise SystemExit(
                        f"{command} on {rows:,} captions ended with {done.returncode}: {done.stderr[-2000:]}"
                    )
                took = json.loads(done.stdout.splitlines()[-1])
                cells = [f"{took['memory']:,.0f}", f"{took['first']:.0f}", f"{took['step']:.3f}"]
                found.append([f"c3 {command}", f"{rows:,}", *cells])
    print_table(("", "captions", "memory, MiB", "seconds to the first step", "seconds a step"), found)


if __name__ == "__main__":
    main()
