"""What is written to a store is read back, moments are those of the rows, and damage is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools.errors import IncompleteStoreError, StoreError
from c3tools.store import Store, StoreInfo, StoreWriter, shard_table, write_rows
from tests.conftest import Messages, add_shard, unit_rows
from tests.stores import DIM, FAILURE, one_byte_changed, whole_store

Put = Callable[[Path], Path]


def test_rows_come_back_as_they_went_in(tmp_path: Path, put: Put) -> None:
    written = whole_store(tmp_path / "s")
    store = Store.open(put(written.path))
    assert store.modalities == ["image", "text"] and (store.count("image"), store.count("text")) == (30, 60)
    images = store.load("image")
    np.testing.assert_array_equal(images.embeddings, unit_rows(30, DIM, 1).astype(np.float16).astype(np.float32))
    assert images.keys == [f"img{i:03d}" for i in range(30)]
    assert images.column("path")[7] == "photos/img007.jpg"
    assert store.shard_failures("image", 1) == store.recorded_failures() == [FAILURE]
    assert store.load("image", "foo").table.schema == images.table.schema
    pairs = store.pairs(split="val")
    assert len(pairs) == 12 and {key[:6] for key in pairs.second.keys} == set(pairs.first.keys)


def test_a_shard_explains_itself_and_has_checksums(tmp_path: Path) -> None:
    store = whole_store(tmp_path / "s")
    path = store.file("image", 1)
    metadata = pq.read_schema(path).metadata
    assert json.loads(metadata[b"c3"]) == store.info.to_dict() == json.loads((store.path / "store.json").read_text())
    assert json.loads(metadata[b"c3.failures"])[0]["key"] == FAILURE.key and len(metadata[b"c3.made_from"]) == 64
    assert pq.read_table(path).num_rows == 10  # any reader takes the file and the folder
    assert pq.read_table(path.parent).num_rows == 30
    for split_bytes in (True, False):
        table = shard_table(store.info, "image", unit_rows(2, DIM), {"key": ["a", "b"]})
        write_rows(tmp_path / "x", store.info, table, split_bytes=split_bytes)
        group = pq.ParquetFile(tmp_path / "x").metadata.row_group(0)
        columns = [
            (c.compression, {*c.encodings} - {"PLAIN", "RLE"}, c.is_stats_set) for c in map(group.column, range(3))
        ]
        values = ("ZSTD", {"BYTE_STREAM_SPLIT"}, False) if split_bytes else ("UNCOMPRESSED", set(), False)
        assert columns == [("ZSTD", {"RLE_DICTIONARY"}, True), values, ("ZSTD", set(), True)]
    before, refused = store.load("image"), 0
    for position in range(100, path.stat().st_size, 97):  # what is not a value of a row may be changed unnoticed
        with one_byte_changed(path, position, 1):
            try:
                found = store.load("image")
            except StoreError as error:
                assert "part-00001" in error.message
                refused += 1
            else:
                np.testing.assert_array_equal(found.embeddings, before.embeddings)
                assert found.table.equals(before.table)
    assert refused > 5


@pytest.mark.parametrize("name", ["store.json", "moments.safetensors", "external-moments.safetensors", "manifest.json"])
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    path = whole_store(tmp_path / "s").path
    content = (path / name).read_bytes()
    with one_byte_changed(path / name, len(content) // 2, 2), pytest.raises(StoreError, match=name):
        opened = Store.open(path)
        opened.moments("image")
        opened.external_moments()


def test_an_unfinished_store_is_read_as_far_as_it_is_listed(tmp_path: Path) -> None:
    store, said = whole_store(tmp_path / "s"), Messages()
    info = store.info
    add_shard(store.path, info, "image", 3, unit_rows(1, DIM), {"key": ["new"], "split": ["train"]})
    add_shard(store.path / ".rewriting", info, "image", 0, unit_rows(1, DIM), {"key": ["staged"]})
    assert Store.open(store.path, reporter=said).count("image") == 30 and "c3 embed" in said.texts[0]
    (store.path / "manifest.json").unlink()
    opened = Store.open(store.path, reporter=said)
    assert "manifest.json" in said.texts[1]
    assert (opened.count("image"), opened.moments("image").n, opened.count("image", "train")) == (31, 31, 25)
    StoreWriter(store.path).finish()  # discards what was only staged
    assert store.moments("image").n == store.count("image") == 30  # opened before
    assert Store.open(store.path).load("image").keys == opened.load("image").keys
    (store.path / ".rewriting").mkdir()
    (store.path / ".rewriting" / "list.json").write_text("[]")
    with pytest.raises(IncompleteStoreError, match="rewrit"):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("changes", "is_whole"),
    [
        ({"dim": 1}, True),
        ({"dim": 1_000_000}, True),
        *(
            (changes, False)
            for changes in ({"dim": 0}, {"dim": 1_000_001}, {"dtype": "float64"}, {"format_version": 2})
        ),
    ],
)
def test_what_a_store_says_of_itself_is_checked(tmp_path: Path, changes: dict[str, Any], is_whole: bool) -> None:
    content = {"format_version": 1, "model": {}, "dim": 4} | changes
    (tmp_path / "store.json").write_text(json.dumps(content))
    with nullcontext() if is_whole else pytest.raises(StoreError, match=r"store\.json"):
        assert StoreInfo.load(tmp_path).to_dict().items() >= content.items()


@pytest.mark.parametrize(
    ("keys", "vectors", "said"),
    [
        (pa.array(["a", None]), [[1, 0], [0, 1]], "'key'"),
        (pa.array(["a", "b"]), [[1, 0], None], "'embedding'"),
        (pa.array([b"a", b"\xff"], pa.binary()).view(pa.string()), [[1, 0], [0, 1]], "(?i)utf-?8"),
    ],
)
def test_rows_that_no_store_has_are_refused(tmp_path: Path, keys: Any, vectors: Any, said: str) -> None:
    (tmp_path / "image").mkdir()
    table = pa.table({"key": keys, "embedding": pa.array(vectors, pa.list_(pa.float32(), 2))})
    pq.write_table(table, tmp_path / "image" / "part-00000.parquet")
    with pytest.raises(StoreError, match=said):
        Store.open(tmp_path).load("image")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        Store.open(tmp_path / "nowhere")
    store = whole_store(tmp_path / "s")
    for read in (store.load, store.moments, store.moments_by_split):
        with pytest.raises(StoreError, match="image, text"):
            read("audio")
    with pytest.raises(StoreError, match=r"train \(24\), val \(6\)"):
        store.moments("image", "foo")
    add_shard(store.path, store.info, "image", 1, unit_rows(1, DIM), {"key": ["x"]})
    with pytest.raises(StoreError, match=r"part-00001\.parquet has 1 rows, .* lists 10"):
        store.load("image")
    store.file("image", 1).write_bytes(b"x")
    assert Store.open(store.path).moments("image").n == 30  # which are read from no shard
    shutil.rmtree(store.path / "image")
    (store.path / "manifest.json").unlink()
    assert Store.open(store.path).modalities == ["text"]
