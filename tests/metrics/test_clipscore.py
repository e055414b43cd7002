from __future__ import annotations

import numpy as np
import pytest

from c3tools.errors import MetricError
from c3tools.metrics.captions import clip_score, ref_clip_score


def test_scores_by_hand() -> None:
    images = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    captions = np.array([[3.0, 4.0], [0.0, 0.5], [-1.0, 0.0]])  # cosines 0.6, 1, -1
    np.testing.assert_allclose(clip_score(images, captions), [150, 250, 0])
    references = np.array([[4.0, 3.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    item_index = np.array([0, 0, 1, 2])
    # best cosines with the captions: max(24/25, 3/5), 1, 1
    expected = [200 * 1.5 * 0.96 / (1.5 + 0.96), 200 * 2.5 / 3.5, 0]
    np.testing.assert_allclose(ref_clip_score(images, captions, references, item_index), expected)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(MetricError, match=r"\(2, 3\) and \(1, 3\)"):
        clip_score(np.ones((2, 3)), np.ones((1, 3)))
