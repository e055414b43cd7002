"""Every option of the commands that take long has an effect; `tests/cli/test_options.py` tries the
others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from c3tools.assets.paths import CAPTIONS

from ..cli.conftest import made_workplace  # noqa: F401 - a fixture
from ..cli.option_cases import IN_LONG_CHECKS
from ..cli.test_options import (  # noqa: F401 - fixtures
    Run,
    options_of,
    options_workplace,
    run,
    without_effect,
)
from ..conftest import copy_photos
from .conftest import Budget


@pytest.mark.parametrize("command", IN_LONG_CHECKS)
def test_every_option_has_an_effect(
    run: Run,  # noqa: F811
    command: str,
    budget: Budget,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Few photos and captions for the demo
    photos = tmp_path / "bundled"
    copy_photos(photos / "images", 20)
    (photos / "images" / "captions.jsonl").rename(photos / "captions.jsonl")
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(CAPTIONS.read_bytes().splitlines(keepends=True)[:30]))
    monkeypatch.setattr("c3tools.demo.run.PHOTOS", photos)
    monkeypatch.setattr("c3tools.demo.run.CAPTIONS", few)
    monkeypatch.setattr("c3tools.demo.run._IMAGE_STEPS", 2)
    assert without_effect(command, run) == []
    budget.report(f"{len(options_of(command))} options of c3 {command} have an effect")
