"""Score a model as it is, collapsed and fair, with mteb on photos and captions in one corpus.

    pip install ".[models]" mteb
    python score_recipes.py [MODEL]

Without MODEL, c3-mini is scored, offline, in half a minute. Any other name is one of mteb's models.
Prints the table of the README.
"""

from __future__ import annotations

import sys
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, Image, disable_progress_bars
from mixed_photos import SUBSETS, MixedPhotos, read_items
from mteb.models.abs_encoder import AbsEncoder
from recipe_model import C3Model, RecipeModel
from torch.utils.data import DataLoader

import c3tools

PRESETS = {"as it is": "c1", "collapsed": "c2-collapse", "fair": "fair"}


def fit_rows(model: AbsEncoder, task: MixedPhotos) -> dict[str, np.ndarray]:
    """Encode the photos and captions that are not scored, by modality, (n, d)."""
    items = read_items("fit")
    captions = [caption for item in items for caption in item.captions]
    photos = Dataset.from_dict({"image": [str(item.photo) for item in items]})
    columns = {
        "image": photos.cast_column("image", Image()),
        "text": Dataset.from_dict({"text": captions}),
    }
    rows = {}
    for modality, column in columns.items():
        loader = DataLoader(column, batch_size=32, collate_fn=as_columns)
        embeddings = model.encode(
            loader, task_metadata=task.metadata, hf_split="fit", hf_subset="default"
        )
        rows[modality] = np.asarray(embeddings)
    return rows


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return a batch as models of mteb take it."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def score(model: AbsEncoder) -> dict[str, dict[str, float]]:
    """Return mteb's NDCG@10 in percent, by preset and subset."""
    task = MixedPhotos()
    rows = fit_rows(model, task)
    table = {}
    for name, preset_name in PRESETS.items():
        pipeline = c3tools.preset(preset_name).fit(rows)
        result = mteb.evaluate(
            RecipeModel(model, pipeline), task, cache=None, show_progress_bar=False
        )
        scores = result.task_results[0].scores["test"]
        table[name] = {row["hf_subset"]: 100 * row["ndcg_at_10"] for row in scores}
    return table


if __name__ == "__main__":
    disable_progress_bars()
    chosen = mteb.get_model(sys.argv[1]) if len(sys.argv) > 1 else C3Model()
    print("| vectors | " + " | ".join(SUBSETS) + " |")
    print("|---" * (1 + len(SUBSETS)) + "|")
    for name, scores in score(chosen).items():
        cells = [f"{scores[subset]:.1f}" for subset in SUBSETS]
        print(f"| {name} | " + " | ".join(cells) + " |")
