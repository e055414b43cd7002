from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from c3tools import Captioner, evaluate_captions
from c3tools.captioning.evaluate import store_references
from c3tools.errors import DecoderError, MetricError
from c3tools.metrics.captions import score_captions
from c3tools.store import Rows, Store
from tests.conftest import build_store

from .conftest import TOY, make_world

pytest.importorskip("pycocoevalcap")


@pytest.fixture(scope="module")
def store(captions_store: Store) -> Store:
    return captions_store


@pytest.fixture(scope="module")
def known(store: Store) -> dict[str, list[str]]:
    """What people wrote about the test images."""
    references = store_references(store)
    return {key: references[key] for key in store.load("image", "test").keys}


def test_the_test_images_are_captioned_and_scored(
    store: Store, captioner: Captioner, known: dict[str, list[str]]
) -> None:
    result = evaluate_captions(store, decoder=captioner, resamples=200)
    images = store.load("image", split="test")
    assert list(result.captions) == images.keys
    assert list(result.captions.values()) == captioner.caption(embeddings=images.embeddings)
    expected = score_captions(result.captions, known).corpus
    assert result.scores == pytest.approx(expected)
    for name, (low, high) in result.intervals.items():
        assert low <= expected[name] <= high
    table = result.table()
    assert table.columns == ["score", "%", "95 % interval"]
    assert [row[:2] for row in table.rows] == [[name, f"{value:.1f}"] for name, value in expected.items()]


def test_perfect_captions_against_references_of_the_store_in_memory_and_in_a_file(
    store: Store, known: dict[str, list[str]], tmp_path: Path
) -> None:
    perfect = {key: texts[0] for key, texts in known.items()}
    lines = (json.dumps({"image": f"{key}.png", "captions": texts}) + "\n" for key, texts in known.items())
    (tmp_path / "theirs.jsonl").write_text("".join(lines))
    for references in (None, known, tmp_path / "theirs.jsonl"):
        place = store if references is None else tmp_path / "no store is read"
        scores = evaluate_captions(place, captions=perfect, references=references, resamples=0).scores
        assert scores["BLEU-4"] == pytest.approx(100, abs=1e-4)
        assert scores["ROUGE-L"] == pytest.approx(100)


def test_two_sets_of_captions_are_compared(store: Store, known: dict[str, list[str]]) -> None:
    good = {key: texts[0] for key, texts in known.items()}
    result = evaluate_captions(store, captions=good, against=dict.fromkeys(known, "a photo of something"))
    cider = result.differences["CIDEr"]
    assert cider["difference"] == pytest.approx(result.scores["CIDEr"], abs=5)
    assert cider["p_value"] < 0.01
    assert result.to_dict()["differences"]["CIDEr"] == cider


def test_captions_in_the_store_are_of_the_image_that_they_name(captioner: Captioner, tmp_path: Path) -> None:
    rows = make_world().images.select(np.arange(3))
    images = Rows.of("image", ["a/1", "a/2", "b/1"], rows.embeddings, split=["test", "test", "train"])
    columns = {"caption": ["a dog", "a cat"], "image_key": ["a/2", "b/1"], "split": ["test", "train"]}
    texts = Rows.of("text", ["a/2#0", "b/1#0"], rows.embeddings[1:], **columns)
    store = build_store(tmp_path / "c3-store", images, texts, model=TOY)
    result = evaluate_captions(store, decoder=captioner, resamples=0)
    assert (list(result.captions), result.left_out) == (["a/2"], ["a/1"])


def test_references_may_name_the_images_of_the_store_differently(
    store: Store, captioner: Captioner, known: dict[str, list[str]], tmp_path: Path
) -> None:
    named = list(known)
    lines = (json.dumps({"image": f"val/{key}.jpg", "captions": known[key]}) + "\n" for key in named[3:])
    (tmp_path / "theirs.jsonl").write_text("".join(lines))
    result = evaluate_captions(store, decoder=captioner, references=tmp_path / "theirs.jsonl", resamples=0)
    assert (list(result.captions), result.left_out) == (named[3:], named[:3])
    assert named[0] in result.notes[0]
    with pytest.raises(MetricError, match="elsewhere"):
        evaluate_captions(store, captions={"elsewhere": "a dog", "image00": "a dog"})


def test_a_store_of_another_model_is_refused_with_both_names(captioner: Captioner, tmp_path: Path) -> None:
    images = Rows.of("image", ["a"], np.eye(1, 32), split=["test"])
    texts = Rows.of("text", ["a#0"], np.eye(1, 32), caption=["a dog"], image_key=["a"], split=["test"])
    build_store(tmp_path / "c3-store", images, texts, model={"name": "other-model"}, dtype="float32")
    with pytest.raises(DecoderError, match=r"toy-model .*other-model"):
        evaluate_captions(tmp_path / "c3-store", decoder=captioner)


@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_java_scores_are_added(store: Store, known: dict[str, list[str]]) -> None:
    perfect = {key: texts[0] for key, texts in known.items()}
    result = evaluate_captions(store, captions=perfect, meteor=True, spice=True, resamples=20)
    assert result.scores["METEOR"] == pytest.approx(100, abs=1)
    assert "METEOR" in [row[0] for row in result.table().rows]
