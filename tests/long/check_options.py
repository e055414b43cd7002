"""Options of the commands that take long have an effect, as many as there is time for;
`tests/cli/test_options.py` tries all options of the other commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    if command == "demo" and budget.seconds < 60:
        budget.report("no option of c3 demo, which takes a minute for each")
        return

    # Few photos and captions for the demo
    photos = tmp_path / "bundled"
    copy_photos(photos / "images", 20)
    (photos / "images" / "captions.jsonl").rename(photos / "captions.jsonl")
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(CAPTIONS.read_bytes().splitlines(keepends=True)[:30]))
    monkeypatch.setattr("c3tools.demo.run.PHOTOS", photos)
    monkeypatch.setattr("c3tools.demo.run.CAPTIONS", few)
    monkeypatch.setattr("c3tools.demo.run._IMAGE_STEPS", 2)
    options = options_of(command)
    budget.random.shuffle(options)
    tried = []

    def options_in_time() -> Iterator[Any]:
        for option in options:
            if not budget.is_left():
                return
            tried.append(option)
            yield option

    assert without_effect(command, run, options_in_time()) == []
    budget.report(f"{len(tried)} of {len(options)} options of c3 {command} have an effect")
