"""The files of a store: `store.json`, which says what its embeddings are, one file a shard, and
`failures.parquet`.

    image/part-00000.parquet    key, embedding, and the columns of the modality

A shard takes a fixed block of inputs. The metadata of its file have a copy of store.json, its
modality, the inputs that failed, and ``made_from``, a digest of the settings that the shard was
made with. It is written under a temporary name and renamed, so it exists whole or not at all, and
every page has a checksum.

`open_shard` is the one place where rows are read. It compares the file with what the manifest
records of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..corpus.items import Failure as Failure  # noqa: PLC0414 - other modules take it from here
from ..errors import UPDATE, StoreError, UnreachableError
from ..identity import ModelIdentity
from ..io.artifact import digest_of
from ..io.files import MALFORMED, read_json, read_limited, sha256_of, write_atomically
from ..io.locations import (
    SMALL_BLOCK,
    kind_of,
    name_or_file,
    names_below,
    names_in,
    on_this_machine,
    open_binary,
    size_of,
    unread_is_not_damaged,
    version_at,
)
from ..moments import Moments
from .rows import embedding_matrix, row_splits

FORMAT_VERSION = 1
CODE_FORMAT = "code"  # of an index: rows have a FAISS code
INFO_FILE = "store.json"
FAILURES_FILE = "failures.parquet"
MANIFEST_FILE = "manifest.json"
COPY_FILE = "copied.json"  # of `c3 merge` and `c3 split`
PIPELINE_FILE = "transform.json"  # beside rows that went through a pipeline
_Dim = Annotated[int, msgspec.Meta(gt=0, le=1_000_000)]
_Carried = Annotated[str, msgspec.Meta(pattern="^(string|int64|double|bool)$")]
_Dtype = Annotated[str, msgspec.Meta(pattern="^float(16|32)$")]
ShardName = tuple[str, int]  # modality and number
SplitMoments = dict[str, Moments]  # by the split that the rows name
VECTOR_COLUMNS = frozenset({"embedding", "code"})
METADATA_KEY, FAILURES_KEY, MADE_FROM_KEY = b"c3", b"c3.failures", b"c3.made_from"
MODALITY_KEY = b"c3.modality"
ROW_GROUP_ROWS = 8192
_MAKE_AGAIN = (
    "Run `c3 verify --repair`, then run the command that made the store again; it recreates only "
    "this shard."
)
_NO_STORE = "Make one with `c3 embed PATH`, or choose another with --store."
_LAYOUT = (
    "A store contains store.json; in files of other programs, rows need the columns key and "
    "embedding."
)
_EXPORT_AGAIN = "Export again with -f parquet."
_SHARD = re.compile(r"([^._/][^/]*)/part-(\d{5,9})\.parquet")
# files of exports that are no stores: of a modality, perhaps in a folder of it
_EXPORTED = re.compile(
    r"([^._/][^/]*)/(?:[^._/][^/]*/)?part-(\d{5,9})\.(?:parquet|npy|safetensors)"
)
ONE_TABLE = "rows"  # the folder of an export of all modalities in one table
FUSED = "fused"  # the modality of rows that are an image and its first text, of `c3 export --fuse`
_ONE_TABLE = re.compile(rf"{ONE_TABLE}/([^._/][^/]*)-(\d{{5,9}})\.parquet")
_FILE = {
    "path": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "size": pa.int64(),
    "sha256": pa.string(),
}
_COLUMNS: dict[str, dict[str, Any]] = {
    "image": _FILE,
    "video": {**_FILE, "frames": pa.int32(), "duration": pa.float32()},
    "audio": {
        "path": pa.string(),
        "size": pa.int64(),
        "sha256": pa.string(),
        "duration": pa.float32(),
        "pair_key": pa.string(),
    },
    "text": {"caption": pa.string(), "image_key": pa.string()},
    FUSED: {**_FILE, "caption": pa.string()},
}
# the types of columns that rows carry from a table of the user
CARRIED_TYPES: dict[str, Any] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
}
# the names of columns of stores, exports and indexes
CORPUS_SPLIT = "corpus_split"
OWN_COLUMNS = {
    *("key", "embedding", "code", "pair_key", "split", CORPUS_SPLIT, "role", "modality")
}.union(*_COLUMNS.values())


@dataclass(frozen=True)
class StoreInfo:
    """Identity of the embeddings in a store: the content of `store.json`, repeated in the metadata
    of every shard.

    Attributes:
        model: ``name``, ``architecture``, ``pretrained``, ``weights_sha256``, ``random_init`` of
            the encoder; for imported embeddings ``name`` alone.
        dim: dimension d of the embeddings.
        dtype: ``float16`` or ``float32``, as stored.
        normalised: whether the embeddings have unit L2 norm.
        preprocessing: how images were resized and scaled.
        precision: of the encoder: ``fp32``, ``bf16``, ``fp16``, ``int8``, or None if unknown.
        backend: of the encoder: ``torch``, ``openvino``, or None if unknown.
        columns: the types of the columns that rows carry from a table of the user, by name; see
            `c3tools.inputs.carried`.
        extra: anything else worth keeping (for example where an import came from).
    """

    model: ModelIdentity
    dim: _Dim
    dtype: _Dtype = "float16"
    normalised: bool = True
    preprocessing: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    backend: str | None = None
    columns: dict[str, _Carried] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of store.json."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def decode(cls, content: bytes, source: Path) -> StoreInfo:
        """Build the information from the content of a store.json, or of its copy in the file
        ``source``.
        """
        value = msgspec.json.decode(content)
        if value["format_version"] > FORMAT_VERSION:
            raise StoreError(f"{source} was written by a newer version of c3tools.", remedy=UPDATE)
        return msgspec.convert(value, cls, dec_hook=lambda kind, content: kind(content))

    @classmethod
    def load(cls, store: Path) -> StoreInfo:
        """Read ``store/store.json``."""
        path = store / INFO_FILE
        with refusing_damage(
            path, "`c3 verify --repair` rewrites it from a shard: every shard contains a copy."
        ):
            if kind_of(path):
                return cls.decode(read_limited(path), path)
        return cls._of_other_program(store)

    @classmethod
    def find(cls, store: Path) -> StoreInfo | None:
        """Read ``store/store.json``; None if there is none."""
        return cls.load(store) if kind_of(store / INFO_FILE) == "file" else None

    @classmethod
    def _of_other_program(cls, store: Path) -> StoreInfo:
        """Describe rows in the layout of an export from their first file, and from a pipeline
        beside it.
        """
        shards = shards_in(store)
        if not shards:
            raise StoreError(
                f"There is no store at {store} ({INFO_FILE} is missing).", remedy=_NO_STORE
            )
        info_is_lost = StoreError(
            f"The store {store} has shards, but no {INFO_FILE}.",
            remedy=f"Write it again from a shard: c3 verify --store {store} --repair",
        )
        beside = names_in(store)[1]
        if MANIFEST_FILE in beside:
            raise info_is_lost
        first_file = store / part_name(*shards[0])
        with (
            refusing_damage(first_file, _LAYOUT),
            name_or_file(first_file) as source,
            pq.ParquetFile(source) as file,
        ):
            if not file.metadata.num_rows:
                raise ValueError("it has no rows")
            embeddings = next(file.iter_batches(1, columns=["embedding"])).column("embedding")
            is_shard_of_ours = METADATA_KEY in (file.schema_arrow.metadata or {})
        if is_shard_of_ours:
            raise info_is_lost

        # Rows that went through a pipeline have it beside them
        model: dict[str, Any] = {}
        extra: dict[str, Any] = {"rows_of": "another program"}
        if PIPELINE_FILE in beside:
            with refusing_damage(store / PIPELINE_FILE, "Save the pipeline again."):
                pipeline = read_json(store / PIPELINE_FILE)
                model = pipeline["provenance"].get("model") or {}
                extra["exported"] = {"settings": {"applied": len(pipeline["steps"])}}
        dtype = "float16" if embeddings.type.value_type == pa.float16() else "float32"
        dim = len(embeddings[0])
        return cls(ModelIdentity(model), dim, dtype, normalised=False, extra=extra)

    @property
    def exported(self) -> dict[str, Any]:
        """The record of an export: what its rows were made from; empty for other stores."""
        record: dict[str, Any] = self.extra.get("exported", {})
        return record

    @property
    def export_format(self) -> str | None:
        """The format of an export, `CODE_FORMAT` for an index; None for a store of embeddings,
        which an export to Parquet is too.
        """
        form: str = self.exported.get("settings", {}).get("format", "parquet")
        return None if form == "parquet" else form

    @property
    def code_size(self) -> int:
        """Bytes of the FAISS code that rows of an index have in place of an embedding, else 0."""
        size: int = self.exported.get("settings", {}).get("code_size", 0)
        return size

    def require_embeddings(self, path: Path) -> None:
        """Refuse the exports that are not stores of embeddings.

        Raises:
            StoreError: with the format.
        """
        if self.export_format == CODE_FORMAT:
            raise StoreError(
                f"{path} is an index, which has no embeddings.",
                remedy=f"Search it with `c3 search --index {path}`, or choose another --store.",
            )
        if self.export_format == "table":
            raise StoreError(
                f"{path} is an export to one table, which is not a store.",
                remedy="Export again without --one-table.",
            )
        if self.export_format is not None:
            raise StoreError(
                f"{path} is an export to {self.export_format}, but only exports to Parquet are "
                "stores.",
                remedy=_EXPORT_AGAIN,
            )

    def require_raw(self, path: Path, remedy: str = "Pass the store that was exported.") -> None:
        """Refuse an export, where the encoder's own embeddings are needed.

        Raises:
            StoreError: with the remedy.
        """
        if self.exported:
            raise StoreError(
                f"{path} is an export. Its rows went through a pipeline, so they are no longer the "
                f"encoder's embeddings.",
                remedy=remedy,
            )

    @property
    def command(self) -> str:
        """The command that makes the shards of this store."""
        if self.export_format == CODE_FORMAT:
            return "c3 index"
        if self.exported:
            return "c3 export"
        return "c3 import" if "imported" in self.extra else "c3 embed"

    def require_same_model(
        self, model: Mapping[str, Any], *, own: str, theirs: str, remedy: str = ""
    ) -> None:
        """Refuse to mix embeddings of two models (see `ModelIdentity.require_same`)."""
        remedy = remedy or "Use the same --model, or choose another --store."
        self.model.require_same(model, own=own, theirs=theirs, error=StoreError, remedy=remedy)

    def require_same(
        self, other: StoreInfo, *more: str, own: str, theirs: str, remedy: str = ""
    ) -> None:
        """Refuse to mix embeddings of two models, dimensions or dtypes, or that differ in ``more``
        attributes; without a ``remedy``, the message gives that of `c3 embed`.
        """
        self.require_same_model(other.model, own=own, theirs=theirs, remedy=remedy)
        for name in ("dim", "dtype", "normalised", "columns", *more):
            if (here := getattr(self, name)) != (there := getattr(other, name)):
                raise StoreError(
                    f"{own} has {name} = {here}, but {theirs} {there}.",
                    remedy=remedy or "Use the same options as before, or choose another --store.",
                )


def write_failures(store: Path, failures: Iterable[Failure]) -> None:
    """Write failures.parquet: one row per input that was not embedded, sorted.

    Of several failures of one input the last counts. Keys tell inputs apart, except while they are
    listed: there a key is a file name, which may be in several folders.
    """
    unique = {(f.stage, f.key, f.path if f.stage == "list" else ""): f for f in failures}
    schema = pa.schema([(name, pa.string()) for name in Failure.__dataclass_fields__])
    table = pa.Table.from_pylist([asdict(unique[name]) for name in sorted(unique)], schema)
    write_atomically(
        store / FAILURES_FILE, lambda path: pq.write_table(table, path, write_page_checksum=True)
    )


def read_failures(store: Path) -> list[Failure]:
    """Return the rows of failures.parquet; none if there is no such file."""
    path = store / FAILURES_FILE
    if kind_of(path) is None:
        return []
    with (
        refusing_damage(path, "Write it again: c3 verify --repair"),
        name_or_file(path) as source,
        # read_table imports pandas
        pq.ParquetFile(source, page_checksum_verification=True) as file,
    ):
        return msgspec.convert(file.read().to_pylist(), list[Failure])


class ShardRecord(NamedTuple):
    """A shard in the manifest: its number of rows, its SHA-256, its size in bytes, and a digest of
    the keys of its rows that are left out, empty without such rows.
    """

    rows: int
    sha256: str
    size: int
    left_out: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, without an empty digest."""
        return {name: value for name, value in self._asdict().items() if value != ""}


class WrongShardError(StoreError):
    """A shard is not the one that the manifest lists."""


class _ShardHeader(NamedTuple):
    """The metadata of a shard: number of rows, store.json (None for another program's), failed
    inputs, settings.
    """

    rows: int
    info: StoreInfo | None
    failures: list[Failure]
    made_from: str


def part_name(modality: str, index: int) -> str:
    """Return the name of a shard, relative to the store: ``image/part-00000.parquet``."""
    return f"{modality}/part-{index:05d}.parquet"


def shard_named(name: str) -> ShardName | None:
    """Return the shard whose file has this name, relative to the store; None for other files."""
    match = _SHARD.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def part_named(name: str) -> ShardName | None:
    """Return the part of an export of any format that a file belongs to; None for other files."""
    match = _EXPORTED.fullmatch(name) or _ONE_TABLE.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def shards_in(store: Path) -> list[ShardName]:
    """Return all shards that are in a folder, listed in its manifest or not, ascending."""
    return sorted(shards_among(names_below(store)))


def shards_among(names: Iterable[str]) -> set[ShardName]:
    """Return the shards among the files of a store; see `shard_named`."""
    return {shard for shard in map(shard_named, names) if shard is not None}


def shard_schema(modality: str, info: StoreInfo) -> pa.Schema:
    """Return the Arrow schema of a shard: key, embedding, the columns of the modality, and those
    that the rows carry.

    Rows of an index have a column ``code`` in place of the embedding. Modalities other than
    ``image``, ``video`` and ``text`` have ``pair_key`` (the key of the row's item) and ``split``.
    Rows of a store have ``corpus_split``, the name that the corpus has for their split.
    """
    columns = {**_COLUMNS.get(modality, {"pair_key": pa.string()}), "split": pa.string()}
    if not info.exported:
        columns[CORPUS_SPLIT] = pa.string()
    value_type = pa.float16() if info.dtype == "float16" else pa.float32()
    embedding = pa.list_(pa.field("element", value_type, nullable=False), info.dim)
    vector: pa.Field[Any] = pa.field("embedding", embedding, nullable=False)
    if info.code_size:
        vector = pa.field("code", pa.binary(info.code_size), nullable=False)
    for name in sorted(info.columns):
        columns[name] = CARRIED_TYPES[info.columns[name]]
    others = [pa.field(name, kind) for name, kind in columns.items()]
    return pa.schema([pa.field("key", pa.string(), nullable=False), vector, *others])


def shard_table(
    info: StoreInfo,
    modality: str,
    embeddings: npt.NDArray[Any],
    columns: Mapping[str, Sequence[Any]],
) -> pa.Table:
    """Return the rows of a shard with the columns of its modality.

    Args:
        info: of the store; embeddings are cast to its dtype.
        modality: ``image``, ``text``, or another name.
        embeddings: (n, d), of any float dtype; of an index, codes uint8 (n, bytes of a code).
        columns: ``key`` and the columns of the modality, n values each; a missing column is null.
    """
    count = len(columns["key"])
    schema = shard_schema(modality, info)
    arrays: list[Any] = []
    for column in schema:
        if column.name == "embedding":
            matrix = np.asarray(embeddings).reshape(count, info.dim)
            flat = matrix.astype(info.dtype, copy=False).reshape(-1)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=column.type))
        elif column.name == "code":
            content = pa.py_buffer(np.ascontiguousarray(embeddings).data)
            arrays.append(pa.FixedSizeBinaryArray.from_buffers(column.type, count, [None, content]))
        else:
            values = columns.get(column.name, [None] * count)
            arrays.append(pa.array(values, type=column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_rows(
    path: Path,
    info: StoreInfo,
    modality: str,
    rows: pa.Table,
    failures: Sequence[Failure] = (),
    made_from: str | None = None,
    *,
    split_bytes: bool = True,
) -> ShardRecord:
    """Write the file of a shard, complete or not at all: zstd, byte-stream split on the embedding,
    dictionary on keys.

    Measured on CLIP embeddings, this is the smallest of the layouts and as fast to read as any. The
    column ``split`` is settled: train, val, test or another name in lower case, never null.

    Args:
        path: of the file, on this machine or at a URL.
        info: of the store; repeated in the metadata of the file.
        modality: of the rows; in the metadata too.
        rows: with the columns of `shard_schema`, and others if there are any.
        failures: the inputs of this shard that were not embedded.
        made_from: digest of the settings; None for that of ``info``.
        split_bytes: False for files that other programs are to read: DuckDB reads no byte-stream
            split of float16.

    Returns:
        the record of the shard for the manifest, of the bytes that were written.
    """
    metadata = {
        METADATA_KEY: json.dumps(info.to_dict(), sort_keys=True),
        MODALITY_KEY: modality,
        FAILURES_KEY: json.dumps([asdict(failure) for failure in failures]),
        MADE_FROM_KEY: made_from or digest_of(info),
    }
    names = rows.column_names
    if "split" in names:
        splits = pa.array(row_splits(rows), pa.string())
        rows = rows.set_column(names.index("split"), "split", splits)
    vector = "embedding.list.element" if "embedding" in names else "code"
    # plain values and codes hardly get smaller, and are written and read in half the time as they
    # are
    is_split = split_bytes and vector != "code"
    compression: Any = dict.fromkeys(names, "zstd")
    compression[vector] = "zstd" if is_split else "none"
    options: Any = {
        "row_group_size": ROW_GROUP_ROWS,
        "compression": compression,
        "use_dictionary": ["key"],
        "use_byte_stream_split": [vector] if is_split else False,
        "write_statistics": [name for name in names if name not in VECTOR_COLUMNS],
        "write_page_checksum": True,
    }

    def write(file: Path) -> ShardRecord:
        pq.write_table(rows.replace_schema_metadata(metadata), file, **options)
        return ShardRecord(len(rows), sha256_of(file), size_of(file))

    return write_atomically(path, write)


@contextmanager
def refusing_damage(path: Path, remedy: str = _MAKE_AGAIN) -> Iterator[None]:
    """Turn what comes of reading a damaged file of a store in the block into a StoreError with the
    file.

    Raises:
        StoreError: with the remedy, by default that of a shard.
        UnreachableError: if the file is there and cannot be read.
        MemoryError: if this machine has too little memory to read it.
    """
    try:
        with unread_is_not_damaged(path):
            yield
    except (UnreachableError, MemoryError):
        raise
    except (OSError, *MALFORMED, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}).", remedy=remedy) from error


def read_header(path: Path) -> _ShardHeader:
    """Read a shard's metadata, and no row. Files of other programs have none."""
    with (
        refusing_damage(path),
        name_or_file(path, SMALL_BLOCK) as source,
        pq.ParquetFile(source) as file,
    ):
        return header_of(file, path)


def header_of(shard: pq.ParquetFile, path: Path) -> _ShardHeader:
    """Return the metadata of an open shard; ``path`` is for messages."""
    with refusing_damage(path):
        metadata = shard.schema_arrow.metadata or {}
        info = StoreInfo.decode(metadata[METADATA_KEY], path) if METADATA_KEY in metadata else None
        failures = msgspec.json.decode(metadata.get(FAILURES_KEY, b"[]"), type=list[Failure])
        made_from = metadata.get(MADE_FROM_KEY, b"").decode()
        return _ShardHeader(shard.metadata.num_rows, info, failures, made_from)


@contextmanager
def open_shard(
    path: Path,
    modality: str,
    columns: Sequence[str] | None = None,
    record: ShardRecord | None = None,
    verified: dict[Path, object] | None = None,
) -> Iterator[pq.ParquetFile]:
    """Open a shard for reading, and refuse one that is not the shard on record.

    If the columns include the embedding or the code, the SHA-256 of the file is compared before a
    row is read; otherwise only its size and number of rows. The file is opened once, so the bytes
    that are hashed are those that are read, even if another file takes its name in the meantime. A
    shard at a URL is downloaded for the comparison. Later reads of the same version fetch only the
    parts that they need.

    Args:
        path: of the file, on this machine or at a URL.
        modality: of its rows.
        columns: that will be read; None for all.
        record: what the manifest says of it; None for a shard that is not listed.
        verified: by URL, the version whose SHA-256 was compared; extended here.

    Raises:
        WrongShardError: if it is not the shard on record, or has rows of another modality.
        StoreError: if it is damaged.
        UnreachableError: if it is there and cannot be read.
    """
    reads_vectors = columns is None or not VECTOR_COLUMNS.isdisjoint(columns)
    checks_digest = record is not None and reads_vectors
    version = None
    # What the caller does with the open shard is not taken for damage
    with ExitStack() as opened:
        with refusing_damage(path):
            if checks_digest and verified is not None and not isinstance(path, Path):
                version = version_at(path)
                checks_digest = verified.get(path) != version
            block = None if reads_vectors else SMALL_BLOCK
            source = opened.enter_context(_open_once(path, block, download=checks_digest))
            if record is not None:
                size = source.seek(0, os.SEEK_END)
                source.seek(0)
                if size != record.size:
                    raise _wrong(path, f"it has {size:,} bytes instead of {record.size:,}")
                digest = record.sha256
                if checks_digest:
                    digest = hashlib.file_digest(source, "sha256").hexdigest()
                if digest != record.sha256:
                    raise _wrong(path, "its SHA-256 is different")
            if version is not None and verified is not None:
                verified[path] = version
            # The checksums of pages would say again what the SHA-256 has said
            shard = opened.enter_context(
                pq.ParquetFile(source, page_checksum_verification=not checks_digest)
            )
            rows = shard.metadata.num_rows
            if record is not None and rows != record.rows:
                raise _wrong(path, f"it has {rows:,} rows instead of {record.rows:,}")
            metadata = shard.schema_arrow.metadata or {}
            written_as = metadata.get(MODALITY_KEY, modality.encode()).decode()
            if written_as != modality:
                raise WrongShardError(
                    f"{path} contains {written_as} rows, but lies in the folder of {modality} "
                    f"rows.",
                    remedy=_MAKE_AGAIN,
                )
        yield shard


@contextmanager
def _open_once(path: Path, block: int | None, *, download: bool) -> Iterator[Any]:
    """Open a file. A URL is read in ranges of ``block`` bytes, or downloaded first."""
    if not isinstance(path, Path) and not download:
        with open_binary(path, block) as file:
            yield file
        return
    with (
        on_this_machine(path) as local,
        pa.OSFile(os.fsencode(local), "rb") as native,  # type: ignore[arg-type]
    ):
        yield native


def _wrong(path: Path, difference: str) -> WrongShardError:
    return WrongShardError(
        f"{path} is not the shard that {MANIFEST_FILE} lists: {difference}.", remedy=_MAKE_AGAIN
    )


def shard_batches(
    shard: pq.ParquetFile, path: Path, schema: pa.Schema, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an open shard with the columns of a schema, or those of them that are
    named, null where the shard has none, and then the other columns of the shard; the checksums of
    its pages are compared. In a shard of an older version, the column ``split`` has the names of
    the corpus, which become ``corpus_split`` too.

    Args:
        shard: open.
        path: of its file, for messages.
        schema: of the rows.
        columns: their names; None for all.

    Raises:
        StoreError: if rows cannot be read. Errors of the caller pass as they are.
    """
    wanted = [field for field in schema if columns is None or field.name in columns]
    names = None if columns is None else list(columns)
    with refusing_damage(path):
        batches = shard.iter_batches(batch_size=ROW_GROUP_ROWS, columns=names)
    while True:
        with refusing_damage(path):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # text that is not UTF-8 would fail later
            others = dict(zip(batch.schema.names, batch.columns, strict=True))
            arrays = []
            for column in wanted:
                values = others.pop(column.name, None)
                if values is None and column.name == CORPUS_SPLIT and "split" in batch.schema.names:
                    values = batch.column("split")
                if values is None:
                    values = pa.nulls(len(batch), column.type)
                if values.null_count and not column.nullable:
                    raise ValueError(f"it has rows without {column.name!r}")
                arrays.append(values.cast(column.type))
            all_columns = pa.schema([*wanted, *(batch.schema.field(name) for name in others)])
            rows = pa.RecordBatch.from_arrays([*arrays, *others.values()], schema=all_columns)
        yield rows


def read_batches(
    path: Path,
    modality: str,
    info: StoreInfo,
    columns: Sequence[str] | None = None,
    record: ShardRecord | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a shard; see `shard_batches`, and `open_shard` for the record."""
    with open_shard(path, modality, columns, record) as shard:
        yield from shard_batches(shard, path, shard_schema(modality, info), columns)


def add_moments(groups: dict[str, Moments], modality: str, batch: pa.RecordBatch) -> None:
    """Add rows to the moments of their splits, ``image/train`` and others.

    The moments are those of the stored values, so that they can be checked against the rows.
    """
    dtype = batch.schema.field("embedding").type.value_type.to_pandas_dtype()
    matrix = embedding_matrix(batch, dtype)
    splits = np.array(row_splits(batch), dtype=object)
    batch_groups = {}
    for split in sorted(set(splits)):
        batch_groups[f"{modality}/{split}"] = Moments.from_rows(matrix[splits == split])
    Moments.add_groups(groups, batch_groups)


def moments_of(modality: str, rows: pa.Table) -> SplitMoments:
    """Return the moments of rows by modality and split, ``fused/train`` and others."""
    groups: SplitMoments = {}
    for batch in rows.to_batches():
        add_moments(groups, modality, batch)
    return groups
