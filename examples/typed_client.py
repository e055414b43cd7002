"""A typed program on the public interface, without errors under `mypy --strict` and pyright.

python examples/typed_client.py images c3-client "two people on bicycles"
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import c3tools

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """A row that a query found."""

    key: str
    modality: str
    score: float


def collapsed(store: c3tools.Store, pipeline: c3tools.Pipeline, modality: str) -> Vectors:
    """Return the rows (n, d) of one modality without the gap."""
    rows: c3tools.Rows = store.load(modality)
    return pipeline.transform(rows.embeddings, modality=modality)


def answers(index: c3tools.Index, query: str) -> list[Answer]:
    """Return the best three rows of both modalities."""
    (result,) = index.search(query, k=3)
    return [Answer(hit.key, hit.modality, hit.score) for hit in result.hits]


def main(images: Path, folder: Path, query: str) -> int:
    """Embed, measure, transform and search."""
    try:
        store = c3tools.embed(images, folder / "store")
    except c3tools.C3Error as error:
        print(error, error.remedy or "", file=sys.stderr)
        return 1
    report = c3tools.gap_report(store)
    if report.gap is not None:
        print(f"gap of {report.gap.length.value:.2f}")
    pipeline = c3tools.preset("c2-collapse").fit(store)
    means = {name: collapsed(store, pipeline, name).mean(axis=0) for name in ("image", "text")}
    print(f"{np.linalg.norm(means['image'] - means['text']):.2f} after Collapse")
    index = c3tools.build_index(store, folder / "index")
    for answer in answers(index, query):
        print(f"{answer.score:5.2f} {answer.modality:5} {answer.key}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
