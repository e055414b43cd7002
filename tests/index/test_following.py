"""An index follows its store as exports do: growth, kills, damage, exchange, repair, and a URL."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from c3tools import Store, export_store, verify_store
from c3tools.errors import IncompleteStoreError, OutputError, StoreError
from c3tools.index import Index, build_index, coder
from c3tools.index.transformed_rows import TransformedRows
from c3tools.io.locations import location
from c3tools.store.manifest import StoreWriter
from tests.conftest import (
    Messages,
    add_shard,
    contents,
    contents_at_url,
    put_store,
    slice_of,
)
from tests.crashes import kill_at, operations
from tests.servers import Faults
from tests.stores import gap_store, make_vectors

faiss = pytest.importorskip("faiss", reason="faiss is an extra")

FIT = ("store.json", "transform.json", "transform.safetensors", "trained.faiss")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a store of 90 images and 180 texts in three shards each."""
    gap_store(tmp_path / "s")
    return tmp_path


def grow(folder: Path) -> None:
    """Add a shard of images, replace one of texts, and remove one of texts."""
    store = Store.open(folder / "s")
    images, _ = make_vectors(20, 5)
    keys = [f"new{number:03d}" for number in range(20)]
    columns = {"key": keys, "split": ["train"] * 20}
    add_shard(store.path, store.info, "image", 3, images, columns)
    writer = StoreWriter(store.path)
    rows = store.read_shard("text", 0)[0].slice(0, 40)
    writer.replace_shard("text", 0, rows, [])
    writer.replace_shard("text", 2, rows.slice(0, 0), [])
    writer.finish()


def index(folder: Path, output: str = "i", **options: Any) -> Index:
    return build_index(folder / "s", output=folder / output, **options)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,SQfp16"])
def test_growth_gives_what_a_new_index_of_the_same_fit_gives(folder: Path, factory: str) -> None:
    index(folder, factory=factory)
    before = contents(folder / "i")
    times = {name: (folder / "i" / name).stat().st_mtime_ns for name in before}
    grow(folder)
    messages = Messages()
    grown = index(folder, factory=factory, reporter=messages)
    after = contents(folder / "i")
    assert grown.record["added"] == 20 + 40
    assert grown.rows.num_rows == 90 + 20 + 40 + 60
    assert messages.texts == [
        "The pipeline was fitted on 270 rows, 150 of them in unchanged shards; the store has 210 "
        "rows now. --rebuild fits it again."
    ]

    # A new index that begins with the same fit has the same bytes
    (folder / "fresh").mkdir()
    for name in (*FIT, "calibration.safetensors"):
        shutil.copyfile(folder / "i" / name, folder / "fresh" / name)
    index(folder, "fresh", factory=factory)
    assert contents(folder / "fresh") == after
    unchanged = [name for name in before if before[name] == after.get(name)]
    assert len([name for name in unchanged if "part-" in name]) == 4
    assert {*FIT} <= {*unchanged}
    assert all((folder / "i" / name).stat().st_mtime_ns == times[name] for name in unchanged)
    assert verify_store(folder / "i").whole


@pytest.mark.parametrize(
    "factory",
    ["Flat", "SQfp16", "SQ8", "PQ8x4", "RaBitQ", "RR16,RaBitQ", "IVF4,Flat", "OPQ4_16,IVF4,PQ4x4"],
)
def test_codes_are_found_as_the_vectors_would_be(folder: Path, factory: str) -> None:
    opened = index(folder, factory=factory)
    store = Store.open(folder / "s")
    trained = faiss.read_index(str(folder / "i" / "trained.faiss"))
    queries = opened.pipeline.transform(store.load("image").embeddings[:9], modality="image")
    for modality in ("image", "text"):
        rows = store.load(modality).embeddings
        whole = faiss.clone_index(trained)
        whole.add(opened.pipeline.transform(rows, modality=modality))
        expected = whole.search(queries, 10)
        scores, rows_found = opened.indexes[modality].search(queries, 10)
        np.testing.assert_array_equal(rows_found, expected[1])
        # FAISS adds the terms of a score in the order that suits the processor
        np.testing.assert_allclose(scores, expected[0], atol=1e-6)


@pytest.mark.parametrize("factory", ["HNSW8", "NSG8", "PQ8x4fs", "IVF4,PQ8x4fs", "SQ8,RFlat"])
def test_kinds_without_codes_are_refused(folder: Path, factory: str) -> None:
    with pytest.raises(StoreError, match=f"'{factory}' cannot be stored row by row"):
        index(folder, factory=factory)
    assert not (folder / "i").exists()


def test_exchanged_parts_are_found_and_refused(folder: Path) -> None:
    index(folder)
    first, second = (folder / "i" / "image" / f"part-0000{number}.parquet" for number in (0, 1))
    first.rename(folder / "moved")
    second.rename(first)
    (folder / "moved").rename(second)
    findings = [(finding.check, finding.file) for finding in verify_store(folder / "i").findings]
    assert findings == [
        ("checksum", "image/part-00000.parquet"),
        ("checksum", "image/part-00001.parquet"),
    ]
    with pytest.raises(StoreError, match=r"part-00000.parquet is not the shard"):
        Index.open(folder / "i")
    assert index(folder).record["added"] == 60


def test_a_damaged_part_is_made_again(folder: Path) -> None:
    index(folder)
    whole = contents(folder / "i")
    file = folder / "i" / "text" / "part-00001.parquet"
    content = bytearray(whole["text/part-00001.parquet"])
    content[len(content) // 4] ^= 1  # a bit of a code or a key: the header is as it was
    file.write_bytes(content)
    assert index(folder).record["added"] == 60
    assert contents(folder / "i") == whole


@pytest.mark.parametrize("name", ["text/part-00001.parquet", "calibration.safetensors", *FIT])
def test_damage_is_found_refused_and_repaired(folder: Path, name: str) -> None:
    index(folder)
    whole = contents(folder / "i")
    file = folder / "i" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    verification = verify_store(folder / "i")
    assert name in [finding.file for finding in verification.findings]
    assert not verification.whole
    with pytest.raises(StoreError):
        Index.open(folder / "i")
    verify_store(folder / "i", repair=True)
    index(folder)
    assert contents(folder / "i") == whole
    assert verify_store(folder / "i").whole


def build_first(folder: Path) -> Callable[[], object]:
    return lambda: index(folder)


def build_grown(folder: Path) -> Callable[[], object]:
    index(folder)
    grow(folder)
    return lambda: index(folder)


def build_anew(folder: Path) -> Callable[[], object]:
    index(folder)
    return lambda: index(folder, factory="IVF4,Flat")


def repair(folder: Path) -> Callable[[], object]:
    index(folder)
    file = folder / "i" / "text" / "part-00001.parquet"
    file.write_bytes(file.read_bytes()[:-1])

    def run() -> None:
        verify_store(folder / "i", repair=True)
        index(folder)

    return run


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Libraries without threads: a forked process does not have those of its parent."""
    monkeypatch.setattr("c3tools.export.parts.cores", lambda: 1)
    with threadpool_limits(1):
        yield


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("prepare", [build_first, build_grown, build_anew, repair])
def test_a_killed_run_is_continued_to_the_same_bytes(
    folder: Path, prepare: Callable[[Path], Callable[[], object]]
) -> None:
    run = prepare(folder)
    shutil.copytree(folder / "i", folder / "before") if (folder / "i").exists() else None
    done = operations(folder / "i", run)
    expected = contents(folder / "i")
    moves = [n for n, step in enumerate(done) if step.startswith("os.rename .rewriting/")]
    points = [*moves[1:2], *random.Random(0).sample(range(len(done)), 5), len(done) - 1]
    for number in slice_of(points):
        shutil.rmtree(folder / "i")
        if (folder / "before").exists():
            shutil.copytree(folder / "before", folder / "i")
        assert kill_at(folder / "i", number, run)
        if (folder / "i" / ".rewriting" / "list.json").exists():
            with pytest.raises(IncompleteStoreError):
                Index.open(folder / "i")
        run()
        assert contents(folder / "i") == expected, done[number]


def test_an_index_at_a_url(folder: Path, s3: Faults) -> None:
    local = index(folder)
    s3.every = 7
    build_index(folder / "s", output="s3://bucket/index")
    grow(folder)
    there = build_index(folder / "s", output="s3://bucket/index")
    local = index(folder)
    query = Store.open(folder / "s").load("text").embeddings[:3]
    assert there.rank(query, "text") == local.rank(query, "text")
    remote, disk = contents_at_url(location("s3://bucket/index")), contents(folder / "i")
    different = {name for name in disk if remote[name] != disk[name]}
    assert different == {"store.json", "manifest.json"}  # the place of the store
    assert verify_store("s3://bucket/index").whole


def test_an_index_at_a_url_finds_its_store(
    folder: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    built = build_index("s", output="s3://bucket/index")
    assert built.store_path == folder / "s"
    # an index and its store that were copied together
    index(folder)
    put_store(folder / "s", "s3://bucket/copies/s")
    copied = Index.open(put_store(folder / "i", "s3://bucket/copies/i"))
    assert str(copied.store_path) == "s3://bucket/copies/s"
    messages = Messages()
    for opened in (built, copied):
        (result,) = opened.search(key="img001", k=1, reporter=messages)
        assert result.hits[0].key == "img001"
    assert messages.texts == []


def test_an_index_is_no_store_and_no_export(folder: Path) -> None:
    index(folder)
    with pytest.raises(StoreError, match="is an index, which has no embeddings"):
        Store.open(folder / "i")
    with pytest.raises(OutputError, match="is an index, not an earlier export"):
        export_store(folder / "s", output=folder / "i", overwrite=True)
    export_store(folder / "s", output=folder / "e")
    with pytest.raises(OutputError, match="is an export, not an earlier index"):
        index(folder, "e", rebuild=True)


def test_the_training_sample_is_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coder, "_MOST_BYTES", 200 * 16 * 4)
    drawn = []
    sample = TransformedRows.sample

    def record(self: Any, numbers: Any) -> Any:
        drawn.append(numbers)
        return sample(self, numbers)

    monkeypatch.setattr(TransformedRows, "sample", record)
    index(folder, factory="IVF4,Flat")
    (numbers,) = drawn
    assert len(numbers) == 200 and (np.diff(numbers) > 0).all()


def test_the_model_stays_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = Store.open(folder / "s").load("text").embeddings[:1]
    encoder = SimpleNamespace(encode_queries=lambda texts: vector)
    load = Mock(return_value=encoder)
    monkeypatch.setattr("c3tools.encoders.resolve_encoder", load)
    opened = index(folder)
    first, second = (opened.search("a dog", k=3) for _ in range(2))
    given = opened.search("a dog", k=3, encoder=encoder)  # type: ignore[arg-type]
    assert first == second == given
    assert load.call_count == 1


def test_an_index_with_a_damaged_manifest_is_rebuilt_if_asked(folder: Path) -> None:
    index(folder)
    whole = contents(folder / "i")
    (folder / "i" / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        index(folder)
    index(folder, rebuild=True)
    assert contents(folder / "i") == whole
