from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c3tools.captioning import CaptionTokenizer
from c3tools.captioning.tokenizer import END_ID, PAD_ID, clean_caption
from c3tools.errors import DecoderError

CAPTIONS = ["A dog runs on the beach .", "A dog runs.", "two dogs run on the snow", "Ein Hund läuft"] * 3
TOKENIZER = CaptionTokenizer.train(CAPTIONS, 300)
CASED = CaptionTokenizer.train(CAPTIONS, 300, lowercase=False)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A dog runs on the beach .", "A dog runs on the beach"),
        ("  A dog ,  and a cat\n run. ", "A dog, and a cat run"),
        ("wait...", "wait..."),
        ("", ""),
        (".", ""),
    ],
)
def test_captions_are_cleaned(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean


@given(st.text(max_size=60))
def test_any_text_is_read_back(text: str) -> None:
    text = text.replace("\x85", " ")
    (ids,) = CASED.encode([text], max_tokens=1000)
    # NFC is the only thing that the vocabulary of a byte-level tokenizer may change
    assert CASED.decode(ids) == unicodedata.normalize("NFC", clean_caption(text)).strip()
    assert ids[-1] == END_ID
    assert PAD_ID not in ids


def test_case_is_folded_by_default_and_kept_on_request() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(["A DOG"], 40)[0]) == "a dog"
    assert CASED.decode(CASED.encode(["A DOG"], 40)[0]) == "A DOG"


def test_long_captions_are_cut_and_still_end() -> None:
    (ids,) = TOKENIZER.encode(["dog " * 50], max_tokens=8)
    assert len(ids) == 8
    assert ids[-1] == END_ID
    assert END_ID not in ids[:-1]


def test_decoding_stops_at_the_end() -> None:
    (ids,) = TOKENIZER.encode(["a dog"], 40)
    assert TOKENIZER.decode([*ids, *ids]) == "a dog"


def test_the_same_captions_give_the_same_vocabulary(tmp_path: Path) -> None:
    assert CaptionTokenizer.train(CAPTIONS, 300).to_json() == TOKENIZER.to_json()
    TOKENIZER.save(tmp_path / "tokenizer.json")
    assert CaptionTokenizer.load(tmp_path / "tokenizer.json").to_json() == TOKENIZER.to_json()


def test_frequent_words_become_tokens() -> None:
    (ids,) = TOKENIZER.encode(["a dog runs"], 40)
    assert len(ids) == 4
    assert TOKENIZER.vocab_size <= 300


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DecoderError, match=r"no tokenizer at .*tokenizer.json"):
        CaptionTokenizer.load(path)
    path.write_text(TOKENIZER.to_json()[:200])
    with pytest.raises(DecoderError, match="not a readable tokenizer"):
        CaptionTokenizer.load(path)
    path.write_text(TOKENIZER.to_json().replace("<pad>", "<nothing>"))
    with pytest.raises(DecoderError, match="does not reserve <pad>"):
        CaptionTokenizer.load(path)
