"""Done markers: the files that make a shard exist, with the checksums of everything it consists of.

    {"checksum": ..., "failures": [...], "rows": n, "sha256": {file: digest}, "timings": {..., "checksum": ...}}

``checksum`` is that of the marker without its timings, which have their own: the same input gives the same marker
but for the timings. Markers from before there were checksums are read too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import StoreError, UnreachableError
from ..io.files import json_text, write_json_atomically
from ..io.locations import read_all
from .failures import Failure

CHECKSUM = "checksum"
_FIELDS = {"rows", "failures", "sha256", "timings"}
_FAILURE_FIELDS = set(Failure.__dataclass_fields__)


def write_marker(path: Path, marker: Mapping[str, Any]) -> None:
    """Write a marker (rows, failures, sha256, timings) with its checksums, whole or not at all."""
    content = {name: marker[name] for name in _FIELDS}
    content["failures"] = [asdict(f) if isinstance(f, Failure) else f for f in content["failures"]]
    timings = {name: value for name, value in content["timings"].items() if name != CHECKSUM}
    content["timings"] = {**timings, CHECKSUM: _digest(timings)}
    write_json_atomically(path, {**content, CHECKSUM: _checksum(content)})


def read_marker(path: Path) -> dict[str, Any]:
    """The content of a marker: rows, failures, sha256, timings.

    Raises:
        StoreError: if it cannot be read, something is missing or of another type, or its checksum does not match.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        content = read_all(path)
        value = json.loads(content)
        _check(value)
    except UnreachableError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"The done marker {path} is damaged ({error!r}).",
            remedy="Run `c3 verify --repair`, then the same `c3 embed` again: only this shard is made anew.",
        ) from error
    return value, content


def inspect_marker(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """A marker, None where it cannot be read; and what is wrong with it, down to the last byte, None for nothing."""
    try:
        marker, content = _read(path)
    except StoreError as error:
        return None, error.message
    unknown = sorted(set(marker) - _FIELDS - {CHECKSUM})
    if unknown:
        return marker, f"the done marker has the unknown field {unknown[0]!r}"
    if content != json_text(marker).encode("utf-8", "surrogatepass"):
        return marker, "the done marker is not as it was written"
    if CHECKSUM in marker and marker["timings"].get(CHECKSUM) != _digest(_plain_timings(marker)):
        return marker, "the timings in the done marker do not match their checksum"
    return marker, None


def _check(value: Any) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"it holds {type(value).__name__}, not an object")
    rows, failures, digests, timings = (value[name] for name in ("rows", "failures", "sha256", "timings"))
    if type(rows) is not int or rows < 0:
        raise ValueError(f"rows is {rows!r}")
    if not isinstance(failures, list) or not all(_is_failure(failure) for failure in failures):
        raise ValueError("failures is no list of failures")
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise ValueError("sha256 is no mapping of names to digests")
    if not isinstance(timings, dict):
        raise ValueError("timings is no mapping")
    if CHECKSUM in value and value[CHECKSUM] != _checksum(value):
        raise ValueError("its checksum does not match its content")


def _is_failure(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == _FAILURE_FIELDS and all(isinstance(v, str) for v in value.values())


def _checksum(marker: Mapping[str, Any]) -> str:
    return _digest({name: value for name, value in marker.items() if name not in ("timings", CHECKSUM)})


def _plain_timings(marker: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in marker["timings"].items() if name != CHECKSUM}


def _digest(value: Any) -> str:
    # lone surrogates, which a file name may hold, have no UTF-8; written files never have them, read ones may
    return hashlib.sha256(json_text(value).encode("utf-8", "surrogatepass")).hexdigest()
