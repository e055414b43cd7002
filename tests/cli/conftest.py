from __future__ import annotations

from pathlib import Path

import pytest

from tests.stores import gap_store


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small synthetic store in c3-store."""
    monkeypatch.chdir(tmp_path)
    return gap_store(tmp_path / "c3-store").parent
