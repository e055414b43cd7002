"""Arguments of which there may be one or several, and the places of keys in a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import IOBase
from pathlib import Path
from typing import Any, overload


@overload
def as_list(values: None) -> None: ...
@overload
def as_list(values: Any) -> list[Any]: ...
def as_list(values: Any) -> list[Any] | None:
    """Return one path, name, text or image as a list of one, several as a list, and None as it is.

    A text could be iterated over too, and its letters would be taken for names. An array of three
    dimensions is one image.
    """
    if values is None:
        return None
    is_image = isinstance(values, IOBase) or getattr(values, "ndim", 0) == 3
    if isinstance(values, str | Path) or is_image or not isinstance(values, Iterable):
        return [values]
    return list(values)


def positions(keys: Sequence[str]) -> Mapping[str, int]:
    """Return the row of each key; of a key that comes twice, the first."""
    row_of: dict[str, int] = {}
    for row, key in enumerate(keys):
        row_of.setdefault(key, row)
    return row_of
