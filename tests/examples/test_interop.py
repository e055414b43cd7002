"""Each script in examples/interop reads a real export, where its package is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import pytest
import torch
from c3tools.cli import app
from typer.testing import CliRunner

from c3tools.store.rows import embedding_matrix
from tests.stores import gap_store

FOLDER = Path(__file__).parents[2] / "examples" / "interop"


def script(name: str, package: str) -> ModuleType:
    pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(tmp_path: Path, *options: str) -> Path:
    store = gap_store(tmp_path / "store")
    output = tmp_path / "c3-export"
    result = CliRunner().invoke(app, ["export", "--store", str(store), "-o", str(output), *options])
    assert result.exit_code == 0, result.output
    return output


def expected(folder: Path, pattern: str = "text/*.parquet") -> tuple[list[str], np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob(pattern))])
    return cast("list[str]", table.column("key").to_pylist()), embedding_matrix(table)


@pytest.mark.parametrize("name", ["store/text", "c3-export/text", "hf/text", "npy/text/metadata"])
def test_folders_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    if name.startswith("store"):
        gap_store(tmp_path / "store")
    else:
        export(tmp_path, "--format", name.partition("/")[0].replace("c3-export", "parquet"))
        (tmp_path / "c3-export").rename(tmp_path / name.partition("/")[0])
    folder = tmp_path / name
    assert pq.read_table(folder).num_rows == 180
    assert ds.dataset(folder).count_rows() == 180
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    assert len(pandas.read_parquet(folder)) == 180
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    assert duckdb.sql(f"SELECT count(DISTINCT key) FROM read_parquet('{folder}/**/*.parquet')").fetchall() == [(180,)]
    polars = pytest.importorskip("polars", reason="polars is not installed")
    assert polars.read_parquet(f"{folder}/**/*.parquet").height == 180


def test_duckdb(tmp_path: Path) -> None:
    module = script("duckdb_query", "duckdb")
    folder = export(tmp_path, "--role", "inference")
    assert module.provenance(folder)["transform"]["name"] == "c3"
    keys, matrix = expected(folder)
    row = keys.index("img007#1")
    cosines = matrix @ matrix[row]
    best = np.argsort(-cosines)[:5]
    found = module.nearest(folder, "img007#1")
    assert [key for key, _, _ in found] == [keys[place] for place in best]
    np.testing.assert_allclose([cosine for _, _, cosine in found], cosines[best], atol=1e-5)


def test_polars(tmp_path: Path) -> None:
    module = script("polars_query", "polars")
    folder = export(tmp_path)
    assert module.provenance(folder)["store"]["model"]["name"] == "synthetic"
    frame = module.read(folder)
    assert module.counts(frame).rows() == [("test", "inference", 60), ("train", "training", 120)]
    assert (module.embeddings(frame) == expected(folder)[1]).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_hf_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = script("hf_datasets", "datasets")
    folder = export(tmp_path, "--format", "hf")
    loaded = module.load(folder, "text", tmp_path / "cache")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 120, "test": 60}
    keys, matrix = expected(folder, "text/test/*.parquet")
    assert loaded["test"]["key"][:] == keys
    np.testing.assert_array_equal(np.array(loaded["test"]["embedding"][:], dtype=np.float32), matrix)
    assert module.provenance(folder)["transform"]["provenance"]["n"] == {"image": 60, "text": 120}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_embedding_reader(tmp_path: Path) -> None:
    module = script("embedding_reader_batches", "embedding_reader")
    folder = export(tmp_path, "--format", "npy", "--dtype", "float32")
    parts = list(module.batches(folder, batch_size=50))
    keys = [key for _, frame in parts for key in frame["key"]]
    assert len(keys) == 180 and keys[61] == "img030#1"
    arrays = [np.load(path) for path in sorted((folder / "text" / "embeddings").glob("*.npy"))]
    np.testing.assert_allclose(np.concatenate([array for array, _ in parts]), np.concatenate(arrays), atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_autofaiss(tmp_path: Path) -> None:
    module = script("autofaiss_index", "autofaiss")
    folder = export(tmp_path, "--format", "npy", "--dtype", "float32", "--role", "inference")
    threads = torch.get_num_threads()
    try:
        made = module.index(folder, tmp_path)
    finally:  # autofaiss sets the threads of the whole process, and torch's last bits depend on them
        torch.set_num_threads(threads)
    assert made.ntotal == 180
    assert (tmp_path / "knn.index").stat().st_size > 0
