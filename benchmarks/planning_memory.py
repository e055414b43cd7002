"""Measure memory and time of planning, of continuing a store, and of `c3 verify`, as the inputs grow.

    python benchmarks/planning_memory.py --rows 1000000,2000000,5000000,10000000

For each number of rows, the script makes captions in Parquet (ten files), a list of half as many paths with a caption
each (the keys are realistic and distinct; they name 1,000 small files), and a store that contains nine tenths of the
captions. Each measurement runs in a process of its own: ``plan`` reads the captions or the list and plans a new store,
``continue`` plans the rest of the captions, and ``verify`` reads the rows of one shard in a hundred and the keys of all
shards. No model is run.

Ten million rows need about 15 GiB of disk, half of it for temporary files, and half an hour of one core. It should
print less than 1 GiB for planning, less than 300 MiB for verifying, and a time proportional to the number of rows.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from large_store import COMMAND, PEAK, measure
from measuring import print_table

from c3tools.identity import ModelIdentity
from c3tools.store import StoreInfo, create_store, finish_store
from c3tools.store.shards import shard_schema, write_batches

FILES = 10
PHOTOS = 1_000
SHARD_ROWS = 8_192
DIM = 16
PLAN = f"""{PEAK}
from c3tools.corpus import read_corpus
from c3tools.embedding.plan import plan_corpus
from c3tools.store import Store
store, inputs, column, expected = sys.argv[1:]
corpus = read_corpus(inputs, image_column=column or None)
plans = plan_corpus(Store.open(store, incomplete=True), corpus)
planned = sum(len(items) for plan in plans.values() for _, items in plan.shards)
assert planned == int(expected), (planned, expected)
"""


def key_of(number: int) -> str:
    """Return a key; keys are in no order, as those of web data are."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def caption_of(number: int) -> str:
    """Return a caption of ordinary length."""
    return f"a photo of thing {number} beside another thing, taken on a sunny afternoon"


def make_captions(folder: Path, rows: int) -> None:
    """Write captions in ten Parquet files."""
    folder.mkdir()
    for number in range(FILES):
        with pq.ParquetWriter(folder / f"texts-{number}.parquet", pa.schema([("caption", pa.string())])) as writer:
            first, last = number * rows // FILES, (number + 1) * rows // FILES
            for start in range(first, last, SHARD_ROWS):
                captions = [caption_of(n) for n in range(start, min(start + SHARD_ROWS, last))]
                writer.write_table(pa.table({"caption": captions}))


def make_list(folder: Path, rows: int) -> None:
    """Write a list of paths with keys and captions, and the files they name."""
    folder.mkdir()
    for number in range(PHOTOS):
        (folder / f"{number}.jpg").write_bytes(b"x")
    with (folder / "list.csv").open("w", encoding="utf-8") as file:
        file.write("path,key,caption\n")
        file.writelines(f'{n % PHOTOS}.jpg,{key_of(n)},"{caption_of(n)}"\n' for n in range(rows))


def make_store(path: Path, rows: int, captions: int) -> None:
    """Write a store of the first rows of the ``captions`` in `make_captions`, with their keys."""
    info = StoreInfo(ModelIdentity(name="synthetic"), DIM)
    create_store(path, info)
    for part, start in enumerate(range(0, rows, SHARD_ROWS)):
        write_batches(path, info, "text", part, batches(info, start, min(start + SHARD_ROWS, rows), captions))
    finish_store(path)


def batches(info: StoreInfo, start: int, stop: int, captions: int) -> Iterator[pa.RecordBatch]:
    """Return the rows of one shard."""
    schema = shard_schema("text", info)
    block = np.zeros((stop - start, DIM), np.float16)
    block[:, 0] = 1
    per_file = captions // FILES
    columns = {
        "key": [f"texts-{n // per_file}:{n % per_file + 1}" for n in range(start, stop)],
        "caption": [caption_of(n) for n in range(start, stop)],
    }
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), DIM)
        if field.name == "embedding"
        else pa.array(columns.get(field.name, [None] * (stop - start)), type=field.type)
        for field in schema
    ]
    yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def main() -> None:
    """Make, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,2000000", help="numbers of captions, with commas")
    arguments = parser.parse_args()
    table = []
    for rows in map(int, arguments.rows.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            begun = time.perf_counter()
            make_captions(folder / "captions", rows)
            make_list(folder / "list", rows // 2)
            make_store(folder / "store", rows * 9 // 10, rows)
            create_store(folder / "empty", StoreInfo(ModelIdentity(name="synthetic"), DIM))
            print(f"{rows:,} rows made in {time.perf_counter() - begun:,.0f} s", file=sys.stderr)
            texts = f"{folder}/captions/*.parquet"
            for name, code, count, *words in (
                ("plan captions", PLAN, rows, folder / "empty", texts, "", rows),
                ("plan a list", PLAN, rows // 2, folder / "empty", folder / "list/list.csv", "path", rows // 2 * 2),
                ("continue", PLAN, rows, folder / "store", texts, "", rows - rows * 9 // 10),
                ("c3 verify", COMMAND, rows * 9 // 10, "verify", "--sample", "0.01", folder / "store"),
            ):
                seconds, processor, memory = measure(code, *words)
                per_million = f"{processor / count * 1e6:.1f}"
                table.append((name, f"{count:,}", f"{seconds:.0f}", f"{processor:.0f}", per_million, f"{memory:,.0f}"))
                print(*table[-1], file=sys.stderr)
    print_table(("what", "rows", "seconds", "of the processor", "per million", "peak memory, MiB"), table)


if __name__ == "__main__":
    main()
