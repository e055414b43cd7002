from __future__ import annotations

import unicodedata

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from c3tools.captioning.tokenizer import END_ID, PAD_ID, CaptionTokenizer, TokenRows, clean_caption

CAPTIONS = [
    "A dog runs on the beach .",
    "A dog runs.",
    "two dogs run on the snow",
    "Ein Hund läuft",
] * 3
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
    assert (len(ids), TOKENIZER.decode([*ids, *ids]), TOKENIZER.vocab_size <= 300) == (
        4,
        "a dog runs",
        True,
    )
    assert CaptionTokenizer.train(CAPTIONS, 300).to_json() == TOKENIZER.to_json()
    rows = TokenRows(TOKENIZER, ["a dog runs", "a dog"], 40)
    assert rows.batch(np.array([1, 0]), PAD_ID).tolist() == [[*ids[:2], END_ID, PAD_ID], ids]


def test_every_row_occurs_once_in_an_epoch_and_epochs_and_seeds_differ_and_padding_is_rare() -> (
    None
):
    for n in (1, 63, 64, 65, 5000, 8000):
        rows, lengths = (
            TokenRows(TOKENIZER, [], 40),
            np.random.default_rng(n).integers(6, 30, size=n),
        )
        rows.lengths = lengths
        batches, *others = (
            rows.batches(64, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))
        )
        assert sorted(np.concatenate(batches).tolist()) == [*range(n)]
        assert (max(map(len, batches)), len(batches)) == (min(n, 64), -(-n // 64))
    computed = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 1 - lengths.sum() / computed < 0.03
    assert all({*other[0].tolist()} != {*batches[0].tolist()} for other in others)
