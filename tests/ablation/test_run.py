from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.ablation import Ablation, AblationData, ablate
from c3tools.ablation.data import ablation_data, captions_of
from c3tools.captioning import SIZES, Captioner, fit_captioner, load_size
from c3tools.captioning.evaluate import evaluate_captions
from c3tools.errors import C3Error, DecoderError, StoreError
from c3tools.identity import ModelIdentity
from c3tools.store import Rows, Shard, Store, StoreInfo, create_store, write_shard
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import Messages, build_store

from ..captioning.conftest import TOY, make_world

pytest.importorskip("pycocoevalcap")
Table = Callable[..., tuple[Ablation, list[str]]]


@pytest.fixture
def table(toy_store: Store, tmp_path: Path) -> Table:
    """Compute a small table in a folder; returns it and what was said."""

    def run(**changes: Any) -> tuple[Ablation, list[str]]:
        options: dict[str, Any] = {
            "size": "tiny",
            "epochs": 1,
            "precision": "fp32",
            "seeds": 1,
            "output": tmp_path / "table",
        }
        messages = Messages()
        return ablate(toy_store, **(options | changes), reporter=messages), messages.texts

    return run


def finished(messages: list[str]) -> int:
    return sum("already finished" in text for text in messages)


def test_the_data_of_a_store_keep_scored_images_out_of_training(data: AblationData) -> None:
    assert (len(data.train), len(data.val), len(data.images)) == (112, 16, 16)
    assert data.train_images is not None
    assert not set(data.train.items) & set(data.images.keys)
    assert not set(data.train_images.keys) & set(data.images.keys)
    assert {len(data.references[key]) for key in data.images.keys} == {2}
    assert data.moments["image"].n == 56
    few = data.sample(0.25)
    assert few.train_images is not None
    assert set(few.train_images.keys) == set(few.train.items) | set(data.val.items)


def test_a_cell_is_that_of_what_its_size_stands_for(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    run: dict[str, Any] = {"methods": "CLIPRe", "epochs": None}
    table(**run)
    tiny = load_size("tiny")
    assert finished(table(**run | {"epochs": tiny.training.epochs})[1]) == 1
    # another release trains the same name in another way: its cells are others
    changed = replace(tiny, training=replace(tiny.training, epochs=tiny.training.epochs + 1))
    monkeypatch.setattr("c3tools.captioning.config.SIZES", {**SIZES, "tiny": changed})
    assert finished(table(**run)[1]) == 0
    assert finished(table(**run | {"epochs": tiny.training.epochs})[1]) == 1


def test_a_cell_of_another_precision_is_another(table: Table) -> None:
    table(methods="C1")
    assert finished(table(methods="C1", precision="bf16")[1]) == 0
    assert finished(table(methods="C1")[1]) == 1


def test_a_result_without_the_scores_of_its_images_is_scored_again(table: Table, tmp_path: Path) -> None:
    """Earlier versions kept captions and scores of the corpus alone."""
    made, _ = table(methods="CLIPRe", seeds=2)
    files = sorted((tmp_path / "table" / "cells").glob("*/*.json"))
    for file in files:
        content = json.loads(file.read_text())
        del content["run"]["image_values"]
        file.write_text(json.dumps(content))
    again, messages = table(methods="CLIPRe", seeds=2)
    assert finished(messages) == 2
    assert [run.image_values for run in again.runs] == [run.image_values for run in made.runs]
    assert again.rows == made.rows
    assert made.rows[0]["scores"]["BLEU-4"]["interval"] is not None
    assert all("image_values" in json.loads(file.read_text())["run"] for file in files)


def test_the_interval_of_one_seed_is_that_of_the_captions(table: Table, toy_store: Store) -> None:
    made, _ = table(methods="CLIPRe")
    evaluated = evaluate_captions(toy_store, captions=made.runs[0].captions)
    for name, score in made.rows[0]["scores"].items():
        own, known = score["interval"], evaluated.intervals[name]
        assert own[0] < evaluated.scores[name] < own[1]
        if name == "CIDEr":  # a percentile bootstrap of 16 images is narrower than Student's interval
            assert own[1] - own[0] == pytest.approx(1.1 * (known.high - known.low), rel=0.1)


def test_sigma_is_chosen_on_the_val_split_for_each_method(table: Table, tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": ["C1", "C2_2", "C3"], "grid": (0.02, 0.3), "seeds": 2, "epochs": 3}
    chosen, _ = table(sigma="best", **options)
    assert sorted((run.method, run.seed) for run in chosen.runs) == [
        (name, seed) for name in ("C1", "C2_2", "C3") for seed in (0, 1)
    ]
    tried = json.loads((tmp_path / "table" / "sigma.json").read_text())
    assert (tried["split"], tried["metric"]) == ("val", "CIDEr")
    for run in chosen.runs:
        if run.method == "C1":
            continue
        scores = tried["scores"][run.method]
        assert set(scores) == {"0.02", "0.3"}
        best = max(scores, key=scores.__getitem__)
        assert run.sigma == float(best)
        assert run.sigma_from == "best"
        if run.seed == 0:  # chosen by the first seed's captions of the val images, not of the scored ones
            assert run.choice_scores["CIDEr"] == scores[best]
    assert any("(best)" in row[1] for row in chosen.table().rows)
    both, _ = table(sigma=["best", "auto"], **options)
    assert any("(auto)" in row[1] for row in both.table().rows)
    with pytest.raises(C3Error, match="the table cannot be scored on that split"):
        table(sigma="best", split="val", **options)


def test_sigma_of_pairs_is_a_row_of_its_own(table: Table, toy_store: Store) -> None:
    made, messages = table(sigma="pairs", methods="C3")
    sigma, why = sigma_by_rule("pairs", toy_store)
    assert why in messages
    assert [(run.sigma, run.sigma_from) for run in made.runs] == [(sigma, "pairs")]
    assert made.table().rows[0][1] == f"{sigma:.3g} (pairs)"
    with pytest.raises(C3Error, match="--sigma pairs uses the val split"):
        table(sigma=["auto", "pairs"], methods="C3", split="val")


def test_the_val_split_can_be_scored_by_every_method(table: Table) -> None:
    result, messages = table(methods="C3,paired,WS-ClipCap", split="val")
    assert any("among those that the checkpoints are chosen on" in text for text in messages)
    assert len(result.runs) == 3


def test_another_way_to_generate_captions_needs_no_training(table: Table, tmp_path: Path) -> None:
    greedy, _ = table(methods="C3", seeds=2)
    folders = sorted(path.name for path in (tmp_path / "table" / "decoders").glob("*/*"))
    assert folders == ["c3-text-sigma0.1-seed0", "c3-text-sigma0.1-seed1"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "table").rglob("weights.safetensors")}
    beams, _ = table(methods="C3", seeds=2, beams=3)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "table").rglob("weights.safetensors")} == before
    losses = [run.best_val_loss for run in greedy.runs]
    assert [run.best_val_loss for run in beams.runs] == losses
    # a damaged one is trained again, and an unkept one was never there
    next(iter(before)).write_bytes(b"cut")
    again, _ = table(methods="C3", seeds=2, beams=2)
    assert [run.best_val_loss for run in again.runs] == losses
    table(methods="C3", keep_decoders=False, output=tmp_path / "bare")
    assert not (tmp_path / "bare" / "decoders").exists()


def test_trainings_at_a_time_give_the_same_table(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, _ = table(methods="C1,C3,CapDec,CLIPRe")
    here: list[str] = []

    def spy(*arguments: Any, **named: Any) -> Captioner:
        here.append(named["label"])
        return fit_captioner(*arguments, **named)

    monkeypatch.setattr("c3tools.ablation.cells.fit_captioner", spy)
    two, _ = table(methods="C1,C3,CapDec,CLIPRe", jobs=2, output=tmp_path / "two")
    assert here == []  # all were trained in the other processes
    assert [run.method for run in two.runs] == ["C1", "C3", "CapDec", "CLIPRe"]
    losses = [[run.best_val_loss for run in made.runs if run.best_val_loss is not None] for made in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(losses[0]) == 3
    with pytest.raises(C3Error, match="return their results as files"):
        table(jobs=2, keep_decoders=False)


def test_a_training_that_fails_in_another_process_is_told(table: Table, tmp_path: Path) -> None:
    with pytest.raises(C3Error, match="became nan"):
        table(methods="C1,C3", jobs=2, set=("learning_rate=1e30", "clip_norm=0"), output=tmp_path / "failing")


def test_train_fractions_are_rows(table: Table, tmp_path: Path) -> None:
    result, _ = table(methods="C3", seeds=2, train_fraction=(0.25, 1))
    assert [(run.train_fraction, run.seed) for run in result.runs] == [(0.25, 0), (0.25, 1), (1.0, 0), (1.0, 1)]
    assert "--train-fraction 0.25" in result.rows[0]["command"]
    assert "0.25" in result.table().rows[0]
    assert "| C3 | 0.1 | 0.25 | 2 |" in (tmp_path / "table" / "table.md").read_text()
    assert finished(table(methods="C3", seeds=2, train_fraction=(0.25, 1))[1]) == 4


def test_a_repeated_value_is_one_row(table: Table) -> None:
    made, _ = table(methods="CLIPRe,oracle", sigma=["0.1", "0.10"], train_fraction=(1, 1.0))
    assert [row["seeds"] for row in made.rows] == [1, 1]


def test_the_command_of_a_row_has_all_that_it_depends_on(table: Table, toy_store: Store) -> None:
    result, _ = table(methods="C3,CLIPRe", sigma=0.05, set=["dropout=0.2"], beams=2, split="val", device="cpu")
    store = ["--store", str(toy_store.path), "--device", "cpu", "--precision", "fp32"]
    own = ["--size", "tiny", "--set", "dropout=0.2", "--epochs", "1", "--beams", "2", "--length-penalty", "0.7"]
    first = ["c3", "ablate", "--methods", "C3", "--seeds", "1", "--sigma", "0.05", *own, "--split", "val", *store]
    second = ["c3", "ablate", "--methods", "CLIPRe", "--seeds", "1", *own, "--split", "val", *store]
    assert [shlex.split(command) for command in result.commands] == [first, second]
    assert [run["command"] for run in result.to_dict()["runs"]] == result.commands


def test_wrong_settings_are_refused_before_anything_is_written(table: Table, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"methods": ""}, "at least one of the methods"),
        ({"seeds": 0}, "at least one of the seeds"),
        ({"sigma": []}, "at least one of the sigmas"),
        ({"train_fraction": 0}, "must be above 0"),
        ({"methods": "C4"}, "There is no method C4"),
        ({"split": "restval"}, "no images with captions in the split 'restval'"),
    ]
    for changes, message in cases:
        with pytest.raises(C3Error, match=message):
            table(**changes)
        assert not (tmp_path / "table").exists()


def test_one_caption_only_is_too_few_for_a_table(tmp_path: Path) -> None:
    info = StoreInfo(ModelIdentity(name="toy"), 4, dtype="float32")
    create_store(tmp_path / "c3-store", info)
    rows = np.eye(1, 4, dtype=np.float32)
    columns: dict[str, list[Any]] = {"key": ["a"], "path": ["a.png"], "width": [1], "height": [1], "split": ["train"]}
    write_shard(tmp_path / "c3-store", info, Shard("image", 0, rows, columns))
    columns = {"key": ["a#0"], "caption": ["a dog"], "image_key": ["a"], "split": ["train"]}
    write_shard(tmp_path / "c3-store", info, Shard("text", 0, rows, columns))
    with pytest.raises(DecoderError, match="needs captions for training and for validation"):
        ablate(tmp_path / "c3-store", output=tmp_path / "table")


def test_another_domain_is_scored_with_what_was_learned_here(table: Table, toy_store: Store, tmp_path: Path) -> None:
    """Trained on one store, scored on the images of another; nothing is learned from the other but an image mean."""
    world = make_world(seed=1)
    foreign = Rows.of(
        "image", [f"new-{key}" for key in world.images.keys], world.images.embeddings, split=["test"] * 80
    )
    texts = world.texts
    items = [f"new-{item}" for item in texts.items]
    keys = [f"new-{key}" for key in texts.keys]
    captions = Rows.of("text", keys, texts.embeddings, caption=texts.captions, image_key=items, split=["test"] * 160)
    other = build_store(tmp_path / "other", foreign, captions, model=TOY, dtype="float32")
    result, _ = table(methods="C1,C3", test_store=other.path)
    assert set(result.runs[0].captions) == set(foreign.keys)
    at_home, _ = table(methods="C1,C3")
    assert [run.best_val_loss for run in result.runs] == [run.best_val_loss for run in at_home.runs]
    assert all(f"--test-store {other.path}" in command for command in result.commands)
    assert not any("--test-store" in command for command in at_home.commands)
    # a store of texts alone has no image mean: it is taken from the train images of the other
    trained = Rows.of("image", [f"t-{k}" for k in world.images.keys], world.images.embeddings, split=["train"] * 80)
    both = build_store(
        tmp_path / "both",
        Rows.of(
            "image",
            [*trained.keys, *foreign.keys],
            np.vstack([trained.embeddings, foreign.embeddings]),
            split=["train"] * 80 + ["test"] * 80,
        ),
        captions,
        model=TOY,
        dtype="float32",
    )
    alone = build_store(tmp_path / "alone", toy_store.load("text"), model=TOY, dtype="float32")
    messages = Messages()
    options: dict[str, Any] = {"size": "tiny", "epochs": 1, "precision": "fp32", "seeds": 1, "output": tmp_path / "t"}
    crossed = ablate(alone, methods="C3", test_store=both, reporter=messages, **options)
    assert any("that of the train images of" in text for text in messages.texts)
    assert len(crossed.runs[0].captions) == 80
    elsewhere = build_store(
        tmp_path / "model", foreign, captions, model={"name": "another", "weights_sha256": "2" * 64}
    )
    with pytest.raises(StoreError, match="another"):
        table(methods="C1", test_store=elsewhere)


def test_equal_keys_of_another_domain_are_other_images(table: Table, toy_store: Store, tmp_path: Path) -> None:
    """Stores that were imported without ids number their images alike."""
    world, home = make_world(seed=1), make_world()
    images = Rows.of("image", world.images.keys, world.images.embeddings, split=["test"] * 80)
    texts = Rows.of(
        "text",
        world.texts.keys,
        world.texts.embeddings,
        caption=world.texts.captions,
        image_key=world.texts.items,
        split=["test"] * 160,
    )
    other = build_store(tmp_path / "other", images, texts, model=TOY, dtype="float32")
    data, _ = ablation_data(toy_store, choose=True, test_store=other)
    assert {key: data.references[key] for key in data.images.keys} == world.references
    assert data.train_images is not None
    assert set(data.train_images.keys) == {*data.train.items, *data.val.items}
    assert data.choice is not None
    assert {key: data.choice.references[key] for key in data.choice.images.keys} == {
        key: home.references[key] for key in set(data.val.items)
    }
    for part, texts in ((data, world.texts), (data.choice, home.texts)):
        first = [texts.items.index(key) for key in part.images.keys]
        np.testing.assert_allclose(captions_of(part), texts.embeddings[first], atol=1e-6)
    options: dict[str, Any] = {"methods": "C3,oracle", "sigma": "best", "grid": (0.02, 0.3)}
    away, messages = table(test_store=other, **options)
    at_home, _ = table(output=tmp_path / "home", **options)
    assert not any("among the" in text for text in messages)
    data, _ = ablation_data(toy_store, split="all", test_store=Store.open(toy_store.path.resolve()))
    assert not data.foreign
    assert [run.choice_scores for run in away.runs] == [run.choice_scores for run in at_home.runs]
