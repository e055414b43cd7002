"""The bundled model starts without open_clip, and is the model that open_clip loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
from c3tools.encoders.bundled import GRAPH_FILES, read_description
from c3tools.encoders.selection import describe
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from c3tools.assets.paths import C3_MINI, CAPTIONS, PHOTOS
from c3tools.encoders import load_encoder, load_network
from c3tools.encoders.loading import weights_sha256
from c3tools.encoders.tokenizer import ClipTokenizer
from c3tools.store import Store
from tests.conftest import loaded_by_command

ODD = [
    "", " ", "<start_of_text> a", "!<start_of_text>x", "A<END_OF_TEXT>", "naïve café ÀÉ", "日本語 テスト", "12345 3rd",
    "it's I'LL", "😀👩‍👩‍👧", "a\u00a0b\u2003c\x1cd", "&amp;lt;b&gt;", "word " * 100, "ﬁ ﬂ",
    "\x00\x07", "ǆ İ ß", "_ __init__ $%^",
]  # fmt: skip


@pytest.fixture(scope="module")
def simple() -> open_clip.SimpleTokenizer:
    return open_clip.get_tokenizer(f"local-dir:{C3_MINI}")


def test_the_description_is_that_of_the_model() -> None:
    network = load_network()
    expected = describe(network, weights_sha256(network.model))
    found = read_description()
    assert found is not None
    assert dict(found.identity) == dict(expected.identity)
    assert (found.trims_texts, found.end_token) == (expected.trims_texts, expected.end_token)
    own, theirs = found.preprocess, expected.preprocess
    assert (own.size, own.mean, own.std, own.config) == (theirs.size, theirs.mean, theirs.std, theirs.config)
    for path in sorted((PHOTOS / "images").iterdir())[:20]:
        np.testing.assert_array_equal(own.load(path)[0], theirs.load(path)[0])
    for size in ((3, 2), (1, 900), (352, 352), (2000, 31)):
        image = Image.effect_noise(size, 90).convert("RGB")
        np.testing.assert_array_equal(own(image), theirs(image))


def test_captions_and_odd_texts_have_the_tokens_of_open_clip(simple: open_clip.SimpleTokenizer) -> None:
    lines = CAPTIONS.read_text(encoding="utf-8").splitlines()[:400]
    texts = [*ODD, *(caption for line in lines for caption in json.loads(line)["captions"])]
    np.testing.assert_array_equal(ClipTokenizer(77)(texts), simple(texts).numpy())
    assert ClipTokenizer(77)([]).shape == (0, 77)


@given(st.text(max_size=40))
def test_any_text_has_the_tokens_of_open_clip(simple: open_clip.SimpleTokenizer, text: str) -> None:
    assert TOKENIZER.encode(text) == simple.encode(text)


TOKENIZER = ClipTokenizer(77)


@pytest.mark.parametrize("file", ["encoder.json", "open_clip_model.safetensors"])
def test_a_description_of_other_weights_is_ignored(tmp_path: Path, file: str) -> None:
    shutil.copytree(C3_MINI, tmp_path / "m")
    assert read_description(tmp_path / "m") is not None
    content = bytearray((tmp_path / "m" / file).read_bytes())
    content[len(content) // 2 if file.endswith("safetensors") else 0] ^= 1
    (tmp_path / "m" / file).write_bytes(content)
    assert read_description(tmp_path / "m") is None


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_the_graphs_are_the_model(backend: str) -> None:
    photos = sorted((PHOTOS / "images").iterdir())[:4]
    texts = ["a dog", "two people ride bicycles along a river in the evening sun"]
    expected, found = (load_encoder(backend=name, precision="fp32") for name in ("torch", backend))
    np.testing.assert_allclose(found.encode_images(photos), expected.encode_images(photos), atol=2e-6)
    np.testing.assert_allclose(found.encode_texts(texts), expected.encode_texts(texts), atol=2e-6)


def test_graphs_are_small_and_keep_their_weights_in_the_weights_file() -> None:
    assert sum((C3_MINI / name).stat().st_size for name in GRAPH_FILES) < 400_000
    description = read_description()
    assert description is not None
    assert description.graphs == C3_MINI


@pytest.mark.parametrize("change", ["missing", "damaged"])
def test_other_graphs_are_ignored(tmp_path: Path, change: str) -> None:
    shutil.copytree(C3_MINI, tmp_path / "m")
    graph = tmp_path / "m" / "text.onnx"
    graph.unlink() if change == "missing" else graph.write_bytes(graph.read_bytes()[:-1])
    description = read_description(tmp_path / "m")
    assert description is not None
    assert description.graphs is None


@pytest.mark.parametrize("backend", ["openvino", "onnx", "auto"])
def test_the_first_run_on_a_machine_starts_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("C3_CACHE", str(tmp_path / "cache"))
    (tmp_path / "one").mkdir()
    shutil.copy(next((PHOTOS / "images").iterdir()), tmp_path / "one" / "photo.jpg")
    (tmp_path / "one" / "photo.txt").write_text("a photo", encoding="utf-8")
    arguments = ["embed", str(tmp_path / "one"), "--store", str(tmp_path / "s"), "--backend", backend]
    assert loaded_by_command(arguments) & {"torch", "open_clip", "torchvision", "timm"} == set()
    store = Store.open(tmp_path / "s")
    assert (store.count("image"), store.count("text")) == (1, 1)
    # auto takes what is faster at the moment
    assert store.info.backend in (("openvino", "onnx") if backend == "auto" else (backend,))
    assert not (tmp_path / "cache" / "converted").exists()
