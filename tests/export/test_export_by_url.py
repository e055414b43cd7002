"""An export in an object store, on a server whose every seventh request fails, against the same on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c3tools.errors import OutputError
from c3tools.export import export_store
from c3tools.io import locations
from c3tools.store import Store
from c3tools.store.shards import write_rows
from tests.servers import Faults
from tests.stores import gap_store

from .test_export import digests

URL = "s3://bucket/runs/export"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def fetched(folder: Path, faults: Faults) -> dict[str, str]:
    """What is at `URL`, copied object by object."""
    import s3fs

    faults.every = 0
    start = URL.removeprefix("s3://")
    for name in s3fs.S3FileSystem(use_listings_cache=False).find(start):
        path = folder / name.removeprefix(f"{start}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(locations.read_all(locations.location(f"s3://{name}")))
    return digests(folder)


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_an_export_at_a_url(tmp_path: Path, s3: Faults, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(gap_store(tmp_path / "store"))
    disk = export_store(store, tmp_path / "disk", format=format)
    real, calls = write_rows, []

    def failing(*rest: Any, **options: Any) -> None:
        calls.append(rest)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(*rest, **options)

    s3.every = 7
    with monkeypatch.context() as patch:
        patch.setattr("c3tools.export.write_rows", failing)
        with pytest.raises(KeyboardInterrupt):
            export_store(store, URL, format=format, workers=1)
    there = export_store(store, URL, format=format)
    assert (there.parts, there.kept, there.rows, there.bytes) == (3, 3, disk.rows, disk.bytes)
    assert fetched(tmp_path / "copy", s3) == digests(tmp_path / "disk")
    assert s3.failed > 3
    with pytest.raises(OutputError, match=r"\(c3\)"):
        export_store(store, URL, preset="c1", format=format)
    export_store(store, URL, preset="c1", format=format, overwrite=True)
    export_store(store, tmp_path / "other", preset="c1", format=format)
    assert fetched(tmp_path / "other copy", s3) == digests(tmp_path / "other")
