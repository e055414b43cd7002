"""What pipelines are fitted on and refuse; the rules for sigma and calibrated scores, each against
its formula."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from c3tools import Calibration, Moments, Pipeline, Store, preset
from c3tools.errors import TransformError
from c3tools.moments import save_moments
from c3tools.store.manifest import EXTERNAL_FILE
from c3tools.store.means import save_means
from c3tools.transforms import fitting
from c3tools.transforms.fitting import first_pairs
from c3tools.transforms.sigma import (
    MAX_SIBLING_COSINE,
    MIN_COSINE,
    MIN_SIBLING_COSINE,
    PUBLISHED,
    PUBLISHED_SIGMA,
    Side,
    caption_spread,
    pair_cosine,
    recommend,
    scaled_spread,
    sigma_by_rule,
)
from tests.conftest import make_store, unit_rows
from tests.golden import recorded
from tests.stores import assert_close, gap_store, make_vectors, unit

from .conftest import MOMENTS, ROWS, X, Y


def assert_means(pipeline: Pipeline, modality: str, rows: np.ndarray, atol: float = 1e-6) -> None:
    """The second step, of the preset ``c3`` the one of centring, takes the mean of these rows
    away."""
    assert_close(pipeline.steps[1].state[f"centre/{modality}"], rows.mean(axis=0), atol)


def test_a_store_gives_the_moments_of_its_train_split(store: Store) -> None:
    for place in (store, store.path):
        pipeline = preset("c3", sigma=0.1).fit(place)
        for modality in ("image", "text"):
            assert_means(
                pipeline,
                modality,
                store.load(modality, "train").embeddings.astype(np.float64),
                1e-12,
            )
        assert pipeline.provenance == {
            "model": store.info.model,
            "split": "train",
            "moments": {"image": "train", "text": "train"},
            "note": "The image mean of 60 rows is uncertain: 100 are recommended, or moments from "
            "another corpus (c3 means load FILE).",
            "n": {"image": 60, "text": 120},
        }


def test_rows_and_pairs_are_read_up_to_a_limit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts = (store.load(name, "train") for name in ("image", "text"))
    for max_rows in (7, 100, 1000):
        place = {key: row for row, key in enumerate(images.keys[:max_rows])}
        pairs = [
            (place[key], row) for row, key in enumerate(texts.column("image_key")) if key in place
        ][:max_rows]
        found = first_pairs(store, "train", max_rows).arrays()
        for got, rows, side in zip(found, (images, texts), (0, 1), strict=True):
            np.testing.assert_array_equal(got, rows.embeddings[[pair[side] for pair in pairs]])
        monkeypatch.setattr(fitting, "MAX_FIT_ROWS", max_rows)
        assert preset("ridge").fit(store).provenance["rows"] == {
            "image": len(pairs),
            "text": len(pairs),
        }


def test_arrays_of_any_norm_and_kind_are_moments_and_rows() -> None:
    lengths = np.random.default_rng(0).uniform(0.1, 20, (120, 1))
    pipeline = preset("c3").fit({"image": X * lengths, "text": Y * lengths})
    assert_means(pipeline, "image", X)
    expected = unit(X - X.mean(axis=0))
    tensors = torch.tensor(X, dtype=torch.bfloat16), torch.tensor(X, requires_grad=True)
    for rows, off in ((X.tolist(), 1e-5), (tensors[0], 2e-2), (tensors[1], 1e-5)):
        got = preset("c3", sigma=0).fit({"image": rows}).transform(rows)
        assert_close(got, expected, off)
        assert got.dtype == np.float32


EQUAL = np.eye(24)[[3] * 20]
NAN = np.where(np.arange(24) == 3, np.nan, Y)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("c3", {"text": Moments.from_rows(Y * 10)}, r"text.* 100[\s\S]*unit_rows\(array\)"),
        ("c3", X, "ndarray"),
        ("c3", {"image": [[1.0, 2.0], [3.0]]}, r"image.*\(n, d\)"),
        ("c3", {"image": X[:, :8], "text": Y}, "8.*24"),
        ("c3", {"text": NAN}, "NaN"),
        ("decap", MOMENTS, "memory-projection needs the rows of 'text'"),
        ("ridge", {"image": X, "text": Y[:100]}, "120 image rows and 100 text rows"),
        ("gap-shift", {"image": X, "text": X}, "gap"),
        ("tomcap", {"text": Y}, "match-moments needs the moments of 'image'"),
        ("whiten", {"text": EQUAL}, "equal, so they cannot be whitened"),
        ("fair", {"text": Moments.from_rows(EQUAL)}, "All text rows or all text rows are equal"),
        ("realign", {"image": EQUAL, "text": Y}, "All image rows are equal"),
        ("c3 auto", MOMENTS, r"'auto'[\s\S]*number"),
        ("c3 pairs", {"image": X[:20], "text": Y}, "at least 10 .* 0 in the arrays"),
        ("c3 pairs", {"image": X[:9], "text": Y[:9]}, "at least 10 .* 9 in the arrays"),
    ],
)
def test_what_a_pipeline_cannot_be_fitted_on(name: str, data: Any, words: str) -> None:
    plain, _, sigma = name.partition(" ")
    with pytest.raises(TransformError, match=words):
        preset(plain, sigma=sigma or None).fit(data)


def test_what_a_pipeline_cannot_be_fitted_on_of_a_store_or_with_options(
    store: Store, tmp_path: Path
) -> None:
    other = gap_store(tmp_path / "store")
    long = {"image": Moments.from_rows(7 * unit(X[:, :16]))}
    save_moments(other.path / EXTERNAL_FILE, long, {"split": "train"})
    for name, data, options, words in (
        ("ridge", store, {"split": "nowhere"}, "nowhere"),
        ("c3", store, {"split": "nowhere"}, "nowhere"),
        ("c3", store, {"split": "test"}, "test"),
        ("c3", other, {}, r"image.* 49[\s\S]*c3 means unload"),
        ("c3", MOMENTS, {"provenance": {"split": "test"}}, "test"),
        ("c3", {"text": Y}, {"items": {"text": ["a"]}}, "1 item for 120 text rows"),
    ):
        with pytest.raises(TransformError, match=words):
            preset(name).fit(data, **options)


def test_auto_is_the_same_from_a_store_and_from_arrays(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store", text_noise=0.4)
    pipeline = preset("c3-span", sigma="auto")
    assert (pipeline.sigma, pipeline.fitted) == ("auto", False)
    expected, why = sigma_by_rule("auto", store)
    pipeline.fit(store)
    assert (pipeline.sigma, pipeline.provenance["sigma"]) == (expected, why)
    assert f" {why}." in pipeline.describe_fit(store)
    assert Pipeline.load(pipeline.save(tmp_path / "p")).sigma == expected
    items = store.load("text", "train").items
    by_item = preset("c3", sigma="auto").fit(
        {"text": store.load("text", "train").embeddings}, items={"text": items}
    )
    assert by_item.sigma == pytest.approx(expected, rel=1e-3)


def test_norms_make_no_difference(tmp_path: Path) -> None:
    images, texts = make_vectors(50, 3, text_noise=0.4)
    options = {"owners": sorted([*range(50)] * 2), "split": ["train", "val"] * 25}
    unit_norm = make_store(tmp_path / "unit", images, texts, **options)
    others = make_store(tmp_path / "others", 3 * images, texts, normalised=False, **options)
    for rule in ("auto", "pairs"):
        assert sigma_by_rule(rule, unit_norm)[0] == pytest.approx(
            sigma_by_rule(rule, others)[0], rel=1e-5
        )


@pytest.mark.parametrize(
    ("splits", "alone", "images", "of"),
    [
        (
            ["train", "train", "val", "test"] * 20,
            0,
            "val",
            "20 images of the val split with their 40",
        ),
        (
            ["train"] * 12 + ["val"] * 2 + ["test"] * 6,
            200,
            None,
            r"14 .* outside .* 28 .*20 images are rec",
        ),
        (["val"] * 20, 30, "val", "20 images of the val split with their 40"),  # no images in train
    ],
)
def test_pairs_is_the_cosine_around_the_train_means(
    tmp_path: Path, splits: list[str], alone: int, images: str, of: str
) -> None:
    count = len(splits)
    x, y = make_vectors(count + alone, 3)
    owners = [*[None] * alone, *sorted([*range(count)] * 2)]
    y = np.roll(y[: len(owners)], alone, axis=0)
    store = make_store(tmp_path / "store", x[:count], y, owners=owners, split=splits)
    pairs = store.pairs(split=images)
    kept = (pairs.item_index >= 0) & (np.array(pairs.second.splits) != "test")
    x, y, own = pairs.first.embeddings, pairs.second.embeddings[kept], pairs.item_index[kept]
    means = [
        store.moments(name, "train").mean
        if store.count(name, "train") >= 20
        else rows.mean(axis=0, dtype=np.float64)
        for name, rows in (("image", x[np.unique(own)]), ("text", y))
    ]
    expected = pair_cosine(x, y, own, means).sigma
    pipeline = preset("c3", sigma="pairs").fit(store)
    assert pipeline.sigma == pytest.approx(expected)
    assert re.search(of, pipeline.provenance["sigma"])


def test_pairs_of_arrays_are_by_place_or_by_items() -> None:
    few = {"image": X[20::-1], "text": Y}
    items = {"image": [*map(str, range(20, -1, -1))], "text": [*map(str, range(120))]}
    for known, rows, named, count, mean in (
        (ROWS, None, None, 120, X.mean(axis=0)),
        ({}, few, items, 21, X[:21].mean(axis=0)),
        (MOMENTS, few, items, 21, X.mean(axis=0)),
    ):
        rule = pair_cosine(X[:count], Y[:count], np.arange(count), [mean, Y.mean(axis=0)])
        assert preset("c3", sigma="pairs").fit(known, rows, items=named).sigma == pytest.approx(
            rule.sigma
        )


def test_equal_captions_count_once_and_few_images_do_not_decide() -> None:
    """What a repeated row, or one image with two captions, must not change; see
    docs/guides/train-on-text.md."""
    images, texts = make_vectors(40, 3, text_noise=0.4)
    names = [f"{i:03d}" for i in range(40)]

    def sigma(rows: list[int]) -> tuple[float, str]:
        items = {"image": names, "text": [names[row // 2] for row in rows]}
        fitted = preset("c3", sigma="auto").fit({"image": images, "text": texts[rows]}, items=items)
        return fitted.sigma, fitted.provenance["sigma"]  # type: ignore[return-value]

    assert "40 images" in sigma([*range(80)])[1] and "40 images" in sigma([*range(80), 4, 4, 9])[1]
    # of one caption an image, of which some are repeated, the pairs decide, as if there were no
    # copies
    one = [*range(0, 80, 2)]
    pairs, _ = sigma(one)
    for count in (1, 3, 20):
        copied, why = sigma([*one, *one[:count]])
        assert (
            copied == pytest.approx(pairs, rel=0.1) and "no item has two different captions" in why
        )
    # nine images with two captions are too few, and ten are enough
    assert "9 items have different captions, fewer than 10" in sigma([*one, *range(1, 18, 2)])[1]
    assert "captions of 10 images" in sigma([*one, *range(1, 20, 2)])[1]
    alone = preset("c3", sigma="auto").fit({"text": texts[one]})
    assert alone.sigma == PUBLISHED_SIGMA and "constant" in alone.provenance["sigma"]


def test_noise_of_this_size_gives_captions_their_cosine_and_auto_leaves_the_least() -> None:
    """Ten images with two captions each, of length 2, at this cosine of each other."""
    # |e| / sqrt(|e|^2 + 9 sigma^2 d) = 0.1 where the cosine of captions is |e| / sqrt(|e|^2 +
    # sigma^2 d)
    least = 1 / np.sqrt(1 + 99 / 9)
    assert pytest.approx(least) == MIN_SIBLING_COSINE
    for cosine in (least - 1e-6, least + 1e-6, 0.5, 0.94):
        texts = 2 * np.array([[1.0, 0, 0], [cosine, np.sqrt(1 - cosine**2), 0]] * 10)
        found = caption_spread(texts, np.repeat(range(10), 2), np.zeros(3))
        left = [
            2 / np.hypot(2, rule.sigma * 3**0.5)
            for rule in (found, scaled_spread(found))
            if rule.sigma
        ]
        assert (
            not left
            if cosine < least
            else (left[0] == pytest.approx(cosine) and left[1] >= MIN_COSINE)
        )


@pytest.mark.parametrize("cosine", [0.947, 0.95, 1 - 1e-9])
def test_near_copies_of_captions_have_no_spread(cosine: float) -> None:
    """Ten images with two captions of this cosine; 0.9487 is that of noise a third as long as a
    caption, so that auto's is as long."""
    assert pytest.approx(3 / np.sqrt(10)) == MAX_SIBLING_COSINE
    texts = np.array([[1.0, 0, 0], [cosine, np.sqrt(1 - cosine**2), 0]] * 10)
    found = caption_spread(texts, np.repeat(range(10), 2), np.zeros(3))
    assert (found.sigma is None) == (cosine > 0.9487)
    assert ("near copies" in found.missing) == (cosine > 0.9487)


def test_no_captions_to_train_on_is_not_one_caption_for_each_image(tmp_path: Path) -> None:
    """Twelve images with three captions each, none of them in the split train."""
    images = unit_rows(12, 8, 1)
    captions = unit(np.repeat(images, 3, axis=0) + 0.3 * unit_rows(36, 8, 2))
    owners = np.repeat(range(12), 3).tolist()
    store = make_store(tmp_path / "store", images, captions, owners=owners, split="modifier")
    sigma, why = sigma_by_rule("auto", store)
    assert sigma == sigma_by_rule("pairs", store)[0]
    assert why.endswith("because the train split has no captions")


def test_the_spread_is_the_mean_cosine_of_pairs_of_captions() -> None:
    rng = np.random.default_rng(2)
    items = rng.integers(-1, 12, size=60)
    texts = (rng.normal(size=(13, 16))[items] + 0.8 * rng.normal(size=(60, 16))).astype(np.float32)
    mean = rng.normal(size=16)
    rows = texts[items >= 0] - mean
    own = items[items >= 0]
    groups = [unit(rows[own == item]) for item in set(own)]
    cosines = [(of @ of.T)[~np.eye(len(of), dtype=bool)].mean() for of in groups if len(of) > 1]
    expected = np.linalg.norm(rows, axis=1).mean() * np.sqrt((1 / np.mean(cosines) ** 2 - 1) / 16)
    for found in (
        caption_spread(texts, items, mean),
        caption_spread(texts[::-1], items[::-1], mean),
    ):
        assert found.sigma == pytest.approx(expected)
    assert caption_spread(texts[:0], items[:0], mean).sigma is None


def test_the_rules_and_what_is_recommended() -> None:
    rng = np.random.default_rng(4)
    images, own, means = rng.normal(size=(40, 8)), np.arange(40), [*rng.normal(size=(2, 8))]
    texts = images + rng.normal(size=(40, 8)) * 0.5
    pairs = pair_cosine(images + means[0], texts + means[1], own, means)
    cosine = np.mean(np.sum(unit(images) * unit(texts), axis=1))
    with pytest.raises(FrozenInstanceError):
        PUBLISHED.sigma = 0  # type: ignore[misc]
    assert pairs.sigma == pytest.approx(
        np.linalg.norm(texts, axis=1).mean() * np.sqrt((1 / cosine**2 - 1) / 8)
    )
    assert "not seen in training" in pairs.rests_on
    alone = caption_spread(texts + means[1], own, means[1])
    rule, why = recommend([alone, scaled_spread(alone), pairs, PUBLISHED])
    assert rule == pairs
    assert why.endswith(
        "of the pairs instead of the spread of captions, because every item has one caption"
    )
    spread = caption_spread(
        np.concatenate([texts, texts[:, ::-1] / 2 + texts]) + means[1], np.tile(own, 2), means[1]
    )
    rule, why = recommend([spread, scaled_spread(spread), pairs])
    assert rule.sigma == 3 * spread.sigma and "captions of 40 images" in why  # type: ignore[operator]
    untold = pair_cosine(texts[:0], texts[:0], own[:0], means)
    # Pairs that are missing do not matter where captions decide
    rule, why = recommend([scaled_spread(spread), untold])
    assert rule.name == "scaled_spread" and "because" not in why
    rule, why = recommend([scaled_spread(alone), untold])
    assert rule.sigma == PUBLISHED_SIGMA and "one caption and there are no pairs" in why


def test_auto_does_not_see_noise_on_images_and_tells_the_sigma_of_the_pairs(tmp_path: Path) -> None:
    images = unit_rows(40, 16, 1)
    captions = unit(np.repeat(images, 2, axis=0) + 0.5 * unit_rows(80, 16, 2))
    owners = np.repeat(range(40), 2).tolist()
    sigmas = []
    for noise in (0.2, 0.8):
        noisy = unit(images + noise * unit_rows(40, 16, 3))
        store = make_store(tmp_path / str(noise), noisy, captions, owners=owners)
        sigma, why = sigma_by_rule("auto", store)
        of_pairs, reason = sigma_by_rule("pairs", store)
        assert why.endswith(f"; --sigma pairs gives {of_pairs:.4g}, by {reason.partition(': ')[2]}")
        sigmas.append((sigma, of_pairs))
    assert sigmas[1][0] == sigmas[0][0]
    assert sigmas[1][1] > 1.5 * sigmas[0][1]


def test_pairs_are_three_standard_errors_nearer_than_strangers() -> None:
    """The cosine of text i is the mean plus or minus the spread with its own image i, and 0.05 with
    the others."""
    for mean, spread, missing in (
        (0.45, 0.511, ""),  # 0.4 = 3 sqrt(16 / 15) spread / sqrt(16) at 0.516
        (
            0.45,
            0.521,
            "16 items do not show that pairs are closer than unrelated rows: the cosine of pairs "
            "is 0.450, of unrelated rows 0.050",
        ),
        (0.09, 0.001, "the cosine is 0.090; below 0.1"),
    ):
        own = mean + spread * np.where(np.arange(16) % 2, 1, -1)
        images, texts = np.eye(17)[:16], np.full((16, 17), 0.05)
        texts[np.arange(16), np.arange(16)] = own
        texts[:, 16] = np.sqrt(1 - own**2 - 15 * 0.05**2)
        found = pair_cosine(images, texts, np.arange(16), [np.zeros(17)] * 2)
        assert missing in found.missing and (found.sigma is None) == bool(missing)


def test_pairs_in_runs_of_similar_items_are_compared_with_other_runs() -> None:
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(5, 64)).repeat(10, axis=0)
    images = runs + 0.1 * rng.normal(size=(50, 64))
    texts = runs + 0.5 * rng.normal(size=(50, 64))
    rule = pair_cosine(images, texts, np.arange(50), [images.mean(axis=0), texts.mean(axis=0)])
    assert rule.sigma is not None, rule.missing


def test_the_rules_for_a_store_and_for_arrays_on_record(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store", text_noise=0.4)
    found: dict[str, Any] = {}
    images, texts = make_vectors(40, 3, text_noise=0.4)
    for rule in ("auto", "pairs"):
        pipeline = preset("c3", sigma=rule).fit({"image": images.repeat(2, axis=0), "text": texts})
        found[f"{rule} of arrays"] = (pipeline.sigma, pipeline.provenance["sigma"])
        for side in get_args(Side):
            found[f"{rule}, noise on {side}s"] = sigma_by_rule(rule, store, noised=side)
    recorded(Path(__file__).parent / "golden" / "sigma.json", found, rel=1e-4)


def test_for_generators_auto_is_twice_the_distance_to_the_nearest_photo(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    photos = unit(
        np.repeat(rng.normal(size=(250, 12)), 2, axis=0) + 0.1 * rng.normal(size=(500, 12))
    )
    store = make_store(tmp_path / "s", photos, photos)
    rows = photos - photos.mean(axis=0)
    cosines = unit(rows) @ unit(rows).T - 2 * np.eye(500)
    expected = (
        2
        * np.linalg.norm(rows, axis=1).mean()
        * np.sqrt((1 / cosines.max(axis=1).mean() ** 2 - 1) / 12)
    )
    found, why = sigma_by_rule("auto", store, noised="image")
    assert found == pytest.approx(expected, rel=1e-4)
    assert "nearest neighbours" in why
    found, why = sigma_by_rule(
        "auto", make_store(tmp_path / "few", photos[1:], photos), noised="image"
    )
    assert found == PUBLISHED_SIGMA
    assert "fewer than 500 photos" in why


def test_it_is_the_formula(store: Store) -> None:
    train = {
        name: unit(store.load(name, "train").embeddings.astype(np.float64))
        for name in ("image", "text")
    }
    calibration = Calibration.fit(train)
    queries = unit(train["text"][3:5] - train["text"].mean(axis=0))
    for name, rows in train.items():
        off = rows - rows.mean(axis=0)
        spread = off.T @ off / (off**2).sum()  # the covariance, its trace 1
        cosines = queries @ unit(off).T
        expected = [
            own / np.sqrt(query @ spread @ query)
            for query, own in zip(queries, cosines, strict=True)
        ]
        assert_close(calibration.z(1e-3 * queries, cosines, name), expected, 1e-5)


def test_every_source_gives_the_same(store: Store, tmp_path: Path) -> None:
    calibration = Calibration.fit(store)
    save_means(store, tmp_path / "means.safetensors")
    moments = {name: store.moments(name, "train") for name in store.modalities}
    for source in (store.path, str(tmp_path / "means.safetensors"), moments):
        found, expected = (
            {n: asdict(m) for n, m in c.moments.items()}
            for c in (Calibration.fit(source), calibration)
        )
        np.testing.assert_equal(found, expected)
    other = Calibration.fit(
        {name: 3 * store.load(name, "train").embeddings for name in store.modalities}
    )
    assert_close(other.moments["text"].scatter, calibration.moments["text"].scatter, 1e-2)


def variance_of(spread: float) -> float:
    return float(spread / np.sqrt(4 - 16 / 200))


def calibration_of(spreads: Mapping[str, float]) -> Calibration:
    """200 rows of mean 0 in four dimensions, of which tr(S^2) - tr(S)^2 / 200 is spread^2."""
    moments = {
        name: Moments.of(200, np.zeros(4), 200 * variance_of(spread) * np.eye(4))
        for name, spread in spreads.items()
    }
    return Calibration(moments, preset("c1"))


def test_rows_of_a_modality_that_varies_more_gain_with_combined_queries() -> None:
    query, cosines = np.array([0.6, 0.8, 0, 0]), np.array([0.1, 0.4])
    spreads = {"image": 0.2, "text": 0.24, "fused": 0.25}
    close = calibration_of(spreads)
    geometric_mean = (0.2 * 0.24 * 0.25) ** (1 / 3)
    for name, spread in spreads.items():
        z = cosines / np.sqrt(variance_of(spread))
        assert_close(close.z(query, cosines, name), z, 1e-12)
        expected = z * np.sqrt(spread / geometric_mean)
        assert_close(close.z(query, cosines, name, combined=True), expected, 1e-12)
    found = {"image": (["i"], [0.4]), "text": (["t"], [0.41])}
    assert [key for key, _, _ in close.merge(query, found)] == ["i", "t"]
    best = close.merge(query, found, combined=True)
    assert [key for key, _, _ in best] == ["t", "i"]
    batch = {name: ([keys], [scores]) for name, (keys, scores) in found.items()}
    assert close.merge(query[None], batch, combined=True) == [best]

    # z where the spreads differ more, as with much noise of one modality
    for other in ({"image": 0.2, "text": 0.27}, {"image": 0.0, "text": 0.2}):
        far = calibration_of(other)
        for name in other:
            expected = far.z(query, cosines, name)
            assert_close(far.z(query, cosines, name, combined=True), expected, 0)


def test_merging_orders_all_modalities_by_z() -> None:
    rng = np.random.default_rng(0)
    rows = {
        name: rng.normal(size=(50, 8)) + 5 * rng.normal(size=8)
        for name in ("image", "text", "audio")
    }
    found = Calibration.fit(rows)
    queries = found.pipeline.transform(rows["text"][:3], modality="text")
    cosines = {
        name: queries @ found.pipeline.transform(own, modality=name).T for name, own in rows.items()
    }
    cosines["audio"][:, 7] = -np.inf  # what indexes give where there is no row
    merged = found.merge(
        queries, {name: (np.tile(range(50), (3, 1)), own) for name, own in cosines.items()}, k=200
    )
    for row, query in enumerate(queries):
        alone = {name: (range(50), own[row]) for name, own in cosines.items()}
        scores = [
            (z, n, name)
            for name in rows
            for n, z in enumerate(found.z(query, cosines[name][row], name))
        ]
        expected = [(n, name, z) for z, n, name in sorted(scores, reverse=True) if np.isfinite(z)]
        assert (merged[row], {name for _, name, _ in expected[:100]}) == (expected, set(rows))
        assert (found.merge(query, alone, k=4), found.merge(query, alone)) == (
            expected[:4],
            expected[:10],
        )


def test_three_modalities_share_the_first_places() -> None:
    """Rows of three modalities with gaps and spreads of their own; each has one right row."""
    rng = np.random.default_rng(0)
    dim, count = 32, 2_000
    target = rng.normal(size=dim)
    rows = {}
    for number, (name, spread) in enumerate({"image": 1.0, "text": 0.5, "audio": 2.0}.items()):
        gap = 6 * np.eye(dim)[number]
        noise = spread * rng.normal(size=(count, dim))
        noise[0] = spread * target * np.sqrt(dim) / np.linalg.norm(target)
        rows[name] = unit(noise + gap)
    calibration = Calibration.fit(rows)
    asked = calibration.pipeline.transform(rows["text"][:1], modality="text")[0]
    found = {}
    for name, vectors in rows.items():
        cosines = calibration.pipeline.transform(vectors, modality=name) @ asked
        found[name] = (np.arange(count), cosines)
    best = calibration.merge(asked, found, k=300)
    assert {(row, name) for row, name, _ in best[:3]} == {
        (0, "image"),
        (0, "text"),
        (0, "audio"),
    }
    places = Counter(name for _, name, _ in best)
    for name in rows:
        # 100 of 300 are expected, with a standard deviation of 8
        assert 70 <= places[name] <= 130


def test_curves_are_the_logistic_regression_of_pairs() -> None:
    rows = dict(zip(("image", "text"), make_vectors(60, 1), strict=True))
    rows["text"] = rows["text"][::2]
    found = Calibration.fit(rows)
    x = {
        name: found.pipeline.transform(own, modality=name).astype(np.float64)
        for name, own in rows.items()
    }
    pairs = {("text", name): (3 * x["text"], own) for name, own in x.items()}
    fitted = found.fit_pairs({**pairs, ("image", "text"): (x["image"], x["text"])})
    assert fitted.curves.keys() == pairs.keys()  # images lack pairs with images
    with pytest.raises(TransformError, match=r"rows of every modality \(image, text\)"):
        found.fit_pairs({("image", "text"): (x["image"], x["text"])})
    cosines = x["text"] @ x["image"].T
    off = 1 / (1 + np.exp(-fitted.z(x["text"], cosines, "image", "text"))) - np.eye(60)
    # the likelihood is at its maximum
    assert [off.sum(), (off * cosines).sum()] == pytest.approx([0, 0], abs=1e-4)
    assert (
        fitted.z(x["image"], cosines.T, "text", "image") == found.z(x["image"], cosines.T, "text")
    ).all()
    # a row that is the query gets no more than pairs can tell
    steep = Calibration.fit(rows)
    steep.curves["text", "text"] = np.array([300.0, -150.0])
    assert steep.z(x["text"][0], [1.0, 0.5], "text", "text").tolist() == [12, 0]
    query, searched = (
        x["text"][0],
        {name: (range(60), x["text"][0] @ own.T) for name, own in x.items()},
    )
    curves = [(name, *fitted.curves["text", name]) for name in x]
    expected = max((min(a * s + b, 12), name) for name, a, b in curves for s in searched[name][1])
    assert fitted.merge(query, searched, 1, "text")[0][1:] == (
        expected[1],
        pytest.approx(expected[0]),
    )


def test_degenerate_inputs() -> None:
    flat = np.random.default_rng(0).normal(size=(100, 3)) * [1, 1, 1e-9]
    found = Calibration.fit({"image": flat}, pipeline=preset("c1").fit({"image": flat}))
    assert (found.z(np.zeros(3), [0.3, np.nan], "image")[0]) == 0
    steep = found.z([0, 0, 1.0], [0.1], "image")[0]  # no row varies in this direction
    assert steep == pytest.approx(0.1 / np.sqrt(1e-3 / 3), rel=0.05)
    constant = {"text": np.eye(3)[[0] * 20]}
    plain = preset("c1").fit(constant)
    assert Calibration.fit(constant, pipeline=plain).z([1.0, 0, 0], [1.0], "text") == [0]
    assert found.merge([1.0, 0, 0], {"image": ([], [])}) == []
    for query, modality in (([1.0, 0, 0], "audio"), ([1.0, 0], "image")):
        with pytest.raises(TransformError, match=r"image \(3 dimensions\)"):
            found.z(query, [0.5], modality)
    for rows, pipeline, words in (
        (Moments.from_rows(3 * flat), plain, "norm 1"),
        (flat, preset("c3"), "'c3' is not fitted"),
        (flat, preset("clipre").fit({"image": flat, "text": flat}), "only the rows"),
    ):
        with pytest.raises(TransformError, match=words):
            Calibration.fit({"image": rows}, pipeline=pipeline)  # type: ignore[arg-type]
