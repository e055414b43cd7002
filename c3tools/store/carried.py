"""Columns that rows carry from a table of the user, such as url and label.

They are chosen with the first run. `StoreInfo.columns` lists them with their types, and all rows of
the store, its exports and its indexes have them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow as pa

from ..errors import StoreError
from .shards import CARRIED_TYPES, OWN_COLUMNS, StoreInfo

_REMEDY = "Leave it out of --keep-columns, or rename or convert it in the table."


def names_to_keep(asked: Collection[str] | None, recorded: StoreInfo | None) -> list[str]:
    """Return the columns to keep: those that the store records, or of a new store those asked for.

    Raises:
        StoreError: if other columns are asked for than the store has, or one that all stores have.
    """
    names = sorted(set(asked or ()))
    if not OWN_COLUMNS.isdisjoint(names):
        raise StoreError(
            f"Of {', '.join(names)}, stores have a column of their own.", remedy=_REMEDY
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
    names: Collection[str], tables: Iterable[pa.Schema], recorded: StoreInfo | None
) -> dict[str, str]:
    """Return the Arrow types of the columns to keep, by name.

    Args:
        names: of the columns.
        tables: the schemas of the values in each table or block of rows.
        recorded: the description of the store; None for a new one.

    Raises:
        StoreError: if the values of a column are not all texts, all numbers or all booleans, or of
            another type than in the store; if there are none.
    """
    if not names:
        return {}
    types = {} if recorded is None else recorded.columns
    stored = pa.schema([(name, CARRIED_TYPES[kind]) for name, kind in types.items()])
    try:
        schema = pa.unify_schemas([stored, *tables], promote_options="permissive")
    except (pa.ArrowException, OverflowError) as error:
        raise StoreError(
            f"The values of a column to keep are not of one type ({error}).", remedy=_REMEDY
        ) from error
    kept = {}
    for name in names:
        kind = str(schema.field(name).type) if name in schema.names else "null"
        if kind not in CARRIED_TYPES or types.get(name, kind) != kind:
            wanted = types.get(name, "texts, numbers or booleans")
            raise StoreError(
                f"The column {name!r} cannot be kept: its values are {kind}, not {wanted}.",
                remedy=_REMEDY,
            )
        kept[name] = kind
    return kept
