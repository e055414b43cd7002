"""Recall of the indexes that `c3 index` makes, against exact search, and the bias of a mixed index.

    c3 embed ../shared/data/flickr8k && python benchmarks/index_recall.py

Queries are 200 embeddings of the other modality (of the index's own where it is mixed), so no query is a row that
finds itself; exact search is a float32 matrix product. --slow adds product quantisation after a rotation, which takes
minutes to train.

Costs about a minute on 2 cores for 48,546 rows. On Flickr8k with c3-mini it should print at least 0.98 for Flat and
SQfp16, about 1.00 for the bias before centring and less after.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from c3tools.jobs.fitting import fit_on_store
from c3tools.jobs.index import index_store
from c3tools.store import Store
from c3tools.transforms import preset

CASES = (
    (["image"], "auto"),
    (["text"], "auto"),
    (["text"], "Flat"),
    (["text"], "SQfp16"),
    (["text"], "HNSW32"),
    (["image", "text"], "auto"),
)
SLOW_CASES = ((["text"], "OPQ32_128,IVF256,PQ32"),)


def main() -> None:
    """Print one line per index."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("c3-store"))
    parser.add_argument("--slow", action="store_true")
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    pipeline = fit_on_store(preset("gr-clip"), store)
    print(f"{'rows':24} {'factory':24} {'nprobe':>6} {'recall@10':>9} {'seconds':>8}")
    for modalities, factory in CASES + (SLOW_CASES if arguments.slow else ()):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            report = index_store(store, pipeline, folder, modalities=modalities, factory=factory)
            seconds = time.perf_counter() - start
        record = report.record
        label = f"{record['rows']:,} {' + '.join(modalities)}"
        probes = record["nprobe"] or "-"
        print(f"{label:24} {record['factory']:24} {probes:>6} {record['recall@10']:9.3f} {seconds:8.1f}", flush=True)
        for name in modalities if report.bias else ():
            before, after = report.bias["before"][name], report.bias["after"][name]
            print(f"    bias@10 of {name} queries: {before:.3f} before centring, {after:.3f} after (0.5 is none)")


if __name__ == "__main__":
    main()
