from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.captioning import nearest, nearest_captions
from c3tools.errors import DecoderError
from c3tools.store import Rows


@given(n=st.integers(1, 600), m=st.integers(1, 30), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_nearest_rows_are_those_with_the_highest_cosine(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, memory = rng.normal(size=(n, 4)), rng.normal(size=(m, 4)) * rng.uniform(0.5, 9, size=(m, 1))
    count = min(3, m)
    cosines = (queries @ memory.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(memory, axis=1)
    found = nearest(queries.astype(np.float32), memory.astype(np.float32), count)
    picked = np.take_along_axis(cosines, found, axis=1)
    np.testing.assert_allclose(picked, -np.sort(-cosines, axis=1)[:, :count], atol=1e-5)


def test_the_caption_of_the_nearest_text_is_given() -> None:
    memory = Rows.of("text", ["a", "b"], [[1.0, 0.0], [0.0, 9.0]], caption=["right", "up"])
    assert nearest_captions(np.array([[0.9, 0.8], [0.1, 0.2]], np.float32), memory) == ["right", "up"]


def test_empty_memories_and_other_dimensions_are_refused() -> None:
    with pytest.raises(DecoderError, match="no captions to choose from"):
        nearest_captions(np.ones((1, 2), np.float32), Rows.of("text", [], np.ones((0, 2)), caption=[]))
    with pytest.raises(DecoderError, match="Queries have 3 dimensions, but the memory has 2"):
        nearest(np.ones((1, 3), np.float32), np.ones((1, 2), np.float32), 1)
