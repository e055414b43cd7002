"""Rows that are left out: kept in the store, and used by no command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import c3tools
from c3tools.choices import ExportFormat
from c3tools.errors import StoreError
from c3tools.store import Rows, Store
from tests.conftest import build_store, unit_rows, write_jsonl
from tests.stores import colour_corpus, embed_colours

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


def split_by(store: Store, folder: Path, **splits: str) -> Store:
    """Split a store by a table of keys."""
    rows = [{"key": key.replace("_", "#"), "split": split} for key, split in splits.items()]
    table = write_jsonl(folder.with_suffix(".jsonl"), *rows)
    c3tools.split_store(store.path, output=folder, file=table)
    return Store.open(folder)


def splits_of(store: Store) -> dict[str, str]:
    splits: dict[str, str] = {}
    for modality, part in store.shards:
        table, _ = store.read_shard(modality, part)
        splits |= {row["key"]: row["split"] for row in table.select(["key", "split"]).to_pylist()}
    return splits


def test_a_caption_is_left_out_without_its_image(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img0_1="left-out")
    after = splits_of(new)
    assert after["img0#1"] == "left-out"
    assert after["img0"] == after["img0#0"] == "train"


def test_an_image_is_left_out_with_its_captions(store: Store, tmp_path: Path) -> None:
    after = splits_of(split_by(store, tmp_path / "new", img0="left-out"))
    assert [after[key] for key in ("img0", "img0#0", "img0#1", "img1")] == [
        *["left-out"] * 3,
        "train",
    ]


def test_no_row_is_lost(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img0="left-out", img1_0="left-out")
    assert splits_of(new).keys() == splits_of(store).keys()
    assert new.left_out == {"image": 1, "text": 3}


def test_rows_that_are_left_out_are_not_read(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img0="left-out", img1_0="left-out")
    assert new.count("image") == 39
    assert new.count("text", "all") == 77
    assert "img1#0" not in new.load("text").keys
    assert "img0" not in new.load("image", "train").keys
    assert len(new.pairs()) == 77
    assert new.moments("text").n == 77


def test_moments_are_those_of_the_rows_that_are_used(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img0="left-out")
    rows = new.load("image").embeddings
    np.testing.assert_allclose(new.moments("image").mean, rows.mean(axis=0), atol=1e-6)


def test_the_key_of_a_caption_stands_for_its_image(store: Store, tmp_path: Path) -> None:
    after = splits_of(split_by(store, tmp_path / "new", img0_1="val"))
    assert after["img0"] == after["img0#0"] == after["img0#1"] == "val"


def test_a_new_split_leaves_rows_left_out(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img0="left-out", img1_0="left-out")
    c3tools.split_store(new.path, output=tmp_path / "hashed")
    assert Store.open(tmp_path / "hashed").left_out == {"image": 1, "text": 3}
    by_table = split_by(new, tmp_path / "again", img1="val")
    assert splits_of(by_table)["img1#0"] == "left-out"
    assert splits_of(by_table)["img1#1"] == "val"


def test_a_row_comes_back_by_its_own_key(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img1_0="left-out")
    assert splits_of(split_by(new, tmp_path / "back", img1_0="train"))["img1#0"] == "train"


def test_a_merge_keeps_rows_left_out(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img0="left-out", img1_0="left-out")
    c3tools.merge_stores([new.path, store.path], output=tmp_path / "both", prefix=True)
    assert Store.open(tmp_path / "both").left_out == {"image": 1, "text": 3}


def test_rows_beside_val_alone_stay_left_out(tmp_path: Path) -> None:
    keys = [f"img{number}" for number in range(20)]
    splits = ["left-out", *["val"] * 19]
    store = build_store(tmp_path / "s", Rows.of("image", keys, unit_rows(20, DIM), split=splits))
    for split in ("train", "val", "test"):
        if store.count("image", split):
            assert "img0" not in store.load("image", split).keys
    assert store.count("image") == 19


@pytest.mark.parametrize("format", ["parquet", "npy", "safetensors", "hf"])
def test_exports_have_no_rows_that_are_left_out(
    store: Store, tmp_path: Path, format: ExportFormat
) -> None:
    new = split_by(store, tmp_path / "new", img0="left-out", img1_0="left-out")
    report = c3tools.export_store(new, output=tmp_path / "export", format=format)
    assert {name: sum(roles.values()) for name, roles in report.rows.items()} == {
        "image": 39,
        "text": 77,
    }


def test_a_search_finds_no_rows_that_are_left_out(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img0="left-out")
    index = c3tools.build_index(new, output=tmp_path / "index")
    result = index.search(vector=store.load("image").embeddings[:1], modality="image", k=200)
    keys = {hit.key for hit in result[0].hits}
    assert len(keys) == 39 + 78
    assert keys.isdisjoint({"img0", "img0#0", "img0#1"})


def test_the_gap_report_has_no_rows_that_are_left_out(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img0="left-out", img1_0="left-out")
    report = c3tools.gap_report(new).to_dict()
    assert report["modalities"]["text"]["n"] == 77
    assert report["pairs"]["n"] == 77


def test_a_table_without_a_key_of_the_store_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="contains none of the keys"):
        split_by(store, tmp_path / "new", other="left-out")


def test_the_list_says_what_was_left_out_and_why(store: Store, tmp_path: Path) -> None:
    table = write_jsonl(
        tmp_path / "wrong.jsonl",
        {"key": "img0", "split": "left-out", "reason": "blurred"},
        {"key": "img1#0", "split": "left-out"},
        {"key": "img2", "split": "train", "reason": "good"},
    )
    c3tools.split_store(store.path, output=tmp_path / "new", file=table)
    assert listed(tmp_path / "new") == [
        ("image", "img0", "blurred", ""),
        ("text", "img0#0", "blurred", "caption 0"),
        ("text", "img0#1", "blurred", "caption 1"),
        ("text", "img1#0", "wrong.jsonl", "caption 2"),
    ]


def listed(folder: Path) -> list[tuple[str, str, str, str]]:
    rows = c3tools.list_left_out(folder).rows
    return [(row.modality, row.key, row.reason, row.content) for row in rows]


def test_a_store_without_left_out_rows_lists_none(store: Store) -> None:
    assert listed(store.path) == []


def test_another_split_keeps_the_reasons_of_rows_that_stay_left_out(
    store: Store, tmp_path: Path
) -> None:
    split_by(store, tmp_path / "first", img0_0="left-out", img1_0="left-out")
    split_by(Store.open(tmp_path / "first"), tmp_path / "next", img1_0="train", img2_0="left-out")
    c3tools.split_store(tmp_path / "next", output=tmp_path / "hashed")
    assert [row[1:3] for row in listed(tmp_path / "hashed")] == [
        ("img0#0", "first.jsonl"),
        ("img2#0", "next.jsonl"),
    ]


def test_a_merge_keeps_the_reasons(store: Store, tmp_path: Path) -> None:
    new = split_by(store, tmp_path / "new", img1_0="left-out")
    c3tools.merge_stores([store.path, new.path], output=tmp_path / "both", prefix=True)
    assert [row[1:3] for row in listed(tmp_path / "both")] == [("new/img1#0", "new.jsonl")]


@pytest.mark.parametrize("damage", [b"no parquet", None])
def test_verify_finds_a_damaged_list_of_reasons(
    store: Store, tmp_path: Path, damage: bytes | None
) -> None:
    new = split_by(store, tmp_path / "new", img1_0="left-out")
    assert c3tools.verify_store(new.path).whole
    file = new.path / "left-out.parquet"
    file.unlink() if damage is None else file.write_bytes(damage)
    assert not c3tools.verify_store(new.path).whole
    with pytest.raises(StoreError, match=r"left-out\.parquet"):
        c3tools.list_left_out(new.path)
    splits = splits_of(new)
    repaired = c3tools.verify_store(new.path, repair=True)
    assert "--repair` gives up the reasons" in repaired.findings[0].remedy
    assert (repaired.whole, splits_of(Store.open(new.path))) == (True, splits)
    assert [(row[1], row[2]) for row in listed(new.path)] == [("img1#0", "")]


@pytest.mark.parametrize("lost", [["text"], ["image", "text"]])
def test_rows_of_a_lost_shard_that_are_embedded_again_stay_left_out(
    tmp_path: Path, lost: list[str]
) -> None:
    photos = colour_corpus(tmp_path / "photos", {"a": "red", "b": "blue"})
    embed_colours(photos, tmp_path / "store", shard_size=20)
    wrong = write_jsonl(tmp_path / "wrong.jsonl", {"key": "a#0", "split": "left-out"})
    new = c3tools.split_store(tmp_path / "store", output=tmp_path / "new", file=wrong).store
    before = splits_of(Store.open(new))
    for modality in lost:
        (new / modality / "part-00000.parquet").unlink()
    embed_colours(photos, new, shard_size=20)
    after = splits_of(Store.open(new))
    assert after["a#0"] == "left-out"
    assert after == before


def test_a_column_of_the_user_named_reason_stays_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", unit_rows(3, DIM))
    rows = [{"id": key, "reason": f"of {key}", "split": "train"} for key in "abc"]
    c3tools.import_embeddings(
        store=tmp_path / "store",
        image=tmp_path / "image.npy",
        meta=write_jsonl(tmp_path / "meta.jsonl", *rows),
        keep_columns=["reason"],
    )
    new = split_by(Store.open(tmp_path / "store"), tmp_path / "new", a="left-out")
    assert listed(new.path) == [("image", "a", "new.jsonl", "")]
    table, _ = new.read_shard("image", 0)
    assert table["reason"].to_pylist() == ["of a", "of b", "of c"]
