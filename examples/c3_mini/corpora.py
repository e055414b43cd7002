"""The training data of c3-mini: the pairs of Flickr8k, and captions without photos; never what it
is tested on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HELD_OUT = ("val", "test")
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Corpora:
    """Photos with captions, and captions alone.

    Attributes:
        photos: one path per photo.
        splits: of the photos: ``train``, ``val``, ``test`` or another, which is trained on.
        captions: of the photos in order, then those without photos.
        owner: int64 (m,), the photo of each of the first m captions.
    """

    photos: list[Path]
    splits: list[str]
    captions: list[str]
    owner: Rows

    def photo_rows(self, *splits: str) -> Rows:
        """Photos of these splits; without any, those that are trained on."""
        chosen = [split in splits if splits else split not in HELD_OUT for split in self.splits]
        return np.flatnonzero(chosen)

    def caption_rows(self, photos: Rows) -> Rows:
        """Captions of these photos."""
        return np.flatnonzero(np.isin(self.owner, photos))

    @property
    def training_captions(self) -> Rows:
        """Every caption but those of photos that are held out."""
        alone = np.arange(len(self.owner), len(self.captions))
        return np.concatenate([self.caption_rows(self.photo_rows()), alone])


def read_corpora(pairs: Path, texts: Sequence[Path]) -> Corpora:
    """Read a folder of photos with captions.jsonl, and files of captions alone.

    Rows of ``texts`` that say ``has_photo_in_coco_cc`` are left out: c3-mini is tested on those
    photos.
    """
    rows = list(json_lines(pairs / "captions.jsonl"))
    folder = pairs / "images" if (pairs / "images").is_dir() else pairs
    captions = [caption for row in rows for caption in row["captions"]]
    owner = np.repeat(np.arange(len(rows)), [len(row["captions"]) for row in rows])
    for file in texts:
        for row in json_lines(file):
            captions += [] if row.get("has_photo_in_coco_cc") else row["captions"]
    return Corpora(
        [folder / row["image"] for row in rows], [row["split"] for row in rows], captions, owner
    )


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of JSON lines."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)
