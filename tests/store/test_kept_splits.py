"""Stores that name no row train: every reader splits the same rows by the hash of their items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3tools import Moments, Store, compute_means, export_store, gap_report, preset, read_features
from c3tools.corpus.splits import STANDARD, splits_by_hash
from c3tools.errors import DecoderError
from c3tools.store.reader import training_split
from tests.conftest import Messages, build_store
from tests.stores import make_vectors, two_texts_per_image

N = 60
NAMINGS = {
    "two names": ["base" if i % 2 else "modifier" for i in range(N)],
    "val alone": ["val2017"] * N,
    "with val": ["validation" if i % 9 == 0 else "unused" for i in range(N)],
}


@pytest.fixture(params=NAMINGS)
def naming(request: pytest.FixtureRequest) -> list[str]:
    return NAMINGS[request.param]


@pytest.fixture
def store(tmp_path: Path, naming: list[str]) -> Store:
    rows = two_texts_per_image(naming, *make_vectors(N))
    return build_store(tmp_path / "c3-store", *rows, part_rows={"image": 40, "text": 70})


def test_every_reader_gives_the_same_rows(store: Store, naming: list[str], tmp_path: Path) -> None:
    for modality in ("image", "text"):
        everything = store.load(modality)
        is_val = [naming[int(key[3:6])] == "validation" for key in everything.keys]
        by_hash = splits_by_hash([key[:6] for key in everything.keys])
        wanted = ["val" if held else split for held, split in zip(is_val, by_hash, strict=True)]
        assert everything.splits == wanted
        for split in STANDARD:
            keys = [key for key, own in zip(everything.keys, wanted, strict=True) if own == split]
            rows, found = store.load(modality, split), store.moments(modality, split)
            read = [
                key
                for batch in store.batches(modality, ["key"], split=split)
                for key in batch[0].to_pylist()
            ]
            assert keys and rows.keys == read == keys and store.count(modality, split) == len(keys)
            expected = Moments.from_rows(rows.embeddings)
            np.testing.assert_allclose(found.mean, expected.mean, atol=1e-12)
            np.testing.assert_allclose(found.scatter, expected.scatter, atol=1e-12)
        assert store.moments(modality).n == len(everything)
    train = store.count("image", "train")
    assert gap_report(store, split="train").to_dict()["modalities"]["image"]["n"] == train
    assert {(row["modality"], row["split"]): row["n"] for row in compute_means(store).rows}[
        "image", "train"
    ] == train
    assert preset("c3").fit(store).provenance["split_rule"] == store.split_note
    assert export_store(store, output=tmp_path / "out").rows["text"]["training"] == 2 * train
    said = Messages()
    learned, _ = read_features(store=store).inputs().train_and_val("train", ("image", "text"), said)
    assert set(learned.items) == set(store.load("image", "train").keys) and said.texts == [
        store.split_note
    ]


def test_rows_to_learn_from(store: Store, naming: list[str]) -> None:
    train, val, notes = training_split(store, "text", "train", error=DecoderError)
    assert train.keys == store.load("text", "train").keys and notes == [store.split_note]
    assert val.keys == store.load("text", "val").keys
    name = naming[1]
    # a split of the corpus: what is validated on is held out of it, and whole items are
    if name != "val2017":
        train, val, notes = training_split(store, "text", name, error=DecoderError)
        assert len(notes) == 2 and not set(train.items) & set(val.items)
        assert sorted([*train.keys, *val.keys]) == sorted(store.load("text", name).keys)
        assert store.moments("text", name).n == store.count("text", name) == len(train) + len(val)
    with pytest.raises(DecoderError, match="foo"):
        training_split(store, "text", "foo", error=DecoderError)
