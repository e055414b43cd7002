"""Files that commands write where the user says, and what they never replace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from c3tools import save_means
from c3tools.captioning.captioner import DECODER
from c3tools.clusters.cluster import CLUSTERS
from c3tools.connect.contrastive import RECORD_FILE
from c3tools.curation.wrong_pairs import check_pairs
from c3tools.errors import OutputError
from c3tools.geometry.report import gap_report
from c3tools.io.outputs import RECORDS, require_replaceable, write_output
from c3tools.moments import unit_rows
from c3tools.paper.imaging.generator import GENERATOR
from c3tools.store import Store
from c3tools.store.shards import MANIFEST_FILE
from tests.conftest import contents, make_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of 40 pairs."""
    rows = unit_rows(np.random.default_rng(0).normal(size=(40, 8)))
    return make_store(tmp_path / "s", rows, rows)


def test_the_commands_replace_what_they_wrote(store: Store, tmp_path: Path) -> None:
    """Every kind begins as `require_replaceable` knows it."""
    report = gap_report(store)
    for _ in range(2):
        check = check_pairs(store)
        check.save(tmp_path / "pairs.html")
        check.save_table(tmp_path / "pairs.parquet")
        report.save(tmp_path / "report.json")
        report.save_figures(tmp_path)
        require_replaceable(tmp_path / "means.safetensors", ".safetensors")
        save_means(store, tmp_path / "means.safetensors")


@pytest.mark.parametrize("suffix", [".html", ".json", ".parquet", ".safetensors", ".svg"])
def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path, suffix: str) -> None:
    notes = tmp_path / f"notes{suffix}"
    notes.write_text("What I found, in eight sentences.")
    with pytest.raises(
        OutputError, match=r"notes\.\w+ exists and is not a .*, so it is not replaced"
    ):
        write_output(notes, suffix, lambda file: file.write_text("new"))
    assert notes.read_text() == "What I found, in eight sentences."


def test_an_empty_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "page.html").touch()
    write_output(tmp_path / "page.html", ".html", lambda file: file.write_text("<html>"))
    assert (tmp_path / "page.html").read_text() == "<html>"


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """By a link, since a rename would replace the device itself."""
    link = tmp_path / "page.html"
    link.symlink_to(os.devnull)
    write_output(link, ".html", lambda file: file.write_text("<html>"))
    assert link.is_symlink()
    assert list(tmp_path.iterdir()) == [link]


def test_files_of_a_store_are_not_replaced(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store.path)
    for name in ("store.json", "manifest.json", "image/part-00000.parquet", "moments.safetensors"):
        with pytest.raises(OutputError, match=r"is listed in manifest\.json: it belongs to"):
            write_output(store.path / name, Path(name).suffix, lambda file: file.touch())
    monkeypatch.chdir(store.path / "image")
    with pytest.raises(OutputError, match=r"is listed in \w+\.json: it belongs to"):
        check_pairs(store).save_table("part-00000.parquet")
    assert contents(store.path) == before


def test_other_files_in_a_store_are_replaced(store: Store) -> None:
    (store.path / "pairs.json").write_text("[1]")
    write_output(store.path / "pairs.json", ".json", lambda file: file.write_text("[2]"))
    assert (store.path / "pairs.json").read_text() == "[2]"


def test_files_of_a_trained_model_are_not_replaced(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}")
    for record in RECORDS:
        (tmp_path / record).write_text(json.dumps({"files": {weights.name: "0"}}))
        for name in (weights.name, record):
            with pytest.raises(OutputError, match=r"is listed in \w+\.json: it belongs to"):
                require_replaceable(tmp_path / name, Path(name).suffix)
        (tmp_path / record).unlink()
    require_replaceable(weights, ".safetensors")


def test_the_records_of_all_results_are_known() -> None:
    assert set(RECORDS) == {
        MANIFEST_FILE,
        CLUSTERS.record,
        DECODER.record,
        GENERATOR.record,
        RECORD_FILE,
    }


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".page.html.0123456789abcdef.tmp"
    other = tmp_path / ".other.html.0123456789abcdef.tmp"
    left.touch()
    other.touch()
    write_output(tmp_path / "page.html", ".html", lambda file: file.write_text("<html>"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "page.html"]
