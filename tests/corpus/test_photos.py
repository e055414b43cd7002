from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from c3tools.corpus import ImageReader, read_corpus
from c3tools.corpus.containers import PhotoFinder
from tests.corpus.packing import write_tar


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, count: int = 8) -> Path:
    """Images in the form that the suffix names."""
    content = [png(number) for number in range(count)]
    if path.suffix == ".tar":
        return write_tar(path, [(f"{number:03d}.png", each) for number, each in enumerate(content)])
    table = pa.table({"image": content, "caption": ["x"] * count})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    else:
        path.mkdir()
        for number, each in enumerate(content):
            (path / f"{number:03d}.png").write_bytes(each)
    return path


@pytest.mark.parametrize("name", ["a.tar", "b.parquet", "c.arrow", "d"])
def test_images_are_found_again_by_their_paths(tmp_path: Path, name: str) -> None:
    images = read_corpus(write(tmp_path / name)).images
    assert len(images) == 8
    finder = PhotoFinder()
    with ImageReader() as reader:
        found = [reader.read(finder.find(image.key, image.path)) for image in images]
        expected = [reader.read(image) for image in images]
    assert found == expected
    assert sorted(found) == sorted(png(number) for number in range(8))


@pytest.mark.parametrize("name", ["a.tar", "d"])
def test_relative_paths_may_start_beside_the_store(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    images = read_corpus(name).images
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    finder = PhotoFinder(beside=tmp_path / "c3-store")
    with ImageReader() as reader:
        assert [reader.read(finder.find(image.key, image.path)) for image in images] == [png(n) for n in range(8)]


def test_what_is_gone_is_an_error_that_says_so(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", 2)
    write(tmp_path / "b.parquet", 4)
    (tmp_path / "c.tar").write_bytes(b"no tar")
    finder = PhotoFinder()
    for path, message in {
        f"{tmp_path}/none.jpg": "no such file",
        f"{tmp_path}/a.tar#none.png": "the image is not in it",
        f"{tmp_path}/none.tar#000.png": "No such file",
        f"{tmp_path}/b.parquet#4": "the image is not in it",
        f"{tmp_path}/none.parquet#0": "No such file",
        f"{tmp_path}/c.tar#000.png": "the image is not in it",
    }.items():
        with pytest.raises(OSError, match=message) as caught:
            finder.find("key", path)
        assert caught.value.strerror
    with pytest.raises(ValueError, match="has no path"):
        finder.find("key", None)
    with pytest.raises(OSError, match="--download downloads it"):
        finder.find("key", "https://example.org/a.jpg")
    assert PhotoFinder(download=True).find("key", "https://example.org/a.jpg").source is not None


def test_a_file_whose_name_looks_like_a_member_is_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "a.tar#b.png"
    odd.write_bytes(png(7))
    with ImageReader() as reader:
        assert reader.read(PhotoFinder().find("key", str(odd))) == png(7)
