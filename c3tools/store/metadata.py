"""The description of a store, `store.json`, and `failures.parquet`, the inputs that were not embedded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnreachableError
from ..identity import ModelIdentity
from ..io.files import MALFORMED, json_text, read_json, write_atomically
from ..io.locations import kind_of, name_or_file, unread_is_not_damaged

FORMAT_VERSION = 1
INFO_FILE = "store.json"
FAILURES_FILE = "failures.parquet"
UPDATE = "Update c3tools: pip install -U c3tools"
_Dim = Annotated[int, msgspec.Meta(gt=0, le=1_000_000)]
_Dtype = Annotated[str, msgspec.Meta(pattern="^float(16|32)$")]


@dataclass(frozen=True)
class StoreInfo:
    """Identity of the embeddings in a store: the content of `store.json`, repeated in the metadata of every shard.

    Attributes:
        model: ``name``, ``architecture``, ``pretrained``, ``weights_sha256``, ``random_init`` of the encoder; for
            imported embeddings ``name`` alone.
        dim: dimension d of the embeddings.
        dtype: ``float16`` or ``float32``, as stored.
        normalised: whether the embeddings have unit L2 norm.
        preprocessing: how images were resized and scaled.
        precision: of the encoder: ``fp32``, ``bf16``, ``fp16``, ``int8``, or None if unknown.
        backend: of the encoder: ``torch``, ``openvino``, or None if unknown.
        extra: anything else worth keeping (for example where an import came from).
    """

    model: ModelIdentity
    dim: _Dim
    dtype: _Dtype = "float16"
    normalised: bool = True
    preprocessing: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    backend: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", ModelIdentity(self.model))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of store.json."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Any, source: Path) -> StoreInfo:
        """Build the information from the content of the store.json at ``source``.

        Raises:
            StoreError: if it is not one, or comes from a newer format version.
        """
        try:
            json_text(value).encode()  # halves of characters could not be written again
            if int(value["format_version"]) > FORMAT_VERSION:
                raise StoreError(f"{source} was written by a newer version of c3tools.", remedy=UPDATE)
            return msgspec.convert(value, cls, dec_hook=lambda kind, content: kind(content))
        except MALFORMED as error:
            raise StoreError(
                f"{source} does not describe a store ({error}).",
                remedy="`c3 verify --repair` rewrites it from a shard: every shard contains a copy.",
            ) from error

    @classmethod
    def load(cls, store: Path) -> StoreInfo:
        """Read ``store/store.json``.

        Raises:
            StoreError: if there is no store, or its description cannot be read.
        """
        path = store / INFO_FILE
        try:
            with unread_is_not_damaged(path):
                value = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"There is no store at {store} ({INFO_FILE} is missing).",
                remedy="Make one with `c3 embed PATH`, or choose another with --store.",
            ) from None
        except MALFORMED as error:
            value = str(error)  # which is no description
        return cls.from_dict(value, path)

    @property
    def command(self) -> str:
        """The command that makes the shards of this store."""
        return next((f"c3 {verb}" for verb in ("import", "export") if f"{verb}ed" in self.extra), "c3 embed")

    def require_same_model(self, model: Mapping[str, Any], *, own: str, theirs: str) -> None:
        """Refuse to mix embeddings of two models (see `ModelIdentity.require_same`).

        Raises:
            StoreError: if the models differ.
        """
        remedy = "Use the same --model, or choose another --store."
        self.model.require_same(ModelIdentity(model), own=own, theirs=theirs, error=StoreError, remedy=remedy)

    def require_same(self, other: StoreInfo, *more: str, own: str, theirs: str) -> None:
        """Refuse to mix embeddings of two models, dimensions or dtypes, or that differ in ``more`` attributes.

        Raises:
            StoreError: if they differ.
        """
        self.require_same_model(other.model, own=own, theirs=theirs)
        for name in ("dim", "dtype", "normalised", *more):
            if (here := getattr(self, name)) != (there := getattr(other, name)):
                raise StoreError(
                    f"{own} has {name} = {here}, but {theirs} {there}.",
                    remedy="Use the same options as before, or choose another --store.",
                )


@dataclass(frozen=True)
class Failure:
    """An input that was not embedded, and why: in the metadata of its shard, and a row of `failures.parquet`."""

    key: str
    path: str
    stage: str
    error: str
    message: str


def write_failures(store: Path, failures: Iterable[Failure]) -> None:
    """Write failures.parquet: one row per input that was not embedded, sorted.

    Of several failures of one input the last counts. Keys tell inputs apart, except while they are listed: there a key
    is a file name, which may be in several folders.
    """
    unique = {(f.stage, f.key, f.path if f.stage == "list" else ""): f for f in failures}
    schema = pa.schema([(name, pa.string()) for name in Failure.__dataclass_fields__])
    table = pa.Table.from_pylist([asdict(unique[name]) for name in sorted(unique)], schema)
    write_atomically(store / FAILURES_FILE, lambda path: pq.write_table(table, path, write_page_checksum=True))


def read_failures(store: Path) -> list[Failure]:
    """Return the rows of failures.parquet; none if there is no such file.

    Raises:
        StoreError: if it cannot be read.
    """
    path = store / FAILURES_FILE
    if kind_of(path) is None:
        return []
    try:
        with unread_is_not_damaged(path), name_or_file(path) as source:
            rows = pq.read_table(source, page_checksum_verification=True).to_pylist()
            return msgspec.convert(rows, list[Failure])
    except UnreachableError:
        raise
    except (OSError, *MALFORMED, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}).", remedy="Write it again: c3 verify --repair") from error


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value as it is written."""
    # lone surrogates, which file names may hold, have no UTF-8; written files never have them, read ones may
    return hashlib.sha256(json_text(value).encode("utf-8", "surrogatepass")).hexdigest()
