from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from c3tools.errors import MetricError
from c3tools.metrics.files import align_keys, coco_results, read_predictions, read_references


def write(folder: Path, value: Any, name: str = "file.json") -> Path:
    path = folder / name
    rows = "\n".join(json.dumps(row) for row in value) if name.endswith("l") else json.dumps(value)
    path.write_text(rows, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ([{"key": "7", "caption": "a dog"}, {"key": "8", "caption": "a cat"}], "file.json"),
        ([{"image_id": 7, "caption": "a dog"}, {"image_id": 8, "caption": "a cat"}], "file.json"),
        ({"7": "a dog", "8": "a cat"}, "file.json"),
        ({"n": 2, "captions": [{"key": "7", "caption": "a dog"}, {"key": "8", "caption": "a cat"}]}, "file.json"),
        ([{"image": "7", "caption": "a dog"}, {"file_name": "8", "caption": "a cat"}], "file.jsonl"),
    ],
)
def test_layouts_of_captions(tmp_path: Path, value: Any, name: str) -> None:
    assert read_predictions(write(tmp_path, value, name)) == {"7": "a dog", "8": "a cat"}


def test_tables_of_captions(tmp_path: Path) -> None:
    predictions, references = tmp_path / "p.csv", tmp_path / "r.tsv"
    predictions.write_text('key,path,caption,captioner\n7,7.jpg,"a dog, running",x\n8,8.jpg,a cat,x\n')
    assert read_predictions(predictions) == {"7": "a dog, running", "8": "a cat"}
    predictions.write_text("caption;image\na dog, running;7.jpg\n", encoding="utf-8-sig")
    assert read_predictions(predictions) == {"7.jpg": "a dog, running"}
    references.write_text("image\tcaption\n7.jpg\ta\n8.jpg\tc\n7.jpg\tb\n", encoding="utf-8")
    assert read_references(references) == {"7.jpg": ["a", "b"], "8.jpg": ["c"]}
    wrong = {b"\xff\xfe": "is not CSV", b"a,b\n1,2\n": "is not a file of captions", b"": "contains no captions"}
    wrong[b"image,caption\n7.jpg,a dog, running\n"] = "line 2 has more cells than the header names columns"
    for content, message in wrong.items():
        predictions.write_bytes(content)
        with pytest.raises(MetricError, match=message):
            read_predictions(predictions)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ([{"image": "7.jpg", "captions": ["a", "b"]}, {"image": "8.jpg", "captions": ["c"]}], "file.jsonl"),
        (
            {
                "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
                "annotations": [
                    {"image_id": 7, "caption": "a"},
                    {"image_id": 8, "caption": "c"},
                    {"image_id": 7, "caption": "b"},
                ],
            },
            "file.json",
        ),
        (
            {
                "images": [
                    {"filename": "7.jpg", "sentences": [{"raw": "a"}, {"raw": "b"}]},
                    {"filename": "8.jpg", "sentences": [{"raw": "c"}]},
                ]
            },
            "file.json",
        ),
        ({"7.jpg": ["a", "b"], "8.jpg": "c"}, "file.json"),
        (
            [
                {"image_key": "7.jpg", "caption": "a"},
                {"image_key": "7.jpg", "caption": "b"},
                {"image_key": "8.jpg", "caption": "c"},
            ],
            "file.json",
        ),
    ],
)
def test_layouts_of_references(tmp_path: Path, value: Any, name: str) -> None:
    assert read_references(write(tmp_path, value, name)) == {"7.jpg": ["a", "b"], "8.jpg": ["c"]}


def test_keys_match_themselves_first_then_stems_then_numbers() -> None:
    known = {"000000397133.jpg": ["x"], "COCO_val2014_000000000042.jpg": ["y"], "a/one.jpg": ["1"], "b/one.jpg": ["2"]}
    wanted = ["397133", "42", "000000397133", "a/one.jpg", "one"]
    found = align_keys(wanted, known)
    assert found == {"397133": ["x"], "42": ["y"], "000000397133": ["x"], "a/one.jpg": ["1"]}  # one is ambiguous


def test_names_that_share_only_a_number_are_of_different_photos() -> None:
    known = {"dog_1.jpg": ["a dog"], "7": ["a bird"]}
    assert align_keys(["cat_1", "photos/dog_1.png", "bird_7"], known) == {
        "photos/dog_1.png": ["a dog"],
        "bird_7": ["a bird"],
    }


def test_coco_results_have_numbers_for_ids() -> None:
    assert coco_results({"images/000000397133": "a", "beach": "b"}) == [
        {"image_id": 397133, "caption": "a"},
        {"image_id": "beach", "caption": "b"},
    ]


def test_coco_results_have_different_ids_for_different_photos() -> None:
    captions = {"dog_1.jpg": "a dog", "cat_1.jpg": "a cat", "000000397133": "a pizza"}
    assert [row["image_id"] for row in coco_results(captions)] == list(captions)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"key": "a", "text": "x"}], "not a file of captions .*'caption'"),
        ([{"key": "a", "caption": 3}], "the caption of a is int"),
        ([{"caption": "x"}], "no key, image_id"),
        ([{"key": "a", "caption": "x"}, {"key": "a", "caption": "y"}], "two captions for a"),
        ([], "contains no captions"),
        (3, "not a file of captions"),
    ],
)
def test_wrong_captions_files_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        read_predictions(write(tmp_path, value))


def test_missing_broken_and_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="cannot be read"):
        read_predictions(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(MetricError, match="is not JSON"):
        read_references(tmp_path / "broken.json")
    with pytest.raises(MetricError, match="not a file of references"):
        read_references(write(tmp_path, [{"image": "a"}]))
    with pytest.raises(MetricError, match="contains no references"):
        read_references(write(tmp_path, {"annotations": []}))
