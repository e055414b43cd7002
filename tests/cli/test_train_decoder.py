from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from c3tools.captioning import Captioner
from c3tools.seeds import stable_hashes
from c3tools.store import Rows
from c3tools.store.means import load_means, save_means
from c3tools.transforms import Pipeline
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import C3, build_store, unit_rows

from ..captioning.conftest import TOY, make_captions_store


def test_a_decoder_is_written_with_all_that_it_needs_and_continued(c3: C3, tmp_path: Path) -> None:
    store, world = make_captions_store(tmp_path / "c3-store", splits=False)
    quick = ("--size", "tiny", "--epochs", "2", "--precision", "fp32", "--set", "dropout=0.3")
    result = c3("train-decoder", "--sigma", "0.1", *quick, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "c3-decoder"
    names = {"decoder.json", "tokenizer.json", "transform.json", "transform.safetensors", "weights.safetensors"}
    names.add("curves.png")
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["model"] == TOY
    assert (record["preset"], record["sigma"], record["seed"], record["dim"]) == ("c3", 0.1, 0, 32)
    assert record["captions"] == {"train": 144, "val": 16}
    assert record["changes"] == ["dropout=0.3"]
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2]
    assert record["best_val_loss"] == min(epoch["val_loss"] for epoch in record["history"])
    captioner = Captioner.load(folder)
    assert captioner.pipeline.name == "c3"
    assert captioner.to_dict() == record
    assert len(captioner.caption(embeddings=world.images.embeddings[:1])) == 1
    assert not list(tmp_path.glob(".c3-decoder*"))  # neither the run nor a temporary folder is left
    assert store.info.dim == 32
    assert "There is no val split" in result.stderr
    assert "(kept)" in result.stdout
    tuned = c3("train-decoder", "--from", "c3-decoder", "--pairs", "0.5", "--epochs", "1", "-o", "tuned")
    assert tuned.exit_code == 0, tuned.stderr
    assert "before" in tuned.stdout
    assert Captioner.load(tmp_path / "tuned").record["from"] == "c3-decoder"


def test_captions_that_are_retrieved_stay_with_the_decoder(c3: C3, tmp_path: Path) -> None:
    store, world = make_captions_store(tmp_path / "c3-store")
    options = ("--preset", "c3-retrieval", "--sigma", "0.1")
    trained = c3("train-decoder", *options, "--size", "tiny", "--epochs", "1", "--precision", "fp32")
    assert trained.exit_code == 0, trained.stderr
    captioner = Captioner.load(tmp_path / "c3-decoder")
    memory, items = (captioner.pipeline.steps[4].state[name] for name in ("memory", "items"))
    assert memory.shape == (112, 32)
    assert items.tolist() == stable_hashes(store.load("text", "train").items).tolist()
    np.save(tmp_path / "images.npy", world.images.embeddings)
    captioned = c3("caption", "--embeddings", "images.npy", "--json", "captions.json")
    assert captioned.exit_code == 0, captioned.stderr
    captions = [row["caption"] for row in json.loads((tmp_path / "captions.json").read_text())]
    assert captions == captioner.caption(embeddings=world.images.embeddings)
    exported = c3("export", *options)
    assert exported.exit_code == 0, exported.stderr
    np.testing.assert_array_equal(Pipeline.load(tmp_path / "c3-export").steps[4].state["memory"], memory)
    again = c3("train-decoder", "--from", "c3-decoder", "--pairs", "0.5", "--epochs", "1", "-o", "tuned")
    assert again.exit_code == 0, again.stderr


def test_the_cosine_of_a_few_pairs_gives_sigma(c3: C3, tmp_path: Path) -> None:
    store, _ = make_captions_store(tmp_path / "c3-store", noise=0.1)
    trained = c3("train-decoder", "--sigma", "pairs", "--size", "tiny", "--epochs", "1", "--precision", "fp32")
    assert trained.exit_code == 0, trained.stderr
    sigma, why = sigma_by_rule("pairs", store)
    assert why == f"Sigma {sigma:.4g}: the cosine of 64 images outside the test split with their 128 captions"
    assert f"{why}. Choose another with --sigma." in " ".join(trained.stderr.split())
    captioner = Captioner.load(tmp_path / "c3-decoder")
    assert captioner.record["sigma"] == captioner.pipeline.sigma == sigma
    assert captioner.record["asked"]["sigma"] == "pairs"
    assert captioner.pipeline.provenance["sigma"] == why


def test_texts_alone_have_no_pairs_to_take_sigma_from(c3: C3, tmp_path: Path) -> None:
    _, world = make_captions_store(tmp_path / "pairs")
    build_store(tmp_path / "c3-store", world.texts, model=TOY, dtype="float32")
    refused = c3("train-decoder", "--sigma", "pairs", "--size", "tiny")
    assert refused.exit_code == 1
    said = " ".join(refused.stderr.split())
    assert "sigma 'pairs' is derived from images with captions, but the store c3-store has no images." in said
    assert "use --sigma auto, which needs no pairs" in said
    assert "Traceback" not in said
    assert not (tmp_path / "c3-decoder").exists()


def test_texts_alone_need_the_moments_of_images_and_that_is_said_before_training(c3: C3, tmp_path: Path) -> None:
    pairs, world = make_captions_store(tmp_path / "pairs")
    store = build_store(tmp_path / "c3-store", world.texts, model=TOY, dtype="float32")
    note = "There are no image rows in the split 'train', so c3 is fitted on text rows alone"
    said = " ".join(c3("train-decoder", *QUICK).stderr.split())
    assert said.startswith(note)
    assert "load the moments of such embeddings before training: c3 means --load FILE" in said
    assert note not in c3("train-decoder", *QUICK, "--preset", "c2-corrupt", "-o", "c2").stderr
    save_means(pairs, tmp_path / "moments.safetensors")
    load_means(store, tmp_path / "moments.safetensors")  # of images, and the same as before of texts
    assert "with the same settings, but from other data" in c3("train-decoder", *QUICK).stderr
    assert note not in " ".join(c3("train-decoder", *QUICK, "--overwrite").stderr.split())
    assert Captioner.load(tmp_path / "c3-decoder").pipeline.knows("image")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sigma", "much"), "sigma must be a number of at least 0, 'auto' or 'pairs', not 'much'"),
        (("--sigma", "-1"), "sigma must be a number of at least 0"),
        (("--sigma", "nan"), "sigma must be a number of at least 0"),
        (("--train-fraction", "0"), "must be above 0"),
        (("--size", "huge"), "no decoder size 'huge'"),
        (("--preset", "c4"), "no preset 'c4'"),
        (
            ("--train-split", "restval"),
            "no captions in the split 'restval'. Its splits are train (112), val (16), test (32)",
        ),
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


QUICK = ("--size", "tiny", "--epochs", "1", "--precision", "fp32", "--sigma", "0.1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_finished_decoder_is_replaced_only_if_asked(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    folder = tmp_path / "c3-decoder"
    assert c3("train-decoder", *QUICK).exit_code == 0
    first = contents(folder)
    same = c3("train-decoder", *QUICK)
    assert same.exit_code == 0
    assert "c3-decoder already contains this decoder; there is nothing to do." in same.stderr
    assert contents(folder) == first | {"curves.png": (folder / "curves.png").read_bytes()}
    refused = c3("train-decoder", *QUICK, "--seed", "1")
    assert refused.exit_code == 1
    said = " ".join(refused.stderr.split())
    assert (
        "c3-decoder already contains a finished decoder: c3, sigma 0.1, size tiny, seed 0, trained on 112 captions"
        in said
    )
    assert "best validation loss" in said
    assert "It was made with seed 0, not 1." in said
    assert "with --overwrite; it is then kept as c3-decoder.previous" in said
    assert contents(folder)["decoder.json"] == first["decoder.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"c3-store", "c3-decoder"}
    replaced = c3("train-decoder", *QUICK, "--seed", "1", "--overwrite")
    assert replaced.exit_code == 0, replaced.stderr
    assert "The former decoder was kept as c3-decoder.previous." in replaced.stderr
    assert contents(tmp_path / "c3-decoder.previous")["weights.safetensors"] == first["weights.safetensors"]
    assert contents(folder)["weights.safetensors"] != first["weights.safetensors"]


def test_a_damaged_decoder_is_trained_again_if_asked(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    assert c3("train-decoder", *QUICK).exit_code == 0
    weights = tmp_path / "c3-decoder" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused = c3("train-decoder", *QUICK)
    assert refused.exit_code == 1
    assert "damaged or was cut short" in refused.stderr
    assert "c3 train-decoder --overwrite" in refused.stderr
    assert c3("train-decoder", *QUICK, "--overwrite").exit_code == 0
    assert weights.read_bytes() == whole


def test_the_same_settings_on_other_data_are_another_decoder(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    make_captions_store(tmp_path / "other", noise=0.05)
    assert c3("train-decoder", *QUICK).exit_code == 0
    refused = c3("train-decoder", *QUICK, "--store", "other")
    assert refused.exit_code == 1
    assert "It was made with the same settings, but from other data." in refused.stderr


def test_a_decoder_never_replaces_its_start_or_what_is_no_decoder(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    assert c3("train-decoder", *QUICK).exit_code == 0
    before = contents(tmp_path / "c3-decoder")
    for option in ([], ["--overwrite"]):
        own = c3("train-decoder", "--from", "c3-decoder", "--epochs", "1", *option)
        assert own.exit_code == 1
        assert "starts from c3-decoder, but the new decoder in c3-decoder would replace it" in own.stderr
        into_store = c3("train-decoder", *QUICK, "-o", "c3-store", *option)
        assert into_store.exit_code == 1
        assert "c3-store contains other files (" in into_store.stderr
    assert contents(tmp_path / "c3-decoder") == before
    assert (tmp_path / "c3-store" / "store.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_run_is_refused_and_the_first_is_saved_when_it_is_interrupted(
    c3: C3, tmp_path: Path, number: signal.Signals
) -> None:
    make_captions_store(tmp_path / "c3-store")
    code = "from c3tools.cli import main; main()"
    # so many epochs that it is still training when it is interrupted
    options = ["train-decoder", *QUICK, "--epochs", "5000"]
    command = [sys.executable, "-c", code, *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as first:
        try:
            states = tmp_path / ".c3-decoder.run"
            while not list(states.glob("state-*.safetensors")):
                assert first.poll() is None
                time.sleep(0.02)
            second = c3(*options)
            assert second.exit_code == 1
            assert f"Another run is writing to c3-decoder (process {first.pid} on " in second.stderr
            first.send_signal(number)
            _, stderr = first.communicate(timeout=120)
        finally:
            first.kill()
    assert first.returncode == 128 + number
    said = re.search(r"(Interrupted|Terminated)\. The training is saved at step ([\d,]+) of 10,000; run the", stderr)
    assert said is not None, stderr
    step = int(said[2].replace(",", ""))
    assert (states / f"state-{step:08d}.safetensors").is_file()
    assert not (states / ".lock").exists()


def test_a_store_without_captions_is_said_to_have_none(c3: C3, tmp_path: Path) -> None:
    rows = unit_rows(40, 8)
    keys = [f"t{i}" for i in range(40)]
    build_store(tmp_path / "texts", Rows.of("text", keys, rows, split=["train"] * 40))
    build_store(tmp_path / "images", Rows.of("image", keys, rows, split=["train"] * 40))
    for command in (["train-decoder"], ["ablate", "--seeds", "1"], ["evaluate"]):
        texts, images = (c3(*command, "--store", store) for store in ("texts", "images"))
        assert (texts.exit_code, images.exit_code) == (1, 1)
        assert "has no captions: the column caption is empty in all of its 40 text rows" in texts.stderr
        assert "The store images has no text rows, and so no captions; it only has image." in images.stderr
        for result in (texts, images):
            assert "contain no letters" not in result.stderr
            assert "c3 import --text FILE --meta FILE" in result.stderr
