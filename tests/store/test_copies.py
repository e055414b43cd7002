"""Stores made from others (merge, split, the hub), and their means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.corpus.splits import splits_by_hash
from c3tools.errors import StoreError
from c3tools.io.lock import locked
from c3tools.moments import Moments, load_moments, save_moments
from c3tools.store import Rows, Store, StoreWriter
from c3tools.store.copies import merge_stores, split_store
from c3tools.store.means import compute_means, load_means, merge_means, save_means, unload_means
from c3tools.store.verify import verify_store
from tests.conftest import add_shard, build_store, unit_rows
from tests.stores import DIM, FAILURE, make_vectors, two_texts_per_image, whole_store

from .test_store import Put


def images(names: str, split: str | None = "train") -> Rows:
    return Rows.of("image", list(names), unit_rows(len(names), 4, ord(names[0])), split=[split] * len(names))


def texts(names: str, split: str | None = "train") -> Rows:
    keys = [f"{name}#{names[:i].count(name)}" for i, name in enumerate(names)]
    rows = unit_rows(len(names), 4, 7)
    return Rows.of("text", keys, rows, image_key=list(names), caption=keys, split=[split] * len(names))


def splits_of(store: Path) -> dict[str, str | None]:
    found = Store.open(store)
    loaded = [found.load(modality) for modality in found.modalities]
    return {key: split for rows in loaded for key, split in zip(rows.keys, rows.column("split"), strict=True)}


def test_two_stores_become_one_with_the_bytes_of_their_shards(tmp_path: Path) -> None:
    one = whole_store(tmp_path / "a" / "one").path
    two = build_store(tmp_path / "two", *two_texts_per_image(["val"], unit_rows(1, DIM, 5), unit_rows(2, DIM, 6))).path
    add_shard(two, Store.open(two).info, "image", 1, np.empty((0, DIM)), {"key": []})  # whose inputs all failed
    StoreWriter(two).finish()
    report = merge_stores(tmp_path / "m", [one, two], keep="first")
    assert {name: sum(n.values()) for name, n in report.rows.items()} == {"image": 30, "text": 60}
    assert report.dropped == 3
    merged = Store.open(tmp_path / "m")
    for part in (0, 1, 2):  # what does not change is written with the same bytes
        assert merged.file("text", part).read_bytes() == Store.open(one).file("text", part).read_bytes()
    assert merged.recorded_failures() == [FAILURE] and verify_store(merged.path).findings == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"keep": "first"}, ["a", "b", "c"]), ({"prefix": True}, ["one/a", "one/b", "two/b", "two/c"])],
)
def test_keys_that_repeat(tmp_path: Path, options: dict[str, Any], expected: list[str]) -> None:
    paths = [build_store(tmp_path / name, images(keys)).path for name, keys in (("one", "ab"), ("two", "bc"))]
    merge_stores(tmp_path / "m", paths, **options)
    rows = Store.open(tmp_path / "m").load("image")
    assert rows.keys == expected
    np.testing.assert_array_equal(rows.embeddings[1], Store.open(paths[0]).load("image").embeddings[1])


def test_merged_items_are_in_the_split_of_the_first_store(tmp_path: Path) -> None:
    one = build_store(tmp_path / "one", images("ab", "val"), texts("a", "val")).path
    two = build_store(tmp_path / "two", texts("abbc", "train")).path
    (tmp_path / "m").mkdir()
    merge_stores(tmp_path / "m", [one, two], keep="first")
    assert splits_of(tmp_path / "m") == {
        "a": "val",
        "b": "val",
        "a#0": "val",
        "b#0": "val",
        "b#1": "val",
        "c#0": "train",
    }
    assert verify_store(tmp_path / "m").rows == {"image": 2, "text": 4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "one", "two"]


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    one = build_store(tmp_path / "one", images("ab")).path
    other = build_store(tmp_path / "other", images("c"), model={"name": "other"}).path
    two = build_store(tmp_path / "two", images("xy")).path
    again = build_store(tmp_path / "again" / "one", images("z")).path
    cases: list[tuple[list[Path], dict[str, Any], str]] = [
        ([one, two, other], {}, f"{one} .* {other}"),
        ([one, one], {}, "two stores"),
        ([one, again], {"prefix": True}, "the same name"),
        ([one, two], {"prefix": True, "keep": "first"}, "--keep first"),
        ([one, two], {"keep": "last"}, "--keep last"),
    ]
    for stores, options, said in cases:
        with pytest.raises(StoreError, match=f"(?s){said}"):
            merge_stores(tmp_path / "m", stores, **options)
    path = two / "image" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-30] + b"?" * 30)
    with pytest.raises(StoreError, match="part-00000"):
        merge_stores(tmp_path / "m", [one, two])
    assert not (tmp_path / "m").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["hash", "fractions", "file"])
def test_a_split_moves_texts_with_their_image(tmp_path: Path, put: Put, kind: str) -> None:
    store = build_store(tmp_path / "s", images("abcdefgh", "one"), texts("aabcdefgh", "two"))
    table = tmp_path / "splits.jsonl"
    table.write_text('{"file_name": "a.jpg", "split": "val"}\n{"file_name": "b.jpg", "split": "test"}\n')
    options = {"hash": {}, "fractions": {"fractions": (0, 0, 1)}, "file": {"file": table}}
    report = split_store(tmp_path / "new", put(store.path), **options[kind])  # type: ignore[arg-type]
    rules: dict[str, Any] = {
        "hash": lambda key: splits_by_hash([key])[0],
        "fractions": lambda _: "test",
        "file": lambda key: {"a": "val", "b": "test"}.get(key, "one"),
    }
    expected = {key: rules[kind](key[0]) for key in splits_of(store.path)}
    assert splits_of(tmp_path / "new") == expected
    assert verify_store(tmp_path / "new").whole and sum(report.rows["text"].values()) == 9
    assert report.unnamed == (12 if kind == "file" else 0)


def test_a_split_that_cannot_be_made(tmp_path: Path) -> None:
    store = whole_store(tmp_path / "s").path
    (tmp_path / "none.csv").write_text("key,split\nnobody,val\n")
    none = {"file": tmp_path / "none.csv"}
    shares = [(1.5, -0.5, 0), (0.5, 0.5), (0.5, 0.5, 0.5)]
    cases: list[tuple[dict[str, Any], str]] = [
        (none, "none of the keys"),
        ({**none, "fractions": (0, 0, 1)}, "--file"),
        ({**none, "split_column": "part"}, r"none\.csv .* \(key\) .* \(part\).* 'key', 'split'"),
        *(({"fractions": given}, ", ".join(map(str, given))) for given in shares),
    ]
    for options, named in cases:
        with pytest.raises(StoreError, match=named):
            split_store(tmp_path / "new", store, **options)
    assert not (tmp_path / "new").exists()


def test_means_are_those_of_rows_at_unit_length(tmp_path: Path) -> None:
    vectors = make_vectors(30)
    rows = two_texts_per_image(["train"] * 27 + ["val"] * 2 + ["test"], vectors[0] * 3, vectors[1])
    store = build_store(tmp_path / "s", *rows, normalised=False, dtype="float32")
    saved = save_means(store, tmp_path / "m.safetensors")["image"]
    np.testing.assert_allclose(saved.mean, vectors[0][:27].astype(float).mean(axis=0), atol=1e-7)
    means = compute_means(store)
    for row in means.rows:
        own = store.load(row["modality"], row["split"]).embeddings.astype(float)
        error = np.sqrt(own.var(axis=0, ddof=1).sum() / len(own)) if len(own) > 1 else None
        assert (row["n"], row["source"]) == (len(own), "store")
        assert row["mean_norm"] == pytest.approx(np.linalg.norm(own.mean(axis=0)))
        assert row["standard_error"] == (error and pytest.approx(error))
    assert [(row["modality"], row["n"]) for row in means.rows] == [
        *(("image", n) for n in (27, 2, 1, 30)),
        *(("text", n) for n in (54, 4, 2, 60)),
    ]
    one, other = (store.load(name).embeddings.astype(float).mean(axis=0) for name in ("image", "text"))
    assert means.gap_length == pytest.approx(np.linalg.norm(one - other))


def test_loaded_means_are_fitted_on_until_they_are_unloaded(tmp_path: Path) -> None:
    store, other = (
        whole_store(tmp_path / "a" / "s"),
        build_store(tmp_path / "o", *two_texts_per_image(["train"] * 8, unit_rows(8, DIM, 30), unit_rows(16, DIM, 31))),
    )
    save_means(other, tmp_path / "m.safetensors")
    load_means(store.path, tmp_path / "m.safetensors")
    opened = Store.open(store.path)
    np.testing.assert_array_equal(opened.fitting_moments("image").mean, other.moments("image", "train").mean)
    assert {(row["split"], row["source"]) for row in compute_means(opened).rows} == {
        *((split, "store") for split in ("train", "val", "all")),
        ("train", "o"),
    }
    for change in (lambda: load_means(store.path, tmp_path / "l.safetensors"), lambda: unload_means(store.path)):
        assert verify_store(store.path).whole
        (store.path / "external-moments.safetensors").unlink()  # it may be lost
        save_moments(tmp_path / "l.safetensors", {"image": Moments.from_rows(unit_rows(9, DIM))}, {})
        change()
        means = compute_means(store.path).rows
    assert len(means) == 6
    assert Store.open(store.path).external_moments() == ({}, {}) and verify_store(store.path).whole
    for vectors, model, named in (
        (3 * unit_rows(9, DIM), {}, "squared norm of 9"),
        (unit_rows(9, 13), {}, "13 dimensions"),
        (unit_rows(9, DIM), {"name": "other"}, "other"),
    ):
        save_moments(tmp_path / "l.safetensors", {"image": Moments.from_rows(vectors)}, {"model": model})
        with pytest.raises(StoreError, match=named):
            load_means(store.path, tmp_path / "l.safetensors")
    with locked(store.path), pytest.raises(Exception, match="Another run"):
        load_means(store.path, tmp_path / "m.safetensors")


def test_merging_files_of_means_is_merging_rows(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    vectors = unit_rows(30, 4)
    for file, rows, header in zip(files, (vectors[:10], vectors[10:]), ({}, {"split": "val"}), strict=True):
        save_moments(file, {"image": Moments.from_rows(rows)}, {"model": {"name": "m"}, "source": file.stem, **header})
    merged = merge_means(files, tmp_path / "all.safetensors")["image"]
    np.testing.assert_allclose(merged.scatter, Moments.from_rows(vectors).scatter, atol=1e-12)
    header = load_moments(tmp_path / "all.safetensors")[1]
    assert header == {"model": {"name": "m"}, "split": "train + val", "source": "0.safetensors + 1.safetensors"}
    save_moments(tmp_path / "other", {}, {"model": {"name": "other"}})
    with pytest.raises(StoreError, match="other"):
        merge_means([files[0], tmp_path / "other"], tmp_path / "new.safetensors")
    for paths in ([files[0], files[0]], [files[0], tmp_path / "all.safetensors"]):
        with pytest.raises(StoreError, match="twice"):
            merge_means(paths, tmp_path / "all.safetensors")
