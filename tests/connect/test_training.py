from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from c3tools.connect import (
    COLLAPSED,
    DIVERGED,
    EARLY,
    FINISHED,
    HeadShape,
    LogitScale,
    LogPoint,
    RunFolder,
    Trainer,
    TrainingSettings,
    TwoTowers,
    measure,
)
from c3tools.connect.heads_run import new_heads
from c3tools.connect.pairs import ids_of, ids_of_rows
from c3tools.devices import Compute
from c3tools.errors import ConnectError

from ..conftest import unit_rows
from .worlds import some_pairs, views

CPU = Compute(torch.device("cpu"), "fp32")
QUICK = TrainingSettings(scale=LogitScale(20), batch_size=40, epochs=6, learning_rate=3e-3, patience=0)


def trainer(settings: TrainingSettings = QUICK, *, items: int = 100, cone: float = 0.0, **more: object) -> Trainer:
    first, second, owner = views(items, 2)
    cut = 2 * (items * 4 // 5)
    train, val = (some_pairs(first, second, owner, rows) for rows in (np.arange(cut), np.arange(cut, len(owner))))
    shape = HeadShape(dim=16, hidden=32, dropout=0.1, cone=cone)
    return Trainer(TwoTowers(*new_heads(train, shape, settings.seed)), train, val, settings, CPU, **more)


def weights(of: Trainer) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in [*of.towers.parameters(), *of.loss.parameters()]]


def test_training_connects_and_keeps_the_best_point() -> None:
    said: list[str] = []
    run = trainer(say=said.append)
    state = run.run()
    assert state.outcome == FINISHED
    assert state.step == run.total_steps == 6 * 4
    assert [point.step for point in state.log] == [0, 4, 8, 12, 16, 20, 24]
    recalls = [point.geometry.recall_at_1 for point in state.log]
    assert recalls[0] < 0.3
    assert max(recalls) > 0.6
    assert state.best == 1 + int(np.argmax(recalls[1:]))
    assert state.log[-1].loss < state.log[1].loss
    # the towers hold the weights of that point
    items = run.val.items
    first = run.towers.embed_rows(run.val.first, 0, items, CPU)
    second = run.towers.embed_rows(run.val.second, 1, run.val.second_rows, CPU)
    again = measure(first, second, np.searchsorted(items, run.val.first_rows))
    assert again == state.best_point.geometry
    # with two texts per image a batch of 40 of 160 nearly always has an image twice
    assert state.repeated == state.step
    assert any("an item came more than once" in line for line in said)


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, scale=LogitScale(20, learned=True), loss="sigmoid", log_every=3)
    whole = trainer(settings, cone=1.0)
    whole.run()

    class KilledError(Exception):
        pass

    class KillAt:
        steps = 0

        def advance(self, count: int = 1, note: str | None = None) -> None:
            self.steps += count
            if self.steps == 11:
                raise KilledError

    folder = RunFolder(tmp_path / "run")
    first = trainer(settings, cone=1.0)
    with pytest.raises(KilledError):
        first.run(folder, "same", KillAt())
    first._save(folder, "same")
    said: list[str] = []
    second = trainer(settings, cone=1.0, say=said.append)
    state = second.run(folder, "same")
    assert any("at step 11 of" in line for line in said)
    for expected, got in zip(weights(whole), weights(second), strict=True):
        np.testing.assert_array_equal(got, expected)
    plain = [[dataclasses.replace(p, seconds=0) for p in run.log] for run in (whole.progress, state)]
    assert plain[0] == plain[1]
    assert (state.repeated, state.false_negatives) == (whole.progress.repeated, whole.progress.false_negatives)
    # a run of other settings starts anew
    other = trainer(settings, say=said.append)
    other.run(folder, "another")
    assert any("other settings or data" in line for line in said)


def test_a_damaged_state_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for step in (1, 2, 3):
        folder.save(step, "same", {"step": step}, {"x": torch.full((2,), float(step))})
    states = sorted((tmp_path / "run").iterdir())
    assert len(states) == 2
    states[-1].write_bytes(states[-1].read_bytes()[:20])
    position, tensors = folder.resume("same")
    assert (position, tensors["x"].tolist()) == ({"step": 2}, [2.0, 2.0])
    assert "damaged" in folder.messages[0]


def test_it_stops_early_and_says_so() -> None:
    said: list[str] = []
    state = trainer(dataclasses.replace(QUICK, epochs=60, patience=2), say=said.append).run()
    assert state.outcome == EARLY
    assert len(state.log) - 1 - state.best == 2
    assert "2 points without a better recall@1" in said[-1]


def test_fewer_pairs_than_a_batch_make_one_batch_and_are_said() -> None:
    said: list[str] = []
    run = trainer(dataclasses.replace(QUICK, batch_size=512), say=said.append)
    assert said == ["There are 160 training pairs, fewer than a batch of 512: every batch has all of them."]
    assert run.steps_per_epoch == 1
    assert run.run().outcome == FINISHED


def test_too_few_pairs_are_refused() -> None:
    first, second, owner = views(10)
    some, one, none = (some_pairs(first, second, owner, np.arange(n)) for n in (10, 1, 0))
    towers = TwoTowers(*new_heads(some, HeadShape(dim=4, hidden=4), 0))
    for train, val, what in ((one, some, "1 training"), (some, none, "0 validation")):
        with pytest.raises(ConnectError, match=f"{what} pairs of image and text"):
            Trainer(towers, train, val, QUICK, CPU)
    same = dataclasses.replace(some, first_ids=np.zeros(10, dtype=np.int64))
    with pytest.raises(ConnectError, match=r"10 training pairs .* of 1 different items"):
        Trainer(towers, same, some, QUICK, CPU)


def test_diverging_loss_stops_and_keeps_the_best() -> None:
    said: list[str] = []
    run = trainer(dataclasses.replace(QUICK, epochs=20), say=said.append)
    original = run._step

    def poisoned() -> None:
        if run.progress.step == 10:
            with torch.no_grad():
                next(iter(run.towers.parameters())).fill_(float("nan"))
        original()

    run._step = poisoned  # type: ignore[method-assign]
    state = run.run()
    assert state.outcome == DIVERGED
    assert state.step == 11
    assert all(np.isfinite(w).all() for w in weights(run))
    assert f"diverged at step 11; the weights of step {state.best_point.step} are kept" in said[-1]


def test_a_loss_that_climbs_by_chance_above_its_lowest_has_diverged() -> None:
    run = trainer(dataclasses.replace(QUICK, epochs=20))
    original = run._step

    def climbing() -> None:
        original()
        if run.progress.step > 8:
            run.progress.loss_sum += 10

    run._step = climbing  # type: ignore[method-assign]
    state = run.run()
    assert (state.outcome, state.step) == (DIVERGED, 12)


def test_a_collapsed_run_is_found() -> None:
    run = trainer(dataclasses.replace(QUICK, epochs=20))
    for head in (run.towers.first, run.towers.second):
        with torch.no_grad():  # every row is the same vector, and no gradient can part them
            head.layers[-1].weight.zero_()
        head.layers[0].requires_grad_(False)
        head.layers[-1].weight.requires_grad_(False)
    state = run.run()
    assert state.outcome == COLLAPSED
    assert state.step == 3 * run.steps_per_epoch
    assert state.log[-1].loss == pytest.approx(np.log(40), rel=0.05)


def test_unrelated_rows_are_said_to_be_near_chance() -> None:
    run = trainer(dataclasses.replace(QUICK, epochs=1, learning_rate=1e-6))
    said: list[str] = []
    run.say = said.append
    shuffled = np.random.default_rng(0).permutation(run.val.second_rows)
    run.val = dataclasses.replace(run.val, second_rows=shuffled)
    run.run()
    assert "near chance" in said[-1]


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    run = trainer(dataclasses.replace(QUICK, epochs=25, warmup=0.1, learning_rate=1.0))
    rates = [run.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3


def test_the_log_has_the_measures_of_a_report() -> None:
    first, second, owner = unit_rows(30, 6), unit_rows(60, 6, seed=1), np.repeat(np.arange(30), 2)
    geometry = measure(first, second, owner)
    cosines = first.astype(np.float64) @ second.T
    own = owner[None] == np.arange(30)[:, None]
    assert geometry.gap == pytest.approx(np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)), rel=1e-5)
    assert geometry.paired_cosine == pytest.approx(cosines[own].mean(), abs=1e-6)
    assert geometry.unpaired_cosine == pytest.approx(cosines[~own].mean(), abs=1e-6)
    best = cosines.argmax(axis=1)
    assert geometry.recall[0]["recall@1"] == pytest.approx(np.mean(owner[best] == np.arange(30)))
    point = LogPoint(3, 1, 2.5, 20.0, 1.5, geometry)
    value = point.to_json(("image", "text"))
    assert set(value["recall"]) == {"image_to_text", "text_to_image"}
    assert LogPoint.from_json(value) == point


def test_equal_contents_have_equal_ids() -> None:
    rows = np.array([[1, 2], [3, 4], [1, 2]], dtype=np.float16)
    assert ids_of_rows(rows).tolist() == [0, 1, 0]
    assert ids_of(["a", "b", "b", "c"]).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "triplet"},
        {"batch_size": 1},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"chunk": 0},
        {"warmup": 2.0},
        {"patience": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConnectError):
        TrainingSettings(**wrong)
