"""Hits that are items: against the rows of a search by row, folded by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from c3tools import Index, build_index
from c3tools.index import Hit, SearchResult, contact_sheet
from c3tools.store import Rows
from tests.conftest import build_store, unit_rows

pytest.importorskip("faiss", reason="faiss is an extra")

PHOTOS = [f"p{number:02d}" for number in range(40)]
# Photos that are copies: p00 to p08, and p10 and p11
COPIES = dict.fromkeys(PHOTOS[:9], "p00") | {"p11": "p10"}


@pytest.fixture(scope="module", params=["Flat", "IVF4,SQfp16", "RR16,IVF4,PQ8x4"])
def index(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Forty photos, all but the last with three captions, and thirty texts alone: the first has the
    key of a photo, the last two are equal.
    """
    folder = tmp_path_factory.mktemp("items")
    digests = [f"sha256 of {COPIES.get(name, name)}" for name in PHOTOS]
    splits = ["test" if number % 8 == 1 else "train" for number in range(40)]
    paths = [f"{name}.jpg" for name in PHOTOS]
    images = Rows.of("image", PHOTOS, unit_rows(40, 16), path=paths, sha256=digests, split=splits)
    keys = [f"{name}#{number}" for name in PHOTOS[:-1] for number in range(3)]
    alone = ["p20", *(f"t{number}" for number in range(29))]
    columns: dict[str, Any] = {
        "image_key": [key.partition("#")[0] for key in keys] + [None] * 30,
        "caption": [f"caption of {key}" for key in keys] + [*alone[:-2], "a copy", "a copy"],
        "split": [splits[PHOTOS.index(key[:3])] for key in keys] + ["train"] * 30,
    }
    texts = Rows.of("text", [*keys, *alone], unit_rows(147, 16, 1), **columns)
    store = build_store(folder / "store", images, texts, part_rows=30)
    return build_index(store, output=folder / "index", factory=request.param)


def folded(rows: list[Hit]) -> list[list[str]]:
    """Return the rows of each item, the best item first."""
    items: dict[str, list[str]] = {}
    for hit in rows:
        name = COPIES.get(hit.item, hit.item)
        if hit.modality == "text" and hit.image_key is None:
            name = f"text {'a copy' if hit.caption == 'a copy' else hit.key}"
        items.setdefault(name, []).append(hit.key)
    return list(items.values())


@pytest.mark.parametrize("only", [None, "image", "text"])
@pytest.mark.parametrize("split", [None, "test"])
def test_a_hit_is_an_item_with_its_rows(index: Index, only: str | None, split: str | None) -> None:
    options: dict[str, Any] = {"only": only, "split": split}
    if index.record["nprobe"]:
        options["nprobe"] = 4  # all lists, so that both searches see every row
    for query in unit_rows(5, 16, 2):
        (rows,) = index.rank(query[None], "text", 300, by="row", **options)
        for k in (1, 7, 300):
            (hits,) = index.rank(query[None], "text", k, **options)
            assert [sorted(row.key for row in hit.rows) for hit in hits] == [
                sorted(keys) for keys in folded(rows)[:k]
            ]
            for hit in hits:
                assert hit.key == hit.rows[0].key and hit.score == hit.rows[0].score
                scores = [row.score for row in hit.rows]
                assert scores == sorted(scores, reverse=True)
                expected = {row.row: row.score for row in rows}
                assert scores == pytest.approx([expected[row.row] for row in hit.rows], abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"by": "row"}, {"separate": True}, {"split": "test", "k": 50}, {"transformed": True}],
)
def test_queries_at_once_get_the_hits_that_each_gets_alone(
    index: Index, options: dict[str, Any]
) -> None:
    queries = np.concatenate([unit_rows(9, 16, 4), np.ones((1, 16), np.float32)])
    for query, hits in zip(queries, index.rank(queries, "text", **options), strict=True):
        (alone,) = index.rank(query[None], "text", **options)
        for name in ("row", "columns", "captions", "copies"):
            assert [getattr(hit, name) for hit in hits] == [getattr(hit, name) for hit in alone]
        # FAISS rotates several vectors at once with other rounding errors
        scores = [row.score for hit in hits for row in [hit, *hit.rows]]
        of_alone = [row.score for hit in alone for row in [hit, *hit.rows]]
        assert scores == pytest.approx(of_alone, abs=1e-5)
    assert index.rank(queries[:0], "text", **options) == []


def test_separate_lists_have_so_many_items_of_each_modality(index: Index) -> None:
    (hits,) = index.rank(unit_rows(1, 16, 2), "text", 3, separate=True)
    assert [hit.modality for hit in hits] == ["image"] * 3 + ["text"] * 3
    assert all({row.modality for row in hit.rows} == {hit.modality} for hit in hits)


def test_k_counts_hits_where_few_rows_of_the_lists_visited_are_wanted(index: Index) -> None:
    for query in unit_rows(20, 16, 3):
        for by, count in (("item", 5), ("row", 20)):
            (hits,) = index.rank(query[None], "text", count, split="test", by=by)  # type: ignore[arg-type]
            assert len(hits) == count


def test_what_copies_and_rows_of_an_item_look_like(index: Index) -> None:
    query = np.ones((1, 16), np.float32)
    (hits,) = index.rank(query, "text", 300)
    by_item = {hit.item: hit for hit in hits}
    (copied,) = (by_item[name] for name in PHOTOS[:9] if name in by_item)
    assert copied.copies == 9 and len(copied.rows) == 36 and len(copied.captions) == 27
    assert copied.line().endswith(f"(and 26 more)  {copied.path}  ×9")
    values = copied.to_dict()
    assert values["key"] == values["rows"][0]["key"] and values["copies"] == 9
    assert values["item"] == copied.item and "rows" not in values["rows"][0]
    (equal_texts,) = (hit for hit in hits if hit.caption == "a copy")
    assert equal_texts.copies == 2 and equal_texts.captions == ["a copy"]
    assert by_item["p39"].captions == [] and "more" not in by_item["p39"].line()
    assert {hit.copies for hit in hits} == {1, 2, 9}


def test_a_contact_sheet_unfolds_the_other_captions(index: Index) -> None:
    (hits,) = index.rank(np.ones((1, 16), np.float32), "text", 300)
    page = contact_sheet([SearchResult("a dog", hits)])
    assert page.count("<summary>and 2 more</summary>") == 28
    assert page.count("<summary>and 26 more</summary>") == 1
    assert " · ×9<span>" in page and page.count("caption of p20#1") == 1
