from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from c3tools.arrays import Pixels
from c3tools.encoders import Encoder
from c3tools.errors import GeneratorError, MetricError
from c3tools.identity import ModelIdentity
from c3tools.metrics.significance import crossed_interval, share_interval
from c3tools.paper.image_scores import frechet_distance
from c3tools.paper.imaging.evaluate_images import ImageScorer, evaluate_images, score_interval
from c3tools.paper.imaging.generation import GeneratedImage, GeneratedImages
from c3tools.paper.imaging.photos import Photos, read_photos
from c3tools.store import Rows, Store
from tests.conftest import C3, build_store, done
from tests.golden import recorded

from .conftest import image_rows, mini_store, write_photos

NOISE = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


def photos_of(squares: Pixels) -> Photos:
    return Photos(image_rows([f"{i}.png" for i in range(len(squares))]), squares)


def write_made(folder: Path, squares: np.ndarray, texts: Rows | None = None) -> GeneratedImages:
    folder.mkdir()
    images = []
    for number, square in enumerate(squares):
        Image.fromarray(square).save(folder / f"{number}.png")
        asked, key = (
            (texts.captions[number], texts.items[number]) if texts else (f"a {number}", None)
        )
        images.append(GeneratedImage(f"{number}.png", asked, key))
    made = GeneratedImages(folder, images, "text", {})
    (folder / "images.json").write_text(json.dumps(made.to_dict()))
    return made


def distance(encoder: Encoder, *sets: np.ndarray) -> float:
    return frechet_distance(*map(encoder.encode_images, sets))[0]


def test_the_scores_are_those_of_the_features_and_real_photos_have_the_best(
    store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    texts, reference = (
        store.load("text", "test"),
        read_photos(store, store.load("image", "test"), 8),
    )
    result, copies = (
        evaluate_images(write_made(tmp_path / name, squares, texts), store, precision="fp32")
        for name, squares in (("noise", NOISE[:12]), ("copies", reference.pixels))
    )
    table = result.table()
    value = {**result.to_dict(), "table": [table.title, table.columns, *table.rows]}
    recorded(Path(__file__).parent / "golden/scores.json", value, rel=2e-3)
    assert result.scores["FD-c3-mini"] == pytest.approx(
        distance(encoder, NOISE[:12], reference.pixels), rel=1e-3
    )
    nearest = (encoder.encode_texts(texts.captions) @ encoder.encode_images(NOISE[:12]).T).argmax(
        axis=1
    )
    assert result.scores["recall@1-c3-mini"] == pytest.approx(
        100 * np.mean(nearest == np.arange(12)), abs=1e-3
    )
    assert copies.scores["FD-c3-mini"] == pytest.approx(0, abs=1e-6)
    assert (
        copies.scores["KID-c3-mini"]
        < copies.real["KID-c3-mini"] + 1e-6
        < result.scores["KID-c3-mini"]
    )
    assert copies.scores["recall@1-c3-mini"] == copies.real["recall@1-c3-mini"]


def test_a_folder_of_other_images_has_their_names_as_texts(tmp_path: Path) -> None:
    for name in ("a dog.png", "b.JPG"):
        Image.fromarray(NOISE[0]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert GeneratedImages.load(tmp_path).images == [
        GeneratedImage("a dog.png", "a dog"),
        GeneratedImage("b.JPG", "b"),
    ]


def test_images_and_the_photos_that_their_texts_are_of_vary_together(encoder: Encoder) -> None:
    rng, squares = np.random.default_rng(0), NOISE[:30]
    photos = photos_of(squares)
    scorer = ImageScorer(photos, None, [encoder], conditioning=encoder.identity)
    assert scorer.real(30)[1] == 15  # one half against the other
    moved = np.clip(squares + 40.0 + rng.integers(-20, 20, squares.shape), 0, 255).astype(np.uint8)
    made, keys = [*map(Image.fromarray, moved)], photos.rows.keys
    (scores, together), (_, alone) = (
        scorer.score(made, keys, case) for case in (keys, [*keys[:1], *[None] * 29])
    )
    for name, score in scores.items():
        depends_on_photos = name.startswith(("KID", "FD"))
        for values, count in ((together[name], 30), (alone[name], 59 if depends_on_photos else 30)):
            assert (values.shape, values.mean()) == ((count,), pytest.approx(score))
    # a share is the mean of its hits, and a distance from photos that the images resemble varies
    # less than the two do
    assert set(together["recall@1-c3-mini"].round(9)) <= {0, 100}
    errors = [stats.sem(values["FD-c3-mini"]) for values in (together, alone)]
    assert errors[0] < 0.9 * errors[1]


def test_recall_of_images_of_other_photos_has_the_interval_of_its_hits(encoder: Encoder) -> None:
    """30 scored photos that no image is of are no observations."""
    scorer = ImageScorer(photos_of(NOISE[:30]), None, [encoder], conditioning=encoder.identity)
    made = [*map(Image.fromarray, NOISE[30:34])]
    scores, values = scorer.score(made, ["a dog", "a cat", "a bus", "a tree"])
    name = "recall@1-c3-mini"
    hits = np.sort(values[name] / 100)
    assert hits.tolist() == pytest.approx([0.0] * 3 + [1.0])  # as drawn by the seed of the noise
    assert scores[name] == pytest.approx(25)
    low, high = share_interval(hits) or (0, 0)
    assert score_interval(name, values[name][None]) == pytest.approx((100 * low, 100 * high))
    assert high - low > 0.6  # Wilson's of 1 in 4 is 0.05 to 0.70


def test_intervals_of_scores_keep_to_what_is_possible() -> None:
    near, far = np.array([[-9.0, 3.0, 7.0, 1.0]]), np.array([[100.0] * 9 + [0.0], [100.0] * 10])
    low, high = crossed_interval(near) or (0, 0)
    assert low < 0
    assert score_interval("KID-x", near) == (low, high)
    assert score_interval("FD-x", near) == (0.0, high)
    first, last = share_interval(far[0] / 100) or (0, 0)
    assert score_interval("recall@1-x", far[:1]) == (100 * first, 100 * last)
    assert (score_interval("recall@1-x", far) or (0, 0))[1] == 100
    for nothing in (near[:, :2], np.full((2, 4), 7.0)):
        assert score_interval("FD-x", nothing) is None


def test_real_photos_are_of_a_split_that_nothing_is_trained_on(tmp_path: Path) -> None:
    store = build_store(
        tmp_path / "c3-store", image_rows(write_photos(tmp_path / "photos", 20)), model={}
    )
    for split, n, count in (("test", 3, 3), ("val", 9, 4), ("train", 9, 6), ("all", 3, 10)):
        assert (
            ImageScorer.of(store, 8, split, n, ["c3-mini"], conditioning=ModelIdentity()).real(n)[1]
            == count
        )


def test_the_floor_is_of_as_many_photos_of_other_splits_and_copies_are_found(
    encoder: Encoder,
) -> None:
    scorer = ImageScorer(
        photos_of(NOISE[20:32]), photos_of(NOISE[:12]), [encoder], conditioning=encoder.identity
    )
    scores, count = scorer.real(10)
    assert count == 10
    assert scores["FD-c3-mini"] == pytest.approx(
        distance(encoder, NOISE[:10], NOISE[20:32]), rel=1e-3
    )
    rng, exact = np.random.default_rng(1), NOISE[:11].astype(np.int64)
    exact[10] = rng.integers(0, 256, (8, 8, 3))  # of no photo
    noisy = (exact + rng.integers(-25, 26, exact.shape)).clip(0, 255)
    for made in (exact, noisy, exact[:, :, ::-1]):
        images = [*map(Image.fromarray, made.astype(np.uint8))]
        rows, _, copied = scorer.nearest(images, photos_of(NOISE[:12])) or pytest.fail()
        assert (rows[:10].tolist(), copied.tolist()) == ([*range(10)], [True] * 10 + [False])


def test_images_that_cannot_be_scored_are_one_clear_error(store: Store, tmp_path: Path) -> None:
    single = write_made(tmp_path / "single", NOISE[:1])
    two, odd, cut, outside = (
        write_made(tmp_path / name, NOISE[:2]) for name in ("two", "odd", "cut", "outside")
    )
    Image.new("RGB", (4, 4)).save(odd.folder / "1.png")
    (cut.folder / "1.png").write_bytes(b"cut")
    listed = {"modality": "text", "images": [{"file": "../two/0.png", "asked": "a"}]}
    (outside.folder / "images.json").write_text(json.dumps(listed))
    for made, split, error, named in (
        (odd, "test", MetricError, "4 x 4, 8 x 8"),
        (cut, "test", GeneratorError, "1.png"),
        (single, "test", MetricError, "two"),
        (two, "val", MetricError, r"'val'.* train \(12\), test \(12\)"),
        (outside.folder, "test", GeneratorError, "two/0.png"),
    ):
        with pytest.raises(error, match=named):
            evaluate_images(made, store, split=split)


def test_photos_that_are_gone_are_named_beside_the_scores(
    c3: C3, encoder: Encoder, tmp_path: Path
) -> None:
    store = mini_store(tmp_path / "c3-store", encoder)
    gone = Path(store.load("image", "test").column("path")[0])
    write_made(Path("made"), NOISE[:6])
    gone.unlink()
    said = done(c3("evaluate-images", "made", "--json", "scores.json")).stdout
    content = json.loads(Path("scores.json").read_text())
    assert "FD-c3-mini" in said
    assert "Images nearest" in said
    assert str(gone) in content["notes"][0]
    assert content["n"] == 6
    assert content["reference"] == 11
    for path in store.load("image", "train").column("path"):
        Path(path).unlink()
    unknown = evaluate_images("made", store, precision="fp32")
    assert (unknown.nearest, unknown.copied) == ([], None)
    assert "Copies of training photos were not searched for" in unknown.notes[1]
