from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from c3tools.connect.losses import ContrastiveLoss, parse_scale, same_items
from c3tools.errors import ConnectError

from ..conftest import unit_rows


def tensors(n: int, seed: int = 0, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(unit_rows(n, dim, seed)), torch.from_numpy(unit_rows(n, dim, seed + 1))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), scale=st.floats(0.5, 100), seed=st.integers(0, 1000), repeats=st.booleans())
def test_the_loss_is_that_of_its_paper(n: int, scale: float, seed: int, repeats: bool) -> None:
    a, b = tensors(n, seed)
    ids = np.random.default_rng(seed).integers(0, max(2, n // 2), size=n) if repeats else np.arange(n)
    same = same_items(torch.from_numpy(np.stack([ids, np.arange(n)])))
    logits = scale * (a.numpy().astype(np.float64) @ b.numpy().astype(np.float64).T)
    own = np.eye(n, dtype=bool)
    kept = own | (ids[:, None] != ids[None])
    masked = np.where(kept, logits, -np.inf)
    rows, columns = (np.diagonal(log_softmax(masked, axis=axis)) for axis in (1, 0))
    loss = float(ContrastiveLoss(str(scale))(a, b, same))
    assert loss == pytest.approx(-(rows.mean() + columns.mean()) / 2, abs=2e-4)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 1000), repeats=st.booleans())
def test_the_terms_that_close_the_gap_are_those_of_their_paper(n: int, seed: int, repeats: bool) -> None:
    a, b = tensors(n, seed)
    ids = np.random.default_rng(seed).integers(0, max(2, n // 2), size=n) if repeats else np.arange(n)
    same = same_items(torch.from_numpy(np.stack([ids, np.arange(n)])))
    found = float(ContrastiveLoss("10", 0.5).gap_terms(a, b, same))
    x, y = a.numpy().astype(np.float64), b.numpy().astype(np.float64)
    centroids = (x + y) / np.linalg.norm(x + y, axis=1, keepdims=True)
    near = [
        np.exp(-2 * np.sum((centroids[i] - centroids[j]) ** 2)) for i in range(n) for j in range(n) if ids[i] != ids[j]
    ]
    expected = np.mean(np.sum((x - y) ** 2, axis=1)) + (np.log(np.mean(near)) if near else 0.0)
    assert found == pytest.approx(0.5 * expected, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100", (100, False)), ("200", (200, False)), ("learned", (1 / 0.07, True)), ("learned:20", (20, True))],
)
def test_logit_scales_are_parsed(text: str, expected: tuple[float, bool]) -> None:
    assert parse_scale(text) == expected
    loss = ContrastiveLoss(text)
    assert loss.logit_scale == pytest.approx(expected[0], rel=1e-6)
    assert loss.log_scale.requires_grad == expected[1]


@pytest.mark.parametrize("text", ["warm", "learned:x", "0", "-3", "nan", "inf", "14:50", "", "learned:101"])
def test_what_is_no_logit_scale_is_refused(text: str) -> None:
    with pytest.raises(ConnectError, match="logit scale"):
        parse_scale(text)
