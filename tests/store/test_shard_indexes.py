"""FAISS indexes beside the shards of a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from c3tools import Index, Store, embed
from c3tools.encoders import Encoder
from c3tools.errors import StoreError
from c3tools.executors import LocalExecutor
from c3tools.io import files
from c3tools.store import Rows
from c3tools.store.shard_indexes import index_problem, indexed_shards, write_indexes
from c3tools.store.verify import verify_store
from tests.conftest import C3, build_store, copy_photos, make_store, unit_rows

pytest.importorskip("faiss", reason="the extra cpu is not installed")

DIM = 16


def indexed(store: Store) -> Store:
    write_indexes(store, LocalExecutor())
    return store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """30 images and 50 texts in shards of 8."""
    return make_store(
        tmp_path / "store",
        unit_rows(30, DIM),
        unit_rows(50, DIM, seed=1),
        owners=[i % 30 for i in range(50)],
        dtype="float16",
        part_rows=8,
    )


def nearest(rows: Rows, query: npt.NDArray[np.float32], k: int) -> list[str]:
    return [rows.keys[row] for row in np.argsort(-rows.embeddings @ query, kind="stable")[:k]]


def test_the_indexes_of_all_shards_are_searched_as_one(
    store: Store, put: Callable[[Path], Path], tmp_path: Path
) -> None:
    indexed(store)
    place = put(store.path)
    index = Index.open(place)
    query = unit_rows(1, DIM, seed=7)
    found = index.search(vector=query, k=7)[0]
    for modality in ("image", "text"):
        hits = found.groups[modality]
        rows = store.load(modality)
        assert [hit.key for hit in hits] == nearest(rows, query[0], 7)
        exact = rows.embeddings[[rows.keys.index(hit.key) for hit in hits]] @ query[0]
        np.testing.assert_allclose([hit.score for hit in hits], exact, atol=1e-5)
    assert found.groups["text"][0].caption == f"caption {found.groups['text'][0].key.removeprefix('text')}"
    assert index.stale(Store.open(place)) is None


@pytest.mark.parametrize(("dtype", "normalised"), [("float32", True), ("float16", False), ("float32", False)])
def test_scores_are_cosines_whatever_the_norms(tmp_path: Path, dtype: str, normalised: bool) -> None:
    scale = 1.0 if normalised else np.linspace(0.5, 30, 12, dtype=np.float32)[:, None]
    rows = Rows.of("image", [f"i{i}" for i in range(12)], unit_rows(12, DIM) * scale)
    store = indexed(build_store(tmp_path / "s", rows, dtype=dtype, normalised=normalised, part_rows=5))
    query = unit_rows(1, DIM, seed=7)
    hits = Index.open(store.path).search(vector=query, k=12)[0].hits
    cosines = {key: float(row @ query[0]) for key, row in zip(rows.keys, unit_rows(12, DIM), strict=True)}
    assert [hit.key for hit in hits] == sorted(cosines, key=cosines.__getitem__, reverse=True)
    np.testing.assert_allclose([hit.score for hit in hits], [cosines[hit.key] for hit in hits], atol=2e-3)


def test_an_index_of_float16_holds_the_values_of_the_store(store: Store) -> None:
    import faiss

    indexed(store)
    read = faiss.read_index(str(store.path / "image/_part-00001.faiss"))
    rows = store.load("image").embeddings[8:16]
    np.testing.assert_array_equal(read.reconstruct_n(0, 8), rows)


def test_a_store_without_indexes_says_how_to_get_them(store: Store) -> None:
    with pytest.raises(StoreError, match=r"(?s)11 of 11 shards of the store .* have no FAISS index.*--faiss.*c3 index"):
        Index.open(store.path)


def test_verify_finds_every_damage_and_makes_the_index_anew(store: Store) -> None:
    indexed(store)
    assert verify_store(store.path).findings == []
    kept = {path: path.read_bytes() for path in store.path.rglob("*.faiss*")}
    folder = store.path / "image"
    damages: list[tuple[str, Callable[[], object]]] = [
        ("its sha256 is not", lambda: (folder / "_part-00000.faiss").write_bytes(b"\0" * 99)),
        ("the file is missing", (folder / "_part-00001.faiss").unlink),
        ("its record cannot be read", lambda: (folder / "_part-00002.faiss.json").write_text("{")),
        ("it was not finished", (folder / "_part-00003.faiss.json").unlink),
    ]
    for _, damage in damages:
        damage()
    findings = verify_store(store.path).findings
    assert [(f.check, f.part) for f in findings] == [("faiss", part) for part in range(4)]
    for finding, (what, _) in zip(findings, damages, strict=True):
        assert what in finding.what
    result = verify_store(store.path, repair=True)
    assert result.whole
    assert len(result.repaired) == 4
    assert {path: path.read_bytes() for path in store.path.rglob("*.faiss*")} == kept
    assert verify_store(store.path).findings == []


def test_a_damaged_index_is_named(store: Store) -> None:
    indexed(store)
    (store.path / "text/_part-00002.faiss").write_bytes(b"nonsense")
    with pytest.raises(StoreError, match=r"(?s)text/_part-00002.faiss cannot be read.*c3 verify .* --repair"):
        Index.open(store.path)


def test_a_shard_that_is_dropped_takes_its_index_along(store: Store) -> None:
    indexed(store)
    (store.path / "text/part-00002.parquet").write_bytes(b"nonsense")
    verify_store(store.path, repair=True)
    assert not list(store.path.glob("text/*part-00002*"))
    assert len(list(store.path.glob("text/*part-00001*"))) == 5


def test_a_write_that_stops_half_way_leaves_no_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if str(target).endswith("_part-00001.faiss.json"):
            raise OSError("no space left")
        return replaced(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(OSError, match="no space left"):
            indexed(store)
    having, lacking = indexed_shards(store)
    assert having == [("image", 0)]
    assert len(lacking) == 10
    assert index_problem(store, "image", 1) == "it was not finished"
    indexed(store)
    assert indexed_shards(store)[1] == []
    assert verify_store(store.path).findings == []
    assert not files.find_leftovers(store.path / "image")


def test_embed_keeps_indexes_complete_and_search_finds_them(
    c3: C3, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_photos(tmp_path / "photos", 6)
    embed("photos", "c3-store", encoder=encoder, shard_size=4, workers=0, faiss=True)
    plain = {path.name: path.read_bytes() for path in Path("c3-store/image").glob("part-*")}
    embed("photos", "other", encoder=encoder, shard_size=4, workers=0)
    assert {path.name: path.read_bytes() for path in Path("other/image").glob("part-*")} == plain
    result = c3("search", "a brown bear", "--in", "image", "-k", "2", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)[0]["hits"][0]["key"] == "000000000285"

    lines = Path("photos/captions.jsonl").read_text().splitlines()
    changed = [line.replace("big burly grizzly bear", "small green frog") for line in lines]
    Path("photos/captions.jsonl").write_text("\n".join(changed) + "\n")
    before = Path("c3-store/text/_part-00000.faiss").read_bytes()
    embed("photos", "c3-store", encoder=encoder, shard_size=4, workers=0, update=True)  # not asked for: it has them
    assert Path("c3-store/text/_part-00000.faiss").read_bytes() != before
    assert verify_store("c3-store").findings == []
    found = Index.open("c3-store").search("a small green frog", within="text", k=1)[0]
    assert "small green frog" in str(found.hits[0].caption)


def test_the_option_of_the_command_writes_them(c3: C3, tmp_path: Path) -> None:
    copy_photos(tmp_path / "photos", 1)
    result = c3("embed", "photos", "--faiss", "--backend", "torch", "--workers", 0)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in Path("c3-store/image").iterdir()) == [
        "_part-00000.faiss",
        "_part-00000.faiss.json",
        "_part-00000.json",
        "_part-00000.moments.safetensors",
        "part-00000.parquet",
    ]
