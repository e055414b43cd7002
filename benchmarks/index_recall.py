"""Recall of the indexes that `c3 index` makes, and what a mixed index still prefers after each transform.

    c3 embed ../shared/data/flickr8k && python benchmarks/index_recall.py
    python benchmarks/index_recall.py --fast               # without product quantisation

First table: recall@10 against exact search (a float32 matrix product), after per-role centring. Queries are 200
embeddings of the other modality (of the index's own where it is mixed), so no query is a row that finds itself.

Second table: bias@10, the share of the ten nearest rows that have the query's own modality, in a balanced corpus of up
to 1,000 images and 1,000 texts of the test split, the query itself left out. 0.5 is none. Pipelines are fitted on the
train split.

Costs {cost} on 2 cores for 48,546 rows, nearly all of it the training of the two product quantisers. On Flickr8k with
c3-mini it should print at least 0.98 for Flat and SQfp16, and a bias of 1.00 before centring (c1), less after it
(gr-clip).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from c3tools.geometry.neighbours import modality_bias
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
SLOW_CASES = ((["text"], "OPQ32_128,IVF256,PQ32"), (["text"], "OPQ64_256,IVF256,PQ64"))
BIAS_PRESETS = ("c1", "gr-clip", "standardize", "whiten", "realign", "ridge", "procrustes")


def print_recall(store: Store, *, slow: bool) -> None:
    """One line per index."""
    pipeline = fit_on_store(preset("gr-clip"), store)
    print(f"{'rows':24} {'factory':24} {'nprobe':>6} {'recall@10':>9} {'seconds':>8}")
    for modalities, factory in CASES + (SLOW_CASES if slow else ()):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            record = index_store(store, pipeline, folder, modalities=modalities, factory=factory).record
            seconds = time.perf_counter() - start
        label = f"{record['rows']:,} {' + '.join(modalities)}"
        probes = record["nprobe"] or "-"
        print(f"{label:24} {record['factory']:24} {probes:>6} {record['recall@10']:9.3f} {seconds:8.1f}", flush=True)


def print_bias(store: Store) -> None:
    """One line per preset."""
    rows = {modality: store.load(modality, "test").embeddings for modality in ("image", "text")}
    print(f"\n{'bias@10 on test rows':24} {'image queries':>13} {'text queries':>13}")
    for name in BIAS_PRESETS:
        pipeline = fit_on_store(preset(name), store)
        image, text, _ = modality_bias(*(pipeline.transform(x, modality=modality) for modality, x in rows.items()))
        print(f"{name:24} {image:13.3f} {text:13.3f}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("c3-store"))
    parser.add_argument("--fast", action="store_true", help="leave out the product quantisers")
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    print_recall(store, slow=not arguments.fast)
    print_bias(store)


if __name__ == "__main__":
    main()
