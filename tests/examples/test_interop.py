"""Scripts in examples/interop and examples/vector_databases use a real export, where their packages
are installed."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from c3tools import (
    Calibration,
    Index,
    Pipeline,
    Store,
    build_index,
    copy_photos,
    embed,
    export_store,
)
from c3tools.store import Rows
from tests.conftest import build_store
from tests.stores import gap_store, make_vectors

from .conftest import EXAMPLES, script

pytestmark = pytest.mark.filterwarnings(
    *(f"ignore::{kind}Warning" for kind in ("Deprecation", "Future", "Resource"))
)


@pytest.fixture
def export(store: Store, tmp_path: Path) -> Callable[..., Path]:
    return lambda **options: export_store(store, output=tmp_path / "c3-export", **options).output


def expected(folder: Path) -> Any:
    import pyarrow.dataset as ds

    columns = ds.dataset(folder).to_table(["key", "embedding"]).to_pydict()
    return columns["key"], np.array(columns["embedding"], np.float32)


@pytest.mark.parametrize("name", ["c3-store", "parquet", "hf", "npy"])
def test_folders_are_read_as_they_are(store: Store, export: Callable[..., Path], name: str) -> None:
    import polars
    import pyarrow.dataset as ds

    duckdb, pandas = map(importlib.import_module, ("duckdb", "pandas"))

    folder = store.path if name == "c3-store" else export(format=name)
    folder = folder / "text" / ("metadata" if name == "npy" else "")
    distinct = duckdb.sql(
        f"SELECT count(DISTINCT key) FROM read_parquet('{folder}/**/*.parquet')"
    ).fetchall()[0][0]
    every = polars.read_parquet(f"{folder}/**/*.parquet").height
    assert [distinct, every, ds.dataset(folder).count_rows(), len(pandas.read_parquet(folder))] == [
        180
    ] * 4


def test_the_page_on_stores_says_which_programs_read_no_float16(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="the extra interop is not installed")
    page = (EXAMPLES.parent / "docs/reference/stores.md").read_text()
    rows = Rows.of("image", ["a", "b", "c"], make_vectors(3)[0])
    for dtype in ("float16", "float32"):
        build_store(tmp_path / dtype, rows, dtype=dtype)
    query = "SELECT embedding FROM '{}/image/*.parquet'"
    assert len(duckdb.sql(query.format(tmp_path / "float32")).fetchall()) == 3
    with pytest.raises(duckdb.Error) as refusal:
        duckdb.sql(query.format(tmp_path / "float16")).fetchall()
    assert f"`{refusal.value}`" in page
    # Spark is not installed with any extra; of float16 it says this type
    assert "[PARQUET_TYPE_ILLEGAL]" in page
    assert "Float16" in str(pq.ParquetFile(tmp_path / "float16/image/part-00000.parquet").schema)


def test_duckdb(export: Callable[..., Path]) -> None:
    module = script("interop/duckdb_query.py", "duckdb")
    folder = export(role="inference")
    assert module.provenance(folder)["transform"]["name"] == "c3"
    keys, matrix = expected(folder / "text")
    cosines = matrix @ matrix[keys.index("img007#1")]
    best = np.argsort(-cosines)[:5]
    found, _, scores = zip(*module.nearest(folder, "img007#1"), strict=True)
    assert [*found] == [keys[place] for place in best]
    np.testing.assert_allclose(scores, cosines[best], atol=1e-5)


def test_polars(export: Callable[..., Path]) -> None:
    module = script("interop/polars_query.py", "polars")
    folder = export()
    assert module.provenance(folder)["store"]["model"]["name"] == "test-model"
    frame = module.read(folder)
    assert module.counts(frame).rows() == [("test", "inference", 60), ("train", "training", 120)]
    assert (module.embeddings(frame) == expected(folder / "text")[1]).all()


def test_hf_datasets(
    export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = script("interop/hf_datasets.py", "datasets")
    folder = export(format="hf")
    loaded = module.load(folder, "text", tmp_path / "cache")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 120, "test": 60}
    keys, matrix = expected(folder / "text/test")
    assert loaded["test"]["key"][:] == keys
    np.testing.assert_array_equal(np.array(loaded["test"]["embedding"][:], np.float32), matrix)
    assert module.provenance(folder)["transform"]["name"] == "c3"


def test_embedding_reader_and_autofaiss(export: Callable[..., Path], tmp_path: Path) -> None:
    folder = export(format="npy", dtype="float32", role="inference")
    reader = script("interop/embedding_reader_batches.py", "embedding_reader")
    read, frames = zip(*reader.batches(folder, batch_size=50), strict=True)
    keys = [key for frame in frames for key in frame["key"]]
    assert len(keys) == 180 and keys[61] == "img030#1"
    arrays = [np.load(path) for path in sorted((folder / "text/embeddings").glob("*.npy"))]
    np.testing.assert_allclose(np.concatenate(read), np.concatenate(arrays), atol=1e-6)
    threads = torch.get_num_threads()
    try:
        made = script("interop/autofaiss_index.py", "autofaiss").index(folder, tmp_path)
    finally:
        # autofaiss sets the threads of the whole process, and torch's last bits depend on them
        torch.set_num_threads(threads)
    assert made.ntotal == 180


DATABASES = pytest.mark.parametrize(
    ("name", "package"), [("lancedb_search", "lancedb"), ("qdrant_search", "qdrant_client")]
)


@pytest.mark.filterwarnings("ignore")
@DATABASES
@pytest.mark.parametrize("query", ["two people on a beach", "photo"])
def test_the_examples_list_what_c3_search_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    package: str,
    query: str,
) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    example = script(f"vector_databases/{name}.py", package)
    monkeypatch.chdir(tmp_path)
    copy_photos(Path("images"))
    embed("images", workers=0)
    for preset, folder in (("gr-clip", "centred"), ("fair", "fair")):
        export_store(output=folder, preset=preset, dtype="float32", role="inference")
    index = build_index()
    if query == "photo":
        query = str(min(Path("images").rglob("*.jpg")))
        (expected,) = index.search(image=query, by="row")
    else:
        (expected,) = index.search(query, by="row")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [name, query])
    runpy.run_path(str(example.__file__), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:10]] == [hit.key for hit in expected.hits]


@pytest.mark.filterwarnings("ignore")
@DATABASES
def test_vector_databases_list_what_c3_search_and_the_preset_fair_do(
    tmp_path: Path, name: str, package: str
) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    example, library = (
        script(f"vector_databases/{name}.py", package),
        importlib.import_module(package),
    )
    store = gap_store(tmp_path / "c3-store", dtype="float32")
    place = (
        library.connect(tmp_path / "db")
        if package == "lancedb"
        else library.QdrantClient(":memory:")
    )

    def filled(preset: str) -> tuple[Pipeline, Index, Any]:
        """The pipeline of an export, the index of its preset, and where the database has its
        rows."""
        export = export_store(
            store, output=tmp_path / preset, preset=preset, dtype="float32", role="inference"
        )
        table = example.fill(place, preset, tmp_path / preset)
        index = build_index(store, output=tmp_path / f"{preset}-index", preset=preset)
        return export.pipeline, index, (table,) if package == "lancedb" else (place, preset)

    gap_free, index, table = filled("gr-clip")
    fair, fair_index, fair_table = filled("fair")
    calibration = Calibration.load(tmp_path / "gr-clip")
    for modality in ("text", "image"):
        for row in store.load(modality).embeddings[:5, None]:
            query, fair_query = (
                pipeline.transform(row, modality=modality)[0] for pipeline in (gap_free, fair)
            )
            merged = example.merged(*table, calibration, query, 10)
            (expected,) = index.rank(row, modality, 10, by="row")
            found = [(hit.key, pytest.approx(hit.score, rel=1e-3)) for hit in expected]
            assert [(key, z) for key, _, z in merged] == found
            (hits,) = fair_index.rank(row, modality, 10, separate=True, by="row")
            keys, _ = example.find(*fair_table, fair_query, 10)
            assert keys == [hit.key for hit in sorted(hits, key=lambda hit: -hit.cosine)[:10]]


@pytest.mark.filterwarnings("ignore")
@DATABASES
def test_vector_databases_list_the_items_of_a_fused_export(
    tmp_path: Path, name: str, package: str
) -> None:
    pytest.importorskip("faiss", reason="faiss is not there")
    example = script(f"vector_databases/{name}.py", package)
    library = importlib.import_module(package)
    images, texts = make_vectors()
    keys = [f"item{number}" for number in range(90)]
    store = build_store(
        tmp_path / "c3-store",
        Rows.of("image", keys[:60], images[:60]),
        Rows.of("text", keys[30:], texts[60::2], image_key=[*keys[30:60], *[None] * 30]),
        dtype="float32",
    )
    export = tmp_path / "export"
    export_store(store, output=export, preset="gr-clip", dtype="float32", fuse=True)
    place: Any = tmp_path / "db"
    place = library.connect(place) if package == "lancedb" else library.QdrantClient(":memory:")
    table = example.fill(place, "items", export)
    opened = (table,) if package == "lancedb" else (place, "items")
    calibration = Calibration.load(export)
    index = build_index(export, output=tmp_path / "index")
    for row in texts[:180:20, None]:
        (query,) = calibration.pipeline.transform(row, modality="text")
        (expected,) = index.rank(row, "text", 10)
        assert {hit.modality for hit in expected} == {"fused", "image", "text"}
        found = example.merged(*opened, calibration, query, 10)
        assert [(key, kind) for key, kind, _ in found] == [
            (hit.key, hit.modality) for hit in expected
        ]
