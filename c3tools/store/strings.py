"""Columns of strings in Arrow's memory layout, for the keys and captions of millions of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa

from ..arrays import Indices, Mask
from ..io.spill import BLOCK_ROWS, Digest

_MOST_BYTES = 2**31 - 1  # of the strings of an Arrow array with 32-bit offsets


class Strings(Sequence[str]):
    """A sequence of strings that are kept as Arrow keeps them, in a fifth of the memory of a list.

    Args:
        values: strings, none of them null.
    """

    def __init__(self, values: pa.Array[Any] | pa.ChunkedArray[Any] | Iterable[str]) -> None:
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            parts = [pa.array(block, pa.string()) for block in _in_blocks(values)]
            values = pa.chunked_array(parts, pa.string())
        self.array = one_array(values)

    @classmethod
    def of(cls, values: Iterable[str]) -> Strings:
        """Return ``values`` in this form; what is in it already stays as it is."""
        return values if isinstance(values, Strings) else cls(values)

    def __len__(self) -> int:
        """Return the number of strings."""
        return len(self.array)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> str | list[str]:
        """Return one string, or a list of those in a slice."""
        if isinstance(index, slice):
            found: list[Any] = self.array[index].to_pylist()
            return found
        return str(self.array[int(index)].as_py())

    def __iter__(self) -> Iterator[str]:
        """Yield the strings, of which a few thousand are made at a time."""
        return chain.from_iterable(self.blocks())

    def blocks(self) -> Iterator[list[str]]:
        """Yield the strings a few thousand at a time."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield self[start : start + BLOCK_ROWS]

    def __eq__(self, other: object) -> bool:
        """Return whether these are the strings of another sequence, in the same order."""
        if isinstance(other, Strings):
            return bool(self.array.equals(other.array))
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return the first strings as a list shows them."""
        shown = ", ".join(map(repr, self[:5]))
        return f"[{shown}, … {len(self):,} strings]" if len(self) > 5 else f"[{shown}]"

    def take(self, rows: Indices | Mask) -> Strings:
        """Return the strings with these numbers, in this order, or those for which a mask (n,) is true."""
        return Strings(self.array.take(np.arange(len(self))[rows]))

    @property
    def distinct(self) -> int:
        """The number of different strings."""
        return len(self.array.unique())

    @cached_property
    def numbers(self) -> Indices:
        """The number of each string, int64 (n,), equal strings by one, in the order of their first appearance."""
        return np.asarray(self.array.dictionary_encode().indices, dtype=np.int64)


def hash_strings(digest: Digest, *columns: Strings) -> None:
    """Update a digest with all strings of the columns, one after another, as joined by the separator U+001F."""
    separator = ""
    for column in columns:
        for block in column.blocks():
            digest.update((separator + "\x1f".join(block)).encode())
            separator = "\x1f"


def one_array(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> pa.Array[Any]:
    """Return a column as one array of strings, of 64-bit offsets where 32 bits are not enough."""
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks != 1 and column.nbytes > _MOST_BYTES:
            column = column.cast(pa.large_string())
        chunks = column.chunks or [pa.array([], column.type)]
        column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    known = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    found: pa.Array[Any] = column if known else column.cast(pa.string())
    return found


def _in_blocks(values: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(values)
    while block := list(islice(rest, BLOCK_ROWS)):
        yield block
