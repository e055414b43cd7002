"""One run: change a file, read, look at what happened."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from c3tools.errors import C3Error

from .mutations import Edit, edits, random_edits
from .target import Target

LONGEST = 5.0
MOST_MEMORY = 1 << 30
_WAITING = 20
_VARIANTS = 6  # ways in which a file is changed, taken in turn; with the later ones checksums agree
_MEMORY_FOLDER = Path("/dev/shm")


class HangError(BaseException):
    """A run that did not end in time; no handler of exceptions may take it for its own."""


@dataclass
class Outcome:
    """What the runs of one target came to.

    Attributes:
        runs: how many there were.
        refused: how many ended in a C3Error.
        slowest: seconds of processor time of the longest.
        problems: description → an example of it, the name of the file and its content: the runs that ended otherwise.
        counts: how often each of them came.
    """

    runs: int = 0
    refused: int = 0
    slowest: float = 0.0
    problems: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


@contextlib.contextmanager
def workspace(target: Target) -> Iterator[Path]:
    """A folder in memory with the target's valid files."""
    where = _MEMORY_FOLDER if _MEMORY_FOLDER.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="c3-fuzz-", dir=where) as name:
        folder = Path(name)
        target.make(folder)
        target.read(folder)
        yield folder


def run_target(target: Target, runs: int, start: int = 0) -> Outcome:
    """Run a target so many times, with changes drawn by chance from the seed ``start``."""
    with workspace(target) as folder:
        runner = Runner(target, folder)
        runner.run(runs, random.Random(start))
    return runner.outcome


def find_problem(target: Target, runs: int, start: int = 0) -> Outcome:
    """Run a target so many times; the first problem is raised, shrunk by hypothesis."""
    with workspace(target) as folder:
        runner = Runner(target, folder)

        def one(file: int, variant: int, changes: list[Edit]) -> None:
            try:
                runner.change(file, variant, changes)
                runner.read()
            finally:
                runner.restore()

        options = settings(
            max_examples=runs,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        drawn = given(st.integers(0, len(runner.names) - 1), st.integers(0, _VARIANTS - 1), edits)(one)
        seed(start)(options(drawn))()
    return runner.outcome


class Runner:
    """Changes a file of a target, reads it, and puts the valid one back.

    Args:
        target: the reader and its files.
        folder: a `workspace` of it.

    Attributes:
        names: of the files that are changed.
        outcome: what its runs came to.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.names, self.outcome = sorted(target.vary), Outcome()
        self._target, self._folder = target, folder
        self._files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self._changed: list[Path] = []

    def run(self, runs: int, draw: random.Random) -> None:
        """Run so many times, and count what is not survived."""
        for _ in range(runs):
            file, variant = draw.randrange(len(self.names)), draw.randrange(_VARIANTS)
            content = self.change(file, variant, random_edits(draw))
            try:
                self.read()
            except (Exception, HangError) as error:
                problem = _describe(error)
                self.outcome.counts[problem] += 1
                self.outcome.problems.setdefault(problem, (self.names[file], content))
            finally:
                self.restore()
        self.require_unchanged()

    def change(self, file: int, variant: int, changes: list[Edit]) -> bytes:
        """Write the changed file, and in some variants make checksums agree with it; return its content."""
        name = self.names[file]
        path, mutations = self._folder / name, self._target.vary[name]
        content = mutations[variant % len(mutations)](self._files[path], changes)
        self._changed = [path]
        path.write_bytes(content)
        if self._target.agree is not None and variant >= _VARIANTS // 3:
            self._changed = list(self._files)
            # a file that cannot even be read for its checksum is left as it is
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
                self._target.agree(self._folder)
        return content

    def read(self) -> None:
        """Read, within the limits of time and memory; a C3Error is a refusal."""
        _watched(lambda: self._target.read(self._folder), self.outcome)

    def restore(self) -> None:
        """Put the valid files back."""
        for path in self._changed:
            path.write_bytes(self._files[path])

    def require_unchanged(self) -> None:
        """Raise an AssertionError if a reader has written: later runs would not read what they seem to."""
        there = {path: path.read_bytes() for path in self._folder.rglob("*") if path.is_file()}
        assert there == self._files, f"{self._target.name} changes files"


def _watched(read: Callable[[], object], outcome: Outcome) -> None:
    # seconds of this process, so that a busy machine is not taken for a hang; and of the clock, for one that waits
    before = {number: signal.signal(number, _hang) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, LONGEST, 1.0)
    signal.setitimer(signal.ITIMER_REAL, _WAITING * LONGEST, 1.0)
    begin, peak = time.process_time(), peak_memory()
    outcome.runs += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except C3Error as error:
        outcome.refused += 1
        str(error).encode("utf-8", "replace")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        took = time.process_time() - begin
        outcome.slowest = max(outcome.slowest, took)
    if took > LONGEST:
        raise HangError(f"took {took:.1f} s")
    if peak_memory() - peak > MOST_MEMORY:
        raise MemoryError(f"the peak of the process grew by {(peak_memory() - peak) / 2**20:,.0f} MiB")


def peak_memory() -> int:
    """Largest resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _hang(number: int, frame: FrameType | None) -> None:
    raise HangError(f"no end after {LONGEST:g} s")


def _describe(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "c3tools" in f.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return json.dumps(f"{type(error).__name__} at {place}: {str(error)[:100]}", ensure_ascii=True)
