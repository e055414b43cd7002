from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from c3tools import Store
from c3tools.errors import StoreError
from c3tools.index import Hit, Index, build_index
from tests.stores import gap_store, unit

pytest.importorskip("faiss", reason="faiss is an extra")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(gap_store(tmp_path / "c3-store"))


def centred(store: Store, modality: str) -> np.ndarray:
    x = unit(store.load(modality).embeddings.astype(np.float64))
    return unit(x - store.moments(modality, "train").mean)


def test_mixed_index_of_a_small_store_is_exact(store: Store, tmp_path: Path) -> None:
    index = build_index(store, tmp_path / "index")
    report = index.to_dict()
    assert (report["factory"], report["rows"], report["recall@10"]) == ("Flat", 270, 1.0)
    vectors = np.concatenate([centred(store, "image"), centred(store, "text")])
    scores, rows = index.nearest(store.load("image").embeddings[:7], "image", 5)
    exact = vectors[:7] @ vectors.T
    assert (rows == np.argsort(-exact, axis=1)[:, :5]).all()
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :5], atol=1e-5)
    keys = [index.rows.column("key")[int(row)].as_py() for row in rows[0]]
    assert keys[0] == "img000"
    assert index.rows.column("modality").to_pylist() == ["image"] * 90 + ["text"] * 180
    opened = Index.open(tmp_path / "index")
    assert (opened.nearest(store.load("image").embeddings[:7], "image", 5)[1] == rows).all()


def test_bias_falls_after_centring(store: Store, tmp_path: Path) -> None:
    bias = build_index(store, tmp_path / "index").to_dict()["bias@10"]
    for modality in ("image", "text"):
        assert bias["before"][modality] > 0.95
        assert bias["after"][modality] < bias["before"][modality] - 0.1


@pytest.mark.parametrize("factory", ["IVF4,SQfp16", "IVF4,Flat", "HNSW8"])
def test_other_factories_reach_the_recall_they_are_tuned_to(store: Store, tmp_path: Path, factory: str) -> None:
    index = build_index(store, tmp_path / "index", factory=factory, modality=["text"])
    report = index.to_dict()
    assert report["recall@10"] >= 0.98
    assert report["bias@10"] is None
    if "IVF" in factory:
        assert report["nprobe"] in (1, 2, 4)
    queries, texts = centred(store, "image"), centred(store, "text")
    _, rows = index.nearest(store.load("image").embeddings, "image", 10)
    exact = np.argsort(-queries @ texts.T, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)])
    assert recall >= 0.95


def test_shards_give_what_one_file_gives(store: Store, tmp_path: Path) -> None:
    one = build_index(store, tmp_path / "one")
    many = build_index(store, tmp_path / "many", shard_rows=64)
    assert len(many.record["shards"]) == 5
    queries = store.load("text").embeddings[:20]
    for within, first, last in ((None, 0, 270), ("text", 90, 270), ("image", 0, 90)):
        a, b = (index.nearest(queries, "text", 8, within=within)[1] for index in (one, many))
        assert (a == b).all()
        assert ((a >= first) & (a < last)).all()


def test_splits(store: Store, tmp_path: Path) -> None:
    index = build_index(store, tmp_path / "index", split="test", modality=["image"])
    keys = pq.read_table(tmp_path / "index" / "rows.parquet").column("key").to_pylist()
    assert keys == [f"img{i:03d}" for i in range(0, 90, 3)] == index.rows.column("key").to_pylist()


def test_an_array_is_a_query(store: Store, tmp_path: Path) -> None:
    index = build_index(store.path, tmp_path / "index")
    images = store.load("image").embeddings
    (one,) = index.search(vector=images[4], modality="image", k=1)
    assert one.hits == [Hit(one.hits[0].score, "img004", "image", path="img004.jpg")]
    several = index.search(vector=images[:3], modality="image", within="text", k=2)
    assert [len(result.hits) for result in several] == [2, 2, 2]
    assert {hit.modality for result in several for hit in result.hits} == {"text"}
    assert "<td>img004</td>" in one._repr_html_()


def test_refusals(store: Store, tmp_path: Path) -> None:
    for factory in ("Nonsense", "IVF4000,Flat"):
        with pytest.raises(StoreError, match=f"FAISS cannot make the index '{factory}' from 270 rows"):
            build_index(store, tmp_path / "index", factory=factory)
    with pytest.raises(StoreError, match=r"no rows in 'val' to index; it has train \(180\), test \(90\)"):
        build_index(store, tmp_path / "index", split="val")
    with pytest.raises(StoreError, match="k is 0"):
        build_index(store, tmp_path / "index").search(key="img001", k=0, store=store)
    with pytest.raises(StoreError, match=r"FAISS index is not written to s3://bucket/index"):
        build_index(store, "s3://bucket/index")
