from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import IO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c3tools import import_embeddings
from c3tools.corpus.reading import read_corpus
from c3tools.errors import StoreError
from c3tools.io import limits
from c3tools.io.files import read_json
from c3tools.io.limits import LARGEST_JSON, TooLargeError, limited_lines
from tests import bombs as files


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


def test_json_that_is_large_or_dense_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    lists = b"[" + b"[]," * 400 + b"[]]"
    path.write_bytes(lists)
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
