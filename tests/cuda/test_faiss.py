"""FAISS on GPUs, by an index on the CPU that refuses what one on a GPU refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from c3tools.arrays import Matrix
from c3tools.curation import near_copies
from c3tools.index import Index, build_index
from c3tools.index.codes import on_gpus, set_nprobe
from c3tools.reporter import SILENT
from c3tools.store import Rows, Store
from tests.conftest import Messages, build_store, unit_rows

faiss: Any = pytest.importorskip("faiss", reason="faiss is an extra")
pytestmark = pytest.mark.cuda


class GpuIndex(faiss.IndexReplicas):  # type: ignore[misc]
    """An index as `index_cpu_to_all_gpus` returns it for two GPUs."""

    def __init__(self, index: Any) -> None:
        super().__init__(index.d)
        for _ in range(2):
            self.addIndex(faiss.clone_index(index))

    def search(self, queries: Matrix, k: int, *, params: Any = None) -> Any:
        if params is not None:
            raise RuntimeError("GpuIndex: search parameters not supported for this index")
        if k > 2048:
            raise RuntimeError(f"GPU index only supports min/max-K selection up to 2048 (not {k})")
        return super().search(queries, k)

    def remove_ids(self, *_: Any) -> None:
        raise RuntimeError("remove_ids not implemented for this type of index")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let FAISS see GPUs; return the options with which indexes are moved to them."""
    all_options: list[Any] = []

    def move(index: Any, options: Any) -> Any:
        all_options.append(options)
        inverted = faiss.downcast_index(faiss.try_extract_index_ivf(index) or index)
        if isinstance(inverted, faiss.IndexIVFScalarQuantizer) and options.use_cuvs:
            raise RuntimeError("this type of index is not implemented for cuVS")
        if isinstance(inverted, faiss.IndexIVFPQ) and not options.useFloat16:
            raise RuntimeError("requires 65536 bytes. Consider useFloat16LookupTables")
        if isinstance(inverted, faiss.IndexIVFRaBitQ):
            raise RuntimeError("This index type is not implemented on GPU.")
        return GpuIndex(index)

    defaults = {"useFloat16": False, "use_cuvs": True}
    for name, value in {
        "StandardGpuResources": object,
        "GpuMultipleClonerOptions": lambda: SimpleNamespace(**defaults),
        "get_num_gpus": lambda: 2,
        "index_cpu_to_all_gpus": move,
    }.items():
        monkeypatch.setattr(faiss, name, value, raising=False)
    return all_options


def store_with_a_rare_split(folder: Path) -> Store:
    split = ["test"] * 5 + ["train"] * 2995
    keys = [f"i{row}" for row in range(len(split))]
    rows = Rows.of("image", keys, unit_rows(len(split), 8), split=split)
    model = {"name": "toy", "weights_sha256": "1" * 64}
    return build_store(folder, rows, model=model, part_rows=3000)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    store = store_with_a_rare_split(tmp_path / "store")
    return build_index(store, output=tmp_path / "index", preset="c1")


@pytest.mark.parametrize(
    "options", [{}, {"split": "test"}, {"k": 2500}], ids=["usual", "rare split", "many hits"]
)
def test_gpus_find_what_the_cpu_finds(index: Index, gpus: list[Any], options: Any) -> None:
    queries = unit_rows(3, 8, 1)
    on_gpu = Index.open(index.path)
    moved = on_gpu.rank(queries, "image", **options)
    assert len(gpus) == (0 if options else 1)  # FAISS passes over rows on the CPU alone
    on_cpu = Index.open(index.path)
    on_cpu._on_gpus |= on_cpu.indexes
    assert moved == on_cpu.rank(queries, "image", **options)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "OPQ4_8,IVF16,PQ4"])
def test_nprobe_reaches_every_gpu(factory: str, gpus: list[Any]) -> None:
    rows = unit_rows(1000, 8)
    index = faiss.index_factory(8, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    moved = on_gpus(index)
    set_nprobe(moved, 7)
    for number in range(2):
        assert faiss.try_extract_index_ivf(moved.at(number)).nprobe == 7


@pytest.mark.parametrize(
    ("factory", "moves"),
    [("Flat", True), ("IVF4,SQfp16", True), ("OPQ64_64,IVF4,PQ64x4", True), ("IVF4,RaBitQ", False)],
)
def test_an_index_that_stays_on_the_cpu_says_so(factory: str, moves: bool, gpus: list[Any]) -> None:
    index = faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT)
    said = Messages()
    assert (on_gpus(index, said) is not index) == moves
    assert len(said.texts) == (not moves)
    assert all("not implemented on GPU" in text for text in said.texts)


def test_the_cells_of_an_index_are_trained_on_gpus(gpus: list[Any], tmp_path: Path) -> None:
    store = store_with_a_rare_split(tmp_path / "store")
    index = build_index(store, output=tmp_path / "index", preset="c1", factory="IVF8,SQfp16")
    assert len(gpus) == 1
    # What is saved is an index of the CPU
    assert index.rank(unit_rows(1, 8, 1), "image", nprobe=8)


@pytest.mark.parametrize("limit", [10, 1000])
def test_nearest_rows_are_exact_on_gpus(
    limit: int, gpus: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_copies, "_EXACT_SEARCH", limit)
    unit = unit_rows(300, 8)
    is_left = np.arange(300) % 3 > 0

    def pairs(numbers: Any) -> tuple[Any, Any]:
        search = near_copies._NeighbourSearch(unit, numbers, SILENT)
        search.keep(is_left)
        queries = np.flatnonzero(is_left[:100])
        found = search.pairs(queries)
        return found.first.tolist(), found.second.tolist()

    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    cosines[:, ~is_left] = -1
    expected = set()
    for row in np.flatnonzero(is_left[:100]).tolist():
        for other in np.argsort(-cosines[row])[: near_copies._NEAREST].tolist():
            expected.add((min(row, other), max(row, other)))
    assert set(zip(*pairs(np.arange(300)), strict=True)) == expected
    assert bool(gpus) == (limit == 10)
