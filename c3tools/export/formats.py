"""The formats of exports: how the files of one part are laid out. A new one is a class here.

    parquet       text/part-00000.parquet: a store whose rows went through the pipeline, with the
                  column role; plain values, which DuckDB can read (it cannot read byte-stream split
                  of float16)
    table         rows/text-00000.parquet: the rows of all modalities, with the same columns
    npy           text/embeddings/part-00000.npy + text/metadata/part-00000.parquet: the layout that
                  embedding-reader (file format parquet_npy) and autofaiss read
    safetensors   text/part-00000.safetensors (tensor "embedding") +
                  text/metadata/part-00000.parquet
    hf            text/train/part-00000.parquet, one folder per split, for datasets.load_dataset

Each part has Parquet files, written last, whose metadata say what the part was made from.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import save

from ..arrays import Matrix
from ..io.files import write_atomically
from ..store import Failure, StoreInfo, embedding_matrix
from ..store.shards import (
    INFO_FILE,
    ONE_TABLE,
    PIPELINE_FILE,
    ShardRecord,
    part_name,
    part_named,
    shard_schema,
    write_rows,
)

CARD_FILE = "README.md"


@dataclass(frozen=True)
class Part:
    """A part of an export that is to be written.

    Attributes:
        modality: of its rows.
        number: of the shard that it is made of, and its own.
        made_from: digest of all that its rows depend on.
        folder: to write its files below.
    """

    modality: str
    number: int
    made_from: str
    folder: Path

    @property
    def stem(self) -> str:
        """The name of its files without the suffix."""
        return f"part-{self.number:05d}"


class Format(ABC):
    """A layout of the files of a part.

    Attributes:
        name: as `--format` has it.
        arrays: number of files of a part that are not tables.
        columns: of the rows of a store to keep; None for all.
        digest: of whatever else the rows depend on.
    """

    name: ClassVar[str]
    arrays: int = 0
    columns: ClassVar[tuple[str, ...] | None] = None
    digest: str = ""

    def encode(self, rows: Matrix) -> npt.NDArray[Any]:
        """Return what is written for transformed rows (n, d), as an array of n rows."""
        return rows

    @abstractmethod
    def write(
        self, part: Part, info: StoreInfo, rows: pa.Table, failures: Sequence[Failure]
    ) -> ShardRecord | None:
        """Write the files of a part, each complete or not at all, and return the record of a shard
        of a store.

        Args:
            part: the part.
            info: of the export; repeated in the metadata of the files.
            rows: with the columns of `c3tools.store.shards.shard_schema`, and role.
            failures: the inputs of the shard that were not embedded.
        """

    def card(self, names: Sequence[str], info: StoreInfo) -> str | None:
        """Return the content of README.md, given the names of all files; None for no such file."""
        return None


class ParquetFormat(Format):
    """Shards of a store."""

    name = "parquet"

    def write(
        self, part: Part, info: StoreInfo, rows: pa.Table, failures: Sequence[Failure]
    ) -> ShardRecord:
        """Write the shard."""
        path = part.folder / part_name(part.modality, part.number)
        return write_rows(
            path, info, part.modality, rows, failures, part.made_from, split_bytes=False
        )


class TableFormat(Format):
    """One table of the rows of all modalities, with a column modality and keys such as image/KEY.

    Args:
        modalities: of the store, also those that are not exported: their columns are in all files.
    """

    name = "table"

    def __init__(self, modalities: Collection[str]) -> None:
        self.modalities = sorted(modalities)
        self.digest = " ".join(self.modalities)

    def write(
        self, part: Part, info: StoreInfo, rows: pa.Table, failures: Sequence[Failure]
    ) -> None:
        """Write the rows with the columns of all modalities."""
        modality = pa.scalar(part.modality)
        columns: dict[str, Any] = {}
        for field in pa.unify_schemas([shard_schema(name, info) for name in self.modalities]):
            if field.name in rows.column_names:
                columns[field.name] = rows.column(field.name)
            else:
                columns[field.name] = pa.nulls(len(rows), field.type)
        columns["key"] = pc.binary_join_element_wise(modality, columns["key"], "/")
        columns["modality"] = pa.repeat(modality, len(rows))
        columns["role"] = rows.column("role")
        path = part.folder / ONE_TABLE / f"{part.modality}-{part.number:05d}.parquet"
        table = pa.table(columns)
        write_rows(path, info, part.modality, table, (), part.made_from, split_bytes=False)


class _ArrayFormat(Format):
    """An array of the embeddings, and a table of the other columns."""

    arrays = 1

    def write(
        self, part: Part, info: StoreInfo, rows: pa.Table, failures: Sequence[Failure]
    ) -> None:
        """Write the array, then the table."""
        matrix = embedding_matrix(rows, info.dtype)
        write_atomically(
            part.folder / self.array_name(part), lambda path: self.save(path, matrix, info)
        )
        path = part.folder / part.modality / "metadata" / f"{part.stem}.parquet"
        table = rows.drop_columns(["embedding"])
        write_rows(path, info, part.modality, table, (), part.made_from, split_bytes=False)

    @abstractmethod
    def array_name(self, part: Part) -> str:
        """Return the name of the file of the array."""

    @abstractmethod
    def save(self, path: Path, matrix: npt.NDArray[Any], info: StoreInfo) -> None:
        """Write the array (n, d)."""


class NpyFormat(_ArrayFormat):
    """Arrays of numpy."""

    name = "npy"

    def array_name(self, part: Part) -> str:
        """See `_ArrayFormat.array_name`."""
        return f"{part.modality}/embeddings/{part.stem}.npy"

    def save(self, path: Path, matrix: npt.NDArray[Any], info: StoreInfo) -> None:
        """See `_ArrayFormat.save`."""
        with path.open("wb") as file:
            np.save(file, matrix)


class SafetensorsFormat(_ArrayFormat):
    """Tensors named embedding, with a copy of store.json in the header."""

    name = "safetensors"

    def array_name(self, part: Part) -> str:
        """See `_ArrayFormat.array_name`."""
        return f"{part.modality}/{part.stem}.safetensors"

    def save(self, path: Path, matrix: npt.NDArray[Any], info: StoreInfo) -> None:
        """See `_ArrayFormat.save`."""
        header = {"c3": json.dumps(info.to_dict(), sort_keys=True)}
        path.write_bytes(save({"embedding": matrix}, header))


class DatasetsFormat(Format):
    """A folder for `datasets.load_dataset`, with a card that says which files are which split."""

    name = "hf"

    def write(
        self, part: Part, info: StoreInfo, rows: pa.Table, failures: Sequence[Failure]
    ) -> None:
        """Write one file for each split."""
        splits = rows.column("split")
        for split in splits.unique().to_pylist():
            folder = part.folder / part.modality / re.sub(r"[^\w-]", "_", str(split))
            own_rows = rows.filter(pc.equal(splits, pa.scalar(split, pa.string())))
            path = folder / f"{part.stem}.parquet"
            write_rows(path, info, part.modality, own_rows, (), part.made_from, split_bytes=False)

    def card(self, names: Sequence[str], info: StoreInfo) -> str | None:
        """See `Format.card`."""
        folders: dict[str, set[str]] = {}  # of the splits, by modality
        for name in names:
            part = part_named(name)
            if part is not None:
                folders.setdefault(part[0], set()).add(name.split("/")[1])
        lines = ["---", "configs:"]
        for modality in sorted(folders):
            lines += [f"- config_name: {modality}", "  data_files:"]
            for split in sorted(folders[modality]):
                lines += [f"  - split: {split}", f"    path: {modality}/{split}/*.parquet"]
        text = (
            f"Embeddings of {info.model.get('name')}, transformed by the pipeline "
            f"{info.exported['transform']['name']}. The fitted pipeline, for new embeddings, is in "
            f'{PIPELINE_FILE} and transform.safetensors (`c3tools.Pipeline.load(".")`), the '
            f"provenance in {INFO_FILE}."
        )
        return "\n".join([*lines, "---", "", text, ""])


FORMATS: dict[str, Format] = {
    made.name: made
    for made in (
        ParquetFormat(),
        NpyFormat(),
        SafetensorsFormat(),
        DatasetsFormat(),
    )
}
"""The formats of `c3 export`, by name."""
