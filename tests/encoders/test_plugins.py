"""Encoders of other libraries, which packages name as entry points."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from PIL import Image

import c3tools.plugins
from c3tools.devices import Compute
from c3tools.encoders import load_encoder
from c3tools.encoders.plugins import ModelKind, model_kinds
from c3tools.errors import EncoderError
from tests.stores import unit


class Sizes:
    """A model with nothing but what it needs: it knows the sizes of images, and the lengths of
    texts."""

    def __init__(self, rest: str, *, device: str, precision: str) -> None:
        self.identity, self.dim = {"rest": rest, "device": device, "asked": precision}, 3

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.array([[*image.size, 1] for image in images])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        short = self.dim - ("cut" in texts)
        return np.array(
            [[0.1 * len(text), np.nan if text == "nan" else 0, 0.2][:short] for text in texts]
        )


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        c3tools.plugins,
        "entry_points",
        lambda group: [EntryPoint("sizes", f"{__name__}:Sizes", group)],
    )


def test_a_model_needs_no_more_than_two_methods() -> None:
    encoder = load_encoder("sizes:a:b", device="cpu")
    assert encoder.identity == {
        "rest": "a:b",
        "device": "cpu",
        "asked": "auto",
        "name": "sizes:a:b",
    }
    assert (encoder.compute, encoder.backend.name, encoder.backend.ahead) == (
        Compute("cpu", "fp32"),
        "sizes",
        1,
    )
    assert (encoder.modalities, encoder.normalised, encoder.sampling_rate) == (
        ("image", "text"),
        True,
        0,
    )
    images = [np.zeros((20, 30, 3), np.uint8), np.zeros((600, 4096, 3), np.uint8)]
    expected = unit(np.array([[30.0, 20, 1], [2048, 300, 1]]))
    np.testing.assert_allclose(encoder.encode_images(images), expected, rtol=1e-6)
    texts = ["", "dog"]
    for encode in (encoder.encode_texts, encoder.encode_queries):
        np.testing.assert_allclose(
            encode(texts), unit(np.array([[0, 0, 0.2], [0.3, 0, 0.2]])), rtol=1e-6
        )
    assert not encoder.truncated(texts, encoder.tokenise(texts)).any()
    for many, sizes in ((["a"] * 300, [256, 44]), (["a" * 3277] * 5, [4, 1])):
        assert [
            len(rows) for rows, _ in encoder.token_batches(encoder.tokenise(many), None)
        ] == sizes
    assert ModelKind("sizes:…", "") in model_kinds()


def test_what_a_model_must_not_return_or_does_not_take_is_an_error() -> None:
    encoder = load_encoder("sizes:x")
    for text, shape in (("cut", r"\(1, 2\)"), ("nan", r"\(1, 3\)")):
        with pytest.raises(EncoderError, match=f"sizes.*{shape} for 1 inputs"):
            encoder.encode_texts([text])
    with pytest.raises(EncoderError, match="truncate_dim"):
        load_encoder("sizes:x", truncate_dim=2)


def test_a_model_that_takes_audio_needs_a_method_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sizes, "modalities", ("text", "audio"), raising=False)
    with pytest.raises(EncoderError, match=r"sizes lists audio.*no method encode_audio"):
        load_encoder("sizes:x")


def test_inputs_that_a_model_does_not_take_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sizes, "modalities", ("text",), raising=False)
    encoder = load_encoder("sizes:x")
    with pytest.raises(EncoderError, match="sizes:x takes text, but not image"):
        encoder.encode_images([np.zeros((2, 2, 3), np.uint8)])
    with pytest.raises(EncoderError, match="sizes:x takes text, but not audio"):
        encoder.encode_audio(np.zeros(9, np.float32))
