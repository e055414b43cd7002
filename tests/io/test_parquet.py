from __future__ import annotations

import contextlib
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.io.limits import TooLargeError
from c3tools.io.parquet import Budget, read_parquet

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CELLS = st.one_of(st.none(), st.sampled_from(["", "a dog", "ü" * 50, "train"]))


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(CELLS, max_size=60), group=st.integers(1, 40), dictionary=st.booleans())
def test_the_table_is_the_one_that_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], group: int, dictionary: bool
) -> None:
    path = tmp_path_factory.mktemp("p") / "t.parquet"
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "vector": pa.array([[1.0, 2.0]] * len(texts), pa.list_(pa.float32())),
            "number": pa.array(range(len(texts)), pa.int64()),
        }
    )
    pq.write_table(table, path, row_group_size=group, use_dictionary=dictionary)
    assert read_parquet(path).equals(table)
    assert read_parquet(path, ["number"]).equals(table.select(["number"]))


@pytest.mark.parametrize(
    ("values", "dictionary"),
    [
        (pa.array(["x" * 300_000_000]), False),  # one text
        (pa.array([b"\0" * 100_000_000] * 3), False),  # a few
        (pa.array([np.zeros(60_000_000, np.int8)], pa.list_(pa.int8())), False),  # one list
        (pa.array(["y" * 1_000_000] * 300), True),  # one text that all rows have
        (pa.array(["y"] * 100 + ["z" * 3_000_000] * 300), True),  # the first rows look harmless
        (pa.array([{"key": "x" * 200_000_000}]), False),  # inside a struct
        (pa.array([["y" * 1_000_000] * 300]), True),  # in one list
        (pa.array([{"bytes": b"y" * 1_000_000}] * 300), True),  # in structs
        (pa.array([np.zeros(60_000_000, np.int8)], pa.list_(pa.int8())), True),  # a run of one number
    ],
    ids=["text", "bytes", "list", "repeated", "later", "struct", "in a list", "in structs", "run"],
)
def test_a_small_file_does_not_fill_the_memory(tmp_path: Path, values: pa.Array[Any], dictionary: bool) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"a": values}), path, compression="brotli", use_dictionary=dictionary)
    assert path.stat().st_size < 2**18
    del values
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    with pytest.raises(TooLargeError, match=r"but the file has|have .* bytes|has .* bytes"):
        read_parquet(path)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    assert pa.total_allocated_bytes() <= before + 2**27


@given(
    rows=st.lists(st.one_of(st.none(), st.lists(CELLS, max_size=3)), max_size=20),
    start=st.integers(0, 5),
    kind=st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]),
)
def test_pieces_of_a_batch_are_the_batch(rows: list[Any], start: int, kind: pa.DataType) -> None:
    texts = [row[0] if row else None for row in rows]
    columns = {
        "text": pa.array(texts, pa.string()).cast(kind),
        "texts": pa.array(rows, pa.list_(pa.string())),
        "cell": pa.array([{"bytes": b"12", "path": text} for text in texts], CELL),
        "vector": pa.array([[1.0, 2.0]] * len(rows), pa.list_(pa.float32(), 2)),
        "nothing": pa.nulls(len(rows)),
    }
    batch = pa.RecordBatch.from_pydict(columns).slice(start)
    pieces = list(Budget(0).pieces(batch))
    assert [row for piece in pieces for row in piece.to_pylist()] == batch.to_pylist()
    assert not any(pa.types.is_dictionary(field.type) for piece in pieces for field in piece.schema)


def test_pieces_are_small_and_have_a_sum() -> None:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * 1_000_000]))
    batch = pa.RecordBatch.from_pydict({"text": text})
    pieces = Budget(100_000).pieces(batch)
    with pytest.raises(TooLargeError, match="need more than 100,000,000 bytes"):
        next(pieces)
    sizes = [len(piece) for piece in Budget(200_000).pieces(batch)]
    assert sizes == [33, 33, 33, 1]
    with pytest.raises(TooLargeError, match="a value of its column 'text' has 20,000,004 bytes"):
        list(
            Budget(10**9).pieces(pa.RecordBatch.from_pydict({"text": pa.array(["x" * 20_000_000]).dictionary_encode()}))
        )


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_kept_as_differences(tmp_path: Path, encoding: str) -> None:
    table = pa.table({"text": [f"a dog {number}" for number in range(3000)], "number": range(3000)})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, column_encoding={"text": encoding})
    assert read_parquet(tmp_path / "t.parquet").equals(table)


def test_differences_to_a_long_text_do_not_fill_the_memory(tmp_path: Path) -> None:
    table = pa.table({"text": ["x" * 1_000_000] * 100})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")
    del table
    before = pa.total_allocated_bytes()
    with pytest.raises(TooLargeError, match="need more than"):
        read_parquet(tmp_path / "t.parquet")
    assert pa.total_allocated_bytes() <= before + 2**27


def test_a_place_beyond_a_dictionary_is_damage() -> None:
    for places in ([0, 1], [-1]):
        column = pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), pa.array(["a"]), safe=False)
        with pytest.raises(pa.ArrowInvalid, match="beyond the end"):
            list(Budget(0).pieces(pa.RecordBatch.from_pydict({"text": column})))


def test_no_footer_ends_the_process(tmp_path: Path) -> None:
    """These bytes make pyarrow end the process where it is asked for a column of a row group."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [["a dog", None]] * 9}), path)
    content = path.read_bytes()
    start, draw = len(content) - 8 - int.from_bytes(content[-8:-4], "little"), random.Random(0)
    for _ in range(12):
        place = draw.randrange(start, len(content) - 8)
        path.write_bytes(content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :])
        with contextlib.suppress(pa.ArrowException, OSError, UnicodeDecodeError):
            read_parquet(path)
