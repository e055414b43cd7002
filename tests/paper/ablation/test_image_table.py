from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from c3tools import ablate_captions, ablate_images
from c3tools.encoders import Encoder
from c3tools.errors import MetricError
from c3tools.paper.ablation.methods import IMAGE_METHODS
from c3tools.paper.ablation.table import Ablation
from c3tools.store import Store
from c3tools.training.loop import train
from tests.conftest import Messages
from tests.paper.imaging.conftest import MICRO_SIZE, mini_store

from .conftest import finished


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.paper.imaging.model.SIZES", {"tiny": MICRO_SIZE})
    monkeypatch.setattr("c3tools.paper.ablation.image_table.SAMPLING_STEPS", 1)


@pytest.fixture(scope="module")
def store(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return mini_store(tmp_path_factory.mktemp("mini") / "c3-store", encoder)


def table_of(store: Store, output: Path, **changes: Any) -> tuple[Ablation, list[str]]:
    told = Messages()
    options: dict[str, Any] = {
        "seeds": 1,
        "steps": 2,
        "set": ["validations=1"],
        "device": "cpu",
        "precision": "fp32",
    }
    return ablate_images(
        store, **{**options, "output": output, "reporter": told, **changes}
    ), told.texts


def test_every_method_is_run_and_finished_cells_are_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = table_of(store, tmp_path / "out", methods="C1,C3")
    spy = Mock(side_effect=train)
    monkeypatch.setattr("c3tools.training.loop.train", spy)
    every, told = table_of(store, tmp_path / "out", methods="all")
    # C1 and C3 were finished before, and the oracle asks the generator of C3, which was kept
    trained = [call.kwargs["label"] for call in spy.mock_calls]
    assert trained == [f"Training {name}" for name in ("c2-collapse", "c2-corrupt", "lafite")]
    assert finished(told) == 2
    assert [row["method"] for row in every.rows] == list(IMAGE_METHODS)
    scores, kept = every.runs[0].scores, every.runs[0].values
    assert scores == first.runs[0].scores
    assert kept == {name: np.round(each, 6).tolist() for name, each in kept.items()}
    assert {*scores} == {f"{name}-c3-mini" for name in ("KID", "FD", "recall@1", "recall@10")} | {
        "IS-c3-mini-coco80"
    }
    assert (
        {run.images for run in every.runs}
        == {len(run.values["FD-c3-mini"]) for run in every.runs}
        == {12}
    )
    by_method = {run.method: run.scores["FD-c3-mini"] for run in every.runs}
    assert by_method["oracle"] != by_method["C3"]
    assert finished(table_of(store, tmp_path / "out", methods="C1", steps=3)[1]) == 0


def test_the_page_and_the_markdown_have_the_table_the_images_and_the_published_rows(
    store: Store, tmp_path: Path
) -> None:
    table, _ = table_of(store, tmp_path / "out", methods="C1,oracle", seeds=2, split="all")
    page, markdown = ((tmp_path / f"out/table.{suffix}").read_text() for suffix in ("html", "md"))
    assert page.count("data:image/png") == 12 * 3  # two methods and the photo, of 12 captions
    distances = table.tables()[0]
    assert distances.title.startswith("24 images of each and ")
    command = f"c3 ablate-images --store {store.path} --methods C1,oracle --seeds 2 --split all"
    for shown in ("LAFITE_G", "not comparable", command, distances.rows[0][4]):
        assert shown in page and shown in markdown
    assert "a photo of number 1" in page
    assert [run["seed"] for run in table.to_dict()["runs"]] == [0, 1, 0, 1]


def test_scored_photos_that_are_gone_are_named_before_anything_is_trained(
    encoder: Encoder, tmp_path: Path
) -> None:
    store = mini_store(tmp_path / "c3-store", encoder)
    first, *others, _ = map(Path, store.load("image", "test").column("path"))
    first.unlink()
    table, _ = table_of(store, tmp_path / "out", methods="C1")
    assert table.runs[0].images == 11
    assert any(str(first) in remark for remark in table.facts)
    for path in others[2:]:
        path.unlink()
    with pytest.raises(MetricError, match="'test', 3 can be read"):
        table_of(store, tmp_path / "none", methods="C1")
    assert not (tmp_path / "none").exists()


def test_generators_are_trained_at_a_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the other processes know the real sizes alone
    monkeypatch.setattr("c3tools.paper.ablation.image_table.SAMPLING_STEPS", 1)
    monkeypatch.setattr("c3tools.training.loop.train", None)  # nothing is trained in this process
    small = ["validations=1", "batch_size=4", "pixels=16"]
    table, _ = table_of(store, tmp_path / "out", methods="C1,C3,oracle", jobs=2, steps=1, set=small)
    assert [run.method for run in table.runs] == ["C1", "C3", "oracle"]


def test_tables_of_captions_and_of_images_are_in_folders_of_their_own() -> None:
    defaults = {
        signature(verb).parameters["output"].default for verb in (ablate_captions, ablate_images)
    }
    assert len(defaults) == 2
