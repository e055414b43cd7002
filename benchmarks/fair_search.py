"""Compare ways to put images and texts into one ranking, on Flickr8k and on two sets of real CLIP
embeddings.

    c3 embed FLICKR8K --store STORE
    python benchmarks/fair_search.py STORE FLICKR8K/images CLIP_EMBEDDINGS --coco FOLDER

Each item is in the corpus once: as its photo or as one caption. A query is another caption of the
item, or another view of its photo (mirrored, the middle 80%), so that the corpus has one right row
for it and never the query itself. With real CLIP embeddings there is no other view, and captions of
COCO are one an item: there the right row is always of the other kind. The score is NDCG@10 in
percent, with a bootstrap interval over items.

The forms that are compared, registered before any result. e is a unit row or query, c = unit(e -
mu) the same centred by the mean of its own kind; mu and S are mean and covariance over train rows
of kind m.

    cosine                      e.e'
    Collapse                    c.c'
    rank fusion                 1 / (60 + rank within its kind): reciprocal rank fusion
    min-max fusion              (s - s_10) / (s_1 - s_10) within its kind, s = c.c'
    score fusion                (s - m + 3 d) / (6 d), m and d mean and deviation of the first ten
                                of its kind: the distribution-based score fusion of Qdrant and
                                Haystack, s = c.c'
    score fusion, raw           the same of untouched vectors, s = e.e'
    other kind first            all rows of the other kind than the query, then those of its own, by
                                c.c'
    pseudo-positive             (s - a_m) / b_m, a and b mean and deviation of the best score of
                                train queries (2511.22141)
    calibrated                  c.c' / sqrt(c' S c / tr S), S of plain rows: the next one if centred
                                rows have all the same norm
    calibrated, centred rows    (c.c' - c.mu) / sqrt(c' S c), mu and S of centred rows
    calibrated, uncentred       e.(e' - mu) / sqrt(e' S e)
    fair, any length            (e - mu).(e' - mu) / sqrt(tr S_m)
    fair                        c.c' / sqrt(tr(S_q S_m) / tr S_q / tr S_m): the preset
    Platt                       logistic(a_m s + b_m), from train pairs
    known kind                  the rows of the right kind alone
    NNN                         calibrated, less alpha times the mean of a row's k best such scores
                                with train queries (2410.24114); alpha and k are chosen on val
    CSLS                        calibrated, of c.c' - b with the moments of c.c': b is half the mean
                                of a row's ten highest cosines with at most 1,000 train rows of the
                                kind that asks (1710.04087)

Where the right row is always of the other kind, "other kind first" beats every form without
comparing anything, so such cells measure, and choose nothing. The rule of choice, written before it
was run: the highest mean over the cells in which half of the right rows are of each kind, Flickr8k
val and the set of ViT-B/32, between the three calibrated forms. The rule before was the mean over
all cells of Flickr8k val. Takes about five minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import print_table
from PIL import Image, ImageOps

from c3tools import Calibration, Moments, Store, load_encoder, preset
from c3tools.arrays import Array, Indices, Mask, Matrix
from c3tools.assets.paths import C3_MINI_MOMENTS
from c3tools.encoders import Encoder
from c3tools.metrics.significance import mean_interval
from c3tools.moments import load_moments, unit_rows
from c3tools.seeds import generator
from c3tools.transforms.logistic import fit_logistic

KINDS = ("image", "text")
SHARES = (0.2, 0.5, 0.8)
DRAWS = 5  # corpora per share of photos
Scores = dict[str, Array]  # of all queries with all items (q, n), by kind of row


@dataclass
class Task:
    """Queries of one kind, float64 (q, d), the number of the item of each, and the items as rows of
    each kind.
    """

    kind: str
    queries: Array
    items: Indices
    rows: dict[str, Array]
    other_kind: bool  # the right row is always of the other kind, half the items are of each kind


@dataclass
class Train:
    """Rows of each kind to take moments from, and the pairs among them as queries of each kind with
    their rows.
    """

    rows: dict[str, Array]
    pairs: dict[str, tuple[Array, dict[str, Array]]]

    def __post_init__(self) -> None:
        self.plain = {kind: Moments.from_rows(rows) for kind, rows in self.rows.items()}
        self.centred = {
            kind: Moments.from_rows(self.centre(rows, kind)) for kind, rows in self.rows.items()
        }

    def centre(self, rows: Array, kind: str) -> Array:
        """Return unit(e - mu)."""
        return unit_rows(rows - self.plain[kind].mean)


def cosines(train: Train, kind: str, queries: Array, rows: Mapping[str, Array]) -> Scores:
    """Return c.c'."""
    q = train.centre(queries, kind)
    return {own: q @ train.centre(x, own).T for own, x in rows.items()}


def calibrated(make: Callable[[Train], Calibration]) -> Callable[..., Scores]:
    """Return the form that a calibration stands for."""

    def score(train: Train, kind: str, queries: Array, rows: Mapping[str, Array]) -> Scores:
        calibration = make(train)
        transform = calibration.pipeline.transform
        q = transform(queries, modality=kind)
        return {
            own: calibration.z(q, q @ transform(x, modality=own).T, own) for own, x in rows.items()
        }

    return score


SHIPPED = calibrated(lambda train: Calibration.fit(train.plain))


def score_fair_of_any_length(
    train: Train, kind: str, queries: Array, rows: Mapping[str, Array]
) -> Scores:
    """Return centred rows over the root of their mean variance in the directions of queries."""
    q = queries - train.plain[kind].mean
    spread = train.plain[kind].covariance
    return {
        own: q
        @ (x - train.plain[own].mean).T
        / np.sqrt((spread * train.plain[own].covariance).sum())
        for own, x in rows.items()
    }


def score_fair(train: Train, kind: str, queries: Array, rows: Mapping[str, Array]) -> Scores:
    """Return the same with rows of norm 1 after centring, as the preset has it."""
    fair = preset("fair", train_on=kind).fit(train.plain)
    q = fair.transform(queries, modality=kind)
    return {
        own: (q @ fair.transform(x, modality=own).T).astype(np.float64) for own, x in rows.items()
    }


def score_pseudo(train: Train, kind: str, queries: Array, rows: Mapping[str, Array]) -> Scores:
    """Standardise by the best scores of train queries in this corpus."""
    found = cosines(train, kind, queries, rows)
    best = {
        own: s.max(axis=1) for own, s in cosines(train, kind, train.pairs[kind][0], rows).items()
    }
    return {own: (s - best[own].mean()) / best[own].std() for own, s in found.items()}


def score_platt(train: Train, kind: str, queries: Array, rows: Mapping[str, Array]) -> Scores:
    """Fit a logistic curve per kind of row to train pairs and as many rows of other items."""
    bank, answers = train.pairs[kind]
    found = cosines(train, kind, queries, rows)
    curves: Scores = {}
    for own, s in found.items():
        if own not in answers:
            continue
        known = cosines(train, kind, bank, {own: answers[own]})[own]
        same = (bank @ bank.T > 1 - 1e-6) | np.eye(len(bank), dtype=bool)
        x = np.concatenate([np.diag(known), known[~same]])
        y = np.concatenate([np.ones(len(bank)), np.zeros((~same).sum())])
        slope, offset = fit_logistic(x[:, None], y, 1e-9)
        curves[own] = slope * s + offset
    return curves


def with_hubs(alpha: float, k: int) -> Callable[..., Scores]:
    """Return calibrated scores less a bias of each row: the mean of its k best scores with train
    queries of the kind.
    """

    def score(train: Train, kind: str, queries: Array, rows: Mapping[str, Array]) -> Scores:
        found, bank = (SHIPPED(train, kind, q, rows) for q in (queries, train.pairs[kind][0]))
        bias = {own: np.sort(s, axis=0)[-k:].mean(axis=0) for own, s in bank.items()}
        return {own: s - alpha * bias[own] for own, s in found.items()}

    return score


def draw_bank(rows: Array) -> Array:
    """Return at most 1,000 rows (m, d), drawn by seed."""
    drawn = generator(0, "bank").permutation(len(rows))[:BANK_ROWS]
    return rows[np.sort(drawn)]


def standing(cosines: Array) -> Array:
    """Return how much each row stands out (n,): half the mean of its ten highest cosines (m, n)
    with a bank of queries (CSLS, Conneau et al., 2018).
    """
    return np.asarray(np.sort(cosines, axis=0)[-10:].mean(axis=0) / 2)


def score_csls(train: Train, kind: str, queries: Array, rows: Mapping[str, Array]) -> Scores:
    """Return calibrated scores of the cosines less how much each row stands out; the moments stay
    those of the cosines.
    """
    calibration = Calibration.fit(train.plain)
    found = cosines(train, kind, queries, rows)
    of_bank = cosines(train, kind, draw_bank(train.rows[kind]), rows)
    q = train.centre(queries, kind)
    return {own: calibration.z(q, s - standing(of_bank[own]), own) for own, s in found.items()}


def raw_cosines(train: Train, kind: str, queries: Array, rows: Mapping[str, Array]) -> Scores:
    """Return e.e'."""
    return {own: queries @ x.T for own, x in rows.items()}


METHODS: dict[str, Callable[..., Scores]] = {
    "cosine": raw_cosines,
    "Collapse": cosines,
    "rank fusion": cosines,
    "min-max fusion": cosines,
    "score fusion": cosines,
    "score fusion, raw": raw_cosines,
    "other kind first": cosines,
    "pseudo-positive": score_pseudo,
    "calibrated": SHIPPED,
    "calibrated, centred rows": calibrated(
        lambda train: Calibration(train.centred, preset("gr-clip").fit(train.plain))
    ),
    "calibrated, uncentred": calibrated(
        lambda train: Calibration.fit(train.plain, pipeline=preset("c1"))
    ),
    "fair, any length": score_fair_of_any_length,
    "fair": score_fair,
    "Platt": score_platt,
    "known kind": cosines,
}
FUSIONS = (
    "rank fusion",
    "min-max fusion",
    "score fusion",
    "score fusion, raw",
    "other kind first",
)
NNN = (0.5, 10)  # alpha and k
BANK_ROWS = 1_000


def merged(method: str, scores: Array, photo: Mask, asked: str) -> Array:
    """Return scores (q, n) that the rows of both kinds are ranked by in one list.

    Args:
        method: one of those that make them of the order or the scores of each list; the scores of
            the others are returned as they are.
        scores: (q, n), of each row with each query.
        photo: which rows are photos, bool (n,).
        asked: the kind of the queries.
    """
    if method not in FUSIONS:
        return scores
    result = np.empty_like(scores)
    for mask, kind in ((photo, "image"), (~photo, "text")):
        own = scores[:, mask]
        best = -np.sort(-own, axis=1)[:, :10]
        if method == "rank fusion":
            result[:, mask] = 1 / (61 + np.argsort(np.argsort(-own, axis=1), axis=1))
        elif method == "min-max fusion":
            result[:, mask] = (own - best[:, -1:]) / (best[:, :1] - best[:, -1:])
        elif method in ("score fusion", "score fusion, raw"):
            mean = best.mean(axis=1, keepdims=True)
            deviation = best.std(axis=1, ddof=1, keepdims=True)
            result[:, mask] = (own - mean + 3 * deviation) / (6 * deviation)
        else:
            result[:, mask] = own + (kind != asked) * 10  # no cosine is as far from another
    return result


def places_of_other_kind(method: str, scores: Scores, task: Task) -> float:
    """Return how many of the first ten are of the other kind than the query, where half of the rows
    are.
    """
    count = len(task.rows["image"])
    places = []
    for draw in range(DRAWS):
        photo = generator(0, "corpus", draw).permutation(count) < round(0.5 * count)
        s = np.where(photo, scores["image"], scores["text"])
        s = merged(method, s, photo, task.kind)
        first = np.argpartition(-s, 10, axis=1)[:, :10]
        places.append((photo[first] == (task.kind == "text")).sum(axis=1).mean())
    return float(np.mean(places))


def per_item(method: str, scores: Scores, task: Task, share: float) -> Array:
    """Return NDCG@10 (n,) of each item, the mean over its queries and over corpora."""
    n, total, counts = (
        len(task.rows["image"]),
        np.zeros(len(task.queries)),
        np.zeros(len(task.queries)),
    )
    columns, ranks = np.arange(len(task.queries)), np.arange(1, n + 1)
    gains = np.r_[0, np.cumsum(np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0))]
    for draw in range(DRAWS):
        photo = generator(0, "corpus", draw).permutation(n) < round(share * n)
        s = np.where(photo, scores["image"], scores["text"])
        s = merged(method, s, photo, task.kind)
        right = s[columns, task.items][:, None]
        rivals = (photo == photo[task.items][:, None]) if method == "known kind" else True
        better, equal = (((s > right) & rivals).sum(axis=1), ((s == right) & rivals).sum(axis=1))
        asked = (
            photo[task.items] == (task.kind == "text")
            if task.other_kind
            else np.ones(len(better), bool)
        )
        # rows of one score come in any order
        total += asked * (gains[better + equal] - gains[better]) / equal
        counts += asked
    seen = counts > 0
    sums, sizes = (np.bincount(task.items[seen], v[seen], n) for v in (total, counts))
    return np.asarray(np.divide(100 * sums, sizes, out=np.full(n, np.nan), where=sizes > 0))


Cell = tuple[str, float]


def measure(
    parts: Sequence[tuple[Train, Sequence[Task]]],
    method: str,
    score: Callable[..., Scores] | None = None,
) -> dict[Cell, Array]:
    """Return the values of all items of the parts, by kind of query and share of photos."""
    cells: dict[Cell, list[Array]] = {}
    for train, tasks in parts:
        for task in tasks:
            scores = (score or METHODS[method])(train, task.kind, task.queries, task.rows)
            for share in (0.5,) if task.other_kind else SHARES:
                values = (
                    np.full(len(task.rows["image"]), np.nan)
                    if len(scores) < 2
                    else per_item(method, scores, task, share)
                )
                cells.setdefault((task.kind, share), []).append(values)
    return {cell: np.concatenate(values) for cell, values in cells.items()}


def shown(values: Array, *, sign: bool = False) -> str:
    """Return mean ± the wider side of its 95% interval."""
    values = values[~np.isnan(values)]
    if not len(values):
        return "–"
    mean = values.mean()
    low, high = mean_interval(values) or (np.nan, np.nan)
    return f"{mean:{'+' if sign else ''}.1f} ± {max(mean - low, high - mean):.1f}"


@dataclass
class Found:
    """Results of all methods on one set: NDCG@10 of its items by cell, and the places of the other
    kind among the first ten by kind of query, where half of the rows are of each kind.
    """

    scores: dict[str, dict[Cell, Array]]
    places: dict[str, dict[str, float]]


DIFFERENCES = {
    "calibrated − Collapse": ("calibrated", "Collapse"),
    "calibrated − score fusion": ("calibrated", "score fusion"),
    "calibrated − score fusion, raw": ("calibrated", "score fusion, raw"),
    "calibrated, uncentred − calibrated": ("calibrated, uncentred", "calibrated"),
    "NNN − calibrated": ("NNN", "calibrated"),
    "CSLS − calibrated": ("CSLS", "calibrated"),
}


def compare(parts: Sequence[tuple[Train, Sequence[Task]]], extra: Mapping[str, Any]) -> Found:
    """Measure all methods, and the extra ones, on one set."""
    scores = {method: measure(parts, method) for method in METHODS}
    scores |= {method: measure(parts, method, score) for method, score in extra.items()}
    places: dict[str, dict[str, float]] = {}
    train, tasks = parts[0]
    for method in [name for name in METHODS if name != "known kind"]:
        for task in tasks:
            found = METHODS[method](train, task.kind, task.queries, task.rows)
            if len(found) == 2:
                of_kind = places.setdefault(method, {})
                of_kind[task.kind] = places_of_other_kind(method, found, task)
    return Found(scores, places)


def report(sets: Mapping[str, Found]) -> None:
    """Print the tables of several sets: where half of the rows are photos, with the differences
    between methods; other shares of photos; places of the other kind.
    """
    for shares in ((0.5,), tuple(share for share in SHARES if share != 0.5)):
        columns = [
            (name, cell)
            for name, found in sets.items()
            for cell in found.scores["cosine"]
            if cell[1] in shares
        ]
        headings = [f"{name}, {kind}, {share:.0%}" for name, (kind, share) in columns]
        methods = next(iter(sets.values())).scores
        rows = [
            [method, *(shown(sets[name].scores[method][cell]) for name, cell in columns)]
            for method in methods
        ]
        for label, (one, other) in DIFFERENCES.items():
            cells = [
                shown(sets[name].scores[one][cell] - sets[name].scores[other][cell], sign=True)
                for name, cell in columns
            ]
            rows.append([label, *cells])
        print("\nNDCG@10 by set, kind of query and share of photos\n")
        print_table(["method", *headings], rows)
    print("\nPlaces of the other kind among the first ten, where half of the rows are photos\n")
    headings = [f"{name}, {kind}" for name in sets for kind in ("text", "image")]
    rows = []
    for method in next(iter(sets.values())).places:
        found = [sets[name].places.get(method, {}) for name in sets]
        cells = [
            f"{places[kind]:.1f}" if kind in places else "–"
            for places in found
            for kind in ("text", "image")
        ]
        rows.append([method, *cells])
    print_table(["method", *headings], rows)


def another_view(path: Path) -> Image.Image:
    """Return the middle 80% of a photo, mirrored."""
    with Image.open(path) as opened:
        image = ImageOps.mirror(opened.convert("RGB"))
    width, height = image.size
    return image.crop((width // 10, height // 10, width - width // 10, height - height // 10))


def encode_views(encoder: Encoder, paths: Sequence[Path]) -> Matrix:
    """Return embeddings of other views of photos."""
    return encoder.encode_images([another_view(path) for path in paths])


def encoded(cache: Path, encode: Callable[[], Matrix]) -> Array:
    """Return embeddings that are computed once and kept beside the store."""
    if not cache.exists():
        np.save(cache, encode())
    return np.asarray(np.load(cache, allow_pickle=False), np.float64)


def flickr(store: Store, photos: Path) -> tuple[Train, dict[str, list[Task]]]:
    """Return train rows with 1,000 pairs, and the tasks of val and test."""
    encoder = load_encoder("c3-mini")
    tasks, pairs = {}, {}
    for split in ("train", "val", "test"):
        found = store.pairs(split=split)
        # the image of each caption; captions of an image are one after the other
        of = found.item_index
        firsts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]])[
            : 1000 if split == "train" else None
        ]
        texts, images = (
            unit_rows(found.second.embeddings.astype(float)),
            unit_rows(found.first.embeddings.astype(float)),
        )
        names = found.first.column("path")
        paths = [photos / names[row] for row in of[firsts]]
        views = encoded(
            Path(f"{store.path}-{split}-views.npy"), partial(encode_views, encoder, paths)
        )
        rows = {"image": images[of[firsts]], "text": texts[firsts]}
        if split == "train":
            plain = {"image": images, "text": texts}
            pairs = {"text": (texts[firsts + 1], rows), "image": (views, rows)}
            continue
        queries = np.concatenate([firsts + more for more in range(1, 5)])
        own = np.tile(np.arange(len(firsts)), 4)
        tasks[split] = [
            Task("text", texts[queries], own, rows, other_kind=False),
            Task("image", views, np.arange(len(views)), rows, other_kind=False),
        ]
    return Train(plain, pairs), tasks


def clip_sets(folder: Path) -> dict[str, list[tuple[Train, list[Task]]]]:
    """Return both sets of real CLIP embeddings in two halves: moments from one, queries and corpus
    from the other.
    """
    found: dict[str, list[tuple[Train, list[Task]]]] = {}
    for name in ("coco_val2017_vitb16_500", "flickr8k_vitb32_combined"):
        x, y = (
            unit_rows(np.load(folder / name / f"{kind}.npy").astype(np.float64)) for kind in KINDS
        )
        meta = [
            json.loads(line) for line in (folder / name / "meta.jsonl").read_text().splitlines()
        ]
        captions = np.array(
            [
                (row["row"], *row.get("text_rows", [row["row"]]))
                for row in meta
                if row.get("text_rows", 1)
            ]
        )
        order = generator(0, "halves").permutation(len(captions))
        alone = np.setdiff1d(np.arange(len(x)), captions[:, 0])  # photos without captions
        halves = [captions[np.sort(half)] for half in np.array_split(order, 2)]
        found[name] = []
        for fit, held in (halves, halves[::-1]):
            known = {"image": x[fit[:, 0]], "text": y[fit[:, 1]]}
            pairs = {
                "image": (known["image"], {"text": known["text"]}),
                "text": (y[fit[:, -1]], dict(known)),
            }
            if len(captions[0]) == 2:
                pairs["text"][1].pop("text")
            train = Train(
                {"image": x[np.r_[fit[:, 0], alone]], "text": y[fit[:, 1:].ravel()]}, pairs
            )
            rows, n = {"image": x[held[:, 0]], "text": y[held[:, 1]]}, len(held)
            several = held.shape[1] > 2
            queries = held[:, 2:] if several else held[:, 1:]
            text = Task(
                "text",
                y[queries.T.ravel()],
                np.tile(np.arange(n), queries.shape[1]),
                rows,
                not several,
            )
            found[name].append(
                (train, [text, Task("image", rows["image"], np.arange(n), rows, other_kind=True)])
            )
    return found


CANDIDATES = ("calibrated", "calibrated, centred rows", "calibrated, uncentred")


def report_choice(sets: Mapping[str, Sequence[tuple[Train, Sequence[Task]]]]) -> None:
    """Print the mean of each candidate by the rule of choice, and by the rule before.

    Args:
        sets: Flickr8k val first, then the sets of real CLIP embeddings.
    """
    rows = []
    for method in CANDIDATES:
        found = {name: measure(parts, method) for name, parts in sets.items()}
        first = next(iter(found.values()))
        before = np.mean([np.nanmean(values) for values in first.values()])
        fair_cells = {
            f"{name}, {kind} queries": np.nanmean(values)
            for name, cells in found.items()
            for (kind, share), values in cells.items()
            if share == 0.5 and has_both_answers(sets[name], kind)
        }
        means = [f"{value:.1f}" for value in fair_cells.values()]
        rows.append([method, *means, f"{np.mean([*fair_cells.values()]):.2f}", f"{before:.2f}"])
    print("\nThe choice: the highest mean over cells with answers of both kinds\n")
    print_table(["form", *fair_cells, "mean", "the rule before: all cells of the first set"], rows)


def has_both_answers(parts: Sequence[tuple[Train, Sequence[Task]]], kind: str) -> bool:
    """Return whether right rows for queries of a kind are of both kinds."""
    return not any(task.other_kind for _, tasks in parts for task in tasks if task.kind == kind)


def report_moments(
    train: Train, tasks: Sequence[Task], others: Mapping[str, Mapping[str, Moments]]
) -> None:
    """Print what calibrated scores gain over Collapse by all train rows, with moments of few rows
    or another corpus.
    """
    usual, sources = measure([(train, tasks)], "Collapse"), dict(others)
    for n in (20, 50, 200, 1000, 6000):
        rng = generator(0, "few rows", n)
        sources[f"{n:,} train rows of each kind"] = {
            kind: Moments.from_rows(x[rng.choice(len(x), n, replace=False)])
            for kind, x in train.rows.items()
        }
    rows = []
    for name, moments in sources.items():
        train.plain = dict(moments)
        found = measure([(train, tasks)], "calibrated")
        rows.append([name, *(shown(found[cell] - usual[cell], sign=True) for cell in usual)])
    print("\nCalibrated − Collapse, by the rows that the moments of the former are from\n")
    print_table(
        ["moments from", *(f"{kind} queries, {share:.0%} photos" for kind, share in usual)], rows
    )


def main() -> None:
    """Choose on val, print the tables of test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, help="a store of Flickr8k with c3-mini")
    parser.add_argument("photos", type=Path, help="the folder of its photos")
    parser.add_argument("clip", type=Path, help="folder with both sets of CLIP embeddings")
    parser.add_argument(
        "--val", action="store_true", help="print the tables of val, on which the choices were made"
    )
    parser.add_argument(
        "--coco",
        type=Path,
        help="the folder with coco_captions/ and coco_cc*/, for moments of COCO",
    )
    arguments = parser.parse_args()
    train, tasks = flickr(Store.open(arguments.store), arguments.photos)
    split = "val" if arguments.val else "test"
    parts = [(train, tasks[split])]
    grid = (
        [(alpha, k) for alpha in (0.25, 0.5, 0.75) for k in (1, 5, 10, 50)]
        if arguments.val
        else [NNN]
    )
    extra = {("NNN" if choice == NNN else f"NNN {choice}"): with_hubs(*choice) for choice in grid}
    extra["CSLS"] = score_csls
    sets = {f"Flickr8k {split}, c3-mini": compare(parts, extra)}
    if arguments.val:
        report(sets)
        report_choice({f"Flickr8k {split}": parts, **clip_sets(arguments.clip)})
        return
    for name, halves in clip_sets(arguments.clip).items():
        sets[name] = compare(halves, extra)
    report(sets)
    others = {"c3-mini's training data": load_moments(C3_MINI_MOMENTS)[0]}
    if arguments.coco:
        coco, encoder = Path(f"{arguments.store}-coco"), load_encoder("c3-mini")
        lines = (arguments.coco / "coco_captions" / "val2017.jsonl").read_text().splitlines()
        captions = [caption for line in lines for caption in json.loads(line)["captions"]]
        paths = sorted(arguments.coco.glob("coco_cc*/images/*"))
        texts = encoded(coco.with_suffix(".text.npy"), lambda: encoder.encode_texts(captions))
        images = encoded(coco.with_suffix(".image.npy"), lambda: encoder.encode_images(paths))
        name = f"{len(captions):,} captions and {len(paths)} photos of COCO"
        others[name] = {"image": Moments.from_rows(images), "text": Moments.from_rows(texts)}
    report_moments(train, tasks[split], others)


if __name__ == "__main__":
    main()
