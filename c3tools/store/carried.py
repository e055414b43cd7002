"""Columns that rows carry from a table of the user, such as url and label.

They are chosen with the first run. `StoreInfo.columns` lists them with their types, and all rows of
the store, its exports and its indexes have them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ..errors import StoreError
from .shards import OWN_COLUMNS, StoreInfo

_REMEDY = "Leave it out of --keep-columns, or rename or convert it in the table."
# `CARRIED_TYPES` of values
_TYPES = {str: "string", int: "int64", float: "double", bool: "bool"}


class KeptRow(NamedTuple):
    """The values of a row in the columns to keep, by name, and its key for messages."""

    key: str
    values: Mapping[str, Any]


def names_to_keep(asked: Collection[str] | None, recorded: StoreInfo | None) -> list[str]:
    """Return the columns to keep: those that the store records, or of a new store those asked for.

    Raises:
        StoreError: if other columns are asked for than the store has, or one that all stores have.
    """
    names = sorted({asked} if isinstance(asked, str) else set(asked or ()))
    taken = OWN_COLUMNS.intersection(names)
    if taken:
        raise StoreError(
            f"Stores have columns of their own with the name {', '.join(sorted(taken))}.",
            remedy=_REMEDY,
        )
    stored_names = names if recorded is None else sorted(recorded.columns)
    if asked is not None and names != stored_names:
        raise StoreError(
            f"The store keeps the columns {', '.join(stored_names) or '(none)'}, not "
            f"{', '.join(names) or '(none)'}.",
            remedy="Leave --keep-columns out, or choose another --store.",
        )
    return stored_names


def carried_types(
    names: Collection[str], rows: Iterable[KeptRow], recorded: StoreInfo | None
) -> dict[str, str]:
    """Return the types of the columns to keep, by name: keys of `CARRIED_TYPES`.

    Whole numbers among others are double.

    Args:
        names: of the columns.
        rows: those of the tables.
        recorded: the description of the store; None for a new one.

    Raises:
        StoreError: if a value is no text, number or boolean, or of another type than the others or
            than in the store; if a column has no values.
    """
    of_store = {} if recorded is None else recorded.columns
    types = dict(of_store)
    if names:
        for row in rows:
            for name in names:
                value = row.values.get(name)
                if value is not None:
                    types[name] = _joint_type(name, row.key, value, types.get(name), of_store)
    for name in names:
        if name not in types:
            raise StoreError(f"No row has a value in the column {name!r}.", remedy=_REMEDY)
    return types


def _joint_type(
    name: str, key: str, value: Any, so_far: str | None, of_store: Mapping[str, str]
) -> str:
    """Return the type of a column whose earlier values are of the type ``so_far``.

    Raises:
        StoreError: if the value is of another one.
    """
    kind = _TYPES.get(type(value))
    if kind == "int64" and not -(2**63) <= value < 2**63:
        kind = None
    if kind is not None and so_far in (None, kind):
        return kind
    if {kind, so_far} == {"int64", "double"} and of_store.get(name) != "int64":
        return "double"
    place = f"The column {name!r} of {key} contains {str(value)[:60]!r} ({type(value).__name__})"
    if name in of_store:
        raise StoreError(
            f"{place}, but the store keeps it as {so_far}.",
            remedy="Change the value, or use another --store: a new one finds a type for all "
            "values.",
        )
    others = f"while earlier rows are {so_far}" if so_far and kind else "which cannot be kept"
    raise StoreError(f"{place}, {others}.", remedy=_REMEDY)
