"""A retrieval task of mteb with photos and captions in one corpus, from the photos of c3tools.

Built offline as MixBench is: each item of the corpus is either a photo or a caption, by turns.
Queries are other captions. Of the 124 photos, every second one is scored; the others are for
fitting.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

import c3tools

PHOTOS = Path(c3tools.__file__).parent / "assets" / "coco-cc"
CORPUS = Features({"id": Value("string"), "text": Value("string"), "image": Image()})
# By name, what the answers are, and what the corpus has
SUBSETS = {
    "photo-in-both": ("image", ("image", "text")),
    "caption-in-both": ("text", ("image", "text")),
    "photo-in-photos": ("image", ("image",)),
}


@dataclass(frozen=True)
class Item:
    """A photo with its five captions.

    Attributes:
        key: name of the photo.
        photo: its file.
        captions: the first stands for it in the corpus, the others are queries.
        modality: what it is in the corpus.
    """

    key: str
    photo: Path
    captions: list[str]
    modality: str


def read_items(split: str) -> list[Item]:
    """Return the items of a split: ``fit`` or ``test``."""
    lines = (PHOTOS / "captions.jsonl").read_text("utf-8").splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: str(row["image"]))
    first = 0 if split == "fit" else 1
    items = []
    for number, row in enumerate(rows[first::2]):
        photo = PHOTOS / "images" / row["image"]
        modality = "image" if number % 2 == 0 else "text"
        items.append(Item(photo.stem, photo, row["captions"], modality))
    return items


class MixedPhotos(AbsTaskRetrieval):  # type: ignore[misc, unused-ignore]
    """Queries are captions; each has one answer, a photo or another caption of it.

    Subsets: the answer is a photo in a corpus of both; it is a caption in the same corpus; it is a
    photo in a corpus of photos alone, as in the tasks of MIEB.
    """

    metadata = TaskMetadata(
        name="MixedPhotos",
        description="Captions to photos and captions in one corpus.",
        dataset={"path": "c3tools/coco-cc", "revision": "1"},
        type="Any2AnyRetrieval",
        category="t2it",
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs={name: ["eng-Latn"] for name in SUBSETS},
        main_score="ndcg_at_10",
    )

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        """Build queries, corpus and answers of each subset."""
        items = read_items("test")
        self.dataset = {}
        for subset, (answer, corpus_modalities) in SUBSETS.items():
            queries = []
            answers = {}
            for item in items:
                if item.modality != answer:
                    continue
                for number, caption in enumerate(item.captions[1:]):
                    queries.append({"id": f"{item.key}-{number}", "text": caption})
                    answers[f"{item.key}-{number}"] = {item.key: 1}
            corpus = [corpus_row(item) for item in items if item.modality in corpus_modalities]
            split = {
                "queries": Dataset.from_list(queries),
                "corpus": Dataset.from_list(corpus, features=CORPUS),
                "relevant_docs": answers,
                "top_ranked": None,
            }
            self.dataset[subset] = {"test": split}
        self.data_loaded = True


def corpus_row(item: Item) -> dict[str, str | None]:
    """Return a row of the corpus. A text that is missing has to be "", since mteb refuses None."""
    if item.modality == "image":
        return {"id": item.key, "text": "", "image": str(item.photo)}
    return {"id": item.key, "text": item.captions[0], "image": None}
