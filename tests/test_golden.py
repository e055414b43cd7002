"""Results on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import recorded


def test_only_what_has_changed_is_recorded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "golden.json"
    before = {"same": [1.0, "word"], "changed": [2.0, 3.0], "shorter": [1.0, 2.0]}
    file.write_text(json.dumps(before))
    monkeypatch.setenv("C3_RECORD", "1")
    recorded(file, {"same": (1.0000001, "word"), "changed": [2.1, 3.0000001], "shorter": [1.0]})
    after = json.loads(file.read_text())
    assert after == {"same": [1.0, "word"], "changed": [2.1, 3.0], "shorter": [1.0]}
