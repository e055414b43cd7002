"""Measure what one sample more costs the machine that starts a run: CPU time and memory of listing
tars, of opening and finishing a store, and of opening an index.

    python benchmarks/scale.py
    python benchmarks/scale.py --samples 20000 200000

Tars have images of 200 bytes with a caption each, stores have rows of 16 dimensions in shards of
100, and the index is Flat, whose codes of 64 bytes are as large as those of PQ64. Each step runs in
processes of its own, with one thread. A slope is the difference between the two numbers of samples,
from the least of three runs; memory is what a step adds to the peak of its preparation. It takes
two minutes on one core.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from measuring import print_table

from c3tools.corpus.reading import read_corpus
from c3tools.embedding.inputs import StoredInputs
from c3tools.identity import ModelIdentity
from c3tools.index.build import build_index
from c3tools.index.index import Index
from c3tools.store import Store, StoreInfo, StoreWriter, create_store
from c3tools.store.shards import moments_of, part_name, shard_table, write_rows

DIM, ROWS_OF_SHARD, ROUNDS = 16, 100, 3
CAPTION = "a caption of some words, number {}"


def write_tar(path: Path, samples: int) -> None:
    """Write a tar of images, which nothing decodes, with their captions."""
    with tarfile.open(path, "w") as archive:
        for number in range(samples):
            members = {"jpg": bytes(200), "txt": CAPTION.format(number).encode()}
            for suffix, content in members.items():
                header = tarfile.TarInfo(f"{number:08d}.{suffix}")
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))


def write_shards(path: Path, samples: int) -> StoreWriter:
    """Write a store of images in tiny shards, without its manifest."""
    info = StoreInfo(ModelIdentity(name="random"), DIM)
    create_store(path, info)
    writer = StoreWriter(path)
    random = np.random.default_rng(0)
    for part, start in enumerate(range(0, samples, ROWS_OF_SHARD)):
        keys = [f"{number:08d}" for number in range(start, start + ROWS_OF_SHARD)]
        vectors = random.standard_normal((len(keys), DIM), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        columns: dict[str, Sequence[object]] = {
            "key": keys,
            "path": [f"photos.tar#{key}.jpg" for key in keys],
            "size": [200] * len(keys),
            "split": ["train"] * len(keys),
        }
        table = shard_table(info, "image", vectors, columns)
        record = write_rows(path / part_name("image", part), info, "image", table)
        writer.add(("image", part), moments_of("image", table), record)
    return writer


def list_tar(work: Path, samples: int) -> Callable[[], object]:
    """Return the listing of a tar."""
    path = work / f"{samples}.tar"
    if not path.exists():
        write_tar(path, samples)
    return lambda: read_corpus(path)


def open_store(work: Path, samples: int) -> Callable[[], object]:
    """Return the opening of a store, with what a run compares its inputs with."""
    path = work / f"store-{samples}"
    if not path.exists():
        write_shards(path, samples).finish([])
    return lambda: StoredInputs.read(Store.open(path))


def finish_store(work: Path, samples: int) -> Callable[[], object]:
    """Return the end of a run that has written all shards of a store."""
    writer = write_shards(Path(tempfile.mkdtemp(dir=work)) / "store", samples)
    return lambda: writer.finish([])


def open_index(work: Path, samples: int) -> Callable[[], object]:
    """Return the opening of an index."""
    path = work / f"index-{samples}"
    if not path.exists():
        open_store(work, samples)
        build_index(work / f"store-{samples}", output=path, factory="Flat", preset="c1")
    return lambda: Index.open(path)


STEPS: dict[str, Callable[[Path, int], Callable[[], object]]] = {
    "listing a tar": list_tar,
    "opening a store": open_store,
    "finishing a store": finish_store,
    "opening an index": open_index,
}


def measure(step: str, work: Path, samples: int) -> None:
    """Prepare a step, and print the CPU seconds and the bytes that it takes."""
    run = STEPS[step](work, samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    run()
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([seconds, 1024 * grown]))


def least(step: str, work: Path, samples: int) -> tuple[float, float]:
    """Return the least CPU seconds and bytes of a step in several processes; the first one prepares
    it.
    """
    command = [sys.executable, __file__, "--step", step, "--work", str(work), "--samples"]
    command += [str(samples)] * 2
    runs = []
    for _ in range(1 + ROUNDS):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    seconds, sizes = zip(*runs[1:], strict=True)
    return min(seconds), min(sizes)


def main() -> None:
    """Print the slope of each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs=2, default=[10_000, 50_000])
    parser.add_argument("--step", choices=STEPS, help="measure one step in this process")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    few, many = arguments.samples
    if arguments.step:
        measure(arguments.step, arguments.work, many)
        return

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            seconds, size = least(step, Path(folder), few)
            more_seconds, more_size = least(step, Path(folder), many)
            microseconds = 1e6 * (more_seconds - seconds) / (many - few)
            sample = (more_size - size) / (many - few)
            times = [f"{seconds:.2f}", f"{more_seconds:.2f}"]
            rows.append([step, *times, f"{microseconds:.1f}", f"{sample:.0f}"])
    headings = [f"{few:,}, CPU s", f"{many:,}, CPU s", "µs a sample", "bytes a sample"]
    print_table(["", *headings], rows)


if __name__ == "__main__":
    main()
