"""Rows that are left out: they stay in the store, and no command uses them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

import c3tools
from c3tools.choices import ExportFormat
from c3tools.corpus.tables import TABLE_SUFFIXES
from c3tools.errors import IncompleteStoreError, OutputError, StoreError
from c3tools.store import Rows, Store, StoreWriter, verify
from c3tools.store.leave_out import shards_metadata
from c3tools.store.manifest import record_files
from c3tools.store.means import save_means
from c3tools.store.shards import open_shard
from tests.conftest import build_store, contents, slice_of, unit_rows, write_jsonl
from tests.corpus.packing import write_list
from tests.crashes import kill_at, operations
from tests.stores import colour_corpus, embed_colours, whole_store

DIM = 8
IMAGES = 40


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of 40 images, the last 10 of test, with two captions each."""
    keys = [f"img{number}" for number in range(IMAGES)]
    splits = ["test" if number >= 30 else "train" for number in range(IMAGES)]
    owners = [key for key in keys for _ in range(2)]
    images = Rows.of("image", keys, unit_rows(IMAGES, DIM, 1), split=splits)
    texts = Rows.of(
        "text",
        [f"{owner}#{number % 2}" for number, owner in enumerate(owners)],
        unit_rows(2 * IMAGES, DIM, 2),
        caption=[f"caption {number}" for number in range(2 * IMAGES)],
        image_key=owners,
        split=[split for split in splits for _ in range(2)],
    )
    return build_store(tmp_path / "store", images, texts)


@pytest.fixture
def smaller(store: Store) -> Store:
    """The store without a photo, its captions, and a caption of another photo."""
    c3tools.leave_out(store, keys=["img0", "img1#0"])
    return Store.open(store.path)


def listed(store: Store | Path) -> list[tuple[str, str, str, str]]:
    rows = c3tools.leave_out(store).rows
    return [(row.modality, row.key, row.reason, row.content) for row in rows]


def keys_left_out(store: Store | Path) -> list[str]:
    return [row.key for row in c3tools.leave_out(store).rows]


def digests_of(store: Store) -> dict[str, str]:
    return {f"{name}/{part}": store.shard_digest(name, part) for name, part in store.shards}


def test_a_photo_is_left_out_with_its_captions_and_a_caption_without_its_photo(
    smaller: Store,
) -> None:
    assert keys_left_out(smaller) == ["img0", "img0#0", "img0#1", "img1#0"]
    assert smaller.left_out_counts == {"image": 1, "text": 3}


def test_rows_that_are_left_out_are_not_read(smaller: Store) -> None:
    assert smaller.count("image") == 39
    assert smaller.count("text", "all") == 77
    assert smaller.count("text", "train") == 57
    assert "img1#0" not in smaller.load("text").keys
    assert "img0" not in smaller.load("image", "train").keys
    assert len(smaller.pairs()) == 77


def test_moments_are_those_of_the_rows_that_are_used(smaller: Store) -> None:
    rows = smaller.load("image").embeddings
    assert smaller.moments("image").n == 39
    np.testing.assert_allclose(smaller.moments("image").mean, rows.mean(axis=0), atol=1e-6)


def test_shards_stay_as_they_are(store: Store) -> None:
    files = {name: (store.path / name) for name in ("image/part-00000.parquet",)}
    before = {name: file.read_bytes() for name, file in files.items()}
    c3tools.leave_out(store, keys=["img0"])
    assert {name: file.read_bytes() for name, file in files.items()} == before


def test_exports_and_indexes_see_which_shards_lost_rows(store: Store) -> None:
    c3tools.leave_out(store, keys=["img1#0"])
    before = digests_of(store)
    after = digests_of(Store.open(store.path))
    assert [name for name in before if before[name] != after[name]] == ["text/0"]


def test_a_shard_is_read_once_unless_it_has_such_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = whole_store(tmp_path / "s")
    read = Counter[Path]()

    def opened(path: Path, modality: str, columns: Any = None, *others: Any) -> Any:
        read[path] += columns is None or "key" in columns
        return open_shard(path, modality, columns, *others)

    monkeypatch.setattr("c3tools.store.reader.open_shard", opened)
    c3tools.leave_out(store.path, keys=["img003#1"])
    shards = [store.file(*shard) for shard in store.shards]
    times = [read[path] for path in shards]
    assert sorted(times) == [1, 1, 1, 1, 1, 2]  # to find the key, and to list the row
    read.clear()
    c3tools.leave_out(store.path, undo=True)
    assert not read


def test_a_second_call_adds(store: Store) -> None:
    c3tools.leave_out(store, keys=["img0#0"])
    result = c3tools.leave_out(store.path, keys=["img1#0", "img0#0"])
    assert (result.added, len(result.rows)) == (1, 2)
    assert result.line() == f"2 rows are left out of {store.path}, 1 of them new."


def test_the_first_reason_counts(store: Store) -> None:
    c3tools.leave_out(store, keys=["img0#0"], reason="first")
    c3tools.leave_out(store.path, keys=["img0#0"], reason="second")
    assert listed(store.path) == [("text", "img0#0", "first", "caption 0")]


def test_undo_takes_all_rows_back_to_the_same_bytes(store: Store) -> None:
    before = contents(store.path)
    c3tools.leave_out(store, keys=["img0", "img1#0"])
    c3tools.leave_out(store.path, undo=True)
    assert contents(store.path) == before


def test_the_order_leaves_no_trace(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "other")
    c3tools.leave_out(store, keys=["img0", "img5#0"])
    c3tools.leave_out(tmp_path / "other", keys=["img5#0"])
    c3tools.leave_out(tmp_path / "other", keys=["img0"])
    assert contents(store.path) == contents(tmp_path / "other")


def test_a_table_names_rows_by_key_with_reasons(store: Store, tmp_path: Path) -> None:
    table = write_jsonl(
        tmp_path / "wrong.jsonl", {"key": "img0", "reason": "blurred"}, {"key": "img1#0"}
    )
    c3tools.leave_out(store, [table])
    assert listed(store.path) == [
        ("image", "img0", "blurred", ""),
        ("text", "img0#0", "blurred", "caption 0"),
        ("text", "img0#1", "blurred", "caption 1"),
        ("text", "img1#0", "wrong.jsonl", "caption 2"),
    ]


def save_table(path: Path, store: Store, marks: dict[str, bool]) -> Path:
    """Write a table as `c3 pairs` and `c3 duplicates` do."""
    table = pa.table({"key": list(marks), "leave_out": list(marks.values())})
    pq.write_table(table.replace_schema_metadata(shards_metadata(store)), path)
    return path


def test_of_a_table_with_marks_the_marked_rows_count(store: Store, tmp_path: Path) -> None:
    table = save_table(tmp_path / "pairs.parquet", store, {"img0#0": True, "img1#0": False})
    c3tools.leave_out(store, [table])
    assert keys_left_out(store.path) == ["img0#0"]


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_marks_of_every_kind_of_table(store: Store, tmp_path: Path, suffix: str) -> None:
    rows = [{"key": "img0#0", "leave_out": True}, {"key": "img1#0", "leave_out": False}]
    c3tools.leave_out(store, [write_list(tmp_path / f"t{suffix}", rows)])
    assert keys_left_out(store.path) == ["img0#0"]


def test_one_table_after_another_leaves_both_out(store: Store, tmp_path: Path) -> None:
    pairs = save_table(tmp_path / "pairs.parquet", store, {"img0#0": True, "img1#0": False})
    copies = save_table(tmp_path / "duplicates.parquet", store, {"img2": True, "img0#0": False})
    c3tools.leave_out(store, [pairs])
    c3tools.leave_out(store.path, [copies])
    assert keys_left_out(store.path) == ["img2", "img0#0", "img2#0", "img2#1"]


def test_a_table_of_another_store_is_refused(store: Store, tmp_path: Path) -> None:
    rows = Rows.of("image", [f"img{number}" for number in range(9)], unit_rows(9, DIM, 9))
    other = build_store(tmp_path / "other", rows)
    table = save_table(tmp_path / "pairs.parquet", other, {"img0": True})
    with pytest.raises(StoreError, match="was made from a store other"):
        c3tools.leave_out(store, [table])


def test_keys_that_the_store_does_not_have_are_said(store: Store, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "wrong.jsonl", {"key": "img0"}, {"key": "gone"})
    result = c3tools.leave_out(store, [table])
    assert list(result.notes) == ["1 row of the tables is not in the store, for example 'gone'."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ["gone"]}, "has no row with the key 'gone'"),
        ({"keys": ["img0"], "modality": "text"}, "has no row with the key 'img0'"),
        ({"keys": ["img0"], "undo": True}, "--undo takes all rows back"),
    ],
)
def test_what_cannot_be_left_out_is_refused(
    store: Store, options: dict[str, Any], message: str
) -> None:
    before = contents(store.path)
    with pytest.raises(StoreError, match=message):
        c3tools.leave_out(store, **options)
    assert contents(store.path) == before


def test_a_table_without_a_row_of_the_store_is_refused(store: Store, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "wrong.jsonl", {"key": "gone"})
    with pytest.raises(StoreError, match="has no row with the key 'gone'"):
        c3tools.leave_out(store, [table])


def test_a_table_without_keys_is_refused(store: Store, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "wrong.jsonl", {"reason": "blurred"})
    with pytest.raises(StoreError, match="has no key column; its columns are reason"):
        c3tools.leave_out(store, [table])


def test_a_key_of_two_modalities_needs_one(tmp_path: Path) -> None:
    images = Rows.of("image", ["0", "1"], unit_rows(2, DIM, 1))
    texts = Rows.of("text", ["0", "1"], unit_rows(2, DIM, 2), image_key=["0", "1"])
    store = build_store(tmp_path / "s", images, texts)
    with pytest.raises(StoreError, match=r"several modalities: image, text"):
        c3tools.leave_out(store, keys=["1"])
    c3tools.leave_out(store, keys=["1"], modality="text")
    assert keys_left_out(store.path) == ["1"]
    assert Store.open(store.path).left_out_counts == {"text": 1}


def test_more_than_half_of_a_modality_needs_a_yes(store: Store, tmp_path: Path) -> None:
    """As the catalogue itself does, which names every photo."""
    catalogue = write_jsonl(tmp_path / "c.jsonl", *[{"key": f"img{n}"} for n in range(21)])
    before = contents(store.path)
    with pytest.raises(StoreError, match=r"21 of 40 image rows of .* would be left") as refusal:
        c3tools.leave_out(store, [catalogue])
    assert "--yes" in str(refusal.value.remedy)
    assert contents(store.path) == before
    c3tools.leave_out(store, keys=[f"img{n}" for n in range(20)])
    assert c3tools.leave_out(store.path, [catalogue]).added == 3
    captions = [f"img{n}#{caption}" for n in range(21, 31) for caption in range(2)]
    with pytest.raises(StoreError, match="20 of 38 text rows"):
        c3tools.leave_out(store.path, keys=captions)
    assert c3tools.leave_out(store.path, keys=captions, yes=True).added == 20


def test_an_export_is_refused(store: Store, tmp_path: Path) -> None:
    c3tools.export_store(store, output=tmp_path / "export", preset="c1")
    with pytest.raises(StoreError, match="store that was exported"):
        c3tools.leave_out(tmp_path / "export", keys=["img0"])


def test_captions_that_are_embedded_later_are_left_out_with_their_photo(tmp_path: Path) -> None:
    colours = {"a": "red", "b": "blue"}
    photos = colour_corpus(tmp_path / "photos", colours, texts=1)
    embed_colours(photos, tmp_path / "store")
    c3tools.leave_out(tmp_path / "store", keys=["a"])
    assert keys_left_out(tmp_path / "store") == ["a", "a#0"]
    embed_colours(colour_corpus(photos, colours, texts=2), tmp_path / "store")
    assert keys_left_out(tmp_path / "store") == ["a", "a#0", "a#1"]
    assert Store.open(tmp_path / "store").moments("text").n == 2
    assert c3tools.verify_store(tmp_path / "store").whole


@pytest.mark.parametrize("lost", [["text"], ["image", "text"]])
def test_rows_of_a_lost_shard_that_are_embedded_again_stay_left_out(
    tmp_path: Path, lost: Sequence[str]
) -> None:
    photos = colour_corpus(tmp_path / "photos", {"a": "red", "b": "blue"})
    embed_colours(photos, tmp_path / "store", shard_size=20)
    c3tools.leave_out(tmp_path / "store", keys=["a#0"])
    before = contents(tmp_path / "store")
    for modality in lost:
        (tmp_path / "store" / modality / "part-00000.parquet").unlink()
    embed_colours(photos, tmp_path / "store", shard_size=20)
    assert keys_left_out(tmp_path / "store") == ["a#0"]
    assert contents(tmp_path / "store") == before


def test_a_split_carries_them(smaller: Store, tmp_path: Path) -> None:
    c3tools.split_store(smaller.path, output=tmp_path / "new")
    assert listed(tmp_path / "new") == listed(smaller)


def test_a_split_by_a_table_changes_no_mark(smaller: Store, tmp_path: Path) -> None:
    table = write_jsonl(tmp_path / "splits.jsonl", {"key": "img1", "split": "val"})
    c3tools.split_store(smaller.path, output=tmp_path / "new", file=table)
    assert listed(tmp_path / "new") == listed(smaller)
    assert Store.open(tmp_path / "new").split_counts("text")["val"] == 1


def test_a_split_refuses_a_table_that_marks_rows(store: Store, tmp_path: Path) -> None:
    table = save_table(tmp_path / "pairs.parquet", store, {"img0#0": True})
    with pytest.raises(StoreError, match=r"marks rows to leave out"):
        c3tools.split_store(store.path, output=tmp_path / "new", file=table)


def test_a_merge_carries_them(smaller: Store, store: Store, tmp_path: Path) -> None:
    rows = Rows.of("image", ["img0", "new"], unit_rows(2, DIM, 7), split=["train", "train"])
    other = build_store(tmp_path / "other", rows)
    c3tools.merge_stores([other.path, smaller.path], output=tmp_path / "both", prefix=True)
    assert keys_left_out(tmp_path / "both") == [f"store/{key}" for key in keys_left_out(smaller)]


def test_a_merge_carries_no_mark_of_a_row_that_it_does_not_take(
    smaller: Store, tmp_path: Path
) -> None:
    rows = Rows.of("image", ["img0"], unit_rows(1, DIM, 7), split=["train"])
    other = build_store(tmp_path / "other", rows)
    c3tools.merge_stores([other.path, smaller.path], output=tmp_path / "both", keep_first=True)
    assert keys_left_out(tmp_path / "both") == ["img1#0"]


@pytest.mark.parametrize("format", ["parquet", "npy", "safetensors", "hf"])
def test_exports_do_not_have_them(smaller: Store, tmp_path: Path, format: ExportFormat) -> None:
    report = c3tools.export_store(smaller, output=tmp_path / "export", format=format)
    assert {name: sum(roles.values()) for name, roles in report.rows.items()} == {
        "image": 39,
        "text": 77,
    }


def test_a_search_does_not_find_them(store: Store, smaller: Store, tmp_path: Path) -> None:
    index = c3tools.build_index(smaller, output=tmp_path / "index")
    result = index.search(
        vector=store.load("image").embeddings[:1], modality="image", k=200, by="row"
    )
    keys = {hit.key for hit in result[0].hits}
    assert len(keys) == 39 + 77
    assert keys.isdisjoint({"img0", "img0#0", "img0#1", "img1#0"})


def test_the_gap_report_does_not_count_them(smaller: Store) -> None:
    report = c3tools.gap_report(smaller).to_dict()
    assert report["modalities"]["text"]["n"] == 77
    assert report["pairs"]["n"] == 77


@pytest.mark.parametrize("damage", [b"no parquet", None])
def test_a_damaged_record_is_found_and_refused(smaller: Store, damage: bytes | None) -> None:
    folder = smaller.path
    file = folder / "left-out.parquet"
    file.unlink() if damage is None else file.write_bytes(damage)
    result = c3tools.verify_store(folder)
    assert [finding.file for finding in result.defects] == ["left-out.parquet"]
    assert "c3 leave-out --undo" in result.defects[0].remedy
    with pytest.raises(StoreError, match=r"left-out\.parquet"):
        Store.open(folder).load("text")
    with pytest.raises(StoreError, match=r"left-out\.parquet"):
        c3tools.verify_store(folder, repair=True)
    c3tools.leave_out(folder, undo=True)
    assert c3tools.verify_store(folder).whole
    assert Store.open(folder).count("text") == 80


def summed_anew(folder: Path, copy: Path) -> bytes:
    """The moments of a store as its rows alone give them."""
    shutil.copytree(folder, copy)
    (copy / "moments.safetensors").unlink()
    StoreWriter(copy).finish()
    content = (copy / "moments.safetensors").read_bytes()
    shutil.rmtree(copy)
    return content


@pytest.mark.parametrize("seed", slice_of(range(20)))
def test_moments_are_those_of_the_rows_that_are_used_whatever_was_before(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random = Random(seed)
    moments = store.path / "moments.safetensors"
    whole = moments.read_bytes()
    keys = [*store.load("image").keys, *store.load("text").keys]
    for _ in range(4):
        expected_shards = Mock(side_effect=AssertionError("reads a shard whole"))
        with monkeypatch.context() as patch:
            patch.setattr("c3tools.store.manifest.sum_shard", expected_shards)
            if random.random() < 0.2:
                c3tools.leave_out(store.path, undo=True)
            else:
                c3tools.leave_out(store.path, keys=random.sample(keys, random.choice([1, 5])))
        assert moments.read_bytes() == summed_anew(store.path, tmp_path / "copy")
    c3tools.leave_out(store.path, undo=True)
    assert moments.read_bytes() == whole


def test_moments_of_an_older_version_are_read_and_then_summed_anew(
    store: Store, tmp_path: Path
) -> None:
    tensors: dict[str, Any] = {}
    for modality in store.modalities:
        for split, moments in store.moments_by_split(modality).items():
            name = f"{modality}/{split}"
            upper = np.triu_indices(DIM)
            tensors |= {f"{name}/mean": moments.mean, f"{name}/scatter": moments.scatter[upper]}
    numbers = {name[:-5]: 0 for name in tensors if name.endswith("/mean")}
    for name in numbers:
        numbers[name] = store.count(*name.split("/"))
    header = {"c3": json.dumps({"groups": numbers})}
    file = store.path / "moments.safetensors"
    file.write_bytes(save(tensors, metadata=header))
    record_files(store.path, [file.name])
    assert c3tools.verify_store(store.path).whole
    old = Store.open(store.path)
    np.testing.assert_allclose(old.moments("text").mean, store.moments("text").mean, atol=1e-9)
    c3tools.leave_out(store.path, keys=["img3"])
    assert file.read_bytes() == summed_anew(store.path, tmp_path / "copy")


def test_a_lost_manifest_is_written_again_with_them(smaller: Store) -> None:
    before = contents(smaller.path)
    (smaller.path / "manifest.json").unlink()
    c3tools.verify_store(smaller.path, repair=True)
    assert contents(smaller.path) == before


def test_a_file_that_is_not_listed_is_not_read(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "other")
    c3tools.leave_out(tmp_path / "other", keys=["img0"])
    shutil.copy(tmp_path / "other" / "left-out.parquet", store.path)
    assert Store.open(store.path).count("image") == 40


def test_a_store_that_was_opened_before_says_that_it_changed(store: Store) -> None:
    c3tools.leave_out(store, keys=["img0"])
    reader = Store.open(store.path)
    c3tools.leave_out(store.path, keys=["img1"])
    with pytest.raises(StoreError, match="was changed after it was opened"):
        reader.load("image")


@pytest.mark.parametrize("undo", [False, True])
def test_a_killed_run_is_obeyed_whole_or_not_at_all(
    store: Store, tmp_path: Path, undo: bool
) -> None:
    """Killed at an operation, readers use the rows as before, as after, or refuse, and the same
    command ends with the same bytes.
    """
    folder = tmp_path / "work"

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(store.path, folder)
        if undo:
            c3tools.leave_out(folder, keys=["img0", "img1#0"])

    def run() -> None:
        c3tools.leave_out(folder, keys=[] if undo else ["img0", "img1#0"], undo=undo)

    def counts() -> tuple[int, int, int]:
        opened = Store.open(folder)
        return opened.count("image"), len(opened.load("text")), opened.moments("text", "train").n

    prepare()
    before = counts()
    steps = operations(tmp_path, run)
    after = counts()
    expected = contents(folder)
    for number in slice_of(range(len(steps))):
        prepare()
        kill_at(tmp_path, number, run)
        try:
            assert counts() in (before, after)
        except StoreError as refusal:
            assert "rewrit" in refusal.message or "did not finish" in refusal.message
        run()
        assert contents(folder) == expected, steps[number]


def test_two_at_once_are_refused(store: Store) -> None:
    from c3tools.io.lock import locked

    with locked(store.path), pytest.raises(OutputError, match="Another run is writing"):
        c3tools.leave_out(store.path, keys=["img0"])


def test_a_lost_manifest_takes_no_row_back(smaller: Store, tmp_path: Path) -> None:
    (smaller.path / "manifest.json").unlink()
    with pytest.raises(IncompleteStoreError, match="has lost its manifest") as refusal:
        Store.open(smaller.path)
    assert f"c3 verify --store {smaller.path} --repair" in str(refusal.value)
    with pytest.raises(IncompleteStoreError, match="has lost its manifest"):
        c3tools.export_store(smaller.path, output=tmp_path / "export", preset="c1")
    with pytest.raises(IncompleteStoreError, match="has lost its manifest"):
        save_means(smaller.path, tmp_path / "means.safetensors")
    c3tools.verify_store(smaller.path, repair=True)
    assert keys_left_out(smaller.path) == ["img0", "img0#0", "img0#1", "img1#0"]


def test_all_rows_are_taken_back_without_a_manifest_too(smaller: Store) -> None:
    (smaller.path / "manifest.json").unlink()
    c3tools.leave_out(smaller.path, undo=True)
    assert keys_left_out(smaller.path) == []


@pytest.mark.parametrize("content", [None, b"the next list"])
def test_a_reader_says_that_the_list_is_being_written(
    smaller: Store, content: bytes | None
) -> None:
    (smaller.path / ".rewriting").mkdir()
    (smaller.path / ".rewriting/list.json").write_text("[]")
    file = smaller.path / "left-out.parquet"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(IncompleteStoreError, match="is being rewritten"):
        smaller.count("image")


def test_a_reader_says_that_the_list_was_changed(smaller: Store) -> None:
    c3tools.leave_out(smaller.path, undo=True)
    with pytest.raises(StoreError, match="was changed after it was opened"):
        smaller.count("image")


def test_verify_does_not_take_a_change_in_the_meantime_for_damage(
    smaller: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(*_: object) -> None:
        c3tools.leave_out(smaller.path, undo=True)

    monkeypatch.setattr(verify, "_check_keys", change)
    with pytest.raises(OutputError, match="was changed while it was checked"):
        c3tools.verify_store(smaller.path)


def test_verify_does_not_take_a_change_that_just_ended_for_an_interrupted_one(
    smaller: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = smaller.path / ".rewriting/list.json"
    mark.parent.mkdir()
    mark.write_text("[]")
    monkeypatch.setattr(verify, "_check_keys", lambda *_: mark.unlink())
    with pytest.raises(OutputError, match="was changed while it was checked"):
        c3tools.verify_store(smaller.path)
