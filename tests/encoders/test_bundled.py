"""The bundled model starts without open_clip, and is the model that open_clip loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from c3tools.assets.paths import C3_MINI, CAPTIONS, PHOTOS
from c3tools.encoders import load_encoder, load_network
from c3tools.encoders.bundled import read_description
from c3tools.encoders.loading import weights_sha256
from c3tools.encoders.selection import describe
from c3tools.encoders.tokenizer import ClipTokenizer

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
def test_a_converted_model_starts_without_open_clip(tmp_path: Path, backend: str) -> None:
    load_encoder(backend=backend, precision="fp32")  # is converted, if it was not yet
    shutil.copy(next((PHOTOS / "images").iterdir()), tmp_path)
    code = f"""
import sys
from c3tools import embed
store = embed({str(tmp_path)!r}, {str(tmp_path / "s")!r}, backend={backend!r}, precision="fp32", workers=0)
assert store.count("image") == 1
print([name for name in ("open_clip", "timm", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
