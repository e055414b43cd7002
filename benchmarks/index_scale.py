"""Measure CPU seconds and peak memory of `c3 index` beside those of a plain script of numpy and
faiss and of a former commit, the latency of searches, and recall.

    python benchmarks/index_scale.py                                     # 2 x 250,000 rows
    python benchmarks/index_scale.py --rows 1000000 --before be69638b    # beside this commit

The store has `--rows` images and as many texts of 512 dimensions around 4,096 centres, imported
from arrays. The plain script reads the arrays, centres each modality, trains the index that
`--factory auto` chooses on as many rows, and adds all rows. CPU seconds and memory are those of the
process that builds; the machine may be busy meanwhile. Latencies are medians of five searches with
vectors.

With 2 x 250,000 rows it takes ten minutes on 2 cores and 3 GB of disk. `c3 index` should need at
most 1.3 times the CPU seconds of the plain script, and at most 1 GB beside the codes of all rows,
which measuring the recall holds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import processor_seconds
from same_results import Commit

DIM, CENTRES = 512, 4_096
SEARCH = """
import json, resource, statistics, sys, time
import numpy as np
import c3tools
start = time.process_time()
index = c3tools.Index.open(sys.argv[1])
result = {"open, CPU s": time.process_time() - start}
queries = np.load(sys.argv[2])[:100].astype(np.float32)
for count in (1, 10, 100):
    seconds = []
    for _ in range(5):
        start = time.process_time()
        index.rank(queries[:count], "text", 10)
        seconds.append(time.process_time() - start)
    result[f"{count} queries, CPU ms"] = 1000 * statistics.median(seconds)
result["memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(result))
"""
PLAIN = """
import sys
import faiss
import numpy as np
factory, wanted = sys.argv[3], int(sys.argv[4])
blocks = []
for path in sys.argv[1:3]:
    rows = np.load(path).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows -= rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    blocks.append(rows)
x = np.concatenate(blocks)
index = faiss.index_factory(x.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
if not index.is_trained:
    index.train(x[np.random.default_rng(0).choice(len(x), min(len(x), wanted), replace=False)])
index.add(x)
faiss.write_index(index, sys.argv[5])
"""


def write_vectors(folder: Path, count: int) -> None:
    """Write image.npy and text.npy: float16 (count, 512), rows of the same number alike."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(CENTRES, DIM)).astype(np.float32)
    gap = draw.normal(size=DIM).astype(np.float32)
    places = draw.integers(CENTRES, size=count)
    for name, side in (("image", 1), ("text", -1)):
        rows = np.empty((count, DIM), np.float16)
        for start in range(0, count, 50_000):
            block = rows[start : start + 50_000]
            noise = draw.normal(size=block.shape).astype(np.float32)
            block[:] = centres[places[start : start + 50_000]] + 0.8 * noise + side * gap
        np.save(folder / f"{name}.npy", rows)


def main() -> None:
    """Build, open and search with both commits, and build with the plain script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", help="a commit, to compare with")
    parser.add_argument("--rows", type=int, default=250_000, help="of each modality")
    parser.add_argument("--work", type=Path, help="where to write; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        work = Path(name)
        write_vectors(work, arguments.rows)
        commits = [Commit("after", None, work)]
        if arguments.before:
            commits.append(Commit("before", arguments.before, work))
        vectors = ["--image", work / "image.npy", "--text", work / "text.npy"]
        for commit in commits:
            commit.c3("import --store store --model synthetic", *vectors)
            environment = {**os.environ, "PYTHONPATH": str(commit.source)}
            words = ["from c3tools.cli import main; main()", "index", "--store", "store"]
            words += ["-o", "index", "--json", "record.json"]
            command = [sys.executable, "-P", "-c", *words]
            seconds, memory = processor_seconds(command, commit.project, environment)
            record = json.loads((commit.project / "record.json").read_text())
            found = commit.python(SEARCH, commit.project / "index", work / "text.npy")
            print(
                f"{commit.name}: {seconds:.0f} CPU s, {memory:,.0f} MB, {record['factory']}, "
                f"nprobe {record['nprobe']}, recall@10 {record['recall@10']:.3f}",
                flush=True,
            )
            print(f"    {found.strip()}", flush=True)
        cells = int(record["factory"].partition("IVF")[2].partition(",")[0] or 0)
        plain = [sys.executable, "-c", PLAIN, str(work / "image.npy"), str(work / "text.npy")]
        plain += [record["factory"], str(max(64 * cells, 65_536)), str(work / "plain.faiss")]
        seconds, memory = processor_seconds(plain, work, dict(os.environ))
        print(f"plain script: {seconds:.0f} CPU s, {memory:,.0f} MB")


if __name__ == "__main__":
    main()
