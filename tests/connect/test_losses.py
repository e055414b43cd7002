from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from c3tools.connect.training import ContrastiveLoss
from c3tools.errors import ConnectError
from tests.conftest import unit_rows
from tests.stores import unit


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 9), scale=st.floats(0.5, 100), seed=st.integers(0, 1000), repeats=st.booleans())
def test_loss_and_the_terms_that_close_the_gap_are_those_of_their_papers(
    n: int, scale: float, seed: int, repeats: bool
) -> None:
    a, b = unit_rows(n, 5, seed), unit_rows(n, 5, seed + 1)
    ids = np.random.default_rng(seed).integers(0, max(2, n // 2), size=n) if repeats else np.arange(n)
    others = ids[:, None] != ids[None]
    inputs = torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(~others)
    loss = ContrastiveLoss(str(scale), 0.5)
    a, b = a.astype(np.float64), b.astype(np.float64)
    masked = np.where(others | np.eye(n, dtype=bool), scale * a @ b.T, -np.inf)
    rows, columns = (np.diagonal(log_softmax(masked, axis=axis)) for axis in (1, 0))
    assert float(loss(*inputs)) == pytest.approx(-(rows.mean() + columns.mean()) / 2, abs=2e-4)
    centroids = unit(a + b)
    near = np.exp(-2 * ((centroids[:, None] - centroids[None]) ** 2).sum(axis=2))[others]
    gap = np.mean(np.sum((a - b) ** 2, axis=1)) + (np.log(near.mean()) if len(near) else 0.0)
    assert float(loss.gap_terms(*inputs)) == pytest.approx(0.5 * gap, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "value", "learned"),
    [("100", 100, False), ("200", 200, False), ("learned", 1 / 0.07, True), ("learned:20", 20, True)],
)
def test_logit_scales_are_parsed(text: str, value: float, learned: bool) -> None:
    loss = ContrastiveLoss(text)
    assert loss.logit_scale == pytest.approx(value, rel=1e-6)
    assert loss.log_scale.requires_grad == learned


@pytest.mark.parametrize("text", ["learned:x", "0", "-3", "nan", "inf", "14:50", "", "learned:101"])
def test_what_is_no_logit_scale_is_refused(text: str) -> None:
    with pytest.raises(ConnectError, match="logit scale"):
        ContrastiveLoss(text)
