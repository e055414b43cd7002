from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from c3tools import Captioner, train_captioner
from c3tools.captioning.config import SIZES, Size, TrainingConfig, load_size
from c3tools.captioning.tokenizer import PAD_ID, TokenRows
from c3tools.captioning.train_captioner import CaptionerSettings, _rows_to_learn, training_rows
from c3tools.errors import C3Error, DecoderError, OutputError, TransformError
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import Messages, build_store, unit_rows

from .conftest import (
    ANIMALS,
    SPLITS,
    TOY,
    World,
    counting_encoder,
    fit,
    mean_loss,
    store_of,
    task_of,
)


@pytest.fixture
def train(captions_store: Store, tmp_path: Path) -> Any:
    """Train a tiny decoder for one epoch in an empty folder; what is given changes that."""

    def run(output: str = "c3-decoder", **changes: Any) -> Captioner:
        options: Any = {"store": captions_store, "size": "tiny", "epochs": 1, "sigma": 0.1}
        options |= {"precision": "fp32", "set": ["batch_size=32"], "overwrite": True} | changes
        if "start" in changes:
            del options["size"]
        return train_captioner(output=tmp_path / output, **options)

    return run


def texts_store(path: Path, captions: list[str], model: Any = TOY, dim: int = 8) -> Store:
    """A store of texts without images, all of the split train."""
    keys = [f"t{i}" for i in range(len(captions))]
    texts = Rows.of(
        "text", keys, unit_rows(len(keys), dim), caption=captions, split=["train"] * len(keys)
    )
    return build_store(path, texts, model=model, dtype="float32")


def test_training_starts_from_the_weights_and_tokenizer_of_another(
    world: World, captioner: Captioner
) -> None:
    before, best = captioner.decoder.digest(), captioner.record["best_val_loss"]
    # a rate that spoils everything: what training started from is kept
    spoiled = fit(task_of(world, TrainingConfig(1, 64, 3.0, clip_norm=0.0), "c3", start=captioner))
    assert captioner.decoder.digest() == before == spoiled.decoder.digest()
    assert spoiled.decoder is not captioner.decoder
    assert spoiled.tokenizer is captioner.tokenizer
    assert (
        spoiled.record["start_val_loss"] == spoiled.record["best_val_loss"] == pytest.approx(best)
    )


def test_a_decoder_trained_on_texts_captions_images(world: World, captioner: Captioner) -> None:
    # nothing of them was learned from
    captions = captioner.caption(embeddings=world.images.embeddings[-10:])
    # on the PLACE stands a COLOUR ANIMAL
    said = [world.references[key][1].split() for key in world.images.keys[-10:]]
    assert all(len(caption.split()) <= 8 for caption in captions)  # the end of the text was learned
    pairs = zip(said, captions, strict=True)
    # of 30
    assert sum(word in caption for words, caption in pairs for word in (words[2], *words[5:])) >= 24


def test_a_decoder_is_trained_once_and_another_is_refused(train: Any, tmp_path: Path) -> None:
    captioner, messages = train(), Messages()
    assert Captioner.load(tmp_path / "c3-decoder").fingerprint() == captioner.fingerprint()
    (note,) = captioner.record["notes"]
    assert note.startswith("The image mean of 56 rows is uncertain: 100 are recommended")
    train(overwrite=False, reporter=messages)
    assert "nothing to do" in messages.texts[-1]
    others = texts_store(tmp_path / "t", ["a dog"] * 20, dim=32)
    for change in ({"seed": 1}, {"sigma": None}, {"store": others}):
        with pytest.raises(OutputError, match="c3-decoder"):
            train(overwrite=False, **change)
    assert not list(tmp_path.glob(".c3-decoder*"))  # neither the run nor a temporary folder is left


@dataclass(frozen=True)
class LaterConfig(TrainingConfig):
    """The settings of a training in a later version, which has one more."""

    token_noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LaterSettings(CaptionerSettings):
    """The options of `train_captioner` in a later version, which has one more."""

    curriculum: bool = False


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an option and a setting of trainings, with defaults, as a later version might."""
    tiny = SIZES["tiny"]
    assert isinstance(tiny, Size)
    training = LaterConfig(**asdict(tiny.training))
    monkeypatch.setattr(
        "c3tools.captioning.config.SIZES", {"tiny": replace(tiny, training=training)}
    )
    monkeypatch.setattr("c3tools.captioning.train_captioner.CaptionerSettings", LaterSettings)


def test_an_option_and_a_setting_that_are_added_disown_no_decoder(
    train: Any, request: pytest.FixtureRequest
) -> None:
    messages = Messages()
    train()
    request.getfixturevalue("later")
    train(overwrite=False, reporter=messages)
    assert "nothing to do" in messages.texts[-1]


def test_another_value_of_a_setting_that_was_added_is_another_decoder(
    train: Any, request: pytest.FixtureRequest
) -> None:
    train()
    request.getfixturevalue("later")
    with pytest.raises(OutputError, match=r"set .*token_noise"):
        train(overwrite=False, set=["batch_size=32", "token_noise=0.1"])


def test_a_pipeline_is_used_as_it_is_or_fitted_on_the_store(
    train: Any, captions_store: Store
) -> None:
    made = train(preset="c3"), train(pipeline=preset("c3", sigma=0.1), sigma=None)
    assert made[0].decoder.digest() == made[1].decoder.digest()
    moments = {name: captions_store.moments(name, "val") for name in ("image", "text")}
    own = preset("c2-collapse").fit(moments)
    captioner = train(pipeline=own, sigma=None)
    assert captioner.pipeline.record() == own.record()
    assert (captioner.record["preset"], captioner.record["sigma"]) == ("c2-collapse", 0.0)
    other = preset("c1").fit(moments, provenance={"model": {"name": "other"}})
    with pytest.raises(TransformError, match="other"):
        train(pipeline=other, sigma=None)
    with pytest.raises(TransformError, match=r"type str: 'my-decoder'[\s\S]*output="):
        train(pipeline="my-decoder", sigma=None)


def test_sigma_is_taken_from_the_captions_by_default(train: Any, captions_store: Store) -> None:
    messages = Messages()
    expected, _ = sigma_by_rule("auto", captions_store)
    captioner = train(sigma=None, reporter=messages)
    assert captioner.record["sigma"] == pytest.approx(expected)
    assert any(f"{expected:.4g}" in text for text in messages.texts)
    record = train("lafite", preset="lafite", sigma=None).record
    assert (record["sigma"], record["made_from"]["settings"]["sigma"]) == (0.0, None)


def test_without_a_val_split_of_its_own_whole_images_are_held_out(
    world: World, tmp_path: Path
) -> None:
    for split, splits in (("train", ["train"]), ("all", SPLITS)):
        train, val, notes = training_rows(store_of(tmp_path / split, world, splits), split)
        assert not set(train.items) & set(val.items)
        assert (len(train), len(val)) == (144, 16)
        assert ["16 captions of 8 images" in note for note in notes] == [True]
    # captions that are empty or in no known script are left out and listed
    good = ["a dog on grass", "собака на траве", "草の上の犬", "كلب على العشب"] * 5
    train, val, notes = training_rows(texts_store(tmp_path / "texts", ["", "\ue000\ue001", *good]))
    assert (len(train) + len(val), any("t0" in note for note in notes)) == (20, True)


def test_a_cross_modal_monitor_chooses_on_the_images_of_the_val_split(
    train: Any, captions_store: Store
) -> None:
    messages = Messages()
    captioner = train(monitor="cross-modal", train_fraction=0.5, reporter=messages)
    record = captioner.record
    assert "16 captions" in messages.texts[1]
    found = [record[name] for name in ("monitor", "modality", "notes", "captions")]
    assert found == ["cross-modal", "text", messages.texts, {"train": 56, "val": 16}]
    images, texts = captions_store.load("image", "val"), captions_store.load("text", "val")
    inputs = captioner.pipeline.transform(np.repeat(images.embeddings, 2, axis=0), modality="image")
    tokens = TokenRows(captioner.tokenizer, texts.captions, 40).batch(np.arange(16), PAD_ID)
    loss = mean_loss(captioner.decoder, inputs, torch.from_numpy(tokens))
    assert record["best_val_loss"] == pytest.approx(loss, rel=1e-4)


def test_few_pairs_from_scratch_and_on_top_of_texts(
    captioner: Captioner, train: Any, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "texts")
    made = [
        train(pairs=0.25, sigma=None, **options)
        for options in ({"start": tmp_path / "texts", "size": "small"}, {})
    ]
    tuned, scratch = (one.record for one in made)
    for record in (tuned, scratch):
        # a quarter of 56 and of 8 images, two captions each
        assert record["captions"] == {"train": 28, "val": 4}
        assert (record["modality"], record["monitor"], record["pairs"]) == (
            "image",
            "cross-modal",
            0.25,
        )
    assert (tuned["from"], tuned["size"]) == (str(tmp_path / "texts"), "tiny")
    assert (tuned["sigma"], scratch["sigma"]) == (0.02, 0.0)
    assert tuned["training"]["learning_rate"] == pytest.approx(
        0.1 * scratch["training"]["learning_rate"]
    )
    assert tuned["best_val_loss"] <= tuned["start_val_loss"]
    assert tuned["best_val_loss"] < scratch["best_val_loss"]  # what texts taught is not lost
    assert captioner.pipeline.config() == made[0].pipeline.config()


def test_few_pairs_are_drawn_among_the_captions_with_an_image(
    captions_store: Store, tmp_path: Path
) -> None:
    # 10 images of train and 2 of val, with two captions each; all other captions have none
    images = captions_store.load("image").select(np.arange(16))
    texts = captions_store.load("text")
    store = build_store(tmp_path / "store", images, texts, model=TOY, dtype="float32")
    learned = _rows_to_learn(
        store, Mock(train_split="train", train_fraction=1, pseudo_pairs=False, pairs=0.5, seed=0)
    )
    assert (len(learned.train), len(learned.val)) == (10, 2)
    assert "10 captions of 5 images" in learned.notes[-1]
    assert "2 captions of 1 other" in learned.notes[-1]


def test_pseudo_pairs_are_images_with_their_nearest_training_captions(
    captions_store: Store, train: Any
) -> None:
    settings = Mock(train_split="train", train_fraction=1, pseudo_pairs=True)
    learned = _rows_to_learn(captions_store, settings)
    images = captions_store.load("image")
    texts = training_rows(captions_store).train
    for rows, split in ((learned.train, "train"), (learned.val, "val")):
        owners = captions_store.load("image", split).keys
        assert rows.keys == [f"{image}#{rank}" for image in owners for rank in range(5)]
        assert rows.modality == "image"
        for row in range(0, len(rows), 7):
            image, rank = rows.keys[row].split("#")
            embedding = images.embeddings[images.keys.index(image)]
            np.testing.assert_array_equal(rows.embeddings[row], embedding)
            order = np.argsort(-(texts.embeddings @ embedding), kind="stable")
            assert rows.captions[row] == texts.captions[order[int(rank)]]
    record = train(pseudo_pairs=True, sigma=None).record
    assert (record["modality"], record["sigma"]) == ("image", 0)
    assert record["captions"] == {"train": 280, "val": 40}


def test_language_models_are_continued_and_put_behind_espers_mapper(
    language_model: Captioner, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model.save(tmp_path / "lm")
    more = train(start=tmp_path / "lm", sigma=None)
    assert (more.is_language_model, more.record["training"]["contrastive_margin"]) == (True, 0.5)
    fresh = train(unconditional=True, sigma=None)
    assert fresh.record["changes"] == ["prefix_length=0", "contrastive_margin=0.5", "batch_size=32"]

    encoder = counting_encoder(ANIMALS)
    monkeypatch.setattr(
        "c3tools.captioning.train_captioner.load_text_encoder", lambda *_, **__: encoder
    )
    esper = train(esper=True, start=tmp_path / "lm", sigma=None, set=[]).record
    assert (esper["monitor"], esper["captions"]) == ("reward", {"train": 56, "val": 8})
    assert (esper["sigma"], esper["modality"], esper["training"]["batch_size"]) == (0, "image", 128)


def test_settings_that_contradict_each_other_are_refused(
    captioner: Captioner, language_model: Captioner, train: Any, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "texts")
    language_model.save(tmp_path / "lm")
    texts_store(tmp_path / "other", ["a dog", "a cat"] * 5, {"name": "other-model"}, dim=32)
    texts_store(tmp_path / "one", ["a dog"], dim=4)
    texts_store(tmp_path / "empty", ["", "...", "\ue000", "!?"] * 5)
    contradictions: Any = {
        "toy-model .*other-model": {"start": "texts", "store": "other"},
        "--from": {"start": "texts", "sigma": 0.1},
        "--from.*": {"start": "texts", "pairs": 0.5, "set": ["width=48"]},
        "lm": {"start": "lm", "pairs": 0.5},
        "c3-lm": {"esper": True, "set": []},
        "other-model": {"esper": True, "start": "lm", "set": [], "store": "other"},
        "sigma": {"pipeline": preset("c1"), "sigma": 0.1},
        "lafite": {"preset": "lafite", "sigma": 0.2},
        "--pairs .* 0": {"pairs": 0},
        "--pairs .* 1.5": {"pairs": 1.5},
        "--train-fraction .* 1.5": {"train_fraction": 1.5},
        "image": {"pairs": 0.5, "store": "other"},
        "1 and 0": {"store": "one"},
        "0 and 0": {"store": "empty"},
    }
    for named, changes in contradictions.items():
        places = {
            name: tmp_path / value for name, value in changes.items() if name in ("start", "store")
        }
        with pytest.raises(C3Error, match=named):
            train("new", **{"sigma": None, **changes, **places})
        assert not (tmp_path / "new").exists()


def test_settings_are_changed_by_name_and_a_small_corpus_gets_more_epochs_and_stops_early() -> None:
    # 800: 13 steps an epoch
    found = [load_size("tiny", captions=count).training for count in (30_000, 800, 64)]
    found.append(load_size("tiny", captions=640, epochs=7, patience=2).training)
    found.append(load_size("tiny", ["epochs=3", "patience=20"], captions=640).training)
    assert [(one.epochs, one.patience) for one in found] == [
        (8, 0),
        (47, 5),
        (60, 5),
        (7, 2),
        (3, 20),
    ]
    # 256 does not go with 3 heads
    changed = load_size("tiny", ["width=256", "heads=4", "word_dropout=0.15"])
    tiny: Any = SIZES["tiny"]
    assert changed == replace(
        tiny, width=256, heads=4, training=replace(tiny.training, word_dropout=0.15)
    )
    for wrong, named in {
        "training=1": "training=1",
        "layers=two": "layers .*'two'",
        "layers=1001": "1,000 .*1,001",
        "decay=steps": "'steps'",
        "heads=5": "192 .* 5",
        "word_dropout=1": "word_dropout .*1",
        "learning_rate=0": "learning_rate .*0",
        "warmup=2": "warmup .*2",
        "learning_rate=1e400": "learning_rate .*inf",
        "beta2=1": "beta2 .*1",
    }.items():
        with pytest.raises(DecoderError, match=named):
            load_size("tiny", [wrong])
