"""Patterns in paths and URLs: ``{000..012}``, ``{a,b}``, ``*``."""

from __future__ import annotations

import glob
import os
import re
from functools import partial
from pathlib import Path

import bracex

from ..errors import CorpusError
from .locations import is_url, location, retrying

_MOST_NAMES = 100_000
_GLOB = re.compile(r"[*?\[]")


def expand(text: str | Path) -> list[Path]:
    """Return the locations that a path or pattern stands for: braces are expanded, ``*`` is looked up.

    A pattern that is the name of an existing file is taken literally.

    Raises:
        CorpusError: if a pattern with ``*``, ``?`` or ``[`` matches nothing, cannot be looked up, or braces stand for
            more than 100,000 names.
    """
    if isinstance(text, Path) or (not is_url(text) and os.path.exists(text)):  # noqa: PTH110 - of any length
        return [location(text)]
    try:
        names = bracex.expand(text.replace("\\", "\\\\"), limit=_MOST_NAMES)
    except bracex.ExpansionLimitException:
        raise CorpusError(f"{text[:200]} stands for more than {_MOST_NAMES:,} names.") from None
    found: list[Path] = []
    for name in names:
        is_web = name.lower().startswith(("http://", "https://"))  # which list no files: * and ? are of the address
        if is_web or not _GLOB.search(name):
            found.append(location(name))
            continue
        if is_url(name):
            filesystem = location(name).fs  # type: ignore[attr-defined]
            listed = retrying(partial(filesystem.glob, name), name)
            matches = [location(filesystem.unstrip_protocol(match)) for match in sorted(listed)]
        else:
            matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207 - absolute ones
        if not matches:
            raise CorpusError(f"Nothing matches {name}.", remedy="Check the path before the first *, ? or [.")
        found += matches
    return found
