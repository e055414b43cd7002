"""A typed step of a pipeline, without errors under `mypy --strict` and pyright.

python examples/typed_client.py images c3-client "two people on bicycles"
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import c3tools

Vectors = npt.NDArray[np.float32]


def embedded(images: Path, folder: Path, encoder: c3tools.Encoder) -> c3tools.Store:
    """Embed photos, and print which pairs and copies to look at before training."""
    store = c3tools.embed(images, folder / "store", encoder=encoder)
    worst = c3tools.check_pairs(store).pairs[0]
    copies = c3tools.find_duplicates(store).groups
    print(f"{worst.image_key} fits its caption least; {len(copies)} groups of copies")
    return store


def collapsed(pipeline: c3tools.Pipeline, rows: c3tools.Rows) -> Vectors:
    """Return rows (n, d) without the gap; torch and scikit-learn compute the same."""
    vectors = pipeline.transform(rows.embeddings, modality=rows.modality)
    module = c3tools.TransformModule(pipeline, rows.modality).eval()
    by_torch: torch.Tensor = module(torch.as_tensor(rows.embeddings).float())
    estimator = c3tools.EmbeddingTransformer("c2-collapse", modality=rows.modality)
    by_sklearn: Vectors = estimator.fit(rows.embeddings).transform(rows.embeddings)
    assert by_torch.shape == by_sklearn.shape == vectors.shape
    return vectors


def best(index: c3tools.Index, encoder: c3tools.Encoder, query: str) -> list[c3tools.Hit]:
    """Return the best three rows of both modalities."""
    (result,) = index.search(vector=encoder.encode_queries([query]), k=3)
    return result.hits


def main(images: Path, folder: Path, query: str) -> None:
    """Embed, measure, collapse, save, and search."""
    encoder = c3tools.load_encoder("c3-mini")
    store = embedded(images, folder, encoder)
    gap = c3tools.gap_report(store).gap
    pipeline = c3tools.Pipeline.load(c3tools.preset("c2-collapse").fit(store).save(folder / "p"))
    means = [collapsed(pipeline, store.load(name)).mean(axis=0) for name in ("image", "text")]
    before = gap.length.value if gap else float("nan")
    print(f"the gap was {before:.2f} and is {np.linalg.norm(means[0] - means[1]):.2f}")
    for hit in best(c3tools.build_index(store, output=folder / "index"), encoder, query):
        print(f"{hit.score:5.2f} {hit.modality:5} {hit.key}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
