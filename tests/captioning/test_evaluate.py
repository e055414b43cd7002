from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import Captioner, evaluate_captions
from c3tools.errors import MetricError, StoreError, TransformError
from c3tools.identity import ModelIdentity
from c3tools.metrics.caption_scores import score_captions
from c3tools.metrics.clip_score import clip_scores
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from tests.conftest import build_store, make_store, write_jsonl

from .conftest import ANIMALS, TOY, World, counting_encoder

pytest.importorskip("pycocoevalcap")


@pytest.fixture(scope="module")
def known(captions_store: Store, world: World) -> Any:
    """What people wrote about the test images."""
    return {key: world.references[key] for key in captions_store.load("image", "test").keys}


@pytest.fixture(scope="module")
def perfect(known: Any) -> Any:
    return {key: texts[0] for key, texts in known.items()}


def test_the_test_images_are_captioned_and_scored(
    captions_store: Store, captioner: Captioner, known: Any
) -> None:
    result = evaluate_captions(captions_store, decoder=captioner, resamples=200)
    images = captions_store.load("image", split="test")
    assert result.captions == dict(
        zip(images.keys, captioner.caption(embeddings=images.embeddings), strict=True)
    )
    expected = score_captions(result.captions, known).corpus
    assert result.scores == pytest.approx(expected)
    assert all(low <= expected[name] <= high for name, (low, high) in result.intervals.items())
    assert [row[:2] for row in result.table().rows] == [
        [name, f"{value:.1f}"] for name, value in expected.items()
    ]


def test_empty_captions_of_a_decoder_are_counted(
    captions_store: Store, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Captioner, "write", lambda *_: [""] * 15 + ["a dog"])
    notes = evaluate_captions(captions_store, decoder=captioner, resamples=0).notes
    assert notes[0].startswith("15 of 16 captions are empty. ")


def references_file(folder: Path, known: Any, name: str) -> Path:
    """A file of references that names an image in its own way."""
    rows = ({"image": name.format(key), "captions": texts} for key, texts in known.items())
    return write_jsonl(folder / "theirs.jsonl", *rows)


def test_some_images_are_captioned_and_with_another_pipeline(
    captions_store: Store, captioner: Captioner
) -> None:
    score = partial(evaluate_captions, captions_store, decoder=captioner, resamples=0)
    every = score().captions
    first, *others = every
    few = score(limit=5).captions
    assert few == {key: every[key] for key in few}
    assert len(few) == 5
    assert [*few] != [*every][:5]  # drawn
    assert score(without=[first]).captions == {key: every[key] for key in others}
    with pytest.raises(MetricError, match="has a reference"):
        score(without=every)
    decap = preset("decap").fit(captions_store)
    expected = replace(captioner, pipeline=decap).caption(
        embeddings=captions_store.load("image", "test").embeddings
    )
    assert [*score(pipeline=decap).captions.values()] == expected != [*every.values()]


def test_two_sets_of_captions_are_compared_without_a_store(
    known: Any, perfect: Any, tmp_path: Path
) -> None:
    poor, theirs = (
        dict.fromkeys(perfect, "a photo of something"),
        references_file(tmp_path, known, "{}.png"),
    )
    result = evaluate_captions(tmp_path / "none", captions=perfect, references=theirs, against=poor)
    assert [result.scores[name] for name in ("BLEU-4", "ROUGE-L")] == pytest.approx(
        [100, 100], abs=1e-4
    )
    cider = result.differences["CIDEr"]
    assert cider.difference == pytest.approx(result.scores["CIDEr"], abs=5)
    assert cider.p_value < 0.01
    assert result.to_dict()["differences"]["CIDEr"] == asdict(cider)
    table = result.table()
    assert table.columns[3:] == ["difference", "p"]
    change = f"{cider.difference:+.1f} ({cider.low:+.1f} – {cider.high:+.1f})"
    assert table.rows[-1][3:] == [change, f"{cider.p_value:.3f}"]


def test_clip_scores_are_those_of_the_stored_images(
    captions_store: Store, perfect: Any, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = counting_encoder(ANIMALS)
    encoder.identity = captions_store.info.model
    monkeypatch.setattr(
        "c3tools.captioning.evaluate_captions.resolve_encoder", lambda *_, **__: encoder
    )
    # two and one
    known = {key: texts[rank:] for rank, (key, texts) in enumerate([*known.items()][:2])}
    captions = {key: perfect[key] for key in known}
    options: Any = {
        "captions": captions,
        "references": known,
        "metrics": ["CLIPScore"],
        "resamples": 0,
    }
    scores = evaluate_captions(captions_store, **options).scores
    images = captions_store.load("image")
    written, theirs = (
        encoder.encode_texts([f"A photo depicts {text}" for text in texts])
        for texts in (captions.values(), chain(*known.values()))
    )
    rows = images.embeddings[[images.keys.index(key) for key in known]]
    expected = clip_scores(rows, written, theirs, np.array([0, 0, 1]))
    assert [scores["CLIPScore"], scores["RefCLIPScore"]] == pytest.approx(
        [one.mean() for one in expected]
    )
    with pytest.raises(MetricError, match="elsewhere"):
        evaluate_captions(
            captions_store,
            captions={"elsewhere": "a"},
            references={"elsewhere": "a"},
            metrics=["CLIPScore"],
        )
    encoder.identity = ModelIdentity(name="other-model")
    with pytest.raises(StoreError, match=r"toy-model .*other-model"):
        evaluate_captions(captions_store, **options)


def test_captions_in_the_store_are_of_the_image_and_the_model_that_they_name(
    world: World, captioner: Captioner, tmp_path: Path
) -> None:
    rows = world.images.embeddings[:3]
    store = make_store(
        tmp_path / "c3-store", rows, rows[1:], owners=[1, 2], split="test", model=TOY
    )
    result = evaluate_captions(store, decoder=captioner, resamples=0)
    assert (list(result.captions), result.left_out) == (["image1", "image2"], ["image0"])
    with pytest.raises(TransformError, match=r"other-model.*toy-model"):
        evaluate_captions(
            store, decoder=replace(captioner, record={"model": {"name": "other-model"}})
        )


def test_references_may_name_the_images_of_the_store_differently(
    captions_store: Store, captioner: Captioner, known: Any, tmp_path: Path
) -> None:
    named = list(known)
    theirs = references_file(tmp_path, {key: known[key] for key in named[3:]}, "val/{}.jpg")
    result = evaluate_captions(captions_store, decoder=captioner, references=theirs, resamples=0)
    assert (list(result.captions), result.left_out) == (named[3:], named[:3])
    assert named[0] in result.notes[0]
    with pytest.raises(MetricError, match="elsewhere"):
        evaluate_captions(captions_store, captions={"elsewhere": "a dog", "nowhere": "a dog"})


def test_all_metrics_match_captions_with_images_in_the_same_way(
    captions_store: Store, perfect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = counting_encoder(ANIMALS)
    encoder.identity = captions_store.info.model
    monkeypatch.setattr(
        "c3tools.captioning.evaluate_captions.resolve_encoder", lambda *_, **__: encoder
    )
    options: Any = {"metrics": ["CIDEr", "CLIPScore"], "resamples": 0}
    expected = evaluate_captions(captions_store, captions=perfect, **options).scores
    with_suffix = {f"val/{key}.jpg": caption for key, caption in perfect.items()}
    assert evaluate_captions(captions_store, captions=with_suffix, **options).scores == expected


def test_coco_results_are_scored_by_all_metrics(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = counting_encoder(ANIMALS)
    encoder.identity = ModelIdentity(TOY)
    monkeypatch.setattr(
        "c3tools.captioning.evaluate_captions.resolve_encoder", lambda *_, **__: encoder
    )
    rows = world.images.embeddings[:3]
    images = Rows.of("image", ["000000000007", "000000000042", "000000000139"], rows)
    captions = ["a dog", "a cat", "a horse"]
    texts = Rows.of("text", ["0", "1", "2"], rows, caption=captions, image_key=images.keys)
    store = build_store(tmp_path / "c3-store", images, texts, model=TOY, dtype="float32")
    results = tmp_path / "results.json"
    results.write_text('[{"image_id": 42, "caption": "a cat"}, {"image_id": 7, "caption": "a"}]')
    scores = evaluate_captions(
        store, captions=results, metrics=["ROUGE-L", "CLIPScore"], resamples=0
    ).scores
    assert list(scores) == ["ROUGE-L", "CLIPScore", "RefCLIPScore"]


def test_scores_of_a_file_tell_how_many_images_they_are_of(
    captions_store: Store, perfect: Any, world: World
) -> None:
    train = captions_store.load("image", "train").keys[:4]
    captions = {**dict(list(perfect.items())[:9]), **dict.fromkeys(train, "a dog")}
    options: Any = {"metrics": ["ROUGE-L"], "resamples": 0}
    result = evaluate_captions(captions_store, captions={**captions, "x": "a dog"}, **options)
    assert result.notes == [
        "Scored captions of 13 of the 80 images with references: train (4), test (9).",
        "1 of 14 captions do not refer to an image with references, and are left out; the first "
        "is x.",
    ]
    assert (result.captions, result.left_out) == (captions, ["x"])
    alone = evaluate_captions(captions=perfect, references=world.references, **options)
    assert alone.notes == ["Scored captions of 16 of the 80 images with references."]


def test_other_captions_are_compared_by_their_image(perfect: Any, known: Any) -> None:
    options: Any = {"references": known, "metrics": ["ROUGE-L"], "resamples": 0}
    renamed = {f"{key}.jpg": perfect[key] for key in reversed(list(perfect))}
    result = evaluate_captions(captions=perfect, against={**renamed, "x": "a dog"}, **options)
    assert result.differences["ROUGE-L"].difference == 0
    assert result.notes[-1].startswith("1 caption of --against")
    del renamed["image61.jpg"]
    with pytest.raises(MetricError, match=r"lack 1 of the 16 scored images.*image61"):
        evaluate_captions(captions=perfect, against=renamed, **options)


@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_java_scores_are_added(captions_store: Store, perfect: Any) -> None:
    result = evaluate_captions(
        captions_store, captions=perfect, metrics=["METEOR", "SPICE"], resamples=20
    )
    assert result.scores["METEOR"] == pytest.approx(100, abs=0.1)
