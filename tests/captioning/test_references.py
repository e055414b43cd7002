from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from c3tools.captioning.references import (
    align_keys,
    coco_results,
    read_predictions,
    read_references,
)
from c3tools.corpus.tables import TABLE_SUFFIXES
from c3tools.errors import C3Error, MetricError
from tests.corpus.packing import write_list

CAPTIONS = {"7": "a dog, red", "8": "a cat"}
TEXTS = {"7.jpg": ["a", "b"], "8.jpg": ["c"]}


def write(folder: Path, value: Any, form: str) -> Path:
    """Write text or bytes as they are, rows as JSON lines, anything else as JSON."""
    path = folder / f"file.{form}"
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        path.write_text("\n".join(map(json.dumps, value)) if form == "jsonl" else json.dumps(value))
    return path


def rows(key: str) -> list[Any]:
    return [{key: name, "caption": caption} for name, caption in CAPTIONS.items()]


NUMBERED_ROWS = [{"image_id": 7, "caption": "a dog, red"}, {"image_id": 8, "caption": "a cat"}]
COCO = {
    "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": "a"},
        {"image_id": 8, "caption": "c"},
        {"image_id": 7, "caption": "b"},
    ],
}
KARPATHY = {
    "images": [
        {"filename": "7.jpg", "sentences": [{"raw": "a"}, {"raw": "b"}]},
        {"filename": "8.jpg", "sentences": [{"raw": "c"}]},
        {"filename": "9.jpg", "sentences": []},
    ]
}
PAIRS = [
    {"image_key": "7.jpg", "caption": "a"},
    {"image_key": "7.jpg", "caption": "b"},
    {"image_key": "8.jpg", "caption": "c"},
]
LISTS = [{"image": "7.jpg", "captions": ["a", "b"]}, {"image": "8.jpg", "captions": "c"}]


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("json", rows("key")),
        ("json", NUMBERED_ROWS),
        ("json", CAPTIONS),
        ("json", {"n": 2, "captions": rows("key")}),
        ("json", {"annotations": NUMBERED_ROWS}),
        ("jsonl", [rows("image")[0], rows("file_name")[1]]),
        ("csv", b'key,path,caption,captioner\n7,7.jpg,"a dog, red",x\n8,8.jpg,a cat,x\n'),
        ("csv", b"\xef\xbb\xbfcaption;image\na dog, red;7\na cat;8\n"),
    ],
)
def test_layouts_of_captions(tmp_path: Path, form: str, content: Any) -> None:
    assert read_predictions(write(tmp_path, content, form)) == CAPTIONS


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("jsonl", LISTS),
        ("json", COCO),
        ("json", KARPATHY),
        ("json", {"7.jpg": ["a", "b"], "8.jpg": "c"}),
        ("json", PAIRS),
        ("tsv", b"image\tcaption\n7.jpg\ta\n8.jpg\tc\n7.jpg\tb\n"),
    ],
)
def test_layouts_of_references(tmp_path: Path, form: str, content: Any) -> None:
    assert read_references(write(tmp_path, content, form)) == TEXTS


@pytest.mark.parametrize(
    ("form", "content", "problem"),
    [
        ("json", [{"key": "a", "note": "x"}], "'caption'.* columns are 'key', 'note'"),
        ("json", [{"key": "a", "caption": 3}], "line 1: .* of a are 3"),
        ("json", [{"key": "a", "captions": [3]}], r"of a are \[3\]"),
        ("jsonl", [rows("key")[0], {"caption": "x"}], "line 2: no image"),
        ("json", [{"caption": "x"}], "image_id"),
        ("json", [{"key": "a", "caption": "x"}, {"key": "a", "caption": "y"}], "2 .* a"),
        ("json", [], "no captions"),
        ("json", 3, "captions"),
        ("json", {"annotations": []}, "no captions"),
        ("json", b"[{", "cannot be read .*property name"),
        ("csv", b"\xff\xfe", "UTF-16"),
        ("csv", b"a,b\n1,2\n", "image_id"),
        ("csv", b"", "no captions"),
        ("csv", b"image,caption\n7.jpg,a dog, running\n", "line 2"),
    ],
)
def test_a_file_in_another_layout_is_refused(
    tmp_path: Path, form: str, content: Any, problem: str
) -> None:
    with pytest.raises(C3Error, match=rf"file\.{form}.*{problem}"):
        read_predictions(write(tmp_path, content, form))


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_references_of_every_kind_of_table(tmp_path: Path, suffix: str) -> None:
    assert read_references(write_list(tmp_path / f"t{suffix}", PAIRS)) == TEXTS


def test_whole_numbers_that_a_gap_made_fractions_are_keys(tmp_path: Path) -> None:
    rows = [{"image_id": 7.0, "caption": "a dog, red"}, {"image_id": 8.0, "caption": "a cat"}]
    assert read_predictions(write_list(tmp_path / "t.parquet", rows)) == CAPTIONS


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"none\.json"):
        read_references(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("key", "matched"),
    [
        ("397133", "000000397133.jpg"),
        ("42", "COCO_val2014_000000000042.jpg"),
        ("000000397133", "000000397133.jpg"),
        ("a/one.jpg", "a/one.jpg"),
        ("one", None),  # two photos have this name
        ("photos/dog_1.png", "dog_1.jpg"),
        ("cat_1", None),  # shares only a number with dog_1
        ("bird_7", "7"),
        ("a.1", None),
    ],
)
def test_keys_match_themselves_first_then_stems_then_numbers(key: str, matched: str | None) -> None:
    names = ["000000397133.jpg", "COCO_val2014_000000000042.jpg", "a/one.jpg", "b/one.jpg"]
    names += ["dog_1.jpg", "7", "a.2"]
    references = {name: [name] for name in names}
    assert align_keys([key], references) == ({key: [matched]} if matched else {})


def test_two_keys_do_not_share_references_that_could_be_of_either() -> None:
    assert align_keys(["a/one", "b/one", "a/two"], {"one": 1, "two": 2}) == {"a/two": 2}


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        (["images/000000397133", "beach"], [397133, "beach"]),
        (["dog_1.jpg", "cat_1.jpg", "000000397133"], ["dog_1.jpg", "cat_1.jpg", "000000397133"]),
    ],
)
def test_coco_results_have_numbers_for_ids_unless_two_photos_would_share_one(
    keys: list[str], ids: list[str | int]
) -> None:
    results = coco_results(dict.fromkeys(keys, "a"))
    assert results == [{"image_id": image_id, "caption": "a"} for image_id in ids]


@pytest.mark.parametrize(("in_file", "wanted"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_keys_in_two_unicode_forms_are_one(tmp_path: Path, in_file: Any, wanted: Any) -> None:
    references = read_references(write(tmp_path, {normalize(in_file, "\u00e91.jpg"): "a"}, "json"))
    assert list(references) == ["\u00e91.jpg"]
    key = normalize(wanted, "\u00e91")
    assert align_keys([key], references) == {key: ["a"]}
