from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import C3Error
from c3tools.geometry.theory.depth import span_by_layer
from c3tools.geometry.theory.initialisation import draw_toy, toy_gap
from c3tools.geometry.theory.optimisation import (
    PAPER_TRACE,
    SELECTED_SEED,
    draw_spans,
    pair_gradients,
    pair_loss,
    simulate_gap_after_training,
    train_pairs,
)
from c3tools.geometry.theory.stable_region import (
    StableRun,
    loss_bound,
    predictions,
    simulate_stable_region,
    stable_lead,
    train_to_loss,
)
from c3tools.geometry.theory.temperature import gap_by_scale, simulate_temperature, synthetic_features
from tests.conftest import make_store, unit_rows
from tests.geometry.spaces import paper_model, unit

SMALL: dict[str, Any] = {"pairs": 24, "dim": 32, "spans": (4, 12), "seed": 3}


def plain_descent(
    x: np.ndarray, y: np.ndarray, steps: int, rate: float, scale: float
) -> tuple[list[tuple[float, float]], np.ndarray]:
    """The loop as one writes it first: torch.optim.SGD over the points in all dimensions."""
    a, b = (torch.tensor(rows, requires_grad=True) for rows in (x, y))
    optimiser = torch.optim.SGD([a, b], lr=rate)
    own, trace = torch.arange(len(x)), []
    for _ in range(steps + 1):
        ua, ub = torch.nn.functional.normalize(a), torch.nn.functional.normalize(b)
        logits = scale * ua @ ub.T
        loss = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
        trace.append((loss.item(), (ua.mean(0) - ub.mean(0)).norm().item()))
        optimiser.zero_grad()
        loss.backward()
        if len(trace) <= steps:
            optimiser.step()
    return trace, a.detach().numpy()


def test_training_in_the_span_is_training_in_all_dimensions() -> None:
    x, y = draw_spans(**SMALL)
    expected, points = plain_descent(x, y, 40, 5.0, 14.0)
    trace, moved, _ = train_pairs(x, y, steps=40, learning_rate=5.0, logit_scale=14.0, every=10, dtype=torch.float64)
    for point in trace:
        assert (point.loss, point.gap) == pytest.approx(expected[point.step], abs=1e-9)
    np.testing.assert_allclose(moved, points, atol=1e-8)


def test_long_steps_follow_the_short_ones() -> None:
    x, y = draw_spans(**SMALL)
    arguments: dict[str, Any] = {"steps": 1000, "learning_rate": 0.1, "logit_scale": 14.0, "every": 500}
    plain, _, _ = train_pairs(x, y, **arguments)
    fast, _, _ = train_pairs(x, y, fast=True, **arguments)
    for one, other in zip(plain, fast, strict=True):
        assert (other.loss, other.gap) == pytest.approx((one.loss, one.gap), rel=3e-3)
    assert plain[-1].loss < 0.9 * plain[0].loss


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("steps", "every"), [(50, 20_000), (110, 25), (30, 7), (60, 20)])
def test_the_table_has_every_row_and_the_last_step(steps: int, every: int, fast: bool) -> None:
    arguments: dict[str, Any] = {**SMALL, "steps": steps, "every": every}
    result = simulate_gap_after_training(**arguments, fast=fast)
    assert [int(row[0]) for row in result.table.rows] == sorted({*range(0, steps, every), steps})
    trace = result.values["trace"]
    assert trace[-1]["step"] == steps
    exact = simulate_gap_after_training(**arguments).values["trace"][-1]
    assert (trace[-1]["loss"], trace[-1]["gap"]) == pytest.approx((exact["loss"], exact["gap"]), rel=3e-3)


def test_the_selected_draw_starts_where_the_papers_did() -> None:
    x, y = draw_spans(500, 512, (25, 230), SELECTED_SEED)
    trace, _, _ = train_pairs(x, y, steps=1, every=1)
    assert (trace[0].loss, trace[0].gap) == pytest.approx(PAPER_TRACE[0], rel=1e-3)


@pytest.mark.parametrize(("logit_scale", "dtype"), [(100.0, torch.float32), (1000.0, torch.float64)])
def test_the_gradient_at_a_low_temperature_is_that_of_autograd(logit_scale: float, dtype: torch.dtype) -> None:
    a, b = (torch.from_numpy(unit_rows(8, 4, seed)).to(dtype) for seed in (0, 1))
    a[0], b[:, 0] = torch.eye(4, dtype=dtype)[0], -2  # one point is far from every point of the other modality
    pair_loss(a.requires_grad_(), b.requires_grad_(), logit_scale).backward()
    for found, rows in zip(pair_gradients(a.detach(), b.detach(), logit_scale), (a, b), strict=True):
        torch.testing.assert_close(found, rows.grad, rtol=1e-4, atol=1e-4)


def test_spans_must_fit() -> None:
    with pytest.raises(C3Error, match="do not fit into 32"):
        draw_spans(4, 32, (20, 20), 0)


def test_the_toy_agrees_with_its_closed_form() -> None:
    assert toy_gap(512, (257, 257)) == pytest.approx(1.0, abs=0.01)
    gaps = [draw_toy(512, (257, 257), n=100, seed=seed).length for seed in range(6)]
    assert np.mean(gaps) == pytest.approx(toy_gap(512, (257, 257)), abs=0.05)
    with pytest.raises(C3Error, match="can be constant"):
        toy_gap(8, (9, 0))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(-1, 1), st.floats(0.01, 1.0))
def test_the_loss_never_exceeds_the_bound(negatives: list[float], positive: float, tau: float) -> None:
    differences = (np.array(negatives) - positive) / tau
    loss = np.logaddexp.reduce(np.r_[0.0, differences])
    bound = float(loss_bound(positive - max(negatives), tau, len(negatives) + 1))
    assert loss <= bound * (1 + 1e-12) + 1e-12


@given(st.floats(0.005, 1.0), st.integers(2, 100_000), st.floats(1e-4, 5.0))
def test_the_stable_lead_is_where_the_bound_meets_delta(tau: float, n: int, delta: float) -> None:
    assert float(loss_bound(stable_lead(tau, n, delta), tau, n)) == pytest.approx(delta, rel=1e-6)


def test_trained_points_lead_in_proportion_to_the_temperature() -> None:
    runs = [train_to_loss(tau, pairs=80, dim=32) for tau in (0.02, 0.05, 0.1)]
    assert all(predictions(runs).values())
    for run in runs:
        assert run.start_lead < 0 < run.lead < run.sufficient_lead
        assert 0.05 < run.loss <= 0.1


def test_the_predictions_can_fail() -> None:
    def run(tau: float, lead: float, noise: float, later: float) -> StableRun:
        return StableRun(tau, 10, 0.1, -0.3, lead, 1.0, noise, later)

    assert list(predictions([run(0.01, 0.05, 0.2, 0.06), run(0.1, 0.5, 0.1, 0.6)]).values()) == [True, True, True]
    # one lead at every temperature, noise that does not depend on it, and a descent that goes on
    assert list(predictions([run(0.01, 0.5, 0.1, 1.0), run(0.1, 0.5, 0.1, 1.0)]).values()) == [False, False, False]
    # temperatures so near each other that even one lead at all of them is nearly in proportion, or only one
    assert list(predictions([run(0.05, 0.5, 0.2, 0.6), run(0.06, 0.5, 0.1, 0.6)]).values()) == [None, None, True]
    assert list(predictions([run(0.05, 0.5, 0.2, 0.6)]).values()) == [None, None, True]


def test_the_dependence_on_the_temperature_is_unknown_from_one_temperature() -> None:
    result = simulate_stable_region(tau=[0.05, 0.05], pairs=30, dim=16)
    assert len(result.table.rows) == 1
    assert "in proportion to tau: unknown; a lower tau leaves more noise: unknown;" in result.found
    assert "choose two that differ by more than a factor of 2" in result.found
    assert result.values["predictions"]["a lower tau leaves more noise"] is None


def test_a_loss_that_cannot_be_reached_is_said() -> None:
    with pytest.raises(C3Error, match=r"above delta 0\.01"):
        train_to_loss(0.5, delta=0.01, pairs=20, dim=2, steps=20)


@pytest.mark.parametrize(
    "arguments", [(0.0, 10, 0.1), (0.1, 1, 0.1), (0.1, 10, 0.0), (np.nan, 10, 0.1), (np.inf, 10, 0.1)]
)
def test_the_stable_lead_needs_sensible_numbers(arguments: tuple[float, int, float]) -> None:
    with pytest.raises(C3Error, match="stable region"):
        stable_lead(*arguments)


def test_depth_loses_dimensions() -> None:
    spans = span_by_layer(width=48, layers=24, rows=1500, every=8)
    assert [span.layer for span in spans] == [0, 8, 16, 24]
    dimensions = [span.effective_dimension for span in spans]
    assert dimensions == sorted(dimensions, reverse=True)
    assert dimensions[0] == 48
    # two standard normal inputs: after one ReLU layer their cosine is 1 / pi in the limit of width
    first = span_by_layer(width=256, layers=2, rows=600, every=1, seed=1)
    assert first[2].cosine == pytest.approx(1 / np.pi, abs=0.03)


@settings(deadline=None)
@given(st.just(0))
def test_depth_is_reproducible(seed: int) -> None:
    one, other = (span_by_layer(width=16, layers=3, rows=50, every=1, seed=seed) for _ in range(2))
    assert [s.cosine for s in one] == [s.cosine for s in other]


def test_more_of_the_gap_survives_at_a_higher_scale() -> None:
    x, y = synthetic_features(n=400, dim=32, shared=8)
    state = torch.get_rng_state()
    low, high = gap_by_scale(x, y, scales=(5.0, 100.0), steps=150, batch=64, hidden=64, out=32, learning_rate=3e-3)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on as before
    assert low.start_gap == high.start_gap
    assert low.gap < 0.5 * high.gap
    assert low.recall > 0.3


def test_a_seed_may_be_any_integer() -> None:
    x, y = synthetic_features(n=40, dim=8, shared=4)
    for seed in (-1, 10**30):
        assert gap_by_scale(x, y, scales=(5.0,), steps=1, batch=8, hidden=8, out=4, seed=seed)


def test_training_needs_pairs() -> None:
    with pytest.raises(C3Error, match="at least 20 pairs"):
        gap_by_scale(np.ones((5, 3)), np.ones((5, 3)))
    for scale in (0.0, np.nan, np.inf):
        with pytest.raises(C3Error, match="Logit scales must be finite numbers above 0"):
            gap_by_scale(np.ones((20, 3)), np.ones((20, 3)), scales=(100.0, scale))


def test_descent_needs_a_rate_and_a_scale() -> None:
    with pytest.raises(C3Error, match=r"The learning rate must be a finite number above 0, not -1\.0"):
        train_pairs(np.eye(4), np.eye(4), steps=1, learning_rate=-1.0)
    with pytest.raises(C3Error, match="The logit scale must be a finite number above 0, not nan"):
        train_pairs(np.eye(4), np.eye(4), steps=1, logit_scale=np.nan)


def test_temperature_of_a_store_takes_one_pair_per_item(tmp_path: Path) -> None:
    image, text, owner = paper_model(30, 8, captions=2)
    store = make_store(tmp_path / "s", unit(image).astype("float32"), unit(text).astype("float32"), owners=list(owner))
    result = simulate_temperature(store=store, steps=2, scale=[10])
    assert result.to_dict()["pairs"] == 30
    assert "<table" in result._repr_html_()
    assert "<svg" in result._repr_html_()
