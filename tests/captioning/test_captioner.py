from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c3tools.captioning import Captioner, GenerationConfig
from c3tools.errors import DecoderError

from .conftest import DIM, TOY, make_world


def test_a_saved_captioner_writes_the_same_captions(captioner: Captioner, tmp_path: Path) -> None:
    images = make_world().images.embeddings
    captioner.save(tmp_path / "decoder")
    loaded = Captioner.load(tmp_path / "decoder")
    assert loaded.caption(embeddings=images) == captioner.caption(embeddings=images)
    beams = GenerationConfig("beam", beams=3)
    assert loaded.caption(embeddings=images, generation=beams) == captioner.caption(embeddings=images, generation=beams)
    assert loaded.record == captioner.record
    assert loaded.decoder.config == captioner.decoder.config
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


def test_weights_saved_as_float16_take_half_the_space_and_are_read_as_float32(
    captioner: Captioner, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "whole")
    captioner.save(tmp_path / "half", dtype="float16")
    whole, half = ((tmp_path / name / "weights.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.55 * whole
    loaded = Captioner.load(tmp_path / "half")
    for name, own in captioner.decoder.state_dict().items():
        torch.testing.assert_close(loaded.decoder.state_dict()[name], own.half().float(), rtol=0, atol=0)
    again = Captioner.load(tmp_path / "again")
    assert again.fingerprint() == loaded.fingerprint() != captioner.fingerprint()
    images = make_world().images.embeddings
    same = sum(a == b for a, b in zip(*(c.caption(embeddings=images) for c in (captioner, loaded)), strict=True))
    assert same > 0.9 * len(images)
    with pytest.raises(DecoderError, match="cannot be saved as 'int8'"):
        captioner.save(tmp_path / "other", dtype="int8")


def test_embeddings_are_rounded_as_a_store_does(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_world().images.embeddings
    seen = []
    transform = captioner.pipeline.transform

    def spy(x: np.ndarray, **options: Any) -> np.ndarray:
        seen.append(x)
        return transform(x, **options)

    monkeypatch.setattr(captioner.pipeline, "transform", spy)
    captioner.caption(embeddings=images)
    assert np.array_equal(seen[0], images.astype(np.float16).astype(np.float32))
    captioner.caption(embeddings=images * 1e5)  # float16 has no such numbers
    assert np.array_equal(seen[1], images * np.float32(1e5))


def test_inference_adds_no_noise(captioner: Captioner) -> None:
    images = make_world().images.embeddings
    assert captioner.pipeline.noisy
    assert captioner.caption(embeddings=images) == captioner.caption(embeddings=images)
    assert captioner.caption(embeddings=images[:0]) == []


def test_another_model_and_another_dimension_are_refused_with_both_named(captioner: Captioner) -> None:
    captioner.check_model(TOY, DIM)
    captioner.check_model(None, DIM)
    captioner.check_model({"name": "toy-model"}, DIM)  # no hash to compare: the name decides
    with pytest.raises(
        DecoderError, match=r"of the model toy-model \(111111111111\), but these embeddings of other \(000000000000\)"
    ):
        captioner.check_model({"name": "other", "weights_sha256": "0" * 64}, DIM)
    with pytest.raises(DecoderError, match=r"32 dimensions \(toy-model \(111111111111\)\), but these have 8"):
        captioner.caption(embeddings=np.ones((1, 8), np.float32))


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
    with pytest.raises(DecoderError, match=r"The previous decoder is kept at .*decoder\.previous"):
        Captioner.load(folder)
    Captioner.load(tmp_path / "decoder.previous")


def test_missing_damaged_and_newer_descriptions_are_said(captioner: Captioner, tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    with pytest.raises(DecoderError, match="no decoder at"):
        Captioner.load(folder)
    captioner.save(folder)
    path = folder / "decoder.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(DecoderError, match="format version 99, but this version of c3tools only reads up to 1"):
        Captioner.load(folder)
    path.write_text(json.dumps({**content, "config": {**content["config"], "width": 96}}))
    with pytest.raises(DecoderError, match="is damaged"):
        Captioner.load(folder)
    for change in ({"heads": False}, {"layers": 0}, {"layers": 10**300}):
        path.write_text(json.dumps({**content, "config": {**content["config"], **change}}))
        with pytest.raises(DecoderError, match=f"{next(iter(change))}.* not"):
            Captioner.load(folder)
    without_record = {name: value for name, value in content.items() if name != "record"}
    for damaged in ("{", "[" * 10_000, "[]", *map(json.dumps, ({**content, "files": None}, without_record))):
        path.write_text(damaged)
        with pytest.raises(DecoderError, match="is damaged"):
            Captioner.load(folder)


def test_a_failed_save_leaves_the_decoder_that_was_there(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "decoder"
    captioner.save(folder)
    before = (folder / "decoder.json").read_bytes()

    def fail() -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(captioner.tokenizer, "to_json", fail)
    with pytest.raises(OSError, match="No space left"):
        captioner.save(folder)
    assert (folder / "decoder.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]
