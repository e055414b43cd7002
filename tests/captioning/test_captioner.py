from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from c3tools import devices
from c3tools.captioning import Captioner, GenerationConfig, TrainingConfig, fit_captioner
from c3tools.errors import DecoderError
from c3tools.transforms import preset

from .conftest import DIM, make_world

MODEL = {"name": "toy", "weights_sha256": "ab" * 32}


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    world = make_world()
    train, val = world.split(held_out=20)
    return fit_captioner(
        train,
        val,
        preset("c3", sigma=0.05).fit(world.moments),
        size_name="tiny",
        training=TrainingConfig(epochs=1, batch_size=32),
        compute=devices.pick("cpu", "fp32"),
        record={"model": MODEL},
    )


def test_a_saved_captioner_writes_the_same_captions(captioner: Captioner, tmp_path: Path) -> None:
    images = np.stack(list(make_world().images.values()))
    captioner.save(tmp_path / "decoder")
    loaded = Captioner.load(tmp_path / "decoder")
    assert loaded.caption(images) == captioner.caption(images)
    beams = GenerationConfig("beam", beams=3)
    assert loaded.caption(images, generation=beams) == captioner.caption(images, generation=beams)
    assert loaded.record == captioner.record
    assert loaded.decoder.config == captioner.decoder.config
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


def test_inference_adds_no_noise(captioner: Captioner) -> None:
    images = np.stack(list(make_world().images.values()))
    assert captioner.pipeline.noisy
    assert captioner.caption(images) == captioner.caption(images)
    assert captioner.caption(images[:0]) == []


def test_another_model_and_another_dimension_are_refused_with_both_named(captioner: Captioner) -> None:
    captioner.check_model(MODEL, DIM)
    captioner.check_model(None, DIM)
    captioner.check_model({"name": "toy"}, DIM)  # no hash to compare: the name decides
    with pytest.raises(DecoderError, match=r"of toy \(abababababab\); these are of other \(000000000000\)"):
        captioner.check_model({"name": "other", "weights_sha256": "0" * 64}, DIM)
    with pytest.raises(DecoderError, match=r"32 dimensions \(toy \(abababababab\)\); these have 8"):
        captioner.caption(np.ones((1, 8), np.float32))


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "transform.safetensors"])
def test_a_file_cut_short_or_missing_is_named(captioner: Captioner, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "decoder"
    captioner.save(folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DecoderError, match=f"{name} is damaged or was cut short"):
        Captioner.load(folder)
    path.unlink()
    with pytest.raises(DecoderError, match=f"{name} is missing"):
        Captioner.load(folder)


def test_the_previous_decoder_is_offered(captioner: Captioner, tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    captioner.save(folder)
    captioner.save(folder)
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(DecoderError, match=r"The decoder before this one is at .*decoder\.previous"):
        Captioner.load(folder)
    Captioner.load(tmp_path / "decoder.previous")


def test_missing_damaged_and_newer_descriptions_are_said(captioner: Captioner, tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    with pytest.raises(DecoderError, match="no trained decoder at"):
        Captioner.load(folder)
    captioner.save(folder)
    path = folder / "decoder.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(DecoderError, match="format version 99; this c3tools reads up to 1"):
        Captioner.load(folder)
    path.write_text(json.dumps({**content, "config": {**content["config"], "width": 96}}))
    with pytest.raises(DecoderError, match="is damaged"):
        Captioner.load(folder)
    path.write_text("{")
    with pytest.raises(DecoderError, match="is damaged"):
        Captioner.load(folder)


def test_a_failed_save_leaves_the_decoder_that_was_there(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "decoder"
    captioner.save(folder)
    before = (folder / "decoder.json").read_bytes()

    def fail(path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(captioner.tokenizer, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        captioner.save(folder)
    assert (folder / "decoder.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]
