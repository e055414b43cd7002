"""Stores: faults at every operation on files, and damage of every kind, all found."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path

from c3tools.errors import C3Error
from tests.crashes import fail_at, operations
from tests.store.test_verify import find_corruptions, find_losses
from tests.store.test_writing import everything, prepare
from tests.stores import whole_store

from .conftest import Budget

ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES]
COMMANDS = ["embed", "update", "import", "export", "repair", "train-decoder"]


def test_damage(budget: Budget, tmp_path: Path) -> None:
    """Single bytes that are changed, and files that are removed: at least sixty and two hundred."""
    path, rounds = whole_store(tmp_path / "s").path, 0
    while budget.is_left():
        find_corruptions(path, 60, budget.random)
        find_losses(path, 200, budget.random)
        rounds += 1
    budget.report(
        f"{60 * rounds} changed bytes and {200 * rounds} random sets of missing files, all found"
    )


def test_faults(budget: Budget, tmp_path: Path) -> None:
    """Full disk, errors and refusals at every operation on files: one clear error, and the same
    command ends well."""
    folder, cases, expected = tmp_path / "work", [], {}
    for command in COMMANDS:
        count = len(operations(folder, prepare(folder, command)))
        expected[command] = everything(folder)
        cases += [(command, operation, error) for operation in range(count) for error in ERRORS]
    budget.random.shuffle(cases)
    done, told = Counter[str](), 0
    while cases and budget.is_left():
        command, operation, error = cases.pop()
        run = prepare(folder, command)
        try:
            fail_at(folder, operation, error, run)
        except (C3Error, OSError):  # which the command prints as one line
            told += 1
        run()
        assert everything(folder) == expected[command], (command, operation, errno.errorcode[error])
        done[command] += 1
    counts = ", ".join(f"{command} {count}" for command, count in sorted(done.items()))
    budget.report(f"{done.total()} faults ({counts}), {told} of them an error, {len(cases)} left")
