"""Compare codes of one, four and eight bits a dimension for searching across modalities, by what is
subtracted first.

    c3 embed FLICKR8K --store STORE
    python benchmarks/codes.py STORE CLIP_EMBEDDINGS --csv docs/results/codes.csv

Text queries look for their image among images, photo queries for one of their captions among texts.
Rows and queries are coded as they are (raw), less one common mean, as Weaviate and OpenSearch
subtract it, or less the mean of their own modality (Collapse), and scaled to unit length. Means are
of train rows with Flickr8k, and of the other half with the two sets of real CLIP embeddings.

    float32   inner product
    int8      FAISS SQ8: a range for each dimension
    RaBitQ    one bit a dimension and two floats a row, less the mean of what is indexed; RaBitQ4
              has four bits; RR is a random rotation before
    sign      one bit a dimension, compared by the Hamming distance: the bits that
              sentence-transformers calls ubinary, and pgvector, Qdrant and FAISS search

Recall@1 and @10 with 95% intervals by Wilson's score over items, and the gain of own means over
raw embeddings with its bootstrap interval over items. Takes two minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
from measuring import print_table

from c3tools import Store
from c3tools.arrays import Array, Indices, Matrix
from c3tools.metrics.significance import mean_interval, share_interval
from c3tools.moments import unit_rows
from c3tools.seeds import generator

CODES = ("float32", "int8", "RaBitQ", "RR, RaBitQ", "RaBitQ4", "RR, RaBitQ4", "sign", "RR, sign")
MEANS = ("raw", "one mean", "own means")
GAIN = "own means − raw"
FIRST = 10


@dataclass(frozen=True)
class Part:
    """Rows to search and the rows that means are of.

    Attributes:
        image: unit rows (n, d), one an item.
        text: unit rows (m, d).
        owner: the image of each text, (m,).
        train: unit rows by modality, of other items.
    """

    image: Matrix
    text: Matrix
    owner: Indices
    train: dict[str, Matrix]


@dataclass(frozen=True)
class Found:
    """The queries that found a right row, and the item of each query."""

    first: Array
    ten: Array
    items: Indices


class Result(NamedTuple):
    """A recall of one set, or the gain of own means over raw embeddings, with its 95% interval.

    Attributes:
        name: of the set.
        code: one of `CODES`.
        size: bytes of a row.
        means: one of `MEANS`, or `GAIN`.
        queries: their kind.
        k: rows that are looked at.
        recall: share of the queries.
        low: lower end of the interval.
        high: upper end.
    """

    name: str
    code: str
    size: int
    means: str
    queries: str
    k: int
    recall: float
    low: float
    high: float


def flickr(store: Store) -> list[Part]:
    """Return the test rows of Flickr8k."""
    pairs = store.pairs(split="test")
    train = {name: unit_rows(store.load(name, "train").embeddings) for name in ("image", "text")}
    image = unit_rows(pairs.first.embeddings)
    return [Part(image, unit_rows(pairs.second.embeddings), pairs.item_index, train)]


def clip_set(folder: Path) -> list[Part]:
    """Return the two halves of a set of real CLIP embeddings, each with the means of the other."""
    image, text = (unit_rows(np.load(folder / f"{kind}.npy")) for kind in ("image", "text"))
    lines = (folder / "meta.jsonl").read_text().splitlines()
    captions_of = {
        line["row"]: line.get("text_rows", [line["row"]])
        for line in map(json.loads, lines)
        if line.get("text_rows", 1)
    }
    order = generator(0, "halves").permutation(list(captions_of))
    halves = [np.sort(half) for half in np.array_split(order, 2)]
    parts = []
    for own, other in (halves, halves[::-1]):
        texts = [row for number in own for row in captions_of[int(number)]]
        owner = np.repeat(np.arange(len(own)), [len(captions_of[int(n)]) for n in own])
        train_texts = [row for number in other for row in captions_of[int(number)]]
        train = {"image": image[other], "text": text[train_texts]}
        parts.append(Part(image[own], text[texts], owner, train))
    return parts


def centred(part: Part, means: str) -> tuple[Matrix, Matrix]:
    """Return images and texts less what is subtracted, at unit length."""
    if means == "raw":
        return part.image, part.text
    mean = {name: rows.mean(axis=0) for name, rows in part.train.items()}
    if means == "one mean":
        common = (mean["image"] + mean["text"]) / 2
        mean = {"image": common, "text": common}
    return unit_rows(part.image - mean["image"]), unit_rows(part.text - mean["text"])


def search(code: str, rows: Matrix, queries: Matrix) -> Indices:
    """Return the numbers of the first ten rows for each query: int64 (q, 10)."""
    dim = rows.shape[1]
    if code == "RR, sign":
        rotation = np.linalg.qr(generator(0, "rotation").normal(size=(dim, dim)))[0]
        rows = (rows @ rotation).astype(np.float32)
        queries = (queries @ rotation).astype(np.float32)
    if code.endswith("sign"):
        binary = faiss.IndexBinaryFlat(dim)
        binary.add(np.packbits(rows > 0, axis=1))
        return np.asarray(binary.search(np.packbits(queries > 0, axis=1), FIRST)[1])
    index = faiss.index_factory(dim, factory(code, dim), faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    return np.asarray(index.search(queries, FIRST)[1])


def factory(code: str, dim: int) -> str:
    """Return FAISS's name of a code."""
    names = {"float32": "Flat", "int8": "SQ8"}
    return names.get(code, code.replace("RR, ", f"RR{dim},"))


def bytes_of(code: str, dim: int) -> int:
    """Return the bytes of a row."""
    if code.endswith("sign"):
        return dim // 8
    return int(
        faiss.index_factory(dim, factory(code, dim), faiss.METRIC_INNER_PRODUCT).sa_code_size()
    )


def measure(parts: list[Part], code: str, means: str) -> dict[str, Found]:
    """Return by kind of query whether right rows were found, of all parts."""
    found: dict[str, list[tuple[Array, Indices]]] = {"text": [], "image": []}
    start = 0
    for part in parts:
        image, text = centred(part, means)
        right = search(code, image, text) == part.owner[:, None]
        found["text"].append((right, start + part.owner))
        right = part.owner[search(code, text, image)] == np.arange(len(image))[:, None]
        found["image"].append((right, start + np.arange(len(image))))
        start += len(image)
    joined = {}
    for kind, values in found.items():
        hits = np.concatenate([right for right, _ in values])
        items = np.concatenate([owners for _, owners in values])
        joined[kind] = Found(hits[:, 0].astype(float), hits.any(axis=1).astype(float), items)
    return joined


def results_of(name: str, parts: list[Part]) -> Iterator[Result]:
    """Yield the recalls of one set, and the gain of own means over raw embeddings, code by code."""
    dim = parts[0].image.shape[1]
    for code in CODES:
        measured = {means: measure(parts, code, means) for means in MEANS}
        size = bytes_of(code, dim)
        for means, found in measured.items():
            for kind, each in found.items():
                for k, hits in ((1, each.first), (FIRST, each.ten)):
                    low, high = share_interval(hits, each.items) or (np.nan, np.nan)
                    yield Result(name, code, size, means, kind, k, hits.mean(), low, high)
        for kind, after in measured["own means"].items():
            before = measured["raw"][kind]
            for k, gains in ((1, after.first - before.first), (FIRST, after.ten - before.ten)):
                sizes = np.bincount(after.items)
                by_item = np.bincount(after.items, gains)[sizes > 0] / sizes[sizes > 0]
                low, high = mean_interval(by_item) or (np.nan, np.nan)
                yield Result(name, code, size, GAIN, kind, k, gains.mean(), low, high)


def table_of(results: list[Result]) -> list[list[str]]:
    """Return a row for each code and what is subtracted, with the gain in points ± the wider side
    of its interval.
    """
    rows: dict[tuple[str, str], list[str]] = {}
    for result in results:
        row = rows.setdefault(
            (result.code, result.means), [f"{result.code}, {result.means}", str(result.size)]
        )
        value, low, high = (100 * number for number in (result.recall, result.low, result.high))
        if result.means == GAIN:
            row.append(f"{value:+.1f} ± {max(value - low, high - value):.1f}")
        else:
            row.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
    return list(rows.values())


def write_csv(path: Path, results: list[Result]) -> None:
    """Write all recalls and gains, in percent."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["set", "code", "bytes per row", "subtracted", "queries", "k", "recall", "low", "high"]
        )
        for result in results:
            *words, recall, low, high = result
            writer.writerow([*words, *(f"{100 * number:.1f}" for number in (recall, low, high))])


def main() -> None:
    """Print a table for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="a store of Flickr8k with c3-mini")
    parser.add_argument("clip", type=Path, help="folder with both sets of CLIP embeddings")
    parser.add_argument("--csv", type=Path, help="also write all numbers to this file")
    arguments = parser.parse_args()
    sets = {"Flickr8k test, c3-mini": flickr(Store.open(arguments.store))}
    sets["COCO, ViT-B/16"] = clip_set(arguments.clip / "coco_val2017_vitb16_500")
    sets["Flickr8k, ViT-B/32"] = clip_set(arguments.clip / "flickr8k_vitb32_combined")
    columns = [f"{kind} queries, recall@{k}" for kind in ("text", "photo") for k in (1, FIRST)]
    everything = []
    for title, parts in sets.items():
        images = sum(len(part.image) for part in parts)
        texts = sum(len(part.text) for part in parts)
        print(f"\n{title}: {images:,} images, {texts:,} texts\n")
        results = list(results_of(title, parts))
        print_table(["code", "bytes per row", *columns], table_of(results))
        everything += results
    if arguments.csv:
        write_csv(arguments.csv, everything)


if __name__ == "__main__":
    main()
