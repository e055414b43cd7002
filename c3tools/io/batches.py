"""Record batches from untrusted files: values stored once and repeated are expanded in pieces, within limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .limits import LARGEST_IMAGE_FILE, LARGEST_TEXT, TooLargeError, most_repeated

_PIECE = 1 << 25  # bytes of the values of a piece


class Budget:
    """A limit of the memory that the values of a table need, written out.

    Args:
        size: bytes of the table on the disk.
    """

    def __init__(self, size: int) -> None:
        self._size, self._most, self._spent = size, most_repeated(size), 0

    def pieces(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield a batch without dictionaries, in pieces of about 32 MiB or of one row.

        Raises:
            TooLargeError: if the values come to too much, or one is too large.
        """
        total: npt.NDArray[np.int64] = np.zeros(len(batch), np.int64)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            sizes = np.broadcast_to(_sizes(column), len(batch))
            if sizes.max(initial=0) > (LARGEST_TEXT if _is_text(column.type) else LARGEST_IMAGE_FILE):
                raise TooLargeError(f"a value of its column {name!r} has {sizes.max():,} bytes")
            total += sizes
        ends = total.cumsum()
        self._spent += int(ends[-1]) if len(ends) else 0
        if self._spent > self._most:
            raise TooLargeError(f"its values need more than {self._most:,} bytes, but the file has only {self._size:,}")
        schema, start = without_dictionaries(batch.schema), 0
        while start < len(batch):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + _PIECE, side="right")))
            columns = batch.slice(start, stop - start).columns
            yield pa.RecordBatch.from_arrays(
                [
                    column if column.type == kind else column.cast(kind)
                    for column, kind in zip(columns, schema.types, strict=True)
                ],
                schema=schema,
            )
            start = stop


def largest_value(column: pa.Array[Any]) -> int:
    """Return how many bytes the largest value of a column has, written out."""
    return int(np.max(_sizes(column), initial=0))


def without_dictionaries(schema: pa.Schema) -> pa.Schema:
    """Return a schema with the types of the values in place of dictionaries, at any depth."""
    return pa.schema([_plain(field) for field in schema], schema.metadata)  # type: ignore[arg-type]


def _plain(field: pa.Field[Any]) -> pa.Field[Any]:
    kind: Any = field.type
    if pa.types.is_dictionary(kind):
        return field.with_type(kind.value_type)
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_plain(kind.field(position)) for position in range(kind.num_fields)]))
    for is_list, make in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_list(kind):
            return field.with_type(make(_plain(kind.value_field)))
    if pa.types.is_map(kind):
        return field.with_type(pa.map_(_plain(kind.key_field), _plain(kind.item_field)))
    return field


def _is_text(kind: Any) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return value in (pa.string(), pa.large_string(), pa.string_view())


def _sizes(column: Any) -> Any:
    """Return the bytes of each value of a column, uncompressed: int64 (n,), or one int if all are equal.

    Raises:
        TooLargeError: for the kinds of columns that do not say.
        pyarrow.ArrowInvalid: if a dictionary is damaged.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = np.broadcast_to(_sizes(column.dictionary), len(column.dictionary))
        places = column.indices.drop_null().to_numpy()
        if len(places) and not (places.min() >= 0 and places.max() < len(lengths)):
            raise pa.ArrowInvalid("a row has a place beyond the end of its dictionary")
        sizes = np.zeros(len(column), np.int64)
        sizes[_valid(column)] = lengths[places]
        return sizes + kind.index_type.bit_width // 8
    if pa.types.is_struct(kind):
        return sum((_sizes(inner) for inner in column.flatten()), 0)
    if pa.types.is_fixed_size_list(kind):
        count = kind.list_size
        inner = _sizes(column.values.slice(column.offset * count, len(column) * count))
        return inner * count if isinstance(inner, int) else inner.reshape(len(column), count).sum(axis=1)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        offsets = column.offsets.to_numpy().astype(np.int64)
        inner = _sizes(column.values.slice(offsets[0], offsets[-1] - offsets[0]))
        if isinstance(inner, int):
            return np.diff(offsets) * inner
        return np.diff(np.concatenate([[0], inner.cumsum()])[offsets - offsets[0]])
    if kind in (pa.string_view(), pa.binary_view()):
        views = np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)[column.offset :][: len(column)]
        return np.where(_valid(column), views[:, 0], 0).astype(np.int64)
    if kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        return pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_null(kind):
        return 1
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        raise TooLargeError(f"a column of the type {kind} does not say how large its values are") from None


def _valid(column: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)
