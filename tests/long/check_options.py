"""Options of the commands that take long have an effect, as many as there is time for;
`tests/cli/test_options.py` tries all options of the other commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..cli.conftest import made_workplace  # noqa: F401 - a fixture
from ..cli.option_cases import IN_LONG_CHECKS
from ..cli.test_options import (  # noqa: F401 - fixtures
    Run,
    options_of,
    options_workplace,
    run,
    without_effect,
)
from ..demo.conftest import few_photos  # noqa: F401 - a fixture
from .conftest import Budget


@pytest.mark.usefixtures("few_photos")  # of the demo
@pytest.mark.parametrize("command", IN_LONG_CHECKS)
def test_every_option_has_an_effect(
    run: Run,  # noqa: F811
    command: str,
    budget: Budget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if command == "demo" and budget.seconds < 60:
        budget.report("no option of c3 demo: that takes at least a minute")
        return

    monkeypatch.setattr("c3tools.demo.demo._IMAGE_STEPS", 2)
    # Processes would train decoders of the real sizes, and Java takes longer than all of a demo
    monkeypatch.setattr("c3tools.demo.demo.cores", lambda: 1)
    monkeypatch.setattr("c3tools.metrics.java_metrics.missing_java", lambda: "it needs Java")
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
