from __future__ import annotations

import base64
import html
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from c3tools import copy_photos
from c3tools.assets.paths import CAPTIONS, PHOTOS
from c3tools.corpus.items import ItemTable, TextItem
from c3tools.corpus.reading import read_corpus
from c3tools.demo.demo import _first_of_each_split
from c3tools.metrics.caption_scores import score_captions
from c3tools.store import Store
from c3tools.store.rows import row_splits, without_splits
from c3tools.transforms.fitting import moments_of
from tests.conftest import C3, done
from tests.golden import recorded
from tests.paper.imaging.conftest import MICRO_SIZE

MARKS = ("has_photo_in_coco_cc", "has_photo_in_coco_cc_more", "reserved")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def letters(row: dict[str, Any]) -> set[str]:
    """Return the letters and digits of the captions of an image, in lower case, with single spaces
    between words."""
    return {" ".join(re.findall(r"\w+", caption.lower())) for caption in row["captions"]}


def test_every_bundled_photo_has_captions_and_attribution() -> None:
    names = sorted(path.name for path in (PHOTOS / "images").iterdir())
    rows = lines_of(PHOTOS / "captions.jsonl")
    assert Counter(row["split"] for row in rows) == {"train2017": 26, "val2017": 53, "test": 45}
    assert all(len(row["captions"]) >= 5 for row in rows)
    pattern = r"\| `(\S+)` \| \[(CC BY(?:-SA)? 2\.0)\]\(\S+\) \| <(\S+)> \|"
    listed = sorted(re.findall(pattern, (PHOTOS / "ATTRIBUTION.md").read_text("utf-8")))
    licences = {
        "Attribution License": "CC BY 2.0",
        "Attribution-ShareAlike License": "CC BY-SA 2.0",
    }
    assert (
        sorted((row["image"], licences[row["license"]], row["flickr_url"]) for row in rows)
        == listed
    )
    assert names == [name for name, *_ in listed]


@pytest.mark.parametrize("held_out", ["bundled", "kept for a test"])
def test_no_training_caption_is_of_an_image_that_is_scored(
    request: pytest.FixtureRequest, held_out: str
) -> None:
    photos, training = lines_of(PHOTOS / "captions.jsonl"), lines_of(CAPTIONS)
    assert len(training) == 4686
    if held_out != "bundled":
        rows = lines_of(request.getfixturevalue("shared_data") / "coco_captions" / "val2017.jsonl")
        photos = [row for row in rows if any(map(row.get, MARKS))]
        assert len(photos) > 300
    assert not {row["image"] for row in training} & {row["image"] for row in photos}
    assert not set().union(*map(letters, photos)) & set().union(*map(letters, training))


def test_photos_can_be_copied_to_start_with(c3: C3, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("deep/images", "empty"):
        assert (
            done(c3("demo", "--photos-to", folder)).stderr
            == f"Copied 124 photos with captions to {folder}.\n"
        )
        assert Counter(path.suffix for path in (tmp_path / folder).iterdir()) == {
            ".jpg": 124,
            ".jsonl": 1,
            ".md": 1,
        }
    again = c3("demo", "--photos-to", "empty")
    assert (again.exit_code, "not empty" in again.stderr) == (1, True)


def test_the_folder_of_the_copies_may_be_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert copy_photos("images") == len(list(Path("images").glob("*.jpg")))


def test_the_captions_of_a_short_demo_are_counted_in_train() -> None:
    texts = read_corpus(CAPTIONS).texts
    few = _first_of_each_split(ItemTable(TextItem, without_splits(texts.table)), 600)
    counts = Counter(row_splits(few.table))
    assert counts["train"] == 600


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("few_photos")
def test_the_demo_end_to_end(c3: C3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole job on a small part of what is bundled: every row is there, the page stands
    alone."""
    monkeypatch.setattr("c3tools.demo.demo._IMAGE_STEPS", 2)
    monkeypatch.setattr("c3tools.paper.imaging.model.SIZES", {"tiny": MICRO_SIZE})
    # Processes would train decoders of the real sizes, and Java takes longer than all of the rest
    monkeypatch.setattr("c3tools.demo.demo.cores", lambda: 1)
    monkeypatch.setattr("c3tools.metrics.java_metrics.missing_java", lambda: "it needs Java")
    result = done(c3("demo", "--images", "--json", "runs.json"))
    parts = (
        " method steps CIDEr 95%.* C3 Connect, Collapse, Corrupt .* C2_1 − C1: .* real photos .* "
        "C3 − C1, sigma .*"
        "5 The other direction: .* 2 steps .*/demo.html The .*/table.html Wrote "
    )
    assert re.search(parts, " ".join((result.stdout + result.stderr).split()))
    assert [
        run["method"] for run in json.loads(Path("runs.json").read_text())
    ] == "C1 C2_1 C2_2 C3".split()
    captions_page, page = (
        (tmp_path / "c3-demo" / name).read_text("utf-8") for name in ("captions.html", "demo.html")
    )
    outside = r'(?:src|href)="(?!data:|#|https://www\.flickr\.com/)'
    for text in (captions_page, page):
        assert not re.search(outside, text)

    # The page of first captions has no table and no map, whose data and code are the two scripts
    picture = "data:image/jpeg;base64,"
    assert captions_page.count(picture) == 20
    assert page.count(picture) == 40
    assert page.count("<script") == 2
    assert page.count('<dt title="Connect, Collapse, Corrupt">C3</dt>') == 20
    for part in ("<script", '<dt title="Connect', "<svg", "95% interval</th>", "C2_1 − C1: "):
        assert part not in captions_page
    for part in ("<svg", "95% interval</th>", "C2_1 − C1: "):
        assert part in page


def test_first_captions_are_there_when_the_training_is_interrupted(
    c3: C3, few_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.demo.demo.ablate_captions", Mock(side_effect=KeyboardInterrupt))
    result = c3("demo")
    # the page is named before the training, and beside what is kept
    assert (result.exit_code, result.stderr.count("c3-demo/captions.html")) == (130, 2)
    assert not (tmp_path / "c3-demo" / "demo.html").exists()
    page = (tmp_path / "c3-demo" / "captions.html").read_text("utf-8")
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(text)))
        for text in re.findall(r"jpeg;base64,([^\"]+)", page)
    ]
    assert (len(pictures), {max(picture.size) for picture in pictures}) == (20, {256, 360})
    rows = lines_of(few_photos / "captions.jsonl")
    assert page.count("CC BY-SA 2.0") == sum("ShareAlike" in row["license"] for row in rows) > 0
    assert moments_of(Store.open("c3-demo/captions"), "text").n == 30_000
    plain = [
        re.sub("“[^”]*”|-?[\\d,.]*\\d", "#", line)
        for line in re.findall("(?m)^(?:   |[1-4]).*", result.stderr)
    ]
    recorded(Path(__file__).parent / "golden" / "messages.json", plain)
    references = {Path(row["image"]).stem: row["captions"] for row in rows}
    key_of = {texts[0]: key for key, texts in references.items()}
    written, people, numbers = (
        [html.unescape(text) for text in re.findall(f'<dd class="{kind}">(.*?)</dd>', page)]
        for kind in ("judged", "muted", "score num")
    )
    captions = dict(zip([key_of[human] for human in people], written, strict=True))
    shown = [float(number) for number in numbers]
    assert shown == [
        round(score) for score in score_captions(captions, references).image_values("CIDEr")
    ]
    best, worst, others = shown[:6], shown[6:12], shown[12:]
    assert [*best, *others, *worst[::-1]] == sorted(shown)[::-1]
    assert best[0] > 20
    assert re.search(rf"\({best[0]:.0f}\), the worst .*\({worst[0]:.0f}\)\.\n", result.stderr)
