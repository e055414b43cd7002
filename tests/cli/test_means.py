from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import C3, make_store, unit_rows


def test_shows_saves_loads_and_merges(c3: C3, tmp_path: Path) -> None:
    make_store(tmp_path / "c3-store", unit_rows(20, 8), unit_rows(30, 8))
    assert "Length of the modality gap" in c3("means").stdout
    for name in ("m", "n"):
        assert c3("means", "--save", f"{name}.safetensors").exit_code == 0
    merged = c3("means", "--merge", "m.safetensors", "--merge", "n.safetensors", "--save", "two.safetensors")
    assert merged.exit_code == 0
    again = c3("means", "--merge", "m.safetensors", "--merge", "n.safetensors", "--save", "two.safetensors", "--json")
    assert json.loads(again.stdout) == {"output": "two.safetensors", "rows": {"image": 40, "text": 60}}
    assert c3("means", "--load", "two.safetensors").exit_code == 0
    rows = json.loads(c3("means", "--json").stdout)["means"]
    assert [row["n"] for row in rows if row["source"] != "store"] == [40, 60]
    assert c3("means", "--unload").exit_code == 0
    assert all(row["source"] == "store" for row in json.loads(c3("means", "--json").stdout)["means"])


def test_what_cannot_be_done_is_said(c3: C3, tmp_path: Path) -> None:
    make_store(tmp_path / "c3-store", unit_rows(20, 8), unit_rows(30, 8))
    assert "--save" in c3("means", "--merge", "m.safetensors").stderr
    both = c3("means", "--merge", "m.safetensors", "--save", "n.safetensors", "--load", "n.safetensors")
    assert "--merge cannot be combined with --load" in both.stderr
    assert "moments file nowhere does not exist" in c3("means", "--load", "nowhere").stderr
    assert "c3-mini" in c3("means", "--load", "c3-mini").stderr


def test_what_cannot_be_written_is_said(c3: C3, tmp_path: Path) -> None:
    make_store(tmp_path / "c3-store", unit_rows(20, 8), unit_rows(30, 8))
    (tmp_path / "file").touch()
    result = c3("means", "--save", "file/m.safetensors")
    assert result.exit_code == 1
    assert "file/m.safetensors cannot be written: file is a file." in result.stderr
    assert "Choose a path whose parent is a folder" in result.stderr
