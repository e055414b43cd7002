"""The script that makes the bundled captioner, on a few photos and captions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import copy_photos

FOLDER = Path(__file__).parents[2] / "examples" / "c3_mini"
MARK = "has_photo_in_coco_cc_more"


@pytest.fixture
def script() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        import captioner

        yield captioner
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture
def corpus(tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight photos with captions, two of them val; four captions alone, one row of them marked; two bundled photos."""
    pairs = copy_photos(tmp_path / "pairs", 8)
    rows = [json.loads(line) for line in (pairs / "captions.jsonl").read_text().splitlines()]
    held_out = next(row["captions"][0] for row in rows if row["split"] == "val")
    alone = [
        {"image": "900.jpg", "captions": ["A lamp on a table .", held_out.upper() + " ."]},
        {"image": "901.jpg", "captions": ["A kite"], MARK: True},
        {"image": "902.jpg", "captions": ["a kite", "A lamp"], MARK: False},
        {"image": "903.jpg", "captions": ["A swan on a lake"]},
    ]
    (tmp_path / "alone.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alone))
    bundled = copy_photos(tmp_path / "bundled", 2)
    rows = [
        {"image": "903.jpg", "captions": ["Something else"], "split": "val2017"},
        {"image": "904.jpg", "captions": ["Nothing"], "split": "test"},
    ]
    (bundled / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for photo, row in zip(sorted(bundled.glob("*.jpg")), rows, strict=True):
        photo.rename(bundled / str(row["image"]))
    monkeypatch.setattr(script, "PHOTOS", bundled)
    return tmp_path


def test_what_is_held_out_is_no_training_text(script: ModuleType, corpus: Path) -> None:
    rows = script.training_rows(corpus / "pairs", [corpus / "alone.jsonl"])
    train = {row["image"]: row["captions"] for row in rows if row["split"] == "train"}
    assert len(train) == 6 + 2
    assert train["900.jpg"] == ["A lamp on a table ."]  # without the sentence of a val photo
    assert train["902.jpg"] == ["A lamp"]  # without the sentence of a marked row
    assert "901.jpg" not in train  # marked
    assert "903.jpg" not in train  # bundled
    assert sum(len(row["captions"]) for row in rows if row["split"] == "val") == 10
