from __future__ import annotations

from pathlib import Path

import pytest

from c3tools.errors import C3Error

from .harness import find_problem, run_target
from .mutations import mutate_bytes
from .target import Target
from .targets import targets

RUNS = 25


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_no_reader_fails_otherwise_than_by_its_own_errors(target: Target) -> None:
    outcome = find_problem(target, RUNS, start=2)
    assert outcome.runs >= RUNS / 2
    # hypothesis draws by what else is imported; of captions in a text file few changes are refused
    assert outcome.refused > 0 or run_target(target, 10 * RUNS).refused > 0


def test_the_harness_sees_a_reader_that_fails() -> None:
    def read(folder: Path) -> None:
        content = (folder / "x").read_bytes()
        if b"a" not in content:
            raise KeyError("a")
        if content != b"abc":
            raise C3Error("refused")

    target = Target("broken", lambda folder: (folder / "x").write_bytes(b"abc"), {"x": (mutate_bytes,)}, read)
    outcome = run_target(target, 200)
    assert 0 < sum(outcome.counts.values()) < outcome.runs
    assert outcome.refused > 0
    assert all("KeyError" in problem for problem in outcome.problems)
    with pytest.raises(KeyError):
        find_problem(target, 200)


def test_the_harness_sees_a_reader_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.harness.LONGEST", 0.05)

    def read(folder: Path) -> None:
        while (folder / "x").read_bytes() != b"abc":
            pass

    target = Target("slow", lambda folder: (folder / "x").write_bytes(b"abc"), {"x": (mutate_bytes,)}, read)
    assert any("HangError" in problem for problem in run_target(target, 5).problems)
