from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from c3tools.cli import app
from typer.testing import CliRunner, Result

from c3tools import Store
from c3tools.index import Index
from c3tools.index.faiss_shards import choose_factory

from .synthetic import unit

pytest.importorskip("faiss", reason="faiss is an extra")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["index", *arguments])


def report_of(*arguments: str) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def centred(store: Store, modality: str) -> np.ndarray:
    x = unit(store.load(modality).embeddings.astype(np.float64))
    return unit(x - store.moments(modality, "train").mean)


def test_mixed_index_of_a_small_store_is_exact(here: Path) -> None:
    report = report_of()
    assert (report["factory"], report["rows"], report["recall@10"]) == ("Flat", 270, 1.0)
    index = Index.open("c3-index")
    store = Store.open("c3-store")
    vectors = np.concatenate([centred(store, "image"), centred(store, "text")])
    scores, rows = index.nearest(store.load("image").embeddings[:7], "image", 5)
    exact = vectors[:7] @ vectors.T
    assert (rows == np.argsort(-exact, axis=1)[:, :5]).all()
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :5], atol=1e-5)
    keys = [index.rows.column("key")[int(row)].as_py() for row in rows[0]]
    assert keys[0] == "img000"
    assert index.rows.column("modality").to_pylist() == ["image"] * 90 + ["text"] * 180


def test_bias_falls_after_centring(here: Path) -> None:
    bias = report_of()["bias@10"]
    for modality in ("image", "text"):
        assert bias["before"][modality] > 0.95
        assert bias["after"][modality] < bias["before"][modality] - 0.1


@pytest.mark.parametrize("factory", ["IVF4,SQfp16", "IVF4,Flat", "HNSW8"])
def test_other_factories_reach_the_recall_they_are_tuned_to(here: Path, factory: str) -> None:
    report = report_of(factory, "--modality", "text")
    assert report["recall@10"] >= 0.98
    assert report["bias@10"] is None
    if "IVF" in factory:
        assert report["nprobe"] in (1, 2, 4)
    store = Store.open("c3-store")
    queries, texts = centred(store, "image"), centred(store, "text")
    _, rows = Index.open("c3-index").nearest(store.load("image").embeddings, "image", 10)
    exact = np.argsort(-queries @ texts.T, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)])
    assert recall >= 0.95


def test_shards_give_what_one_file_gives(here: Path) -> None:
    report_of("-o", "one")
    assert len(report_of("-o", "many", "--shard-rows", "64")["shards"]) == 5
    one, many = Index.open("one"), Index.open("many")
    queries = Store.open("c3-store").load("text").embeddings[:20]
    for within, first, last in ((None, 0, 270), ("text", 90, 270), ("image", 0, 90)):
        a, b = (index.nearest(queries, "text", 8, within=within)[1] for index in (one, many))
        assert (a == b).all()
        assert ((a >= first) & (a < last)).all()


def test_splits(here: Path) -> None:
    assert report_of("--split", "test", "--modality", "image")["rows"] == 30
    keys = pq.read_table("c3-index/rows.parquet").column("key").to_pylist()
    assert keys == [f"img{i:03d}" for i in range(0, 90, 3)]


@pytest.mark.parametrize(
    ("n", "dim", "factory"),
    [
        (100, 512, "Flat"),
        (20_000, 512, "Flat"),
        (40_455, 256, "IVF1024,SQfp16"),
        (1_000_000, 512, "IVF4096,SQfp16"),
        (10_000_000, 512, "OPQ64_256,IVF16384,PQ64"),
        (10_000_000, 64, "OPQ16_64,IVF16384,PQ16"),
    ],
)
def test_factory_by_size(n: int, dim: int, factory: str) -> None:
    assert choose_factory(n, dim) == factory


class TestBadInput:
    def refused(self, *arguments: str) -> str:
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output
        return " ".join(result.stderr.split())

    def test_factories(self, here: Path) -> None:
        assert "FAISS cannot make the index 'Nonsense'" in self.refused("Nonsense")
        assert "FAISS cannot make the index 'IVF4000,Flat' from 270 rows" in self.refused("IVF4000,Flat")

    def test_empty_split(self, here: Path) -> None:
        assert "no rows in the split 'val'" in self.refused("--split", "val")

    def test_without_faiss(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "faiss", None)
        assert 'pip install "c3tools[cpu]"' in self.refused()
