"""Crashes and faults at every operation on files.

A command runs once in this process while Python's audit events tell of each operation that changes a folder. Before
each one, the whole folder is kept: that is what a crash at this moment leaves. Where the disk had not been told to keep
something (fsync), a power cut may leave less, so that each moment gives up to four states. Every state is then put in
place, the same command runs, and what it leaves is compared with what it leaves without a crash.

In the second part the n-th operation fails, for each n, by an error of the operating system.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tree = dict[str, bytes | None]  # content by path relative to the folder; None for a folder
VARIANTS = ("kept", "torn", "empty", "lost")
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
IGNORED = (".lock",)  # of the operating system: it ends with its process


@dataclass(frozen=True)
class State:
    """What a crash may leave.

    Attributes:
        before: the operation that did not happen any more.
        variant: a value of `VARIANTS`.
        tree: all files.
    """

    before: str
    variant: str
    tree: Tree


def read_tree(folder: Path) -> Tree:
    """Return all files and folders, without locks."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        if path.name in IGNORED:
            continue
        try:
            found[str(path.relative_to(folder))] = None if path.is_dir() else path.read_bytes()
        except FileNotFoundError:  # removed by another thread meanwhile
            continue
    return found


def write_tree(folder: Path, tree: Mapping[str, bytes | None]) -> None:
    """Make the folder hold these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in tree.items():
        path = folder / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@dataclass
class Recorder:
    """A listener to the operations below a folder.

    Attributes:
        folder: what is watched.
        fail_at: number of the operation that fails, from 0; None for none.
        error: errno of the failure.
        operations: what happened.
        states: what a crash could leave, each once.
    """

    folder: Path
    fail_at: int | None = None
    error: int = 0
    operations: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    failed: bool = False

    def __post_init__(self) -> None:
        self._synced: set[str] = set()  # digests of contents that fsync has put on the disk
        self._removed: dict[str, bytes] = {}  # names that went since the last fsync of their folder
        self._known: Tree = {}
        self._created: set[str] = set()  # names that came since the last fsync of their folder
        self._seen: set[str] = set()
        self._busy = threading.local()

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event: keep the state before it, or let it fail."""
        if getattr(self._busy, "inside", False):
            return
        paths = [self._inside(value) for value in self._paths(event, arguments)]
        names = [name for name in paths if name is not None]
        if not names:
            return
        self._busy.inside = True
        try:
            number = len(self.operations)
            self.operations.append(f"{event} {' '.join(names)}")
            if self.fail_at is None:
                self._keep(self.operations[-1])
            elif number == self.fail_at:
                self.failed = True
                raise OSError(self.error, os.strerror(self.error), str(self.folder / names[0]))
        finally:
            self._busy.inside = False

    def sync(self, descriptor: int) -> None:
        """Note what an fsync has put on the disk."""
        try:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
        except OSError:
            return
        name = self._inside(path)
        if name is None and path != self.folder:
            return
        if path.is_dir():
            prefix = "" if name is None else f"{name}/"
            self._look()
            own = {entry for entry in self._removed if _is_directly_in(entry, prefix)}
            self._removed = {entry: content for entry, content in self._removed.items() if entry not in own}
            self._created = {entry for entry in self._created if not _is_directly_in(entry, prefix)}
        else:
            self._synced.add(_digest(path.read_bytes()))

    def _paths(self, event: str, arguments: tuple[Any, ...]) -> list[Any]:
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & _WRITING) or bool(set(mode or "") & set("wax+"))
            return [path] if writes and isinstance(path, str | bytes | os.PathLike) else []
        if event in _CHANGES:
            return [value for value in arguments[:2] if isinstance(value, str | bytes | os.PathLike)]
        return []

    def _inside(self, value: Any) -> str | None:
        path = os.path.join(os.getcwd(), os.fsdecode(value))  # noqa: PTH109, PTH118 - no events of their own
        root = f"{self.folder}{os.sep}"
        if not path.startswith(root) or os.path.basename(path) in IGNORED:  # noqa: PTH119
            return None
        return path[len(root) :]

    def _look(self) -> Tree:
        tree = read_tree(self.folder)
        for name, content in self._known.items():
            if content is not None and tree.get(name) != content:
                self._removed.setdefault(name, content)
        self._created |= tree.keys() - self._known.keys()
        self._known = tree
        return tree

    def _keep(self, before: str) -> None:
        tree = self._look()
        loose = [name for name, content in tree.items() if content and _digest(content) not in self._synced]
        loose = [name for name in loose if name in self._created or name in self._removed]
        variants: dict[str, Tree] = {"kept": tree}
        variants["torn"] = tree | {name: (tree[name] or b"")[: len(tree[name] or b"") // 2] for name in loose}
        variants["empty"] = tree | dict.fromkeys(loose, b"")
        gone = {name for name in self._created if name not in self._removed}
        left = {
            name: content
            for name, content in tree.items()
            if not any(name == lost or name.startswith(f"{lost}/") for lost in gone)
        }
        variants["lost"] = left | {name: content for name, content in self._removed.items() if _has_folder(name, left)}
        for variant, state in variants.items():
            digest = _digest(repr(sorted(state.items(), key=lambda item: item[0])).encode())
            if digest not in self._seen:
                self._seen.add(digest)
                self.states.append(State(before, variant, state))


def _is_directly_in(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and "/" not in name[len(prefix) :]


def _has_folder(name: str, tree: Tree) -> bool:
    return all(str(parent) in tree for parent in list(Path(name).parents)[:-1])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


_listening: Recorder | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening is not None and (event == "open" or event in _CHANGES):
        _listening.hear(event, arguments)


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Let the recorder hear all operations in the block. An audit hook stays for the life of the process."""
    global _listening, _installed  # noqa: PLW0603
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    fsync = os.fsync

    def listened(fd: Any) -> None:
        fsync(fd)
        if _listening is not None:
            _listening.sync(fd if isinstance(fd, int) else fd.fileno())

    recorder._known = read_tree(recorder.folder)
    os.fsync, _listening = listened, recorder
    try:
        yield recorder
    finally:
        os.fsync, _listening = fsync, None


@dataclass(frozen=True)
class Scenario:
    """A command that is to survive.

    Attributes:
        name: of the command.
        prepare: makes the inputs in the folder.
        run: the command; ends well or raises.
        result: what counts as the result, by name, to be compared.
        finished: errors that refuse a folder in which the result is finished.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    result: Callable[[Path], Mapping[str, bytes]]
    finished: tuple[type[Exception], ...] = ()


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
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    scenario.prepare(folder)
    with recording(Recorder(folder)) as recorder:
        scenario.run(folder)
    expected = dict(scenario.result(folder))
    assert expected, "a scenario without a result shows nothing"
    problems = []
    states = choose(recorder.states)
    for state in states:
        write_tree(folder, state.tree)
        problems += _again(scenario, folder, expected, f"crash before {state.before} ({state.variant})")
    return Outcome(len(recorder.operations), len(states), problems)


def fail_everywhere(
    scenario: Scenario,
    folder: Path,
    error: int,
    expected_errors: tuple[type[BaseException], ...],
    choose: Callable[[list[int]], list[int]] = lambda numbers: numbers,
) -> Outcome:
    """Let each operation fail in turn, look for one clear error, run again, and compare."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    scenario.prepare(folder)
    start = read_tree(folder)
    with recording(Recorder(folder)) as recorder:
        scenario.run(folder)
    expected, points = dict(scenario.result(folder)), len(recorder.operations)
    problems, numbers = [], choose(list(range(points)))
    for number in numbers:
        write_tree(folder, start)
        with recording(Recorder(folder, number, error)) as failing:
            try:
                scenario.run(folder)
            except expected_errors:
                pass
            except Exception as found:
                problems.append(f"{failing.operations[-1]}: {type(found).__name__}: {found}"[:300])
        problems += _again(scenario, folder, expected, f"{os.strerror(error)} at {recorder.operations[number]}")
    return Outcome(points, len(numbers), problems)


def _again(scenario: Scenario, folder: Path, expected: Mapping[str, bytes], what: str) -> list[str]:
    try:
        scenario.run(folder)
    except Exception as error:
        if isinstance(error, scenario.finished) and dict(scenario.result(folder)) == expected:
            return []  # it was finished, and a new run wants a new folder
        return [f"{what}: the same command fails with {type(error).__name__}: {error}"[:400]]
    found = dict(scenario.result(folder))
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    leftovers = [name for name in read_tree(folder) if name.endswith(".tmp") or ".tmp/" in name]
    problems = [f"{what}: {', '.join(differing[:3])} differ"] if differing else []
    return problems + ([f"{what}: {leftovers[0]} is left"] if leftovers else [])
