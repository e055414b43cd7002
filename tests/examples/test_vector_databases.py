"""The scripts in examples/vector_databases give what the index gives, where their packages are installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from c3tools import Calibration, Index, Pipeline, build_index, export_store
from tests.stores import gap_store

from .conftest import script

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("faiss", reason="faiss is an extra")


@pytest.mark.parametrize(("name", "package"), [("lancedb_search", "lancedb"), ("qdrant_search", "qdrant_client")])
def test_the_list_is_that_of_c3_search_and_of_the_preset_fair(tmp_path: Path, name: str, package: str) -> None:
    example, library = script(f"vector_databases/{name}.py", package), importlib.import_module(package)
    store = gap_store(tmp_path / "c3-store", dtype="float32")
    place = library.connect(tmp_path / "db") if package == "lancedb" else library.QdrantClient(":memory:")

    def filled(preset: str) -> tuple[Pipeline, Index, tuple[Any, ...]]:
        """The pipeline of an export, the index of its preset, and where the database has its rows."""
        export = export_store(store, tmp_path / preset, preset=preset, dtype="float32", role="inference")
        table = example.fill(place, preset, tmp_path / preset)
        index = build_index(store, tmp_path / f"{preset}-index", preset=preset)
        return export.pipeline, index, (table,) if package == "lancedb" else (place, preset)

    gap_free, index, table = filled("gr-clip")
    fair, fair_index, fair_table = filled("fair")
    calibration = Calibration.fit(store.path, pipeline=gap_free)
    for modality in ("text", "image"):
        for row in store.load(modality).embeddings[:5, None]:
            query, fair_query = (pipeline.transform(row, modality=modality)[0] for pipeline in (gap_free, fair))
            merged = example.merged(*table, calibration, query, 10)
            (expected,) = index.rank(row, modality, 10)
            found = [(hit.key, pytest.approx(hit.score, rel=1e-3)) for hit in expected]
            assert [(key, z) for key, _, z in merged] == found
            (hits,) = fair_index.rank(row, modality, 10, separate=True)
            keys, _ = example.find(*fair_table, fair_query, 10)
            assert keys == [hit.key for hit in sorted(hits, key=lambda hit: -hit.cosine)[:10]]
