from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import C3
from tests.stores import whole_store


def test_a_whole_store_is_exit_code_0(c3: C3, tmp_path: Path) -> None:
    whole_store(tmp_path / "c3-store")
    result = c3("verify")
    assert result.exit_code == 0
    assert "c3-store is complete and undamaged." in result.stdout
    assert "text: 60 rows in 3 shards, rows read" in result.stdout


def test_a_defect_is_told_with_place_and_remedy_and_exit_code_3(c3: C3, tmp_path: Path) -> None:
    path = whole_store(tmp_path / "elsewhere").path
    (path / "text" / "_part-00001.json").write_text("{}")
    result = c3("verify", path, "--json", "-")
    assert result.exit_code == 3
    value = json.loads(result.stdout)
    assert value["whole"] is False
    assert value["findings"][0]["where"] == "text/_part-00001.json"
    assert value["findings"][0]["repair"] == "redo"
    assert "text/_part-00001.json: The done marker" in c3("verify", "--store", path).stderr
    repaired = c3("verify", path, "--repair")
    assert repaired.exit_code == 3
    assert "text shard 1 was removed" in repaired.stdout
    again = c3("verify", path)
    assert again.exit_code == 3  # until it is made again
    assert "1 of 3 recorded shards are missing (20 rows): 1" in again.stderr


def test_what_can_be_mended_in_place_is_exit_code_0(c3: C3, tmp_path: Path) -> None:
    path = whole_store(tmp_path / "c3-store").path
    (path / "image" / "_part-00001.moments.safetensors").write_bytes(b"")
    (path / "store.json").write_text("[]")
    (path / "failures.parquet").write_bytes(b"PAR1")
    result = c3("verify", "--repair")
    assert result.exit_code == 0, result.stderr
    assert "now complete and undamaged" in result.stdout
    assert c3("verify").stderr.count("defect") == 0


def test_sample_may_stand_alone(c3: C3, tmp_path: Path) -> None:
    whole_store(tmp_path / "c3-store")
    assert "of 1 shards read" in c3("verify", "--sample").stdout
    assert "of 2 shards read" in c3("verify", "--sample", "0.5", "--seed", "3").stdout


def test_no_store_and_a_newer_store(c3: C3, tmp_path: Path) -> None:
    assert "There is no store" in c3("verify").stderr
    path = whole_store(tmp_path / "c3-store").path
    text = (path / "store.json").read_text()
    (path / "store.json").write_text(text.replace('"format_version": 1', '"format_version": 2'))
    result = c3("verify", "--repair")
    assert result.exit_code == 1
    assert "format version 2, but this version of c3tools only reads up to 1" in result.stderr
    assert '"format_version": 2' in (path / "store.json").read_text()
