"""Rows and pairs: an item with all its rows, paired by key."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c3tools.errors import StoreError
from c3tools.store import Pairs, Rows
from c3tools.store.reader import reason_to_hold_out
from c3tools.store.rows import item_keys, one_array


def test_an_item_is_the_image_of_a_text_or_the_row_itself() -> None:
    items = ["b", None, "b", "a"]
    texts = Rows.of("text", [*"0123"], np.eye(4), image_key=items, caption=[None, "a", "a", "a"])
    assert texts.items == ["b", "1", "b", "a"] and texts.item_count == 3
    assert texts.item_index.tolist() == [0, 1, 0, 2]
    assert item_keys(texts.table).to_pylist() == items
    assert Pairs.match(texts, texts).item_index.tolist() == [0, -1, 0, 3]
    assert texts.captions == ["", "a", "a", "a"]
    assert Rows.of("audio", ["x", "y"], np.eye(2), pair_key=["a", None]).items == ["a", "y"]


def test_the_text_of_rows_is_short() -> None:
    rows = Rows.of("text", [f"key{n}" for n in range(1000)], np.eye(1000, 8), split=["val"] * 1000)
    assert repr(rows) == "Rows(text, 1000 x 8, columns key, split)"


@given(st.lists(st.sampled_from("abc"), unique=True), st.lists(st.sampled_from([*"abcd", None])))
def test_pairs_are_the_join_by_key(images: list[str], items: list[str | None]) -> None:
    first = Rows.of("image", images, np.arange(len(images))[:, None])
    second = Rows.of(
        "text", [f"t{i}" for i in range(len(items))], np.eye(len(items)), image_key=items
    )
    pairs, found = Pairs.match(first, second), [item for item in items if item in images]
    assert pairs.item_index.tolist() == [
        images.index(item) if item in images else -1 for item in items
    ]
    assert len(pairs) == len(pairs.rows) == len(found)
    assert pairs.arrays()[0][:, 0].tolist() == [*map(images.index, found)]
    swapped = pairs.captions_of_first()
    assert swapped.modality == "image" and swapped.items == found


def test_items_are_sampled_and_held_out_whole() -> None:
    items = [f"image{i // 2}" for i in range(40)]
    texts = Rows.of("text", [f"text{i}" for i in range(40)], np.zeros((40, 2)), image_key=items)
    train, held = texts.hold_out()
    assert len(train) == 36 and not set(train.items) & set(held.items)
    for n, lengths in ((1, [1, 0]), (2, [1, 1]), (3, [2, 1])):
        assert [*map(len, texts.select(np.arange(0, 2 * n, 2)).hold_out())] == lengths
    small, large = texts.sample(0.1), texts.sample(0.5)
    assert (len(large), len(texts.sample(0.001))) == (20, 2) and set(small.keys) < set(large.keys)
    # trainings of other versions drew the same
    assert held.keys == ["text18", "text19", "text32", "text33"]
    assert small.keys == ["text28", "text29", "text32", "text33"]


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(StoreError, match="2 keys, 3 embeddings"):
        Rows.of("image", ["a", "b"], np.eye(3))


def test_texts_too_long_for_32_bits_get_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.store.rows._MOST_BYTES", 8)
    joined = one_array(pa.chunked_array([["a longer text"], ["b"]]))
    assert joined.type == pa.large_string() and joined.to_pylist() == ["a longer text", "b"]


@pytest.mark.parametrize(("split", "has_reason"), [("train", False), ("val", True), ("VAL", True)])
def test_rows_of_val_that_are_trained_on_do_not_validate(split: str, has_reason: bool) -> None:
    assert bool(reason_to_hold_out(split, has_val=True)) == has_reason
