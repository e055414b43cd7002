"""Patterns in paths and URLs: ``{000..012}``, ``{a,b}``, ``*``."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from ..errors import CorpusError
from .locations import is_url, location, retrying

_MOST_NAMES = 100_000
_MOST_BRACES = 20
_GLOB = re.compile(r"[*?\[]")


def expand(text: str | Path) -> list[Path]:
    """Return the locations that a path or pattern stands for: braces are expanded, ``*`` is looked up.

    A pattern that is the name of an existing file is taken literally.

    Raises:
        CorpusError: if a pattern with ``*``, ``?`` or ``[`` matches nothing, or cannot be looked up.
    """
    if isinstance(text, Path) or (not is_url(text) and Path(text).exists()):
        return [location(text)]
    found: list[Path] = []
    for name in expand_braces(text):
        found += _matches(name) if _GLOB.search(name) and not _is_web(name) else [location(name)]
    return found


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{000..012}`` (keeping zeros, up or down) and ``{a,b}``, also nested, as a shell does.

    Raises:
        CorpusError: if there are more than 100,000 names.
    """
    start = pattern.find("{")
    end = _matching_brace(pattern, start)
    if end is None:
        return [pattern]
    if pattern.count("{") > _MOST_BRACES:
        raise CorpusError(f"{pattern[:200]} has more than {_MOST_BRACES} pairs of braces.")
    choices = _choices(pattern[start + 1 : end], pattern)
    rest = expand_braces(pattern[end + 1 :])
    if len(choices) * len(rest) > _MOST_NAMES:
        raise CorpusError(f"{pattern[:200]} stands for more than {_MOST_NAMES:,} names.")
    return [pattern[:start] + choice + after for choice in choices for after in rest]


def _choices(inside: str, pattern: str) -> list[str]:
    """Return the alternatives in a pair of braces; the braces themselves if they are no pattern."""
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) >= _MOST_NAMES:
            raise CorpusError(f"{pattern[:200]} stands for more than {_MOST_NAMES:,} names.")
        width = max(map(len, numbers.groups())) if any(text.startswith("0") for text in numbers.groups()) else 0
        step = 1 if last >= first else -1
        return [str(number).zfill(width) for number in range(first, last + step, step)]
    parts, depth = [""], 0
    for letter in inside:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if len(parts) == 1:
        return [f"{{{name}}}" for name in expand_braces(inside)]
    return [name for part in parts for name in expand_braces(part)]


def _matching_brace(pattern: str, start: int) -> int | None:
    depth = 0
    for position in range(max(start, 0), len(pattern)) if start >= 0 else ():
        depth += (pattern[position] == "{") - (pattern[position] == "}")
        if depth == 0:
            return position
    return None


def _matches(pattern: str) -> list[Path]:
    if is_url(pattern):
        filesystem = location(pattern).fs  # type: ignore[attr-defined]
        names = retrying(lambda: filesystem.glob(pattern), pattern)
        found = [location(filesystem.unstrip_protocol(name)) for name in sorted(names)]
    else:
        found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - absolute patterns
    if not found:
        raise CorpusError(f"Nothing matches {pattern}.", remedy="Check the path before the first *, ? or [.")
    return found


def _is_web(name: str) -> bool:
    """Return whether ``*`` and ``?`` belong to the address: web servers list no files, so there are no patterns."""
    return name.lower().startswith(("http://", "https://"))
