from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.io.parquet import PackedError, read_parquet

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
    ],
    ids=["text", "bytes", "list", "repeated", "later", "struct"],
)
def test_a_small_file_does_not_fill_the_memory(tmp_path: Path, values: pa.Array[Any], dictionary: bool) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"a": values}), path, compression="brotli", use_dictionary=dictionary)
    assert path.stat().st_size < 2**18
    del values
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    with pytest.raises(PackedError, match=r"but the file has|have .* bytes"):
        read_parquet(path)
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    assert pa.total_allocated_bytes() <= before + 2**27
