"""Processes on this machine: tasks are made when a process is free for one, and results come in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from c3tools.errors import C3Error
from c3tools.executors import LocalExecutor
from tests.executors.works import Squares


class Numbers:
    """Tasks made on demand; it notes how many results were there when each was made."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self.made: dict[int, int] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> int:
        self.made[position] = self.done // 10
        return position

    def report(self, done: int, failed: int) -> None:
        self.done += done


def test_tasks_are_made_when_a_process_is_free(tmp_path: Path) -> None:
    numbers = Numbers(12)
    results = LocalExecutor(["cpu", "cpu:1"]).run(Squares(tmp_path), numbers, numbers.report)
    assert results == [number * number for number in range(12)]
    assert numbers.done == 120
    assert all(done >= position // 2 - 1 for position, done in numbers.made.items())  # half of them before in a process
    assert len({path.name.split("-")[2] for path in tmp_path.iterdir()}) == 2


@pytest.mark.parametrize(("trouble", "said"), [("kill", "was killed"), ("refuse", "the disk is full")])
def test_a_process_that_ends_is_told(tmp_path: Path, trouble: str, said: str) -> None:
    with pytest.raises(C3Error, match=said):
        LocalExecutor(["cpu", "cpu:1"]).run(Squares(tmp_path, trouble), range(8), lambda *_: None)
