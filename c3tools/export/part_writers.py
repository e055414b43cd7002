"""Writers of transformed embeddings, one part at a time: one small class per file format.

Each writer takes batches in order and leaves its files complete or not at all. The formats:

    parquet       text/part-00000.parquet: the store's columns, the embedding transformed; plain values, since DuckDB
                  does not read the store's byte-stream split of float16
    npy           text/embeddings/part-00000.npy + text/metadata/part-00000.parquet: the layout that
                  embedding-reader (file format parquet_npy) and autofaiss read
    safetensors   text/part-00000.safetensors (tensor "embedding") + text/metadata/part-00000.parquet
    hf            text/train/part-00000.parquet, one folder per split, for datasets.load_dataset
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..arrays import Floats
from ..io.files import make_folder
from ..io.locations import names_in
from ..store.rows import row_splits
from ..store.shards import METADATA_KEY, parquet_writer

ROLE_COLUMN = "input_role"


class PartWriter:
    """Writes one part; used as a context manager, it keeps its files only if the block ends well.

    Args:
        folder: the modality's folder in the export.
        part: number of the part.
        rows: how many rows will be written.
        schema: columns of the batches, ``embedding`` among them with its output type; metadata is kept.
    """

    name = ""

    def __init__(self, folder: Path, part: int, rows: int, schema: pa.Schema) -> None:
        self.folder = folder
        self.stem = f"part-{part:05d}"
        self.rows = rows
        self.schema = schema
        self.dim = schema.field("embedding").type.list_size
        self.dtype = schema.field("embedding").type.value_type.to_pandas_dtype()
        self._pending: dict[Path, Path] = {}

    def __enter__(self) -> PartWriter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.finish()
            if kind is None:
                for temporary, path in self._pending.items():
                    with temporary.open("rb+") as file:
                        os.fsync(file.fileno())
                    temporary.replace(path)
        finally:
            for temporary in self._pending:
                temporary.unlink(missing_ok=True)

    @property
    def files(self) -> list[Path]:
        """Return the files of this part, once written."""
        return sorted(self._pending.values())

    def start(self) -> None:
        """Open the files."""

    def write(self, embeddings: Floats, columns: Mapping[str, pa.Array[Any]]) -> None:
        """Append rows: ``embeddings`` (n, d) of the output dtype, and the other columns by name."""
        raise NotImplementedError

    def finish(self) -> None:
        """Close the files."""

    def _temporary(self, path: Path) -> Path:
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # of any machine
        self._pending[temporary] = path
        return temporary

    def _batch(self, schema: pa.Schema, embeddings: Floats, columns: Mapping[str, pa.Array[Any]]) -> pa.RecordBatch:
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), self.dim)
            if field.name == "embedding"
            else columns[field.name]
            for field in schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


class ParquetPart(PartWriter):
    """One Parquet file, laid out like the store's shards but for the plain values of the embedding."""

    name = "parquet"

    def start(self) -> None:
        """Open the file."""
        path = self.folder / f"{self.stem}.parquet"
        self._writer = parquet_writer(self._temporary(path), self.schema, split_bytes=False)

    def write(self, embeddings: Floats, columns: Mapping[str, pa.Array[Any]]) -> None:
        """Append one row group."""
        self._writer.write_batch(self._batch(self.schema, embeddings, columns))

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()


class HfPart(PartWriter):
    """One Parquet file per split, so that each becomes a split of the data set."""

    name = "hf"

    def start(self) -> None:
        """Wait with each file until its split turns up."""
        self._writers: dict[str, pq.ParquetWriter] = {}

    def write(self, embeddings: Floats, columns: Mapping[str, pa.Array[Any]]) -> None:
        """Append the rows of each split to its file."""
        batch = self._batch(self.schema, embeddings, columns)
        splits = np.array(row_splits(batch), dtype=object)
        for split in sorted(set(splits)):
            if split not in self._writers:
                path = self.folder / _folder_name(split) / f"{self.stem}.parquet"
                self._writers[split] = parquet_writer(self._temporary(path), self.schema, split_bytes=False)
            self._writers[split].write_batch(batch.filter(pa.array(splits == split)))

    def finish(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


class _ArrayPart(PartWriter):
    """A raw array beside a Parquet file of the other columns."""

    def start(self) -> None:
        """Open both files and write the array's header."""
        metadata = self.folder / "metadata" / f"{self.stem}.parquet"
        kept = self.schema.remove(self.schema.get_field_index("embedding"))
        self._metadata_schema = kept
        self._metadata = pq.ParquetWriter(self._temporary(metadata), kept, compression="zstd")
        self._file: BinaryIO = self._temporary(self.array_path()).open("wb")
        self.write_header(self._file)

    def array_path(self) -> Path:
        """Return the path of the array."""
        raise NotImplementedError

    def write_header(self, file: BinaryIO) -> None:
        """Write what comes before the numbers."""
        raise NotImplementedError

    def write(self, embeddings: Floats, columns: Mapping[str, pa.Array[Any]]) -> None:
        """Append the numbers and the columns."""
        self._file.write(np.ascontiguousarray(embeddings).view(np.uint8).data)
        self._metadata.write_batch(
            pa.RecordBatch.from_arrays([columns[f.name] for f in self._metadata_schema], schema=self._metadata_schema)
        )

    def finish(self) -> None:
        """Close both files."""
        self._file.close()
        self._metadata.close()


class NpyPart(_ArrayPart):
    """A .npy file per part; names sort alike in both folders, which is how readers pair them."""

    name = "npy"

    def array_path(self) -> Path:
        """Return a path in a folder of arrays only."""
        return self.folder / "embeddings" / f"{self.stem}.npy"

    def write_header(self, file: BinaryIO) -> None:
        """Write numpy's header, version 1.0."""
        header = {"descr": np.dtype(self.dtype).str, "fortran_order": False, "shape": (self.rows, self.dim)}
        np.lib.format.write_array_header_1_0(file, header)


class SafetensorsPart(_ArrayPart):
    """A .safetensors file per part, with the provenance in its header."""

    name = "safetensors"

    def array_path(self) -> Path:
        """Return a path beside the metadata folder."""
        return self.folder / f"{self.stem}.safetensors"

    def write_header(self, file: BinaryIO) -> None:
        """Write the length of the JSON header, then the header: by hand, because rows are streamed."""
        size = self.rows * self.dim * np.dtype(self.dtype).itemsize
        kind = {2: "F16", 4: "F32"}[np.dtype(self.dtype).itemsize]
        provenance = (self.schema.metadata or {}).get(METADATA_KEY, b"{}").decode()
        header = json.dumps(
            {
                "__metadata__": {"c3": provenance},
                "embedding": {"dtype": kind, "shape": [self.rows, self.dim], "data_offsets": [0, size]},
            }
        ).encode()
        header += b" " * (-len(header) % 8)
        file.write(struct.pack("<Q", len(header)) + header)


PART_WRITERS: dict[str, type[PartWriter]] = {
    writer.name: writer for writer in (ParquetPart, NpyPart, SafetensorsPart, HfPart)
}


def _folder_name(split: str) -> str:
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in split)


@contextmanager
def in_thread() -> Iterator[Callable[..., None]]:
    """Yield a function that runs a call in a thread: a block is written while the next one is transformed."""
    pending: list[Future[None]] = []

    def run(write: Callable[..., None], *arguments: Any) -> None:
        if pending:
            pending.pop().result()
        pending.append(thread.submit(write, *arguments))

    with ThreadPoolExecutor(max_workers=1) as thread:
        yield run
        if pending:
            pending.pop().result()


def dataset_card(output: Path, provenance: dict[str, Any], modalities: Sequence[str]) -> str:
    """Return the README that tells Hugging Face datasets which files are which split."""
    lines = ["---", "configs:"]
    for modality in modalities:
        lines += [f"- config_name: {modality}", "  data_files:"]
        for folder in names_in(output / modality)[0]:
            lines += [f"  - split: {folder}", f"    path: {modality}/{folder}/*.parquet"]
    text = (
        f"Embeddings of {provenance['store']['model'].get('name')}, transformed by the pipeline "
        f"{provenance['transform']['name']}. The fitted pipeline is in transform.json and transform.safetensors "
        '(`c3tools.Pipeline.load(".")`), the provenance in export.json.'
    )
    return "\n".join([*lines, "---", "", text, ""])
