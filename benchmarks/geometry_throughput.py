"""Measure how long a gap report takes, compared with reading the shards and with the usual way in a
notebook.

    python benchmarks/geometry_throughput.py --folder geometry-benchmark --notebook

Writes synthetic stores (unit vectors that follow the model of the paper, d = 512, one caption per
image, float16), runs each task in a process of its own, in turn, and prints medians:

- moments: gap, effective dimensions and errors of the means, from the moments of the shards alone;
- read: read every shard with pyarrow, and nothing else;
- report: all measures of `c3 gap-report` in one pass over the rows, without drawing the page;
- notebook: everything in memory as float32, as in the notebooks of the paper (only with
  --notebook).

Takes about 2 GB of disk and ten minutes for a million pairs. It should print less than 2 s for the
moments, a report at 0.6 or more of the speed of reading, and a peak below 1.5 GiB.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

DIM = 512
PART_ROWS = 65_536
TASKS = ("moments", "read", "report")


def write_store(folder: Path, pairs: int) -> None:
    """Two sets of shards of ``pairs`` rows each, unless they are there."""
    from c3tools.identity import ModelIdentity
    from c3tools.store import (
        StoreInfo,
        StoreWriter,
        create_store,
        part_name,
        shard_table,
        write_rows,
    )

    parts = math.ceil(pairs / PART_ROWS)
    if (folder / "manifest.json").exists():
        return
    info = StoreInfo(ModelIdentity(name="synthetic"), DIM)
    create_store(folder, info)
    scale = np.exp(-np.arange(DIM) / 120).astype(np.float32) * 0.08
    for part in range(parts):
        rng = np.random.default_rng(part)
        count = min(PART_ROWS, pairs - part * PART_ROWS)
        content = rng.standard_normal((count, DIM), dtype=np.float32) * scale
        keys = [f"{part * PART_ROWS + row:09d}" for row in range(count)]
        columns = {
            "image": {"key": keys, "split": ["train"] * count},
            "text": {
                "key": [f"{key}#0" for key in keys],
                "image_key": keys,
                "split": ["train"] * count,
            },
        }
        for modality, sign in (("image", 1), ("text", -1)):
            rows = content + rng.standard_normal((count, DIM), dtype=np.float32) * 0.02
            rows[:, 0] += sign * 0.4
            rows[:, 1] += 0.6
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            table = shard_table(info, modality, rows, columns[modality])
            write_rows(folder / part_name(modality, part), info, modality, table)
    StoreWriter(folder).finish()


def run_moments(folder: Path) -> object:
    """Measure what moments alone give, without a single row."""
    from c3tools.geometry.measures import measure_modality
    from c3tools.store import Store

    store = Store.open(folder)
    moments = {name: store.moments(name) for name in ("image", "text")}
    found = {name: measure_modality(m) for name, m in moments.items()}
    return [
        float(np.linalg.norm(moments["image"].mean - moments["text"].mean)),
        *(m.effective_dimension for m in found.values()),
    ]


def run_read(folder: Path) -> object:
    """Run the limit: pyarrow decodes every column of every shard."""
    rows = 0
    for modality in ("image", "text"):
        for shard in sorted((folder / modality).glob("*.parquet")):
            with pq.ParquetFile(shard) as file:
                for batch in file.iter_batches(batch_size=8192):
                    rows += batch.num_rows
    return rows


def run_report(folder: Path) -> object:
    """Every measure of the report."""
    from c3tools.geometry.report import gap_report

    values = gap_report(folder).to_dict()
    return [
        values["gap"]["length"],
        values["pairs"]["paired_cosine"],
        values["pairs"]["residual_rms"],
    ]


def run_notebook(folder: Path) -> object:
    """Measure as notebooks do: both matrices in memory, means, covariances and differences of all
    pairs.
    """
    from c3tools.store import Store

    store = Store.open(folder)
    image, text = (store.load(name).embeddings for name in ("image", "text"))
    gap = np.linalg.norm(image.mean(axis=0) - text.mean(axis=0))
    spans = []
    for rows in (image, text):
        s = np.linalg.svd(np.cov(rows.T), compute_uv=False)
        spans.append(int(np.argmax(np.cumsum(s) / s.sum() > 0.99)) + 1)
    difference = image - text
    return [
        float(gap),
        *spans,
        float((image * text).sum(axis=1).mean()),
        float(difference.std(axis=0).mean()),
    ]


def one_task(task: str, folder: Path) -> None:
    """Run one task and print its seconds, beyond imports, and its peak memory as JSON."""
    run = {
        "moments": run_moments,
        "read": run_read,
        "report": run_report,
        "notebook": run_notebook,
    }[task]
    if task != "read":
        import c3tools.geometry.report  # noqa: F401  (start-up is not what is measured)
    start = time.perf_counter()
    result = run(folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "result": result}))


def measured(task: str, folder: Path) -> dict[str, Any]:
    """One task in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--store", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    """Write the stores, run the tasks, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("geometry-benchmark"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--notebook", action="store_true", help="also the notebook's way (4 GB for a million pairs)"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        one_task(arguments.task, arguments.store)
        return
    print(
        f"{'pairs':>10}  {'task':<9} {'seconds':>8} {'rows/s':>12} {'of reading':>10} "
        f"{'peak GiB':>9}"
    )
    for pairs in sorted(arguments.sizes):
        folder = arguments.folder / str(pairs)
        write_store(folder, pairs)
        ends = min(arguments.sizes), max(arguments.sizes)
        tasks = [*TASKS, *(["notebook"] if arguments.notebook and pairs in ends else [])]
        runs: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
        for _ in range(arguments.repeats):
            for task in tasks:
                if task != "notebook" or not runs[task]:
                    runs[task].append(measured(task, folder))
        medians = {
            task: statistics.median(run["seconds"] for run in found) for task, found in runs.items()
        }
        for task in tasks:
            ratio = medians["read"] / medians[task]
            peak = max(run["peak_gib"] for run in runs[task])
            rate = 2 * pairs / medians[task]
            print(
                f"{pairs:>10,}  {task:<9} {medians[task]:>8.2f} {rate:>12,.0f} {ratio:>10.2f} "
                f"{peak:>9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
