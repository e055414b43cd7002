from __future__ import annotations

from pathlib import Path

import pytest

from .synthetic import make_store


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small synthetic store in c3-store."""
    monkeypatch.chdir(tmp_path)
    return make_store(tmp_path / "c3-store").parent
