from __future__ import annotations

import base64
import html
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from c3tools.assets.paths import CAPTIONS, PHOTOS
from c3tools.metrics.captions import score_captions
from c3tools.store import Store
from tests.conftest import C3, copy_photos, done
from tests.golden import recorded
from tests.imaging.conftest import MICRO_SIZE

GOLDEN = Path(__file__).parent / "golden"
MARKS = ("has_photo_in_coco_cc", "has_photo_in_coco_cc_more", "reserved")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def letters(caption: str) -> str:
    """Return the letters and digits of a caption, in lower case, with single spaces between words."""
    return " ".join(re.findall(r"\w+", caption.lower()))


def test_every_bundled_photo_has_captions_and_attribution() -> None:
    names = sorted(path.name for path in (PHOTOS / "images").iterdir())
    rows = lines_of(PHOTOS / "captions.jsonl")
    attribution = (PHOTOS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert len(names) == 124
    assert names == sorted(row["image"] for row in rows)
    assert Counter(row["split"] for row in rows) == {"train2017": 26, "val2017": 53, "test": 45}
    assert all(len(row["captions"]) >= 5 for row in rows)
    listed = re.findall(r"\| `(\S+)` \| \[(CC BY(?:-SA)? 2\.0)\]\(\S+\) \| <(\S+)> \|", attribution)
    assert sorted(name for name, *_ in listed) == names
    licences = {"Attribution License": "CC BY 2.0", "Attribution-ShareAlike License": "CC BY-SA 2.0"}
    assert sorted((row["image"], licences[row["license"]], row["flickr_url"]) for row in rows) == sorted(listed)


@pytest.mark.parametrize("held_out", ["bundled", "kept for a test"])
def test_no_training_caption_is_of_an_image_that_is_scored(request: pytest.FixtureRequest, held_out: str) -> None:
    photos, training = lines_of(PHOTOS / "captions.jsonl"), lines_of(CAPTIONS)
    assert len(training) == 4686
    if held_out != "bundled":
        rows = lines_of(request.getfixturevalue("shared_data") / "coco_captions" / "val2017.jsonl")
        photos = [row for row in rows if any(map(row.get, MARKS))]
        assert len(photos) > 300
    assert not {row["image"] for row in training} & {row["image"] for row in photos}
    sentences = {letters(caption) for row in photos for caption in row["captions"]}
    assert not [caption for row in training for caption in row["captions"] if letters(caption) in sentences]


def test_photos_can_be_copied_to_start_with(c3: C3, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("deep/images", "empty"):
        said = done(c3("demo", "--photos-to", folder)).stderr
        assert said == f"Copied 124 photos with captions to {folder}.\n"
        assert len(list((tmp_path / folder).glob("*.jpg"))) == 124
        assert (tmp_path / folder / "ATTRIBUTION.md").is_file()
    again = c3("demo", "--photos-to", "empty")
    assert again.exit_code == 1
    assert "not empty" in again.stderr


@pytest.fixture
def few_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty of the bundled photos and thirty of the captions, as if there were no more."""
    from c3tools.demo import run

    photos = tmp_path / "bundled"
    copy_photos(photos / "images", 20)
    (photos / "images" / "captions.jsonl").rename(photos / "captions.jsonl")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(CAPTIONS.read_text(encoding="utf-8").splitlines(keepends=True)[:30]), encoding="utf-8")
    monkeypatch.setattr(run, "PHOTOS", photos)
    monkeypatch.setattr(run, "CAPTIONS", few)
    return photos


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("few_photos")
def test_the_demo_end_to_end_on_few_photos_and_captions(
    c3: C3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole job on a small part of what is bundled: every row is there, the page stands alone."""
    monkeypatch.setattr("c3tools.demo.run._IMAGE_STEPS", 2)
    monkeypatch.setattr("c3tools.imaging.model.SIZES", {"tiny": MICRO_SIZE})
    result = done(c3("demo", "--images", "--json", "runs.json"))
    said = " ".join((result.stdout + result.stderr).split())
    parts = (" method steps CIDEr 95 %", " C3 Connect, Collapse, Corrupt ", " C2_1 − C1: ", " real photos ")
    more = (" C3 − C1, sigma ", "5 The other direction: ", " 2 steps ", "/demo.html The ", "/table.html Wrote ")
    assert re.search(".*".join((*parts, *more)), said)
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [entry["method"] for entry in runs] == ["C1", "C2_1", "C2_2", "C3"]
    assert all(entry["scores"]["CIDEr"] >= 0 for entry in runs)
    assert "real photos" in (tmp_path / "c3-demo" / "images" / "table.md").read_text(encoding="utf-8")
    for name, scripts in (("captions.html", 0), ("demo.html", 2)):  # the map: its data and what draws it
        page = (tmp_path / "c3-demo" / name).read_text(encoding="utf-8")
        assert page.count("data:image/jpeg;base64,") == (40 if scripts else 20)
        outside = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page)
        assert all(url.startswith("https://www.flickr.com/") for url in outside)
        assert page.count("<script") == scripts
        assert ("<svg" in page) == (scripts > 0)
        assert page.count('<dt title="Connect, Collapse, Corrupt">C3</dt>') == (20 if scripts else 0)
        assert ("95 % interval</th>" in page) == ("C2_1 − C1: " in page) == (name == "demo.html")


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_first_captions_are_there_when_the_training_is_interrupted(
    c3: C3, few_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.demo.run.run_cells", interrupt)
    result = c3("demo")
    assert result.exit_code == 130
    assert result.stderr.count("c3-demo/captions.html") == 2  # before the training, and beside what is kept
    assert not (tmp_path / "c3-demo" / "demo.html").exists()
    page = (tmp_path / "c3-demo" / "captions.html").read_text(encoding="utf-8")
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in re.findall(r"jpeg;base64,([^\"]+)", page)]
    assert (len(pictures), {max(picture.size) for picture in pictures}) == (20, {256, 360})
    rows = lines_of(few_photos / "captions.jsonl")
    assert page.count("CC BY-SA 2.0") == sum("ShareAlike" in row["license"] for row in rows) > 0
    assert Store.open("c3-demo/captions").fitting_moments("text").n == 30_000
    told = [line for line in result.stderr.splitlines() if line.startswith(("   ", "1", "2", "3", "4"))]
    recorded(GOLDEN / "messages.json", [re.sub("“[^”]*”|-?[\\d,.]*\\d", "#", line) for line in told])
    references = {Path(row["image"]).stem: row["captions"] for row in rows}
    key_of = {texts[0]: key for key, texts in references.items()}
    written, people, numbers = (
        [html.unescape(text) for text in re.findall(f'<dd class="{kind}">(.*?)</dd>', page)]
        for kind in ("judged", "muted", "score num")
    )
    shown, keys = list(map(float, numbers)), [key_of[human] for human in people]
    scores = score_captions(dict(zip(keys, written, strict=True)), references).per_image["CIDEr"]
    assert shown == [round(score) for score in scores]
    best, worst, others = shown[:6], shown[6:12], shown[12:]
    assert (best, worst, others) == (sorted(best)[::-1], sorted(worst), sorted(others)[::-1])
    assert min(best) >= others[0] >= others[-1] >= max(worst)
    assert best[0] > 20
    said = " ".join(result.stderr.split())
    assert f"({best[0]:.0f}), the worst" in said and f"({worst[0]:.0f})." in said
