from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from c3tools.store import Store
from tests.conftest import C3, make_store, unit_rows
from tests.geometry.spaces import hostile_store, unit


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The hostile store as the default store."""
    return hostile_store(tmp_path / "c3-store")


TABLES = ("gap length", "paired cosine", "c2-collapse", "Is the gap constant?", "How much noise to add")
QUESTIONS = ("Is there a modality gap?", "Will Collapse help?", "Will Corrupt help?", "Is anything unusual?")


def test_without_options_it_prints_the_verdict_and_writes_the_page(c3: C3, store: Store, tmp_path: Path) -> None:
    result = c3("gap-report")
    assert result.exit_code == 0, result.output
    assert "Wrote gap-report.html" in result.stderr
    assert "model [bold]&<i>" in result.stdout
    page = (tmp_path / "gap-report.html").read_text()
    assert len(page) > 50_000
    for words in QUESTIONS:
        assert words in result.stdout
        assert words in page
    assert not any(words in result.stdout for words in TABLES)
    assert "--full prints every table, gap-report.html shows them" in " ".join(result.stdout.split())
    full = c3("gap-report", "--full")
    assert all(words in full.stdout for words in (*QUESTIONS, *TABLES))


def test_json_alone_writes_no_page_and_needs_no_folder_to_write_to(
    c3: C3, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr("cli._options.os.access", lambda *_: False)  # as where the folder is not ours
    result = c3("gap-report", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"]["gap"]["answer"] in ("yes", "partly", "no", "unknown")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    refused = c3("gap-report")
    assert refused.exit_code == 1
    assert "gap-report.html cannot be written: permission denied" in refused.stderr
    assert "Pairs" not in refused.stderr  # nothing was measured before


def test_missing_folders_of_outputs_are_errors(c3: C3, store: Store, tmp_path: Path) -> None:
    for option in ("--html", "--json"):
        refused = c3("gap-report", option, "none/deep/file.json")
        assert refused.exit_code == 1
        assert "the folder none/deep does not exist" in refused.stderr
    assert "the folder none does not exist" in c3("gap-report", "--figures", "none/figures").stderr
    assert "it is a folder" in c3("gap-report", "--html", "c3-store").stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-4)])
def test_imported_clip_embeddings_have_the_published_numbers(
    c3: C3, shared_data: Path, dtype: str, tolerance: float
) -> None:
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


def test_json_has_the_promised_keys(c3: C3, store: Store, tmp_path: Path) -> None:
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


def test_two_stores_page_and_figures_go_where_they_are_asked_for(c3: C3, store: Store, tmp_path: Path) -> None:
    make_store(tmp_path / "other", unit_rows(20, 4), unit_rows(20, 4, seed=1))
    (tmp_path / "deep").mkdir()
    options = ("--presets", "raw", "--json", "both.json", "--html", "deep/page.html", "--figures", "figures")
    result = c3("gap-report", "c3-store", "other", *options)
    assert result.exit_code == 0, result.output
    for words in ("side by side", "Gap length", "c3-store", "other"):
        assert words in result.stdout
    values = json.loads((tmp_path / "both.json").read_text())
    assert [report["modalities"]["image"]["n"] for report in values["stores"]] == [30, 20]
    assert "side by side" in (tmp_path / "deep" / "page.html").read_text()
    assert (tmp_path / "figures" / "2-other" / "spectra.png").is_file()
    assert c3("gap-report", "c3-store", "other", "third").exit_code == 1
    refused = c3("gap-report", "c3-store", "c3-store", "--modalities", "all")
    assert refused.exit_code == 1
    assert "--modalities image,text" in " ".join(refused.stderr.split())


def test_every_pair_of_two_modalities_is_the_one_report(c3: C3, store: Store) -> None:
    result = c3("gap-report", "--modalities", "all", "--json")
    assert set(json.loads(result.stdout)["modalities"]) == {"image", "text"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no store"),
        (("--store", "elsewhere"), "elsewhere"),
    ],
)
def test_without_a_store_there_is_one_clear_error(c3: C3, arguments: tuple[str, ...], message: str) -> None:
    result = c3("gap-report", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_nan_is_named_and_skipped_on_request(c3: C3, tmp_path: Path) -> None:
    x, y = unit_rows(20, 4), unit_rows(20, 4, seed=1)
    x[4, 1] = np.nan
    make_store(tmp_path / "c3-store", x, y)
    refused = c3("gap-report")
    assert refused.exit_code == 1
    assert "image4" in refused.stderr
    assert "--skip-invalid" in refused.stderr
    assert c3("gap-report", "--skip-invalid", "--presets", "raw").exit_code == 0


def test_options_narrow_the_report(c3: C3, store: Store) -> None:
    result = c3("gap-report", "--modalities", "image", "--json")
    assert set(json.loads(result.stdout)["modalities"]) == {"image"}
    result = c3("gap-report", "--presets", "raw", "--json")
    assert set(json.loads(result.stdout)["retrieval"]) == {"raw", "c2-collapse"}
    result = c3("gap-report", "--by", "colour")
    assert result.exit_code == 1
    assert "no column 'colour'" in result.stderr
    assert c3("gap-report", "--by", "key").exit_code == 1  # too many values
