from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c3tools.errors import C3Error
from c3tools.geometry.theory.contrastive import (
    PAPER_TRACE,
    SELECTED_SEED,
    draw_spans,
    gap_by_scale,
    pair_gradients,
    pair_loss,
    predictions,
    simulate_gap_after_training,
    simulate_stable_region,
    simulate_temperature,
    stable_lead,
    synthetic_features,
    train_pairs,
    train_to_loss,
)
from c3tools.geometry.theory.networks import simulate_depth, simulate_init_gap
from tests.conftest import make_store, unit_rows
from tests.connect.photos import save_photos
from tests.geometry.spaces import paper_model, unit

SMALL = draw_spans(24, 32, (4, 12), 3)


def test_training_in_the_span_is_training_in_all_dimensions() -> None:
    x, y = SMALL
    options: dict[str, Any] = {"learning_rate": 5.0, "logit_scale": 14.0}
    trace, moved, _ = train_pairs(x, y, steps=40, every=10, dtype=torch.float64, **options)
    # the loop as one writes it first, over the points in all dimensions
    a, b = (torch.tensor(rows, requires_grad=True) for rows in (x, y))
    optimiser, expected = torch.optim.SGD([a, b], lr=5.0), []
    for step in range(41):
        loss = pair_loss(a, b, 14.0)
        means = [torch.nn.functional.normalize(rows).mean(0) for rows in (a, b)]
        expected.append((loss.item(), (means[0] - means[1]).norm().item()))
        optimiser.zero_grad()
        loss.backward()
        if step < 40:
            optimiser.step()
    for point in trace:
        assert (point["loss"], point["gap"]) == pytest.approx(expected[point["step"]], abs=1e-9)
    np.testing.assert_allclose(moved, a.detach().numpy(), atol=1e-8)


@pytest.mark.parametrize(("steps", "every"), [(110, 25), (30, 7), (60, 20)])
def test_the_trace_has_the_last_step_and_long_steps_follow_the_short_ones(steps: int, every: int) -> None:
    short, long = (train_pairs(*SMALL, steps=steps, every=every, fast=fast)[0] for fast in (False, True))
    for trace in (short, long):
        assert [point["step"] for point in trace] == sorted({*range(0, steps, every), steps})
    assert long[-1] == pytest.approx(short[-1], rel=3e-3)


def test_the_selected_draw_starts_where_the_papers_did() -> None:
    result = simulate_gap_after_training(steps=1, seed=SELECTED_SEED)
    start, (loss, gap) = result.to_dict()["runs"][0], PAPER_TRACE[0]
    assert (start["loss"], start["gap"]) == pytest.approx((loss, gap), rel=1e-3)
    assert [row[-2:] for row in result.table.rows] == [["6.2670", "1.2478"], ["–", "–"]]
    assert "selected among 3,000" in result.found


def test_two_cones_with_257_constant_dimensions_of_512_are_1_apart() -> None:
    """In closed form ``sqrt(257 / 512 + 257 / 512)``, as the constants of both are orthogonal in the mean."""
    starts = [draw_spans(100, 512, (255, 255), seed) for seed in range(6)]
    gaps = [np.linalg.norm(unit(x).mean(axis=0) - unit(y).mean(axis=0)) for x, y in starts]
    assert np.mean(gaps) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("logit_scale", "dtype"), [(100.0, torch.float32), (1000.0, torch.float64)])
def test_the_gradient_at_a_low_temperature_is_that_of_autograd(logit_scale: float, dtype: torch.dtype) -> None:
    a, b = (torch.from_numpy(unit_rows(8, 4, seed)).to(dtype) for seed in (0, 1))
    a[0], b[:, 0] = torch.eye(4, dtype=dtype)[0], -2  # one point is far from every point of the other modality
    pair_loss(a.requires_grad_(), b.requires_grad_(), logit_scale).backward()
    for found, rows in zip(pair_gradients(a.detach(), b.detach(), logit_scale), (a, b), strict=True):
        torch.testing.assert_close(found, rows.grad, rtol=1e-4, atol=1e-4)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.floats(0.01, 1.0), st.floats(1e-3, 5.0))
def test_a_stable_lead_suffices_for_the_loss(negatives: list[float], tau: float, delta: float) -> None:
    positive = max(negatives) + stable_lead(tau, len(negatives) + 1, delta)
    loss = np.logaddexp.reduce(np.r_[0.0, (np.array(negatives) - positive) / tau])
    assert loss <= delta * (1 + 1e-9) + 1e-12
    assert loss == pytest.approx(delta) or len(set(negatives)) > 1  # equal negatives reach the bound


def test_trained_points_lead_in_proportion_to_the_temperature() -> None:
    runs = [train_to_loss(tau, pairs=60, dim=24) for tau in (0.02, 0.1)]
    assert all(predictions(runs).values())
    for run in runs:
        assert run["start_lead"] < 0 < run["lead"] < run["sufficient_lead"]
        assert 0.05 < run["loss"] <= 0.1


@pytest.mark.parametrize(
    ("runs", "expected"),  # tau, lead, noise and later lead of each
    [
        ([(0.01, 0.05, 0.2, 0.06), (0.1, 0.5, 0.1, 0.6)], [True, True, True]),
        # one lead at every temperature, noise that does not depend on it, and a descent that goes on
        ([(0.01, 0.5, 0.1, 1.0), (0.1, 0.5, 0.1, 1.0)], [False, False, False]),
    ],
)
def test_the_predictions_can_fail(runs: list[tuple[float, ...]], expected: list[bool]) -> None:
    names = ("tau", "lead", "noise", "later_lead")
    found = [{**dict(zip(names, run, strict=True)), "start_lead": -0.3, "over_tau": run[1] / run[0]} for run in runs]
    assert list(predictions(found).values()) == expected


def test_depth_loses_dimensions() -> None:
    result = simulate_depth(width=48, layers=12, rows=1500)
    dimensions = [layer["effective_dimension"] for layer in result.runs]
    assert [layer["layer"] for layer in result.runs] == [0, 5, 10, 12]
    assert (dimensions[0], dimensions) == (48, sorted(dimensions, reverse=True))
    # two standard normal inputs: after one ReLU layer their cosine is 1 / pi in the limit of width
    first = simulate_depth(width=256, layers=2, rows=600, seed=1)
    assert first.runs[1]["cosine"] == pytest.approx(1 / np.pi, abs=0.03)
    assert first.to_dict() == simulate_depth(width=256, layers=2, rows=600, seed=1).to_dict()


def test_encoders_with_random_weights_are_apart(tmp_path: Path) -> None:
    result = simulate_init_gap([save_photos(tmp_path / "photos", per_kind=1)], model="c3-mini", seeds=2, device="cpu")
    assert all(run["gap"] > 0.5 and run["mean_norm_image"] > 0.9 for run in result.runs)
    assert all(0 < run["on_equal_rows_text"] < result.settings["images"] for run in result.runs)
    assert result.settings["texts"] == 2 * result.settings["images"]


def test_more_of_the_gap_survives_at_a_higher_scale() -> None:
    x, y = synthetic_features(n=400, dim=32, shared=8)
    state = torch.get_rng_state()
    low, high = gap_by_scale(x, y, scales=(5.0, 100.0), steps=150)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on as before
    assert (low["start_gap"], low["gap"] < 0.5 * high["gap"], low["recall"] > 0.3) == (high["start_gap"], True, True)
    for seed in (-1, 10**30):  # any integer
        assert gap_by_scale(x[:40], y[:40], scales=(5.0,), steps=1, seed=seed)


def test_temperature_of_a_store_takes_one_pair_per_item(tmp_path: Path) -> None:
    image, text, owner = paper_model(30, 8, captions=2)
    store = make_store(tmp_path / "s", unit(image).astype("float32"), unit(text).astype("float32"), owners=list(owner))
    result = simulate_temperature(store=store, steps=2, scale=[10])
    assert result.to_dict()["pairs"] == 30


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: train_to_loss(0.5, delta=0.01, pairs=20, dim=2, steps=20), r"0\.5 .*0\.01"),
        (lambda: stable_lead(np.inf, 10, 0.1), "tau"),
        (lambda: stable_lead(0.0, 10, 0.1), "tau"),
        (lambda: stable_lead(0.1, 10, 0.0), "delta"),
        (lambda: gap_by_scale(np.ones((5, 3)), np.ones((5, 3))), "20 pairs.* 5"),
        (lambda: gap_by_scale(np.ones((20, 3)), np.ones((20, 3)), scales=(100.0, np.nan)), "scales"),
        (lambda: simulate_stable_region(tau=[0.05, 0.1]), "factor of 2"),
    ],
)
def test_impossible_settings_are_refused(call: Any, named: str) -> None:
    with pytest.raises(C3Error, match=named):
        call()
