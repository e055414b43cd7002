"""The same photos as a folder, in the other forms that a corpus comes in."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools.corpus.image_reader import ImageReader
from c3tools.corpus.items import Corpus
from c3tools.corpus.reading import read_corpus
from c3tools.errors import CorpusError
from tests.conftest import write_jsonl

IMAGE_STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class Photo(NamedTuple):
    """An image file with its captions."""

    name: str
    content: bytes
    captions: list[str]
    split: str | None

    @property
    def key(self) -> str:
        return self.name.rpartition(".")[0]


def contents(corpus: Corpus) -> dict[str, bytes]:
    """The bytes of the images of a corpus by key."""
    with ImageReader() as reader:
        return {item.key: reader.read(item) for item in corpus.images}


def assert_refused(said: str, paths: str | Path | list[Path], **options: Any) -> None:
    """Reading a corpus is an error that says this."""
    with pytest.raises(CorpusError, match=said):
        read_corpus(paths, **options)


def photos_of(folder: Path) -> list[Photo]:
    """The photos of a folder with a captions.jsonl, sorted by name."""
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["image"])
    return [
        Photo(row["image"], (folder / row["image"]).read_bytes(), row["captions"], row.get("split"))
        for row in rows
    ]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def webdataset(photos: Sequence[Photo]) -> list[tuple[str, bytes]]:
    """Members of a WebDataset tar: image, .txt with a caption a line, .json with the split."""
    members = []
    for photo in photos:
        members += [
            (photo.name, photo.content),
            (f"{photo.key}.txt", "\n".join(photo.captions).encode()),
            (f"{photo.key}.json", json.dumps({"split": photo.split, "width": 1}).encode()),
        ]
    return members


def write_hf_parquet(
    path: Path, photos: Sequence[Photo], *, rows_per_group: int = 100, **columns: Any
) -> Path:
    """A table as `datasets` writes it: a struct of bytes and file name, captions, split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": photo.content, "path": photo.name} for photo in photos]
    images = pa.array(cells, type=IMAGE_STRUCT)
    texts, splits = [photo.captions for photo in photos], [photo.split for photo in photos]
    table = pa.table({"image": images, "captions": texts, "split": splits, **columns})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table in the format that the suffix names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(str(path), table.schema) as arrow:
            arrow.write_table(table)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix in (".jsonl", ".ndjson"):
        write_jsonl(path, *rows)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return path


def damage_column(path: Path, group: int, column: int) -> None:
    """Overwrite a column of a row group of a Parquet file that has no dictionaries."""
    with pq.ParquetFile(path) as file:
        chunk = file.metadata.row_group(group).column(column)
        start, length = chunk.data_page_offset, chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    content[start : start + length] = b"\xff" * length
    path.write_bytes(bytes(content))
