from __future__ import annotations

import json
import re

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
        "caption": [EVIL] * 60,
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


def test_the_page_of_one_modality(c3, tmp_path):
    info = StoreInfo({"name": "m"}, 4, dtype="float32")
    create_store(tmp_path / "c3-store", info)
    write_shard(tmp_path / "c3-store", info, Shard("image", 0, unit_rows(9, 4), {"key": list("abcdefghi")}))
    result = c3("gap-report")
    assert result.exit_code == 0, result.output
    assert "one modality" in result.stdout
    assert "The geometry of one modality" in (tmp_path / "gap-report.html").read_text()


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
