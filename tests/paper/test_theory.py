from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from c3tools.errors import C3Error
from c3tools.paper.theory import Simulation, contrastive
from c3tools.paper.theory.contrastive import (
    simulate_gap_after_training,
    simulate_stable_region,
    simulate_temperature,
)
from c3tools.paper.theory.networks import simulate_depth, simulate_init_gap
from tests.conftest import copy_photos, make_store, unit_rows
from tests.geometry.spaces import Told, paper_model, unit
from tests.golden import drawn, recorded

GOLDEN = Path(__file__).parent / "golden"


def on_record(simulate: Callable[..., Simulation], **options: Any) -> Simulation:
    """Run a simulation to the end of its progress, and compare it with a record."""
    reporter, file = Told(), GOLDEN / f"{simulate.__name__.removeprefix('simulate_')}.json"
    result = simulate(**options, reporter=reporter)
    assert reporter.left == 0
    runs = [{key: value for key, value in run.items() if key != "recall"} for run in result.runs]
    recorded(
        file,
        {**result.to_dict(), "runs": runs, "found": result.found, "figure": drawn(result.figure)},
        1e-3,
    )
    return result


def start() -> tuple[np.ndarray, np.ndarray]:
    """24 points of 32 dimensions, of which the first modality varies in 4 and the second in the
    next 12."""
    rng = np.random.default_rng(3)
    x, y = (np.tile(rng.normal(size=32), (24, 1)) for _ in range(2))
    x[:, :4], y[:, 4:16] = rng.normal(size=(24, 4)), rng.normal(size=(24, 12))
    return x, y


@pytest.mark.parametrize(("logit_scale", "rate"), [(14.0, 5.0), (1000.0, 0.01)])
def test_training_in_the_span_is_training_in_all_dimensions(
    logit_scale: float, rate: float
) -> None:
    """The loop as one writes it first, over the points in all dimensions, with the gradients of
    autograd."""
    x, y = start()
    trace = contrastive.train_pairs(
        x, y, steps=40, every=10, learning_rate=rate, logit_scale=logit_scale
    )
    a, b = (torch.tensor(rows, requires_grad=True) for rows in (x, y))
    optimiser, expected, own = torch.optim.SGD([a, b], lr=rate), [], torch.arange(24)
    for _ in range(41):
        u, v = normalize(a), normalize(b)
        logits = logit_scale * u @ v.T
        loss = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        expected.append((loss.item(), (u.mean(0) - v.mean(0)).norm().item()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert expected[0][0] - expected[-1][0] > 0.1
    for point in trace:
        assert (point["loss"], point["gap"]) == pytest.approx(
            expected[point["step"]], rel=1e-3, abs=1e-4
        )


def test_the_trace_has_the_last_step_and_long_steps_follow_the_short_ones() -> None:
    for steps, every in ((110, 25), (30, 7), (60, 20)):
        short, long = (
            contrastive.train_pairs(*start(), steps=steps, every=every, fast=fast)
            for fast in (False, True)
        )
        for trace in (short, long):
            assert [point["step"] for point in trace] == sorted({*range(0, steps, every), steps})
        assert long[-1] == pytest.approx(short[-1], rel=3e-3)


def test_the_selected_draw_starts_where_the_papers_did(monkeypatch: pytest.MonkeyPatch) -> None:
    first = simulate_gap_after_training(steps=1, seed=1179).runs[0]
    assert (first["loss"], first["gap"]) == pytest.approx((6.267, 1.2478), rel=1e-3)
    trace = {0: (3.0, 1.3), 400: (2.0, 1.1)}
    for name, value in {
        "PAIRS": 24,
        "DIM": 32,
        "VARYING": 4,
        "CONSTANT": 31,
        "PAPER_TRACE": trace,
    }.items():
        monkeypatch.setattr(contrastive, name, value)
    result = on_record(simulate_gap_after_training, steps=400, every=200, seed=1179)
    left = result.runs[-1]["gap"] / result.runs[0]["gap"]
    assert f" {100 * (1 - left):.0f}% of it is closed" in result.found
    assert f" {100 * (left * 1.3 / 1.1 - 1):+.2f}%." in result.found
    assert [row[-2:] for row in result.table.rows] == [
        ["3.0000", "1.3000"],
        ["–", "–"],
        ["2.0000", "1.1000"],
    ]


@pytest.mark.parametrize(
    ("last_gap", "told"), [(1.0001, "0% of it is closed"), (1.1, "it is 10% longer")]
)
def test_a_gap_that_does_not_close(
    monkeypatch: pytest.MonkeyPatch, last_gap: float, told: str
) -> None:
    trace = [{"step": 0, "loss": 2.0, "gap": 1.0}, {"step": 1, "loss": 1.0, "gap": last_gap}]
    monkeypatch.setattr(contrastive, "train_pairs", lambda *_, **__: trace)
    found = simulate_gap_after_training(steps=1).found
    assert f"from 1.000 to {last_gap:.3f}: {told}." in found


def test_trained_points_lead_in_proportion_to_the_temperature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contrastive, "STABLE_PAIRS", 60)
    monkeypatch.setattr(contrastive, "STABLE_DIM", 24)
    result = on_record(simulate_stable_region, tau=(0.1, 0.02))
    assert simulate_stable_region(tau=(0.1, 0.5), delta=50).runs[0]["steps"] == 1
    for run in result.runs:
        assert run["start_lead"] < 0 < run["lead"] < run["sufficient_lead"]
        assert 0.05 < run["loss"] <= 0.1
        # a positive that leads all 59 negatives by so much has just this loss
        assert np.log1p(59 * np.exp(-run["sufficient_lead"] / run["tau"])) == pytest.approx(0.1)


def test_the_predictions_can_fail() -> None:
    """By one lead at every temperature, noise that does not depend on it, and a descent that goes
    on."""
    run = {"lead": 0.5, "noise": 0.1, "later_lead": 1.0, "start_lead": -0.3}
    assert [
        *contrastive.predictions([{**run, "over_tau": 0.5 / tau} for tau in (0.01, 0.1)]).values()
    ] == [False] * 3


def test_depth_loses_dimensions() -> None:
    on_record(simulate_depth, width=48, layers=12, rows=300)
    # two standard normal inputs: after one ReLU layer their cosine is 1 / pi in the limit of width
    cosine = simulate_depth(width=256, layers=2, rows=600, seed=1).runs[1]["cosine"]
    assert cosine == pytest.approx(1 / np.pi, abs=0.03)


def test_encoders_with_random_weights_are_apart(tmp_path: Path) -> None:
    paths = [copy_photos(tmp_path / "three", 3)]
    on_record(simulate_init_gap, paths=paths, model="c3-mini", seeds=2, device="cpu")
    with pytest.raises(C3Error, match="2 images"):
        simulate_init_gap([copy_photos(tmp_path / "two", 2)])


def test_more_of_the_gap_survives_at_a_higher_scale() -> None:
    state = torch.get_rng_state()
    low, high = simulate_temperature(scale=(100.0, 5.0), steps=60).runs
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on as before
    assert (low["start_gap"], low["gap"] < 0.5 * high["gap"], low["recall"] > 0.9) == (
        high["start_gap"],
        True,
        True,
    )
    on_record(simulate_temperature, scale=(100.0, 5.0), steps=3)
    for seed in (-1, 10**30):  # any integer
        one = simulate_temperature(scale=(0.5,), steps=1, seed=seed)
        assert one.runs and one.found.count("at a logit scale") == 1 and "and" not in one.found


def test_temperature_of_a_store_takes_one_pair_per_item(tmp_path: Path) -> None:
    image, text, owner = paper_model(20, 8, captions=2)
    store = make_store(tmp_path / "s", unit(image), unit(text), owners=list(owner))
    result = simulate_temperature(store=store, steps=2, scale=[10])
    assert result.settings["pairs"] == 20
    recorded(GOLDEN / "temperature_of_a_store.json", result.runs, 1e-3)
    with pytest.raises(C3Error, match=r"20 pairs.* 19"):
        simulate_temperature(store=make_store(tmp_path / "few", *[unit_rows(19, 8)] * 2), steps=2)


def test_impossible_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "STABLE_STEPS", 3)
    for options, named in (
        ({"tau": [0.2, 0.5], "delta": 0.01}, r"0\.2 .*0\.01"),
        ({"tau": [0.1, np.inf]}, "finite"),
        ({"delta": 0.0}, "delta"),
        ({"tau": [0.05, 0.1]}, "factor of 2"),
    ):
        with pytest.raises(C3Error, match=named):
            simulate_stable_region(**options)
    with pytest.raises(C3Error, match="above 0"):
        simulate_temperature(scale=[0.0])
