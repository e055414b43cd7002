"""Measure the recall of the indexes that `c3 index` builds, and the modality bias of a mixed index
by preset.

    c3 embed flickr8k && python benchmarks/index_recall.py
    python benchmarks/index_recall.py --quantised          # also product quantisation after a
    rotation

The first table shows recall@10 compared with exact search (a float32 matrix product), after each
modality was centred. The 200 queries are embeddings of the other modality (for a mixed index, of
its own), so no query finds itself.

The second table shows bias@10, the share of the ten nearest rows that have the modality of the
query, in corpora of 100 items of the test split with one row of each modality, without the query
itself. 0.5 means no bias. Beside it are recall@1 on the whole test split, and the spreads of the
cosines within and between the modalities. Pipelines are fitted on the train split.

Takes about a minute on 2 cores for 48,546 rows; --quantised adds 12 minutes of processor time, most
of it to train two rotations. On Flickr8k with c3-mini it should print at least 0.98 for Flat and
SQfp16, 0.85 and 0.90 for the product quantisers, and a bias of 1.00 before centring (c1) that is a
few hundredths lower after it (gr-clip).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from c3tools.geometry.spaces import modality_bias
from c3tools.index import build_index
from c3tools.metrics.retrieval import pair_hits
from c3tools.store import Pairs, Store
from c3tools.transforms import preset

CASES = (
    (["image"], "auto"),
    (["text"], "auto"),
    (["text"], "Flat"),
    (["text"], "SQfp16"),
    (["image", "text"], "auto"),
)
SLOW_CASES = ((["text"], "OPQ32_128,IVF256,PQ32"), (["text"], "OPQ64_256,IVF256,PQ64"))
BIAS_PRESETS = ("c1", "gr-clip", "standardize", "whiten", "realign", "ridge", "procrustes")


def print_recall(store: Store, *, slow: bool) -> None:
    """One line per index."""
    pipeline = preset("gr-clip").fit(store)
    print(f"{'rows':24} {'factory':24} {'nprobe':>6} {'recall@10':>9} {'seconds':>8}")
    for modalities, factory in CASES + (SLOW_CASES if slow else ()):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            record = build_index(
                store, output=folder, pipeline=pipeline, modality=modalities, factory=factory
            ).record
            seconds = time.perf_counter() - start
        label = f"{record['rows']:,} {' + '.join(modalities)}"
        probes = record["nprobe"] or "-"
        print(
            f"{label:24} {record['factory']:24} {probes:>6} {record['recall@10']:9.3f} "
            f"{seconds:8.1f}",
            flush=True,
        )


def print_bias(store: Store, split: str = "test") -> None:
    """One line per preset, measured on the rows of ``split``."""
    images = store.load("image", split)
    texts = store.load("text", split)
    image_rows = np.arange(len(images))
    items = image_rows, Pairs.match(images, texts).item_index
    print(
        f"\n{'':16} {'bias@10 of queries':>20} {'recall@1, %':>19} "
        f"{'standard deviation of cosines':>34}"
    )
    print(
        f"{split + ' rows':16} {'image':>10} {'text':>9} {'to text':>10} {'to image':>8} "
        f"{'images':>12} {'texts':>10} {'between':>10}"
    )
    for name in BIAS_PRESETS:
        pipeline = preset(name).fit(store)
        image = pipeline.transform(images.embeddings, modality="image")
        text = pipeline.transform(texts.embeddings, modality="text")
        bias = [estimate.value for estimate in modality_bias(image, text, items=items)]
        recall = [100 * hits["recall@1"].mean() for hits in pair_hits(image, text, items[1])]
        spreads = [spread(image, image), spread(text, text), spread(image, text)]
        print(
            f"{name:16} {bias[0]:10.3f} {bias[1]:9.3f} {recall[0]:10.1f} {recall[1]:8.1f} "
            f"{spreads[0]:12.3f} {spreads[1]:10.3f} {spreads[2]:10.3f}",
            flush=True,
        )


def spread(x: np.ndarray, y: np.ndarray) -> float:
    """Return the standard deviation of the cosines of unit rows, those of a row with itself left
    out.
    """
    cosines = (
        x[:1000] @ y[:: max(1, len(y) // 1000)][:1000].T if x is not y else x[:1000] @ x[:1000].T
    )
    apart = np.eye(*cosines.shape) == 0
    return float(cosines[apart].std() if x is y else cosines.std())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("c3-store"))
    parser.add_argument(
        "--quantised",
        action="store_true",
        help="add the product quantisers, which train for minutes",
    )
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    print_recall(store, slow=arguments.quantised)
    print_bias(store)


if __name__ == "__main__":
    main()
