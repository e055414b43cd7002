"""FAISS indexes beside shards: exact, listed in the manifest, and made again when their rows
change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3tools import Index, Store, import_embeddings, merge_stores, split_store, verify_store
from c3tools.errors import StoreError
from c3tools.store.shard_indexes import keep_indexes, read_index
from tests.conftest import Messages, contents
from tests.stores import colour_corpus, embed_colours, gap_store, make_vectors, unit, whole_store

faiss = pytest.importorskip("faiss")


@pytest.mark.parametrize(
    ("dtype", "normalised"), [("float16", True), ("float32", True), ("float16", False)]
)
def test_shards_are_searched_as_one_exact_index(
    tmp_path: Path, dtype: str, normalised: bool
) -> None:
    path = gap_store(tmp_path / "s", dtype=dtype, normalised=normalised).path
    with pytest.raises(StoreError, match="--faiss"):
        Index.open(path)
    keep_indexes(path)
    store = Store.open(path)
    size = 2 if dtype == "float16" and normalised else 4  # bytes of a number
    assert read_index(store, "text", 0).sa_code_size() == size * store.info.dim
    rows, index = store.load("text"), Index.open(path)
    vectors = unit(rows.embeddings)
    (result,) = index.search(vector=vectors[5:6], k=4, within="text")
    scores = vectors @ vectors[5]
    order = np.argsort(-scores)[:4]
    assert [hit.key for hit in result.hits] == [rows.keys[int(row)] for row in order]
    np.testing.assert_allclose([hit.cosine for hit in result.hits], scores[order], atol=2e-3)


def test_damage_is_found_refused_and_repaired(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    keep_indexes(path)
    whole, file = contents(path), path / "image" / "_part-00001.faiss"
    for content in (None, file.read_bytes()[:-3] + b"abc"):
        file.unlink() if content is None else file.write_bytes(content)
        assert [(f.check, f.file) for f in verify_store(path).findings] == [
            ("faiss", "image/_part-00001.faiss")
        ]
        with pytest.raises((StoreError, OSError), match="part-00001"):
            read_index(Store.open(path), "image", 1)
        assert verify_store(path, repair=True).whole
        assert contents(path) == whole


def test_every_writer_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = colour_corpus(tmp_path / "c", {"a": "red", "b": "blue"}), tmp_path / "s"
    embed_colours(folder, path)
    keep_indexes(path)
    colour_corpus(folder, {"a": "gold", "b": "blue", "c": "lime"})
    said = Messages()
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "faiss", None)
        embed_colours(folder, path, update=True, reporter=said)
    indexed = Store.open(path).indexed  # rewritten shards and new ones are listed without
    assert ("image", 0) not in indexed and ("text", 0) in indexed
    assert "faiss-cpu" in said.texts[-1] and not verify_store(path).defects
    embed_colours(folder, path)
    split_store(path, output=tmp_path / "split")
    merge_stores([path, tmp_path / "split"], output=tmp_path / "merged", keep="first")
    np.save(tmp_path / "v.npy", make_vectors(4)[0])
    import_embeddings(store=tmp_path / "imported", image=tmp_path / "v.npy")
    keep_indexes(tmp_path / "imported")
    import_embeddings(store=tmp_path / "imported", text=tmp_path / "v.npy")
    for made in ("s", "split", "merged", "imported"):
        store = Store.open(tmp_path / made)
        assert store.indexed == [*store.shards] and verify_store(store.path).whole
