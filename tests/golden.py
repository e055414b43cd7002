"""Results that stand in a file, and are made anew by one command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def recorded(file: Path, value: Any, rel: float = 1e-5) -> None:
    """Compare a JSON value with a file, floats within ``rel``; with ``C3_RECORD=1`` it is written there first.

    Read the difference in review: a result has changed for all users.
    """
    if os.environ.get("C3_RECORD"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found, golden = _flat(value), _flat(json.loads(file.read_text(encoding="utf-8")))
    assert found.keys() == golden.keys()
    for path, before in golden.items():
        close = isinstance(before, float) and found[path] == pytest.approx(before, rel=rel, abs=1e-7)
        assert close or found[path] == before, path


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, item in items for key, leaf in _flat(item, f"{path}.{name}").items()}
    return {path: value}
