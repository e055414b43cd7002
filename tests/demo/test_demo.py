from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from c3tools.assets.paths import CAPTIONS, PHOTOS
from tests.conftest import C3
from tests.imaging.conftest import MICRO_SIZE


def test_every_bundled_photo_has_captions_and_attribution() -> None:
    names = sorted(path.name for path in (PHOTOS / "images").iterdir())
    rows = [json.loads(line) for line in (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    attribution = (PHOTOS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert len(names) == 79
    assert names == sorted(row["image"] for row in rows)
    assert all(len(row["captions"]) >= 5 for row in rows)
    listed = re.findall(r"\| `(\S+)` \| \[(CC BY(?:-SA)? 2\.0)\]\(\S+\) \| <\S+> \|", attribution)
    assert sorted(name for name, _ in listed) == names


def test_no_training_caption_is_of_a_bundled_photo() -> None:
    training = {json.loads(line)["image"] for line in CAPTIONS.read_text(encoding="utf-8").splitlines()}
    assert len(training) == 4947
    assert not training & {path.name for path in (PHOTOS / "images").iterdir()}


def test_photos_can_be_copied_to_start_with(c3: C3, tmp_path: Path) -> None:
    assert c3("demo", "--photos-to", "images").exit_code == 0
    assert len(list((tmp_path / "images").glob("*.jpg"))) == 79
    assert (tmp_path / "images" / "ATTRIBUTION.md").is_file()
    again = c3("demo", "--photos-to", "images")
    assert again.exit_code == 1
    assert "not empty" in again.stderr


@pytest.mark.timeout(600)
def test_the_demo_end_to_end_on_few_captions(c3: C3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole job on a small part of the captions: every row is there, the page stands alone."""
    from c3tools.demo import run

    few = tmp_path / "few.jsonl"
    few.write_text("".join(CAPTIONS.read_text(encoding="utf-8").splitlines(keepends=True)[:120]), encoding="utf-8")
    monkeypatch.setattr(run, "CAPTIONS", few)
    monkeypatch.setattr(run, "_IMAGE_STEPS", 2)
    monkeypatch.setattr("c3tools.imaging.model.SIZES", {"tiny": MICRO_SIZE})
    result = c3("demo", "--images", "--json", "runs.json")
    assert result.exit_code == 0, result.output
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [entry["method"] for entry in runs] == ["C1", "C2_1", "C2_2", "C3"]
    assert all(entry["scores"]["CIDEr"] >= 0 for entry in runs)
    assert "real photos" in (tmp_path / "c3-demo" / "images" / "table.md").read_text(encoding="utf-8")
    page = (tmp_path / "c3-demo" / "demo.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 79
    assert "<svg" in page
    outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page)
    assert all(url.startswith("https://www.flickr.com/") for url in outside)
    assert "<script" not in page
