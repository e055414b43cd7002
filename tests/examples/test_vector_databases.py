"""The scripts in examples/vector_databases give what the index gives, where their packages are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import Calibration, Store, build_index, export_store
from tests.stores import gap_store

FOLDER = Path(__file__).parents[2] / "examples" / "vector_databases"
pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("faiss", reason="faiss is an extra")


@pytest.mark.parametrize(("name", "package"), [("lancedb_search", "lancedb"), ("qdrant_search", "qdrant_client")])
def test_the_list_is_that_of_c3_search_and_of_the_preset_fair(tmp_path: Path, name: str, package: str) -> None:
    library: Any = pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    store = Store.open(gap_store(tmp_path / "c3-store", dtype="float32"))
    exports = {
        preset: export_store(store, tmp_path / preset, preset=preset, dtype="float32", role="inference")
        for preset in ("gr-clip", "fair")
    }
    indexes = {preset: build_index(store, tmp_path / f"{preset}-index", preset=preset) for preset in exports}
    calibration = Calibration.fit(store.path, pipeline=exports["gr-clip"].pipeline)
    place = library.connect(tmp_path / "db") if package == "lancedb" else library.QdrantClient(":memory:")
    tables = {preset: (script.fill(place, preset, tmp_path / preset), preset) for preset in exports}
    for modality in ("text", "image"):
        for embedding in store.load(modality).embeddings[:5]:
            queries = {
                preset: done.pipeline.transform(embedding[None], modality=modality)[0]
                for preset, done in exports.items()
            }
            at = {preset: (table,) if package == "lancedb" else (place, own) for preset, (table, own) in tables.items()}
            merged = script.merged(*at["gr-clip"], calibration, queries["gr-clip"], 10)
            (expected,) = indexes["gr-clip"].rank(embedding[None], modality, 10)
            assert [key for key, _, _ in merged] == [hit.key for hit in expected]
            np.testing.assert_allclose([z for _, _, z in merged], [hit.score for hit in expected], rtol=1e-3)
            (hits,) = indexes["fair"].rank(embedding[None], modality, 10, separate=True)
            keys, _ = script.find(*at["fair"], queries["fair"], 10)
            assert keys == [hit.key for hit in sorted(hits, key=lambda hit: -hit.cosine)[:10]]
