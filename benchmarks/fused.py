"""Measure searches in a corpus of which some items have an image, some a text, some both.

    c3 embed FLICKR8K --store STORE
    python benchmarks/fused.py STORE FLICKR8K/images CLIP_EMBEDDINGS --write

Items of Flickr8k, with c3-mini (val and test, moments from train) and OpenAI's CLIP ViT-B/32 (100
items in two halves, moments from one, the other searched, and the reverse). Of the items that are
searched, a third each has its photo, its first caption, or both; or half have one, half both. Where
an item has both, it stands

    two rows    as `c3 index` has it: an item is found by the better of its rows
    photo       as its photo alone
    fused       as `c3 export --fuse` writes it: one row, unit(image + text)

Rows are those that c3 export writes with the presets c1 (raw) and gr-clip (collapsed), z is
`Calibration.load` of the export. Queries are the other four captions of an item, another view of
its photo (mirrored, the middle 80 %), or both: the unit sum of the collapsed vectors, as `c3
search TEXT --image PHOTO`. There are no photos of ViT-B/32 to make other views of, so its photo
queries are the photos themselves, for items that have a text alone.

A query of both with weights is ranked by the cosine, by z, by the combined z and by the sum of both
parts' z. One of the parts is of another item where its weight is negative. The combined z is also
compared with z and the cosine on controls, made of test: with noise on rows and queries, with few
rows to take moments of, with unrelated pairs. The largest ratio of spreads was set on val, with
other seeds than these.

NDCG@10 in percent, by item: an item that is found is right, however many rows it has. Means over
five draws of who has what, 95 % bootstrap intervals over items (values of an item averaged over its
queries and draws first). Then a corpus is written and indexed for real, and the ten items that
`Index` finds are compared with those of the tables. The page shows the calibrated scores on test
and with ViT-B/32; all values are in the CSV file beside it. About five minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fair_search import encode_views, encoded, shown
from measuring import print_table

from c3tools import Calibration, Pipeline, Store, build_index, export_store, load_encoder
from c3tools.arrays import Array, Indices, Matrix
from c3tools.identity import ModelIdentity
from c3tools.index.queries import Query, combined
from c3tools.moments import unit_rows
from c3tools.seeds import generator
from c3tools.store import (
    StoreInfo,
    StoreWriter,
    create_store,
    part_name,
    shard_table,
    write_rows,
)

PAGE = Path(__file__).parent.parent / "docs" / "results" / "fused.md"
MADE_BY = "made by `python benchmarks/fused.py ... --write`; change the script, not this"
END = "<!-- end -->"
DRAWS = 5
SHARD = 10_000
KINDS = ("image", "text", "fused")
WAYS = ("two rows", "photo", "fused")
FORMS = [
    *(("two rows", form) for form in ("raw", "collapsed", "z")),
    ("photo", "z"),
    *(("fused", form) for form in ("raw", "collapsed", "z")),
]
# what items have, in equal shares
CORPORA = {
    "thirds": ("image", "text", "both"),
    "photo or both": ("image", "both"),
    "text or both": ("text", "both"),
    "photo or text": ("image", "text"),
}
QUERIES = ("text", "photo", "both")
WEIGHTS = ((1.0, 0.25), (1.0, 0.5), (1.0, 0.7), (1.0, 1.0), (0.7, 1.0), (0.5, 1.0), (0.25, 1.0))
# the part that is subtracted is of another item
NEGATIVE = ((1.0, -0.25), (1.0, -0.5), (1.0, -1.0), (-1.0, 1.0), (-0.5, 1.0), (-0.25, 1.0))
CONTROL_WEIGHTS = ((1.0, 0.5), (1.0, 1.0), (0.5, 1.0))
CONTROL_DRAWS = 20
CONTROL_SEED = 2
Scores = dict[str, Array]  # of all queries with all items (q, n), by kind of row


class Result(NamedTuple):
    """NDCG@10 of the items of a set, in percent.

    Attributes:
        set: the encoder and its items.
        corpus: what items have, a key of `CORPORA`.
        queries: text, photo or both.
        weights: of text and photo, if queries have both and were compared by their weights.
        answer: what the right item has, if only some count.
        rows: how items with both stand, or the difference of two ways.
        score: what they are ranked by.
        values: of each item, (n,).
    """

    set: str
    corpus: str
    queries: str
    weights: str
    answer: str
    rows: str
    score: str
    values: Array


@dataclass
class Part:
    """Items to search, and rows to fit on; unit rows of an encoder, as it makes them.

    Attributes:
        fit_images: (m, d).
        fit_texts: (t, d).
        fit_items: the image of each text, (t,).
        images: (n, d).
        texts: the first caption of each item, (n, d).
        captions: the others, (4, n, d).
        views: of the photos to search with, (n, d).
        has_views: whether these are other views; else the photos themselves.
    """

    fit_images: Matrix
    fit_texts: Matrix
    fit_items: Indices
    images: Matrix
    texts: Matrix
    captions: Matrix
    views: Matrix
    has_views: bool


def flickr_part(store: Store, photos: Path, split: str) -> Part:
    """Return the items of a split, with train rows to fit on."""
    fit = store.pairs(split="train")
    held = store.pairs(split=split)
    item_of_text = held.item_index  # captions of an item are one after the other
    first_texts = np.flatnonzero(np.r_[True, item_of_text[1:] != item_of_text[:-1]])
    items = item_of_text[first_texts]
    paths = held.first.column("path")
    encode = partial(
        encode_views, load_encoder("c3-mini"), [photos / Path(paths[row]).name for row in items]
    )
    views = encoded(Path(f"{store.path}-{split}-views.npy"), encode)
    return Part(
        fit.first.embeddings,
        fit.second.embeddings,
        fit.item_index,
        held.first.embeddings[items],
        held.second.embeddings[first_texts],
        np.stack([held.second.embeddings[first_texts + more] for more in range(1, 5)]),
        views.astype(np.float32),
        has_views=True,
    )


def clip_parts(folder: Path) -> list[Part]:
    """Return both halves of the 100 items with five captions; photos without one are fitted on."""
    images, texts = (np.load(folder / f"{name}.npy") for name in ("image", "text"))
    lines = (folder / "meta.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    captioned = np.array([(row["row"], *row["text_rows"]) for row in rows if row.get("text_rows")])
    alone = np.setdiff1d(np.arange(len(images)), captioned[:, 0])
    order = generator(0, "halves").permutation(len(captioned))
    halves = [captioned[np.sort(half)] for half in np.array_split(order, 2)]
    parts = []
    for fit, held in (halves, halves[::-1]):
        photos = images[held[:, 0]]
        part = Part(
            images[np.r_[fit[:, 0], alone]],
            texts[fit[:, 1:].ravel()],
            np.repeat(np.arange(len(fit)), 5),
            photos,
            texts[held[:, 1]],
            np.stack([texts[held[:, column]] for column in range(2, 6)]),
            photos,
            has_views=False,
        )
        parts.append(part)
    return parts


def write_store(folder: Path, part: Part, has: Sequence[str]) -> Store:
    """Write a store of the rows to fit on, as train, and of the items to search, as test.

    Args:
        folder: of the store.
        part: the items.
        has: of each item, image, text or both.
    """
    info = StoreInfo(ModelIdentity(name="benchmark"), part.images.shape[1], dtype="float32")
    create_store(folder, info)
    with_image = np.flatnonzero(np.asarray(has) != "text")
    with_text = np.flatnonzero(np.asarray(has) != "image")
    fit_keys = [f"fit{row:05}" for row in range(len(part.fit_images))]
    keys = [f"item{item:05}" for item in range(len(has))]
    fit_text_keys = [f"{fit_keys[row]}#{text}" for text, row in enumerate(part.fit_items)]
    splits = {
        "image": ["train"] * len(fit_keys) + ["test"] * len(with_image),
        "text": ["train"] * len(fit_text_keys) + ["test"] * len(with_text),
    }
    columns = {
        "image": {"key": [*fit_keys, *(keys[item] for item in with_image)]},
        "text": {
            "key": [*fit_text_keys, *(f"{keys[item]}#0" for item in with_text)],
            "image_key": [
                *(fit_keys[row] for row in part.fit_items),
                *(keys[item] for item in with_text),
            ],
        },
    }
    rows = {
        "image": np.concatenate([part.fit_images, part.images[with_image]]),
        "text": np.concatenate([part.fit_texts, part.texts[with_text]]),
    }
    for modality, embeddings in rows.items():
        columns[modality]["split"] = splits[modality]
        for number, start in enumerate(range(0, len(embeddings), SHARD)):
            shard = {
                name: values[start : start + SHARD] for name, values in columns[modality].items()
            }
            units = unit_rows(embeddings[start : start + SHARD].astype(np.float32))
            table = shard_table(info, modality, units, shard)
            write_rows(folder / part_name(modality, number), info, modality, table)
    StoreWriter(folder).finish()
    return Store.open(folder)


@dataclass
class Exported:
    """The items of a part as `c3 export` wrote them with one preset.

    Attributes:
        rows: of each item, (n, d), by kind.
        calibration: of rows of the three kinds.
    """

    rows: dict[str, Matrix]
    calibration: Calibration

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of rows and queries."""
        return self.calibration.pipeline

    def cosines(self, queries: Array) -> Scores:
        """Return the cosines of transformed queries with all items, by kind of row."""
        return {kind: queries @ rows.T for kind, rows in self.rows.items()}

    def z(self, queries: Array, *, combined: bool = False) -> Scores:
        """Return the calibrated scores of transformed queries."""
        return {
            kind: self.calibration.z(queries, cosines, kind, combined=combined)
            for kind, cosines in self.cosines(queries).items()
        }


def exported(folder: Path, part: Part, name: str) -> Exported:
    """Export all items with both, each as two rows and as one."""
    if not (folder / "store").exists():
        write_store(folder / "store", part, ["both"] * len(part.images))
    rows = {}
    for fuse in (False, True):
        report = export_store(
            folder / "store", output=folder / f"{name}-{fuse}", preset=name, fuse=fuse
        )
        assert isinstance(report.output, Path)
        store = Store.open(report.output)
        for kind in ("fused",) if fuse else ("image", "text"):
            loaded = store.load(kind, split="test")
            order = np.argsort(loaded.keys)
            rows[kind] = loaded.embeddings[order].astype(np.float32)
    return Exported(rows, Calibration.load(folder / f"{name}-True"))


def queries_of(part: Part, export: Exported) -> dict[str, tuple[Array, Indices]]:
    """Return transformed queries of each kind, and the item of each."""
    count = len(part.images)
    captions = np.concatenate([*part.captions])
    texts = unit_rows(export.pipeline.transform(captions, modality="text").astype(np.float64))
    photos = unit_rows(export.pipeline.transform(part.views, modality="image").astype(np.float64))
    items = np.tile(np.arange(count), len(part.captions))
    return {
        "text": (texts, items),
        "photo": (photos, np.arange(count)),
        "both": (unit_rows(texts + photos[items]), items),
    }


def draw_items(corpus: str, count: int, draw: int) -> Array:
    """Return what each item has, str (n,): image, text or both."""
    choices = CORPORA[corpus]
    places = generator(0, "fused", draw).permutation(count)
    return np.asarray(choices)[places * len(choices) // count]


def item_scores(scores: Scores, has: Array, way: str) -> Array:
    """Return the scores (q, n) that items are ranked by in one list."""
    of_both = {
        "two rows": np.maximum(scores["image"], scores["text"]),
        "photo": scores["image"],
        "fused": scores["fused"],
    }[way]
    ranked = np.where(has == "image", scores["image"], of_both)
    return np.where(has == "text", scores["text"], ranked)


def per_item(
    scores: Scores, items: Indices, corpus: str, way: str, *, is_asked: Callable[[Array], Array]
) -> Array:
    """Return NDCG@10 (n,) of each item, the mean over its queries and draws; nan without any.

    Args:
        scores: of all queries with all items, by kind of row.
        items: of each query, (q,).
        corpus: what items have, a key of `CORPORA`.
        way: how items with both stand.
        is_asked: which queries count, of what their items have, str (q,).
    """
    count = scores["image"].shape[1]
    sums, sizes = np.zeros(count), np.zeros(count)
    for draw in range(DRAWS):
        has = draw_items(corpus, count, draw)
        ranked = item_scores(scores, has, way)
        right = ranked[np.arange(len(items)), items][:, None]
        better = (ranked > right).sum(axis=1)
        gains = np.where(better < 10, 100 / np.log2(2 + better), 0)
        counted = is_asked(has[items])
        sums += np.bincount(items[counted], gains[counted], count)
        sizes += np.bincount(items[counted], minlength=count)
    return np.asarray(np.divide(sums, sizes, out=np.full(count, np.nan), where=sizes > 0))


class Bench:
    """One set: its parts, what was exported of them, and scores of all queries."""

    def __init__(self, name: str, parts: Sequence[Part], folder: Path) -> None:
        self.name = name
        self.parts = parts
        self.exports = {
            preset: [
                exported(folder / str(number), part, preset) for number, part in enumerate(parts)
            ]
            for preset in ("c1", "gr-clip")
        }
        self.has_views = parts[0].has_views

    def scores(self, form: str, query: str) -> list[tuple[Scores, Indices]]:
        """Return scores of queries in a form (raw, collapsed or z), and the item of each; of
        queries of both, z is the combined z.
        """
        found = []
        for part, export in zip(
            self.parts, self.exports["c1" if form == "raw" else "gr-clip"], strict=True
        ):
            queries, items = queries_of(part, export)[query]
            if form == "z":
                scores = export.z(queries, combined=query == "both")
            else:
                scores = export.cosines(queries)
            found.append((scores, items))
        return found

    def weighted(self, form: str, weights: tuple[float, float]) -> list[tuple[Scores, Indices]]:
        """Return scores of a text and a photo with weights; of the form ``sum of z``, the sum of
        both queries' z. A part of negative weight is of another item.
        """
        found = []
        for part, export in zip(self.parts, self.exports["gr-clip"], strict=True):
            queries = queries_of(part, export)
            texts, items = queries["text"]
            photos = queries["photo"][0][items]
            count = len(part.images)
            others = (items + generator(0, "others").integers(1, count, len(items))) % count
            if weights[0] < 0:
                texts = texts[others]
            if weights[1] < 0:
                photos = queries["photo"][0][others]
            both = unit_rows(weights[0] * texts + weights[1] * photos)
            if form == "sum of z":
                of_texts, of_photos = export.z(texts), export.z(photos)
                scores = {
                    kind: weights[0] * of_texts[kind] + weights[1] * of_photos[kind]
                    for kind in KINDS
                }
            else:
                scores = export.cosines(both)
                if form != "collapsed":
                    scores = export.z(both, combined=form == "combined z")
            found.append((scores, items))
        return found

    def values(
        self,
        scores: Sequence[tuple[Scores, Indices]],
        query: str,
        corpus: str,
        way: str,
        answer: str | None = None,
    ) -> Array:
        """Return NDCG@10 of all items; ``answer`` counts those alone that have image, text or
        both.
        """
        wanted = answer
        if not self.has_views and query != "text":  # no view of the photo but the photo
            if answer not in (None, "text"):
                return np.full(1, np.nan)
            wanted = "text"

        def is_asked(has: Array) -> Array:
            return np.ones(len(has), bool) if wanted is None else has == wanted

        parts = [per_item(found, items, corpus, way, is_asked=is_asked) for found, items in scores]
        return np.concatenate(parts)


def measure_ways(bench: Bench) -> list[Result]:
    """Measure every way and form, for all corpora of items with both and all queries."""
    scores = {
        (form, query): bench.scores(form, query)
        for form in ("raw", "collapsed", "z")
        for query in QUERIES
    }
    found = []
    for corpus in ("thirds", "photo or both", "text or both"):
        for query in QUERIES:
            if not bench.has_views and query != "text" and "text" not in CORPORA[corpus]:
                continue
            values = {
                (way, form): bench.values(scores[form, query], query, corpus, way)
                for way, form in FORMS
            }
            for way in ("two rows", "photo"):
                values[f"fused − {way}", "z"] = values["fused", "z"] - values[way, "z"]
            found += [
                Result(bench.name, corpus, query, "", "", way, form, each)
                for (way, form), each in values.items()
            ]
    return found


def measure_answers(bench: Bench) -> list[Result]:
    """Measure z by what the right item has, in thirds."""
    found = []
    for query in QUERIES:
        scores = bench.scores("z", query)
        for answer in ("image", "text", "both"):
            if not bench.has_views and query != "text" and answer != "text":
                continue
            for way in WAYS:
                values = bench.values(scores, query, "thirds", way, answer)
                found.append(Result(bench.name, "thirds", query, "", answer, way, "z", values))
    return found


def measure_weights(bench: Bench) -> list[Result]:
    """Measure how a text and a photo with weights are found, by the cosine and by z."""
    found = []
    for weights in WEIGHTS + NEGATIVE:
        for corpus, way in (("photo or text", "two rows"), ("thirds", "fused")):
            values = {
                form: bench.values(bench.weighted(form, weights), "both", corpus, way)
                for form in ("collapsed", "z", "combined z", "sum of z")
            }
            for form in ("collapsed", "z"):
                values[f"combined z − {form}"] = values["combined z"] - values[form]
            shares = f"{weights[0]:g} : {weights[1]:g}"
            found += [
                Result(bench.name, corpus, "both", shares, "", way, form, each)
                for form, each in values.items()
            ]
    return found


Control = Callable[[Part, np.random.Generator], Part]


def with_noise(images: float, texts: float) -> Control:
    """Return the control with noise of these norms on all rows and queries."""

    def noisy(part: Part, drawn: np.random.Generator) -> Part:
        def noised(rows: Matrix, norm: float) -> Matrix:
            noise = drawn.standard_normal(rows.shape) * norm / np.sqrt(rows.shape[-1])
            return unit_rows(rows + noise.astype(np.float32))

        return replace(
            part,
            fit_images=noised(part.fit_images, images),
            fit_texts=noised(part.fit_texts, texts),
            images=noised(part.images, images),
            texts=noised(part.texts, texts),
            captions=np.stack([noised(rows, texts) for rows in part.captions]),
            views=noised(part.views, images),
        )

    return noisy


def with_moments_of(images: int | None, texts: int | None) -> Control:
    """Return the control with moments of this many rows; None for all."""

    def fewer(part: Part, drawn: np.random.Generator) -> Part:
        return replace(
            part,
            fit_images=drawn.permutation(part.fit_images)[:images],
            fit_texts=drawn.permutation(part.fit_texts)[:texts],
        )

    return fewer


def unrelated_parts(part: Part, drawn: np.random.Generator) -> Part:
    """Return the control in which the photo of a query shows another item than its text."""
    return replace(part, views=drawn.permutation(part.views))


def shared_texts(part: Part, drawn: np.random.Generator) -> Part:
    """Return the control in which five items have one text."""
    texts = drawn.permutation(len(part.texts) // 5).repeat(5)
    return replace(part, texts=part.texts[texts], captions=part.captions[:, texts])


def few_items(part: Part, drawn: np.random.Generator) -> Part:
    """Return the control with 60 items."""
    few = drawn.permutation(len(part.images))[:60]
    return replace(
        part,
        images=part.images[few],
        texts=part.texts[few],
        captions=part.captions[:, few],
        views=part.views[few],
    )


def random_encoder(part: Part, drawn: np.random.Generator) -> Part:
    """Return the control with random rows; those of texts are in 20 dimensions."""
    plane = drawn.standard_normal((20, part.images.shape[1]))

    def images(rows: Matrix) -> Matrix:
        return unit_rows(drawn.standard_normal(rows.shape).astype(np.float32))

    def texts(rows: Matrix) -> Matrix:
        made = drawn.standard_normal((len(rows), len(plane))) @ plane
        return unit_rows(made.astype(np.float32))

    return replace(
        part,
        fit_images=images(part.fit_images),
        fit_texts=texts(part.fit_texts),
        images=images(part.images),
        texts=texts(part.texts),
        captions=np.stack([texts(rows) for rows in part.captions]),
        views=images(part.views),
    )


CONTROLS: dict[str, Control] = {
    "as it is": lambda part, drawn: part,
    "noise on photos, .3": with_noise(0.3, 0),
    "noise on photos, .7": with_noise(0.7, 0),
    "noise on texts, .3": with_noise(0, 0.3),
    "noise on texts, .7": with_noise(0, 0.7),
    "noise on both, .5": with_noise(0.5, 0.5),
    "moments of 20 rows each": with_moments_of(20, 20),
    "moments of 50 rows each": with_moments_of(50, 50),
    "moments of 20 photos, all texts": with_moments_of(20, None),
    "moments of all photos, 20 texts": with_moments_of(None, 20),
    "60 items": few_items,
    "five items share a text": shared_texts,
    "text and photo of two items": unrelated_parts,
    "random encoder": random_encoder,
}


def measure_control(part: Part, control: Control) -> dict[str, Array]:
    """Return the mean NDCG@10 (draws, weights) of one caption and the photo of each item, in a list
    of photos and texts, by score.
    """
    means: dict[str, list[list[float]]] = {"cosine": [], "z": [], "combined z": []}
    for draw in range(CONTROL_DRAWS):
        drawn = generator(CONTROL_SEED, "control", draw)
        made = control(part, drawn)
        calibration = Calibration.fit({"image": made.fit_images, "text": made.fit_texts})
        vectors = {
            name: unit_rows(calibration.pipeline.transform(rows, modality=kind).astype(np.float64))
            for name, kind, rows in (
                ("image", "image", made.images),
                ("text", "text", made.texts),
                ("photo query", "image", made.views),
                ("text query", "text", made.captions[draw % len(made.captions)]),
            )
        }
        count = len(made.images)
        is_photo = drawn.permutation(count) < count / 2
        for values in means.values():
            values.append([])
        for of_text, of_photo in CONTROL_WEIGHTS:
            queries = unit_rows(of_text * vectors["text query"] + of_photo * vectors["photo query"])
            cosines = {kind: queries @ vectors[kind].T for kind in ("image", "text")}
            scores = {
                "cosine": cosines,
                "z": {kind: calibration.z(queries, own, kind) for kind, own in cosines.items()},
                "combined z": {
                    kind: calibration.z(queries, own, kind, combined=True)
                    for kind, own in cosines.items()
                },
            }
            for name, by_kind in scores.items():
                ranked = np.where(is_photo, by_kind["image"], by_kind["text"])
                better = (ranked > np.diag(ranked)[:, None]).sum(axis=1)
                gains = np.where(better < 10, 100 / np.log2(2 + better), 0)
                means[name][-1].append(float(gains.mean()))
    return {name: np.asarray(values) for name, values in means.items()}


def print_controls(part: Part) -> None:
    """Print the controls: the mean NDCG@10 over draws, and how many draws the combined z loses by
    more than half a point.
    """
    rows = []
    for name, control in CONTROLS.items():
        values = measure_control(part, control)
        means = {score: own.mean(axis=0) for score, own in values.items()}
        cells = [
            " / ".join(f"{means[score][column]:.1f}" for score in values)
            for column in range(len(CONTROL_WEIGHTS))
        ]
        lost = [
            " / ".join(map(str, (values["combined z"] < values[score] - 0.5).sum(axis=0)))
            for score in ("z", "cosine")
        ]
        rows.append([name, *cells, *lost])
    shares = [f"{text:g} : {photo:g}" for text, photo in CONTROL_WEIGHTS]
    print_table(["", *shares, "worse than z", "worse than the cosine"], rows)


def print_ways(results: Sequence[Result]) -> None:
    """Print the calibrated scores by what items have and by kind of query."""
    columns = [*WAYS, "fused − two rows", "fused − photo"]
    values = {
        (each.corpus, each.queries, each.rows): each.values for each in results if each.score == "z"
    }
    rows = []
    for corpus, query in dict.fromkeys((each.corpus, each.queries) for each in results):
        cells = [_cell(values[corpus, query, way], sign="−" in way) for way in columns]
        rows.append([f"{corpus}: {query}", *cells])
    print(f"\n{results[0].set}\n")
    print_table(["items: queries", *columns], rows)


def _cell(values: Array, *, sign: bool = False) -> str:
    return shown(values, sign=sign).replace("-", "−")


def print_weights(results: Sequence[Result]) -> None:
    """Print what the combined z gains over the cosine and over z of queries with both, by their
    weights.
    """
    values = {(each.weights, each.corpus, each.score): each.values for each in results}
    rows = []
    for weights in dict.fromkeys(each.weights for each in results):
        row = [weights]
        for corpus in ("photo or text", "thirds"):
            row.append(_cell(values[weights, corpus, "combined z"]))
            for form in ("collapsed", "z"):
                row.append(_cell(values[weights, corpus, f"combined z − {form}"], sign=True))
        rows.append(row)
    print(f"\n{results[0].set}\n")
    print_table(
        [
            "text : photo",
            *("photo or text: combined z", "− cosine", "− z"),
            *("fused: combined z", "− cosine", "− z"),
        ],
        rows,
    )


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Write all means, with the wider side of their 95 % intervals."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Result._fields[:-1], "NDCG@10", "wider side"])
        for *words, values in results:
            writer.writerow([*words, *shown(values, sign="−" in "".join(words[-2:])).split(" ± ")])


def print_check(bench: Bench, folder: Path) -> None:
    """Write and index corpora of thirds for real, and compare what is found with the tables."""
    rows = []
    for way in ("two rows", "fused"):
        equal = {query: np.zeros(2, int) for query in QUERIES}
        for number, (part, export) in enumerate(
            zip(bench.parts, bench.exports["gr-clip"], strict=True)
        ):
            has = draw_items("thirds", len(part.images), 0)
            place = folder / f"{way}-{number}"
            source = write_store(place / "store", part, has.tolist()).path
            if way == "fused":
                export_store(source, output=place / "export", preset="gr-clip", fuse=True)
                source = place / "export"
            index = build_index(source, output=place / "index")
            for query, (vectors, items) in queries_of(part, export).items():
                scores = export.z(vectors, combined=query == "both")
                ranked = item_scores(scores, has, way)
                for one in range(0, len(vectors), max(len(vectors) // 200, 1)):
                    caption, photo = (
                        Query([""], part.captions[:, items[one]][one // len(has)][None], "text"),
                        Query([""], part.views[items[one]][None], "image"),
                    )
                    asked = {"text": caption, "photo": photo}.get(query)
                    if asked is None:
                        asked = combined(index.pipeline, [caption, photo])
                    (hits,) = index.rank(
                        asked.embeddings,
                        asked.modality,
                        split="test",
                        transformed=asked.is_transformed,
                    )
                    found = {int(hit.item.removeprefix("item").partition("#")[0]) for hit in hits}
                    expected = {*np.argsort(-ranked[one])[:10].tolist()}
                    equal[query] += [len(found & expected), 10]
        cells = [f"{100 * same / total:.1f}" for same, total in equal.values()]
        rows.append([way, index.record["factory"], *cells])
    print(f"\n{bench.name}: places of the first ten in the index that are those above, %\n")
    print_table(["rows", "index", *QUERIES], rows)


def printed(show: Callable[[Any], None], *parts: Any) -> str:
    """Return the tables of some results, which are printed too."""
    tables = io.StringIO()
    with redirect_stdout(tables):
        for results in parts:
            show(results)
    print(tables.getvalue())
    return tables.getvalue().strip()


def replace_tables(page: str, name: str, tables: str) -> str:
    """Return the page with other tables after the comment of this name."""
    begin = f"<!-- {name}: {MADE_BY} -->"
    before, after = page.split(begin)
    return f"{before}{begin}\n\n{tables}\n\n{END}{after.partition(END)[2]}"


def main() -> None:
    """Print the tables; write them into the page, and all values beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, help="a store of Flickr8k with c3-mini")
    parser.add_argument("photos", type=Path, help="the folder of its photos")
    parser.add_argument("clip", type=Path, help="folder with the set of ViT-B/32 embeddings")
    parser.add_argument(
        "--write", action="store_true", help=f"write the tables of {PAGE.name} and its CSV file"
    )
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    sets = {
        "ViT-B/32, 50 + 50 items of Flickr8k": clip_parts(
            arguments.clip / "flickr8k_vitb32_combined"
        ),
        "c3-mini, Flickr8k val": [flickr_part(store, arguments.photos, "val")],
        "c3-mini, Flickr8k test": [flickr_part(store, arguments.photos, "test")],
    }
    with tempfile.TemporaryDirectory() as folder:
        clip, val, test = (
            Bench(name, parts, Path(folder, str(number)))
            for number, (name, parts) in enumerate(sets.items())
        )
        for number, bench in enumerate((clip, val)):
            print_check(bench, Path(folder, f"check-{number}"))
        ways = [measure_ways(bench) for bench in (test, clip, val)]
        answers = [measure_answers(bench) for bench in (clip, val)]
        weights = [measure_weights(bench) for bench in (test, clip, val)]
    page = PAGE.read_text(encoding="utf-8")
    page = replace_tables(page, "rows", printed(print_ways, *ways[:2]))
    page = replace_tables(page, "weights", printed(print_weights, *weights[:2]))
    page = replace_tables(page, "controls", printed(print_controls, test.parts[0]))
    if arguments.write:
        PAGE.write_text(page, encoding="utf-8")
        write_csv(PAGE.with_suffix(".csv"), [*chain(*ways, *answers, *weights)])


if __name__ == "__main__":
    main()
