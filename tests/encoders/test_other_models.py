"""SigLIP, SigLIP 2, MobileCLIP and a multilingual model, tiny and with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3tools.encoders import load_encoder

pytest.importorskip("transformers", reason="the extra hf is not installed")

from tests.encoders.other_models import KINDS, LENGTH, other_model

TEXTS = ["a dog", "a red bus in the snow", "a dog on the beach " * 10, "ein Hund am Strand"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_padding_is_part_of_what_the_text_tower_was_trained_on(kind: str, tmp_path: Path) -> None:
    encoder = load_encoder(other_model(tmp_path / "model", kind), backend="torch", precision="fp32")
    assert not encoder.trims_texts
    tokens = encoder.tokenise(TEXTS)
    assert tokens.shape == (len(TEXTS), LENGTH)
    together = encoder.encode_texts(TEXTS)
    alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert encoder.truncated(TEXTS, tokens).sum() == 1
    assert not encoder.truncated(TEXTS[:2], tokens[:2]).any()


def test_random_weights_need_no_file_and_no_network(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    def fetched(*arguments: object, **options: object) -> None:
        raise AssertionError("the weights of a text tower were fetched")

    monkeypatch.setattr(AutoModel, "from_pretrained", fetched)
    name = other_model(tmp_path / "model", kind, weights=False)
    one, same, other = (
        load_encoder(name, random_init=seed, backend="torch", precision="fp32").identity["weights_sha256"]
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_converted_towers_agree(kind: str, tmp_path: Path) -> None:
    name = other_model(tmp_path / "model", kind)
    exact, converted = (load_encoder(name, backend=one, precision="fp32") for one in ("torch", "openvino"))
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    np.testing.assert_allclose(converted.encode_texts(TEXTS), exact.encode_texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(converted.encode_images([pixels]), exact.encode_images([pixels]), atol=1e-5)
