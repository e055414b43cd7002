"""Crashes and faults at every operation on files.

A command runs once in this process while Python's audit events tell of each operation that changes a folder. Before
each one, the whole folder is kept: that is what a crash at this moment leaves. Where the disk had not been told to keep
something (fsync), a power cut may leave less, so that each moment gives up to four states. Every state is then put in
place, the same command runs, and what it leaves is compared with what it leaves without a crash. After the last
operation the result has to be there at once, whatever a power cut takes.

In the second part the n-th operation fails, for each n, by an error of the operating system; files that are opened for
reading and folders that are listed count as operations there. In the third no file may become larger than a limit, so
that writes end in the middle, those of C libraries too.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from .recorder import END, NEVER, Recorder, State, read_tree, recording, write_tree


@dataclass(frozen=True)
class Scenario:
    """A command that is to survive.

    Attributes:
        name: of the command.
        prepare: makes the inputs in the folder.
        run: the command; ends well or raises.
        result: what counts as the result, by name, to be compared.
        finished: errors that refuse a folder in which the result is finished.
        durable: whether a power cut may take nothing once the command has ended.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    result: Callable[[Path], Mapping[str, bytes]]
    finished: tuple[type[Exception], ...] = ()
    durable: bool = True


@dataclass
class Outcome:
    """What came of the crashes or the faults of one scenario.

    Attributes:
        points: operations of the command.
        tried: states or faults that were tried.
        problems: those that were not survived, in words.
    """

    points: int
    tried: int
    problems: list[str]


def crash_everywhere(
    scenario: Scenario, folder: Path, choose: Callable[[list[State]], list[State]] = lambda states: states
) -> Outcome:
    """Crash a command at every operation, run it again, and compare with the run without a crash."""
    folder = prepared(scenario, folder)
    recorder, clean = record(scenario, Recorder(folder))
    problems = []
    states = choose(recorder.states)
    for state in states:
        write_tree(folder, state.tree)
        what = f"crash before {state.before} ({state.variant})"
        if state.before == END and scenario.durable and (lost := clean.differing(scenario.result(folder))):
            problems.append(f"{what}: {', '.join(lost[:3])} differ although the command had ended")
        problems += runs_again(scenario, folder, clean, what)
    return Outcome(len(recorder.operations), len(states), problems)


def fail_everywhere(
    scenario: Scenario,
    folder: Path,
    error: int,
    expected_errors: tuple[type[BaseException], ...],
    choose: Callable[[list[int]], list[int]] = lambda numbers: numbers,
) -> Outcome:
    """Let each operation fail in turn, look for one clear error, run again, and compare."""
    folder = prepared(scenario, folder)
    start = read_tree(folder)
    recorder, clean = record(scenario, Recorder(folder, fail_at=NEVER))
    problems, numbers = [], choose(list(range(len(recorder.operations))))
    for number in numbers:
        write_tree(folder, start)
        what = f"{os.strerror(error)} at {recorder.operations[number]}"
        with recording(Recorder(folder, number, error)):
            problems += fails_well(scenario, folder, expected_errors, what)
        problems += runs_again(scenario, folder, clean, what)
    return Outcome(len(recorder.operations), len(numbers), problems)


def cut_everywhere(
    scenario: Scenario,
    folder: Path,
    expected_errors: tuple[type[BaseException], ...],
    choose: Callable[[list[int]], list[int]] = lambda limits: limits,
) -> Outcome:
    """Let files become no larger than each size that one of them has, less one, and half of it; then run again."""
    folder = prepared(scenario, folder)
    start = read_tree(folder)
    recorder, clean = record(scenario, Recorder(folder))
    sizes = {size for size in recorder.sizes if size}
    limits = choose(sorted({size - 1 for size in sizes} | {size // 2 for size in sizes}))
    problems = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in limits:
        write_tree(folder, start)
        what = f"files of at most {limit:,} bytes"
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            problems += fails_well(scenario, folder, expected_errors, what)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        problems += runs_again(scenario, folder, clean, what)
    return Outcome(len(recorder.operations), len(limits), problems)


def prepared(scenario: Scenario, folder: Path) -> Path:
    """Return the folder, resolved, with what the command starts from."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    scenario.prepare(folder)
    return folder


def record(scenario: Scenario, recorder: Recorder) -> tuple[Recorder, Clean]:
    """Run the command without a crash or a fault; return what was recorded, and the result."""
    with recording(recorder):
        scenario.run(recorder.folder)
    recorder.end()
    return recorder, Clean.of(scenario, recorder.folder)


@dataclass(frozen=True)
class Clean:
    """What a command leaves when nothing happens.

    Attributes:
        result: by name.
        names: of all files and folders.
    """

    result: Mapping[str, bytes]
    names: Set[str]

    @classmethod
    def of(cls, scenario: Scenario, folder: Path) -> Clean:
        """Read what is there."""
        result = dict(scenario.result(folder))
        assert result, "a scenario without a result shows nothing"
        return cls(result, set(read_tree(folder)))

    def differing(self, found: Mapping[str, bytes]) -> list[str]:
        """Return the names of what is not as it should be."""
        return sorted(n for n in self.result.keys() | found.keys() if self.result.get(n) != found.get(n))


def fails_well(
    scenario: Scenario, folder: Path, expected_errors: tuple[type[BaseException], ...], what: str
) -> list[str]:
    try:
        scenario.run(folder)
    except expected_errors:
        return []  # some faults do no harm, for example in a cache
    except Exception as error:
        return [f"{what}: {type(error).__name__}: {error}"[:400]]
    return []


def runs_again(scenario: Scenario, folder: Path, clean: Clean, what: str) -> list[str]:
    """Run the same command again, and return what is then not as it should be."""
    try:
        scenario.run(folder)
    except Exception as error:
        # one that was finished may be refused, since a new run wants a new folder
        if not isinstance(error, scenario.finished) or clean.differing(scenario.result(folder)):
            return [f"{what}: the same command fails with {type(error).__name__}: {error}"[:400]]
    differing = clean.differing(scenario.result(folder))
    leftovers = sorted(read_tree(folder).keys() - clean.names)
    problems = [f"{what}: {', '.join(differing[:3])} differ"] if differing else []
    return problems + ([f"{what}: {leftovers[0]} is left"] if leftovers else [])
