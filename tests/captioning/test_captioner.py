from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from c3tools import Captioner
from c3tools.assets.paths import C3_MINI_CAPTIONER
from c3tools.errors import DecoderError
from c3tools.transforms import preset
from tests.conftest import Messages

from .conftest import DIM, TOY, make_world


def test_a_saved_captioner_writes_the_same_captions(captioner: Captioner, tmp_path: Path) -> None:
    images = make_world().images.embeddings
    captioner.save(tmp_path / "decoder")
    captioner.save(tmp_path / "half", dtype="float16")
    loaded, half = (Captioner.load(tmp_path / name) for name in ("decoder", "half"))
    for options in ({}, {"beams": 3}, {"top_p": 0.9, "seed": 2}):
        written = captioner.caption(embeddings=images, **options)
        assert loaded.caption(embeddings=images, **options) == written
        assert loaded.caption(embeddings=images[5:7], keys=["5", "6"], **options) == written[5:7]
    encoder: Any = SimpleNamespace(
        identity=TOY, dim=DIM, encode_images=lambda paths: images[: len(paths)]
    )
    assert captioner.caption(["a.jpg", "b.jpg"], encoder=encoder) == captioner.caption(
        embeddings=images[:2]
    )
    assert (loaded.record, loaded.decoder.config) == (captioner.record, captioner.decoder.config)
    assert loaded.fingerprint() == captioner.fingerprint() != half.fingerprint()
    assert captioner.caption(embeddings=images[:0]) == []
    sizes = [
        (tmp_path / name / "weights.safetensors").stat().st_size for name in ("decoder", "half")
    ]
    assert sizes[1] < 0.55 * sizes[0]
    own, halves = captioner.decoder.state_dict(), half.decoder.state_dict()
    assert all(torch.equal(halves[name], value.half().float()) for name, value in own.items())


def test_embeddings_are_rounded_as_a_store_does(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, spy = make_world().images.embeddings, Mock(wraps=captioner.pipeline.transform)
    monkeypatch.setattr(captioner.pipeline, "transform", spy)
    for scale in (1, 1e5):  # float16 has no such numbers
        captioner.caption(embeddings=images * np.float32(scale))
    seen = [call.args[0] for call in spy.call_args_list]
    np.testing.assert_array_equal(seen, [images.astype(np.float16), images * np.float32(1e5)])
    assert spy.call_args.kwargs["training"] is False  # no noise


def test_another_model_is_refused_with_both_named(captioner: Captioner) -> None:
    for same in (TOY, None, {"name": "toy-model"}):  # with no hash to compare the name decides
        captioner.check_model(same, DIM)
    encoder: Any = SimpleNamespace(identity={"name": "other", "weights_sha256": "0" * 64}, dim=DIM)
    with pytest.raises(DecoderError, match=r"toy-model \(1{12}\).* other \(0{12}\)"):
        captioner.caption(["a.jpg"], encoder=encoder)
    for images, embeddings in ((None, None), (["a.jpg"], np.ones((1, DIM), np.float32))):
        with pytest.raises(DecoderError, match="either images or embeddings"):
            captioner.caption(images, embeddings=embeddings)


def test_embeddings_of_another_space_are_refused_and_doubtful_ones_are_told(
    captioner: Captioner,
) -> None:
    world, told = make_world(gap=2.0), Messages()
    captioner = copy(captioner)
    captioner.pipeline = preset("c3", sigma=0.1).fit(world.moments)
    images, texts = world.images.embeddings, world.texts.embeddings
    captioner.check_embeddings(images, reporter=told)
    assert told.texts == []
    nan, zero = images.copy(), images.copy()
    nan[2], zero[3] = np.nan, 0
    refused = {
        r"1 of 80 .*\(the first is 2\).*NaN": nan,
        "first is 3": zero,
        "--modality text": texts,
    }
    for named, wrong in {**refused, "80": -images, "have 5": images[:, :5]}.items():
        with pytest.raises(DecoderError, match=named):
            captioner.caption(embeddings=wrong)
    for doubtful in (1.5 * images, [*images, texts[0]]):
        captioner.check_embeddings(np.array(doubtful), reporter=told)
    assert ["up to 1.5" in told.texts[0], "1 of 81" in told.texts[1]] == [True, True]


def test_a_card_says_what_was_learned_from(captioner: Captioner) -> None:
    rewarded = {"modality": "image", "monitor": "reward"}
    for record, learned in (
        ({}, "captions alone"),
        ({"modality": "image"}, "images and"),
        (rewarded, "images alone"),
    ):
        assert (
            f"learned from {learned}"
            in replace(captioner, record={**captioner.record, **record}).card().summary
        )


def test_a_decoder_is_found_by_folder_or_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Captioner.find() == Captioner.find("c3-mini") == C3_MINI_CAPTIONER
    for name in ("c3-decoder", "c3-mini"):
        Path(name).mkdir()
    assert [Captioner.find(), Captioner.find("c3-mini")] == [Path("c3-decoder"), Path("c3-mini")]
    assert Captioner.find("another") == Path("another")


def test_a_record_of_another_layout_is_refused(captioner: Captioner, tmp_path: Path) -> None:
    captioner.save(tmp_path)
    path = tmp_path / "decoder.json"
    content = json.loads(path.read_text())
    configs: Any = (
        {"config": {**content["config"], **own}}
        for own in ({"width": 96}, {"heads": False}, {"layers": 10**300})
    )
    for change in ({"format_version": 99}, {"files": None}, *configs):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DecoderError):
            Captioner.load(tmp_path)
