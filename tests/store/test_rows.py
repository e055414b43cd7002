from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c3tools.errors import StoreError
from c3tools.store import Pairs, Rows
from c3tools.store import strings as strings_module
from c3tools.store.rows import item_keys, join_tables, row_items
from c3tools.store.strings import Strings, hash_strings


def texts_of(items: list[str | None]) -> Rows:
    keys = [f"text{i}" for i in range(len(items))]
    return Rows.of("text", keys, np.eye(len(items), 4), image_key=items, caption=[None, *["a"] * (len(items) - 1)])


def test_an_item_is_the_image_of_a_text_or_the_row_itself() -> None:
    texts = texts_of(["b", None, "b", "a"])
    assert texts.items == row_items(texts.table) == ["b", "text1", "b", "a"]
    assert texts.item_index.tolist() == [0, 1, 0, 2]
    assert item_keys(texts.table).to_pylist() == ["b", None, "b", "a"]
    assert texts.captions == ["", "a", "a", "a"]
    audio = Rows.of("audio", ["x", "y"], np.eye(2), pair_key=["a", None])
    assert audio.items == ["a", "y"]


def test_rows_are_paired_by_key_and_texts_without_image_are_in_no_pair() -> None:
    images = Rows.of("image", ["a", "b", "c"], np.diag([1.0, 2, 3]))
    pairs = Pairs.match(images, texts_of(["b", None, "b", "gone", "a"]))
    assert pairs.item_index.tolist() == [1, -1, 1, -1, 0]
    assert len(pairs) == 3
    first, second = pairs.arrays()
    assert first.max(axis=1).tolist() == [2, 2, 1]
    assert second.shape == (3, 4)
    rows = pairs.captions_of_first()
    assert rows.modality == "image"
    assert rows.keys == ["text0", "text2", "text4"] and rows.items == ["b", "b", "a"]


def test_items_are_sampled_and_held_out_whole() -> None:
    items = [f"image{i // 2}" for i in range(40)]
    texts = Rows.of("text", [f"text{i}" for i in range(40)], np.zeros((40, 2)), image_key=items)
    train, held = texts.hold_out(0.1)
    assert (len(train), len(held)) == (36, 4)
    assert not set(train.items) & set(held.items)
    small, large = texts.sample(0.1), texts.sample(0.5)
    assert (len(small), len(large)) == (4, 20)
    assert set(small.keys) < set(large.keys)


def test_where_takes_the_rows_of_a_split() -> None:
    images = Rows.of("image", list("abc"), np.eye(3), split=["train", "validation", "test"])
    assert images.where("val").keys == ["b"]
    assert images.where(None) is images.where("all") is images
    assert images.splits == ["train", "val", "test"]


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(StoreError, match="2 keys, but 1 values of split"):
        Rows.of("image", ["a", "b"], np.eye(2), split=["train"])
    with pytest.raises(StoreError, match="2 keys, 3 embeddings"):
        Rows.of("image", ["a", "b"], np.eye(3))


def test_strings_are_a_sequence_that_equals_a_list() -> None:
    values = ["b", "", "ä", "b", "日本"]
    strings = Strings(values)
    assert strings == values and values == strings and strings == tuple(values) and strings == Strings.of(iter(values))
    assert strings not in (values[:4], ["b", "", "ä", "b", "日"], "b")
    assert (strings[0], strings[-1], strings[1:3], list(strings), len(strings)) == ("b", "日本", ["", "ä"], values, 5)
    assert strings.numbers.tolist() == [0, 1, 2, 0, 3] and strings.distinct == 4
    assert strings.take(np.array([3, 0])) == ["b", "b"]
    assert strings.take(np.array([False, True, False, False, True])) == ["", "日本"]
    assert Strings([]) == [] and Strings([]).numbers.tolist() == []
    assert repr(Strings(["a"])) == "['a']" and "9 strings" in repr(Strings("abcdefghi"))
    with pytest.raises(IndexError):
        strings[5]


@given(st.lists(st.lists(st.text(max_size=3), max_size=20), min_size=1, max_size=3))
def test_the_digest_of_strings_is_that_of_the_joined_text(columns: list[list[str]]) -> None:
    digest, expected = hashlib.sha256(), "\x1f".join(text for column in columns for text in column)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings_module, "BLOCK_ROWS", 4)
        hash_strings(digest, *map(Strings, columns))
    assert digest.digest() == hashlib.sha256(expected.encode()).digest()


def test_columns_that_are_too_long_for_32_bits_get_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strings_module, "_MOST_BYTES", 10)
    strings = Strings(pa.chunked_array([["a longer text"], ["b", "c"]]))
    assert strings.array.type == pa.large_string()
    assert strings == ["a longer text", "b", "c"]
    assert Strings(pa.chunked_array([pa.array(["a", "b"]).dictionary_encode()])) == ["a", "b"]


def test_tables_whose_texts_are_too_long_for_32_bits_are_joined_with_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strings_module, "_MOST_BYTES", 100)
    parts = [
        pa.table({"key": [f"text{i}"], "image_key": ["a"], "caption": ["a long text" * 9], "width": [i]})
        for i in (0, 1)
    ]
    joined = join_tables(list(parts))
    types = {field.name: field.type for field in joined.schema}
    assert types == {"key": pa.string(), "image_key": pa.string(), "caption": pa.large_string(), "width": pa.int64()}
    assert joined.to_pylist() == [row for part in parts for row in part.to_pylist()]
    assert all(column.num_chunks == 1 for column in joined.columns)
    rows = Rows("text", np.eye(2, dtype=np.float32), joined)
    assert rows.captions == ["a long text" * 9] * 2
    assert rows.select(np.array([1])).keys == ["text1"]
