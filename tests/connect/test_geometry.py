from __future__ import annotations

import numpy as np
import pytest

from c3tools.connect.geometry import LogPoint, measure

from ..conftest import unit_rows


def test_the_log_has_the_measures_of_a_report() -> None:
    first, second, index = unit_rows(30, 6), unit_rows(60, 6, seed=1), np.repeat(np.arange(30), 2)
    geometry = measure(first, second, index)
    cosines = first.astype(np.float64) @ second.T
    own = index[None] == np.arange(30)[:, None]
    assert geometry.gap == pytest.approx(np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)), rel=1e-5)
    assert geometry.paired_cosine == pytest.approx(cosines[own].mean(), abs=1e-6)
    assert geometry.unpaired_cosine == pytest.approx(cosines[~own].mean(), abs=1e-6)
    best = cosines.argmax(axis=1)
    assert geometry.recall[0]["recall@1"] == pytest.approx(np.mean(index[best] == np.arange(30)))
    point = LogPoint(3, 1, 2.5, 20.0, 1.5, geometry)
    value = point.to_dict(("image", "text"))
    assert set(value["recall"]) == {"image_to_text", "text_to_image"}
    assert LogPoint.from_dict(value) == point
