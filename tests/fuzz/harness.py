"""One run: change a file, read, look at what happened."""

from __future__ import annotations

import contextlib
import json
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

from .mutations import edits
from .targets import Target

LONGEST = 5.0
MOST_MEMORY = 1 << 30
_WAITING = 20
_CHUNK = 500  # hypothesis remembers what it drew; a new run forgets it
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
        problems: description → an example of it: the runs that ended otherwise.
        counts: how often each of them came.
    """

    runs: int = 0
    refused: int = 0
    slowest: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)
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


def run_target(target: Target, runs: int, start: int = 0, *, raising: bool = False) -> Outcome:
    """Run a target so many times; ``raising`` stops at the first problem, shrunk by hypothesis."""
    outcome = Outcome()
    phases = (Phase.generate, Phase.shrink) if raising else (Phase.generate,)
    names = sorted(target.vary)
    with workspace(target) as folder:
        files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

        def one(file: int, variant: int, changes: list[tuple[str, int, int]]) -> None:
            path = folder / names[file]
            mutations = target.vary[names[file]]
            content = mutations[variant % len(mutations)](files[path], changes)
            path.write_bytes(content)
            if target.agree is not None and variant >= 2:
                # a file that cannot even be read for its checksum is left as it is
                with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
                    target.agree(folder)
            try:
                _watched(lambda: target.read(folder), outcome)
            except (Exception, HangError) as error:
                if raising:
                    raise
                problem = _describe(error)
                outcome.counts[problem] += 1
                outcome.problems.setdefault(problem, f"{names[file]}: {content[:300]!r}")
            finally:
                for changed, original in files.items():
                    changed.write_bytes(original)

        for done in range(0, runs, _CHUNK):
            options = settings(
                max_examples=min(_CHUNK, runs - done),
                database=None,
                deadline=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            )
            drawn = given(st.integers(0, len(names) - 1), st.integers(0, 5), edits)(one)
            seed(start + done)(options(drawn))()
    return outcome


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
