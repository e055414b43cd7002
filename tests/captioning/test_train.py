from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools import devices
from c3tools.captioning import (
    CaptionDecoder,
    Captioner,
    TrainingConfig,
    evaluate_captions,
    fit_captioner,
    load_size,
    train_captioner,
)
from c3tools.captioning.config import plan_training
from c3tools.captioning.train import training_captions
from c3tools.errors import C3Error, DecoderError, OutputError, StoreError, TransformError
from c3tools.identity import ModelIdentity
from c3tools.store import Rows, Shard, Store, StoreInfo, create_store, write_shard
from c3tools.transforms import preset
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import Messages, build_store

from .conftest import TOY, World, make_captions_store

FP32 = devices.pick("cpu", "fp32")
Train = Callable[..., Captioner]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_captions_store(tmp_path_factory.mktemp("captions") / "c3-store")[0]


@pytest.fixture
def train(store: Store, tmp_path: Path) -> Train:
    """Train a tiny decoder for one epoch in an empty folder; what is given changes that."""

    def run(output: str = "c3-decoder", **changes: Any) -> Captioner:
        options: dict[str, Any] = {
            "store": store,
            "size": "tiny",
            "epochs": 1,
            "sigma": 0.1,
            "precision": "fp32",
            "overwrite": True,
        } | changes
        return train_captioner(output=tmp_path / output, **options)

    return run


def texts_store(path: Path, captions: list[str], model: dict[str, Any] = TOY, dim: int = 8) -> Store:
    """A store of texts without images, all of the split train."""
    info = StoreInfo(ModelIdentity(model), dim, dtype="float32")
    create_store(path, info)
    keys = [f"t{i}" for i in range(len(captions))]
    columns: dict[str, list[Any]] = {
        "key": keys,
        "caption": captions,
        "image_key": [None] * len(keys),
        "split": ["train"] * len(keys),
    }
    rows = np.random.default_rng(0).normal(size=(len(keys), dim)).astype(np.float32)
    write_shard(path, info, Shard("text", 0, rows / np.linalg.norm(rows, axis=1, keepdims=True), columns))
    return Store.open(path)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_training_inputs_of_any_modality_get_the_noise_of_the_pipeline(
    world: World, monkeypatch: pytest.MonkeyPatch, modality: str
) -> None:
    train, val = (replace(part, modality=modality) for part in world.split(held_out=40))
    seen: list[np.ndarray] = []
    forward = CaptionDecoder.forward

    def spy(self: CaptionDecoder, embeddings: torch.Tensor, *rest: Any) -> torch.Tensor:
        if self.training:
            seen.append(embeddings.numpy().copy())
        return forward(self, embeddings, *rest)

    monkeypatch.setattr(CaptionDecoder, "forward", spy)
    training = TrainingConfig(epochs=1, batch_size=80)
    inputs = {}
    for sigma in (0.0, 0.5):
        seen.clear()
        pipeline = preset("c3", sigma=sigma).fit(world.moments)
        fit_captioner(train, val, pipeline, size="tiny", training=training, compute=FP32)
        inputs[sigma] = np.concatenate(seen)
    clean = pipeline.transform(train.embeddings, modality=modality, training=False)
    order = np.lexsort(clean.T)
    np.testing.assert_allclose(inputs[0.0][np.lexsort(inputs[0.0].T)], clean[order], atol=1e-6)
    assert np.abs(np.sort(inputs[0.5], axis=0) - np.sort(clean, axis=0)).max() > 0.1


def test_training_starts_from_the_weights_and_tokenizer_of_another(world: World) -> None:
    train, val = world.split(held_out=40)
    pipeline = preset("c3", sigma=0.02).fit(world.moments)
    training = TrainingConfig(epochs=6, batch_size=16, learning_rate=3e-3)
    first = fit_captioner(train, val, pipeline, size="tiny", training=training, compute=FP32)
    before = first.decoder.digest()
    short = TrainingConfig(epochs=1, batch_size=16, learning_rate=1e-5)
    second = fit_captioner(train, val, pipeline, training=short, compute=FP32, start=first)
    assert first.decoder.digest() == before  # a copy is trained
    assert second.tokenizer is first.tokenizer
    assert second.record["size"] == "tiny"
    assert second.record["best_val_loss"] == pytest.approx(first.record["best_val_loss"], abs=0.02)
    assert second.decoder.digest() != before
    # a rate that spoils everything: what training started from is kept
    wild = TrainingConfig(epochs=2, batch_size=16, learning_rate=3.0, clip_norm=0.0)
    third = fit_captioner(train, val, pipeline, training=wild, compute=FP32, start=first)
    assert third.decoder.digest() == before
    assert third.record["best_val_loss"] == pytest.approx(first.record["best_val_loss"])
    assert third.record["start_val_loss"] == third.record["best_val_loss"]
    assert first.record["start_val_loss"] is None
    assert min(epoch["val_loss"] for epoch in third.record["history"]) > third.record["best_val_loss"]


def test_nothing_to_learn_from_and_unequal_rows_are_errors() -> None:
    with pytest.raises(StoreError, match="There are 2 keys, but 1 values of caption"):
        Rows.of("text", ["a", "b"], np.zeros((2, 4)), caption=["a dog"])
    rows = Rows.of("text", [], np.ones((0, 4)), caption=[])
    with pytest.raises(DecoderError, match="there are 0 and 0"):
        fit_captioner(rows, rows, preset("c1").fit({}))


def test_a_decoder_trained_on_texts_captions_images(world: World) -> None:
    """Toy captions across a gap: with Collapse and Corrupt images get the right words, with neither they do not."""
    train, val = world.split(held_out=10)
    test, images = world.images.keys[-10:], world.images.embeddings[-10:]
    right = {}
    for name in ("c1", "c3"):
        pipeline = preset(name, sigma=0.02).fit(world.moments)
        captioner = fit_captioner(
            train,
            val,
            pipeline,
            size="tiny",
            training=TrainingConfig(epochs=14, batch_size=16, learning_rate=3e-3),
            compute=FP32,
        )
        assert captioner.record["best_val_loss"] == min(e["val_loss"] for e in captioner.record["history"])
        captions = captioner.caption(embeddings=images)
        right[name] = sum(
            word in caption for key, caption in zip(test, captions, strict=True) for word in _content(world, key)
        )
        assert all(len(caption.split()) <= 8 for caption in captions)  # the end of the text was learned
    assert right["c3"] >= 24  # of 30
    assert right["c3"] > right["c1"]


def _content(world: World, key: str) -> list[str]:
    _, colour, animal, _, _, place = world.references[key][0].rstrip(".").split()
    return [colour, animal, place]


def test_training_again_gives_the_same_decoder_and_keeps_the_previous_one(train: Train, tmp_path: Path) -> None:
    weights, previous = (tmp_path / name / "weights.safetensors" for name in ("c3-decoder", "c3-decoder.previous"))
    train()
    first = weights.read_bytes()
    train("again")
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == first
    train(seed=1)
    assert weights.read_bytes() != first
    assert previous.read_bytes() == first
    assert not list(tmp_path.glob(".c3-decoder*"))  # neither the run nor a temporary folder is left


def test_the_captioner_is_returned_as_it_is_written(train: Train, store: Store, tmp_path: Path) -> None:
    captioner = train(tensorboard=None)
    loaded = Captioner.load(tmp_path / "c3-decoder")
    assert loaded.record == captioner.record
    assert loaded.decoder.digest() == captioner.decoder.digest()
    images = store.load("image", "test").embeddings
    assert loaded.caption(embeddings=images) == captioner.caption(embeddings=images)


def test_a_pipeline_is_used_as_it_is_or_fitted_on_the_store(train: Train, store: Store) -> None:
    named = train(preset="c3", sigma=0.1)
    unfitted = train(pipeline=preset("c3", sigma=0.1), sigma=None)
    assert unfitted.decoder.digest() == named.decoder.digest()
    assert unfitted.record == {**named.record, "history": unfitted.record["history"]}
    moments = {name: store.moments(name, "val") for name in ("image", "text")}
    own = preset("c2-collapse").fit(moments)
    captioner = train(pipeline=own, sigma=None)
    assert captioner.pipeline is own
    assert (captioner.record["preset"], captioner.record["sigma"]) == ("c2-collapse", 0.0)
    with pytest.raises(DecoderError, match="its own steps and sigma"):
        train(pipeline=own, sigma=0.1)
    other = preset("c1").fit(moments, provenance={"model": {"name": "other"}})
    with pytest.raises(TransformError, match="of the model other"):
        train(pipeline=other, sigma=None)


def test_sigma_is_taken_from_the_captions_by_default(train: Train, store: Store) -> None:
    messages = Messages()
    expected, _ = sigma_by_rule("auto", store)
    captioner = train(sigma=None, reporter=messages)
    assert captioner.record["sigma"] == pytest.approx(expected)
    assert f"Sigma {expected:.4g}" in messages.texts[-1]
    assert train(sigma="auto").decoder.digest() == captioner.decoder.digest()


def test_without_a_val_split_whole_images_are_held_out(tmp_path: Path) -> None:
    store, _ = make_captions_store(tmp_path / "c3-store", splits=False)
    train, val, notes = training_captions(store)
    assert not set(train.items) & set(val.items)
    assert len(set(val.items)) == 8
    assert (len(train), len(val)) == (144, 16)
    assert notes == ["There is no val split, so 16 captions of 8 images are held out."]


def test_rows_that_are_learned_from_choose_no_checkpoint(tmp_path: Path) -> None:
    store, _ = make_captions_store(tmp_path / "c3-store")
    train, val, notes = training_captions(store, "all")
    assert not set(train.items) & set(val.items)
    assert set(train.items) | set(val.items) == set(store.load("text").items)
    assert notes == [f"All splits are trained on, so {len(val)} captions of {len(set(val.items))} images are held out."]


def test_sigma_does_not_depend_on_the_norm_of_the_embeddings(store: Store, tmp_path: Path) -> None:
    texts = store.load("text")
    longer = Rows(texts.modality, 10 * texts.embeddings, texts.table)
    raw = build_store(tmp_path / "raw", longer, model=TOY, dtype="float32", normalised=False)
    found = [sigma_by_rule("auto", each)[0] for each in (store, raw)]
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_a_preset_without_sigma_takes_and_records_none(train: Train) -> None:
    messages = Messages()
    record = train(preset="lafite", sigma=None, reporter=messages).record
    assert (record["sigma"], record["asked"]["sigma"]) == (0.0, None)
    assert not any("Sigma" in text for text in messages.texts)
    for name in ("lafite", "c1"):
        with pytest.raises(TransformError, match=f"The preset '{name}' has no sigma that could be chosen"):
            train(preset=name, sigma=0.2)


def test_no_noise_is_not_the_noise_of_the_rule(train: Train) -> None:
    assert train(sigma=0.0).record["asked"]["sigma"] == 0.0
    with pytest.raises(OutputError, match="sigma"):
        train(sigma=None, overwrite=False)


def rows_of(items: list[str]) -> Rows:
    return Rows.of("text", [f"t{i}" for i in range(len(items))], np.ones((len(items), 2)), image_key=items)


def test_what_is_held_out_depends_on_the_keys_alone() -> None:
    items = [f"k{i % 30}" for i in range(90)]
    held = rows_of(items).hold_out()[1]
    assert set(held.items) == set(rows_of(items[::-1]).hold_out()[1].items)
    assert len(set(held.items)) == 3
    assert len(rows_of(["a", "a"]).hold_out()[1]) == 0
    assert [len(part) for part in rows_of(["a", "b"]).hold_out()] == [1, 1]


def test_pairs_are_drawn_by_the_seed_and_more_hold_fewer() -> None:
    rows = rows_of([f"image{i // 2}" for i in range(200)])
    few, more, other = rows.sample(0.05, "a"), rows.sample(0.2, "a"), rows.sample(0.05, "b")
    assert (len(few), len(more)) == (10, 40)
    assert set(few.keys) < set(more.keys)
    assert few.keys != other.keys
    assert len(rows.sample(0.0001, "a")) == 2


def test_a_small_corpus_gets_more_epochs_and_stops_early() -> None:
    tiny = load_size("tiny")
    large = plan_training(tiny, 30_000)
    assert (large.epochs, large.patience) == (8, 0)
    small = plan_training(tiny, 640)  # 10 steps an epoch
    assert (small.epochs, small.patience) == (60, 5)
    asked = plan_training(tiny, 640, epochs=7, patience=2)
    assert (asked.epochs, asked.patience) == (7, 2)
    changes = ["epochs=3", "patience=20"]
    set_ones = plan_training(load_size("tiny", changes), 640, changes)
    assert (set_ones.epochs, set_ones.patience) == (3, 20)


def test_a_fraction_takes_whole_images(train: Train) -> None:
    messages = Messages()
    count = train(train_fraction=0.5, reporter=messages).record["captions"]["train"]
    assert 30 <= count <= 82
    assert count % 2 == 0
    assert messages.texts == [f"Using {count} captions of 50% of the images."]


def test_the_losses_are_drawn_and_written_for_tensorboard(train: Train, tmp_path: Path) -> None:
    from PIL import Image

    from c3tools.captioning.curves import training_curves

    pytest.importorskip("tensorboard")
    record = train(epochs=2, tensorboard=tmp_path / "board").record
    assert next(path.name for path in (tmp_path / "board").iterdir()).startswith("events.out.tfevents")
    with Image.open(tmp_path / "c3-decoder" / "curves.png") as picture:
        assert min(picture.size) > 400
    (axes,) = training_curves(record).axes
    trained, validated = axes.lines[0], axes.lines[1]
    assert [list(point) for point in zip(*map(np.asarray, trained.get_data()), strict=True)] == record["trace"]
    assert list(np.asarray(validated.get_ydata())) == [epoch["val_loss"] for epoch in record["history"]]
    legend = axes.get_legend()
    assert legend is not None
    assert "no noise" in legend.get_texts()[1].get_text()


def test_a_cross_modal_monitor_chooses_on_the_images_of_the_val_split(train: Train, store: Store) -> None:
    messages = Messages()
    captioner = train(monitor="cross-modal", reporter=messages)
    assert messages.texts == ["The checkpoint is chosen on 16 captions from the embeddings of their images."]
    record = captioner.record
    assert (record["monitor"], record["modality"]) == ("cross-modal", "text")
    images, texts = store.load("image"), store.load("text", split="val")
    rows = [images.keys.index(item) for item in texts.items]
    inputs = captioner.pipeline.transform(images.embeddings[rows], modality="image")
    tokens = captioner.tokenizer.encode(texts.captions, 40)
    total = 0.0
    for row, ids in zip(torch.from_numpy(inputs), tokens, strict=True):
        with torch.inference_mode():
            scores = captioner.decoder(row[None], torch.tensor([ids]))[0].double().log_softmax(-1)
        total -= float(scores[range(len(ids)), ids].sum())
    loss = total / sum(len(ids) for ids in tokens)
    assert record["best_val_loss"] == pytest.approx(loss, rel=1e-4)


def test_few_pairs_from_scratch_and_on_top_of_texts(
    captioner: Captioner, train: Train, world: World, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "texts")
    options: dict[str, Any] = {"pairs": 0.25, "epochs": 2, "sigma": None}
    messages = Messages()
    tuned = train("tuned", start=tmp_path / "texts", size="small", reporter=messages, **options)
    scratch = train("scratch", **options)
    noised = train("noised", **{**options, "sigma": 0.03})
    for record in (tuned.record, scratch.record):
        assert record["captions"] == {"train": 28, "val": 4}  # a quarter of 56 and of 8 images, two captions each
        assert (record["modality"], record["monitor"], record["pairs"]) == ("image", "cross-modal", 0.25)
    assert "28 captions of 14 images" in messages.texts[0]
    assert (tuned.record["from"], tuned.record["size"]) == (str(tmp_path / "texts"), "tiny")
    assert tuned.record["best_val_loss"] <= tuned.record["start_val_loss"]
    assert [c.record["sigma"] for c in (tuned, scratch, noised)] == [0.02, 0.0, 0.03]
    rates = [c.record["training"]["learning_rate"] for c in (tuned, scratch)]
    assert rates[0] == pytest.approx(0.1 * rates[1])
    assert tuned.record["best_val_loss"] < scratch.record["best_val_loss"]  # what texts taught is not lost
    # the transform, noise included, is that of the text-only run
    image = world.images.embeddings[:1]
    first, second = (c.pipeline.transform(image, modality="image") for c in (captioner, tuned))
    np.testing.assert_array_equal(first, second)
    assert captioner.pipeline.config() == tuned.pipeline.config()


def test_training_continues_with_another_preset(captioner: Captioner, train: Train, tmp_path: Path) -> None:
    captioner.save(tmp_path / "texts")
    options: dict[str, Any] = {"start": tmp_path / "texts", "epochs": 1, "sigma": 0.05}
    mixed = train("mixed", preset="c3-retrieval", **options)
    assert (mixed.record["preset"], mixed.record["sigma"]) == ("c3-retrieval", 0.05)
    assert mixed.record["size"] == captioner.record["size"]
    assert mixed.record["asked"]["preset"] == "c3-retrieval"
    assert mixed.record["best_val_loss"] <= mixed.record["start_val_loss"]
    # the weights are those of the first decoder, but what they read is another's: another loss to begin with
    assert mixed.record["start_val_loss"] != captioner.record["best_val_loss"]
    messages = Messages()
    train("auto", preset="c3", reporter=messages, **{**options, "sigma": None})
    assert any("3 times the spread of captions of one image" in text for text in messages.texts)


def test_settings_that_contradict_each_other_are_refused(captioner: Captioner, train: Train, tmp_path: Path) -> None:
    captioner.save(tmp_path / "texts")
    start = tmp_path / "texts"
    other = texts_store(tmp_path / "other", ["a dog", "a cat"] * 5, {"name": "other-model"}, dim=32)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"start": start, "store": other}, "of the model toy-model .*, but these embeddings of other-model"),
        ({"start": start, "sigma": 0.1}, "Sigma comes from the decoder given by --from"),
        ({"start": tmp_path / "nowhere"}, "no trained decoder at .*nowhere"),
        ({"start": start, "pairs": 0.5, "set": ["width=48"]}, "The architecture comes from the decoder"),
        ({"pairs": 0}, "--pairs must be above 0"),
        ({"pairs": 0.5, "store": other}, "no modality 'image'"),
        ({"monitor": "images"}, "There is no --monitor 'images'"),
        ({"monitor": "cross-modal", "store": other}, "no modality 'image'"),
        ({"train_fraction": 0}, "--train-fraction must be above 0"),
        ({"epochs": 0}, "epochs must be greater than 0"),
        (
            {"train_split": "restval"},
            r"no captions in the split 'restval'\. Its splits are train \(112\), val \(16\), test \(32\)",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(C3Error, match=message):
            train("new", **{"sigma": None, **changes})
        assert not (tmp_path / "new").exists()


def test_settings_are_changed_by_name(train: Train) -> None:
    changes = ["dropout=0.3", "prefix_length=5", "label_smoothing=0.1", "ema=0.9"]
    captioner = train(set=changes)
    assert captioner.record["changes"] == changes
    training, config = captioner.record["training"], captioner.decoder.config
    assert (training["label_smoothing"], training["ema"]) == (0.1, 0.9)
    assert (config.dropout, config.prefix_length) == (0.3, 5)  # type: ignore[attr-defined]


def test_a_language_model_is_used_like_the_built_in_decoder(train: Train, store: Store, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("pycocoevalcap")
    from c3tools.ablation import ablate

    from .language_models import save_tiny_gpt2

    save_tiny_gpt2(tmp_path / "gpt2", store.load("text").captions)
    paper: dict[str, Any] = {"size": "paper", "set": [f"model={tmp_path / 'gpt2'}", "learning_rate=1e-2"]}
    captioner = train(**paper)
    assert (captioner.record["size"], captioner.record["training"]["decay"]) == ("paper", "linear")
    assert evaluate_captions(store, decoder=tmp_path / "c3-decoder", resamples=0).scores["BLEU-1"] >= 0
    table = ablate(store, methods="C1,DeCap", seeds=1, epochs=1, precision="fp32", output=tmp_path / "table", **paper)
    assert [run.method for run in table.runs] == ["C1", "DeCap"]
    train("tuned", start=tmp_path / "c3-decoder", pairs=0.5, sigma=None)
    with pytest.raises(DecoderError, match="The language model 'no/where/at/all' cannot be loaded"):
        train("new", size="paper", set=["model=no/where/at/all"])


def test_captions_that_are_empty_or_in_no_known_script_are_left_out_and_listed(train: Train, tmp_path: Path) -> None:
    good = ["a dog on grass", "собака на траве", "草の上の犬", "كلب على العشب"] * 5
    store, messages = texts_store(tmp_path / "texts", ["", "\ue000\ue001", *good]), Messages()
    captioner = train(store=store, reporter=messages)
    assert any("captions are empty or contain no letters, and are left out: t0" in m for m in messages.texts)
    assert sum(captioner.record["captions"].values()) == 20
    assert captioner.record["notes"] == messages.texts


def test_a_corpus_without_a_single_word_and_one_caption_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match=r"there are 0 and 0\. .*contain no letters"):
        training_captions(texts_store(tmp_path / "empty", ["", "...", "\ue000", "!?"] * 5))
    with pytest.raises(DecoderError, match="needs captions for training and for validation, but there are 1 and 0"):
        training_captions(texts_store(tmp_path / "one", ["a dog"], dim=4))
