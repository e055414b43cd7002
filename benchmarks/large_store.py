"""Measure memory and time with millions of rows: `c3 means`, the moments of `c3 gap-report`, `c3 verify --sample`.

    python benchmarks/large_store.py --rows 1000000,10000000

For each number of rows, the script makes a store of synthetic rows in 100 shards, half images and half texts. Keys are
realistic and distinct; the embeddings are one block, repeated, with `--dim` 64 to save disk space. Each command runs in
a process of its own; its processor time and its peak resident memory are printed. Making ten million rows takes some
minutes of one core. It should print less than 1.5 GiB, and a time proportional to the number of rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from measuring import print_table

from c3tools.identity import ModelIdentity
from c3tools.store import StoreInfo, create_store, finish_store
from c3tools.store.shards import ROW_GROUP_ROWS, shard_schema, write_batches

SHARDS = 100
# a process knows its own peak; the one that its parent sees begins with the parent's
PEAK = """
import atexit, pathlib, sys, time
def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    print(time.process_time(), peak, file=sys.stderr)
atexit.register(peak)
"""
COMMAND = f"{PEAK}\nfrom c3tools.cli import main; main()"
MOMENTS = f"""{PEAK}
from c3tools.geometry.spectrum import gaps_between_modalities, measure_modality
from c3tools.store import Store
store = Store.open(sys.argv[1])
for name in store.modalities:
    measure_modality(store.moments(name))
gaps_between_modalities(store, split=None)
"""


def make(path: Path, rows: int, dim: int) -> None:
    """Write a store of as many image rows and texts, half each, in 100 shards."""
    info = StoreInfo(ModelIdentity(name="synthetic"), dim)
    create_store(path, info)
    draw = np.random.default_rng(0)
    block = draw.normal(size=(ROW_GROUP_ROWS, dim))
    block = (block / np.linalg.norm(block, axis=1, keepdims=True)).astype(np.float16)
    for modality in ("image", "text"):
        for part in range(SHARDS // 2):
            write_batches(path, info, modality, part, batches(info, modality, part, rows // SHARDS, block))
    finish_store(path)


def batches(info: StoreInfo, modality: str, part: int, rows: int, block: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Return the rows of one shard."""
    schema = shard_schema(modality, info)
    for start in range(0, rows, ROW_GROUP_ROWS):
        count = min(ROW_GROUP_ROWS, rows - start)
        images = [f"{part:05d}/{number:09d}" for number in range(start, start + count)]
        columns = {
            "key": images if modality == "image" else [f"{key}#0" for key in images],
            "image_key": images,
            "split": ["train"] * count,
        }
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(block[:count].reshape(-1)), info.dim)
            if field.name == "embedding"
            else pa.array(columns.get(field.name, [None] * count), type=field.type)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def measure(code: str, *arguments: object) -> tuple[float, float, float]:
    """Seconds by the clock and of the processor, and the largest memory in MiB, of Python code that ends well."""
    start = time.perf_counter()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr[-2000:]}")
    processor, peak = done.stderr.split()[-2:]
    return time.perf_counter() - start, float(processor), int(peak) / 1024


def main() -> None:
    """Make, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,10000000", help="numbers of rows, with commas")
    parser.add_argument("--dim", type=int, default=64)
    arguments = parser.parse_args()
    table = []
    for rows in map(int, arguments.rows.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            store = Path(temporary) / "store"
            start = time.perf_counter()
            make(store, rows, arguments.dim)
            size = sum(path.stat().st_size for path in store.rglob("*")) / 2**30
            print(f"{rows:,} rows made in {time.perf_counter() - start:,.0f} s, {size:.2f} GiB", file=sys.stderr)
            for name, code, *words in (
                ("c3 means", COMMAND, "means", "--store", store),
                ("moments of c3 gap-report", MOMENTS, store),
                ("c3 verify --sample", COMMAND, "verify", "--sample", "0.1", store),
            ):
                seconds, processor, memory = measure(code, *words)
                table.append((f"{rows:,}", name, f"{seconds:.1f}", f"{processor:.1f}", f"{memory:,.0f}"))
    print_table(("rows", "command", "seconds", "of the processor", "peak memory, MiB"), table)


if __name__ == "__main__":
    main()
