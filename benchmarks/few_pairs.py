"""Connect two published towers with a few pairs, and make a store in which only these are known.

    python examples/c3_mini/features.py flickr8k features
    python benchmarks/few_pairs.py features
    python benchmarks/low_data.py --store few-pairs/store --shares 0.04,0.2,0.4,1 --sigma SIGMA

A quarter of the photos of train and of val stay, with their captions: these are the pairs. All
other captions of both stay as texts without an image, and all of test stays. --items uses a share
of each split. Heads of 256 dimensions learn from the pairs alone, with each --dropout; those with
the highest recall@1 on val make the store OUT/store. The script prints the recall of test, and
SIGMA: twice the caption spread. With the pairs of 500 photos it takes about 25 CPU seconds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from measuring import print_table

from c3tools import Store, apply_heads, connect_heads, read_features
from c3tools.connect.heads import ConnectedHeads
from c3tools.connect.training_pairs import PairedFeatures
from c3tools.store.rows import match_items, own_items
from c3tools.terminal import TerminalReporter
from c3tools.transforms.sigma import spread_of_captions


def with_few_pairs(features: PairedFeatures, items: float, pairs: float) -> PairedFeatures:
    """Keep a share of the items of each split, and of train and val the photos of a share of
    these.
    """
    photos = features.first
    splits = np.array(photos.splits)
    is_kept = np.zeros(len(photos), bool)
    has_photo = np.zeros(len(photos), bool)
    order = photos.hash_order("few pairs")
    for split, with_photo in (("train", pairs), ("val", pairs), ("test", 1.0)):
        of_split = order[splits[order] == split]
        kept = of_split[: round(items * len(of_split))]
        is_kept[kept] = True
        has_photo[kept[: round(with_photo * len(kept))]] = True
    few = photos.select(has_photo)
    captions = features.second.select(is_kept[features.item_index])
    item_index = match_items(own_items(few.table), own_items(captions.table))
    return replace(features, first=few, second=captions, item_index=item_index)


def main() -> None:
    """Train the heads, and write the store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("features", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("few-pairs"))
    parser.add_argument("--items", type=float, default=1.0, help="share of each split to use")
    parser.add_argument("--pairs", type=float, default=0.25, help="share of these with a photo")
    parser.add_argument("--dropout", default="0,0.5")
    options = parser.parse_args()
    folder = options.features
    features = read_features(
        image=folder / "image.npy",
        text=folder / "text.npy",
        meta=folder / "meta.jsonl",
        text_meta=folder / "texts.jsonl",
    )
    few = with_few_pairs(features, options.items, options.pairs)
    reporter = TerminalReporter()
    heads = [
        connect_heads(
            few,
            output=options.out / f"heads-{dropout}",
            dropout=float(dropout),
            precision="fp32",
            reporter=reporter,
        )
        for dropout in options.dropout.split(",")
    ]
    print_table(
        ("dropout", "recall@1 of val", "of test, i→t", "t→i", "gap"),
        [(one.record["dropout"], f"{one.record['recall@1']:.3f}", *of_test(one)) for one in heads],
    )

    best = max(heads, key=lambda one: one.record["recall@1"])
    path = options.out / "store"
    if not path.exists():
        apply_heads(best, few, output=path, reporter=reporter)
    sigma = spread_of_captions(Store.open(path)).sigma
    assert sigma is not None
    print(f"twice the caption spread: {2 * sigma:.3f}")


def of_test(heads: ConnectedHeads) -> list[str]:
    """Return recall@1 in both directions and the gap."""
    scores = heads.record["scores"]["test"]
    recalls = [direction["recall@1"] for direction in scores["recall"].values()]
    return [f"{value:.3f}" for value in (*recalls, scores["gap"])]


if __name__ == "__main__":
    main()
