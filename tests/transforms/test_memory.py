"""Steps with a memory, and what they keep of the rows they are fitted on."""

from __future__ import annotations

import numpy as np

from c3tools.transforms import Collapse, MemoryProjection, Normalize, Pipeline

from .conftest import Pairs, unit


def test_a_memory_keeps_the_rows_as_they_reached_its_step(pairs: Pairs) -> None:
    """Collapse is fitted on the same rows afterwards, and centres them in place."""
    step = MemoryProjection(role="inference")
    Pipeline([Normalize(), step, Normalize(), Collapse(), Normalize(), MemoryProjection(), Normalize()]).fit(pairs.rows)
    np.testing.assert_allclose(step.state["memory"].astype(np.float64), unit(pairs.y), atol=1e-6)
