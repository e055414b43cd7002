"""Measure how much of the gap is left after contrastive training, by logit scale and by the weight
of `--close-gap`.

    python examples/c3_mini/features.py CORPUS FEATURES      # or any image.npy, text.npy and
    meta.jsonl python benchmarks/connect_temperature.py FEATURES --stores STORES
    python benchmarks/connect_temperature.py FEATURES --scales 100,100+0.1,100+0.3,100+1    #
    --close-gap 0.1 to 1

Runs `c3 connect heads` on frozen features for each scale and seed, with the settings of
docs/results/connect.md. Runs with the same seed start from the same weights. The table shows the
gap before training, and the gap and the recall of the best checkpoint, on the test split: mean and
standard deviation over the seeds. With --stores, the embeddings of each training become a store,
for `c3 ablate-captions --methods C2_2,C3 --store STORES/100-seed0`. Finished runs are kept in
--work and not repeated.

Takes about a minute per run on one thread (OMP_NUM_THREADS=1); there are three for each scale. On
Flickr8k, the gap should fall from 1.13 to 0.08 at a fixed scale of 14, and to 0.77 at 100 (the
tables are in docs/results/connect.md).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from c3tools import apply_heads, connect_heads, read_features
from c3tools.connect.training_pairs import PairedFeatures
from c3tools.terminal import TerminalReporter

COLUMNS = ("gap before", "gap", "logit scale", "paired", "unpaired", "recall@1 i→t", "recall@1 t→i")


def scores(
    features: PairedFeatures, scale: str, seed: int, epochs: int, folder: Path
) -> list[float]:
    """Train, or read what was trained, and give the numbers of `COLUMNS`.

    Args:
        features: of images and texts.
        scale: of the logits, with ``+`` and the weight of ``--close-gap`` after it where that is
            not 0.
        seed: of the heads.
        epochs: of the training.
        folder: of the result.
    """
    scale, _, weight = scale.partition("+")
    if not (folder / "connect.json").exists():
        connect_heads(
            features,
            output=folder,
            dropout=0.5,
            cone=1.33,
            logit_scale=scale,
            close_gap=float(weight or 0),
            epochs=epochs,
            patience=0,
            seed=seed,
            precision="fp32",
            reporter=TerminalReporter(),
        )
    record: dict[str, Any] = json.loads((folder / "connect.json").read_text())["record"]
    start = json.loads((folder / "geometry.json").read_text())["points"][0]["gap"]
    test = record["scores"]["test"]
    recall = [direction["recall@1"] for direction in test["recall"].values()]
    return [
        start,
        test["gap"],
        record["logit_scale"],
        test["paired_cosine"],
        test["unpaired_cosine"],
        *recall,
    ]


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("features", type=Path)
    parser.add_argument("--scales", default="14,learned:14,50,100")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("connect-temperature"))
    parser.add_argument("--stores", type=Path)
    arguments = parser.parse_args()
    folder = arguments.features
    features = read_features(
        image=folder / "image.npy", text=folder / "text.npy", meta=folder / "meta.jsonl"
    )
    lines = [f"| trained at | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for scale in arguments.scales.split(","):
        name = scale.replace(":", "-")
        folders = [f"{name}-seed{seed}" for seed in range(arguments.seeds)]
        runs = [
            scores(features, scale, seed, arguments.epochs, arguments.work / each)
            for seed, each in enumerate(folders)
        ]
        spread = np.std(runs, axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(COLUMNS))
        cells = [
            f"{mean:.3f} ± {std:.3f}"
            for mean, std in zip(np.mean(runs, axis=0), spread, strict=True)
        ]
        lines.append(f"| {scale} | {' | '.join(cells)} |")
        for each in folders if arguments.stores else ():
            apply_heads(arguments.work / each, features, output=arguments.stores / each)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
