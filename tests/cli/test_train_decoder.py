from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from c3tools.captioning import Captioner
from c3tools.captioning.train import DecoderSettings, plan
from c3tools.captioning.training_rows import hold_out, share_of, split_texts
from c3tools.transforms.sigma import auto_sigma

from .captions_store import TOY, make_captions_store

C3 = Callable[..., Result]
QUICK = ("--size", "tiny", "--epochs", "2", "--precision", "fp32")


def test_a_decoder_is_written_with_all_that_it_needs(c3: C3, tmp_path: Path) -> None:
    store, world = make_captions_store(tmp_path / "c3-store")
    result = c3("train-decoder", "--sigma", "0.1", *QUICK, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "c3-decoder"
    names = {"decoder.json", "tokenizer.json", "transform.json", "transform.safetensors", "weights.safetensors"}
    names.add("curves.png")
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["model"] == TOY
    assert (record["preset"], record["sigma"], record["seed"], record["dim"]) == ("c3", 0.1, 0, 32)
    assert record["captions"] == {"train": 112, "val": 16}
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2]
    assert record["best_val_loss"] == min(epoch["val_loss"] for epoch in record["history"])
    captioner = Captioner.load(folder)
    assert captioner.pipeline.name == "c3"
    assert len(captioner.caption(np.stack([world.images["image00"]]))) == 1
    assert not list(tmp_path.glob(".c3-decoder*"))  # neither the run nor a temporary folder is left
    assert store.info.dim == 32


def test_training_again_gives_the_same_decoder_and_keeps_the_previous_one(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    assert c3("train-decoder", "--sigma", "0.1", *QUICK).exit_code == 0
    first = (tmp_path / "c3-decoder" / "weights.safetensors").read_bytes()
    assert c3("train-decoder", "--sigma", "0.1", *QUICK).exit_code == 0
    assert (tmp_path / "c3-decoder" / "weights.safetensors").read_bytes() == first
    assert c3("train-decoder", "--sigma", "0.1", *QUICK, "--seed", "1").exit_code == 0
    assert (tmp_path / "c3-decoder" / "weights.safetensors").read_bytes() != first
    assert (tmp_path / "c3-decoder.previous" / "weights.safetensors").read_bytes() == first


def test_sigma_is_taken_from_the_captions_by_default(c3: C3, tmp_path: Path) -> None:
    store, _ = make_captions_store(tmp_path / "c3-store")
    result = c3("train-decoder", *QUICK)
    assert result.exit_code == 0, result.stderr
    rows = store.load("text", split="train")
    owners = np.array([int(owner.removeprefix("image")) for owner in rows.column("image_key")])
    expected, _ = auto_sigma(rows.embeddings, owners, store.moments("text", "train").mean)
    assert Captioner.load(tmp_path / "c3-decoder").record["sigma"] == pytest.approx(expected)
    assert f"igma {expected:.4g}" in result.stderr


def test_without_a_val_split_whole_images_are_held_out(c3: C3, tmp_path: Path) -> None:
    store, _ = make_captions_store(tmp_path / "c3-store", splits=False)
    train, val, notes = split_texts(store)
    assert not set(train.owners) & set(val.owners)
    assert len(set(val.owners)) == 8
    assert (len(train.rows), len(val.rows)) == (144, 16)
    assert "16 captions of 8 images are held out" in notes[0]
    result = c3("train-decoder", "--sigma", "0.1", *QUICK)
    assert "There is no val split" in result.stderr


def test_what_is_held_out_depends_on_the_keys_alone() -> None:
    owners = [f"k{i % 30}" for i in range(90)]
    held = hold_out(owners)
    assert {o for o, h in zip(owners, held, strict=True) if h} == {
        o for o, h in zip(owners[::-1], hold_out(owners[::-1]), strict=True) if h
    }
    assert len({o for o, h in zip(owners, held, strict=True) if h}) == 3
    assert hold_out(["a", "a"]).tolist() == [False, False]
    assert sorted(hold_out(["a", "b"]).tolist()) == [False, True]


def test_a_small_corpus_gets_more_epochs_and_stops_early() -> None:
    large = plan(DecoderSettings(size="tiny"), 30_000)
    assert (large.epochs, large.patience) == (8, 0)
    small = plan(DecoderSettings(size="tiny"), 640)  # 10 steps an epoch
    assert (small.epochs, small.patience) == (60, 5)
    asked = plan(DecoderSettings(size="tiny", epochs=7, patience=2), 640)
    assert (asked.epochs, asked.patience) == (7, 2)


def test_a_fraction_takes_whole_images(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("train-decoder", "--sigma", "0.1", "--train-fraction", "0.5", *QUICK, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    count = json.loads((tmp_path / "run.json").read_text())["captions"]["train"]
    assert 30 <= count <= 82
    assert count % 2 == 0


def test_the_course_of_the_training_is_a_figure(c3: C3, tmp_path: Path) -> None:
    from PIL import Image

    from c3tools.captioning.curves import training_curves

    make_captions_store(tmp_path / "c3-store")
    assert c3("train-decoder", "--sigma", "0.1", *QUICK).exit_code == 0
    with Image.open(tmp_path / "c3-decoder" / "curves.png") as picture:
        assert min(picture.size) > 400
    record = Captioner.load(tmp_path / "c3-decoder").record
    (axes,) = training_curves(record).axes
    trained, validated = axes.lines[0], axes.lines[1]
    assert [list(point) for point in zip(*trained.get_data(), strict=True)] == record["trace"]
    assert list(validated.get_ydata()) == [epoch["val_loss"] for epoch in record["history"]]
    assert "no noise" in axes.get_legend().get_texts()[1].get_text()


def test_losses_are_written_for_tensorboard(c3: C3, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    make_captions_store(tmp_path / "c3-store")
    assert c3("train-decoder", "--sigma", "0.1", *QUICK, "--tensorboard", "board").exit_code == 0
    assert next(path.name for path in (tmp_path / "board").iterdir()).startswith("events.out.tfevents")


def test_a_cross_modal_monitor_chooses_on_the_images_of_the_val_split(c3: C3, tmp_path: Path) -> None:
    from c3tools.captioning.generation import log_likelihood

    store, _ = make_captions_store(tmp_path / "c3-store")
    result = c3("train-decoder", "--sigma", "0.1", *QUICK, "--monitor", "cross-modal", "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    assert "chosen on 16 captions from the embeddings of their images" in " ".join(result.stderr.split())
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["monitor"], record["modality"]) == ("cross-modal", "text")
    captioner = Captioner.load(tmp_path / "c3-decoder")
    images, texts = store.load("image"), store.load("text", split="val")
    rows = [images.keys.index(owner) for owner in texts.column("image_key")]
    inputs = captioner.pipeline.transform(images.embeddings[rows], modality="image")
    tokens = captioner.tokenizer.encode(texts.column("caption"), 40)
    loss = -log_likelihood(captioner.decoder, inputs, tokens).sum() / sum(len(ids) for ids in tokens)
    assert record["best_val_loss"] == pytest.approx(loss, rel=1e-4)


def test_few_pairs_from_scratch_and_on_top_of_texts(c3: C3, tmp_path: Path) -> None:
    store, world = make_captions_store(tmp_path / "c3-store")
    assert (
        c3("train-decoder", "--sigma", "0.05", "--size", "tiny", "--epochs", "8", "--precision", "fp32").exit_code == 0
    )
    before = (tmp_path / "c3-decoder" / "weights.safetensors").read_bytes()
    options = ("--pairs", "0.25", "--precision", "fp32", "--epochs", "2")
    tuned = c3("train-decoder", "--from", "c3-decoder", *options, "-o", "tuned", "--json", "tuned.json")
    assert tuned.exit_code == 0, tuned.stderr
    scratch = c3("train-decoder", "--size", "tiny", *options, "-o", "scratch", "--json", "scratch.json")
    assert scratch.exit_code == 0, scratch.stderr
    records = [json.loads((tmp_path / name).read_text()) for name in ("tuned.json", "scratch.json")]
    for record in records:
        assert record["captions"] == {"train": 28, "val": 4}  # a quarter of 56 and of 8 images, two captions each
        assert (record["modality"], record["monitor"], record["pairs"]) == ("image", "cross-modal", 0.25)
    assert "28 captions of 14 images" in " ".join(tuned.stderr.split())
    assert records[0]["from"] == "c3-decoder"
    assert "before" in tuned.stdout
    assert records[0]["best_val_loss"] <= records[0]["start_val_loss"]
    assert records[0]["sigma"] == 0.05
    assert records[1]["sigma"] == 0.0
    noised = c3("train-decoder", "--size", "tiny", *options, "--sigma", "0.03", "-o", "noised", "--json", "noised.json")
    assert noised.exit_code == 0, noised.stderr
    assert json.loads((tmp_path / "noised.json").read_text())["sigma"] == 0.03
    assert records[0]["training"]["learning_rate"] == pytest.approx(0.1 * records[1]["training"]["learning_rate"])
    assert records[0]["best_val_loss"] < records[1]["best_val_loss"]  # what texts taught is not lost
    assert (tmp_path / "c3-decoder" / "weights.safetensors").read_bytes() == before
    # the transform, noise included, is that of the text-only run
    first, second = Captioner.load(tmp_path / "c3-decoder"), Captioner.load(tmp_path / "tuned")
    image = np.stack([world.images["image00"]])
    np.testing.assert_array_equal(
        first.pipeline.transform(image, modality="image"), second.pipeline.transform(image, modality="image")
    )
    assert first.pipeline.config() == second.pipeline.config()
    assert store.count("image") == 80


def test_pairs_are_drawn_by_the_seed_and_more_hold_fewer() -> None:
    owners = [f"image{i // 2}" for i in range(200)]
    few, more, other = share_of(owners, 0.05, "a"), share_of(owners, 0.2, "a"), share_of(owners, 0.05, "b")
    assert (few.sum(), more.sum()) == (10, 40)
    assert not (few & ~more).any()
    assert (few != other).any()
    assert share_of(owners, 0.0001, "a").sum() == 2


def test_pairs_that_cannot_be_are_refused(c3: C3, tmp_path: Path) -> None:
    from c3tools.store import Shard, StoreInfo, create_store, write_shard

    store, world = make_captions_store(tmp_path / "c3-store")
    assert c3("train-decoder", "--sigma", "0.05", *QUICK).exit_code == 0
    other = StoreInfo({"name": "other-model", "weights_sha256": "3" * 64}, 32, dtype="float32")
    create_store(tmp_path / "other", other)
    texts = store.load("text")
    columns = {name: texts.column(name) for name in ("caption", "image_key", "split")} | {"key": texts.keys}
    write_shard(tmp_path / "other", other, Shard("text", 0, texts.embeddings, columns))
    for arguments, message in (
        (("--from", "c3-decoder", "--store", "other"), "of toy-model (111111111111); these are of other-model"),
        (("--from", "c3-decoder", "--sigma", "0.1"), "The transform, with its sigma, is that of the decoder"),
        (("--from", "c3-decoder", "--preset", "c3"), "The transform, with its sigma, is that of the decoder"),
        (("--from", "nowhere"), "no trained decoder at nowhere"),
        (("--from", "c3-decoder", "--pairs", "0.5", "--set", "width=48"), "The architecture is that of the decoder"),
        (("--pairs", "0"), "The share of pairs must be above 0"),
        (("--pairs", "0.5", "--store", "other"), "no modality 'image'"),
        (("--monitor", "images"), "There is no monitor 'images'"),
        (("--monitor", "cross-modal", "--sigma", "0.1", "--store", "other"), "no modality 'image'"),
    ):
        result = c3("train-decoder", *arguments, "-o", "new")
        assert result.exit_code == 1, arguments
        assert message in " ".join(result.stderr.split())
        assert not (tmp_path / "new").exists()
    assert len(world.images) == 80


def test_settings_are_changed_by_name(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    changes = ("--set", "dropout=0.3", "--set", "prefix_length=5", "--set", "label_smoothing=0.1", "--set", "ema=0.9")
    result = c3("train-decoder", "--sigma", "0.1", *QUICK, *changes, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["changes"] == ["dropout=0.3", "prefix_length=5", "label_smoothing=0.1", "ema=0.9"]
    assert (record["training"]["label_smoothing"], record["training"]["ema"]) == (0.1, 0.9)
    config = Captioner.load(tmp_path / "c3-decoder").decoder.config
    assert (config.dropout, config.prefix_length) == (0.3, 5)


def test_a_language_model_is_used_like_the_built_in_decoder(c3: C3, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from ..captioning.language_models import save_tiny_gpt2

    _, world = make_captions_store(tmp_path / "c3-store")
    save_tiny_gpt2(tmp_path / "gpt2", world.texts.captions)
    paper = ("--size", "paper", "--set", "model=gpt2", "--set", "learning_rate=1e-2", "--precision", "fp32")
    result = c3("train-decoder", "--sigma", "0.05", *paper, "--epochs", "2", "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["size"], record["training"]["decay"]) == ("paper", "linear")
    assert c3("evaluate", "--resamples", "0").exit_code == 0
    table = c3("ablate", "--methods", "C1,DeCap", "--seeds", "1", "--epochs", "1", *paper, "--json", "table.json")
    assert table.exit_code == 0, table.stderr
    assert [row["method"] for row in json.loads((tmp_path / "table.json").read_text())] == ["C1", "DeCap"]
    tuned = c3("train-decoder", "--from", "c3-decoder", "--pairs", "0.5", "--epochs", "1", "-o", "tuned")
    assert tuned.exit_code == 0, tuned.stderr
    wrong = c3("train-decoder", "--size", "paper", "--set", "model=no/where/at/all")
    assert wrong.exit_code == 1
    assert "The language model 'no/where/at/all' cannot be loaded" in " ".join(wrong.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sigma", "much"), "sigma is a number or 'auto', not 'much'"),
        (("--sigma", "-1"), "sigma must be 0 or more"),
        (("--sigma", "nan"), "sigma must be 0 or more"),
        (("--train-fraction", "0"), "must be above 0"),
        (("--size", "huge"), "no decoder size 'huge'"),
        (("--preset", "c4"), "no preset 'c4'"),
        (("--train-split", "restval"), "no captions in the split 'restval'; it has test: 32, train: 112, val: 16"),
        (("--store", "nowhere"), "no store at nowhere"),
    ],
)
def test_wrong_input_is_one_clear_error(c3: C3, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("train-decoder", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "c3-decoder").exists()


def write_texts(path: Path, captions: list[str]) -> None:
    from c3tools.store import Shard, StoreInfo, create_store, write_shard

    info = StoreInfo(dict(TOY), 8, dtype="float32")
    create_store(path, info)
    keys = [f"t{i}" for i in range(len(captions))]
    columns = {"key": keys, "caption": captions, "image_key": [None] * len(keys), "split": ["train"] * len(keys)}
    rows = np.random.default_rng(0).normal(size=(len(keys), 8)).astype(np.float32)
    write_shard(path, info, Shard("text", 0, rows / np.linalg.norm(rows, axis=1, keepdims=True), columns))


def test_captions_that_are_empty_or_in_no_known_script_are_left_out_and_listed(c3: C3, tmp_path: Path) -> None:
    good = ["a dog on grass", "собака на траве", "草の上の犬", "كلب على العشب"] * 5
    write_texts(tmp_path / "c3-store", ["", "\ue000\ue001", *good])
    result = c3("train-decoder", "--sigma", "0.1", *QUICK, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "captions are empty or hold no letter of any script, and are left out: t0" in said
    assert sum(json.loads((tmp_path / "run.json").read_text())["captions"].values()) == 20


def test_a_corpus_without_a_single_word_is_refused(c3: C3, tmp_path: Path) -> None:
    write_texts(tmp_path / "c3-store", ["", "...", "\ue000", "!?"] * 5)
    result = c3("train-decoder", "--sigma", "0.1")
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "has 0 and 0 of different images or texts" in message
    assert "hold no letter of any script" in message


def test_one_caption_alone_is_too_few(c3: C3, tmp_path: Path) -> None:
    from c3tools.store import Shard, StoreInfo, create_store, write_shard

    info = StoreInfo(dict(TOY), 4, dtype="float32")
    create_store(tmp_path / "c3-store", info)
    columns = {"key": ["a"], "caption": ["a dog"], "image_key": [None], "split": ["train"]}
    write_shard(tmp_path / "c3-store", info, Shard("text", 0, np.eye(1, 4, dtype=np.float32), columns))
    result = c3("train-decoder", "--sigma", "0.1")
    assert result.exit_code == 1
    assert "needs captions to learn from and others to validate on" in " ".join(result.stderr.split())
