"""Paths and names that are checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from c3tools.errors import C3Error
from c3tools.io.locations import is_url, location


def local_path(text: str | Path) -> Path:
    """Parse a path on this machine.

    Raises:
        C3Error: for a URL, which would otherwise be taken for the name of a folder.
    """
    if is_url(text):
        raise C3Error(
            f"{text} is a URL, but a path on this machine is needed here.",
            remedy="Use a local folder, and copy it to the URL afterwards.",
        )
    return Path(text)


def output_file(text: str | Path) -> Path:
    """Parse the path or URL of a file to write, before any work is done.

    Raises:
        C3Error: if its folder on this machine is missing or cannot be written to, or if the path is a folder.
    """
    path = location(text)
    if isinstance(path, Path):
        folder, reason = path.parent, ""
        if not folder.is_dir():
            reason = f"{folder} is a file" if folder.exists() else f"the folder {folder} does not exist"
        elif path.is_dir():
            reason = "it is a folder"
        elif not os.access(path if path.exists() else folder, os.W_OK):
            reason = "permission denied"
        if reason:
            raise C3Error(f"{path} cannot be written: {reason}.", remedy="Give a file in a folder that can be written.")
    return path


def json_destination(text: str) -> str:
    """Parse what follows `--json`: ``-``, or a path or URL as `output_file` takes it."""
    if text != "-":
        output_file(text)
    return text


def extra_output(given: Path | None, default: str, json: str | None) -> Path | None:
    """Return the file to write in addition to printing: ``given``, else ``default``, or None if `--json` is used."""
    return given if given is not None or json else output_file(default)


def named_files(items: Sequence[str]) -> dict[str, Path]:
    """Read ``--other NAME=FILE`` options as a mapping.

    Raises:
        C3Error: if an item has another form.
    """
    files = dict(item.partition("=")[::2] for item in items)
    for name, path in files.items():
        if not name.isidentifier() or not path:
            raise C3Error(f"--other {name} is not of the form NAME=FILE.", remedy="For example: --other audio=a.npy")
    return {name: Path(path) for name, path in files.items()}


def comma_separated(text: str | None) -> list[str] | None:
    """Return the names in ``text``, which has commas between them; None for None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
