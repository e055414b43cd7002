"""Columns of the user's tables, such as url and label, whose values items keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from ..errors import StoreError

REMEDY = "Leave it out of --keep-columns, or rename or convert it in the table."
# the names of Arrow's types, by the types of values
_TYPES = {str: "string", int: "int64", float: "double", bool: "bool"}


class KeptColumns:
    """The columns to keep, and the types of the values that were read so far.

    Args:
        names: of the columns.
        of_store: the types of those that a store has, by name.

    Attributes:
        names: of the columns.
        types: by name, of columns with a value; whole numbers among others are double.
    """

    def __init__(
        self, names: Sequence[str] = (), of_store: Mapping[str, str] | None = None
    ) -> None:
        self.names = names
        self.types = dict(of_store or {})
        self._of_store = of_store or {}

    def values_of(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the values of a row, dates as texts; None if it has none of the columns."""
        if not self.names or not any(name in record for name in self.names):
            return None
        values: dict[str, Any] = {}
        for name in self.names:
            value = record.get(name)
            if isinstance(value, str):
                value = value.encode("utf-8", errors="backslashreplace").decode()  # `as_storable`
            elif isinstance(value, float) and isnan(value):
                value = None  # a missing number, which would not be equal to itself
            elif value is not None and not isinstance(value, int | float | list | dict):
                value = str(value)
            values[name] = value
        return values

    def note(self, key: str, values: Mapping[str, Any] | None) -> None:
        """Note the types of the values of the row with a key.

        Raises:
            StoreError: if a value is no text, number or boolean, or of another type than the
                others or than in the store.
        """
        for name in self.names:
            value = None if values is None else values.get(name)
            if value is None:
                continue
            so_far = self.types.get(name)
            kind = _TYPES.get(type(value))
            if kind == "int64" and not -(2**63) <= value < 2**63:
                kind = None
            if kind is not None and so_far in (None, kind):
                self.types[name] = kind
                continue
            if {kind, so_far} == {"int64", "double"} and self._of_store.get(name) != "int64":
                self.types[name] = "double"
                continue
            place = (
                f"The column {name!r} of {key} contains {str(value)[:60]!r} "
                f"({type(value).__name__})"
            )
            if name in self._of_store:
                raise StoreError(
                    f"{place}, but the store keeps it as {so_far}.",
                    remedy="Change the value, or use another --store: a new store chooses a type "
                    "that fits all values.",
                )
            others = "which cannot be kept"
            if so_far and kind:
                others = f"while earlier rows are {so_far}"
            raise StoreError(f"{place}, {others}.", remedy=REMEDY)

    def require_values(self) -> None:
        """Refuse a column without a value.

        Raises:
            StoreError: with its name.
        """
        for name in self.names:
            if name not in self.types:
                raise StoreError(f"No row has a value in the column {name!r}.", remedy=REMEDY)
