"""Conditions on the columns that rows keep, such as ``colour=red`` and ``price<20``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Mask
from ..errors import StoreError
from ..reporter import counted
from ..store.rows import one_array, text_scalar, true_mask

_CONDITION = re.compile(r"(.+?)\s*(<=|>=|<|>|=)\s*(.*)", re.DOTALL)
_COMPARISONS: dict[str, Any] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBER = r"^-?\d{1,15}(\.\d+)?([eE][+-]?\d+)?$"  # with more digits, float64 confuses two ids
_NAMED = 10  # values that an error names


@dataclass(frozen=True)
class Columns:
    """The kept columns of n rows.

    Attributes:
        values: by name, (n,): texts (true and false for booleans) or numbers. A column of texts
            that are all numbers or empty, as in a CSV, has numbers, with nulls for what is empty.
    """

    values: Mapping[str, Any]

    @classmethod
    def of(cls, rows: pa.Table, names: Sequence[str]) -> Columns:
        """Return the columns with these names."""
        values = {}
        for name in names:
            column: Any = one_array(rows.column(name))
            if pa.types.is_boolean(column.type):
                column = pc.cast(column, pa.string())
            elif pa.types.is_string(column.type):
                texts: Any = pc.utf8_trim_whitespace(column)
                is_empty = pc.equal(texts, text_scalar(""))
                texts = pc.if_else(is_empty, pa.nulls(1, pa.string())[0], texts)
                is_number = pc.match_substring_regex(texts, _NUMBER)
                if texts.null_count < len(texts) and pc.all(is_number).as_py():
                    column = pc.cast(texts, pa.float64())
            values[name] = column
        return cls(values)

    def matching(self, conditions: Sequence[str]) -> Mask:
        """Return which rows fulfil all conditions, (n,).

        A condition is the name of a column, one of = < <= > >= and a value. A row without a value
        fulfils none on this column.

        Raises:
            StoreError: if a condition has another form, there is no such column, its values cannot
                be compared with this value, or no row fulfils the condition.
        """
        masks = [self._matching(condition) for condition in conditions]
        fulfilled: Mask = np.logical_and.reduce(masks)
        return fulfilled

    def _matching(self, condition: str) -> Mask:
        parts = _CONDITION.fullmatch(condition.strip())
        if parts is None:
            raise StoreError(
                f"{condition!r} is no condition.",
                remedy='Conditions look like "colour=red" or "price<20", with =, <, <=, > or >=.',
            )
        name, sign, value = parts.groups()
        if name not in self.values:
            names = ", ".join(self.values) or "none"
            raise StoreError(
                f"The index keeps no column {name!r}. Its columns are: {names}.",
                remedy="`c3 embed --keep-columns` keeps columns in a new store.",
            )

        # Numbers are compared with a number; of texts it is only said whether they are equal
        values: Any = self.values[name]
        wrong = f"The condition {condition!r} cannot be checked"
        if _has_numbers(values):
            number = _number(value)
            if number is None:
                raise StoreError(f"{wrong}: {value!r} is no number. {self._described(name)}")
            # By NumPy, since Arrow refuses to compare large whole numbers with fractions
            is_there = true_mask(values.is_valid())
            without_nulls: Any = pc.coalesce(values, text_scalar("0").cast(values.type))
            fulfils = is_there & _COMPARISONS[sign](np.from_dlpack(without_nulls), number)
        elif sign == "=":
            fulfils = true_mask(pc.equal(values, text_scalar(value)))
        else:
            raise StoreError(
                f"{wrong}: the values of {name} are not all numbers. {self._described(name)}",
                remedy=f"Use {name}=VALUE.",
            )
        if not fulfils.any():
            raise StoreError(f"No row of the index has {condition}. {self._described(name)}")
        return np.asarray(fulfils, bool)

    def _described(self, name: str) -> str:
        """Return the values of a column in a sentence: the most frequent ones, or their range."""
        values: Any = self.values[name].drop_null()
        if not len(values):
            return f"No row has a value of {name}."
        if _has_numbers(values):
            ends: Any = pc.min_max(values).as_py()
            return f"The values of {name} go from {ends['min']:g} to {ends['max']:g}."
        value_counts: Any = pc.value_counts(values)
        counts = sorted(value_counts.to_pylist(), key=lambda entry: -entry["counts"])
        named = ", ".join(str(entry["values"]) for entry in counts[:_NAMED])
        others = len(counts) - _NAMED
        more = f" and {counted(others, 'other')}" if others > 0 else ""
        return f"The values of {name} are: {named}{more}."


def _has_numbers(values: Any) -> bool:
    return pa.types.is_integer(values.type) or pa.types.is_floating(values.type)


def _number(text: str) -> int | float | None:
    """Return a text as a number, None if it is none."""
    for kind in (int, float):
        try:
            number: int | float = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else None
    return None
