from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from c3tools import evaluate_captions, train_captioner
from c3tools.captioning.config import SIZES, load_size
from c3tools.captioning.evaluate_captions import store_references
from c3tools.errors import C3Error, MetricError, StoreError
from c3tools.export import export_store
from c3tools.metrics.caption_metric import MeanScore
from c3tools.metrics.caption_scores import score_captions
from c3tools.paper.ablation.caption_table import CaptionData
from c3tools.paper.ablation.methods import METHODS
from c3tools.reporter import SILENT, Reporter
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import Messages, build_store

from ...captioning.conftest import TOY, World, counting_encoder, make_world, store_of
from .conftest import QUICK, Table, finished

pytest.importorskip("pycocoevalcap")


def data_of(
    store: Store, split: str = "test", told: Reporter = SILENT, **options: Any
) -> CaptionData:
    arguments: dict[str, Any] = {"methods": {}, "test_store": None, **options}
    return CaptionData.read(store, split=split, reporter=told, **arguments)


def test_every_method_runs_and_is_scored(
    table: Table, toy_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"steer": "zerocap", "limit": 3}
    monkeypatch.setitem(METHODS, "ZeroCap", replace(METHODS["ZeroCap"], evaluate=few))
    for module in ("paper.ablation.caption_table", "captioning.train_captioner"):
        monkeypatch.setattr(
            f"c3tools.{module}.load_text_encoder",
            lambda *_, **__: counting_encoder(ascii_lowercase),
        )
    made, _ = table(methods="all", sigma=0.1)
    images = toy_store.load("image", "test")
    references = store_references(toy_store)
    assert [run.method for run in made.runs] == list(METHODS)
    for run in made.runs:
        assert [*run.outputs] == [key for key in images.keys if key in run.outputs]
        assert run.images == len(run.outputs) == (3 if run.method == "ZeroCap" else 16)
        # the oracle is not scored against what it reads
        own = {key: texts[run.method == "oracle" :] for key, texts in references.items()}
        assert run.scores == pytest.approx(score_captions(run.outputs, own).corpus)
        means = {name: np.mean(each) for name, each in run.values.items()}
        assert means == pytest.approx(run.scores, abs=1e-3)
        assert run.values == {name: np.round(each, 4).tolist() for name, each in run.values.items()}
        assert run.sigma == METHODS[run.method].noisy * 0.1
    by_name = {run.method: run for run in made.runs}
    assert [*by_name["ZeroCap"].outputs] == ["image61", "image52", "image76"]  # drawn once for all
    # methods that train alike are trained once
    assert by_name["CapDec"].outputs == by_name["C2_2"].outputs
    losses = [by_name[name].best_val_loss for name in ("CLIPRe", "DeCap", "C1", "MAGIC", "ZeroCap")]
    # MAGIC and ZeroCap steer one language model, and ESPER's mapper is put in front of it
    assert losses == [None, *losses[1:2] * 2, *losses[3:4] * 2] and losses[1] != losses[3]
    for name in ("parameters", "training_seconds"):
        esper, magic, clipre = (
            getattr(by_name[method], name) for method in ("ESPER", "MAGIC", "CLIPRe")
        )
        assert esper > magic > clipre == 0
    # CLIPRe: the nearest training caption, by definition
    learned = data_of(toy_store).train
    nearest = np.argmax(images.embeddings @ learned.embeddings.T, axis=1)
    assert [*by_name["CLIPRe"].outputs.values()] == [learned.captions[row] for row in nearest]


def test_a_cell_is_what_the_commands_make(table: Table, toy_store: Store, tmp_path: Path) -> None:
    made, _ = table(methods="C3,DeCap,paired", sigma=0.05, device="cpu", beams=2)
    fitted = preset("decap").fit(toy_store)
    training: dict[str, dict[str, Any]] = {
        "C3": {"preset": "c3", "sigma": 0.05},
        "DeCap": {"preset": "c1"},
        "paired": {"preset": "c1", "pairs": 1},
    }
    for run in made.runs:
        output = tmp_path / run.method
        decoder = train_captioner(toy_store, output=output, **QUICK, **training[run.method])
        pipeline = fitted if run.method == "DeCap" else None
        scored = evaluate_captions(toy_store, decoder=decoder, pipeline=pipeline, beams=2)
        assert scored.captions == run.outputs
        assert scored.scores == run.scores


def test_a_file_with_steps_is_a_method(table: Table, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    steps = preset("c3", sigma=0.1).config()["steps"]
    own.write_text(json.dumps({"name": "own", "steps": steps}), encoding="utf-8")
    made, _ = table(methods=["C3", str(own)], sigma=0.1)
    c3, same = made.runs
    assert (same.method, same.sigma, same.outputs) == (str(own), 0, c3.outputs)
    assert [row[1] for row in made.tables()[0].rows] == ["0.1", "0.1 (recipe)"]
    without_noise = [step for step in steps if "noise" not in step["step"]]
    own.write_text(json.dumps({"name": "own", "steps": without_noise}), encoding="utf-8")
    collapsed, edited = table(methods=["C2_1", str(own)], sigma=0.1)[0].runs
    assert edited.outputs == collapsed.outputs
    assert edited.best_val_loss == collapsed.best_val_loss != c3.best_val_loss


def test_scores_that_need_java_are_in_the_table_where_it_is(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.metrics.java_metrics.missing_java", lambda: None)
    monkeypatch.setattr(
        "c3tools.metrics.java_metrics.Meteor._run",
        lambda metric, captions: MeanScore(12.5, np.full(16, 12.5)),
    )
    scores, trainings = table(methods="CLIPRe", metrics=["CIDEr", "METEOR"])[0].tables()
    assert "CIDEr" in scores.columns
    assert ("METEOR", "12.5") in zip(trainings.columns, trainings.rows[0], strict=True)


def test_images_with_one_caption_leave_the_oracle_out(toy_store: Store, tmp_path: Path) -> None:
    data = data_of(toy_store)
    first, *others = data.images.keys
    references = {**data.references, first: data.references[first][:1]}
    texts, scored_by = replace(data, references=references).texts_of_images()
    assert texts.keys == [*scored_by] == others
    world = make_world()
    world = replace(world, texts=world.texts.select(np.arange(0, len(world.texts), 2)))
    with pytest.raises(MetricError, match="oracle"):
        data_of(
            toy_store,
            methods={"oracle": METHODS["oracle"]},
            test_store=store_of(tmp_path / "one", world),
        )


def test_exports_and_methods_that_would_learn_from_scored_images_are_refused(
    table: Table, toy_store: Store, tmp_path: Path
) -> None:
    export = export_store(toy_store, output=tmp_path / "export", preset="c2-collapse").output
    with pytest.raises(StoreError, match="is an export"):
        table(export, methods="C1")
    for method in ("paired", "WS-ClipCap", "ESPER"):
        with pytest.raises(MetricError, match=f"{method} would learn from images"):
            table(methods=f"C1,{method}", split="all")
    assert not (tmp_path / "table").exists()


def test_a_cell_is_that_of_all_it_depends_on(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    run: dict[str, Any] = {"methods": "CLIPRe", "epochs": None, "set": []}
    table(**run)
    tiny = load_size("tiny")
    for change in (
        {"set": ["dropout=0.2"]},
        {"beams": 2},
        {"split": "val"},
        {"seeds": 2},
    ):
        assert finished(table(**run | change)[1]) == (1 if change == {"seeds": 2} else 0)
    # another release trains the same name in another way: its cells are others
    changed = replace(tiny, training=replace(tiny.training, epochs=tiny.training.epochs + 1))
    monkeypatch.setattr("c3tools.captioning.config.SIZES", {**SIZES, "tiny": changed})
    assert finished(table(**run)[1]) == 0


def test_cells_and_decoders_are_kept_and_damaged_ones_made_again(
    table: Table, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"methods": "C1,C3,DeCap", "seeds": 2, "sigma": [0.05, 0.1]}
    made, _ = table(**options)
    folder, losses = tmp_path / "table", [run.best_val_loss for run in made.runs]
    assert losses[0] != losses[3]  # seeds matter
    first, *others = (folder / "cells").iterdir()
    assert [len(path.stem) for path in (*others, *(folder / "decoders").iterdir())] == [16] * (
        7 + 6
    )  # DeCap shares the decoders of C1
    weights = {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}
    first.write_text(first.read_text()[:100])
    again, messages = table(**options)
    assert (finished(messages), again.rows) == (7, made.rows)
    assert [run.best_val_loss for run in table(**options, beams=2)[0].runs] == losses
    # other captions of the same decoders
    assert {
        path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")
    } == weights
    next(iter(weights)).write_bytes(b"cut")
    assert [run.best_val_loss for run in table(**options, beams=3)[0].runs] == losses


def test_trainings_at_a_time_give_the_same_table(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = "C1,C3,CapDec,CLIPRe"
    one, _ = table(methods=methods)
    # all are trained in the other processes
    monkeypatch.setattr("c3tools.training.loop.train", None)
    told: list[tuple[str, int, int]] = []

    def progress(self: Messages, label: str, total: int) -> Any:
        advance = lambda count=1, note=None: told.append((label, total, count))  # noqa: E731
        return nullcontext(SimpleNamespace(advance=advance))

    monkeypatch.setattr(Messages, "progress", progress)
    two, _ = table(methods=methods, jobs=2, output=tmp_path / "two")
    shares = [
        count for *label, count in told if label == ["Percent of 3 trainings, 2 at a time", 300]
    ]
    assert sum(shares) == 300 and len(shares) > 3
    assert [run.method for run in two.runs] == methods.split(",")
    losses = [
        [run.best_val_loss for run in made.runs if run.best_val_loss is not None]
        for made in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_each_sigma_is_a_row_once(table: Table, toy_store: Store, tmp_path: Path) -> None:
    made, messages = table(methods="CLIPRe,oracle", sigma=["pairs", "0.1", "0.10"])
    sigma, why = sigma_by_rule("pairs", toy_store)
    assert why in messages
    found = [(run.method, run.sigma, run.sigma_from) for run in made.runs]
    assert found == [("CLIPRe", 0, "pairs"), ("oracle", sigma, "pairs"), ("oracle", 0.1, "given")]
    assert f"| oracle | {sigma:.3g} (pairs) |" in (tmp_path / "table/table.md").read_text()


def test_the_command_of_a_table_has_all_that_it_depends_on(table: Table, toy_store: Store) -> None:
    result, messages = table(
        methods="C3,CLIPRe", sigma=0.05, set=["dropout=0.2"], beams=2, split="val", device="cpu"
    )
    options = (
        "--methods C3,CLIPRe --seeds 1 --sigma 0.05 --split val --size tiny --set "
        "dropout=0.2 --epochs 1 --beams 2"
    )
    assert (
        result.command
        == f"c3 ablate-captions --store {toy_store.path} {options} --device cpu --precision fp32"
    )
    assert any("for choosing checkpoints" in text for text in messages)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sigma": ["auto", "pairs"], "split": "val"}, "pairs"),
        ({"sigma": "pairs", "split": "all"}, "pairs"),
        ({"split": "restval"}, "restval"),
        ({"methods": "C1,C4"}, "C4"),
        ({"size": "huge"}, "huge"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    table: Table, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(C3Error, match=named):
        table(**changes)
    assert not (tmp_path / "table").exists()


def test_sigma_pairs_may_use_the_val_split_if_another_store_is_scored(
    table: Table, toy_store: Store, tmp_path: Path
) -> None:
    other = store_of(tmp_path / "other", make_world(seed=1), ["val"])
    result, _ = table(methods="CLIPRe", sigma="pairs", split="val", test_store=other.path)
    assert result.runs[0].images == 80
    with pytest.raises(C3Error, match="cannot be scored on it"):
        table(methods="CLIPRe", sigma="pairs", split="val", test_store=toy_store.path)


def test_another_domain_is_scored_with_what_was_learned_here(
    table: Table, toy_store: Store, tmp_path: Path
) -> None:
    """Nothing is learned from the other store but, where this one has no images, their mean."""
    other = store_of(tmp_path / "other", make_world(seed=1), ["test"])
    result, _ = table(methods="C1,C3", test_store=other.path)
    at_home, _ = table(methods="C1,C3")
    assert [len(made.runs[0].outputs) for made in (result, at_home)] == [80, 16]
    assert [run.best_val_loss for run in result.runs] == [run.best_val_loss for run in at_home.runs]
    assert f"--test-store {other.path}" in result.command
    assert len(result.examples) == 60  # of the page
    key, (_, written) = next(iter(result.examples.items()))
    assert written == make_world(seed=1).references[key][0]
    alone = build_store(tmp_path / "alone", toy_store.load("text"), model=TOY, dtype="float32")
    crossed, messages = table(alone, methods="C3", test_store=toy_store)
    assert any(f"train images of {toy_store.path}" in text for text in messages)
    assert len(crossed.runs[0].outputs) == 16
    elsewhere = store_of(
        tmp_path / "model", make_world(), model={"name": "another", "weights_sha256": "2" * 64}
    )
    with pytest.raises(StoreError, match="another"):
        table(methods="C1", test_store=elsewhere)


def test_equal_keys_of_another_domain_are_other_images(toy_store: Store, tmp_path: Path) -> None:
    """Stores that were imported without ids number their images alike."""
    world, told = make_world(seed=1), Messages()
    other = store_of(tmp_path / "other", world, ["test"])
    found = data_of(toy_store, told=told, test_store=other)
    assert {key: found.references[key] for key in found.images.keys} == world.references
    first = [world.texts.items.index(key) for key in found.images.keys]
    described, _ = found.texts_of_images()
    np.testing.assert_allclose(described.embeddings, world.texts.embeddings[first], atol=1e-6)
    fewer = replace(world, texts=world.texts.select(np.arange(2, len(world.texts))))
    data_of(toy_store, told=told, test_store=store_of(tmp_path / "fewer", fewer, ["test"]))
    data_of(toy_store, "all", told, test_store=Store.open(toy_store.path.resolve()))
    assert told.texts[0] == "Left out: 1 image without reference captions."
    assert "used for training" in told.texts[1]


def test_metrics_that_miss_what_they_need_are_left_out(table: Table) -> None:
    made, told = table(methods="CLIPRe", metrics=["CIDEr", "SPICE"])
    assert "SPICE is left out: it needs Java" in told
    assert [*made.runs[0].scores] == ["CIDEr"]


def test_scored_images_with_copies_in_train_are_noted(toy_store: Store, tmp_path: Path) -> None:
    rows = toy_store.load("image")
    digests: list[str | None] = [None] * len(rows)
    for split in ("train", "test"):
        digests[rows.splits.index(split)] = "of one file"
    images = Rows.of(
        "image", rows.keys, rows.embeddings, split=rows.column("split"), sha256=digests
    )
    told = Messages()
    data_of(build_store(tmp_path / "store", images, toy_store.load("text")), told=told)
    assert any("1 image row of test was made from a file" in text for text in told.texts)


@pytest.mark.parametrize("with_images", [True, False], ids=["photos", "captions alone"])
def test_photos_of_another_store_that_were_trained_on_are_left_out(
    toy_store: Store, tmp_path: Path, with_images: bool
) -> None:
    """The copy numbers its photos otherwise only where embeddings tell them."""
    learns = toy_store
    world = make_world()
    if with_images:
        renamed = {key: f"photo{key}" for key in world.images.keys}
        world = renamed_world(world, renamed)
    else:
        learns = build_store(tmp_path / "texts", toy_store.load("text"), model=TOY, dtype="float32")
    copy, told = store_of(tmp_path / "copy", world), Messages()
    found = data_of(learns, "all", told, test_store=copy)
    count = {split: len(toy_store.load("image", split)) for split in ("train", "val", "test")}
    assert len(found.images) == count["test"]
    seen = count["train"] + count["val"]
    assert any(f"Left out: {seen} images of {copy.path}" in text for text in told.texts)
    with pytest.raises(MetricError, match="were trained on"):
        data_of(learns, "train", test_store=copy)


def renamed_world(world: World, names: dict[str, str]) -> World:
    """Return the world with other keys of its images."""
    texts, images = world.texts, world.images
    items = [names[item] for item in texts.items]
    keys = [names[key] for key in images.keys]
    return World(
        Rows.of("text", texts.keys, texts.embeddings, caption=texts.captions, image_key=items),
        Rows.of("image", keys, images.embeddings, path=[f"{key}.png" for key in keys]),
        {names[key]: captions for key, captions in world.references.items()},
    )
