"""An export in an object store, on a server whose every seventh request fails, against the same on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from c3tools.errors import OutputError
from c3tools.export.export import ExportWork, export_store
from c3tools.io import locations
from c3tools.store import Store
from c3tools.transforms import Pipeline
from tests.conftest import C3
from tests.servers import Faults
from tests.stores import gap_store

URL = "s3://bucket/runs/export"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(gap_store(tmp_path / "store"))


def content(folder: Path) -> dict[str, bytes]:
    """All bytes of an export; seconds, which differ from run to run, are left out of the markers."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name, value in found.items():
        if name.endswith(".json") and "/" in name:
            found[name] = json.dumps({**json.loads(value), "seconds": None}).encode()
    return found


def fetched(folder: Path, faults: Faults) -> dict[str, bytes]:
    """What is at `URL`, copied object by object, each asked for again where the server is slow."""
    import s3fs

    faults.every = 0
    start = URL.removeprefix("s3://")
    for name in s3fs.S3FileSystem(use_listings_cache=False).find(start):
        path = folder / name.removeprefix(f"{start}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(locations.read_all(locations.location(f"s3://{name}")))
    return content(folder)


@pytest.mark.parametrize("format", ["parquet", "npy", "safetensors", "hf"])
def test_the_export_has_the_bytes_of_one_on_disk(store: Store, tmp_path: Path, s3: Faults, format: str) -> None:
    s3.every = 7
    disk, there = (export_store(store, output, format=format) for output in (tmp_path / "disk", URL))
    assert (there.rows, there.parts, there.bytes) == (disk.rows, 6, disk.bytes)
    assert fetched(tmp_path / "copy", s3) == content(tmp_path / "disk")
    assert Pipeline.load(tmp_path / "copy").name == "c3"
    assert s3.failed > 3


def test_an_interrupted_export_continues_and_another_is_refused(
    store: Store, tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_store(store, tmp_path / "disk")
    real, calls = ExportWork._block, []

    def failing(self: ExportWork, *rest: object) -> object:
        calls.append(rest)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *rest)  # type: ignore[arg-type]

    s3.every = 7
    with monkeypatch.context() as patch:
        patch.setattr(ExportWork, "_block", failing)
        with pytest.raises(KeyboardInterrupt):
            export_store(store, URL, workers=1)
    again = export_store(store, URL)
    assert (again.parts, again.kept) == (3, 3)
    assert fetched(tmp_path / "copy", s3) == content(tmp_path / "disk")
    with pytest.raises(OutputError, match=r"contains another export \(c3\)"):
        export_store(store, URL, preset="c1")
    export_store(store, URL, preset="c1", overwrite=True)
    export_store(store, tmp_path / "other", preset="c1")
    assert fetched(tmp_path / "copy2", s3) == content(tmp_path / "other")


def test_the_command(c3: C3, store: Store, tmp_path: Path, s3: Faults) -> None:
    result = c3("export", "--store", store.path, "-o", URL)
    assert result.exit_code == 0, result.output
    assert URL in result.stderr.replace("\n", "")
    assert c3("export", "--store", store.path, "-o", "disk").exit_code == 0
    assert fetched(tmp_path / "copy", s3) == content(tmp_path / "disk")
    result = c3("export", "--store", store.path, "-o", URL, "--format", "faiss")
    assert (result.exit_code, "A FAISS index cannot be written to" in result.stderr) == (1, True)
