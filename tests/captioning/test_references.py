from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from c3tools.captioning.references import (
    align_keys,
    coco_results,
    read_predictions,
    read_references,
)
from c3tools.errors import C3Error, MetricError

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


def test_layouts_of_captions_and_of_references(tmp_path: Path) -> None:
    numbers = [{**row, "image_id": int(row["image_id"])} for row in rows("image_id")]
    captions: Any = {
        "json": [rows("key"), numbers, CAPTIONS, {"n": 2, "captions": rows("key")}],
        "jsonl": [[rows("image")[0], rows("file_name")[1]]],
        "csv": [
            b'key,path,caption,captioner\n7,7.jpg,"a dog, red",x\n8,8.jpg,a cat,x\n',
            b"\xef\xbb\xbfcaption;image\na dog, red;7\na cat;8\n",
        ],
    }
    coco = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [
            {"image_id": i, "caption": text} for i, text in ((7, "a"), (8, "c"), (7, "b"))
        ],
    }
    sentences = [
        {"filename": key, "sentences": [{"raw": text} for text in texts]}
        for key, texts in TEXTS.items()
    ]
    pairs = [{"image_key": key, "caption": text} for key, texts in TEXTS.items() for text in texts]
    references: Any = {
        "jsonl": [[{"image": key, "captions": texts} for key, texts in TEXTS.items()]],
        "json": [coco, {"images": sentences}, {"7.jpg": ["a", "b"], "8.jpg": "c"}, pairs],
        "tsv": [b"image\tcaption\n7.jpg\ta\n8.jpg\tc\n7.jpg\tb\n"],
    }
    for read, layouts, expected in (
        (read_predictions, captions, CAPTIONS),
        (read_references, references, TEXTS),
    ):
        for form, value in [(form, value) for form, values in layouts.items() for value in values]:
            assert read(write(tmp_path, value, form)) == expected


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    wrong: Any = {
        "json": [
            ([{"key": "a", "note": "x"}], "'caption'.* columns are 'key', 'note'"),
            ([{"key": "a", "caption": 3}], "'int'"),
            ([{"key": "a", "captions": [3]}], "a is int"),
            ([{"caption": "x"}], "image_id"),
            ([{"key": "a", "caption": "x"}, {"key": "a", "caption": "y"}], "2 .* a"),
            ([], "no captions"),
            (3, "captions"),
            ({"annotations": []}, "no captions"),
            (b"[{", "JSON"),
        ],
        "csv": [
            (b"\xff\xfe", "CSV"),
            (b"a,b\n1,2\n", "image_id"),
            (b"", "no captions"),
            (b"image,caption\n7.jpg,a dog, running\n", "line 2"),
        ],
    }
    for form, cases in wrong.items():
        for value, named in cases:
            with pytest.raises(C3Error, match=rf"file\.{form}.*{named}"):
                read_predictions(write(tmp_path, value, form))
    with pytest.raises(MetricError, match=r"none\.json"):
        read_references(tmp_path / "none.json")


def test_keys_match_themselves_first_then_stems_then_numbers() -> None:
    known = {
        "000000397133.jpg": ["x"],
        "COCO_val2014_000000000042.jpg": ["y"],
        "a/one.jpg": ["1"],
        "b/one.jpg": ["2"],
    }
    found = align_keys(["397133", "42", "000000397133", "a/one.jpg", "one"], known)
    # one is ambiguous
    assert found == {"397133": ["x"], "42": ["y"], "000000397133": ["x"], "a/one.jpg": ["1"]}
    # names that share only a number are of different photos
    found = align_keys(
        ["cat_1", "photos/dog_1.png", "bird_7", "a.1"],
        {"dog_1.jpg": ["a dog"], "7": ["a bird"], "a.2": []},
    )
    assert found == {"photos/dog_1.png": ["a dog"], "bird_7": ["a bird"]}


def test_coco_results_have_numbers_for_ids_unless_two_photos_would_share_one() -> None:
    for keys, ids in (
        (["images/000000397133", "beach"], [397133, "beach"]),
        (["dog_1.jpg", "cat_1.jpg", "000000397133"], ["dog_1.jpg", "cat_1.jpg", "000000397133"]),
    ):
        found = coco_results(dict.fromkeys(keys, "a"))
        assert found == [{"image_id": number, "caption": "a"} for number in ids]
