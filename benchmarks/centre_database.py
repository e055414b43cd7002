"""Measure what it costs to centre the vectors of a database: fit, transform, merge two searches.

    python benchmarks/centre_database.py                     # 2 million vectors of 512 dimensions

Vectors are random, around a mean for each modality. A calibration is fitted on `--sample` of each
modality. All rows are then transformed in batches, which are drawn anew and thrown away, and the
hits of two searches are merged for 100 queries.

Takes a minute on 2 cores. It should print at most a few CPU seconds for each step, and a peak of
memory that does not depend on `--rows`.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import numpy.typing as npt

import c3tools
from c3tools.seeds import generator

BATCH = 50_000
QUERIES, HITS = 100, 100


def draw(rows: int, dim: int, modality: str, number: int) -> npt.NDArray[np.float32]:
    """Return unit rows around a mean of their modality, float32."""
    random = generator(0, "centre database", modality, number)
    vectors = random.standard_normal((rows, dim), np.float32)
    vectors[:, 0 if modality == "image" else 1] += np.float32(np.sqrt(dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def main() -> None:
    """Print the CPU seconds of each step, and the peak of memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2_000_000, help="vectors of all modalities")
    parser.add_argument("--sample", type=int, default=10_000, help="of each modality, to fit on")
    parser.add_argument("--dim", type=int, default=512)
    arguments = parser.parse_args()

    # Fit
    sample = {name: draw(arguments.sample, arguments.dim, name, 0) for name in ("image", "text")}
    start = time.process_time()
    calibration = c3tools.Calibration.fit(sample)
    print(f"fit on 2 x {arguments.sample:,} vectors: {time.process_time() - start:.2f} CPU s")

    # Transform
    seconds = 0.0
    for number in range(arguments.rows // BATCH):
        modality = ("image", "text")[number % 2]
        batch = draw(BATCH, arguments.dim, modality, 1 + number)
        start = time.process_time()
        calibration.pipeline.transform(batch, modality=modality)
        seconds += time.process_time() - start
    print(f"transform {arguments.rows:,} vectors: {seconds:.2f} CPU s")

    # Merge
    queries = calibration.pipeline.transform(sample["text"][:QUERIES], modality="text")
    best = np.arange(HITS)
    scores = {
        name: np.sort(queries @ rows.T, axis=1)[:, ::-1][:, :HITS] for name, rows in sample.items()
    }
    start = time.process_time()
    for number, query in enumerate(queries):
        found = {name: (best, rows[number]) for name, rows in scores.items()}
        calibration.merge(query, found, k=10)
    seconds = time.process_time() - start
    print(f"merge 2 x {HITS} hits: {1000 * seconds / QUERIES:.2f} CPU ms per query")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
