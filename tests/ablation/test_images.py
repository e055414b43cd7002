from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from c3tools.ablation import IMAGE_METHODS, ImageAblation, ImageRun, ablate_images
from c3tools.encoders import Encoder
from c3tools.errors import GeneratorError, MetricError
from c3tools.imaging import Generator, fit_generator
from c3tools.metrics.significance import crossed_interval
from c3tools.store import Store
from tests.conftest import C3
from tests.imaging.conftest import MICRO_SIZE, mini_store
from tests.imaging.test_training import Told

QUICK = {"steps": 2, "set": ("validations=1",), "device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.imaging.model.SIZES", {"tiny": MICRO_SIZE})
    monkeypatch.setattr("c3tools.ablation.images.SAMPLING_STEPS", 1)


@pytest.fixture(scope="module")
def store(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return mini_store(tmp_path_factory.mktemp("mini") / "c3-store", encoder)


def table_of(store: Store, output: Path, **changes: object) -> tuple[ImageAblation, Told]:
    told = Told()
    options: dict[str, object] = {"seeds": 1, "sigma": 0.1, "output": output, "reporter": told}
    return ablate_images(store, **{**options, **QUICK, **changes}), told  # type: ignore[arg-type]


def test_every_method_is_run_and_finished_cells_are_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = table_of(store, tmp_path / "out", methods="C1,C3")
    assert [run.method for run in first.runs] == ["C1", "C3"]
    trained: list[str] = []

    def spy(*arguments: object, **named: object) -> Generator:
        trained.append(str(named["label"]))
        return fit_generator(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("c3tools.ablation.images.fit_generator", spy)
    every, told = table_of(store, tmp_path / "out", methods="all")
    # C1 and C3 were finished before, and the oracle asks the generator of C3, which was kept
    assert trained == ["C2_1, seed 0", "C2_2, seed 0", "LAFITE, seed 0"]
    assert {"C1, seed 0: already finished", "C3, seed 0: already finished"} <= set(told.messages)
    assert [row["method"] for row in every.rows] == list(IMAGE_METHODS)
    assert every.runs[0].scores == first.runs[0].scores
    again, _ = table_of(store, tmp_path / "out", methods="all")
    assert len(trained) == 3
    assert again.to_dict() == every.to_dict()
    scores = every.runs[0].scores
    assert {"KID-c3-mini", "FD-c3-mini", "IS-c3-mini-coco80", "recall@1-c3-mini", "recall@10-c3-mini"} == set(scores)
    assert every.n == 12
    by_method = {run.method: run.scores["FD-c3-mini"] for run in every.runs}
    assert by_method["oracle"] != by_method["C3"]


def test_generators_are_trained_at_a_time(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the other processes know the real sizes alone
    monkeypatch.setattr("c3tools.ablation.images.SAMPLING_STEPS", 1)
    small = ("validations=1", "batch_size=4", "pixels=16")
    here: list[object] = []
    monkeypatch.setattr("c3tools.ablation.images.fit_generator", lambda *_, **named: here.append(named))
    table, _ = table_of(store, tmp_path / "out", methods="C1,C3,oracle", jobs=2, steps=1, set=small)
    assert here == []
    assert [run.method for run in table.runs] == ["C1", "C3", "oracle"]


def test_other_settings_are_other_cells(store: Store, tmp_path: Path) -> None:
    table_of(store, tmp_path / "out", methods="C1")
    _, told = table_of(store, tmp_path / "out", methods="C1", steps=3)
    assert "C1, seed 0: already finished" not in told.messages
    cell = next((tmp_path / "out" / "cells").rglob("C1-*.json"))
    cell.write_text(cell.read_text()[:100])  # cut short: computed anew
    assert len(table_of(store, tmp_path / "out", methods="C1")[0].runs) == 1


def test_the_page_and_the_markdown_have_the_table_the_images_and_the_published_rows(
    store: Store, tmp_path: Path
) -> None:
    table, _ = table_of(store, tmp_path / "out", methods="C1,oracle", seeds=2)
    page, markdown = ((tmp_path / "out" / f"table.{suffix}").read_text() for suffix in ("html", "md"))
    assert page.count("data:image/png") == 12 * 3  # two methods and the photo, of 12 captions
    for text in (page, markdown):
        assert "LAFITE_G" in text
        assert "not comparable" in text
        assert "c3 ablate --task images --methods C1,oracle --seeds 2" in text
    assert "a photo of number 1" in page
    distances, others = table.tables()
    assert [row[0] for row in distances.rows] == ["C1", "oracle", "real photos"]
    assert "±" in distances.rows[0][3]
    assert distances.columns == ["method", "sigma", "seeds", "KID", "95 % interval", "FD"]
    assert list(others.columns[:4]) == ["method", "IS-coco80", "recall@1", "recall@10"]
    for text in (page, markdown):
        assert distances.title == f"12 images of each and {table.real_n} real photos, scored by c3-mini"
        assert distances.rows[0][4] in text
    score = table.rows[0]["scores"]["FD-c3-mini"]
    assert 0 <= score["interval"][0] < score["mean"] < score["interval"][1]
    assert [run["seed"] for run in table.to_dict()["runs"]] == [0, 0, 1, 1]


def test_each_encoder_has_a_table() -> None:
    names = ["FD-a", "FD-a-b", "FID", "IS-a-b-coco80", "KID-a", "KID-a-b", "recall@1-a-b", "recall@10-a-b"]
    scores = {name: float(number) for number, name in enumerate(names)}
    found = ImageAblation([ImageRun("C1", 0, 0.0, scores, 0.5, 1.0)], 10, {}, 5)
    wide = {table.title: table for table in found.wide_tables()}
    of = "10 images of each and 5 real photos"
    assert {title: list(table.columns[3:]) for title, table in wide.items()} == {
        f"{of}, scored by a": ["KID", "FD"],
        f"{of}, scored by a-b": ["KID", "FD", "IS-coco80", "recall@1", "recall@10"],
        of: ["FID"],
    }
    assert wide[f"{of}, scored by a"].rows[0] == ("C1", "–", "1", "4.0", "0.000")
    assert [(table.title.removeprefix(of), list(table.columns)) for table in found.tables()] == [
        (", scored by a", ["method", "sigma", "seeds", "KID", "FD"]),
        (", scored by a-b", ["method", "sigma", "seeds", "KID", "FD"]),
        (", scored by a-b", ["method", "IS-coco80", "recall@1", "recall@10"]),
        ("", ["method", "sigma", "seeds", "FID"]),
    ]


def runs_of(steps: Mapping[str, float], seeds: int = 3, photos: int = 200) -> list[ImageRun]:
    """Runs whose FD differs by steps, which the photos' own part hides in the scores, but not in their differences."""
    rng = np.random.default_rng(0)
    own = rng.normal(0.5, 0.6, size=photos)
    runs = []
    for name, step in steps.items():
        for seed in range(seeds):
            fd = own + step + rng.normal(0, 0.1, size=photos)
            hits = 100.0 * (fd < 0.2)
            each = {"KID-x": 300 * fd, "FD-x": fd, "IS-x-coco80": 9 + fd, "recall@1-x": hits, "recall@10-x": hits}
            values = {metric: of.tolist() for metric, of in each.items()}
            scores = {metric: float(of.mean()) for metric, of in each.items()}
            runs.append(ImageRun(name, seed, 0.1, scores, 0.5, 1.0, photo_values=values))
    return runs


STEPS = {"C1": 0.0, "C2_1": -0.1, "C2_2": -0.2, "C3": -0.2, "LAFITE": -0.15}


def test_a_row_has_intervals_over_photos_and_seeds_and_the_terminal_has_room_for_two() -> None:
    runs = runs_of(STEPS)
    table = ImageAblation(runs, 200, runs[0].scores, 200)
    score = table.rows[3]["scores"]["FD-x"]
    values = np.array([run.photo_values["FD-x"] for run in runs if run.method == "C3"])
    assert score["mean"] == pytest.approx(values.mean())
    assert score["std"] == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert score["interval"] == pytest.approx(crossed_interval(values))
    wide, (distances, others) = table.wide_tables()[0], table.tables()
    low, high = score["interval"]
    assert f"{low:.3f} to {high:.3f}" in wide.rows[3]
    assert wide.columns.count("95 % interval") == 5
    assert distances.columns == ["method", "sigma", "seeds", "KID", "95 % interval", "FD"]
    assert others.columns == ["method", "IS-coco80", "recall@1", "recall@10", "95 % interval"]
    for shown in (distances, others):
        widest = [max(map(len, cells)) for cells in zip(shown.columns, *shown.rows, strict=True)]
        assert sum(widest) + 3 * len(widest) <= 80


def test_steps_of_the_method_are_compared_on_the_same_photos_and_seeds() -> None:
    runs = runs_of(STEPS)
    notes = [note for note in ImageAblation(runs, 200, {}, 0).notes if " FD-x" in note]
    assert [note.split(":")[0] for note in notes] == ["C2_1 − C1", "C2_2 − C1", "C3 − C2_2", "LAFITE − C3"]
    for note, step in zip(notes, (-0.1, -0.2, 0.0, 0.05), strict=True):
        found = re.search(r": (\S+) FD-x, 95 % interval (\S+) to (\S+) over photos and seeds", note.replace("−", "-"))
        assert found is not None
        difference, low, high = map(float, found.groups())
        assert low < difference < high
        assert step - 0.05 < low < step < high < step + 0.05
        assert note.endswith("; not shown to differ") == (step == 0)
    (single, *_) = ImageAblation([run for run in runs if run.seed == 0], 200, {}, 0).notes
    assert single.endswith("over photos (one seed)")
    few = ImageAblation([run for run in runs if run.method in ("C1", "C3")], 200, {}, 0).notes
    assert [note.split(":")[0] for note in few] == ["C3 − C1", "C3 − C1"]


def test_results_of_an_earlier_version_have_the_spread_over_seeds_and_say_why() -> None:
    def run_of(method: str, seed: int, fd: float) -> ImageRun:
        return ImageRun(method, seed, 0.1, {"KID-x": fd / 10, "FD-x": fd}, 0.5, 1.0)

    values = {"C1": (0.5, 0.52), "C2_1": (0.4, 0.42), "C3": (0.38, 0.44)}
    runs = [run_of(name, seed, fd) for name, pair in values.items() for seed, fd in enumerate(pair)]
    table = ImageAblation(runs, 10, {}, 0)
    row = table.rows[0]
    assert row["scores"]["FD-x"]["mean"] == pytest.approx(0.51)
    assert row["scores"]["FD-x"]["std"] == pytest.approx(np.std([0.5, 0.52], ddof=1))
    assert row["scores"]["FD-x"]["interval"] is None
    assert "95 % interval" not in table.tables()[0].columns
    notes = [note for note in table.notes if " FD-x" in note]
    why = "no interval, because results of an earlier version have no values per photo"
    assert notes == [
        f"C2_1 − C1: −0.100 FD-x, beyond the spread over seeds (0.014); {why}",
        f"C3 − C2_1: +0.000 FD-x, within the spread over seeds (0.042); {why}",
    ]
    assert ImageAblation([run for run in runs if run.seed == 0], 10, {}, 0).notes == []


def test_finished_cells_without_values_per_photo_are_read(store: Store, tmp_path: Path) -> None:
    made, _ = table_of(store, tmp_path / "out", methods="C1,C3", seeds=2)
    assert all(len(run.photo_values["KID-c3-mini"]) == 12 for run in made.runs)
    assert any("over photos and seeds" in note for note in made.notes)
    for file in (tmp_path / "out" / "cells").rglob("C1-*.json"):
        content = json.loads(file.read_text())
        del content["run"]["photo_values"]
        file.write_text(json.dumps(content))
    again, told = table_of(store, tmp_path / "out", methods="C1,C3", seeds=2)
    assert "C1, seed 0: already finished" in told.messages
    assert [run.scores for run in again.runs] == [run.scores for run in made.runs]
    first, second = again.rows
    assert first["scores"]["KID-c3-mini"]["interval"] is None
    assert second["scores"]["KID-c3-mini"]["interval"] == made.rows[1]["scores"]["KID-c3-mini"]["interval"]
    assert all("the spread over seeds" in note and "earlier version" in note for note in again.notes)


def test_wrong_settings_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="There is no method CapDec for images"):
        table_of(store, tmp_path / "out", methods="C1,CapDec")
    with pytest.raises(GeneratorError, match="no generator size 'paper'"):
        table_of(store, tmp_path / "out", size="paper")


def test_scored_photos_that_are_gone_are_named_before_anything_is_trained(encoder: Encoder, tmp_path: Path) -> None:
    store = mini_store(tmp_path / "c3-store", encoder)
    first, *others, _ = map(Path, store.load("image", "test").strings("path"))
    first.unlink()
    table, _ = table_of(store, tmp_path / "out", methods="C1")
    assert table.n == 11
    assert any(remark.startswith(f"Could not read: {first} (there is no such file") for remark in table.remarks)
    for path in others:
        path.unlink()
    with pytest.raises(MetricError, match=r"At least two photos .* in the split 'test', 1 can be read"):
        table_of(store, tmp_path / "none", methods="C1")
    assert not (tmp_path / "none" / "generators").exists()


def test_the_command_writes_runs_and_lists_methods(c3: C3, store: Store, tmp_path: Path) -> None:
    options = ("--methods", "C1", "--seeds", "1", "--steps", "2", "--json", "runs.json")
    result = c3("ablate", "--task", "images", "--store", store.path, *options)
    assert result.exit_code == 0, result.stderr
    assert "real photos" in result.stdout
    assert "DALL-E" in result.stdout
    (run,) = json.loads((tmp_path / "runs.json").read_text())
    assert {"method", "seed", "sigma", "scores"} <= set(run)
    assert "oracle" in c3("ablate", "--list").stdout
    refused = c3("ablate", "--task", "images", "--store", store.path, "--sigma", "0.1", "--sigma", "0.2")
    assert refused.exit_code == 1
    assert "sigma must be a number of at least 0, 'auto' or 'pairs', not '0.1 and 0.2'" in " ".join(
        refused.stderr.split()
    )
    refused = c3("ablate", "--task", "images", "--store", store.path, "--sigma", "pairs", "--split", "val")
    assert "--sigma pairs uses the val split" in " ".join(refused.stderr.split())
    assert "no task 'music'" in c3("ablate", "--task", "music").stderr


@pytest.mark.parametrize("task", [["--task", "images"], ["--methods", "MAGIC"]])
def test_the_backend_of_the_encoder_is_asked_for(c3: C3, store: Store, tmp_path: Path, task: list[str]) -> None:
    result = c3("ablate", "--store", store.path, "-o", tmp_path / "t", "--backend", "nonsense", *task)
    assert result.exit_code == 1
    assert "There is no backend 'nonsense'" in result.stderr
