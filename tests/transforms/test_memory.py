"""Steps with a memory, against computations without the package, and what they keep of the rows they are fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import TransformError
from c3tools.seeds import stable_hashes
from c3tools.transforms import Pipeline
from c3tools.transforms.steps import Collapse, MemoryProjection, Normalize, Retrieval
from tests.stores import assert_close, unit

from .conftest import Array, Pairs, retrieved


def retrieving(memory: Array, items: list[str], **changes: Any) -> Pipeline:
    steps = [Normalize(), Retrieval(**changes), Normalize()]
    return Pipeline(steps).fit({"text": memory}, items={"text": items})


def kept(pipeline: Pipeline) -> Array:
    """The memory (m, d) that the second step keeps."""
    return np.asarray(pipeline.steps[1].state["memory"], np.float64)


def test_the_mean_of_the_nearest_rows_is_added(pairs: Pairs) -> None:
    """With more neighbours than the memory has rows, all of these are weighed."""
    for neighbours, tau, weight in ((10, 0.05, 1.0), (1, 0.05, 1.0), (3, 0.2, 0.4), (5, 0.0, 1.0), (500, 0.1, 2.0)):
        pipeline = retrieving(pairs.y, pairs.items, neighbours=neighbours, tau=tau, weight=weight)
        expected = [retrieved(q, kept(pipeline), neighbours, tau, weight) for q in unit(pairs.x)]
        assert_close(pipeline.transform(3 * pairs.x, modality="image"), expected)


@given(
    st.lists(st.integers(0, 6), min_size=12, max_size=40),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.integers(0, 2**31),
)
@settings(max_examples=30)
def test_rows_of_ones_own_item_are_never_retrieved_in_training(
    numbers: list[int], neighbours: int, tau: float, seed: int
) -> None:
    """A training input becomes what it becomes with a memory that never had the rows of its item."""
    rows = unit(np.random.default_rng(seed).normal(size=(len(numbers), 12)))
    items = [f"item {number}" for number in numbers]
    changes = {"neighbours": neighbours, "tau": tau}
    got = retrieving(rows, items, **changes).transform(rows, modality="text", training=True, items=items)
    for item in set(items):
        own = np.array([other == item for other in items])
        if own.all():
            assert_close(got, rows)
            continue
        others = retrieving(rows[~own], [other for other in items if other != item], **changes)
        assert_close(got[own], others.transform(rows[own], modality="text"), 2e-6)


def test_a_limited_memory_is_drawn_from_all_rows_with_their_items(pairs: Pairs) -> None:
    """Rows of a train split are sorted by their source, so its first rows would be of one source."""
    drawn, again, whole = (retrieving(pairs.y, pairs.items, limit=n) for n in (30, 30, 500))
    numbers = [int(np.abs(kept(whole) - row).sum(axis=1).argmin()) for row in kept(drawn)]
    for same in (kept(again), kept(whole)[numbers]):
        np.testing.assert_array_equal(same, kept(drawn))
    assert numbers == sorted(set(numbers)) and numbers[:3] == [1, 4, 5] and numbers[-1] >= 90
    items = drawn.steps[1].state["items"]
    assert items.dtype == np.int64
    np.testing.assert_array_equal(items, stable_hashes([pairs.items[row] for row in numbers]))


def test_a_memory_keeps_the_rows_as_they_reached_its_step(pairs: Pairs) -> None:
    """Collapse is fitted on the same rows afterwards, and centres them in place."""
    for step in (MemoryProjection(role="inference"), Retrieval(role="inference")):
        later = [Collapse(), Normalize(), Retrieval(), Normalize()]
        assert_close(kept(Pipeline([Normalize(), step, Normalize(), *later]).fit(pairs.rows)), pairs.y, 4e-4)


def test_training_needs_items_on_both_sides(pairs: Pairs) -> None:
    known = retrieving(pairs.y, pairs.items)
    unknown = Pipeline([Normalize(), Retrieval(), Normalize()]).fit({"text": pairs.y})
    for pipeline, items, words in (
        (known, None, "items="),
        (known, pairs.items[:3], "120 training inputs"),
        (unknown, pairs.items, r"items=\{'text': \[\.\.\.\]\}"),
    ):
        with pytest.raises(TransformError, match=words):
            pipeline.transform(pairs.y, modality="text", training=True, items=items)
    np.testing.assert_array_equal(unknown.transform(pairs.y), known.transform(pairs.y))
