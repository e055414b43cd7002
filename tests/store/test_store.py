"""What is written to a store is read back, moments are those of the rows, and damage is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from c3tools.errors import IncompleteStoreError, StoreError
from c3tools.store import Store, StoreWriter
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
    assert Store.open(store.path, reporter=said).count("image") == 30 and "c3 embed" in said.texts[0]
    (store.path / "manifest.json").unlink()
    opened = Store.open(store.path, reporter=said)
    assert "manifest.json" in said.texts[1]
    assert (opened.count("image"), opened.moments("image").n, opened.count("image", "train")) == (31, 31, 25)
    (store.path / ".rewriting").mkdir()
    StoreWriter(store.path).finish()  # discards what was only staged
    (store.path / ".rewriting").mkdir()
    (store.path / ".rewriting" / "list.json").write_text("[]")
    with pytest.raises(IncompleteStoreError, match="rewrit"):
        Store.open(store.path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        Store.open(tmp_path / "nowhere")
    store = whole_store(tmp_path / "s")
    with pytest.raises(StoreError, match="image, text"):
        store.load("audio")
    with pytest.raises(StoreError, match=r"train \(24\), val \(6\)"):
        store.moments("image", "foo")
    shutil.rmtree(store.path / "image")
    (store.path / "manifest.json").unlink()
    assert Store.open(store.path).modalities == ["text"]
