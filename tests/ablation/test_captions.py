from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from c3tools import devices
from c3tools.ablation import METHODS, CaptionData, CaptionTask, Cell, ablate, run_cells
from c3tools.ablation.captions import caption_data
from c3tools.captioning import SIZES, fit_captioner, load_size
from c3tools.captioning.baselines.esper import ESPER_TRAINING
from c3tools.captioning.evaluate import evaluate_captions
from c3tools.errors import C3Error, DecoderError, MetricError, StoreError
from c3tools.metrics.captions import score_captions
from c3tools.store import Rows, Store
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import Messages, build_store

from ..captioning.conftest import TOY, World, make_world
from .conftest import QUICK, Table, finished

pytest.importorskip("pycocoevalcap")


class Encoder:
    """An encoder of texts that tells them apart by their letters."""

    def __init__(self) -> None:
        self.texts = 0

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.texts += len(texts)
        rows = np.array([[text.count(chr(97 + i % 26)) + 0.1 for i in range(32)] for text in texts], np.float32)
        unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


@pytest.fixture(scope="session")
def data(toy_store: Store) -> CaptionData:
    return caption_data(toy_store)[0]


@pytest.fixture
def task(data: CaptionData) -> CaptionTask:
    return CaptionTask(data, devices.pick("cpu", "fp32"), "tiny", ["layers=1", "max_tokens=4"], epochs=1)


def test_the_data_of_a_store_keep_scored_images_out_of_training(data: CaptionData) -> None:
    assert (len(data.train), len(data.val), len(data.images)) == (112, 16, 16)
    assert data.train_images is not None
    assert not (set(data.train.items) | set(data.train_images.keys)) & set(data.images.keys)
    assert {len(data.references[key]) for key in data.images.keys} == {2}
    assert data.moments["image"].n == 56
    few = data.sample(0.25)
    assert few.train_images is not None
    assert set(few.train_images.keys) == set(few.train.items) | set(data.val.items)


def test_every_method_runs_and_is_scored(task: CaptionTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "ZeroCap", replace(METHODS["ZeroCap"], images=3))
    monkeypatch.setattr("c3tools.ablation.captions.ESPER_TRAINING", replace(ESPER_TRAINING, epochs=1))
    data, messages = task.data, Messages()
    asking = replace(task, encoder=Encoder())  # type: ignore[arg-type]
    cells = [Cell(name, 0, 0.1) for name in METHODS]
    runs = list(run_cells(asking, cells, tmp_path, keep=False, reporter=messages))
    assert [run.method for run in runs] == list(METHODS)
    by_name = {run.method: run for run in runs}
    for run in runs:
        assert list(run.outputs) == [key for key in data.images.keys if key in run.outputs]
        assert run.images == len(run.outputs) == (3 if run.method == "ZeroCap" else 16)
        assert run.scores == pytest.approx(score_captions(run.outputs, data.references).corpus)
        assert {name: np.mean(each) for name, each in run.values.items()} == pytest.approx(run.scores, abs=1e-3)
        assert run.sigma == (0.1 if METHODS[run.method].noisy else 0.0)
    # methods that train alike are trained once
    assert by_name["CapDec"].outputs == by_name["C2_2"].outputs
    assert by_name["DeCap"].best_val_loss == by_name["C1"].best_val_loss
    assert by_name["CLIPRe"].best_val_loss is None
    # MAGIC and ZeroCap steer one language model, and ESPER's mapper is put in front of it
    assert by_name["MAGIC"].best_val_loss == by_name["ZeroCap"].best_val_loss != by_name["C1"].best_val_loss
    assert by_name["ESPER"].parameters > by_name["MAGIC"].parameters > by_name["CLIPRe"].parameters == 0
    assert by_name["ESPER"].training_seconds > by_name["MAGIC"].training_seconds > 0
    # CLIPRe: the nearest training caption, by definition
    nearest = np.argmax(data.images.embeddings @ data.train.embeddings.T, axis=1)
    assert list(by_name["CLIPRe"].outputs.values()) == [data.train.captions[row] for row in nearest]
    # 45 texts for each of 12 words of 16 images
    assert any("8,640 texts for 16 images" in text for text in messages.texts)


def test_pseudo_pairs_are_training_images_with_their_nearest_training_captions(data: CaptionData) -> None:
    train, val = data.learned_from("pseudo-pairs")
    images, held_out = data.train_images, set(data.val.items)
    assert images is not None
    assert {key.split("#")[0] for key in val.keys} == held_out
    assert {key.split("#")[0] for key in train.keys} == set(images.keys) - held_out
    assert (train.modality, val.modality) == ("image", "image")
    for rows in (train, val):
        for key, embedding, caption in list(zip(rows.keys, rows.embeddings, rows.captions, strict=True))[::7]:
            image, rank = key.split("#")
            np.testing.assert_array_equal(embedding, images.embeddings[images.keys.index(image)])
            order = np.argsort(-(data.train.embeddings @ embedding), kind="stable")
            assert caption == data.train.captions[order[int(rank)]]


def test_each_method_goes_through_the_presets_of_its_paper() -> None:
    """What a preset does is tested beside the presets."""
    presets = {name: (method.training, method.inference or method.training) for name, method in METHODS.items()}
    same = {"C1": "c1", "C2_1": "c2-collapse", "C2_2": "c2-corrupt", "C3": "c3", "LAFITE": "lafite", "TOMCap": "tomcap"}
    assert {name: presets[name] for name in same} == {name: (own, own) for name, own in same.items()}
    assert (presets["CapDec"], presets["DeCap"]) == (("c2-corrupt", "capdec"), ("c1", "decap"))


@pytest.mark.parametrize(
    ("method", "without"),
    [(name, "encoder") for name in ("MAGIC", "ESPER")]
    + [(name, "train_images") for name in ("paired", "WS-ClipCap")]
    + [("oracle", "described")],
)
def test_what_a_method_needs_and_is_missing_is_named(
    task: CaptionTask, tmp_path: Path, method: str, without: str
) -> None:
    bare = task if without == "encoder" else replace(task, data=replace(task.data, **{without: None}))  # type: ignore[arg-type]
    with pytest.raises(
        DecoderError, match={"encoder": "encoder", "train_images": "images", "described": "image"}[without]
    ):
        next(run_cells(bare, [Cell(method, 0, 0.1)], tmp_path, keep=False))


def test_a_cell_is_that_of_all_it_depends_on(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    run: dict[str, Any] = {"methods": "CLIPRe", "epochs": None, "set": []}
    table(**run)
    tiny = load_size("tiny")
    assert finished(table(**run | {"epochs": tiny.training.epochs})[1]) == 1  # what the size stands for
    for change in ({"precision": "bf16"}, {"set": ["dropout=0.2"]}, {"beams": 2}, {"split": "val"}, {"seeds": 2}):
        assert finished(table(**run | change)[1]) == (1 if change == {"seeds": 2} else 0)
    # another release trains the same name in another way: its cells are others
    changed = replace(tiny, training=replace(tiny.training, epochs=tiny.training.epochs + 1))
    monkeypatch.setattr("c3tools.captioning.config.SIZES", {**SIZES, "tiny": changed})
    assert finished(table(**run)[1]) == 0
    assert finished(table(**run | {"epochs": tiny.training.epochs})[1]) == 1


def test_cells_and_decoders_are_kept_and_damaged_ones_made_again(table: Table, tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": "C1,C3,DeCap", "seeds": 2, "sigma": [0.05, 0.1]}
    made, _ = table(**options)
    folder = tmp_path / "table"
    assert len(list((folder / "decoders").iterdir())) == 6  # DeCap shares that of C1
    cells = sorted((folder / "cells").iterdir())
    assert len(cells) == 8
    weights = {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}
    cells[0].write_text(cells[0].read_text()[:100])
    again, messages = table(**options)
    assert finished(messages) == 7
    assert again.rows == [{**row, "training_seconds": pytest.approx(row["training_seconds"])} for row in made.rows]
    beams, _ = table(**options, beams=2)  # other captions of the same decoders
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")} == weights
    losses = [run.best_val_loss for run in made.runs]
    assert [run.best_val_loss for run in beams.runs] == losses
    assert losses[0] != losses[3]  # seeds matter
    next(iter(weights)).write_bytes(b"cut")
    repaired, _ = table(**options, beams=3)
    assert [run.best_val_loss for run in repaired.runs] == losses
    table(methods="C3", keep_decoders=False, output=tmp_path / "bare")
    assert not (tmp_path / "bare" / "decoders").exists()


def test_trainings_at_a_time_give_the_same_table(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = "C1,C3,CapDec,CLIPRe"
    one, _ = table(methods=methods)
    here: list[str] = []

    def spy(*arguments: Any, **named: Any) -> Any:
        here.append(named["label"])
        return fit_captioner(*arguments, **named)

    monkeypatch.setattr("c3tools.ablation.captions.fit_captioner", spy)
    two, _ = table(methods=methods, jobs=2, output=tmp_path / "two")
    assert here == []  # all were trained in the other processes
    assert [run.method for run in two.runs] == methods.split(",")
    losses = [[run.best_val_loss for run in made.runs if run.best_val_loss is not None] for made in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_sigma_is_chosen_on_the_val_split_for_each_method(table: Table, tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": ["C1", "C2_2", "C3"], "grid": "0.02,0.3", "seeds": 2}
    chosen, _ = table(sigma="best", **options)
    cells = [(name, seed) for name in ("C1", "C2_2", "C3") for seed in (0, 1)]
    assert sorted((run.method, run.seed) for run in chosen.runs) == cells
    tried = json.loads((tmp_path / "table" / "sigma.json").read_text())
    assert (tried["split"], tried["metric"]) == ("val", "CIDEr")
    for run in chosen.runs:
        if run.method != "C1":
            scores = tried["scores"][run.method]
            best = max(scores, key=scores.__getitem__)
            assert set(scores) == {"0.02", "0.3"}
            assert (run.sigma, run.sigma_from) == (float(best), "best")
            if run.seed == 0:  # chosen by the first seed's captions of the val images, not of the scored ones
                assert run.choice_scores["CIDEr"] == scores[best]
    both, _ = table(sigma=["best", "auto"], **options)
    (shown,) = both.tables(wide=True)
    assert {row[1].partition(" ")[2] for row in shown.rows} == {"", "(best)", "(auto)"}


def test_each_sigma_and_train_fraction_is_a_row_once(table: Table, toy_store: Store, tmp_path: Path) -> None:
    made, messages = table(methods="CLIPRe,oracle", sigma=["pairs", "0.1", "0.10"], train_fraction=(0.25, 1, 1.0))
    sigma, why = sigma_by_rule("pairs", toy_store)
    assert why in messages
    expected = [(fraction, *each) for fraction in (0.25, 1.0) for each in ((sigma, "pairs"), (0.1, "given"))]
    oracle = [run for run in made.runs if run.method == "oracle"]
    assert [(run.train_fraction, run.sigma, run.sigma_from) for run in oracle] == expected
    assert [run.train_fraction for run in made.runs if run.method == "CLIPRe"] == [0.25, 1.0]
    assert f"| oracle | {sigma:.3g} (pairs) | 0.25 | 1 |" in (tmp_path / "table" / "table.md").read_text()
    assert "--train-fraction 0.25" in made.rows[0]["command"]


def test_the_interval_of_one_seed_is_that_of_the_captions(table: Table, toy_store: Store) -> None:
    made, _ = table(methods="CLIPRe")
    evaluated = evaluate_captions(toy_store, captions=made.runs[0].outputs)
    for name, score in made.rows[0]["scores"].items():
        own, known = score["interval"], evaluated.intervals[name]
        assert own[0] < evaluated.scores[name] < own[1]
        if name == "CIDEr":  # a percentile bootstrap of 16 images is narrower than Student's interval
            assert own[1] - own[0] == pytest.approx(1.1 * (known.high - known.low), rel=0.1)


def test_the_command_of_a_row_has_all_that_it_depends_on(table: Table, toy_store: Store) -> None:
    result, messages = table(methods="C3,CLIPRe", sigma=0.05, set=["dropout=0.2"], beams=2, split="val", device="cpu")
    own = [
        "--split",
        "val",
        "--size",
        "tiny",
        "--set",
        "dropout=0.2",
        "--epochs",
        "1",
        "--beams",
        "2",
        "--device",
        "cpu",
    ]
    own += ["--precision", "fp32", "--store", str(toy_store.path)]
    first = ["c3", "ablate", "--methods", "C3", "--seeds", "1", "--sigma", "0.05", *own]
    second = ["c3", "ablate", "--methods", "CLIPRe", "--seeds", "1", *own]
    assert [shlex.split(command) for command in result.commands] == [first, second]
    assert [run["command"] for run in result.to_dict()["runs"]] == result.commands
    assert any("checkpoints are chosen on" in text for text in messages)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seeds": 0}, "seeds"),
        ({"sigma": []}, "sigma"),
        ({"sigma": "best", "split": "val"}, "best"),
        ({"sigma": ["auto", "pairs"], "split": "val"}, "pairs"),
        ({"split": "restval"}, "restval"),
        ({"jobs": 0}, "0"),
        ({"jobs": 2, "keep_decoders": False}, "--jobs"),
        ({"task": "images", "epochs": None, "methods": "CapDec"}, "CapDec"),
        ({"task": "images", "epochs": None, "size": "paper"}, "paper"),
        ({"task": "images", "epochs": None, "set": [], "sigma": "best"}, "'best'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    table: Table, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(C3Error, match=named):
        table(**changes)
    assert not (tmp_path / "table").exists()


def as_store(path: Path, world: World, prefix: str = "", split: str = "test") -> Store:
    """A store of a world whose images and captions are all in one split."""
    images, texts = world.images, world.texts
    keys = [f"{prefix}{key}" for key in images.keys]
    rows = Rows.of("image", keys, images.embeddings, split=[split] * len(images))
    own = {"caption": texts.captions, "image_key": [f"{prefix}{item}" for item in texts.items]}
    captions = Rows.of(
        "text", [f"{prefix}{key}" for key in texts.keys], texts.embeddings, split=[split] * len(texts), **own
    )
    return build_store(path, rows, captions, model=TOY, dtype="float32")


def test_another_domain_is_scored_with_what_was_learned_here(table: Table, toy_store: Store, tmp_path: Path) -> None:
    """Nothing is learned from the other store but, where this one has no images, their mean."""
    other = as_store(tmp_path / "other", make_world(seed=1), "new-")
    result, _ = table(methods="C1,C3", test_store=other.path)
    at_home, _ = table(methods="C1,C3")
    assert all(key.startswith("new-") for key in result.runs[0].outputs)
    assert [run.best_val_loss for run in result.runs] == [run.best_val_loss for run in at_home.runs]
    assert all(f"--test-store {other.path}" in command for command in result.commands)
    alone = build_store(tmp_path / "alone", toy_store.load("text"), model=TOY, dtype="float32")
    crossed, messages = table(alone, methods="C3", test_store=toy_store)
    assert any(f"train images of {toy_store.path}" in text for text in messages)
    assert len(crossed.runs[0].outputs) == 16
    rows = other.load("image"), other.load("text")
    elsewhere = build_store(tmp_path / "model", *rows, model={"name": "another", "weights_sha256": "2" * 64})
    with pytest.raises(StoreError, match="another"):
        table(methods="C1", test_store=elsewhere)


def test_equal_keys_of_another_domain_are_other_images(toy_store: Store, tmp_path: Path) -> None:
    """Stores that were imported without ids number their images alike."""
    world, home = make_world(seed=1), make_world()
    other = as_store(tmp_path / "other", world)
    data, _ = caption_data(toy_store, choose=True, test_store=other)
    assert {key: data.references[key] for key in data.images.keys} == world.references
    assert data.train_images is not None
    assert data.choice is not None
    assert set(data.train_images.keys) == {*data.train.items, *data.val.items}
    assert set(data.choice.images.keys) == set(data.val.items)
    for part, known in ((data, world), (data.choice, home)):
        assert all(part.references[key] == known.references[key] for key in part.images.keys)
        first = [known.texts.items.index(key) for key in part.images.keys]
        np.testing.assert_allclose(part.asked_with("text"), known.texts.embeddings[first], atol=1e-6)
    assert CaptionTask(data, devices.pick("cpu", "fp32")).overlaps() == []
    assert not caption_data(toy_store, "all", test_store=Store.open(toy_store.path.resolve()))[0].foreign


def test_too_few_captions_are_refused(tmp_path: Path) -> None:
    rows = np.eye(1, 4, dtype=np.float32)
    images = Rows.of("image", ["a"], rows, split=["train"])
    texts = Rows.of("text", ["a#0"], rows, caption=["a dog"], image_key=["a"], split=["train"])
    store = build_store(tmp_path / "c3-store", images, texts)
    with pytest.raises(DecoderError):
        ablate(store, output=tmp_path / "table", **QUICK)
    with pytest.raises(MetricError):
        caption_data(as_store(tmp_path / "train", make_world(), split="train"))
