from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from c3tools.decoding import Captioner
from c3tools.geometry.sigma import auto_sigma
from c3tools.jobs.train_decoder import DecoderSettings, hold_out, plan, split_texts

from ..decoding.conftest import one_thread  # noqa: F401 - used by every test
from .captions_store import TOY, make_captions_store

C3 = Callable[..., Result]
QUICK = ("--size", "tiny", "--epochs", "2", "--precision", "fp32")


def test_a_decoder_is_written_with_all_that_it_needs(c3: C3, tmp_path: Path) -> None:
    store, world = make_captions_store(tmp_path / "c3-store")
    result = c3("train-decoder", "--sigma", "0.1", *QUICK, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "c3-decoder"
    names = {"decoder.json", "tokenizer.json", "transform.json", "transform.safetensors", "weights.safetensors"}
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
    assert (large.epochs, large.patience) == (5, 0)
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


def test_one_caption_alone_is_too_few(c3: C3, tmp_path: Path) -> None:
    from c3tools.store import Shard, StoreInfo, create_store, write_shard

    info = StoreInfo(dict(TOY), 4, dtype="float32")
    create_store(tmp_path / "c3-store", info)
    columns = {"key": ["a"], "caption": ["a dog"], "image_key": [None], "split": ["train"]}
    write_shard(tmp_path / "c3-store", info, Shard("text", 0, np.eye(1, 4, dtype=np.float32), columns))
    result = c3("train-decoder", "--sigma", "0.1")
    assert result.exit_code == 1
    assert "needs captions to learn from and others to validate on" in " ".join(result.stderr.split())
