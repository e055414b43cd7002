"""A listener to operations on files, which keeps what a crash before each of them would leave, or lets one fail."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

Tree = dict[str, bytes | None]  # content by path relative to the folder; None for a folder
VARIANTS = ("kept", "torn", "empty", "lost")
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}
_LISTINGS = {"os.listdir", "os.scandir"}
_INPUTS = "/photos/"  # one that cannot be read is left out and listed
END = "the end"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NEVER = -1  # the number of no operation
IGNORED = (".lock",)  # of the operating system: it ends with its process


@dataclass(frozen=True)
class State:
    """What a crash may leave.

    Attributes:
        before: the operation that did not happen any more, or `END`.
        variant: a value of `VARIANTS`.
        tree: all files.
    """

    before: str
    variant: str
    tree: Tree


@lru_cache(4096)  # most contents are in many states
def digest_of(content: bytes) -> str:
    """Return the SHA-256 of a content."""
    return hashlib.sha256(content).hexdigest()


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
            os.utime(path, (1, 1))  # inputs are not newer than what was made from them


@dataclass
class Recorder:
    """A listener to the operations below a folder.

    Attributes:
        folder: what is watched.
        fail_at: number of the operation that fails, from 0, `NEVER` to count only; None to keep states.
        error: errno of the failure.
        operations: what happened.
        states: what a crash could leave, each once.
        sizes: of all files that were there at some time, bytes.
    """

    folder: Path
    fail_at: int | None = None
    error: int = 0
    operations: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    sizes: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._synced: set[str] = set()  # digests of contents that fsync has put on the disk
        self._removed: Tree = {}  # names that went since the last fsync of their folder
        self._known: Tree = {}
        self._created: set[str] = set()  # names that came since the last fsync of their folder
        self._seen: set[str] = set()
        self._renamed: tuple[str, str] | None = None  # the last rename: what is in a folder goes with it
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
                if event == "os.rename" and len(names) == 2:
                    self._rename(*names)
            elif number == self.fail_at:
                raise OSError(self.error, os.strerror(self.error), str(self.folder / names[0]))
        finally:
            self._busy.inside = False

    def _rename(self, old: str, new: str) -> None:
        self._renamed = old, new
        content = self._known.get(old)
        if content is not None and old not in self._created and old not in self._removed:
            self._synced.add(digest_of(content))  # was on the disk before the run, and is under its new name

    def end(self) -> None:
        """Keep the states that a crash after the last operation leaves."""
        self._seen.clear()
        self._keep(END)

    def sync(self, path: Path) -> None:
        """Note what an fsync has put on the disk."""
        name = self._inside(path)
        if name is None and path != self.folder:
            return
        if path.is_dir():
            prefix = "" if name is None else f"{name}/"
            self._look()
            own = tuple(f"{entry}/" for entry in self._removed if _is_directly_in(entry, prefix))
            self._removed = {
                entry: content for entry, content in self._removed.items() if not f"{entry}/".startswith(own)
            }
            self._created = {entry for entry in self._created if not _is_directly_in(entry, prefix)}
        else:
            self._synced.add(digest_of(path.read_bytes()))

    def _paths(self, event: str, arguments: tuple[Any, ...]) -> list[Any]:
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & _WRITING) or bool(set(mode or "") & set("wax+"))
            if not isinstance(path, str | bytes | os.PathLike):
                return []
            counts = writes or (self.fail_at is not None and _INPUTS not in os.fsdecode(path))
            return [path] if counts else []
        if event in _CHANGES or event == "fsync" or (event in _LISTINGS and self.fail_at is not None):
            return [value for value in arguments[:2] if isinstance(value, str | bytes | os.PathLike)]
        return []

    def _inside(self, value: Any) -> str | None:
        path = os.path.join(os.getcwd(), os.fsdecode(value))  # noqa: PTH109, PTH118 - no events of their own
        root = f"{self.folder}{os.sep}"
        if not path.startswith(root) or os.path.basename(path) in IGNORED:  # noqa: PTH119
            return None
        return path[len(root) :] or None

    def _look(self) -> Tree:
        tree = read_tree(self.folder)
        # the same content is kept once, however many states have it
        tree |= {name: content for name, content in self._known.items() if name in tree and tree[name] == content}
        for name, content in self._known.items():
            if name not in tree or tree[name] != content:
                self._removed.setdefault(name, content)
        created = tree.keys() - self._known.keys()
        if self._renamed is not None:
            old, new = self._renamed
            within = {name for name in created if name.startswith(f"{new}/")}
            created -= {name for name in within if old + name[len(new) :] not in self._created}
            self._renamed = None
        self._created |= created
        self._known = tree
        return tree

    def _keep(self, before: str) -> None:
        tree = self._look()
        self.sizes |= {len(content) for content in tree.values() if content is not None}
        loose = [name for name, content in tree.items() if content and digest_of(content) not in self._synced]
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
        back = left | self._removed
        variants["lost"] = {name: content for name, content in back.items() if _has_folder(name, back)}
        for variant, state in variants.items():
            contents = {name: "" if content is None else digest_of(content) for name, content in state.items()}
            digest = digest_of(repr(sorted(contents.items())).encode())
            if digest not in self._seen:
                self._seen.add(digest)
                self.states.append(State(before, variant, state))


def _is_directly_in(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and "/" not in name[len(prefix) :]


def _has_folder(name: str, tree: Tree) -> bool:
    return all(str(parent) in tree for parent in list(Path(name).parents)[:-1])


_listening: Recorder | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening is not None and (event == "open" or event in _CHANGES or event in _LISTINGS):
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
        path = Path(f"/proc/self/fd/{fd if isinstance(fd, int) else fd.fileno()}").readlink()
        if _listening is not None:
            _listening.hear("fsync", (path,))
        fsync(fd)
        if _listening is not None:
            _listening.sync(path)

    recorder._known = read_tree(recorder.folder)
    os.fsync, _listening = listened, recorder
    try:
        yield recorder
    finally:
        os.fsync, _listening = fsync, None
