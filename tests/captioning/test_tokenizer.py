from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from c3tools.captioning.tokenizer import END_ID, PAD_ID, CaptionTokenizer, TokenRows, clean_caption

CAPTIONS = ["A dog runs on the beach .", "A dog runs.", "two dogs run on the snow", "Ein Hund läuft"] * 3
TOKENIZER = CaptionTokenizer.train(CAPTIONS, 300)


def test_captions_are_cleaned() -> None:
    clean = {
        "A dog runs on the beach .": "A dog runs on the beach",
        "  A dog ,  and a cat\n run. ": "A dog, and a cat run",
        "wait...": "wait...",
        "": "",
        ".": "",
    }
    assert {raw: clean_caption(raw) for raw in clean} == clean


@given(st.text(max_size=60))
def test_any_text_is_read_back(text: str) -> None:
    text = text.replace("\x85", " ")
    (ids,) = TOKENIZER.encode([text], max_tokens=1000)
    # NFC and case are the only things that the vocabulary of a byte-level tokenizer may change
    same = unicodedata.normalize("NFC", clean_caption(text))
    assert TOKENIZER.decode(ids) == normalizers.Lowercase().normalize_str(same).strip()
    assert (ids[-1], PAD_ID in ids) == (END_ID, False)


def test_frequent_words_become_tokens_and_decoding_stops_at_the_end() -> None:
    (ids,) = TOKENIZER.encode(["a dog runs"], 40)
    assert (len(ids), TOKENIZER.decode([*ids, *ids]), TOKENIZER.vocab_size <= 300) == (4, "a dog runs", True)
    assert CaptionTokenizer.train(CAPTIONS, 300).to_json() == TOKENIZER.to_json()
    rows = TokenRows(TOKENIZER, ["a dog runs", "a dog"], 40)
    assert rows.batch(np.array([1, 0]), PAD_ID).tolist() == [[*ids[:2], END_ID, PAD_ID], ids]


def rows_of(lengths: Iterable[int]) -> TokenRows:
    rows = TokenRows(TOKENIZER, [], 40)
    rows.lengths = np.array(list(lengths))
    return rows


@given(st.lists(st.integers(1, 40), min_size=1, max_size=300), st.integers(1, 50), st.integers(0, 5), st.integers(0, 3))
def test_every_row_occurs_once(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    batches = rows_of(lengths).batches(batch_size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == [*range(len(lengths))]
    assert max(map(len, batches)) <= batch_size
    assert len(batches) == -(-len(lengths) // batch_size)


def test_epochs_and_seeds_differ_and_padding_is_rare() -> None:
    lengths = np.random.default_rng(0).integers(6, 30, size=8000)
    rows = rows_of(lengths)
    batches = rows.batches(64, 0, 0)
    computed = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 1 - lengths.sum() / computed < 0.03
    for other in (rows.batches(64, 0, 1), rows.batches(64, 1, 0)):
        assert set(other[0].tolist()) != set(batches[0].tolist())
