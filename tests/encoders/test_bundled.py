"""The bundled model starts without open_clip, and is the model that open_clip loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from c3tools.assets.paths import C3_MINI, CAPTIONS, PHOTOS
from c3tools.encoders import load_network
from c3tools.encoders.clip_tokenizer import ClipTokenizer
from c3tools.encoders.loading import read_bundled
from c3tools.io.images import open_image
from tests.stores import one_byte_changed

ODD = [
    "", " ", "<start_of_text> a", "!<start_of_text>x", "A<END_OF_TEXT>", "naïve café ÀÉ",
    "日本語 テスト", "12345 3rd",
    "it's I'LL", "😀👩‍👩‍👧", "a\u00a0b\u2003c\x1cd", "&amp;lt;b&gt;", "word " * 100, "ﬁ ﬂ",
    "\x00\x07", "ǆ İ ß", "_ __init__ $%^",
]  # fmt: skip
TOKENIZER, SIMPLE = ClipTokenizer(77), open_clip.get_tokenizer(f"local-dir:{C3_MINI}")


def test_the_description_is_that_of_the_model() -> None:
    expected, found = load_network().describe(), read_bundled()
    assert found is not None
    preprocess = found.preprocess
    assert found.identity == expected.identity
    assert (found.trims_texts, found.end_token) == (expected.trims_texts, expected.end_token)
    assert preprocess.size == expected.preprocess.size
    assert preprocess.config == expected.preprocess.config
    photos = [open_image(path)[0] for path in sorted((PHOTOS / "images").iterdir())[:8]]
    sizes = (3, 2), (1, 900), (352, 352), (2000, 31)
    for image in (*photos, *(Image.effect_noise(size, 90).convert("RGB") for size in sizes)):
        np.testing.assert_array_equal(preprocess(image), expected.preprocess(image))
    assert sum((C3_MINI / name).stat().st_size for name in ("image.onnx", "text.onnx")) < 400_000


def test_captions_and_odd_texts_have_the_tokens_of_open_clip() -> None:
    lines = CAPTIONS.read_text(encoding="utf-8").splitlines()[:100]
    texts = [*ODD, *(caption for line in lines for caption in json.loads(line)["captions"])]
    np.testing.assert_array_equal(TOKENIZER(texts), SIMPLE(texts))
    for length in (3, 9):
        np.testing.assert_array_equal(TOKENIZER(texts, length), SIMPLE(texts, length))
    assert TOKENIZER([]).shape == (0, 77)
    assert type(load_network().tokenizer) is ClipTokenizer


def test_the_words_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.encoders.clip_tokenizer._MOST_KNOWN", 10)
    tokenizer = ClipTokenizer(77)
    texts = [f"a photo of number {number}" for number in range(30)]
    np.testing.assert_array_equal(tokenizer(texts), SIMPLE(texts))
    assert len(tokenizer._known) <= 10


@given(st.text(max_size=40))
def test_any_text_has_the_tokens_of_open_clip(text: str) -> None:
    assert TOKENIZER.encode(text) == SIMPLE.encode(text)


def test_a_description_of_other_files_is_ignored(tmp_path: Path) -> None:
    folder = shutil.copytree(C3_MINI, tmp_path / "m")
    for name in ("encoder.json", "open_clip_model.safetensors", "image.onnx", "text.onnx"):
        with one_byte_changed(folder / name, 0, 1):
            assert read_bundled(folder) is None
            (folder / name).unlink()
            assert read_bundled(folder) is None
        assert read_bundled(folder) is not None
