from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from c3tools.ablation import IMAGE_METHODS, ImageAblation, ImageRun, ablate_images
from c3tools.encoders import Encoder
from c3tools.errors import GeneratorError
from c3tools.imaging import Generator, fit_generator
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
    here: list[object] = []
    monkeypatch.setattr("c3tools.ablation.images.fit_generator", lambda *_, **named: here.append(named))
    table, _ = table_of(store, tmp_path / "out", methods="C1,C3,oracle", jobs=2, steps=1)
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
    cells = table.tables()[0].rows
    assert [row[0] for row in cells] == ["C1", "oracle", f"{table.real_n} real photos"]
    assert "±" in cells[0][3]
    assert [run["seed"] for run in table.to_dict()["runs"]] == [0, 0, 1, 1]


def test_each_encoder_has_a_table() -> None:
    names = ["FD-a", "FD-a-b", "FID", "IS-a-b-coco80", "KID-a", "KID-a-b", "recall@1-a-b", "recall@10-a-b"]
    scores = {name: float(number) for number, name in enumerate(names)}
    tables = {
        table.title: table for table in ImageAblation([ImageRun("C1", 0, 0.0, scores, 0.5, 1.0)], 10, {}, 0).tables()
    }
    assert {title: list(table.columns[3:]) for title, table in tables.items()} == {
        "10 images of each, scored by a": ["KID", "FD"],
        "10 images of each, scored by a-b": ["KID", "FD", "IS-coco80", "recall@1", "recall@10"],
        "10 images of each": ["FID"],
    }
    assert tables["10 images of each, scored by a"].rows[0] == ["C1", "–", "1", "4.0", "0.000"]


def run_of(method: str, seed: int, fd: float) -> ImageRun:
    return ImageRun(method, seed, 0.1, {"KID-x": fd / 10, "FD-x": fd}, 0.5, 1.0)


def test_steps_of_the_method_are_compared_with_the_spread_over_seeds() -> None:
    values = {"C1": (0.5, 0.52), "C2_1": (0.4, 0.42), "C3": (0.38, 0.44)}
    runs = [run_of(name, seed, fd) for name, pair in values.items() for seed, fd in enumerate(pair)]
    table = ImageAblation(runs, 10, {}, 0)
    row = table.rows[0]
    assert row["scores"]["FD-x"]["mean"] == pytest.approx(0.51)
    assert row["scores"]["FD-x"]["std"] == pytest.approx(np.std([0.5, 0.52], ddof=1))
    notes = [note for note in table.notes if " FD-x" in note]
    assert notes == [
        "C2_1 − C1: -0.100 FD-x, beyond the spread over seeds (0.014)",
        "C3 − C2_1: +0.000 FD-x, within the spread over seeds (0.042)",
    ]


def test_wrong_settings_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="There is no method CapDec for images"):
        table_of(store, tmp_path / "out", methods="C1,CapDec")
    with pytest.raises(GeneratorError, match="no generator size 'paper'"):
        table_of(store, tmp_path / "out", size="paper")


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
