"""Paths and names that are checked before any work is done."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import typer

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
    if not isinstance(path, Path):
        return path
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise C3Error(
            f"{path} cannot be written: {folder} is a file.", remedy="Choose a path whose parent is a folder."
        )
    if not folder.is_dir():
        remedy = f"Create it with: mkdir -p {shlex.quote(str(folder))}"
        raise C3Error(f"{path} cannot be written: the folder {folder} does not exist.", remedy=remedy)
    if path.is_dir():
        raise C3Error(f"{path} cannot be written: it is a folder.", remedy="Give the path of a file in this folder.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise C3Error(f"{path} cannot be written: permission denied.", remedy="Choose a file in another folder.")
    return path


def output_folder(text: str | Path) -> Path:
    """Parse the path or URL of a folder to write into. It is created if it does not exist; its parent has to exist.

    Raises:
        C3Error: if the parent is missing or cannot be written to, or if the path is a file.
    """
    path = location(text)
    if not isinstance(path, Path) or path.is_dir():
        return path
    if path.exists():
        raise C3Error(f"{path} is a file, but a folder is needed.", remedy="Choose another path.")
    return output_file(path)


def extra_output(given: Path | None, default: str, json: str | None) -> Path | None:
    """Return the file to write in addition to printing: ``given``, else ``default``, or None if `--json` is used.

    Raises:
        C3Error: as `output_file`.
    """
    if given is not None:
        return given
    return None if json else output_file(default)


def json_destination(text: str) -> str:
    """Parse what follows `--json`: ``-``, or a path or URL as `output_file` takes it."""
    if text != "-":
        output_file(text)
    return text


def typed_option(context: typer.Context, *names: str) -> str | None:
    """Return the first of these options that was typed; defaults and values from the environment do not count."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            return f"--{name.replace('_', '-')}"
    return None


def named_files(items: Sequence[str]) -> dict[str, Path]:
    """Read ``--other NAME=FILE`` options as a mapping.

    Raises:
        C3Error: if an item has another form.
    """
    files = {}
    for item in items:
        name, _, path = item.partition("=")
        if not name.isidentifier() or not path:
            raise C3Error(
                f"--other {item} is not of the form NAME=FILE.", remedy="For example: --other audio=audio.npy"
            )
        files[name] = Path(path)
    return files


def comma_separated(text: str | None) -> list[str] | None:
    """Return the names in ``text``, which has commas between them; None for None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
