"""An item is in one split with all of its rows, whenever and however they came into the store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from c3tools.corpus.splits import hashed_split
from c3tools.store import Rows, Store
from c3tools.store.import_embeddings import import_embeddings
from c3tools.store.item_splits import item_splits
from c3tools.store.keys import key_hashes
from c3tools.store.merge import merge_stores
from c3tools.store.verify import verify_store
from tests.conftest import C3, build_store, copy_photos, store_files, unit_rows

DIM = 8


def named_splits(path: Path) -> dict[str, set[str | None]]:
    """The splits that the rows of each item name."""
    found: dict[str, set[str | None]] = {}
    store = Store.open(path, incomplete=True)
    for modality in store.modalities:
        rows = store.load(modality)
        for item, split in zip(rows.items, rows.column("split"), strict=True):
            found.setdefault(item, set()).add(split)
    return found


def write_captions(folder: Path, captions: dict[str, list[str]], split: str | None = None) -> None:
    rows = [
        {"image": name, "captions": texts} | ({"split": split} if split else {}) for name, texts in captions.items()
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("split", [None, "train"])
def test_what_is_embedded_after_a_split_joins_its_item(c3: C3, tmp_path: Path, split: str | None) -> None:
    """New captions, changed ones and images, lost shards and inputs that failed; ``split`` is what the corpus says."""

    def run(*arguments: object) -> None:
        result = c3(*arguments)
        assert result.exit_code == 0, result.stderr

    def embed(*options: str) -> None:
        run("embed", photos, "--store", "new", "--backend", "torch", "--shard-size", "3", "--workers", "0", *options)

    photos = copy_photos(tmp_path / "photos", 5)
    broken, *names = sorted(path.name for path in photos.glob("*.jpg"))
    good = (photos / broken).read_bytes()
    (photos / broken).write_bytes(b"broken")
    one = {name: [f"a photo, {name}"] for name in (broken, *names)}
    write_captions(photos, one, split)
    run("embed", photos, "--store", "old", "--backend", "torch", "--shard-size", "3", "--workers", "0")
    run("split", "new", "--store", "old", "--seed", "1", "--fractions", "0,0.5,0.5")
    chosen = named_splits(tmp_path / "new")
    assert all(len(splits) == 1 for splits in chosen.values())
    assert {next(iter(splits)) for splits in chosen.values()} == {"val", "test"}
    assert any(splits != {hashed_split(item)} for item, splits in chosen.items())

    more = {name: [*texts, "one more"] for name, texts in one.items()}
    write_captions(photos, more, split)
    embed()
    assert named_splits(tmp_path / "new") == chosen
    (photos / broken).write_bytes(good)
    embed("--retry-failed")
    assert named_splits(tmp_path / "new") == chosen
    write_captions(photos, {name: [f"changed {number}", "one more"] for number, name in enumerate(one)}, split)
    (photos / names[0]).write_bytes(good)
    embed("--update", "--prune")
    assert named_splits(tmp_path / "new") == chosen
    for path in (tmp_path / "new" / "image").glob("part-00000.parquet"):
        path.unlink()
    verify_store(tmp_path / "new", repair=True)
    embed()
    assert named_splits(tmp_path / "new") == chosen
    assert Store.open(tmp_path / "new").count("image") == 5
    assert verify_store(tmp_path / "new").findings == []


def test_an_item_without_a_named_split_stays_without_one(c3: C3, tmp_path: Path) -> None:
    """A split that the captions file names later would part the new captions of an image from it."""
    photos = copy_photos(tmp_path / "photos", 1)
    [image] = photos.glob("*.jpg")
    write_captions(photos, {image.name: ["a photo"]})
    command = ("embed", photos, "--backend", "torch", "--workers", "0")
    assert c3(*command).exit_code == 0
    write_captions(photos, {image.name: ["a photo", "one more"]}, "test")
    assert c3(*command).exit_code == 0
    assert named_splits(tmp_path / "c3-store") == {image.stem: {None}}
    assert Store.open(tmp_path / "c3-store").count("text") == 2


def texts_of(path: Path, items: list[str], split: str | None, number: int) -> Path:
    keys = [f"{item}#{number}" for item in items]
    embeddings = unit_rows(len(items), DIM, number)
    return build_store(path, Rows.of("text", keys, embeddings, image_key=items, split=[split] * len(items))).path


def test_stores_that_are_merged_agree_on_the_splits_of_their_items(tmp_path: Path) -> None:
    items = [f"img{number}" for number in range(4)]
    images = Rows.of("image", items, unit_rows(4, DIM), split=["val", "test", "train", None])
    one = build_store(tmp_path / "one", images).path
    two = texts_of(tmp_path / "two", [*items, "alone"], "train", 0)
    three = texts_of(tmp_path / "three", ["alone"], "test", 1)
    merge_stores(tmp_path / "all", [one, two, three])
    expected = {"img0": {"val"}, "img1": {"test"}, "img2": {"train"}, "img3": {None}, "alone": {"train"}}
    assert named_splits(tmp_path / "all") == expected
    assert {finding.check for finding in verify_store(tmp_path / "all").findings} == {
        "pairing"
    }  # there is no image alone
    again = [tmp_path / "all", texts_of(tmp_path / "agreeing", ["img1"], "test", 2)]
    merge_stores(tmp_path / "more", again)
    assert named_splits(tmp_path / "more") == expected
    for file in store_files(tmp_path / "agreeing" / "text"):
        if file.suffix in (".parquet", ".safetensors"):  # a shard that agrees is copied
            copy = tmp_path / "more" / "text" / file.name.replace("00000", "00002")
            assert copy.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("of_images", [["test", "", "val"], [None, None, None]])
def test_imported_texts_are_in_the_split_of_their_image(tmp_path: Path, of_images: list[str | None]) -> None:
    np.save(tmp_path / "i.npy", unit_rows(3, DIM))
    np.save(tmp_path / "t.npy", unit_rows(5, DIM, 1))
    images = [{"key": key, "split": split} for key, split in zip("abc", of_images, strict=True)]
    texts = [
        {"image_key": key, "split": split}
        for key, split in zip("aabcx", ["train", None, "test", "val", "test"], strict=True)
    ]
    for name, rows in (("i", images), ("t", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = import_embeddings(
        image=tmp_path / "i.npy",
        text=tmp_path / "t.npy",
        meta=tmp_path / "i.jsonl",
        text_meta=tmp_path / "t.jsonl",
        store=tmp_path / "s",
    )
    first = of_images[0] or "train"
    assert named_splits(tmp_path / "s") == {"a": {first}, "b": {"test"}, "c": {"val"}, "x": {"test"}}
    said = [note for note in report.notes if "split" in note]
    moved = "1 text row names another split than the rest of the item; an item is in one split, that of its image."
    assert said == ([moved] if of_images[0] else [])


@pytest.mark.parametrize("named", [True, False])
def test_texts_that_are_imported_later_join_the_split_of_their_image(tmp_path: Path, named: bool) -> None:
    np.save(tmp_path / "i.npy", unit_rows(3, DIM))
    np.save(tmp_path / "t.npy", unit_rows(5, DIM, 1))
    images = [{"key": key, "split": split} for key, split in zip("abc", ["test", None, "val"], strict=True)]
    splits = ["train", None, "test", "val", "test"] if named else [None] * 5
    texts = [{"image_key": key, "split": split} for key, split in zip("aabcx", splits, strict=True)]
    for name, rows in (("i", images), ("t", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_embeddings(image=tmp_path / "i.npy", meta=tmp_path / "i.jsonl", store=tmp_path / "s")
    for _ in range(2):
        report = import_embeddings(text=tmp_path / "t.npy", text_meta=tmp_path / "t.jsonl", store=tmp_path / "s")
        assert report.pairs == 4
        assert [note for note in report.notes if "split" in note] == [
            "3 text rows name another split than their item has in the store; an item is in one split, that in the "
            "store."
        ] * named
    assert named_splits(tmp_path / "s") == {"a": {"test"}, "b": {None}, "c": {"val"}, "x": {"test" if named else None}}
    assert [finding.check for finding in verify_store(tmp_path / "s").findings] == ["pairing"]  # there is no image x


def test_the_first_row_of_an_item_decides(tmp_path: Path) -> None:
    items = ["a", "b"]
    images = Rows.of("image", items[:1], unit_rows(1, DIM), split=["val"])
    keys, both = ["a#0", "b#0", "b#1"], ["a", "b", "b"]
    texts = Rows.of("text", keys, unit_rows(3, DIM), image_key=both, split=["train", None, "test"])
    store = build_store(tmp_path / "s", images, texts)
    wanted = np.unique(key_hashes([*items, "c"]))
    assert item_splits([store], wanted).look_up(["a", "b", "c"]) == ["val", "", None]
    assert item_splits([store], wanted[:0]).look_up(["a"]) == [None]
