"""What pipelines are fitted on: a store, moments, or arrays; and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from c3tools.errors import TransformError
from c3tools.moments import Moments, save_moments
from c3tools.store import Store
from c3tools.store.manifest import EXTERNAL_FILE
from c3tools.transforms import Pipeline, fitting, preset
from c3tools.transforms.fitting import first_pairs
from c3tools.transforms.sigma import PUBLISHED_SIGMA, pair_cosine, sigma_by_rule
from tests.conftest import make_store
from tests.stores import assert_close, gap_store, make_vectors, unit

from .conftest import Pairs, make_pairs


def assert_means(pipeline: Pipeline, modality: str, rows: npt.NDArray[Any], atol: float = 1e-6) -> None:
    """The second step, of the preset ``c3`` the one of centring, takes the mean of these rows away."""
    assert_close(pipeline.steps[1].state[f"centre/{modality}"], rows.mean(axis=0), atol)


def test_a_store_gives_the_moments_of_its_train_split(store: Store) -> None:
    for place in (store, store.path):
        pipeline = preset("c3", sigma=0.1).fit(place)
        for modality in ("image", "text"):
            assert_means(pipeline, modality, store.load(modality, "train").embeddings.astype(np.float64), 1e-12)
        assert pipeline.provenance == {"model": store.info.model, "split": "train", "n": {"image": 60, "text": 120}}


def test_rows_and_pairs_are_read_up_to_a_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = (store.load(name, "train") for name in ("image", "text"))
    for max_rows in (
        7,
        100,
        1000,
    ):
        place = {key: row for row, key in enumerate(images.keys[:max_rows])}
        pairs = [(place[key], row) for row, key in enumerate(texts.column("image_key")) if key in place][:max_rows]
        found = first_pairs(store, "train", max_rows).arrays()
        for got, rows, side in zip(found, (images, texts), (0, 1), strict=True):
            np.testing.assert_array_equal(got, rows.embeddings[[pair[side] for pair in pairs]])
        monkeypatch.setattr(fitting, "MAX_FIT_ROWS", max_rows)
        assert preset("ridge").fit(store).provenance["rows"] == {"image": len(pairs), "text": len(pairs)}


def test_arrays_of_any_norm_and_kind_are_moments_and_rows(pairs: Pairs) -> None:
    lengths = np.random.default_rng(0).uniform(0.1, 20, (120, 1))
    pipeline = preset("c3").fit({"image": pairs.x * lengths, "text": pairs.y * lengths})
    assert_means(pipeline, "image", pairs.x)
    expected = unit(pairs.x - pairs.x.mean(axis=0))
    tensors = torch.tensor(pairs.x, dtype=torch.bfloat16), torch.tensor(pairs.x, requires_grad=True)
    for rows, off in ((pairs.x.tolist(), 1e-5), (tensors[0], 2e-2), (tensors[1], 1e-5)):
        got = preset("c3", sigma=0).fit({"image": rows}).transform(rows)
        assert_close(got, expected, off)
        assert got.dtype == np.float32


P = make_pairs()
EQUAL = np.eye(24)[[3] * 4]
NAN = np.where(np.arange(24) == 3, np.nan, P.y)


def test_what_a_pipeline_cannot_be_fitted_on() -> None:
    for name, data, words in (
        ("c3", {"text": Moments.from_rows(P.y * 10)}, r"text.* 100[\s\S]*unit_rows\(array\)"),
        ("c3", P.x, "ndarray"),
        ("c3", {"image": [[1.0, 2.0], [3.0]]}, r"image.*\(n, d\)"),
        ("c3", {"image": P.x[:, :8], "text": P.y}, "8.*24"),
        ("c3", {"text": NAN}, "NaN"),
        ("decap", P.moments, "memory-projection needs the rows of 'text'"),
        ("ridge", {"image": P.x, "text": P.y[:100]}, "120 image rows and 100 text rows"),
        ("gap-shift", {"image": P.x, "text": P.x}, "gap"),
        ("tomcap", {"text": P.y}, "match-moments needs the moments of 'image'"),
        ("whiten", {"text": EQUAL}, "equal, so they cannot be whitened"),
        ("fair", {"text": Moments.from_rows(EQUAL)}, "All text rows or all text rows are equal"),
        ("realign", {"image": EQUAL, "text": P.y}, "All image rows are equal"),
        ("c3 auto", P.moments, r"'auto'[\s\S]*number"),
        ("c3 pairs", {"image": P.x[:20], "text": P.y}, "at least 10 .* 0 in the arrays"),
        ("c3 pairs", {"image": P.x[:9], "text": P.y[:9]}, "at least 10 .* 9 in the arrays"),
    ):
        plain, _, sigma = name.partition(" ")
        with pytest.raises(TransformError, match=words):
            preset(plain, sigma=sigma or None).fit(data)  # type: ignore[arg-type]


def test_what_a_pipeline_cannot_be_fitted_on_of_a_store_or_with_options(store: Store, tmp_path: Path) -> None:
    other = gap_store(tmp_path / "store")
    long = {"image": Moments.from_rows(7 * unit(P.x[:, :16]))}
    save_moments(other.path / EXTERNAL_FILE, long, {"split": "train"})
    for name, data, options, words in (
        ("ridge", store, {"split": "nowhere"}, "nowhere"),
        ("c3", store, {"split": "nowhere"}, "nowhere"),
        ("c3", store, {"split": "test"}, "test"),
        ("c3", other, {}, r"image.* 49[\s\S]*c3 means --unload"),
        ("c3", P.moments, {"provenance": {"split": "test"}}, "test"),
        ("c3", {"text": P.y}, {"items": {"text": ["a"]}}, "1 item for 120 text rows"),
    ):
        with pytest.raises(TransformError, match=words):
            preset(name).fit(data, **options)


def test_auto_is_the_same_from_a_store_and_from_arrays(store: Store, tmp_path: Path) -> None:
    pipeline = preset("c3-span", sigma="auto")
    assert (pipeline.sigma, pipeline.fitted) == ("auto", False)
    expected, why = sigma_by_rule("auto", store)
    pipeline.fit(store)
    assert (pipeline.sigma, pipeline.provenance["sigma"]) == (expected, why)
    assert f" {why}." in pipeline.describe_fit(store)
    assert Pipeline.load(pipeline.save(tmp_path / "p")).sigma == expected
    images, texts = store.pairs(split="train").arrays()  # an image stands once for each of its texts
    by_image = preset("c3", sigma="auto").fit({"image": images, "text": texts})
    by_item = preset("c3", sigma="auto").fit({"text": texts}, items={"text": store.load("text", "train").items})
    assert by_image.sigma == pytest.approx(by_item.sigma) == pytest.approx(expected, rel=1e-3)
    assert preset("c3", sigma=0.3).fit(store).sigma == 0.3


def test_norms_make_no_difference(tmp_path: Path) -> None:
    images, texts = make_vectors(50, 3)
    options: dict[str, Any] = {"owners": sorted([*range(50)] * 2), "split": ["train", "val"] * 25}
    unit_norm = make_store(tmp_path / "unit", images, texts, **options)
    others = make_store(tmp_path / "others", 3 * images, texts, normalised=False, **options)
    for rule in ("auto", "pairs"):
        assert sigma_by_rule(rule, unit_norm)[0] == pytest.approx(sigma_by_rule(rule, others)[0], rel=1e-5)


@pytest.mark.parametrize(
    ("splits", "alone", "images", "of"),
    [
        (["train", "train", "val", "test"] * 20, 0, "val", "20 images of the val split with their 40"),
        (["train"] * 12 + ["val"] * 2 + ["test"] * 6, 200, None, r"14 .* outside .* 28 .*20 images are rec"),
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
        store.moments(name, "train").mean if store.count(name, "train") else rows.mean(axis=0, dtype=np.float64)
        for name, rows in (("image", x), ("text", y))
    ]
    expected = pair_cosine(x, y, own, means).sigma
    pipeline = preset("c3", sigma="pairs").fit(store)
    assert pipeline.sigma == pytest.approx(expected)
    assert re.search(of, pipeline.provenance["sigma"])
    assert sigma_by_rule("pairs", store, noised="image")[0] != pipeline.sigma


def test_pairs_of_arrays_are_by_place_or_by_items(pairs: Pairs) -> None:
    means = [pairs.x.mean(axis=0), pairs.y.mean(axis=0)]
    pipeline = preset("c3", sigma="pairs").fit(pairs.rows)
    assert pipeline.sigma == pytest.approx(pair_cosine(pairs.x, pairs.y, np.arange(120), means).sigma)
    few = {"image": pairs.x[20::-1], "text": pairs.y}
    items = {"image": [str(i) for i in range(20, -1, -1)], "text": [str(i) for i in range(120)]}
    for known, mean in (({}, pairs.x[:21].mean(axis=0)), (pairs.moments, means[0])):
        rule = pair_cosine(pairs.x[:21], pairs.y[:21], np.arange(21), [mean, means[1]])
        assert preset("c3", sigma="pairs").fit(known, few, items=items).sigma == pytest.approx(rule.sigma)


def test_equal_captions_count_once_and_few_images_do_not_decide() -> None:
    """What a repeated row, or one image with two captions, must not change; see docs/concepts/sigma.md."""
    images, texts = make_vectors(40, 3)
    items = {"image": [f"{i:03d}" for i in range(40)], "text": [f"{i // 2:03d}" for i in range(80)]}

    def sigma(rows: list[int]) -> tuple[float, str]:
        own = {**items, "text": [items["text"][row] for row in rows]}
        fitted = preset("c3", sigma="auto").fit({"image": images, "text": texts[rows]}, items=own)
        return fitted.sigma, fitted.provenance["sigma"]  # type: ignore[return-value]

    assert "40 images" in sigma([*range(80)])[1] and "40 images" in sigma([*range(80), 4, 4, 9])[1]
    # of one caption an image, of which some are repeated, the pairs decide, as if there were no copies
    one = [*range(0, 80, 2)]
    pairs, _ = sigma(one)
    for count in (1, 3, 20):
        copied, why = sigma([*one, *one[:count]])
        assert copied == pytest.approx(pairs, rel=0.1) and "every image has one caption" in why
    # nine images with two captions are too few, and ten are enough
    assert "9 images have different captions, fewer than 10" in sigma([*one, *range(1, 18, 2)])[1]
    assert "captions of 10 images" in sigma([*one, *range(1, 20, 2)])[1]
    alone = preset("c3", sigma="auto").fit({"text": texts[one]})
    assert alone.sigma == PUBLISHED_SIGMA and "constant" in alone.provenance["sigma"]
