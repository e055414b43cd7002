"""Scored rows whose file train has too."""

from __future__ import annotations

import shutil

import pytest

import c3tools
from c3tools.assets.paths import PHOTOS
from c3tools.encoders import Encoder
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
    assert note.startswith("1 image row of test was made from a file that is also in train")
    assert "'test/again'" in note


@pytest.mark.parametrize("split", ["val", "train", "all", None])
def test_rows_without_a_copy_in_train_need_no_note(store: Store, split: str | None) -> None:
    assert notes_on_leaks(store, ["image"], split) == []


def test_the_gap_report_notes_it(store: Store) -> None:
    report = c3tools.gap_report(store, modalities=["image"], split="test")
    assert any("file that is also in train" in note for note in report.notes)
