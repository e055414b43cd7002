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
    StableRun,
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
from c3tools.geometry.theory.networks import draw_toy, simulate_depth, simulate_init_gap, toy_gap
from tests.conftest import make_store, unit_rows
from tests.geometry.spaces import paper_model, unit

SMALL: dict[str, Any] = {"pairs": 24, "dim": 32, "spans": (4, 12), "seed": 3}


def test_training_in_the_span_is_training_in_all_dimensions() -> None:
    x, y = draw_spans(**SMALL)
    trace, moved, _ = train_pairs(x, y, steps=40, learning_rate=5.0, logit_scale=14.0, every=10, dtype=torch.float64)
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
        assert (point.loss, point.gap) == pytest.approx(expected[point.step], abs=1e-9)
    np.testing.assert_allclose(moved, a.detach().numpy(), atol=1e-8)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("steps", "every"), [(110, 25), (30, 7), (60, 20)])
def test_the_table_has_every_row_and_the_last_step(steps: int, every: int, fast: bool) -> None:
    arguments: dict[str, Any] = {**SMALL, "steps": steps, "every": every}
    result = simulate_gap_after_training(**arguments, fast=fast)
    assert [int(row[0]) for row in result.table.rows] == sorted({*range(0, steps, every), steps})
    last, exact = (one.values["trace"][-1] for one in (result, simulate_gap_after_training(**arguments)))
    assert last == pytest.approx(exact, rel=3e-3)  # long steps follow the short ones


def test_the_selected_draw_starts_where_the_papers_did() -> None:
    trace, _, _ = train_pairs(*draw_spans(500, 512, (25, 230), SELECTED_SEED), steps=1, every=1)
    assert (trace[0].loss, trace[0].gap) == pytest.approx(PAPER_TRACE[0], rel=1e-3)
    assert trace[0].paper == ("6.267", "1.2478")


@pytest.mark.parametrize(("logit_scale", "dtype"), [(100.0, torch.float32), (1000.0, torch.float64)])
def test_the_gradient_at_a_low_temperature_is_that_of_autograd(logit_scale: float, dtype: torch.dtype) -> None:
    a, b = (torch.from_numpy(unit_rows(8, 4, seed)).to(dtype) for seed in (0, 1))
    a[0], b[:, 0] = torch.eye(4, dtype=dtype)[0], -2  # one point is far from every point of the other modality
    pair_loss(a.requires_grad_(), b.requires_grad_(), logit_scale).backward()
    for found, rows in zip(pair_gradients(a.detach(), b.detach(), logit_scale), (a, b), strict=True):
        torch.testing.assert_close(found, rows.grad, rtol=1e-4, atol=1e-4)


def test_the_toy_agrees_with_its_closed_form() -> None:
    assert toy_gap(512, (257, 257)) == pytest.approx(1.0, abs=0.01)
    gaps = [draw_toy(512, (257, 257), n=100, seed=seed).length for seed in range(6)]
    assert np.mean(gaps) == pytest.approx(toy_gap(512, (257, 257)), abs=0.05)
    assert len(simulate_init_gap(toy=True, seeds=1).table.rows) == 1


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
        assert run.start_lead < 0 < run.lead < run.sufficient_lead
        assert 0.05 < run.loss <= 0.1


@pytest.mark.parametrize(
    ("runs", "expected"),  # tau, lead, noise and later lead of each
    [
        ([(0.01, 0.05, 0.2, 0.06), (0.1, 0.5, 0.1, 0.6)], [True, True, True]),
        # one lead at every temperature, noise that does not depend on it, and a descent that goes on
        ([(0.01, 0.5, 0.1, 1.0), (0.1, 0.5, 0.1, 1.0)], [False, False, False]),
        # temperatures so near each other that even one lead at all of them is nearly in proportion, or only one
        ([(0.05, 0.5, 0.2, 0.6), (0.06, 0.5, 0.1, 0.6)], [None, None, True]),
        ([(0.05, 0.5, 0.2, 0.6)], [None, None, True]),
    ],
)
def test_the_predictions_can_fail(runs: list[tuple[float, ...]], expected: list[bool | None]) -> None:
    found = [StableRun(tau, 10, 0.1, -0.3, lead, 1.0, noise, later) for tau, lead, noise, later in runs]
    assert list(predictions(found).values()) == expected


def test_one_temperature_leaves_the_dependence_on_it_unknown() -> None:
    result = simulate_stable_region(tau=[0.05, 0.05], pairs=30, dim=16)
    assert len(result.table.rows) == 1
    assert result.found.count("unknown") == 2
    assert result.values["predictions"]["a lower tau leaves more noise"] is None


def test_depth_loses_dimensions() -> None:
    result = simulate_depth(width=48, layers=24, rows=1500, every=8)
    dimensions = [layer["effective_dimension"] for layer in result.values["layers"]]
    assert [layer["layer"] for layer in result.values["layers"]] == [0, 8, 16, 24]
    assert (dimensions[0], dimensions) == (48, sorted(dimensions, reverse=True))
    # two standard normal inputs: after one ReLU layer their cosine is 1 / pi in the limit of width
    first = simulate_depth(width=256, layers=2, rows=600, every=1, seed=1)
    assert first.values["layers"][2]["cosine"] == pytest.approx(1 / np.pi, abs=0.03)
    assert first.values == simulate_depth(width=256, layers=2, rows=600, every=1, seed=1).values


def test_more_of_the_gap_survives_at_a_higher_scale() -> None:
    x, y = synthetic_features(n=400, dim=32, shared=8)
    state = torch.get_rng_state()
    low, high = gap_by_scale(x, y, scales=(5.0, 100.0), steps=150, batch=64, hidden=64, out=32, learning_rate=3e-3)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on as before
    assert (low.start_gap, low.gap < 0.5 * high.gap, low.recall > 0.3) == (high.start_gap, True, True)
    for seed in (-1, 10**30):  # any integer
        assert gap_by_scale(x[:40], y[:40], scales=(5.0,), steps=1, batch=8, hidden=8, out=4, seed=seed)


def test_temperature_of_a_store_takes_one_pair_per_item(tmp_path: Path) -> None:
    image, text, owner = paper_model(30, 8, captions=2)
    store = make_store(tmp_path / "s", unit(image).astype("float32"), unit(text).astype("float32"), owners=list(owner))
    result = simulate_temperature(store=store, steps=2, scale=[10])
    assert result.to_dict()["pairs"] == 30
    assert "<table" in result._repr_html_()
    assert "<svg" in result._repr_html_()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: draw_spans(4, 32, (20, 20), 0), "20 and 20.* 32"),
        (lambda: train_to_loss(0.5, delta=0.01, pairs=20, dim=2, steps=20), r"0\.5 .*0\.01"),
        (lambda: stable_lead(np.inf, 10, 0.1), "tau"),
        (lambda: stable_lead(0.0, 10, 0.1), "tau"),
        (lambda: stable_lead(0.1, 1, 0.1), "2"),
        (lambda: stable_lead(0.1, 10, 0.0), "delta"),
        (lambda: gap_by_scale(np.ones((5, 3)), np.ones((5, 3))), "20 pairs.* 5"),
        (lambda: gap_by_scale(np.ones((20, 3)), np.ones((20, 3)), scales=(100.0, np.nan)), "scales"),
        (lambda: train_pairs(np.eye(4), np.eye(4), steps=1, learning_rate=-1.0), "learning rate.*-1"),
        (lambda: train_pairs(np.eye(4), np.eye(4), steps=1, logit_scale=np.nan), "logit scale.*nan"),
        (lambda: simulate_depth(rows=2), "3"),
    ],
)
def test_impossible_settings_are_refused(call: Any, named: str) -> None:
    with pytest.raises(C3Error, match=named):
        call()
