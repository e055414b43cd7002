from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from c3tools.store import Shard, StoreInfo, create_store, write_shard
from tests.conftest import make_store, unit_rows
from tests.geometry.spaces import paper_model, unit

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def store(tmp_path):
    """Thirty images with two captions each in the default store; one caption and one key are hostile."""
    image, text, owner = paper_model(30, 8, captions=2)
    keys = [f"photo{i}" for i in range(29)] + [EVIL]
    info = StoreInfo({"name": "model [bold]&<i>"}, 8, dtype="float32")
    create_store(tmp_path / "c3-store", info)
    shard = Shard("image", 0, unit(image).astype(np.float32), {"key": keys, "path": keys})
    write_shard(tmp_path / "c3-store", info, shard)
    columns = {
        "key": [f"t{i}" for i in range(60)],
        "caption": [f"{EVIL}<img src='http://example.invalid/x.png'>"] * 60,
        "image_key": [keys[o] for o in owner],
    }
    write_shard(tmp_path / "c3-store", info, Shard("text", 0, unit(text).astype(np.float32), columns))
    return tmp_path / "c3-store"


def test_without_options_it_prints_tables_and_writes_the_page(c3, store, tmp_path):
    result = c3("gap-report")
    assert result.exit_code == 0, result.output
    for words in ("gap length", "paired cosine", "c2-collapse", "Is the gap constant?", "Corrupt:"):
        assert words in result.stdout
    assert "Wrote gap-report.html" in result.stderr
    assert "model [bold]&<i>" in result.stdout
    assert (tmp_path / "gap-report.html").stat().st_size > 50_000


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-4)])
def test_imported_clip_embeddings_have_the_published_numbers(c3, shared_data, dtype, tolerance):
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    image, text = folder / "image.npy", folder / "text.npy"
    assert c3("import", "--image", image, "--text", text, "--dtype", dtype).exit_code == 0
    values = json.loads(c3("gap-report", "--presets", "raw", "--json").stdout)
    x, y = unit(np.load(image)), unit(np.load(text))
    cosines, difference = x @ y.T, x - y
    off = ~np.eye(500, dtype=bool)
    num = (1 - np.trace(cosines) / 500) / 2
    within = [(1 - (rows @ rows.T)[off].mean()) / 2 for rows in (x, y)]
    own = np.diag(cosines)
    for found, expected, published in (
        (values["gap"]["length"], np.linalg.norm(difference.mean(axis=0)), 0.8514),
        (values["gap"]["rmg"], num / (num + np.mean(within)), 0.5915),
        (values["pairs"]["paired_cosine"], own.mean(), 0.310),
        (values["pairs"]["unpaired_cosine"], cosines[off].mean(), 0.162),
        (values["pairs"]["residual_rms"], np.sqrt(difference.var(axis=0).mean()), 0.0358),
        (values["retrieval"]["raw"]["image_to_text"]["recall@1"], (cosines.argmax(1) == np.arange(500)).mean(), 0.552),
        (values["retrieval"]["raw"]["text_to_image"]["recall@1"], (cosines.argmax(0) == np.arange(500)).mean(), 0.506),
    ):
        assert found == pytest.approx(expected, abs=tolerance)
        assert found == pytest.approx(published, abs=10.0 ** -len(str(published).split(".")[1]) / 2 + tolerance)
    assert values["assumptions"]["isotropic"]["answer"] == "no"
    assert "row i was paired with row i" in c3("import", "--image", image, "--text", text, "--store", "b").stderr


def test_json_has_the_promised_keys(c3, store, tmp_path):
    result = c3("gap-report", "--json")
    values = json.loads(result.stdout)
    for found in values["modalities"].values():
        assert {
            "n",
            "dim",
            "effective_dimension",
            "effective_rank",
            "participation_ratio",
            "mean_norm",
        } <= found.keys()
    assert {"length", "instance_distance", "rmg"} <= values["gap"].keys()
    assert {"n", "paired_cosine", "unpaired_cosine", "residual_rms"} <= values["pairs"].keys()
    for preset in ("raw", "c2-collapse"):
        assert set(values["retrieval"][preset]) == {"image_to_text", "text_to_image"}
        for scores in values["retrieval"][preset].values():
            assert set(scores) == {"recall@1", "recall@5", "recall@10"}
            assert all(0 <= score <= 1 for score in scores.values())
    assert c3("gap-report", "--json", "out.json").exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text()) == values


def test_the_page_stands_alone_and_shows_text_as_text(c3, store, tmp_path):
    assert c3("gap-report", "--html", "deep/page.html").exit_code == 0
    html = (tmp_path / "deep" / "page.html").read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    # the only addresses are the names of the SVG and XLink vocabularies
    assert not re.findall(r'(?:src|href)="(?!#|data:,)[^"]*"', html)
    assert not re.findall(r"url\((?!#)[^)]*\)", html)
    assert html.count("<svg") == 9
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_figures_are_written_on_request(c3, store, tmp_path):
    result = c3("gap-report", "--figures", "figures")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"spectra.png", "spectra.svg", "projection.png", "recall.svg", "gap-length.svg"} <= names


def test_two_stores_side_by_side(c3, store, tmp_path):
    make_store(tmp_path / "other", unit_rows(20, 4), unit_rows(20, 4, seed=1))
    result = c3("gap-report", "c3-store", "other", "--json", "both.json")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "both.json").read_text())
    assert [report["modalities"]["image"]["n"] for report in values["stores"]] == [30, 20]
    html = (tmp_path / "gap-report.html").read_text()
    assert "side by side" in html
    assert "<script" not in html
    assert c3("gap-report", "c3-store", "other", "third").exit_code == 1


def test_two_stores_of_which_one_has_one_modality(c3, store, tmp_path):
    info = StoreInfo({"name": "m"}, 8, dtype="float32")
    create_store(tmp_path / "one", info)
    write_shard(tmp_path / "one", info, Shard("text", 0, unit_rows(9, 8), {"key": list("abcdefghi")}))
    result = c3("gap-report", "c3-store", "one")
    assert result.exit_code == 0, result.output
    assert "9 text" in (tmp_path / "gap-report.html").read_text()


def test_every_pair_of_modalities(c3, store, tmp_path):
    info = StoreInfo.load(store)
    audio = {"key": [f"a{i}" for i in range(29)], "pair_key": [f"photo{i}" for i in range(29)]}
    write_shard(store, info, Shard("audio", 0, unit_rows(29, 8, seed=9), audio))
    result = c3("gap-report", "--modalities", "all", "--json", "all.json", "--html", "r/all.html")
    assert result.exit_code == 0, result.output
    for words in ("Every pair of modalities", "image and text", "image and audio", "audio and text"):
        assert words in result.stdout
    reports = json.loads((tmp_path / "all.json").read_text())["reports"]
    assert [set(report["modalities"]) for report in reports] == [
        {"image", "text"},
        {"image", "audio"},
        {"audio", "text"},
    ]
    assert [report["pairs"]["n"] for report in reports] == [60, 29, 58]
    page = (tmp_path / "r" / "all.html").read_text()
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == 3
    for link in links:
        assert "The geometry of" in (tmp_path / "r" / link).read_text()
    assert "Every pair of modalities in the store" in (tmp_path / "r" / links[0]).read_text()
    figures = c3("gap-report", "--modalities", "all", "--figures", "f")
    assert figures.exit_code == 0
    assert len(list((tmp_path / "f").glob("*/spectra.png"))) == 3
    refused = c3("gap-report", "c3-store", "c3-store", "--modalities", "all")
    assert refused.exit_code == 1
    assert "--modalities image,text" in " ".join(refused.stderr.split())


def test_every_pair_of_two_modalities_is_the_one_report(c3, store):
    result = c3("gap-report", "--modalities", "all", "--json")
    assert set(json.loads(result.stdout)["modalities"]) == {"image", "text"}


def test_the_page_is_well_formed(c3, store, tmp_path):
    assert c3("gap-report", "--by", "key").exit_code == 1  # too many values
    assert c3("gap-report").exit_code == 0
    assert_well_formed((tmp_path / "gap-report.html").read_text())


class Tags(HTMLParser):
    """Whether every element is closed where it must be."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br", "img", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def assert_well_formed(html):
    tags = Tags()
    tags.feed(html)
    assert tags.wrong == []
    assert tags.open == []


def test_the_page_in_a_browser_asks_for_nothing_and_runs_nothing(c3, store, tmp_path):
    """Chromium, where there is one: a caption that became an element would be looked up, and be in its network log."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium")
    assert c3("gap-report").exit_code == 0
    log = tmp_path / "net.json"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--enable-logging=stderr", "--v=0", f"--log-net-log={log}", "--virtual-time-budget=2000", "--dump-dom"]
    page = tmp_path / "gap-report.html"
    done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=100, check=True)
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    assert "<script" not in done.stdout
    assert "example.invalid" not in log.read_text()


def test_the_page_of_one_modality(c3, tmp_path):
    info = StoreInfo({"name": "m"}, 4, dtype="float32")
    create_store(tmp_path / "c3-store", info)
    write_shard(tmp_path / "c3-store", info, Shard("image", 0, unit_rows(9, 4), {"key": list("abcdefghi")}))
    result = c3("gap-report")
    assert result.exit_code == 0, result.output
    assert "one modality" in result.stdout
    page = (tmp_path / "gap-report.html").read_text()
    assert "The geometry of one modality" in page
    # a spectrum of less than one power of ten: its axis has no labels in mathematical notation
    assert page.count("<svg") == 1
    assert "mathdefault" not in page


def test_the_page_without_pairs(c3, tmp_path):
    make_store(tmp_path / "c3-store", unit_rows(20, 4), unit_rows(20, 4, seed=1), owners=[None] * 20)
    result = c3("gap-report")
    assert result.exit_code == 0, result.output
    assert "cannot be given" in " ".join(result.stdout.split())
    assert "unknown" in (tmp_path / "gap-report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no store"),
        (("--store", "elsewhere"), "elsewhere"),
    ],
)
def test_without_a_store_there_is_one_clear_error(c3, arguments, message):
    result = c3("gap-report", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_nan_is_named_and_skipped_on_request(c3, tmp_path):
    x, y = unit_rows(20, 4), unit_rows(20, 4, seed=1)
    x[4, 1] = np.nan
    make_store(tmp_path / "c3-store", x, y)
    refused = c3("gap-report")
    assert refused.exit_code == 1
    assert "image4" in refused.stderr
    assert "--skip-invalid" in refused.stderr
    assert c3("gap-report", "--skip-invalid").exit_code == 0


def test_options_narrow_the_report(c3, store):
    result = c3("gap-report", "--modalities", "image", "--json")
    assert set(json.loads(result.stdout)["modalities"]) == {"image"}
    result = c3("gap-report", "--presets", "raw", "--json")
    assert set(json.loads(result.stdout)["retrieval"]) == {"raw", "c2-collapse"}
    result = c3("gap-report", "--by", "colour")
    assert result.exit_code == 1
    assert "no column 'colour'" in result.stderr
