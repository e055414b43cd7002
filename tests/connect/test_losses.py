from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax

from c3tools.connect.losses import ContrastiveLoss, LogitScale, same_items
from c3tools.errors import ConnectError

from ..conftest import unit_rows


def tensors(n: int, seed: int = 0, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(unit_rows(n, dim, seed)), torch.from_numpy(unit_rows(n, dim, seed + 1))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), scale=st.floats(0.5, 100), seed=st.integers(0, 1000), repeats=st.booleans())
def test_losses_are_those_of_their_papers(n: int, scale: float, seed: int, repeats: bool) -> None:
    a, b = tensors(n, seed)
    ids = np.random.default_rng(seed).integers(0, max(2, n // 2), size=n) if repeats else np.arange(n)
    same = same_items(torch.from_numpy(ids), torch.arange(n))
    logits = scale * (a.numpy().astype(np.float64) @ b.numpy().astype(np.float64).T)
    own = np.eye(n, dtype=bool)
    kept = own | (ids[:, None] != ids[None])
    masked = np.where(kept, logits, -np.inf)
    rows, columns = (np.diagonal(log_softmax(masked, axis=axis)) for axis in (1, 0))
    loss = float(ContrastiveLoss("infonce", LogitScale(scale))(a, b, same))
    assert loss == pytest.approx(-(rows.mean() + columns.mean()) / 2, abs=2e-4)
    loss = float(ContrastiveLoss("sigmoid", LogitScale(scale))(a, b, same).detach())
    signed = np.where(own, logits - 10, 10 - logits)
    assert loss == pytest.approx(-np.log(expit(signed))[kept].sum() / n, rel=1e-4, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 1000), repeats=st.booleans())
def test_the_terms_that_close_the_gap_are_those_of_their_paper(n: int, seed: int, repeats: bool) -> None:
    a, b = tensors(n, seed)
    ids = np.random.default_rng(seed).integers(0, max(2, n // 2), size=n) if repeats else np.arange(n)
    same = same_items(torch.from_numpy(ids), torch.arange(n))
    found = float(ContrastiveLoss(close_gap=0.5).gap_terms(a, b, same))
    x, y = a.numpy().astype(np.float64), b.numpy().astype(np.float64)
    centroids = (x + y) / np.linalg.norm(x + y, axis=1, keepdims=True)
    near = [
        np.exp(-2 * np.sum((centroids[i] - centroids[j]) ** 2)) for i in range(n) for j in range(n) if ids[i] != ids[j]
    ]
    expected = np.mean(np.sum((x - y) ** 2, axis=1)) + (np.log(np.mean(near)) if near else 0.0)
    assert found == pytest.approx(0.5 * expected, abs=1e-4)


def test_false_negatives_have_no_gradient() -> None:
    a, b = tensors(3)
    a.requires_grad_()
    # pairs 0 and 1 are captions of one image: neither pushes the other away
    same = same_items(torch.tensor([7, 7, 8]), torch.arange(3))
    for kind in ("infonce", "sigmoid"):
        shifted = b.clone()
        shifted[1] = -b[1]
        plain, other = (
            torch.autograd.grad(ContrastiveLoss(kind)(a, rows, same), a)[0][0].numpy() for rows in (b, shifted)
        )
        np.testing.assert_allclose(plain, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_the_loss_of_chance_is_that_of_equal_cosines(kind: str) -> None:
    n = 64
    loss = ContrastiveLoss(kind, LogitScale(20))
    if loss.bias is not None:
        loss.bias.data.fill_(math.log(1 / (n - 1)) - 20)  # the best bias: probability 1/n everywhere
    same_row = torch.nn.functional.normalize(torch.ones(n, 5), dim=1)
    assert float(loss(same_row, same_row).detach()) == pytest.approx(loss.of_chance(n), rel=1e-5)
    assert ContrastiveLoss("infonce").of_chance(512) == pytest.approx(6.238, abs=1e-3)


def test_logit_scales_are_parsed() -> None:
    assert LogitScale.parse("100") == LogitScale(100)
    assert LogitScale.parse("learned").learned
    assert LogitScale.parse("learned").start == pytest.approx(14.2857, abs=1e-4)
    assert LogitScale.parse("learned:20") == LogitScale(20, learned=True)
    assert LogitScale.parse("14:50") == LogitScale(14, 50)
    for scale in ("100", "learned:20", "14:50"):
        assert str(LogitScale.parse(scale)) == scale


@pytest.mark.parametrize("text", ["warm", "learned:", "0", "-3", "nan", "inf", "14:50:60", ""])
def test_what_is_no_logit_scale_is_refused(text: str) -> None:
    with pytest.raises(ConnectError, match=r"[Ll]ogit scale"):
        LogitScale.parse(text)


@pytest.mark.parametrize("text", ["120", "14:120", "learned:101"])
def test_a_scale_beyond_the_clamp_is_refused_with_both_numbers(text: str) -> None:
    with pytest.raises(ConnectError, match=r"(?s)100.*--max-logit-scale"):
        LogitScale.parse(text)
    assert LogitScale.parse(text, limit=200).limit == 200


def test_a_learned_scale_is_clamped_at_the_logarithm_of_its_limit() -> None:
    loss = ContrastiveLoss("infonce", LogitScale(99, learned=True))
    assert not loss.clamped
    loss.log_scale.data += 1
    loss.move_scale(0.5)
    assert float(loss.log_scale.detach()) == pytest.approx(math.log(100))
    assert loss.clamped


def test_a_scheduled_scale_rises_in_equal_ratios() -> None:
    loss = ContrastiveLoss("infonce", LogitScale(1, 100))
    seen = []
    for progress in (0, 0.5, 1):
        loss.move_scale(progress)
        seen.append(loss.logit_scale)
    assert seen == pytest.approx([1, 10, 100], rel=1e-6)
    assert not list(loss.parameters())
