"""What is not read because it is larger than documented, and what is read in pieces: lines, JSON,
tars, Parquet."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools import import_embeddings
from c3tools.corpus.reading import read_corpus
from c3tools.errors import StoreError
from c3tools.io import limits
from c3tools.io.files import read_json
from c3tools.io.limits import LARGEST_JSON, TooLargeError, limited_lines
from c3tools.io.parquet import open_parquet, read_parquet, record_batches
from tests import bombs as files

CELLS = st.one_of(st.none(), st.sampled_from(["", "a dog", "ü" * 50, "train"]))


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    return tmp_path / "t.parquet"


@given(st.lists(st.text("ab\r\n\u2028é", max_size=8), max_size=8).map("\n".join), st.booleans())
def test_lines_are_those_that_files_have(text: str, binary: bool) -> None:
    def file() -> io.BytesIO | io.TextIOWrapper:
        content = io.BytesIO(text.encode())
        return content if binary else io.TextIOWrapper(content, encoding="utf-8", newline="")

    found: list[object] = list(limited_lines(cast(IO[str], file())))
    assert found == list(file())


def test_sizes_are_those_that_are_documented() -> None:
    sizes = limits.LARGEST_IMAGE_FILE, limits.LARGEST_DECODED, limits.LARGEST_TEXT, LARGEST_JSON
    assert [size / files.MIB for size in sizes] == [256, 600, 16, 512]


def test_a_line_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGEST_TEXT", 10)
    assert list(limited_lines(io.BytesIO(b"123456789\n1"))) == [b"123456789\n", b"1"]
    lines = limited_lines(io.BytesIO(b"1\n1234567890\n"))
    assert next(lines) == b"1\n"
    with pytest.raises(TooLargeError, match="line 2 has more than 10 bytes"):
        next(lines)


def test_json_that_is_large_or_dense_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" + "[]," * 400 + "[]]")
    assert len(read_json(path)) == 401
    monkeypatch.setattr("c3tools.io.files.LARGEST_TEXT", 1000)
    with pytest.raises(TooLargeError, match="802 values in 1,204 bytes"):
        read_json(path)
    path.write_text(json.dumps(["a dog"] * 200, separators=(",", ":")))  # 8 bytes each
    assert len(read_json(path)) == 200
    files.sparse(path, LARGEST_JSON + 1, b"{")
    with pytest.raises(TooLargeError, match="more than 536,870,912 bytes"):
        read_json(path)


def test_a_tar_whose_header_declares_gigabytes(tmp_path: Path) -> None:
    files.tar_with_a_long_name(tmp_path / "x.tar", 2**32)
    with tarfile.open(tmp_path / "y.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("n" * 5000 + ".jpg"))
    corpus = read_corpus([tmp_path])
    (skipped,) = corpus.skipped
    assert skipped.error == "DamagedTar" and "header of 4,294,967,296 bytes" in skipped.message
    assert [len(image.key) for image in corpus.images] == [5000]


def test_vectors_that_are_hardly_on_the_disk(tmp_path: Path) -> None:
    files.sparse(tmp_path / "v.npy", 102_400_128, files.npy_header((50_000, 512)))
    with pytest.raises(StoreError, match="102,400,128 bytes, of which"):
        import_embeddings(image=tmp_path / "v.npy", store=tmp_path / "s")


@settings(max_examples=5)
@given(
    texts=st.lists(CELLS, max_size=60),
    group=st.integers(1, 40),
    encoding=st.sampled_from([None, "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]),
)
def test_the_table_is_the_one_that_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    group: int,
    encoding: str | None,
) -> None:
    path = tmp_path_factory.mktemp("p") / "t.parquet"
    n = len(texts)
    vector = pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32()))
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "vector": vector,
            "number": pa.array(range(n), pa.int64()),
        }
    )
    layout: dict[str, Any] = (
        {"use_dictionary": False, "column_encoding": {"text": encoding}} if encoding else {}
    )
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
        (
            pa.array(["y" * 1_000_000] * 80),
            {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
        ),
    ],
)
def test_a_small_file_does_not_fill_the_memory(
    parquet: Path, values: pa.Array[Any], layout: dict[str, Any]
) -> None:
    pq.write_table(pa.table({"a": values}), parquet, compression="brotli", **layout)
    assert parquet.stat().st_size < 2**18
    del values
    with pytest.raises(TooLargeError, match="but the file has"):
        read_parquet(parquet)


def test_no_footer_ends_the_process(parquet: Path) -> None:
    """Some of these bytes make pyarrow end the process where it is asked for a column of a row
    group."""
    pq.write_table(pa.table({"text": [["a dog", None]] * 9}), parquet)
    content = parquet.read_bytes()
    start, draw = len(content) - 8 - int.from_bytes(content[-8:-4], "little"), random.Random(0)
    places = [(draw.randrange(start, len(content) - 8), draw.randrange(256)) for _ in range(5)]
    # the first: a histogram of another length, in pyarrow 26
    for place, value in [(len(content) - 452, 3), *places]:
        parquet.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        with contextlib.suppress(pa.ArrowException, OSError, UnicodeDecodeError):
            read_parquet(parquet)
    pq.write_table(
        pa.table({"text": ["a dog"] * 9}), parquet, store_schema=False, write_statistics=False
    )
    # the column of a row group, after that of the schema
    before, after = parquet.read_bytes().rsplit(b"text", 1)
    parquet.write_bytes(before + b"test" + after)
    with pytest.raises(pa.ArrowInvalid, match="no column 'test'"):
        read_parquet(parquet)


def test_rows_that_share_a_text_come_in_small_batches(parquet: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([["y" * 100_000]] * 600)}), parquet)
    with open_parquet(parquet) as file:
        assert max(map(len, file.batches())) < 350  # 32 MiB
    pq.write_table(pa.table({"a": range(1500)}), parquet)
    with open_parquet(parquet) as file:
        assert [*map(len, file.batches())] == [1024, 476]


def test_a_value_has_a_largest_size(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(
        pa.table({"a": ["y" * 1000] * 9}), parquet, use_dictionary=False, compression="none"
    )
    read_parquet(parquet)
    monkeypatch.setattr("c3tools.io.parquet.LARGEST_IMAGE_FILE", 999)
    with pytest.raises(TooLargeError, match=r"'a' have 1,\d\d\d bytes"):
        read_parquet(parquet)


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
