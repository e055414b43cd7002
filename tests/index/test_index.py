from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from c3tools import Store
from c3tools.errors import StoreError
from c3tools.index import Hit, Index, SearchResult, build, build_index, contact_sheet, faiss_shards
from c3tools.store import Rows
from c3tools.store.means import load_means, save_means, unload_means
from c3tools.store.shards import Shard, write_shard
from tests.conftest import Messages, build_store
from tests.corpus.packing import write_tar
from tests.stores import gap_store, make_vectors, unit

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
    (one,) = index.search(vector=images[4], modality="image", within="image", k=1)
    assert one.hits == [Hit(one.hits[0].score, "img004", "image", path="img004.jpg")]
    several = index.search(vector=images[:3], modality="image", within="text", k=2)
    assert [len(result.hits) for result in several] == [2, 2, 2]
    assert {hit.modality for result in several for hit in result.hits} == {"text"}
    assert "<td>img004</td>" in one._repr_html_()


def test_refusals(store: Store, tmp_path: Path) -> None:
    for factory in ("Nonsense", "IVF4000,Flat"):
        with pytest.raises(StoreError, match=f"FAISS cannot make the index '{factory}' from 270 rows"):
            build_index(store, tmp_path / "index", factory=factory)
    with pytest.raises(
        StoreError, match=r"no rows in the split 'val' to index\. Its splits are train \(180\), test \(90\)"
    ):
        build_index(store, tmp_path / "index", split="val")
    with pytest.raises(StoreError, match="k must be at least 1, not 0"):
        build_index(store, tmp_path / "index").search(key="img001", k=0, store=store)
    for query in ("", "  ", ["a dog", ""]):
        with pytest.raises(StoreError, match="query is empty"):
            build_index(store, tmp_path / "index").search(query)
    with pytest.raises(StoreError, match=r"FAISS index cannot be written to s3://bucket/index"):
        build_index(store, "s3://bucket/index")


def test_embeddings_of_another_model_are_refused(store: Store, tmp_path: Path) -> None:
    index = build_index(store, tmp_path / "index")
    other = Store.open(gap_store(tmp_path / "other", model={"name": "another", "weights_sha256": "b" * 64}))
    assert other.info.dim == store.info.dim
    for query in ({"vector": other.path}, {"key": "img001", "store": other}):
        with pytest.raises(StoreError, match=r"index is of the model .*, but .*other of another \(bbbbbbbbbbbb\)"):
            index.search(**query)
    vector = store.load("image").embeddings[4]
    with pytest.raises(StoreError, match=r"but the store .*other of another"):
        index.search(vector=vector, modality="image", vectors=True, store=other)
    assert index.search(vector=vector, modality="image", store=other)  # which is not read


@pytest.mark.parametrize(("query", "modality"), [(0, "image"), (1, "text")])
def test_every_modality_has_its_nearest_rows_whatever_the_query(
    store: Store, tmp_path: Path, query: int, modality: str
) -> None:
    index = build_index(store, tmp_path / "index")
    row = store.load(modality).embeddings[7]
    (found,) = index.search(vector=row, modality=modality, k=4)
    assert {name: len(hits) for name, hits in found.groups.items()} == {"image": 4, "text": 4}
    assert [hit.modality for hit in found.hits] == ["image"] * 4 + ["text"] * 4
    transformed = centred(store, modality)[7]
    for name, hits in found.groups.items():
        best = np.argsort(-(centred(store, name) @ transformed))[:4]
        assert [hit.key for hit in hits] == [store.load(name).keys[int(i)] for i in best]
    assert all(hit.path == f"{hit.image_key}.jpg" for hit in found.groups["text"])
    (mixed,) = index.search(vector=row, modality=modality, k=4, within="any")
    assert len(mixed.hits) == 4
    assert mixed.hits == sorted(mixed.hits, key=lambda hit: -hit.score)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,SQfp16", "HNSW8", "OPQ4_16,IVF4,SQ8"])
def test_rows_of_one_modality_are_found_in_every_kind_of_index(store: Store, tmp_path: Path, factory: str) -> None:
    index = build_index(store, tmp_path / "index", factory=factory, shard_rows=120)
    for name in ("image", "text"):
        scores, rows = index.nearest(store.load("text").embeddings[:20], "text", 5, within=name, nprobe=4)
        assert (rows >= 0).all()
        assert np.isfinite(scores).all()
        assert set(index.rows.column("modality").take(rows.ravel()).to_pylist()) == {name}


def test_vectors_are_those_of_the_store(store: Store, tmp_path: Path) -> None:
    index = build_index(store, tmp_path / "index")
    images, texts = store.load("image"), store.load("text")
    (found,) = index.search(vector=images.embeddings[4], modality="image", k=3, vectors=True)
    assert found.embedding == images.embeddings[4].tolist()
    for hit in found.hits:
        rows = images if hit.modality == "image" else texts
        assert hit.embedding == rows.embeddings[list(rows.keys).index(hit.key)].tolist()
    assert found.to_dict()["hits"][0]["embedding"] == found.hits[0].embedding
    assert "embedding" not in index.search(vector=images.embeddings[4], modality="image")[0].to_dict()["hits"][0]


def test_a_contact_sheet_shows_what_can_be_read_and_says_what_cannot(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "red.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    write_tar(tmp_path / "x.tar", [("in.png", (tmp_path / "red.png").read_bytes())])
    paths = ["red.png", "broken.jpg", "gone.jpg", "x.tar#in.png", "x.tar#none.png"]
    hits = [Hit(0.5, path, "image", path=str(tmp_path / path)) for path in paths]
    hits += [Hit(0.4, "u", "image", path="https://example.org/a.jpg"), Hit(0.3, "<b>", "text", caption="<i>a & b</i>")]
    page = contact_sheet([SearchResult("<script>dog", hits)])
    assert page.count("data:image/jpeg;base64,") == 2
    for text in ("not an image in a format", "no such file", "has no image none.png", "not fetched"):
        assert text in page
    assert "&lt;script&gt;dog" in page
    assert "&lt;i&gt;a &amp; b&lt;/i&gt;" in page
    assert "<script>dog" not in page


def grow(store: Store, first: int, count: int, part: int, seed: int = 5) -> None:
    """Add a shard of ``count`` images, and one of their texts."""
    images, texts = make_vectors(count, seed)
    keys = [f"new{number:03d}" for number in range(first, first + count)]
    splits = ["train"] * count
    paths = [f"{key}.jpg" for key in keys]
    write_shard(store.path, store.info, Shard("image", part, images, {"key": keys, "path": paths, "split": splits}))
    columns = {"key": [f"{key}#0" for key in keys], "caption": keys, "image_key": keys, "split": splits}
    write_shard(store.path, store.info, Shard("text", part, texts[::2], columns))


@pytest.mark.parametrize("factory", ["auto", "IVF4,SQfp16", "HNSW8"])
@pytest.mark.parametrize("shard_rows", [1000, 100])
def test_rows_that_were_added_to_the_store_are_added_to_the_index(
    store: Store, tmp_path: Path, factory: str, shard_rows: int
) -> None:
    path, options = tmp_path / "index", {"factory": factory, "shard_rows": shard_rows}
    first = build_index(store, path, **options)  # type: ignore[arg-type]
    messages = Messages()
    again = build_index(store, path, **options, reporter=messages)  # type: ignore[arg-type]
    assert (again.record["rows"], again.record["added"], messages.texts) == (270, 0, [])
    for part, start in ((3, 0), (4, 12)):
        grow(store, start, 12, part, seed=part)
        assert "24 rows that are not in the index" in (Index.open(path).stale(store) or "")
        grown = build_index(store, path, **options, reporter=messages)  # type: ignore[arg-type]
        assert (grown.record["added"], grown.stale(store)) == (24, None)
    assert messages.texts == []  # nothing was built anew
    assert grown.record["transform"] == first.record["transform"]
    opened = Index.open(path)
    assert opened.rows.num_rows == sum(shard.ntotal for shard in opened.shards) == 318
    assert {file.name for file in path.glob("part-*.faiss")} == set(opened.record["shards"])
    assert {file.name for file in path.glob("rows*.parquet")} == set(opened.record["row_files"])
    # the result is what an index of the same vectors, filled at once, finds
    whole = build_index(store, tmp_path / "whole", pipeline=first.pipeline, factory="Flat")
    queries = store.load("image").embeddings[-30:]
    for name in ("image", "text"):
        keys = []
        for index in (opened, whole):
            _, rows = index.nearest(queries, "image", 1, within=name, nprobe=4)
            keys.append(index.rows.column("key").take(rows[:, 0]).to_pylist())
        assert np.mean([a == b for a, b in zip(*keys, strict=True)]) >= (0.8 if factory == "HNSW8" else 1)


def test_the_index_is_built_anew_where_rows_cannot_be_added_and_that_is_said(store: Store, tmp_path: Path) -> None:
    path, messages = tmp_path / "index", Messages()
    build_index(store, path)

    def rebuilt(**options: Any) -> str:
        messages.texts.clear()
        index = build_index(store, path, reporter=messages, **options)
        assert index.record["added"] == index.record["rows"]
        assert Index.open(path).stale(store) is None
        return " ".join(messages.texts)

    assert "its preset" not in rebuilt(rebuild=True)
    assert "its factory was auto and is now Flat" in rebuilt(factory="Flat")
    assert "its split was all and is now test" in rebuilt(factory="Flat", split="test")
    assert "its pipeline is different" in rebuilt(factory="Flat", split="test", preset="c1")
    rebuilt()
    assert "its modality was all and is now image" in rebuilt(modality=["image"])
    assert "its modality was image and is now all" in rebuilt()
    grow(store, 0, 12, 1)  # in the place of a shard that was indexed
    assert "out of date: 2 shards of the store" in (Index.open(path).stale(store) or "")
    assert "2 shards of the store changed or were removed" in rebuilt()
    grow(store, 100, 200, 7)
    assert "more than twice the" in rebuilt()
    record = json.loads((path / "index.json").read_text())
    del record["settings"], record["store_shards"], record["store"]
    (path / "index.json").write_text(json.dumps(record))
    assert Index.open(path).search(vector=store.load("text").embeddings[0])[0].hits
    assert "does not record what it was built from" in rebuilt()
    (path / "index.json").write_text('{"shards": 3}')
    assert "is damaged" in rebuilt()
    (path / "part-00000.faiss").write_bytes(b"x")
    assert "is damaged" in rebuilt()


def test_the_index_is_built_anew_when_other_moments_are_loaded(store: Store, tmp_path: Path) -> None:
    path, other, messages = tmp_path / "index", Store.open(gap_store(tmp_path / "other", 60)), Messages()

    def image_mean() -> Any:
        messages.texts.clear()
        index = build_index(store, path, reporter=messages)
        return index.pipeline.steps[1].state["mean/image"]

    image_mean()
    save_means(other, tmp_path / "moments")
    load_means(store, tmp_path / "moments")
    np.testing.assert_allclose(image_mean(), other.moments("image", "train").mean, atol=1e-6)
    reason = "the moments that `c3 means` loaded into the store are different"
    assert reason in " ".join(messages.texts)
    image_mean()
    assert reason not in " ".join(messages.texts)
    unload_means(store)
    np.testing.assert_allclose(image_mean(), store.moments("image", "train").mean, atol=1e-6)
    assert reason in " ".join(messages.texts)


def test_a_modality_that_the_store_has_now(tmp_path: Path) -> None:
    images, texts = make_vectors(30)
    columns = {"key": [f"{n}" for n in range(30)], "split": ["train"] * 30}
    store = build_store(tmp_path / "s", Rows.of("image", columns["key"], images, split=columns["split"]))
    build_index(store, tmp_path / "index")
    build_index(store, tmp_path / "images", modality=["image"])
    write_shard(store.path, store.info, Shard("text", 0, texts[::2], {**columns, "caption": columns["key"]}))
    assert "30 rows that are not in the index" in (Index.open(tmp_path / "index").stale(store) or "")
    assert Index.open(tmp_path / "images").stale(store) is None
    messages = Messages()
    assert build_index(store, tmp_path / "index", reporter=messages).rows.num_rows == 60
    assert "the store now has image, text, but the index was built from image" in messages.texts[0]


def test_an_index_that_faiss_fills_only_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="cannot fill an index 'NSG8' block by block"):
        build_index(store, tmp_path / "index", factory="NSG8")
    build_index(store, tmp_path / "index")
    grow(store, 0, 12, 3)

    def refuse(*_: object) -> None:
        raise RuntimeError("in faiss\nno incremental addition")

    monkeypatch.setattr(faiss_shards, "extend_shards", refuse)
    messages = Messages()
    index = build_index(store, tmp_path / "index", reporter=messages)
    assert "FAISS cannot add rows to Flat (no incremental addition)" in messages.texts[0]
    assert (index.rows.num_rows, index.stale(store)) == (294, None)


def test_a_kill_while_rows_are_added_leaves_the_old_index(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(store, tmp_path / "index")
    grow(store, 0, 12, 3)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_json_atomically", killed)
        with pytest.raises(KeyboardInterrupt) as interrupt:
            build_index(store, tmp_path / "index")
    assert "The former index was kept" in interrupt.value.__notes__[0]
    assert Index.open(tmp_path / "index").rows.num_rows == 270
    assert build_index(store, tmp_path / "index").record["added"] == 24
    assert Index.open(tmp_path / "index").rows.num_rows == 294


def test_search_warns_of_rows_that_the_index_lacks_and_needs_no_store(store: Store, tmp_path: Path) -> None:
    build_index(store, tmp_path / "index")
    query = store.load("text").embeddings[0]
    messages = Messages()
    Index.open(tmp_path / "index").search(vector=query, reporter=messages)
    assert messages.texts == []
    grow(store, 0, 12, 3)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("index", "c3-store"):  # both move together
        (tmp_path / name).rename(moved / name)
    index = Index.open(moved / "index")
    index.search(vector=query, reporter=messages)
    index.search(key="img001", reporter=messages)
    assert len(messages.texts) == 2
    assert "has 24 rows that are not in the index; `c3 index` adds them" in messages.texts[0]
    shutil.rmtree(moved / "c3-store")
    assert index.search(vector=query, reporter=messages)[0].hits
    assert len(messages.texts) == 2


@pytest.mark.parametrize("field", ["shards", "row_files"])
def test_an_index_reads_no_file_out_of_its_folder(store: Store, tmp_path: Path, field: str) -> None:
    build_index(store, tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    value = json.loads(path.read_text())
    (name,) = value.get(field, ["rows.parquet"])
    shutil.copyfile(tmp_path / "index" / name, tmp_path / name)
    for outside in (f"../{name}", str(tmp_path / name)):
        path.write_text(json.dumps({**value, field: [outside]}))
        with pytest.raises(StoreError, match="not in its folder"):
            Index.open(tmp_path / "index")
