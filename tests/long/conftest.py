"""Long checks: `make long` gives each so many minutes and a seed, and prints one line for each.

A check is a test in ``check_NAME.py``, which `make test` does not collect. It takes the fixture `budget`, goes on while
``budget.is_left()``, draws from ``budget.random``, and ends with ``budget.report("212 kills, all continued")``:

    pytest tests/long/check_crashes.py --minutes 10 --seed 0
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=1.0, help="how long each check goes on")
    parser.addoption("--seed", type=int, default=0, help="of all that is drawn")


class Budget:
    """The time and the seed of one check.

    Attributes:
        seconds: how long the check goes on.
        seed: of all that it draws.
        random: a generator from the seed.
    """

    def __init__(self, seconds: float, seed: int) -> None:
        self.seconds, self.seed, self.random = seconds, seed, random.Random(seed)
        self.line = ""
        self._start, self._rounds = time.monotonic(), 0

    def is_left(self) -> bool:
        """Return whether to do one more round; the first one is always done."""
        self._rounds += 1
        return self._rounds == 1 or time.monotonic() - self._start < self.seconds

    def report(self, line: str) -> None:
        """Say what was done, in figures."""
        self.line = f"{line}, in {time.monotonic() - self._start:,.0f} s with seed {self.seed}"


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Iterator[Budget]:
    """The time and the seed of this check."""
    made = Budget(60 * request.config.getoption("--minutes"), request.config.getoption("--seed"))
    yield made
    lines = request.config.stash.setdefault(LINES, [])
    lines.append(f"{Path(request.node.path).stem.removeprefix('check_')}: {made.line or 'FAILED'}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)
