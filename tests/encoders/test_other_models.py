"""SigLIP, SigLIP 2, MobileCLIP and a multilingual model, tiny and with random weights, from photos to a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import Captioner, Store, build_index, embed, gap_report, preset
from c3tools.captioning import CaptionDecoder, CaptionTokenizer, DecoderConfig
from c3tools.encoders import load_encoder, resolve_encoder
from tests.conftest import copy_photos

pytest.importorskip("transformers", reason="the extra hf is not installed")

from tests.encoders.other_models import DIM, KINDS, LENGTH, other_model

TEXTS = ["a dog", "a red bus in the snow", "a dog on the beach " * 10, "ein Hund am Strand"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_photos_and_texts_go_through_the_whole_chain(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = other_model(tmp_path / "model", kind)
    photos = copy_photos(tmp_path / "photos", 4)
    options: dict[str, Any] = {
        "backend": "torch",
        "precision": "fp32",
        "dtype": "float32",
    }  # a random decoder tells all bits apart
    store = embed(photos, "store", model=name, workers=0, **options)
    assert (store.count("image"), store.count("text"), store.info.dim) == (4, 20, DIM)
    np.testing.assert_allclose(np.linalg.norm(store.load("text").embeddings, axis=1), 1, atol=1e-3)
    values = gap_report(store).to_dict()
    assert values["modalities"]["image"]["n"] == 4
    assert values["gap"]["length"] > 0

    pipeline = preset("c3", sigma=0.1).fit(store)
    hit = build_index(store, preset="c1").search("a small dog", k=1, within="text")[0].hits[0]
    encoder = resolve_encoder(recorded=store.info.model, backend="torch", precision="fp32")
    texts = store.load("text")
    cosines = texts.embeddings @ encoder.encode_texts(["a small dog"])[0]
    assert hit.key == texts.keys[int(np.argmax(cosines))]

    tokenizer = CaptionTokenizer.train(texts.captions, 300)
    config = DecoderConfig(DIM, tokenizer.vocab_size, width=8, layers=1, heads=2, max_tokens=5)
    captioner = Captioner(CaptionDecoder(config).eval(), tokenizer, pipeline, {"model": store.info.model})
    paths = sorted(photos.glob("*.jpg"))
    images = store.load("image")
    order = [images.keys.index(path.stem) for path in paths]
    assert captioner.caption(paths, encoder=encoder) == captioner.caption(embeddings=images.embeddings[order])


def test_padding_is_part_of_what_the_text_tower_was_trained_on(kind: str, tmp_path: Path) -> None:
    encoder = load_encoder(other_model(tmp_path / "model", kind), backend="torch", precision="fp32")
    assert not encoder.trims_texts
    tokens = encoder.tokenise(TEXTS)
    assert tokens.shape == (len(TEXTS), LENGTH)
    together = encoder.encode_texts(TEXTS)
    alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert encoder.truncated(TEXTS, tokens) == 1
    assert encoder.truncated(TEXTS[:2], tokens[:2]) == 0


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


def test_a_store_of_one_kind_takes_no_embeddings_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from c3tools.errors import StoreError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("a dog\na red bus\n")
    options: dict[str, Any] = {"backend": "torch", "precision": "fp32"}
    first = embed("texts.txt", "store", model=other_model(tmp_path / "a", "siglip"), **options)
    assert isinstance(first, Store)
    with pytest.raises(StoreError, match="cannot be mixed"):
        embed("texts.txt", "store", model=other_model(tmp_path / "b", "mobileclip"), **options)
