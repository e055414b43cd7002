"""Scored rows whose file train has too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import c3tools
from c3tools.assets.paths import PHOTOS
from c3tools.encoders import Encoder
from c3tools.errors import StoreError
from c3tools.store import Store
from c3tools.store.leaks import notes_on_leaks

FILES = sorted((PHOTOS / "images").glob("*.jpg"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Store:
    """Photos of train and test; one of test is in train under another name, one of val is not."""
    folder = tmp_path_factory.mktemp("leaks")
    for split, numbers in {"train": range(3), "test": range(3, 5), "val": range(5, 7)}.items():
        (folder / "photos" / split).mkdir(parents=True)
        for number in numbers:
            shutil.copyfile(FILES[number], folder / "photos" / split / f"{number}.jpg")
    shutil.copyfile(FILES[0], folder / "photos" / "test" / "again.jpg")
    return c3tools.embed(folder / "photos", folder / "store", encoder=encoder, workers=0)


def test_a_file_of_train_among_test_rows_is_noted(store: Store) -> None:
    (note,) = notes_on_leaks(store, ["image"], "test")
    assert note.startswith("1 image row of test was made from a file that train has too")
    assert "'test/again'" in note


@pytest.mark.parametrize("split", ["val", "train", "all", None])
def test_rows_without_a_copy_in_train_need_no_note(store: Store, split: str | None) -> None:
    assert notes_on_leaks(store, ["image"], split) == []


def test_the_gap_report_notes_it(store: Store) -> None:
    report = c3tools.gap_report(store, modalities=["image"], split="test")
    assert any("file that train has too" in note for note in report.notes)


@pytest.fixture
def store_with_duplicates(tmp_path: Path, store: Store) -> Store:
    """The store with a table that has test/3 and train/1, and val/5 and test/4, as copies."""
    shutil.copytree(store.path, tmp_path / "store")
    columns = {
        "key": ["test/3", "train/1", "val/5", "test/4", "train/2"],
        "modality": ["image", "image", "image", "image", "text"],
        "group": [0, 0, 1, 1, 1],
    }
    pq.write_table(pa.table(columns), tmp_path / "store" / "duplicates.parquet")
    return Store.open(tmp_path / "store")


def test_copies_in_train_are_noted_if_their_table_is_in_the_store(
    store_with_duplicates: Store,
) -> None:
    _, note = notes_on_leaks(store_with_duplicates, ["image"], "test")
    assert note == (
        "1 image row of test has a copy in train by duplicates.parquet, for example 'test/3'. "
        "Scores count them."
    )


def test_copies_outside_train_are_not_noted(store_with_duplicates: Store) -> None:
    assert notes_on_leaks(store_with_duplicates, ["image"], "val") == []


def test_the_table_of_another_program_is_refused(store_with_duplicates: Store) -> None:
    path = store_with_duplicates.path / "duplicates.parquet"
    pq.write_table(pa.table({"name": ["a"]}), path)
    with pytest.raises(StoreError, match="not the table of `c3 duplicates`"):
        notes_on_leaks(store_with_duplicates, ["image"], "test")


def test_a_table_of_duplicates_in_the_store_is_no_damage(store_with_duplicates: Store) -> None:
    assert c3tools.verify_store(store_with_duplicates.path).whole
