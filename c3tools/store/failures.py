"""failures.parquet: every input that was not embedded, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError, UnreachableError
from ..io.files import write_atomically
from ..io.locations import kind_of, name_or_file
from .seals import SEAL_PLACE, seal

FAILURES_FILE = "failures.parquet"


@dataclass(frozen=True)
class Failure:
    """An input that was not embedded, and why."""

    key: str
    path: str
    stage: str
    error: str
    message: str


def write_failures(store: Path, failures: Iterable[Failure]) -> None:
    """Write failures.parquet: one row per input that was not embedded; the file is sealed."""
    names = [*Failure.__dataclass_fields__]
    rows = [asdict(failure) for failure in failures]
    schema = pa.schema([(name, pa.string()) for name in names], metadata={"c3": SEAL_PLACE})
    table = pa.table({name: pa.array([row[name] for row in rows], type=pa.string()) for name in names}, schema=schema)

    def write(path: Path) -> None:
        pq.write_table(table, path)
        seal(path)

    write_atomically(store / FAILURES_FILE, write)


def read_failures(store: Path) -> list[Failure]:
    """The rows of failures.parquet; none where it is not there.

    Raises:
        StoreError: if it cannot be read.
    """
    path = store / FAILURES_FILE
    if kind_of(path) is None:
        return []
    try:
        with name_or_file(path) as file:
            failures = [Failure(**row) for row in pq.read_table(file).to_pylist()]
        if not all(isinstance(value, str) for failure in failures for value in asdict(failure).values()):
            raise TypeError("a value is missing or no text")
    except UnreachableError:
        raise
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise StoreError(
            f"{path} cannot be read ({error}).", remedy="Delete it and run `c3 embed` again: it is made anew."
        ) from error
    return failures
