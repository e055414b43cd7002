"""A shard that is well-formed, but not the one that the manifest lists, is refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from c3tools import build_index, export_store, merge_stores, split_store, verify_store
from c3tools.errors import StoreError
from c3tools.io import locations
from c3tools.store import Rows, Store, StoreWriter, shard_table, write_rows
from tests.captioning.conftest import make_captions_store
from tests.conftest import build_store, put_store, unit_rows
from tests.stores import DIM, colour_corpus, embed_colours, two_texts_per_image, whole_store

from .test_store import Put


def with_former_shard(path: Path) -> Store:
    """Return a store whose image shard was replaced by one of the same size, rows and keys.

    Embeddings are written without compression, so that other values take the same space.
    """
    rows = two_texts_per_image(["train"] * 12, unit_rows(12, DIM, 1), unit_rows(24, DIM, 2))
    store = build_store(path, *rows)
    columns = {name: rows[0].column(name) for name in ("key", "split")}
    for seed in (3, 4):
        table = shard_table(store.info, "image", unit_rows(12, DIM, seed), columns)
        former = path.with_name(f"{path.name}-{seed}.parquet")
        write_rows(former, store.info, "image", table, split_bytes=False)
    listed, other = (path.with_name(f"{path.name}-{seed}.parquet") for seed in (3, 4))
    assert listed.stat().st_size == other.stat().st_size
    shutil.copyfile(listed, store.file("image", 0))
    (path / "manifest.json").unlink()
    StoreWriter(path).finish()
    shutil.copyfile(other, store.file("image", 0))
    return Store.open(path)


READERS: dict[str, Callable[[Store, Path], object]] = {
    "load": lambda store, _: store.load("image"),
    "export": lambda store, output: export_store(store, output=output, preset="c1"),
    "index": lambda store, output: build_index(store, output=output),
    "split": lambda store, output: split_store(store.path, output=output),
    "merge": lambda store, output: merge_stores(
        [whole_store(output.with_name("other")).path, store.path], output=output, keep_first=True
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_former_shard_of_the_same_size_is_refused(tmp_path: Path, reader: str) -> None:
    store = with_former_shard(tmp_path / "s")
    with pytest.raises(StoreError, match=r"part-00000\.parquet is not .*: its SHA-256"):
        READERS[reader](store, tmp_path / "output")


def test_a_training_refuses_a_former_shard(tmp_path: Path) -> None:
    store, _ = make_captions_store(tmp_path / "s")
    former = store.file("text", 0).read_bytes()
    other, _ = make_captions_store(tmp_path / "t", noise=0.5)
    shutil.copyfile(other.file("text", 0), store.file("text", 0))
    assert store.file("text", 0).read_bytes() != former
    with pytest.raises(StoreError, match="is not the shard"):
        store.load("text", "train")


def test_reading_names_alone_compares_size_and_rows(tmp_path: Path) -> None:
    store = with_former_shard(tmp_path / "s")
    assert sum(len(batch) for batch in store.batches("image", ["key"])) == 12
    longer = whole_store(tmp_path / "t")
    shutil.copyfile(longer.file("image", 0), store.file("image", 0))
    with pytest.raises(StoreError, match=r"it has 3,\d+ bytes instead of"):
        list(store.batches("image", ["key"]))


def test_an_update_does_not_copy_a_wrong_shard(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "c", {"a": "tan", "b": "lime"}, texts=0)
    embed_colours(folder, tmp_path / "t")
    colour_corpus(folder, {"a": "red", "b": "blue"}, texts=0)
    embed_colours(folder, tmp_path / "s")
    image = Path("image/part-00000.parquet")
    shutil.copyfile(tmp_path / "t" / image, tmp_path / "s" / image)
    (folder / "a.png").unlink()
    with pytest.raises(StoreError, match="is not the shard"):
        embed_colours(folder, tmp_path / "s", prune=True)


def test_a_modality_in_the_folder_of_another_is_refused(tmp_path: Path) -> None:
    rows = Rows.of("audio", ["a", "b"], unit_rows(2, DIM))
    path = build_store(tmp_path / "s", rows).path
    (path / "audio").rename(path / "touch")
    (path / "manifest.json").unlink()
    with pytest.raises(StoreError, match="contains audio rows, but lies in the folder of touch"):
        Store.open(path).load("touch")
    (finding,) = (found for found in verify_store(path).findings if found.check == "schema")
    assert "contains audio rows" in finding.problem


def test_an_open_store_that_an_update_changes_is_not_read_on(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "c", {"a": "red", "b": "blue", "c": "lime", "d": "tan"})
    embed_colours(folder, tmp_path / "s")
    store = Store.open(tmp_path / "s")
    batches = store.batches("image")
    next(batches)
    colour_corpus(folder, {"a": "red", "b": "blue", "c": "gold", "d": "tan"})
    embed_colours(folder, tmp_path / "s", update=True)
    with pytest.raises(StoreError, match="was changed after it was opened"):
        list(batches)
    with pytest.raises(StoreError, match="was changed after it was opened"):
        store.read_shard("image", 1)
    assert Store.open(tmp_path / "s").load("image").keys == ["a", "b", "c", "d"]


def test_an_exchange_while_a_shard_is_read_does_not_reach_the_reader(tmp_path: Path) -> None:
    rows = unit_rows(20_000, DIM, 1)
    store = build_store(
        tmp_path / "s", Rows.of("image", [f"k{i}" for i in range(20_000)], rows), part_rows=20_000
    )
    whole = store.load("image").embeddings
    batches = store.batches("image")
    first = next(batches)
    other = tmp_path / "other"
    other.write_bytes(b"x" * store.file("image", 0).stat().st_size)
    other.replace(store.file("image", 0))
    read = [first, *batches]
    assert sum(map(len, read)) == len(whole)


def test_a_shard_at_a_url_is_downloaded_once(
    tmp_path: Path, s3: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = whole_store(tmp_path / "s")
    store = Store.open(put_store(written.path, "s3://bucket/s"))
    download = Mock(side_effect=locations.on_this_machine)
    monkeypatch.setattr("c3tools.store.shards.on_this_machine", download)
    store.load("image")
    store.load("image")
    assert download.call_count == 3
    locations.upload(written.file("image", 1), store.file("image", 0))
    with pytest.raises(StoreError, match=r"part-00000\.parquet is not the shard"):
        store.load("image")


def test_what_is_read_at_a_url_is_compared(tmp_path: Path, put: Put) -> None:
    store = with_former_shard(tmp_path / "s")
    place = put(store.path)
    with pytest.raises(StoreError, match="its SHA-256"):
        Store.open(place).load("image")
    digest = hashlib.sha256(store.file("text", 0).read_bytes()).hexdigest()
    assert Store.open(place).shard_digest("text", 0) == digest
    assert len(Store.open(place).load("text")) == 24
