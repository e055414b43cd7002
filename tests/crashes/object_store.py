"""Faults at every request to an object store, for the commands that write to one.

The n-th request fails, for each n, in one of four ways: the server answers 500; it does what was asked and answers too
late (``timeout``); it does it and its answer breaks off in the middle, or does not come (``torn``); all requests from
the n-th on fail (``cut off``), as for a run that is killed or whose connection is gone. Requests are not tried again,
so that each fault is seen. Then the same command runs, and has to leave the objects that it leaves without a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import c3tools
from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.errors import C3Error, StoreError
from c3tools.export import export_store
from c3tools.store.merge import merge_stores
from c3tools.store.verify import verify_store
from tests.conftest import copy_photos, put_store, unit_rows
from tests.servers import Faults
from tests.stores import whole_store

from .harness import Clean, Outcome, Scenario, fails_well, runs_again
from .recorder import read_tree, write_tree
from .scenarios import files, timeless

KINDS = ("500", "timeout", "torn", "cut off")
URL = "s3://bucket/store"
READ_TIMEOUT = 0.5  # seconds, where the rest of an answer is late or never comes; a busy machine may take as long


def remote_scenarios(encoder: Encoder) -> dict[str, Scenario]:
    """Return the commands by name; all need an empty ``s3://bucket``."""

    def photos(folder: Path) -> None:
        copy_photos(folder / "photos", 1)

    def vectors(folder: Path) -> None:
        for seed, name in enumerate(("image", "text")):
            np.save(folder / f"{name}.npy", unit_rows(3, 8, seed))

    def store(folder: Path) -> None:
        put_store(whole_store(folder / "store", images=3, part_rows=2).path, URL)

    def damaged(folder: Path) -> None:
        path = whole_store(folder / "store", images=3, part_rows=2).path / "image" / "part-00001.parquet"
        path.write_bytes(path.read_bytes()[:100])
        put_store(folder / "store", URL)

    def means(folder: Path) -> None:
        local = whole_store(folder / "store", images=3, part_rows=2).path
        c3tools.unload_means(local)
        put_store(local, URL)

    def two_stores(folder: Path) -> None:
        store(folder)
        c3tools.split_store(folder / "second", folder / "store")
        put_store(folder / "second", "s3://bucket/second")

    return {
        "embed": Scenario(
            "embed",
            photos,
            lambda folder: _ignore(embed_corpus(read_corpus([folder / "photos"]), URL, encoder, workers=0)),
            objects,
        ),
        "import": Scenario(
            "import",
            vectors,
            lambda folder: _ignore(
                c3tools.import_embeddings(image=folder / "image.npy", text=folder / "text.npy", store=URL)
            ),
            objects,
        ),
        "export": Scenario(
            "export", store, lambda _: _ignore(export_store(URL, "s3://bucket/export", preset="c3", workers=1)), objects
        ),
        "means --load": Scenario(
            "means --load",
            means,
            lambda folder: _ignore(c3tools.load_means(URL, folder / "elsewhere.safetensors")),
            objects,
        ),
        "verify --repair": Scenario(
            "verify --repair", damaged, lambda _: _ignore(verify_store(URL, repair=True)), objects
        ),
        "merge": Scenario(
            "merge",
            two_stores,
            lambda folder: _ignore(merge_stores(folder / "merged", [URL, "s3://bucket/second"], keep="first")),
            files("merged"),
            (StoreError,),
        ),
    }


def fail_requests(
    scenario: Scenario,
    folder: Path,
    faults: Faults,
    kind: str,
    choose: Callable[[list[int]], list[int]] = lambda numbers: numbers,
) -> Outcome:
    """Let each request of a command fail in turn, look for one clear error, run again, and compare."""
    with _one_attempt(None):
        _put({})  # of a scenario before this one
        folder.mkdir(parents=True, exist_ok=True)
        scenario.prepare(folder)
        start, start_objects = read_tree(folder), _objects()
        before = faults.requests
        scenario.run(folder)
        points = faults.requests - before
        clean = Clean.of(scenario, folder)
    problems, numbers = [], choose(list(range(points)))
    for number in numbers:
        write_tree(folder, start)
        _put(start_objects)
        what = f"request {number} of {points}: {kind}"
        with _one_attempt(READ_TIMEOUT if kind in ("timeout", "torn") else None):
            faults.fail_from_now(number, kind)
            try:
                problems += fails_well(scenario, folder, (C3Error,), what)
            finally:
                faults.heal()
        _drop_leases()  # of the run that failed: they are taken over after a while, which other tests show
        with _one_attempt(None):
            problems += runs_again(scenario, folder, clean, what)
    return Outcome(points, len(numbers), problems)


def objects(_: Path) -> Mapping[str, bytes]:
    """Return all objects of the bucket, without what depends on time."""
    return {name: timeless(name, content) for name, content in _objects().items()}


@contextmanager
def _one_attempt(read_timeout: float | None) -> Iterator[None]:
    """Let requests be tried once, and leases give no signs of life.

    Args:
        read_timeout: seconds that an answer is awaited; None for the client's own limit.
    """
    import fsspec.config
    import s3fs

    once = patch("c3tools.io.locations.ATTEMPTS", 1), patch("c3tools.io.lock.HEARTBEAT", 3600.0)
    limits = {} if read_timeout is None else {"read_timeout": read_timeout}
    options = {"config_kwargs": {**limits, "retries": {"total_max_attempts": 1}}}
    with once[0], once[1], patch.object(s3fs.S3FileSystem, "retries", 1):
        with patch.dict(fsspec.config.conf, {"s3": options}):
            s3fs.S3FileSystem.clear_instance_cache()
            yield
        s3fs.S3FileSystem.clear_instance_cache()


def _file_system() -> Any:
    import s3fs

    return s3fs.S3FileSystem()


def _objects() -> dict[str, bytes]:
    system = _file_system()
    system.invalidate_cache()
    return {name: system.cat_file(name) for name in system.find("bucket") if not name.endswith("/.lock")}


def _drop_leases() -> None:
    system = _file_system()
    system.invalidate_cache()
    for name in system.find("bucket"):
        if name.endswith("/.lock"):
            system.rm_file(name)


def _put(contents: Mapping[str, bytes]) -> None:
    """Make the bucket hold these objects and no others."""
    system = _file_system()
    system.invalidate_cache()
    if there := system.find("bucket"):
        system.rm(there)
    for name, content in contents.items():
        system.pipe_file(name, content)


def _ignore(_: object) -> None:
    return None
