"""FAISS indexes beside the shards of a store."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest

from c3tools import (
    Index,
    Store,
    build_index,
    embed,
    import_embeddings,
    load_means,
    merge_stores,
    save_means,
    split_store,
)
from c3tools.encoders import Encoder
from c3tools.errors import MissingExtraError, StoreError
from c3tools.executors import LocalExecutor
from c3tools.io import files
from c3tools.store import Rows, finish_store
from c3tools.store.shard_indexes import (
    has_indexes,
    index_problem,
    indexed_shards,
    load_faiss,
    save_index,
    write_indexes,
)
from c3tools.store.shards import Shard, write_shard
from c3tools.store.verify import verify_store
from tests.conftest import C3, Messages, build_store, copy_photos, make_store, unit_rows

pytest.importorskip("faiss", reason="the extra cpu is not installed")

DIM = 16


def indexed(store: Store) -> Store:
    write_indexes(store, LocalExecutor())
    return store


def without_faiss() -> ModuleType:
    raise MissingExtraError("faiss-cpu", extra="cpu", purpose="Indexing and searching")


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


def test_without_faiss_the_rest_of_a_store_is_repaired(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed(store)
    (store.path / "text/_part-00002.faiss").write_bytes(b"nonsense")
    (store.path / "text/_part-00003.moments.safetensors").write_bytes(b"nonsense")
    (store.path / "manifest.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("c3tools.store.shard_indexes.load_faiss", without_faiss)
        with pytest.raises(MissingExtraError):
            verify_store(store.path, repair=True)
    assert [(finding.check, finding.part) for finding in verify_store(store.path).findings] == [("faiss", 2)]
    assert verify_store(store.path, repair=True).whole


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


def check_indexes(store: Path) -> None:
    """Every shard has an index of its rows, and what is found in it is what the rows say."""
    opened = Store.open(store)
    assert indexed_shards(opened)[1] == []
    assert verify_store(store).findings == []
    query = unit_rows(1, opened.info.dim, seed=7)
    found = Index.open(store).search(vector=query, k=5)[0]
    for modality, hits in found.groups.items():
        assert [hit.key for hit in hits] == nearest(opened.load(modality), query[0], 5)


def halves(tmp_path: Path) -> tuple[Store, Store]:
    """Two stores without a common key, in shards of 4."""
    stores = []
    for name, start in (("one", 0), ("two", 100)):
        keys = [f"i{start + i}" for i in range(10)]
        images = Rows.of("image", keys, unit_rows(10, DIM, start), split=["train"] * 10)
        texts = Rows.of("text", [f"{key}#0" for key in keys], unit_rows(10, DIM, start + 1), image_key=keys)
        stores.append(build_store(tmp_path / name, images, texts, dtype="float16", part_rows=4))
    return stores[0], stores[1]


@pytest.mark.parametrize("prefix", [False, True])
def test_a_merged_store_has_indexes_if_one_of_the_stores_has(tmp_path: Path, prefix: bool) -> None:
    one, two = halves(tmp_path)
    merge_stores(tmp_path / "none", [one.path, two.path], prefix=prefix)
    assert not has_indexes(Store.open(tmp_path / "none"))
    indexed(two)
    merge_stores(tmp_path / "both", [one.path, two.path], prefix=prefix)
    check_indexes(tmp_path / "both")


def test_a_split_store_has_indexes_if_the_store_has(store: Store, tmp_path: Path) -> None:
    split_store(tmp_path / "none", store.path)
    assert not has_indexes(Store.open(tmp_path / "none"))
    split_store(tmp_path / "new", indexed(store).path)
    check_indexes(tmp_path / "new")


def test_an_import_completes_the_indexes_of_the_store(tmp_path: Path) -> None:
    rows = Rows.of("image", [f"i{i}" for i in range(9)], unit_rows(9, DIM))
    store = indexed(build_store(tmp_path / "s", rows, dtype="float16", part_rows=4, model={"name": "m"}))
    np.save(tmp_path / "text.npy", unit_rows(7, DIM, seed=3))
    import_embeddings(store=store.path, text=tmp_path / "text.npy", model="m")
    check_indexes(store.path)


def test_moments_of_another_corpus_leave_the_indexes_alone(store: Store, tmp_path: Path) -> None:
    indexed(store)
    save_means(store, tmp_path / "means.safetensors")
    load_means(store.path, tmp_path / "means.safetensors")
    check_indexes(store.path)


def test_rows_that_are_all_replaced_keep_the_store_indexed(encoder: Encoder, tmp_path: Path) -> None:
    copy_photos(tmp_path / "photos", 4)
    photos, texts = tmp_path / "photos", tmp_path / "photos" / "captions.jsonl"
    embed(photos, tmp_path / "s", encoder=encoder, shard_size=4, workers=0, faiss=True)
    for path in photos.glob("*.jpg"):
        path.rename(path.with_stem(f"other-{path.stem}"))
    texts.unlink()
    embed(photos, tmp_path / "s", encoder=encoder, shard_size=4, workers=0, prune=True)
    assert all(key.startswith("other-") for key in Store.open(tmp_path / "s").load("image").keys)
    check_indexes(tmp_path / "s")


def test_without_faiss_new_shards_are_made_and_a_message_says_what_they_lack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = halves(tmp_path)
    indexed(one)

    messages = Messages()
    with monkeypatch.context() as patch:
        patch.setattr("c3tools.store.shard_indexes.load_faiss", without_faiss)
        merge_stores(tmp_path / "both", [one.path, two.path], reporter=messages)
    assert any("no FAISS index, because faiss-cpu is not installed; `c3 index`" in text for text in messages.texts)
    assert verify_store(tmp_path / "both").findings == []
    with pytest.raises(StoreError, match=r"12 of 12 shards of the store .* have no FAISS index"):
        Index.open(tmp_path / "both")


def test_a_shard_that_lacks_the_index_which_others_have_is_reported_and_indexed(store: Store) -> None:
    indexed(store)
    for path in store.path.glob("text/_part-00003.faiss*"):
        path.unlink()
    with pytest.raises(StoreError, match=r"(?s)1 of 11 shards .* no FAISS index of their present rows.*--repair"):
        Index.open(store.path)
    (finding,) = verify_store(store.path).findings
    assert (finding.modality, finding.part) == ("text", 3)
    assert "other shards have one" in finding.what
    assert verify_store(store.path, repair=True).whole
    check_indexes(store.path)


def test_a_shard_that_is_dropped_for_its_keys_needs_no_index(store: Store) -> None:
    indexed(store)
    write_shard(store.path, store.info, Shard("image", 4, unit_rows(1, DIM, seed=5), {"key": ["image0"]}))
    finish_store(store.path)
    result = verify_store(store.path, repair=True)
    assert "image shard 4 was removed and has to be made again" in result.repaired
    assert not list(store.path.glob("image/*part-00004*"))


def test_a_full_disk_is_an_error_and_faiss_prints_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    vectors = load_faiss().IndexFlatIP(DIM)
    vectors.add(unit_rows(100, DIM))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"FAISS cannot write .*shard\.faiss \(write error .*File too large\)"):
            save_index(vectors, tmp_path / "shard.faiss")
        with pytest.raises(OSError, match="FAISS cannot write"):
            build_index(store, tmp_path / "index")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.rglob("*.faiss"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_no_record_stands_beside_an_index_of_other_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that go forth and back must not find the index of the rows in between."""
    indexed(store)
    before = {path: path.read_bytes() for path in store.path.glob("image/*part-00001.*") if ".faiss" not in path.name}
    rows = Rows.of("image", store.load("image").keys[8:16], unit_rows(8, DIM, seed=99))
    shard = Shard("image", 1, rows.embeddings, {"key": rows.keys, "path": rows.keys})
    write_shard(store.path, store.info, shard)
    with monkeypatch.context() as patch:
        patch.setattr("c3tools.store.shard_indexes.sha256_of", lambda _: 1 / 0)  # the run stops before the record
        with pytest.raises(ZeroDivisionError):
            indexed(store)
    for path, content in before.items():
        path.write_bytes(content)
    assert indexed_shards(store)[1] == [("image", 1)]
    check_indexes(indexed(store).path)


def test_an_index_of_another_size_than_its_shard_is_refused(store: Store) -> None:
    indexed(store)
    (store.path / "image/_part-00003.faiss").write_bytes((store.path / "image/_part-00000.faiss").read_bytes())
    with pytest.raises(StoreError, match=r"(?s)has 8 vectors of 16 .*, but its shard has 6 rows.*--repair"):
        Index.open(store.path)


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
