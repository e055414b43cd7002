"""What is written to a store is read back, moments are those of the rows, and damage is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools import gap_report
from c3tools.errors import IncompleteStoreError, StoreError
from c3tools.store import Store, StoreInfo, StoreWriter, shard_table, write_rows
from tests.conftest import Messages, add_shard, unit_rows
from tests.stores import DIM, FAILURE, one_byte_changed, whole_store

Put = Callable[[Path], Path]


def test_rows_come_back_as_they_went_in(tmp_path: Path, put: Put) -> None:
    written = whole_store(tmp_path / "s")
    store = Store.open(put(written.path))
    assert {name: store.count(name) for name in store.modalities} == {"image": 30, "text": 60}
    images = store.load("image")
    np.testing.assert_array_equal(
        images.embeddings, unit_rows(30, DIM, 1).astype(np.float16).astype(np.float32)
    )
    as_stored = store.load("image", dtype=store.info.dtype).embeddings
    assert as_stored.dtype == np.float16
    np.testing.assert_array_equal(as_stored, images.embeddings)
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
    assert (
        json.loads(metadata[b"c3"])
        == store.info.to_dict()
        == json.loads((store.path / "store.json").read_text())
    )
    assert (
        json.loads(metadata[b"c3.failures"])[0]["key"] == FAILURE.key
        and len(metadata[b"c3.made_from"]) == 64
    )
    assert pq.read_table(path).num_rows == 10  # any reader takes the file and the folder
    assert pq.read_table(path.parent).num_rows == 30
    table = shard_table(store.info, "image", unit_rows(2, DIM), {"key": ["a", "b"]})
    for split_bytes, *values in (
        (True, "ZSTD", {"BYTE_STREAM_SPLIT"}),
        (False, "UNCOMPRESSED", set()),
    ):
        write_rows(tmp_path / "x", store.info, "image", table, split_bytes=split_bytes)
        columns = map(pq.ParquetFile(tmp_path / "x").metadata.row_group(0).column, range(3))
        found = [
            (c.compression, {*c.encodings} - {"PLAIN", "RLE"}, c.is_stats_set) for c in columns
        ]
        assert found == [
            ("ZSTD", {"RLE_DICTIONARY"}, True),
            (*values, False),
            ("ZSTD", set(), True),
        ]
    before, refused = store.load("image"), 0
    # what is not a value of a row may be changed unnoticed
    for position in range(100, path.stat().st_size, 97):
        with one_byte_changed(path, position, 1):
            try:
                rows = store.load("image")
                assert np.array_equal(rows.embeddings, before.embeddings) and rows.table.equals(
                    before.table
                )
            except StoreError as error:
                assert "part-00001" in error.message
                refused += 1
    assert refused > 5


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    for name in (
        "store.json",
        "moments.safetensors",
        "external-moments.safetensors",
        "manifest.json",
    ):
        half = (path / name).stat().st_size // 2
        with one_byte_changed(path / name, half, 2), pytest.raises(StoreError, match=name):
            opened = Store.open(path)
            opened.moments("image")
            opened.external_moments()


def test_an_error_of_the_reader_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(rows: pa.RecordBatch, split: str) -> None:
        raise TypeError("our own")

    store = whole_store(tmp_path / "c3-store")
    monkeypatch.setattr("c3tools.store.reader.split_mask", broken)
    with pytest.raises(TypeError, match="our own"):
        list(store.batches("image", split="train"))


def test_an_unfinished_store_is_read_as_far_as_it_is_listed(tmp_path: Path) -> None:
    store, said = whole_store(tmp_path / "s"), Messages()
    path, info = store.path, store.info
    add_shard(path, info, "image", 3, unit_rows(1, DIM), {"key": ["new"], "split": ["train"]})
    add_shard(path / ".rewriting", info, "image", 0, unit_rows(1, DIM), {"key": ["staged"]})
    assert Store.open(path, reporter=said).count("image") == 30 and "c3 embed" in said.texts[0]
    (path / "manifest.json").unlink()
    opened = Store.open(path, reporter=said)
    assert "manifest.json" in said.texts[1]
    assert (opened.count("image"), opened.moments("image").n, opened.count("image", "train")) == (
        31,
        31,
        25,
    )
    StoreWriter(path).finish()  # discards what was only staged
    assert store.moments("image").n == store.count("image") == 30  # opened before
    assert Store.open(path).load("image").keys == opened.load("image").keys
    (path / ".rewriting").mkdir()
    (path / ".rewriting" / "list.json").write_text("[]")
    with pytest.raises(IncompleteStoreError, match="rewrit"):
        Store.open(path)


def test_what_a_store_says_of_itself_is_checked(tmp_path: Path) -> None:
    def said(**changes: Any) -> dict[str, Any]:
        (tmp_path / "store.json").write_text(
            json.dumps({"format_version": 1, "model": {}, "dim": 4} | changes)
        )
        return StoreInfo.load(tmp_path).to_dict()

    assert [said(dim=dim)["dim"] for dim in (1, 1_000_000)] == [1, 1_000_000]
    for name, value in (("dim", 0), ("dim", 1_000_001), ("dtype", "float64")):
        with pytest.raises(StoreError, match=r"store\.json"):
            said(**{name: value})


def test_rows_that_no_store_has_are_refused(tmp_path: Path) -> None:
    not_utf8 = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    (tmp_path / "image").mkdir()
    cases: list[tuple[Any, list[Any], str]] = [
        (["a", None], [[1, 0], [0, 1]], "'key'"),
        (["a", "b"], [[1, 0], None], "'embedding'"),
        (not_utf8, [[1, 0], [0, 1]], "(?i)utf-?8"),
    ]
    for keys, vectors, said in cases:
        table = pa.table({"key": keys, "embedding": pa.array(vectors, pa.list_(pa.float32(), 2))})
        pq.write_table(table, tmp_path / "image" / "part-00000.parquet")
        with pytest.raises(StoreError, match=said):
            Store.open(tmp_path).load("image")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    store = whole_store(tmp_path / "s")
    for read in (store.moments, store.moments_by_split):
        with pytest.raises(StoreError, match="image, text"):
            read("audio")
    add_shard(store.path, store.info, "image", 1, unit_rows(1, DIM), {"key": ["x"]})
    with pytest.raises(StoreError, match=r"part-00001\.parquet is not the shard"):
        store.load("image")
    store.file("image", 1).write_bytes(b"x")
    assert Store.open(store.path).moments("image").n == 30  # which are read from no shard
    shutil.rmtree(store.path / "image")
    (store.path / "manifest.json").unlink()
    assert Store.open(store.path).modalities == ["text"]


def test_a_lost_description_is_not_a_lost_store(tmp_path: Path) -> None:
    store = whole_store(tmp_path / "s")
    (store.path / "store.json").unlink()
    with pytest.raises(StoreError, match=r"no store\.json.\n.*c3 verify --store \S+ --repair"):
        Store.open(store.path)


def test_arrays_are_no_store() -> None:
    arrays: Any = {"image": unit_rows(4, 3), "text": unit_rows(4, 3, 1)}
    with pytest.raises(StoreError, match=r"not a dict\.\n.*c3 import"):
        gap_report(arrays)
