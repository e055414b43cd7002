"""Steps with a memory, against computations without the package, and what they keep of the rows they are fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from c3tools.errors import TransformError
from c3tools.seeds import stable_hashes
from c3tools.transforms import Collapse, MemoryProjection, Normalize, Pipeline, Retrieval, Step, operations, preset

from .conftest import Array, Pairs, make_pairs, unit


def retrieving(memory: Array, items: list[str], **changes: Any) -> Pipeline:
    steps = [Normalize(), Retrieval(**changes), Normalize()]
    return Pipeline(steps).fit({"text": memory}, items={"text": items})


def kept(pipeline: Pipeline) -> Array:
    """The memory (m, d) that a fitted step keeps."""
    (memory,) = (step.state["memory"] for step in pipeline.steps if "memory" in step.state)
    return memory.astype(np.float64)


def mixed(q: Array, memory: Array, neighbours: int, tau: float, weight: float) -> Array:
    """One row (d,) by another route: sort all cosines, weigh the best."""
    best = memory[np.argsort(-(memory @ q), kind="stable")[:neighbours]]
    mean = softmax(best @ q / tau) @ best if tau else best[0]
    return np.asarray(unit((q + weight * mean / np.linalg.norm(mean))[None])[0])


@pytest.mark.parametrize(
    ("neighbours", "tau", "weight"), [(10, 0.05, 1.0), (1, 0.05, 1.0), (3, 0.2, 0.4), (5, 0.0, 1.0), (500, 0.1, 2.0)]
)
def test_the_mean_of_the_nearest_rows_is_added(pairs: Pairs, neighbours: int, tau: float, weight: float) -> None:
    """With more neighbours than the memory has rows, all of these are weighed."""
    pipeline = retrieving(pairs.y, pairs.items, neighbours=neighbours, tau=tau, weight=weight)
    expected = np.stack([mixed(q, kept(pipeline), neighbours, tau, weight) for q in unit(pairs.x)])
    np.testing.assert_allclose(pipeline.transform(3 * pairs.x, modality="image"), expected, atol=1e-6)


@given(
    st.lists(st.integers(0, 6), min_size=12, max_size=40),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
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
            np.testing.assert_allclose(got, rows, atol=1e-6)
            continue
        others = retrieving(rows[~own], [other for other in items if other != item], **changes)
        np.testing.assert_allclose(got[own], others.transform(rows[own], modality="text"), atol=2e-6)


@pytest.mark.parametrize("tau", [0.05, 0.0])
def test_an_input_whose_item_has_the_whole_memory_stays_as_it_is(pairs: Pairs, tau: float) -> None:
    pipeline = retrieving(pairs.y, ["one"] * 120, tau=tau)
    options: dict[str, Any] = {"modality": "image", "training": True}
    got = pipeline.transform(pairs.x[:2], items=["one", "another"], **options)
    np.testing.assert_allclose(got[0], pairs.x[0], atol=1e-6)
    assert np.linalg.norm(got[1] - pairs.x[1]) > 0.1


def test_an_item_that_is_not_in_the_memory_retrieves_as_at_inference(pairs: Pairs) -> None:
    pipeline = retrieving(pairs.y, pairs.items)
    new = pipeline.transform(pairs.x, modality="image", training=True, items=pairs.keys)
    np.testing.assert_array_equal(new, pipeline.transform(pairs.x, modality="image"))


@pytest.mark.parametrize("cells", [1, 120, 1000, 120 * 119])
def test_blocks_of_any_size_give_the_same_rows(pairs: Pairs, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = retrieving(pairs.y, pairs.items)
    options: dict[str, Any] = {"modality": "text", "training": True, "items": pairs.items}
    whole = pipeline.transform(pairs.y, **options)
    monkeypatch.setattr(operations, "_SCORE_CELLS", cells)
    np.testing.assert_allclose(pipeline.transform(pairs.y, **options), whole, atol=1e-6)


@pytest.mark.parametrize("kind", [MemoryProjection, Retrieval])
def test_a_limited_memory_is_drawn_from_all_rows(pairs: Pairs, kind: type[MemoryProjection | Retrieval]) -> None:
    """Rows of a train split are sorted by their source, so its first rows would be of one source."""
    rows = np.round(unit(pairs.y).astype(np.float32), 3)
    fitted = [Pipeline([Normalize(), kind(limit=n), Normalize()]).fit({"text": rows}) for n in (30, 30, 120, 500)]
    drawn, again, exactly, all_rows = map(kept, fitted)
    np.testing.assert_array_equal(drawn, again)
    np.testing.assert_array_equal(exactly, all_rows)
    numbers = [int(np.abs(all_rows - row).sum(axis=1).argmin()) for row in drawn]
    np.testing.assert_array_equal(all_rows[numbers], drawn)
    assert numbers == sorted(set(numbers))
    assert numbers[0] < 30 and numbers[-1] >= 90


def test_a_limited_memory_knows_the_items_of_its_rows(pairs: Pairs) -> None:
    limited = retrieving(pairs.y, pairs.items, limit=30)
    everything = retrieving(pairs.y, pairs.items)
    item_of = dict(zip(map(bytes, everything.steps[1].state["memory"]), pairs.items, strict=True))
    expected = stable_hashes([item_of[bytes(row)] for row in limited.steps[1].state["memory"]])
    np.testing.assert_array_equal(limited.steps[1].state["items"], expected)


@pytest.mark.parametrize("step", [MemoryProjection(role="inference"), Retrieval(role="inference")])
def test_a_memory_keeps_the_rows_as_they_reached_its_step(pairs: Pairs, step: Step) -> None:
    """Collapse is fitted on the same rows afterwards, and centres them in place."""
    Pipeline([Normalize(), step, Normalize(), Collapse(), Normalize(), Retrieval(), Normalize()]).fit(pairs.rows)
    np.testing.assert_allclose(step.state["memory"].astype(np.float64), unit(pairs.y), atol=4e-4)


def test_items_are_kept_as_hashes(pairs: Pairs) -> None:
    (_, step, _) = retrieving(pairs.y, pairs.items).steps
    assert step.state["items"].dtype == np.int64
    np.testing.assert_array_equal(step.state["items"], stable_hashes(pairs.items))


def test_training_needs_items_on_both_sides(pairs: Pairs) -> None:
    known = retrieving(pairs.y, pairs.items)
    options: dict[str, Any] = {"modality": "text", "training": True}
    with pytest.raises(TransformError, match=r"needs the items of training inputs[\s\S]*Pass items="):
        known.transform(pairs.y, **options)
    with pytest.raises(TransformError, match="3 items for 120 rows"):
        known.transform(pairs.y, items=pairs.items[:3], **options)
    with pytest.raises(TransformError, match="119 items for 120 text rows"):
        retrieving(pairs.y, pairs.items[1:])
    with pytest.raises(TransformError, match="120 items for 0 image rows"):
        Pipeline([Normalize(), Retrieval(), Normalize()]).fit({"text": pairs.y}, items={"image": pairs.items})
    unknown = Pipeline([Normalize(), Retrieval(), Normalize()]).fit({"text": pairs.y})
    with pytest.raises(TransformError, match=r"items of its 120 text rows[\s\S]*items=\{'text': \[\.\.\.\]\}"):
        unknown.transform(pairs.y, items=pairs.items, **options)
    np.testing.assert_array_equal(unknown.transform(pairs.y), known.transform(pairs.y))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": -0.1}, "tau -0.1"),
        ({"tau": float("nan")}, "tau nan"),
        ({"neighbours": 0}, "neighbours 0"),
        ({"limit": 0}, "limit 0"),
        ({"weight": -1.0}, r"weight -1.0[\s\S]*at least 0"),
        ({"weight": float("inf")}, "weight inf"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TransformError, match=rf"retrieval cannot use [\s\S]*{message}"):
        Retrieval(**changes)


def test_a_memory_of_another_modality(pairs: Pairs) -> None:
    with pytest.raises(TransformError, match="retrieval needs text rows"):
        Pipeline([Normalize(), Retrieval(), Normalize()]).fit({"image": pairs.x})
    swapped = Pipeline([Normalize(), Retrieval("image"), Normalize()]).fit(make_pairs().rows)
    expected = np.stack([mixed(q, kept(swapped), 10, 0.05, 1.0) for q in unit(pairs.y)])
    np.testing.assert_allclose(swapped.transform(pairs.y, modality="text"), expected, atol=1e-6)


def test_fitting_does_not_retrieve_for_steps_that_are_not_fitted(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """For half a million captions that would be as many products of each with all."""
    monkeypatch.delattr(operations, "_mix")
    assert pairs.fit(preset("c3-retrieval")).fitted
    with pytest.raises(NameError, match="_mix"):
        pairs.fit(Pipeline([Normalize(), Retrieval(), Normalize(), Collapse(), Normalize()]))
