"""Measure what it is worth to take from each score how much its row stands out for all queries
(CSLS, Conneau et al., 2018), on Flickr8k, on COCO, and on two sets of real CLIP embeddings.

    c3 embed FLICKR8K --store STORE
    python benchmarks/standing_rows.py STORE FLICKR8K/images CLIP_EMBEDDINGS COCO

After Collapse, b of a row is half the mean of its ten highest cosines with a bank: at most 1,000
train rows of the kind that asks, drawn by seed, without rows of the row's own item. The list is
ranked by s - b instead of the cosine s; in one list of images and texts by z of s - b with the
moments of s (fair_search.py). With one bank and without Collapse it is NNN (2410.24114) of alpha
1/2 and k 10.

The rules were chosen on COCO, ViT-B/32 and Flickr8k val. Flickr8k test and the 124 photos of COCO
chose nothing. Differences are paired, with bootstrap intervals over items, or over queries where
they are short. A short query is one to three successive words of a caption that begin and end with
a word of content; right are all items with these words in one of their five captions, if they are 5
to 100 of 1,000; the score is NDCG@10. Only c3-mini encodes texts here, so short queries are
measured with it alone.

Takes about ten minutes on 2 cores, of which two encode texts and photos, which are kept beside the
store.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fair_search import (
    BANK_ROWS,
    DRAWS,
    NNN,
    SHIPPED,
    Task,
    Train,
    clip_sets,
    cosines,
    draw_bank,
    encoded,
    flickr,
    measure,
    score_csls,
    shown,
    standing,
    with_hubs,
)
from measuring import print_table

from c3tools import Store, load_encoder
from c3tools.arrays import Array, Indices, Mask
from c3tools.assets.paths import C3_MINI_MOMENTS
from c3tools.encoders import Encoder
from c3tools.moments import Moments, load_moments, unit_rows
from c3tools.seeds import generator

Parts = Sequence[tuple[Train, Sequence[Task]]]
BANK_SIZES = (20, 50, 100, 250, 1_000, 5_000)
LEAST_BANK = 100
LISTS = ("Collapse", "calibrated", "NNN", "CSLS", "known kind")
SHORT_QUERIES = 300
PHRASE_LENGTHS = (1, 2, 3)
FUNCTION_WORDS = frozenset(
    "a an and are as at be by for from front has he her his in is it its near of off on one onto "
    "or other out over she some that the their them there they through to two up while who with "
    "another down around behind next into under three four being are".split()
)


@dataclass
class PairSet:
    """Photos and captions of the same items, and train rows of other items.

    Attributes:
        train: rows that moments and banks are taken from.
        images: float64 (n, d), one an item.
        texts: float64 (m, d).
        items: int64 (m,), the item of each text.
    """

    train: Train
    images: Array
    texts: Array
    items: Indices

    @classmethod
    def of(cls, train: Train, tasks: Sequence[Task]) -> PairSet:
        """Return the items of a task of text queries, with all their captions."""
        task = tasks[0]
        if task.other_kind:  # a query is the only caption of its item
            return cls(train, task.rows["image"], task.queries, task.items)
        texts = np.concatenate([task.rows["text"], task.queries])
        items = np.concatenate([np.arange(len(task.rows["text"])), task.items])
        return cls(train, task.rows["image"], texts, items)


def distance_of_bank(bank: Array, moments: Moments) -> float:
    """Return D: the squared distance of the bank's mean from that of the modality, in units of the
    modality's variance; about 1 / m for m of its own rows.
    """
    gap = bank.mean(axis=0) - moments.mean
    return float(gap @ gap / np.trace(moments.covariance))


def reason_to_refuse(bank: Array, moments: Moments) -> str:
    """Return why a bank is refused; empty if it is not."""
    if len(bank) < LEAST_BANK:
        return f"fewer than {LEAST_BANK} rows"
    most = 0.05 + 3 / len(bank)
    distance = distance_of_bank(bank, moments)
    return f"D {distance:.2f} above {most:.3f}" if distance > most else ""


def right_first(scores: Array, is_right: Mask) -> Array:
    """Return whether the best row of each query is right, in expectation over ties: float64
    (q,).
    """
    best = scores.max(axis=1, keepdims=True)
    is_best = scores == best
    return np.asarray((is_best & is_right).sum(axis=1) / is_best.sum(axis=1))


def ndcg(scores: Array, is_right: Mask) -> Array:
    """Return NDCG@10 (q,) in percent, with several right rows a query, bool (q, n)."""
    first = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    gains = 1 / np.log2(2 + np.arange(10))
    best = np.array([gains[: min(10, count)].sum() for count in is_right.sum(axis=1)])
    return np.asarray(
        100 * (np.take_along_axis(is_right, first, axis=1) * gains).sum(axis=1) / best
    )


def scores_of_pairs(
    train: Train, asked: str, queries: Array, rows: Array, bank: Array | None = None
) -> dict[str, Array]:
    """Return scores (q, n) of rows of the other kind, by method."""
    own = "image" if asked == "text" else "text"
    if bank is None:
        bank = draw_bank(train.rows[asked])
    raw = queries @ rows.T
    collapsed = cosines(train, asked, queries, {own: rows})[own]
    of_bank = cosines(train, asked, bank, {own: rows})[own]
    return {
        "cosine": raw,
        "NNN": raw - standing(bank @ rows.T),
        "Collapse": collapsed,
        "CSLS": collapsed - standing(of_bank),
    }


def recall(part: PairSet, asked: str, bank: Array | None = None) -> dict[str, Array]:
    """Return recall@1 in percent of each query, by method; texts are averaged by item: (n,)."""
    numbers = np.arange(len(part.images))
    if asked == "image":
        scores = scores_of_pairs(part.train, asked, part.images, part.texts, bank)
        is_right = numbers[:, None] == part.items
        return {name: 100 * right_first(s, is_right) for name, s in scores.items()}
    scores = scores_of_pairs(part.train, asked, part.texts, part.images, bank)
    is_right = part.items[:, None] == numbers
    sizes = np.bincount(part.items)
    values = {}
    for name, s in scores.items():
        hits = np.bincount(part.items, right_first(s, is_right))
        values[name] = 100 * hits / sizes
    return values


def report_pairs(sets: Mapping[str, Sequence[PairSet]]) -> None:
    """Print recall@1 within one pair of kinds."""
    print("\nRecall@1 within one pair of kinds\n")
    rows = []
    for name, parts in sets.items():
        for asked in ("text", "image"):
            found = [recall(part, asked) for part in parts]
            values = {
                method: np.concatenate([each[method] for each in found]) for method in found[0]
            }
            banks = [draw_bank(part.train.rows[asked]) for part in parts]
            refused = [
                reason_to_refuse(bank, part.train.plain[asked])
                for bank, part in zip(banks, parts, strict=True)
            ]
            rows.append(
                [
                    f"{name}, {asked} queries",
                    *(f"{values[method].mean():.1f}" for method in values),
                    shown(values["CSLS"] - values["Collapse"], sign=True),
                    shown(values["CSLS"] - values["cosine"], sign=True),
                    "; ".join(filter(None, refused)) or "no",
                ]
            )
    headings = ["set", "cosine", "NNN", "Collapse", "CSLS", "CSLS − Collapse", "CSLS − cosine"]
    print_table([*headings, "refused"], rows)


def report_one_list(sets: Mapping[str, Parts]) -> None:
    """Print NDCG@10 in one list of half photos and half captions."""
    print("\nNDCG@10 in one list, half photos and half captions\n")
    methods = {"NNN": with_hubs(*NNN), "CSLS": score_csls}
    rows = []
    for name, parts in sets.items():
        found = {method: measure(parts, method, methods.get(method)) for method in LISTS}
        for asked in ("text", "image"):
            cell = (asked, 0.5)
            values = {method: cells[cell] for method, cells in found.items()}
            rows.append(
                [
                    f"{name}, {asked} queries",
                    *(f"{np.nanmean(values[method]):.1f}" for method in LISTS),
                    shown(values["CSLS"] - values["calibrated"], sign=True),
                    shown(values["NNN"] - values["calibrated"], sign=True),
                ]
            )
    print_table(
        ["set", *LISTS, "CSLS − calibrated", "NNN − calibrated"],
        rows,
    )


def phrases_of(captions: Sequence[str], length: int) -> list[str]:
    """Return the different phrases of so many words that begin and end with a word of content."""
    phrases = set()
    for caption in captions:
        words = _words(caption)
        for start in range(len(words) - length + 1):
            phrase = words[start : start + length]
            if not {phrase[0], phrase[-1]} & FUNCTION_WORDS:
                phrases.add(" ".join(phrase))
    return sorted(phrases)


def _words(caption: str) -> list[str]:
    return re.findall(r"[a-z]+", caption.lower())


def short_queries(captions: Sequence[str], items: Indices) -> dict[str, tuple[list[str], Mask]]:
    """Return queries of one, two and three words, and their right items, bool (q, n)."""
    words_of_item: list[list[set[str]]] = [[] for _ in range(int(items.max()) + 1)]
    for caption, item in zip(captions, items, strict=True):
        words_of_item[item].append({*_words(caption)})
    found = {}
    most = len(words_of_item) // 10
    for length in PHRASE_LENGTHS:
        known = phrases_of(captions, length)
        queries = []
        is_right = []
        for number in generator(0, "short queries", length).permutation(len(known)):
            phrase_words = {*known[number].split()}
            right = [any(phrase_words <= words for words in item) for item in words_of_item]
            if 5 <= sum(right) <= most:
                queries.append(known[number])
                is_right.append(right)
            if len(queries) == SHORT_QUERIES:
                break
        found[f"{length} word{'s' if length > 1 else ''}"] = (queries, np.array(is_right))
    queries = [f"a photo of {query}" for texts, _ in found.values() for query in texts]
    found["a photo of …"] = (queries, np.concatenate([right for _, right in found.values()]))
    return found


def report_short_queries(
    encoder: Encoder,
    captions: Mapping[str, tuple[list[str], Indices]],
    sets: Mapping[str, Parts],
    phrases: Sequence[str],
) -> None:
    """Print NDCG@10 of short queries among photos, and in one list of half photos and half
    captions.

    Args:
        encoder: encodes the queries.
        captions: by set, its captions and the item of each.
        sets: their rows.
        phrases: of train captions, for a bank of short texts.
    """
    drawn = generator(0, "phrases").permutation(len(phrases))[:BANK_ROWS]
    texts_of_bank = [phrases[number] for number in drawn]
    bank = unit_rows(encoder.encode_texts(texts_of_bank).astype(np.float64))
    print("\nShort queries, NDCG@10\n")
    rows = []
    for name, (texts, items) in captions.items():
        train, tasks = sets[name][0]
        corpus = tasks[0].rows
        for kind, (queries, is_right) in short_queries(texts, items).items():
            vectors = unit_rows(encoder.encode_texts(queries).astype(np.float64))
            scores = scores_of_pairs(train, "text", vectors, corpus["image"])
            among_photos = {method: ndcg(s, is_right) for method, s in scores.items()}
            less_phrases = scores_of_pairs(train, "text", vectors, corpus["image"], bank)["CSLS"]
            by_phrases = ndcg(less_phrases, is_right)
            in_one_list = {}
            for method, score in (("calibrated", SHIPPED), ("CSLS", score_csls)):
                of_kinds = score(train, "text", vectors, corpus)
                values = []
                for draw in range(DRAWS):
                    count = len(corpus["image"])
                    is_photo = generator(0, "corpus", draw).permutation(count) < count // 2
                    s = np.where(is_photo, of_kinds["image"], of_kinds["text"])
                    values.append(ndcg(s, is_right))
                in_one_list[method] = np.mean(values, axis=0)
            rows.append(
                [
                    f"{name}, {kind}",
                    f"{len(queries):,}",
                    f"{among_photos['Collapse'].mean():.1f}",
                    shown(among_photos["CSLS"] - among_photos["Collapse"], sign=True),
                    shown(by_phrases - among_photos["Collapse"], sign=True),
                    f"{in_one_list['calibrated'].mean():.1f}",
                    shown(in_one_list["CSLS"] - in_one_list["calibrated"], sign=True),
                ]
            )
    headings = [
        "queries",
        "number",
        "photos: Collapse",
        "CSLS − Collapse",
        "with a bank of phrases",
    ]
    print_table([*headings, "list: calibrated", "CSLS − calibrated"], rows)


def report_banks(part: PairSet, foreign: Mapping[str, Array]) -> None:
    """Print what text queries among photos gain by the bank.

    Args:
        part: Flickr8k val.
        foreign: banks of other kinds or domains.
    """
    print("\nFlickr8k val, text queries among photos: recall@1 by the bank\n")
    banks = {}
    for size in BANK_SIZES:
        drawn = generator(0, "bank size").permutation(len(part.train.rows["text"]))[:size]
        banks[f"{size:,} train captions"] = part.train.rows["text"][drawn]
    rows = []
    for name, bank in {**banks, **foreign}.items():
        values = recall(part, "text", bank)
        rows.append(
            [
                name,
                f"{distance_of_bank(bank, part.train.plain['text']):.3f}",
                shown(values["CSLS"] - values["Collapse"], sign=True),
                reason_to_refuse(bank, part.train.plain["text"]) or "no",
            ]
        )
    print_table(["bank", "D", "CSLS − Collapse", "refused"], rows)


def report_store(store: Store, part: PairSet) -> None:
    """Print what the rule of the own item changes, and how far a search must look, in all photos
    of the store.

    Args:
        store: Flickr8k.
        part: Flickr8k val, whose captions are the queries.
    """
    pairs = store.pairs(split="train")
    texts = unit_rows(pairs.second.embeddings.astype(np.float64))
    drawn = np.sort(generator(0, "bank").permutation(len(texts))[:BANK_ROWS])
    bank_items = pairs.item_index[drawn]
    in_bank = np.unique(bank_items)
    outside = np.setdiff1d(np.arange(len(pairs.first)), in_bank)
    outside = generator(0, "outside").permutation(outside)[: len(in_bank)]
    photos = unit_rows(pairs.first.embeddings.astype(np.float64))
    items = np.concatenate([in_bank, outside])
    rows = {"image": photos[items]}
    of_bank = cosines(part.train, "text", texts[drawn], rows)["image"]
    without_own = np.where(bank_items[:, None] == items, -np.inf, of_bank)
    s = cosines(part.train, "text", part.texts, rows)["image"]
    print("\nPlaces of the first ten that are taken by items outside the bank, half of all, %\n")
    table = []
    for name, scores in (
        ("Collapse", s),
        ("CSLS with the own item", s - standing(of_bank)),
        ("CSLS without it", s - standing(without_own)),
    ):
        first = np.argpartition(-scores, 10, axis=1)[:, :10]
        table.append([name, shown(100 * (first >= len(in_bank)).mean(axis=1))])
    print_table(["ranked by", "share"], table)

    print("\nThe ten best by s - b among all train photos, by how many cosines are looked at\n")
    of_bank = cosines(part.train, "text", texts[drawn], {"image": photos})["image"]
    of_bank[bank_items[:, None] == np.arange(len(photos))] = -np.inf
    b = standing(of_bank)
    s = cosines(part.train, "text", part.texts, {"image": photos})["image"]
    order = np.argsort(-s, axis=1)
    ranked = np.take_along_axis(s - b, order, axis=1)
    tenth = np.sort(ranked, axis=1)[:, -10]
    table = []
    for count in (10, 20, 40, 160):
        looked_at = ranked[:, :count]
        share = (looked_at >= tenth[:, None]).sum(axis=1) / 10
        # No row that was not looked at can be among the ten
        last = np.take_along_axis(s, order[:, count - 1 : count], axis=1)[:, 0] - b.min()
        is_done = np.sort(looked_at, axis=1)[:, -10] >= last
        table.append([str(count), f"{100 * share.mean():.1f}", f"{100 * (1 - is_done.mean()):.1f}"])
    print_table(["cosines", "of the ten best, %", "queries that need more, %"], table)


def coco_photos(encoder: Encoder, folder: Path, cache: Path) -> tuple[PairSet, Array]:
    """Return 124 photos of COCO with their captions, and a bank of 1,000 captions of other images.

    The text mean is that of 4,000 further captions, the image mean that of c3-mini's training data.

    Args:
        encoder: c3-mini, which was not trained on these photos or their captions.
        folder: with coco_captions/ and coco_cc*/.
        cache: beside which embeddings are kept.
    """
    paths: list[Path] = []
    captions: list[str] = []
    items: list[int] = []
    for file in sorted(folder.glob("coco_cc*/captions.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            items += [len(paths)] * len(row["captions"])
            captions += row["captions"]
            paths.append(file.parent / "images" / row["image"])
    others = []
    for line in (folder / "coco_captions" / "val2017.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not any(row.get(f"has_photo_in_{name}") for name in ("coco_cc", "coco_cc_more")):
            others += row["captions"]
    drawn = generator(0, "coco").permutation(len(others))[: 5 * BANK_ROWS]
    other_texts = [others[number] for number in drawn]
    images = encoded(cache.with_suffix(".photos.npy"), lambda: encoder.encode_images(paths))
    texts = encoded(cache.with_suffix(".captions.npy"), lambda: encoder.encode_texts(captions))
    known = encoded(cache.with_suffix(".known.npy"), lambda: encoder.encode_texts(other_texts))
    bank, fitted = np.split(unit_rows(known), [BANK_ROWS])
    train = Train({"image": unit_rows(images), "text": fitted}, {})
    train.plain["image"] = load_moments(C3_MINI_MOMENTS)[0]["image"]
    return PairSet(train, unit_rows(images), unit_rows(texts), np.array(items)), bank


def report_foreign_banks(coco: PairSet, own_bank: Array, other_bank: Array) -> None:
    """Print what the captions of the photos of COCO gain by a bank of COCO or of Flickr8k, with the
    text mean of COCO or of c3-mini's training data.
    """
    print("\n124 photos of COCO (held out), 620 text queries: recall@1\n")
    rows = []
    of_coco = coco.train.plain["text"]
    of_encoder = load_moments(C3_MINI_MOMENTS)[0]["text"]
    for mean_of, moments in (("COCO", of_coco), ("c3-mini's training data", of_encoder)):
        coco.train.plain["text"] = moments
        for bank_of, bank in (("COCO", own_bank), ("Flickr8k", other_bank)):
            values = recall(coco, "text", bank)
            rows.append(
                [
                    mean_of,
                    bank_of,
                    f"{values['Collapse'].mean():.1f}",
                    shown(values["CSLS"] - values["Collapse"], sign=True),
                    f"{distance_of_bank(bank, moments):.3f}",
                    reason_to_refuse(bank, moments) or "no",
                ]
            )
    print_table(["text mean", "bank", "Collapse", "CSLS − Collapse", "D", "refused"], rows)


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path, help="a store of Flickr8k with c3-mini")
    parser.add_argument("photos", type=Path, help="the folder of its photos")
    parser.add_argument("clip", type=Path, help="folder with both sets of CLIP embeddings")
    parser.add_argument("coco", type=Path, help="folder with coco_captions/ and coco_cc*/")
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    encoder = load_encoder("c3-mini")
    train, tasks = flickr(store, arguments.photos)
    clip = clip_sets(arguments.clip)
    sets: dict[str, Parts] = {
        "COCO, ViT-B/16": clip["coco_val2017_vitb16_500"],
        "ViT-B/32": clip["flickr8k_vitb32_combined"],
        "Flickr8k val": [(train, tasks["val"])],
        "Flickr8k test (held out)": [(train, tasks["test"])],
    }
    pair_sets = {
        name: [PairSet.of(own_train, own_tasks) for own_train, own_tasks in parts]
        for name, parts in sets.items()
    }
    report_pairs(pair_sets)
    report_one_list(sets)

    coco, coco_bank = coco_photos(encoder, arguments.coco, Path(f"{arguments.store}-coco"))
    report_foreign_banks(coco, coco_bank, draw_bank(train.rows["text"]))

    captions = {}
    for name, split in (("Flickr8k val", "val"), ("Flickr8k test (held out)", "test")):
        pairs = store.pairs(split=split)
        captions[name] = (pairs.second.captions, pairs.item_index)
    train_captions = store.pairs(split="train").second.captions
    phrases = [phrase for length in PHRASE_LENGTHS for phrase in phrases_of(train_captions, length)]
    report_short_queries(encoder, captions, sets, phrases)
    (val,) = pair_sets["Flickr8k val"]
    foreign = {
        "1,000 train photos": draw_bank(train.rows["image"]),
        "1,000 captions of COCO": coco_bank,
    }
    report_banks(val, foreign)
    report_store(store, val)


if __name__ == "__main__":
    main()
