from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.io.limits import TooLargeError
from c3tools.io.parquet import open_parquet, read_parquet, record_batches

CELLS = st.one_of(st.none(), st.sampled_from(["", "a dog", "ü" * 50, "train"]))


@settings(max_examples=5)
@given(
    texts=st.lists(CELLS, max_size=60),
    group=st.integers(1, 40),
    encoding=st.sampled_from([None, "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]),
)
def test_the_table_is_the_one_that_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], group: int, encoding: str | None
) -> None:
    path = tmp_path_factory.mktemp("p") / "t.parquet"
    n = len(texts)
    vector = pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32()))
    table = pa.table({"text": pa.array(texts, pa.string()), "vector": vector, "number": pa.array(range(n), pa.int64())})
    layout: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"text": encoding}} if encoding else {}
    pq.write_table(table, path, row_group_size=group, **layout)
    assert read_parquet(path).equals(table)
    with open_parquet(path) as file:
        numbers = list(file.batches(["number"]))
    assert not numbers or pa.Table.from_batches(numbers).equals(table.select(["number"]))


@pytest.mark.parametrize(
    ("values", "layout"),
    [
        (pa.array(["x" * 80_000_000]), {"use_dictionary": False}),
        (pa.array([{"key": "x" * 80_000_000}]), {"use_dictionary": False}),
        (pa.array([np.zeros(20_000_000, np.int8)], pa.list_(pa.int8())), {}),  # a run of one number
        (pa.array(["y" * 1_000_000] * 80), {}),  # one text that all rows have
        (pa.DictionaryArray.from_arrays(np.zeros(80, np.int32), pa.array(["y" * 1_000_000])), {}),
        (pa.array(["y" * 1_000_000] * 80), {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}),
    ],
)
def test_a_small_file_does_not_fill_the_memory(tmp_path: Path, values: pa.Array[Any], layout: dict[str, Any]) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"a": values}), path, compression="brotli", **layout)
    assert path.stat().st_size < 2**18
    del values
    with pytest.raises(TooLargeError, match="but the file has"):
        read_parquet(path)


def test_no_footer_ends_the_process(tmp_path: Path) -> None:
    """Some of these bytes make pyarrow end the process where it is asked for a column of a row group."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [["a dog", None]] * 9}), path)
    content = path.read_bytes()
    start, draw = len(content) - 8 - int.from_bytes(content[-8:-4], "little"), random.Random(0)
    places = [(draw.randrange(start, len(content) - 8), draw.randrange(256)) for _ in range(5)]
    for place, value in [(len(content) - 452, 3), *places]:  # the first: a histogram of another length, in pyarrow 26
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        with contextlib.suppress(pa.ArrowException, OSError, UnicodeDecodeError):
            read_parquet(path)


def test_rows_that_share_a_text_come_in_small_batches(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": pa.array([["y" * 100_000]] * 600)}), path)
    with open_parquet(path) as file:
        assert max(len(batch) for batch in file.batches()) < 350  # 32 MiB
    pq.write_table(pa.table({"a": range(1500)}), path)
    with open_parquet(path) as file:
        assert [len(batch) for batch in file.batches()] == [1024, 476]


def test_a_value_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": ["y" * 1000] * 9}), path, use_dictionary=False, compression="none")
    read_parquet(path)
    monkeypatch.setattr("c3tools.io.parquet.LARGEST_IMAGE_FILE", 999)
    with pytest.raises(TooLargeError, match=r"'a' have 1,\d\d\d bytes"):
        read_parquet(path)


def test_arrow_streams_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    names: list[Any] = [b"\xff", "a"]
    for name, read in zip(names, (0, 2), strict=True):
        schema = pa.schema([pa.field(name, pa.string())])
        with pa.ipc.new_stream(str(tmp_path / "x"), schema) as file:
            for row in (0, 0, 1):
                file.write_batch(pa.RecordBatch.from_arrays([texts[row : row + 1]], schema=schema))
        with pytest.raises(OSError, match=f"after {read} record batches"):
            [*record_batches(tmp_path / "x")]
