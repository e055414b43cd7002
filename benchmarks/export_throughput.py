"""Compare the throughput of `c3 export` with a pyarrow program that only reads and writes the same shards.

    python benchmarks/export_throughput.py                    # 1,000,000 rows of 512 dimensions
    python benchmarks/export_throughput.py --rows 100000

Makes a store of synthetic image and text embeddings (float16, 65,536 rows per shard), copies it with pyarrow alone
(read in batches, write with the same settings), and exports it with the preset c3. Each is run several times in turn,
in a process of its own. Ratios are computed within a round, because the speed of the machine varies.

Takes about 3 GB of disk and 10 minutes on 2 cores. It should print ratios of at least 0.6 for 1 worker with noise on
the texts, a peak below 1 GiB, and the same bytes with 1 and 4 workers; measurements are in docs/results/search.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SHARD_ROWS = 65_536
DIM = 512
TASKS = {
    "pyarrow": "pyarrow read + write",
    "inference": "c3 export, inference inputs",
    "auto": "c3 export, texts noised",
    "training": "c3 export, all rows noised",
}


def make_store(folder: Path, rows: int) -> None:
    """Half images, half texts, unit rows of two narrow cones."""
    from c3tools.identity import ModelIdentity
    from c3tools.store import Shard, StoreInfo, create_store, write_shard

    rng = np.random.default_rng(0)
    info = StoreInfo(ModelIdentity(name="synthetic"), DIM)
    create_store(folder, info)
    for modality in ("image", "text"):
        cone = rng.normal(size=DIM).astype(np.float32)
        for part, start in enumerate(range(0, rows // 2, SHARD_ROWS)):
            n = min(SHARD_ROWS, rows // 2 - start)
            x = rng.standard_normal((n, DIM), dtype=np.float32) + cone
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            keys = [f"{start + i:09d}" for i in range(n)]
            columns = {"key": keys, "split": ["train"] * n}
            if modality == "text":
                columns |= {"image_key": keys, "caption": [f"a photo of the thing with number {k}" for k in keys]}
            else:
                columns["path"] = [f"{key[:5]}/{key}.jpg" for key in keys]
            write_shard(folder, info, Shard(modality, part, x, columns))


def copy_with_pyarrow(store: Path, output: Path, workers: int) -> None:
    """Run the limit: batches in, the same batches out."""
    import pyarrow.parquet as pq

    from c3tools.store.shards import parquet_writer

    def copy(path: Path) -> None:
        target = output / path.relative_to(store)
        target.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetFile(path) as file, parquet_writer(target, file.schema_arrow, split_bytes=False) as writer:
            for batch in file.iter_batches(batch_size=8192):
                writer.write_batch(batch)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(copy, sorted(store.glob("*/part-*.parquet"))))


def export_with_c3(store: Path, output: Path, workers: int, role: str) -> None:
    """Return the preset c3, fitted on the store's moments."""
    from c3tools.export import export_store

    export_store(store, output, preset="c3", role=role, workers=workers)


def measured(task: str, store: Path, output: Path, workers: int) -> dict[str, float]:
    """Run one task in a process of its own: seconds without start-up, and peak memory in MiB."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, __file__, "--task", task, str(store), str(output), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run_task(task: str, store: Path, output: Path, workers: int) -> None:
    """Body of the process that `measured` starts."""
    import c3tools.export  # noqa: F401  imports are not part of the throughput

    start, cpu = time.perf_counter(), time.process_time()
    if task == "pyarrow":
        copy_with_pyarrow(store, output, workers)
    else:
        export_with_c3(store, output, workers, task)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu, "peak": peak_memory()}))


def peak_memory() -> float:
    """Peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, not inherited from the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def digest(folder: Path) -> str:
    """Hash of all data files of an export, by name."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet")):
        total.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="where to put the data; a temporary folder by default")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task, store, output, workers = arguments.task
        run_task(task, Path(store), Path(output), int(workers))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        store, output = folder / "store", folder / "output"
        if not store.exists():
            make_store(store, arguments.rows)
        print(f"{arguments.rows:,} rows of {DIM} dimensions, float16, median of {arguments.rounds} rounds")
        print(f"{'task':32} {'workers':>7} {'rows/s':>10} {'ratio':>6} {'CPU ratio':>9} {'peak MiB':>9}")
        for workers in arguments.workers:
            runs: dict[str, list[dict[str, float]]] = {task: [] for task in TASKS}
            for _ in range(arguments.rounds):
                for task, results in runs.items():
                    results.append(measured(task, store, output, workers))
            for task, results in runs.items():
                pairs = list(zip(runs["pyarrow"], results, strict=True))
                ratio = statistics.median(bare["seconds"] / run["seconds"] for bare, run in pairs)
                cpu = statistics.median(bare["cpu"] / run["cpu"] for bare, run in pairs)
                speed = arguments.rows / statistics.median(run["seconds"] for run in results)
                peak = max(run["peak"] for run in results)
                print(f"{TASKS[task]:32} {workers:7} {speed:10,.0f} {ratio:6.2f} {cpu:9.2f} {peak:9.0f}", flush=True)
        digests = set()
        for workers in (1, 4):
            measured("auto", store, output, workers)
            digests.add(digest(output))
        print("same bytes with 1 and 4 workers:", "yes" if len(digests) == 1 else "NO")


if __name__ == "__main__":
    main()
