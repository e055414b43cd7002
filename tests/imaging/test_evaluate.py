from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c3tools.encoders import Encoder
from c3tools.errors import GeneratorError, MetricError
from c3tools.imaging.evaluate import ImageScorer, evaluate_images, real_photos
from c3tools.imaging.generation import GeneratedImage, GeneratedImages
from c3tools.imaging.photos import Photos
from c3tools.metrics.images import frechet_distance
from c3tools.moments import Moments
from c3tools.store import Store
from tests.conftest import C3

from .conftest import mini_store
from .worlds import image_rows


def write_made(
    folder: Path, squares: list[np.ndarray], asked: Sequence[str], keys: list[str | None]
) -> GeneratedImages:
    folder.mkdir()
    images = []
    for number, (square, text, key) in enumerate(zip(squares, asked, keys, strict=True)):
        Image.fromarray(square).save(folder / f"{number}.png")
        images.append(GeneratedImage(f"{number}.png", text, key))
    made = GeneratedImages(folder, images, "text", {})
    (folder / "images.json").write_text(json.dumps(made.to_dict()))
    return made


def test_the_scores_are_those_of_the_features(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    squares = list(np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    texts = store.load("text", "test")
    made = write_made(tmp_path / "made", squares, texts.captions[:9], [None] * 9)
    result = evaluate_images(made, store, precision="fp32")
    reference, _ = real_photos(store, 8, "test", 9)
    assert (result.n, result.reference) == (9, len(reference)) == (9, 12)
    one, two = (Moments.from_rows(encoder.encode_images(list(s))) for s in (squares, reference.pixels))
    assert result.scores["FD-c3-mini"] == pytest.approx(frechet_distance(one, two), rel=1e-3)
    cosines = encoder.encode_texts(texts.captions[:9]) @ encoder.encode_images(squares).T
    hit = np.mean(cosines.argmax(axis=1) == np.arange(9))
    assert result.scores["recall@1-c3-mini"] == pytest.approx(100 * hit, abs=1e-3)
    assert 1 <= result.scores["IS-c3-mini-coco80"] <= 80
    assert any("c3-mini also encoded the texts" in note for note in result.notes)
    assert result.table().columns == ["score", "generated", "95 % interval", "6 real photos"]
    for name, (low, high) in result.intervals.items():
        assert low < result.scores[name] < high
    assert {"KID-c3-mini", "FD-c3-mini", "IS-c3-mini-coco80"} <= set(result.intervals)
    assert json.loads(json.dumps(result.to_dict()))["intervals"]["FD-c3-mini"] == list(result.intervals["FD-c3-mini"])


def test_images_and_the_photos_that_their_texts_are_of_vary_together(encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    photos = Photos(image_rows([f"{i}.png" for i in range(30)]), squares)
    scorer = ImageScorer(photos, None, [encoder], conditioning=encoder.identity)
    moved = np.clip(squares + 40.0 + rng.integers(-20, 20, squares.shape), 0, 255).astype(np.uint8)
    made = [Image.fromarray(square) for square in moved]
    texts = [f"photo {i}" for i in range(30)]
    scores, together = scorer.score(made, texts, photos.rows.keys)
    alone = scorer.score(made, texts)[1]
    other = scorer.score(made, texts, [*photos.rows.keys[:29], "of another photo"])[1]
    for name, score in scores.items():
        assert together[name].shape == (30,)
        assert (alone[name].shape, other[name].shape) == ((60,), (31,))
        for values in (together[name], alone[name], other[name]):
            assert values.mean() == pytest.approx(score)
    # a share is the mean of its hits, and a distance from photos that the images resemble varies less than the two do
    assert set(together["recall@1-c3-mini"].round(9)) <= {0, 100}
    errors = [values["FD-c3-mini"].std(ddof=1) / np.sqrt(len(values["FD-c3-mini"])) for values in (together, alone)]
    assert errors[0] < 0.9 * errors[1]


def test_real_photos_in_place_of_generated_ones_are_as_good_as_can_be(store: Store, tmp_path: Path) -> None:
    reference, others = real_photos(store, 8, "test", 12)
    assert others is None  # train and test alone
    texts = store.load("text", "test")
    noise = list(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    keys: list[str | None] = list(reference.rows.keys)
    copies = evaluate_images(
        write_made(tmp_path / "copies", list(reference.pixels), texts.captions, keys), store, precision="fp32"
    )
    random = evaluate_images(write_made(tmp_path / "noise", noise, texts.captions, keys), store, precision="fp32")
    assert copies.scores["FD-c3-mini"] == pytest.approx(0, abs=1e-6)
    assert copies.scores["KID-c3-mini"] < copies.real["KID-c3-mini"] + 1e-6 < random.scores["KID-c3-mini"]
    assert copies.scores["recall@1-c3-mini"] == copies.real["recall@1-c3-mini"]
    assert copies.real_n == 6  # half against half


def test_the_floor_is_of_as_many_photos_of_other_splits(encoder: Encoder) -> None:
    rows = image_rows([f"{i}.png" for i in range(40)])
    squares = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    everything = Photos(rows, squares)
    reference, others = everything.select(np.arange(20)), everything.select(np.arange(20, 40))
    scorer = ImageScorer(reference, others, [encoder], conditioning=encoder.identity)
    scores, count = scorer.real(15)
    assert count == 15
    one, two = (Moments.from_rows(encoder.encode_images(list(s))) for s in (squares[20:35], squares[:20]))
    assert scores["FD-c3-mini"] == pytest.approx(frechet_distance(one, two), rel=1e-3)


NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def test_images_that_cannot_be_scored_are_one_clear_error(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    texts: list[str] = ["a", "b"]
    two, odd, cut, outside = (
        write_made(tmp_path / name, list(NOISE[:2]), texts, [None, None]) for name in ("two", "odd", "cut", "outside")
    )
    single = write_made(tmp_path / "single", list(NOISE[:1]), ["a"], [None])
    Image.new("RGB", (4, 4)).save(odd.folder / "1.png")
    (cut.folder / "1.png").write_bytes(b"cut")
    listed = {"modality": "text", "images": [{"file": "../two/0.png", "asked": "a"}]}
    (outside.folder / "images.json").write_text(json.dumps(listed))
    for made, split, error, named in (
        (tmp_path / "empty", "test", GeneratorError, "empty"),
        (odd, "test", MetricError, "4 x 4, 8 x 8"),
        (cut, "test", GeneratorError, "1.png"),
        (single, "test", MetricError, "two"),
        (two, "val", MetricError, r"'val'.* train \(12\), test \(12\)"),
        (outside.folder, "test", GeneratorError, "two/0.png"),
    ):
        with pytest.raises(error, match=named):
            evaluate_images(made, store, split=split)


def test_photos_that_are_gone_are_named_beside_the_scores(encoder: Encoder, tmp_path: Path) -> None:
    store = mini_store(tmp_path / "c3-store", encoder)
    paths = [Path(path) for path in store.load("image", "test").column("path")]
    made = write_made(tmp_path / "made", list(NOISE[:2]), ["a", "b"], [None, None])
    paths[0].unlink()
    result = evaluate_images(made, store, precision="fp32")
    assert result.reference == 11
    assert any(str(paths[0]) in note for note in result.notes)
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(GeneratorError, match="12 photos"):
        evaluate_images(made, store)


def test_the_command_prints_scores_and_json(c3: C3, store: Store, tmp_path: Path) -> None:
    write_made(tmp_path / "made", list(NOISE), [f"a {i}" for i in range(6)], [None] * 6)
    result = c3("evaluate", "--images", "made", "--store", store.path, "--json", "scores.json")
    assert result.exit_code == 0, result.stderr
    assert "FD-c3-mini" in result.stdout
    content = json.loads((tmp_path / "scores.json").read_text())
    assert set(content["real"]) <= set(content["scores"])
    assert content["n"] == 6
