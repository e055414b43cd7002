"""Stores that name no row train: every reader splits the same rows by the hash of their items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools import export_store, gap_report
from c3tools.captioning.training_rows import training_captions
from c3tools.connect.features import read_features
from c3tools.corpus.splits import STANDARD, hashed_split
from c3tools.errors import ConnectError, OutputError, StoreError, TransformError
from c3tools.index import build_index
from c3tools.moments import Moments
from c3tools.store import Shard, Store, write_shard
from c3tools.store.means import compute_means, save_means
from c3tools.store.rows import keys_of
from c3tools.transforms import Pipeline, preset
from tests.conftest import Messages, build_store
from tests.stores import make_vectors, two_texts_per_image

N = 90
NAMINGS = {
    "two names": ["base" if i % 2 else "modifier" for i in range(N)],
    "val alone": ["val2017"] * N,
    "with val": ["validation" if i % 9 == 0 else "unused" for i in range(N)],
}


def expected_split(naming: str, key: str) -> str:
    named = NAMINGS[naming][int(key[3:6])]
    return "val" if naming == "with val" and named == "validation" else hashed_split(key[:6])


@pytest.fixture(params=NAMINGS)
def naming(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(tmp_path: Path, naming: str) -> Store:
    images, texts = make_vectors(N)
    rows = two_texts_per_image(NAMINGS[naming], images, texts)
    return build_store(tmp_path / "c3-store", *rows, part_rows={"image": 40, "text": 70})


def test_every_reader_gives_the_same_rows(store: Store, naming: str) -> None:
    for modality in ("image", "text"):
        everything = store.load(modality)
        wanted = [expected_split(naming, key) for key in everything.keys]
        assert everything.splits == wanted
        for split in STANDARD:
            keys = [key for key, own in zip(everything.keys, wanted, strict=True) if own == split]
            assert keys and store.load(modality, split).keys == keys
            assert everything.where(split).keys == keys
            read = [key for batch in store.batches(modality, ["key"], split=split) for key in batch[0].to_pylist()]
            assert read == keys
            assert store.count(modality, split) == len(keys)
            expected = Moments.from_rows(store.load(modality, split).embeddings)
            np.testing.assert_allclose(store.moments(modality, split).mean, expected.mean, atol=1e-12)
            assert store.moments(modality, split).n == len(keys)
        assert store.moments(modality).n == len(everything)


def test_names_of_the_corpus_can_still_be_asked_for(store: Store, naming: str) -> None:
    for name in {"base", "modifier", "unused"} & set(NAMINGS[naming]):
        keys = [f"img{i:03d}" for i, own in enumerate(NAMINGS[naming]) if own == name]
        assert store.load("image", name).keys == keys
        assert store.load("image").where(name).keys == keys
        assert store.moments("image", name).n == store.count("image", name) == len(keys)


def test_pipelines_are_fitted_on_train_and_the_recipe_says_so(store: Store, tmp_path: Path) -> None:
    pipeline = preset("c3").fit(store)
    train = store.load("image", "train").embeddings.astype(np.float64)
    np.testing.assert_allclose(pipeline.steps[1].state["mean/image"].astype(float), train.mean(axis=0), atol=1e-9)
    again = Pipeline.load(pipeline.save(tmp_path / "p"))
    assert again.provenance["split_rule"] == store.split_note
    assert "No rows are named train" in str(store.split_note)


def test_export_fits_and_writes_the_split_that_was_used(store: Store, naming: str, tmp_path: Path) -> None:
    said = Messages()
    report = export_store(store, tmp_path / "out", reporter=said)
    train = store.count("image", "train")
    assert said.texts[0].startswith(
        f"Fitted c3 on the train split: {train} of {N} image rows and {2 * train} of {2 * N} text rows"
    )
    assert str(store.split_note) in said.texts[0]
    files = sorted((tmp_path / "out" / "text").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    splits = table.column("split").to_pylist()
    assert splits == [expected_split(naming, key) for key in keys_of(table)]
    roles = ["training" if split == "train" else "inference" for split in splits]
    assert table.column("input_role").to_pylist() == roles
    assert report.rows["text"]["training"] == 2 * train


def test_captions_to_learn_from(store: Store, naming: str) -> None:
    train, val, notes = training_captions(store)
    assert (train.keys, val.keys) == (store.load("text", "train").keys, store.load("text", "val").keys)
    assert notes[0] == store.split_note
    name = NAMINGS[naming][1]
    if naming != "val alone":  # a split of the corpus: what is validated on is held out of it
        train, val, _ = training_captions(store, name)
        assert not set(train.items) & set(val.items)
        assert sorted([*train.keys, *val.keys]) == sorted(store.load("text", name).keys)


def test_connect(store: Store, naming: str) -> None:
    said = Messages()
    train, val = read_features(store=store).inputs().train_and_val("train", ("image", "text"), said)
    assert set(train.items) == set(store.load("image", "train").keys)
    assert set(val.items) == set(store.load("image", "val").keys)
    assert said.texts == [store.split_note]


def test_reports_means_and_indexes(store: Store, tmp_path: Path) -> None:
    train = store.count("image", "train")
    report = gap_report(store, split="train").to_dict()
    assert report["modalities"]["image"]["n"] == train
    assert {(row.modality, row.split): row.n for row in compute_means(store).rows}["image", "train"] == train
    assert save_means(store, tmp_path / "m")["image"].n == train
    assert build_index(store, tmp_path / "index", split="train").record["rows"] == 3 * train


def test_results_of_rows_that_were_split_by_hash_are_not_those_of_named_splits(store: Store, tmp_path: Path) -> None:
    export_store(store, tmp_path / "out", preset="c1")
    build_index(store, tmp_path / "index", split="test")
    columns: dict[str, list[Any]] = {
        "key": ["new"],
        "path": ["new.jpg"],
        "width": [1],
        "height": [1],
        "split": ["train"],
    }
    write_shard(store.path, store.info, Shard("image", 9, np.eye(1, store.info.dim, dtype=np.float32), columns))
    named, said = Store.open(store.path), Messages()
    with pytest.raises(OutputError, match="with a different pipeline, store or settings"):
        export_store(named, tmp_path / "out", preset="c1")
    assert export_store(named, tmp_path / "out", preset="c1", overwrite=True).kept == 0
    with pytest.raises(StoreError, match="no rows in the split 'test'"):
        build_index(named, tmp_path / "index", split="test", reporter=said)
    assert said.texts[0].endswith("/index: the store now assigns its rows to splits in another way.")


def test_splits_that_are_not_there_are_listed(store: Store, naming: str, tmp_path: Path) -> None:
    listed = {"two names": "base", "val alone": "val", "with val": "unused"}[naming]
    with pytest.raises(StoreError, match=rf"no image rows in the split 'foo'[\s\S]*{listed} \(\d+\)[\s\S]*by hash"):
        store.moments("image", "foo")
    with pytest.raises(StoreError, match=rf"0 rows in the split 'foo'[\s\S]*{listed} \(\d+\)"):
        gap_report(store, split="foo")
    with pytest.raises(StoreError, match=rf"no rows in the split 'foo'.*{listed} \(\d+\)"):
        save_means(store, tmp_path / "m", split="foo")
    with pytest.raises(StoreError, match=rf"{listed} \(\d+\)"):
        build_index(store, tmp_path / "i", split="foo")
    with pytest.raises(ConnectError, match=f"{listed}:"):
        read_features(store=store).inputs().train_and_val("foo", ("image", "text"))


def test_a_store_with_train_keeps_its_splits(tmp_path: Path) -> None:
    names = ["train2017" if i % 3 else "unused" for i in range(N)]
    store = build_store(tmp_path / "s", *two_texts_per_image(names, *make_vectors(N)))
    assert store.kept_splits is None and store.split_note is None
    assert store.load("image").splits == ["train" if i % 3 else "unused" for i in range(N)]
    assert store.count("image", "train") == 60
    with pytest.raises(StoreError, match=r"no image rows in the split 'val'[\s\S]*train \(60\), unused \(30\)"):
        store.moments("image", "val")


def test_rows_named_test_are_not_learned_from(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", *two_texts_per_image(["test"] * N, *make_vectors(N)))
    assert store.count("image", "test") == N and store.count("image", "train") == 0
    assert preset("c1").fit(store).provenance["n"] == {}
    with pytest.raises(
        TransformError, match=r"no rows in the split 'train' to fit c3 on\. Its splits are test \(270\)"
    ):
        preset("c3").fit(store)
