from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from c3tools.captioning.batches import length_bucketed


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=300),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_occurs_once_in_a_reproducible_order(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    batches = length_bucketed(lengths, batch_size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(len(batch) for batch in batches) <= batch_size
    assert len(batches) == -(-len(lengths) // batch_size)
    again = length_bucketed(lengths, batch_size, seed=seed, epoch=epoch)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_epochs_and_seeds_differ_and_padding_is_rare() -> None:
    lengths = np.random.default_rng(0).integers(6, 30, size=8000)
    batches = length_bucketed(lengths, 64, seed=0, epoch=0)
    computed = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 1 - lengths.sum() / computed < 0.03
    for other in (length_bucketed(lengths, 64, seed=0, epoch=1), length_bucketed(lengths, 64, seed=1, epoch=0)):
        assert set(other[0].tolist()) != set(batches[0].tolist())
