"""The script that makes the bundled captioner, on a few captions."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_jsonl

from .conftest import EXAMPLES

MARK = "has_photo_in_coco_cc_more"


def row(number: int, *captions: str, **more: Any) -> dict[str, Any]:
    return {"image": f"{number}.jpg", "captions": list(captions), **more}


def test_what_is_held_out_is_no_training_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "c3_mini")
    maker = importlib.import_module("captioner")
    monkeypatch.setattr(maker, "PHOTOS", tmp_path / "bundled")
    train, val = row(1, "A dog", "A cat", split="train"), row(2, "A boat", split="val")
    lines = {
        "pairs": [train, val, row(3, "A tree", split="test")],
        "alone": [
            row(900, "A lamp on a table .", "A BOAT .", "a tree"),
            row(901, "A kite", **{MARK: True}),
            row(902, "a kite", "A lamp", **{MARK: False}),
            row(903, "A swan on a lake"),
        ],
        "bundled": [row(903, "Something else", split="val2017")],
    }
    for name, rows in lines.items():
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "captions.jsonl", *rows)
    found = maker.training_rows(tmp_path / "pairs", [tmp_path / "alone" / "captions.jsonl"])
    # without the sentences of photos of val and test, and of the row that is marked
    texts = [row(900, "A lamp on a table .", split="train"), row(902, "A lamp", split="train")]
    assert found == [train, *texts, val]
