"""Records of a store beside its rows: `store.json`, the done marker of each shard, and `failures.parquet`.

A done marker makes a shard exist. It contains the checksums of the shard's files, and one of itself::

    {"checksum": ..., "failures": [...], "rows": n, "sha256": {file: digest}, "timings": {..., "checksum": ...}}

``checksum`` covers the marker without its timings, which have their own: the same input gives the same marker except
for the timings. Markers without checksums, from early versions, are read too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnreachableError
from ..identity import ModelIdentity
from ..io.files import SEAL_PLACE, json_text, read_json, read_limited, seal, write_atomically, write_json_atomically
from ..io.locations import kind_of, unread_is_not_damaged
from ..io.parquet import open_checked

FORMAT_VERSION = 1
INFO_FILE = "store.json"
FAILURES_FILE = "failures.parquet"
LARGEST_DIM = 1_000_000
CHECKSUM = "checksum"
_MARKER_FIELDS = {"rows", "failures", "sha256", "timings"}
_WRITTEN_ANEW = "`c3 verify --repair` rewrites it from a shard: every shard contains a copy."


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
        backend: of the encoder: ``torch``, ``openvino``, ``onnx``, or None if unknown.
        extra: anything else worth keeping (for example where an import came from).
    """

    model: ModelIdentity
    dim: int
    dtype: str = "float16"
    normalised: bool = True
    preprocessing: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    backend: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, Mapping):
            raise ValueError(f"model is {self.model!r}")
        object.__setattr__(self, "model", ModelIdentity(self.model))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of store.json."""
        content = asdict(self)
        if self.backend is None:  # as in stores from before there were backends
            del content["backend"]
        return {"format_version": FORMAT_VERSION, **content}

    @classmethod
    def from_dict(cls, value: Any, source: Path) -> StoreInfo:
        """Build the information from the content of the store.json at ``source``.

        Raises:
            StoreError: if it is not one, or comes from a newer format version.
        """
        try:
            json_text(value).encode()  # halves of characters could not be written again
            version = value["format_version"]
            if type(version) is not int or version < 1:
                raise ValueError(f"format_version is {version!r}")
            if version > FORMAT_VERSION:
                raise StoreError(
                    f"{source} has format version {version}, but this version of c3tools only reads up to "
                    f"{FORMAT_VERSION}.",
                    remedy="Update c3tools: pip install -U c3tools",
                )
            info = cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})
            info._check()
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{source} does not describe a store ({error!r}).", remedy=_WRITTEN_ANEW) from error
        return info

    def _check(self) -> None:
        """Raise a ValueError if a value is not valid."""
        valid = {
            "dim": type(self.dim) is int and 0 < self.dim <= LARGEST_DIM,
            "dtype": self.dtype in ("float16", "float32"),
            "normalised": isinstance(self.normalised, bool),
            "preprocessing": isinstance(self.preprocessing, dict),
            "precision": self.precision is None or isinstance(self.precision, str),
            "backend": self.backend is None or isinstance(self.backend, str),
            "extra": isinstance(self.extra, dict),
        }
        invalid = next((name for name, is_valid in valid.items() if not is_valid), None)
        if invalid:
            raise ValueError(f"{invalid} is {getattr(self, invalid)!r}")

    @classmethod
    def load(cls, store: Path) -> StoreInfo:
        """Read ``store/store.json``.

        Raises:
            StoreError: if there is no store, or its description cannot be read.
        """
        path = store / INFO_FILE
        try:
            with unread_is_not_damaged(path):
                return cls.from_dict(read_json(path), path)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"There is no store at {store} ({INFO_FILE} is missing).",
                remedy="Make one with `c3 embed PATH`, or choose another with --store.",
            ) from None
        except UnreachableError:  # the store may be intact
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{path} is damaged ({error}).", remedy=_WRITTEN_ANEW) from error

    @property
    def command(self) -> str:
        """The command that makes the shards of this store."""
        return "c3 import" if "imported" in self.extra else "c3 embed"

    def require_same_model(self, model: Mapping[str, Any], *, own: str, theirs: str) -> None:
        """Refuse to mix embeddings of two models (see `ModelIdentity.require_same`).

        Raises:
            StoreError: if the models differ.
        """
        remedy = "Use the same --model, or choose another --store."
        self.model.require_same(ModelIdentity(model), own=own, theirs=theirs, error=StoreError, remedy=remedy)


@dataclass(frozen=True)
class Failure:
    """An input that was not embedded, and why: an entry of a done marker, and a row of `failures.parquet`."""

    key: str
    path: str
    stage: str
    error: str
    message: str


_FAILURE_FIELDS = tuple(Failure.__dataclass_fields__)


def write_failures(store: Path, failures: Iterable[Failure]) -> list[Failure]:
    """Write failures.parquet, sealed: one row per input that was not embedded, sorted; return the rows.

    Of several failures of one input the last counts. Keys tell inputs apart, except while they are listed: there a key
    is a file name, which may be in several folders.
    """
    unique = {(f.stage, f.key, f.path if f.stage == "list" else ""): f for f in failures}
    written = [unique[name] for name in sorted(unique)]
    rows = [asdict(failure) for failure in written]
    schema = pa.schema([(name, pa.string()) for name in _FAILURE_FIELDS], metadata={"c3": SEAL_PLACE})
    columns = {name: pa.array([row[name] for row in rows], type=pa.string()) for name in _FAILURE_FIELDS}

    def write(path: Path) -> None:
        pq.write_table(pa.table(columns, schema=schema), path)
        seal(path)

    write_atomically(store / FAILURES_FILE, write)
    return written


def read_failures(store: Path) -> list[Failure]:
    """Return the rows of failures.parquet; none if there is no such file.

    Raises:
        StoreError: if it cannot be read.
    """
    return [failure for failures in failure_batches(store) for failure in failures]


def failure_batches(store: Path) -> Iterator[list[Failure]]:
    """Yield the rows of failures.parquet, some thousand at a time; none if there is no such file.

    Raises:
        StoreError: if it cannot be read.
    """
    path = store / FAILURES_FILE
    if kind_of(path) is None:
        return
    try:
        with unread_is_not_damaged(path), open_checked(path) as file:
            for batch in file.iter_batches(batch_size=8192):
                failures = [Failure(**row) for row in batch.to_pylist()]
                if not all(_is_text(asdict(failure)) for failure in failures):
                    raise TypeError("a value is missing or not a string")
                yield failures
    except UnreachableError:
        raise
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} cannot be read ({error}).", remedy="Delete it, then run `c3 embed` again to make it again."
        ) from error


def write_marker(path: Path, marker: Mapping[str, Any]) -> None:
    """Write a done marker (rows, failures, sha256, timings) with its checksums, complete or not at all."""
    content = {name: marker[name] for name in _MARKER_FIELDS}
    content["failures"] = [asdict(f) if isinstance(f, Failure) else f for f in content["failures"]]
    timings = _without_checksum(content["timings"])
    content["timings"] = {**timings, CHECKSUM: digest_of(timings)}
    write_json_atomically(path, {**content, CHECKSUM: marker_digest(content)})


def read_marker(path: Path) -> dict[str, Any]:
    """Return the content of a done marker: rows, failures, sha256, timings.

    Raises:
        StoreError: if it cannot be read, a field is missing or of another type, or its checksum does not match.
    """
    return _read_marker(path)[0]


def inspect_marker(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return a done marker and its first defect, down to the last byte; the marker is None if it cannot be read."""
    try:
        marker, content = _read_marker(path)
    except StoreError as error:
        return None, error.message
    unknown = sorted(set(marker) - _MARKER_FIELDS - {CHECKSUM})
    if unknown:
        return marker, f"the done marker has the unknown field {unknown[0]!r}"
    if content != json_text(marker).encode("utf-8", "surrogatepass"):
        return marker, "the done marker was changed after it was written"
    timings = marker["timings"]
    if CHECKSUM in marker and timings.get(CHECKSUM) != digest_of(_without_checksum(timings)):
        return marker, "the timings in the done marker do not match their checksum"
    return marker, None


def _read_marker(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        with unread_is_not_damaged(path):
            content = read_limited(path)
        value = json.loads(content)
        _check_marker(value)
    except UnreachableError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"The done marker {path} is damaged ({error!r}).",
            remedy="Run `c3 verify --repair`, then the same `c3 embed` command again: only this shard is made again.",
        ) from error
    return value, content


def _check_marker(value: Any) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"it contains {type(value).__name__} instead of an object")
    rows, failures, digests, timings = (value[name] for name in ("rows", "failures", "sha256", "timings"))
    if type(rows) is not int or rows < 0:
        raise ValueError(f"rows is {rows!r}")
    if not isinstance(failures, list) or not all(_is_text(asdict(Failure(**failure))) for failure in failures):
        raise ValueError("failures is not a list of failures")
    if not isinstance(digests, dict) or not _is_text(digests):
        raise ValueError("sha256 is not a mapping from names to digests")
    if not isinstance(timings, dict):
        raise ValueError("timings is not a mapping")
    if CHECKSUM in value and value[CHECKSUM] != marker_digest(value):
        raise ValueError("its checksum does not match its content")


def _is_text(values: Mapping[str, Any]) -> bool:
    return all(isinstance(value, str) for value in values.values())


def marker_digest(marker: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a done marker without its timings and its checksum."""
    return digest_of({name: value for name, value in _without_checksum(marker).items() if name != "timings"})


def _without_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if name != CHECKSUM}


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value as it is written."""
    # lone surrogates, which file names may hold, have no UTF-8; written files never have them, read ones may
    return hashlib.sha256(json_text(value).encode("utf-8", "surrogatepass")).hexdigest()
