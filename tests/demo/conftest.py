from __future__ import annotations

from pathlib import Path

import pytest

from c3tools.assets.paths import CAPTIONS
from tests.conftest import copy_photos


@pytest.fixture
def few_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty of the bundled photos and thirty of the captions, as if there were no more."""
    photos = tmp_path / "bundled"
    copy_photos(photos / "images", 20)
    (photos / "images" / "captions.jsonl").rename(photos / "captions.jsonl")
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(CAPTIONS.read_bytes().splitlines(keepends=True)[:30]))
    monkeypatch.setattr("c3tools.demo.demo.PHOTOS", photos)
    monkeypatch.setattr("c3tools.demo.demo.CAPTIONS", few)
    return photos
