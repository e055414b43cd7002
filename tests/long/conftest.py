"""Long checks: `make long` gives each so many minutes and a seed, and prints one line for each.

A check is a test in ``check_NAME.py``, which `make test` does not collect. It takes the fixture
`budget`, goes on while ``budget.is_left()``, draws from ``budget.random``, and ends with
``budget.report("212 kills, all continued")``:

    pytest tests/long/check_kills.py --minutes 10 --seed 0
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--minutes",
        type=float,
        default=1.0,
        help="how long each check goes on, all its cases together",
    )
    parser.addoption(
        "--kills",
        type=int,
        default=0,
        help="of each command of check_kills.py, instead of --minutes",
    )
    parser.addoption("--seed", type=int, default=0, help="of all that is drawn")


class Budget:
    """The time and the seed of one check.

    Attributes:
        seconds: how long the check goes on.
        count: how much it does instead; 0 where the time counts.
        seed: of all that it draws.
        random: a generator from the seed.
    """

    def __init__(self, seconds: float, count: int, seed: int) -> None:
        self.seconds, self.count, self.seed, self.random = seconds, count, seed, random.Random(seed)
        self.line = ""
        self._start, self._rounds = time.monotonic(), 0

    def is_left(self, done: int = 0) -> bool:
        """Return whether to do one more round, after so much was done; the first one is always
        done."""
        self._rounds += 1
        return (
            done < self.count or self._rounds == 1 or time.monotonic() - self._start < self.seconds
        )

    def report(self, line: str) -> None:
        """Say what was done, in figures."""
        self.line = f"{line}, in {time.monotonic() - self._start:,.0f} s with seed {self.seed}"


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Iterator[Budget]:
    """The time and the seed of this check."""
    minutes, kills, seed = (
        request.config.getoption(name) for name in ("--minutes", "--kills", "--seed")
    )
    cases = sum(item.path == request.path for item in request.session.items)
    made = Budget(0 if kills else 60 * minutes / cases, kills, seed)
    yield made
    line = (
        f"{request.path.stem.removeprefix('check_')}: {made.line or request.node.name + ' FAILED'}"
    )
    request.node.user_properties.append(("line", line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.getreports(""):  # of what came before and after the tests
        for _, line in report.user_properties if report.when == "teardown" else ():
            terminalreporter.write_line(str(line))
