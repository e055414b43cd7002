from __future__ import annotations

import numpy as np
import pytest

from c3tools.index.faiss_shards import choose_factory, exact_neighbours


@pytest.mark.parametrize(
    ("n", "dim", "factory"),
    [
        (100, 512, "Flat"),
        (20_000, 512, "Flat"),
        (40_455, 256, "IVF1024,SQfp16"),
        (1_000_000, 512, "IVF4096,SQfp16"),
        (10_000_000, 512, "OPQ64_256,IVF16384,PQ64"),
        (10_000_000, 64, "OPQ16_64,IVF16384,PQ16"),
    ],
)
def test_factory_by_size(n: int, dim: int, factory: str) -> None:
    assert choose_factory(n, dim) == factory


def test_exact_neighbours_of_blocks_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    rows, queries = (rng.normal(size=(n, 6)).astype(np.float32) for n in (50, 4))
    expected = np.argsort(-queries @ rows.T, axis=1)[:, :10]
    assert (exact_neighbours(np.array_split(rows, 7), queries, 10) == expected).all()
    assert exact_neighbours([rows[:3]], queries, 10).shape == (4, 3)
