"""New stores that appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError, UnreachableError
from ..io.locations import is_url
from .lease import LOCK_FILE
from .lock import locked


def new_folder(destination: str | Path) -> Path:
    """Where a new store goes: a folder on this machine.

    Raises:
        StoreError: for a URL. An object store renames nothing, so half of a new store could be seen there.
    """
    if is_url(destination):
        raise StoreError(
            f"A new store is built in a folder on this machine, not at {destination}: there it could not appear whole "
            "or not at all.",
            remedy="Name a folder, and copy it when it is there, for example: aws s3 cp --recursive FOLDER s3://…",
        )
    return Path(destination)


@contextmanager
def new_store(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` to build a store in; renamed to ``path`` when the block ends well.

    What a killed run left of the same is cleared away first.

    Raises:
        StoreError: if something is at ``path``, another run is building it, or it cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreError(f"There is something at {path} already.", remedy="Name a new folder for the store.")
    building = path.absolute().parent / f".{path.absolute().name}.unfinished"
    try:
        with locked(building):
            for left in building.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != LOCK_FILE:
                    left.unlink()
            try:
                yield building
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
            (building / LOCK_FILE).unlink()
            building.replace(path)
    except UnreachableError:  # what it is built from is elsewhere
        raise
    except OSError as error:
        raise StoreError(
            f"The store {path} cannot be written ({error.strerror or error}).",
            remedy="Nothing was left behind. Make room, or mend the disk, then run the same command again.",
        ) from error
