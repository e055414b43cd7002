"""Where splits come from: a field, the names of files, the names of folders, or a hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from c3tools.corpus.items import Corpus
from c3tools.corpus.reading import read_corpus
from c3tools.corpus.splits import (
    choose_split,
    describe_origins,
    split_in_name,
    splits_of_folders,
)
from tests.conftest import write_jsonl
from tests.corpus.packing import write_list
from tests.corpus.test_reading import image

CHOICES = [
    ("test", "val", "train", "test", "the field split"),
    (None, "val", "train", "val", "the names of files"),
    ("", None, "train", "train", "the names of folders"),
    (None, None, None, None, "a hash of the keys"),
]


@pytest.mark.parametrize(("field", "file", "folder", "name", "origin"), CHOICES)
def test_a_field_wins_over_a_file_and_a_file_over_a_folder(
    field: str | None, file: str | None, folder: str | None, name: str | None, origin: str
) -> None:
    split = choose_split(field, file, folder)
    assert (split.name, split.origin) == (name, origin)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("train/a.png test/b.png", "train test"),
        ("train2017/a.png val2017/b.png loose.png", "train val -"),
        ("Training/cat/a.png validation/dog/b.png", "train val"),
        ("train/a.png bus/b.png car/c.png", "- - -"),  # classes
        ("train/a.png", "-"),
        ("train/a.png train2/b.png", "- -"),  # one split
        ("bottle/train/good/a.png bottle/test/bad/b.png", "train test"),
        ("cup/train/a.png cup/test/b.png pen/c.png", "train test -"),
        ("train/x/test/a.png train/x/val/b.png val/x/train/c.png", "train train val"),
        ("a.png train.png", "- -"),
    ],
)
def test_folders_count_if_all_beside_each_other_are_named_after_splits(
    names: str, splits: str
) -> None:
    named = splits_of_folders(names.split())
    assert [named.get(name, "-") for name in names.split()] == splits.split()


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("captions_train2017", "train"),
        ("train-00000-of-00002", "train"),
        ("validation", "val"),
        ("cc12m-train-0001", "train"),
        ("captions", None),
        ("captions_trainval2014", None),
        ("train_test", None),
        ("dataset_coco", None),
        ("latest", None),
    ],
)
def test_the_split_that_a_file_is_named_after(stem: str, split: str | None) -> None:
    assert split_in_name(stem) == split


def splits(corpus: Corpus) -> dict[str, str | None]:
    return {item.key: item.split for item in corpus.images}


def write_coco(path: Path, name: str) -> None:
    path.parent.mkdir(exist_ok=True)
    images = [{"id": 1, "file_name": name}]
    annotations = [{"image_id": 1, "caption": "a dog"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def test_a_data_set_laid_out_like_coco(tmp_path: Path) -> None:
    for part in ("train2017", "val2017"):
        image(tmp_path / part / f"{part[0]}.png")
        write_coco(tmp_path / f"annotations/captions_{part}.json", f"{part[0]}.png")
    corpus = read_corpus(tmp_path)
    assert splits(corpus) == {"train2017/t": "train", "val2017/v": "val"}
    assert {text.image_key: text.split for text in corpus.texts} == splits(corpus)
    assert describe_origins(corpus.split_origins) == (
        "Splits come from the names of files (train, val)."
    )


def test_a_field_in_the_captions_counts_before_the_folder_of_the_image(tmp_path: Path) -> None:
    for name in ("train2014/a.png", "val2014/b.png", "val2014/c.png"):
        image(tmp_path / name)
    write_jsonl(
        tmp_path / "captions.jsonl", {"image": "val2014/b.png", "text": "", "split": "restval"}
    )
    corpus = read_corpus(tmp_path)
    assert splits(corpus) == {"train2014/a": "train", "val2014/b": "restval", "val2014/c": "val"}
    assert describe_origins(corpus.split_origins) == (
        "Splits come from the names of folders (train, val) and the field split (train)."
    )


def test_folders_that_are_given_beside_each_other(tmp_path: Path) -> None:
    paths = [image(tmp_path / part / "a.png").parent for part in ("train", "test")]
    assert splits(read_corpus(paths)) == {"test/a": "test", "train/a": "train"}
    alone = read_corpus(paths[0])
    assert splits(alone) == {"a": None}
    assert describe_origins(alone.split_origins) == (
        "Splits come from a hash of the keys (80% train, 10% val, 10% test)."
    )


def test_a_list_of_images_in_folders_named_after_splits(tmp_path: Path) -> None:
    names = ["train/a.png", "test/b.png"]
    for name in names:
        image(tmp_path / name)
    rows = [{"image": name, "text": "a dog"} for name in names]
    corpus = read_corpus(write_list(tmp_path / "list.csv", rows), image_column="image")
    assert splits(corpus) == {"train/a": "train", "test/b": "test"}


def test_texts_alone_in_annotation_files(tmp_path: Path) -> None:
    for part in ("train2017", "val2017"):
        write_coco(tmp_path / f"captions_{part}.json", f"{part[0]}.png")
    (tmp_path / "test.txt").write_text("a cat\n")  # may be just that, not a part of a data set
    corpus = read_corpus(sorted(tmp_path.iterdir()))
    assert [text.split for text in corpus.texts] == ["train", "val", None]
