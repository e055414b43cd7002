"""The rules for sigma, each against its formula or what made the data."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c3tools import Store
from c3tools.transforms import preset
from c3tools.transforms.sigma import (
    MIN_COSINE,
    MIN_SIBLING_COSINE,
    PUBLISHED,
    PUBLISHED_SIGMA,
    RULES,
    Side,
    caption_spread,
    pair_cosine,
    recommend,
    scaled_spread,
    sigma_by_rule,
)
from tests.conftest import make_store
from tests.golden import recorded
from tests.stores import make_vectors, unit

SIDES: tuple[Side, ...] = ("image", "text")


def test_the_least_cosines_leave_the_noise_of_auto_at_the_least_cosine() -> None:
    # |e| / sqrt(|e|^2 + 9 sigma^2 d) = 0.1 where the cosine of captions is |e| / sqrt(|e|^2 + sigma^2 d)
    assert pytest.approx(1 / np.sqrt(1 + 99 / 9)) == MIN_SIBLING_COSINE


@given(st.floats(MIN_SIBLING_COSINE * 1.001, 0.99), st.floats(0.1, 2.0), st.integers(2, 1024))
def test_noise_of_this_size_gives_this_cosine(cosine: float, norm: float, dim: int) -> None:
    """Ten images with two captions each, at this cosine of each other."""
    one, other = norm * np.eye(dim)[0], norm * (cosine * np.eye(dim)[0] + np.sqrt(1 - cosine**2) * np.eye(dim)[1])
    found = caption_spread(np.stack([one, other] * 10), np.repeat(np.arange(10), 2), np.zeros(dim))
    assert found.sigma is not None and norm / np.hypot(norm, found.sigma * np.sqrt(dim)) == pytest.approx(cosine)
    thrice = scaled_spread(found).sigma
    assert thrice is not None  # the noise of auto leaves something
    assert norm / np.hypot(norm, thrice * dim**0.5) >= MIN_COSINE - 1e-9


def test_the_spread_is_the_mean_cosine_of_pairs_of_captions() -> None:
    rng = np.random.default_rng(2)
    items = rng.integers(-1, 12, size=60)
    texts = (rng.normal(size=(13, 16))[items] + 0.3 * rng.normal(size=(60, 16))).astype(np.float32)
    mean = rng.normal(size=16)
    rows = texts[items >= 0] - mean
    units, own = unit(rows), items[items >= 0]
    cosines = []
    for item in set(own):
        of = units[own == item]
        if len(of) > 1:
            cosines.append((of @ of.T)[~np.eye(len(of), dtype=bool)].mean())
    expected = np.linalg.norm(rows, axis=1).mean() * np.sqrt((1 / np.mean(cosines) ** 2 - 1) / 16)
    for found in (caption_spread(texts, items, mean), caption_spread(texts[::-1], items[::-1], mean)):
        assert found.sigma == pytest.approx(expected)
    assert caption_spread(texts[:0], items[:0], mean).sigma is None
    of_units = caption_spread(unit(texts.astype(np.float64)), items, mean).sigma
    assert caption_spread(5 * texts, items, mean, normalise=True).sigma == pytest.approx(of_units)


def test_the_rules_and_what_is_recommended() -> None:
    rng = np.random.default_rng(4)
    images, own, means = rng.normal(size=(40, 8)), np.arange(40), [*rng.normal(size=(2, 8))]
    texts = images + rng.normal(size=(40, 8)) * 0.5
    pairs = pair_cosine(images + means[0], texts + means[1], own, means)
    cosine = np.mean(np.sum(unit(images) * unit(texts), axis=1))
    with pytest.raises(FrozenInstanceError):
        PUBLISHED.sigma = 0  # type: ignore[misc]
    assert pairs.sigma == pytest.approx(np.linalg.norm(texts, axis=1).mean() * np.sqrt((1 / cosine**2 - 1) / 8))
    assert "not seen in training" in pairs.rests_on and "held-out" not in pairs.rests_on
    alone = caption_spread(texts + means[1], own, means[1])
    rule, why = recommend([alone, scaled_spread(alone), pairs, PUBLISHED])
    assert rule == pairs and why.endswith(
        "of the pairs instead of the spread of captions, because every image has one caption"
    )
    spread = caption_spread(np.concatenate([texts, texts + 0.1]) + means[1], np.tile(own, 2), means[1])
    rule, why = recommend([spread, scaled_spread(spread), pairs])
    assert rule.sigma == 3 * spread.sigma and "captions of 40 images" in why  # type: ignore[operator]
    untold = pair_cosine(texts[:0], texts[:0], own[:0], means)
    rule, why = recommend([scaled_spread(alone), untold])
    assert rule.sigma == PUBLISHED_SIGMA and "one caption and there are no pairs" in why


def test_pairs_are_three_standard_errors_nearer_than_strangers() -> None:
    """The cosine of text i is the mean plus or minus the spread with its own image i, and 0.05 with the one before."""
    for mean, spread, missing in (
        (0.45, 0.511, ""),  # 0.4 = 3 sqrt(16 / 15) spread / sqrt(16) at 0.516
        (0.45, 0.521, "no closer than unrelated rows: their cosine is 0.450, that of unrelated rows 0.050"),
        (0.09, 0.001, "the cosine is 0.090; below 0.1"),
    ):
        own = mean + spread * np.where(np.arange(16) % 2, 1, -1)
        images, texts = np.eye(17)[:16], np.eye(17)[:16] * own[:, None]
        texts[np.arange(16), np.arange(-1, 15) % 16] = 0.05
        texts[:, 16] = np.sqrt(1 - own**2 - 0.05**2)
        found = pair_cosine(images, texts, np.arange(16), [np.zeros(17)] * 2)
        assert missing in found.missing and (found.sigma is None) == bool(missing)


def test_the_rules_for_a_store_and_for_arrays_on_record(store: Store) -> None:
    found: dict[str, Any] = {
        f"{rule}, noise on {side}s": sigma_by_rule(rule, store, noised=side) for rule in RULES for side in SIDES
    }
    images, texts = make_vectors(40, 3)
    for rule in RULES:
        pipeline = preset("c3", sigma=rule).fit({"image": images.repeat(2, axis=0), "text": texts})
        found[f"{rule} of arrays"] = (pipeline.sigma, pipeline.provenance["sigma"])
    recorded(Path(__file__).parent / "golden" / "sigma.json", found, rel=1e-4)


def test_for_generators_auto_is_twice_the_distance_to_the_nearest_photo(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    photos = unit(np.repeat(rng.normal(size=(250, 12)), 2, axis=0) + 0.1 * rng.normal(size=(500, 12)))
    store = make_store(tmp_path / "s", photos, photos)
    rows = photos - photos.mean(axis=0)
    cosines = unit(rows) @ unit(rows).T - 2 * np.eye(500)
    expected = 2 * np.linalg.norm(rows, axis=1).mean() * np.sqrt((1 / cosines.max(axis=1).mean() ** 2 - 1) / 12)
    found, why = sigma_by_rule("auto", store, noised="image")
    assert found == pytest.approx(expected, rel=1e-4)
    assert "nearest neighbours" in why
    found, why = sigma_by_rule("auto", make_store(tmp_path / "few", photos[1:], photos), noised="image")
    assert found == PUBLISHED_SIGMA
    assert "fewer than 500 photos" in why
