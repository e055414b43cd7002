from __future__ import annotations

import gc
import hashlib
import os
import resource
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from c3tools.errors import OutputError
from c3tools.io import spill
from c3tools.io.spill import FileRows, blocks_of, collect_rows, hash_rows, take_rows

LENGTHS = st.lists(st.integers(0, 7), min_size=1, max_size=5)
DTYPES = st.sampled_from([np.float16, np.float32, np.uint8])


def in_a_file(values: npt.NDArray[Any], blocks: int = 3) -> FileRows:
    """Rows that are over the limit, whatever their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "MEMORY_LIMIT", -1)
        rows = collect_rows(np.array_split(values, blocks), values.shape[1:], values.dtype)
    assert isinstance(rows, FileRows)
    return rows


@given(st.data())
def test_rows_of_a_file_are_indexed_as_an_array_is(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(3,), (2, 2, 3)]))
    n = data.draw(st.integers(1, 12))
    values = np.random.default_rng(n).normal(size=(n, *shape)) * 50
    values = np.abs(values).astype(data.draw(DTYPES))
    rows, expected = in_a_file(values), values.astype(np.float32) if values.dtype == np.float16 else values
    assert (rows.shape, rows.ndim, rows.dtype, len(rows)) == (expected.shape, expected.ndim, expected.dtype, n)
    for _ in range(2):  # of the file, then of some rows of it
        key = data.draw(
            st.slices(len(rows))
            | st.lists(st.integers(-len(rows), len(rows) - 1), max_size=9).map(lambda x: np.array(x, np.int64))
            | arrays.arrays(bool, len(rows))
            if len(rows)
            else st.just(slice(None))
        )
        read = rows[key]
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected[key])
        np.testing.assert_array_equal(np.asarray(rows), expected)
        rows, expected = take_rows(rows, key), expected[key]
        assert isinstance(rows, FileRows)
    if len(rows):
        np.testing.assert_array_equal(rows[len(rows) - 1], expected[-1])
    with pytest.raises(IndexError):
        rows[np.array([len(rows)])]


@given(LENGTHS, DTYPES)
def test_rows_in_memory_and_in_a_file_have_the_same_values_and_digest(lengths: list[int], dtype: Any) -> None:
    draw = np.random.default_rng(sum(lengths))
    blocks = [draw.uniform(0, 9, size=(n, 4)).astype(dtype) for n in lengths]
    held = collect_rows(iter(blocks), (4,), dtype)
    assert isinstance(held, np.ndarray)
    expected = np.concatenate(blocks)
    assert held.dtype == (np.float32 if dtype == np.float16 else dtype)
    np.testing.assert_array_equal(held, expected)
    filed = in_a_file(expected, len(blocks))
    digests = hashlib.sha256(), hashlib.sha256()
    hash_rows(digests[0], held)
    hash_rows(digests[1], filed)
    assert {digest.hexdigest() for digest in digests} == {hashlib.sha256(held.tobytes()).hexdigest()}


def test_only_what_is_over_the_limit_goes_to_a_file_and_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [np.ones((10, 8), np.float16)] * 4  # 1,280 bytes as float32
    for limit, spills in ((1280, False), (1279, True)):
        monkeypatch.setattr(spill, "MEMORY_LIMIT", limit)
        assert isinstance(collect_rows(blocks, (8,), np.float16), FileRows) == spills
        assert isinstance(collect_rows(blocks, (8,), np.float16, spill=False), np.ndarray)
    assert collect_rows([], (8,), np.float16).shape == (0, 8)


def test_blocks_are_all_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "BLOCK_ROWS", 4)
    values = np.arange(22, dtype=np.float32).reshape(11, 2)
    for rows in (values, in_a_file(values)):
        blocks = list(blocks_of(rows))
        assert [len(block) for block in blocks] == [4, 4, 3]
        np.testing.assert_array_equal(np.concatenate(blocks), values)


@pytest.mark.parametrize("positional", [True, False])
def test_several_threads_read_one_file(monkeypatch: pytest.MonkeyPatch, positional: bool) -> None:
    if not positional:  # as on Windows
        monkeypatch.delattr(os, "preadv")
    values = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    rows = in_a_file(values)
    numbers = [np.random.default_rng(seed).integers(1000, size=300) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for chosen, read in zip(numbers, pool.map(rows.__getitem__, numbers), strict=True):
            np.testing.assert_array_equal(read, values[chosen])


def test_the_file_has_no_name_and_is_closed_with_the_last_rows_over_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = in_a_file(np.ones((5, 4), np.float32))
    assert list(tmp_path.iterdir()) == []
    some = rows.select(slice(1, 3))
    del rows
    assert some[:].shape == (2, 4)
    file = some._file._file
    del some
    gc.collect()
    assert file.closed


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_error_that_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with largest_file(1 << 20), pytest.raises(OutputError, match=f"(?s){tmp_path}.*after 1 MiB.*TMPDIR"):
        in_a_file(np.ones((5000, 128), np.float32))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match=r"(?s)No such file.*after 0 MiB.*TMPDIR"):
        in_a_file(np.ones((5, 4), np.float32))


def test_a_file_that_was_cut_short_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = in_a_file(np.ones((50, 4), np.float32))
    os.ftruncate(rows._file._file.fileno(), 100)
    assert rows[:6].shape == (6, 4)
    with pytest.raises(OSError, match="cut short"):
        rows[np.array([40])]
