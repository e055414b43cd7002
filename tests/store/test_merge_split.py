"""Stores made from others (merge, split, the hub), and their means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize
from unittest.mock import Mock

import numpy as np
import pytest

from c3tools import (
    export_store,
    import_embeddings,
    leave_out,
    merge_stores,
    split_store,
    verify_store,
)
from c3tools.corpus.splits import splits_by_hash
from c3tools.corpus.tables import TABLE_SUFFIXES
from c3tools.errors import OutputError, StoreError, UnusedOptionError
from c3tools.io.lock import locked
from c3tools.moments import Moments, save_moments
from c3tools.store import Rows, Store, StoreWriter
from c3tools.store.means import compute_means, load_means, save_means, unload_means
from c3tools.store.shards import moments_of as sum_rows
from c3tools.transforms.fitting import moments_of
from tests.conftest import Messages, add_shard, build_store, contents, unit_rows, write_jsonl
from tests.corpus.packing import write_list
from tests.stores import DIM, FAILURE, make_vectors, two_texts_per_image, whole_store

from .test_store import Put


def images(names: str, split: str | None = "train") -> Rows:
    return Rows.of(
        "image", list(names), unit_rows(len(names), 4, ord(names[0])), split=[split] * len(names)
    )


def texts(names: str, split: str | None = "train") -> Rows:
    keys = [f"{name}#{names[:i].count(name)}" for i, name in enumerate(names)]
    rows = unit_rows(len(names), 4, 7)
    return Rows.of(
        "text", keys, rows, image_key=list(names), caption=keys, split=[split] * len(names)
    )


def splits_of(store: Path) -> dict[str, str | None]:
    loaded = map(Store.open(store).load, Store.open(store).modalities)
    return {
        key: split
        for rows in loaded
        for key, split in zip(rows.keys, rows.column("split"), strict=True)
    }


def test_two_stores_become_one_with_the_bytes_of_their_shards(tmp_path: Path) -> None:
    one = whole_store(tmp_path / "a" / "one")
    two = build_store(
        tmp_path / "two", *two_texts_per_image(["val"], unit_rows(1, DIM, 5), unit_rows(2, DIM, 6))
    )
    # whose inputs all failed
    add_shard(two.path, two.info, "image", 1, np.empty((0, DIM)), {"key": []})
    StoreWriter(two.path).finish()
    report = merge_stores([one.path, two.path], output=tmp_path / "m", keep_first=True)
    assert {name: sum(n.values()) for name, n in report.rows.items()} == {"image": 30, "text": 60}
    merged = Store.open(tmp_path / "m")
    for part in (0, 1, 2):  # what does not change is written with the same bytes
        assert merged.file("text", part).read_bytes() == one.file("text", part).read_bytes()
    assert [report.dropped, merged.recorded_failures(), verify_store(merged.path).findings] == [
        3,
        [FAILURE],
        [],
    ]


def test_merged_items_are_in_the_split_of_the_first_store_unless_their_keys_differ(
    tmp_path: Path,
) -> None:
    one = build_store(tmp_path / "one", images("ab", "val"), texts("a", "val")).path
    two = build_store(tmp_path / "two", images("b"), texts("abbc")).path
    (tmp_path / "m").mkdir()
    merge_stores([one, two], output=tmp_path / "m", keep_first=True)
    assert splits_of(tmp_path / "m") == {
        **dict.fromkeys(("a", "b", "a#0", "b#0", "b#1"), "val"),
        "c#0": "train",
    }
    first, merged = (Store.open(path).load("image").embeddings for path in (one, tmp_path / "m"))
    np.testing.assert_array_equal(merged, first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "one", "two"]
    merge_stores([one, two], output=tmp_path / "p", prefix=True)
    prefixed = {
        f"{path.name}/{key}": split for path in (one, two) for key, split in splits_of(path).items()
    }
    assert splits_of(tmp_path / "p") == prefixed


@pytest.mark.parametrize(
    ("copy", "summed"), [("prefixes", 0), ("keep-first", 10), ("split", 6), ("left-out", 11)]
)
def test_only_rows_that_move_are_summed_for_the_moments_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: str, summed: int
) -> None:
    one = build_store(tmp_path / "one", images("ab", "val"), texts("a", "val")).path
    two = build_store(tmp_path / "two", images("bc"), texts("abbc")).path
    if copy == "left-out":
        leave_out(one, keys=["b"], yes=True)  # in the copy with its texts in the other store
    splits = write_jsonl(tmp_path / "splits.jsonl", {"key": "b", "split": "test"})
    rows_summed = Mock(wraps=sum_rows)
    with monkeypatch.context() as patch:
        patch.setattr("c3tools.store.dataset.moments_of", rows_summed)
        patch.setattr("c3tools.store.manifest.sum_shard", Mock(side_effect=AssertionError))
        if copy == "split":
            split_store(two, output=tmp_path / "m", file=splits)
        else:
            prefix = copy == "prefixes"
            merge_stores([one, two], output=tmp_path / "m", prefix=prefix, keep_first=not prefix)
    assert sum(len(call.args[1]) for call in rows_summed.call_args_list) == summed
    moments = tmp_path / "m" / "moments.safetensors"
    content = moments.read_bytes()
    moments.unlink()
    StoreWriter(moments.parent).finish()
    assert moments.read_bytes() == content


def test_the_same_merge_or_split_again_does_nothing_and_says_so(tmp_path: Path) -> None:
    one = build_store(tmp_path / "one", images("ab", "val"), texts("a", "val")).path
    two = build_store(tmp_path / "two", images("b"), texts("abbc")).path
    table = tmp_path / "splits.jsonl"
    table.write_text('{"file_name": "a.jpg", "split": "test"}\n')
    merge = partial(merge_stores, [one, two], output=tmp_path / "m", keep_first=True)
    split = partial(split_store, one, output=tmp_path / "s", file=table)
    for run in (merge, split):
        first, before = run(), contents(tmp_path)
        said = Messages()
        assert run(reporter=said) == first
        assert "already contains this store; there is nothing to do" in said.texts[0]
        assert contents(tmp_path) == before


@pytest.mark.parametrize("changed", ["option", "table", "source"])
def test_another_split_into_the_same_folder_is_refused(tmp_path: Path, changed: str) -> None:
    source, output = tmp_path / "s", tmp_path / "out"
    build_store(source, images("abcd"))
    table = tmp_path / "splits.jsonl"
    table.write_text('{"file_name": "a.jpg", "split": "test"}\n')
    options: dict[str, Any] = {"file": table} if changed == "table" else {}
    split_store(source, output=output, **options)
    if changed == "option":
        options["seed"] = 1
    elif changed == "table":
        table.write_text('{"file_name": "a.jpg", "split": "val"}\n')
    else:
        add_shard(source, Store.open(source).info, "image", 1, unit_rows(1, 4), {"key": ["new"]})
        StoreWriter(source).finish()
    before = contents(output)
    with pytest.raises(StoreError, match="already exists"):
        split_store(source, output=output, **options)
    assert contents(output) == before


def test_the_same_split_again_keeps_rows_that_were_added_to_the_new_store(tmp_path: Path) -> None:
    source, output = build_store(tmp_path / "s", images("abcd")).path, tmp_path / "out"
    split_store(source, output=output)
    add_shard(output, Store.open(output).info, "image", 1, unit_rows(1, 4), {"key": ["new"]})
    StoreWriter(output).finish()
    before = contents(output)
    assert sum(split_store(source, output=output).rows["image"].values()) == 5
    assert contents(output) == before


def test_a_new_store_is_not_written_to_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_store(tmp_path / "s", images("ab"))
    with pytest.raises(StoreError, match="cannot be written to s3:"):
        split_store("s", output="s3://bucket/x")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    one, other, two, again = (
        build_store(tmp_path / name, images(name[:2]), model={"name": model}).path
        for name, model in (("one", "m"), ("other", "n"), ("two", "m"), ("again/one", "m"))
    )
    path = two / "image" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-30] + b"?" * 30)
    for stores, said in (
        ([one, two, other], f"{one} .* {other}"),
        ([one, again], "folders with the same name"),
        ([one, two], path.stem),
    ):
        with pytest.raises(StoreError, match=f"(?s){said}"):
            merge_stores(stores, output=tmp_path / "m", prefix=stores[1] == again)
    assert not (tmp_path / "m").exists() and not list(tmp_path.glob(".*"))


def test_stores_of_unknown_models_are_merged_once_the_model_is_named(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    import_embeddings(image=unit_rows(2, 4, 1), store=one)
    import_embeddings(image=unit_rows(3, 4, 2), store=two)
    named = build_store(tmp_path / "named", images("ab"), model={"name": "m"}).path
    merge = partial(merge_stores, output=tmp_path / "m", prefix=True)
    with pytest.raises(StoreError, match=f"(?s)model of {one}, {two} is unknown.*--model NAME"):
        merge([one, two])
    with pytest.raises(StoreError, match=f"(?s)model of {two} is unknown.*--model m"):
        merge([named, two])
    with pytest.raises(StoreError, match=r"belongs to the model m, but .* to other"):
        merge([named, two], model="other")
    merge([one, named, two], model="m")
    merged = Store.open(tmp_path / "m")
    assert (merged.info.model, merged.count("image")) == ({"name": "m"}, 7)
    again = Messages()
    merge([one, named, two], model="m", reporter=again)
    assert "there is nothing to do" in again.texts[0]
    with pytest.raises(UnusedOptionError, match=r"--model .* all stores record their model"):
        merge([named, tmp_path / "m"], model="m")


@pytest.mark.parametrize("export_first", [True, False])
def test_an_export_is_not_merged_with_a_store(tmp_path: Path, export_first: bool) -> None:
    store = whole_store(tmp_path / "store")
    export_store(whole_store(tmp_path / "other"), output=tmp_path / "export", preset="c2-collapse")
    stores = [store.path, tmp_path / "export"]
    with pytest.raises(StoreError, match=r"export is an export\. .* pipeline") as refused:
        merge_stores(sorted(stores, reverse=not export_first), output=tmp_path / "m")
    assert "Merge the stores that were exported" in str(refused.value)


def test_an_export_is_not_split(tmp_path: Path) -> None:
    store = whole_store(tmp_path / "store")
    export_store(store, output=tmp_path / "export", preset="c2-collapse")
    with pytest.raises(StoreError, match=r"export is an export\. .* pipeline") as refused:
        split_store(tmp_path / "export", output=tmp_path / "new")
    assert "Split the store that was exported" in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_a_split_into_its_own_store_is_refused(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", images("ab")).path
    with pytest.raises(OutputError, match=f"out is inside the store {store}"):
        split_store(store, output=store / "out")


def test_a_merge_says_what_to_do_about_another_dtype_and_one_name(tmp_path: Path) -> None:
    one = whole_store(tmp_path / "a" / "c3-store", dtype="float32").path
    two = whole_store(tmp_path / "b" / "c3-store").path
    with pytest.raises(StoreError, match=r"Embed or import the inputs .* --keep-columns"):
        merge_stores([one, two], output=tmp_path / "m")
    with pytest.raises(StoreError, match=r"mv \S*b/c3-store \S*b/cam2"):
        merge_stores([whole_store(tmp_path / "c" / "c3-store").path, two], output="m", prefix=True)


def test_a_split_moves_texts_with_their_image(tmp_path: Path, put: Put) -> None:
    store = build_store(tmp_path / "s", images("abcdefgh", "one"), texts("aabcdefgh", "two")).path
    table, place = tmp_path / "splits.jsonl", put(store)
    table.write_text(
        '{"file_name": "a.jpg", "split": "val"}\n{"file_name": "b.jpg", "split": "test"}\n'
    )
    cases: list[tuple[dict[str, Any], Callable[[str], str], int]] = [
        ({}, lambda key: splits_by_hash([key])[0], 0),
        ({"fractions": (0, 0, 1)}, lambda _: "test", 0),
        ({"file": table}, lambda key: {"a": "val", "b": "test"}.get(key, "one"), 12),
    ]
    for number, (options, rule, unnamed) in enumerate(cases):
        new = tmp_path / f"{number}"
        report = split_store(place, output=new, **options)
        assert splits_of(new) == {key: rule(key[0]) for key in splits_of(store)}
        assert verify_store(new).whole and (sum(report.rows["text"].values()), report.unnamed) == (
            9,
            unnamed,
        )


def test_means_are_those_of_rows_at_unit_length(tmp_path: Path) -> None:
    vectors = make_vectors(30)
    rows = two_texts_per_image(["train"] * 27 + ["val"] * 2 + ["test"], vectors[0] * 3, vectors[1])
    store = build_store(tmp_path / "s", *rows, normalised=False, dtype="float32")
    saved = save_means(store, tmp_path / "m.safetensors")["image"]
    np.testing.assert_allclose(saved.mean, vectors[0][:27].astype(float).mean(axis=0), atol=1e-7)
    means, whole = compute_means(store), []
    for row in means.rows:
        own = store.load(row["modality"], row["split"]).embeddings.astype(float)
        whole.append(own.mean(axis=0))
        error = np.sqrt(own.var(axis=0, ddof=1).sum() / len(own)) if len(own) > 1 else None
        assert (row["n"], row["source"]) == (len(own), "store")
        assert row["mean_norm"] == pytest.approx(np.linalg.norm(whole[-1]))
        assert row["standard_error"] == (error and pytest.approx(error))
    assert means.gap_length == pytest.approx(np.linalg.norm(whole[3] - whole[7]))


def test_loaded_means_are_fitted_on_until_they_are_unloaded(tmp_path: Path) -> None:
    path, file = whole_store(tmp_path / "a" / "s").path, tmp_path / "m.safetensors"
    rows = two_texts_per_image(["train"] * 8, unit_rows(8, DIM, 30), unit_rows(16, DIM, 31))
    other = build_store(tmp_path / "o", *rows)
    save_means(other, file)
    load_means(path, file)
    opened = Store.open(path)
    np.testing.assert_array_equal(
        moments_of(opened, "image").mean, other.moments("image", "train").mean
    )
    save_moments(file, {"image": Moments.from_rows(unit_rows(9, DIM))}, {})
    for change in (lambda: load_means(path, file), lambda: unload_means(path)):
        assert verify_store(path).whole
        (path / "external-moments.safetensors").unlink()  # it may be lost
        change()
    assert len(compute_means(path).rows) == 6
    assert Store.open(path).external_moments() == ({}, {}) and verify_store(path).whole
    with locked(path), pytest.raises(OutputError, match="Another run"):
        load_means(path, file)
    for vectors, named in (
        (3 * unit_rows(9, DIM), "squared norm of 9"),
        (unit_rows(9, 13), "13 dimensions"),
    ):
        save_moments(file, {"image": Moments.from_rows(vectors)}, {})
        with pytest.raises(StoreError, match=named):
            load_means(path, file)


@pytest.mark.parametrize(
    "table",
    [
        "id,file_name,split\n1,a.jpg,val\n2,b.jpg,test\n",
        "id,image_id,split\na,1,val\nb,2,test\n",
        "ID;Image;Split\n1;a.jpg;val\n2;b.jpg;test\n",
    ],
)
def test_a_split_table_is_joined_by_the_first_column_that_has_a_key(
    tmp_path: Path, table: str
) -> None:
    store = build_store(tmp_path / "one", images("ab")).path
    file = tmp_path / "splits.csv"
    file.write_text(table)
    split_store(store, output=tmp_path / "new", file=file)
    assert splits_of(tmp_path / "new") == {"a": "val", "b": "test"}


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_splits_of_every_kind_of_table(tmp_path: Path, suffix: str) -> None:
    store = build_store(tmp_path / "one", images("ab")).path
    rows = [{"key": "a", "split": "val"}, {"key": "b", "split": "test"}]
    split_store(store, output=tmp_path / "new", file=write_list(tmp_path / f"t{suffix}", rows))
    assert splits_of(tmp_path / "new") == {"a": "val", "b": "test"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_split_table_may_have_names_in_another_unicode_form(tmp_path: Path, form: Any) -> None:
    store = build_store(tmp_path / "s", images("\u00e9\u00fc")).path
    table = tmp_path / "splits.jsonl"
    write_jsonl(table, {"file_name": normalize(form, "\u00e9.jpg"), "split": "test"})
    split_store(store, output=tmp_path / "out", file=table)
    assert splits_of(tmp_path / "out") == {"\u00e9": "test", "\u00fc": "train"}


def test_a_split_table_without_keys_of_the_store_is_refused_with_its_columns(
    tmp_path: Path,
) -> None:
    store = build_store(tmp_path / "one", images("ab")).path
    file = tmp_path / "splits.csv"
    file.write_text("file_name,id,split\nx.jpg,1,val\n")
    with pytest.raises(StoreError, match="'file_name', 'id'; its columns are 'file_name', 'id'"):
        split_store(store, output=tmp_path / "new", file=file)


def test_new_splits_and_keys_that_are_not_in_the_store_are_said(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", images("abc", "base")).path
    table = tmp_path / "splits.csv"
    table.write_text("key,split\na,tets\nb,Testing\nc,base\nx,tset\ny,test\n")
    for _ in range(2):  # the second run finds the store there
        report = split_store(store, output=tmp_path / "out", file=table)
        assert report.notes() == [
            "The table has 1 split that the store did not have: tets.",
            "The store has no rows for 2 keys in the table: x, …",
        ]
    table.write_text("key,split\na,test\nb,train\nc,base\n")
    assert split_store(store, output=tmp_path / "known", file=table).notes() == []


def test_a_file_of_karpathy_names_splits(tmp_path: Path) -> None:
    store = build_store(tmp_path / "one", images("ab")).path
    file = tmp_path / "dataset.json"
    file.write_text(
        '{"images": [{"filename": "a.jpg", "split": "val", "sentences": []},'
        ' {"filename": "b.jpg", "split": "test", "sentences": []}]}'
    )
    split_store(store, output=tmp_path / "new", file=file)
    assert splits_of(tmp_path / "new") == {"a": "val", "b": "test"}
