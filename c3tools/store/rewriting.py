"""Files that replace others in a store, either all of them or none.

    .rewriting/image/part-00000.parquet   what the file of this name will be
    .rewriting/list.json                  [name, is_removed] of each; once it is there, the files
                                          are put in place

A run that is killed before the list is written leaves the store as it was. One that is killed
afterwards is finished by the next writer; readers refuse the store until then.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import IncompleteStoreError
from ..io.files import has_same_content, make_folder, read_json, sync_folder, write_json_atomically
from ..io.locations import kind_of, move, names_below, remove

REWRITING = ".rewriting"
REWRITING_LIST = f"{REWRITING}/list.json"


def require_not_rewritten(store: Path) -> None:
    """Refuse a store whose files are being put in place.

    Raises:
        IncompleteStoreError: with what to do.
    """
    if kind_of(store / REWRITING_LIST):
        raise IncompleteStoreError(
            f"The store {store} is being rewritten, or its rewriting was interrupted.",
            remedy="Wait for the other run, or run the same command again to finish it.",
        )


class Rewriting:
    """The files of one store that are to take the place of others.

    Args:
        store: its folder or URL.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self._folder = store / REWRITING
        self._removed: set[str] = set()

    @property
    def is_listed(self) -> bool:
        """Return whether files are being put in place, by this run or by one that was killed."""
        return kind_of(self.store / REWRITING_LIST) == "file"

    def file(self, name: str) -> Path:
        """Return where to write what the file ``name`` of the store will be."""
        return self._folder / name

    def remove(self, name: str) -> None:
        """Let a file be removed, unless another is written to take its place."""
        self._removed.add(name)

    def names_after(self, names: Iterable[str]) -> list[str]:
        """Return what the names of a store's files will be, given those before."""
        return sorted((set(names) - self._removed) | set(names_below(self._folder)))

    def changed_names(self) -> set[str]:
        """Return the names of the files that are to be replaced, written or removed."""
        return set(names_below(self._folder)) | self._removed

    def put_in_place(self) -> list[str]:
        """Give the files their names, and return these, with those of the removed files.

        They are listed first, so that a run that is killed is finished by the next one.
        """
        if not self.is_listed:
            staged = set(names_below(self._folder))
            names = self.changed_names()
            if not names:
                return []
            # captions before their images: a crash could otherwise restore captions without their
            # image
            ordered = sorted(names, key=lambda name: (not name.startswith("text/"), name))
            content = [[name, name not in staged] for name in ordered]
            write_json_atomically(self.store / REWRITING_LIST, content)
        listed = read_json(self.store / REWRITING_LIST)
        for name, is_removed in listed:
            if is_removed:
                remove(self.store / name)
            elif kind_of(self.file(name)) == "file":
                target = self.store / name
                if isinstance(target, Path):
                    make_folder(target.parent)
                if not has_same_content(self.file(name), target):
                    move(self.file(name), target)
            if kind_of((self.store / name).parent) == "folder":
                sync_folder((self.store / name).parent)
        return [name for name, _ in listed]

    def discard(self) -> None:
        """Remove the files and the list."""
        if isinstance(self._folder, Path):
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for name in names_below(self._folder):
            remove(self.file(name))
