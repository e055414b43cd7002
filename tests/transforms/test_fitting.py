"""What pipelines are fitted on: a store, moments, or arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from c3tools.errors import TransformError
from c3tools.moments import Moments, save_moments
from c3tools.store import Rows, Store
from c3tools.transforms import Collapse, Normalize, OrderWarning, Pipeline, preset
from c3tools.transforms import sigma as sigma_rules
from c3tools.transforms.fitting import read_rows
from c3tools.transforms.sigma import PUBLISHED_SIGMA, pair_cosine, sigma_by_rule
from tests.conftest import build_store, unit_rows
from tests.stores import gap_store, make_vectors, two_texts_per_image, unit

from .conftest import Pairs


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(gap_store(tmp_path / "store"))


def mean_of(pipeline: Pipeline, modality: str) -> npt.NDArray[np.float64]:
    """Return the mean that the second step takes away, of the preset ``c3`` the one of centring."""
    return pipeline.steps[1].state[f"mean/{modality}"].astype(np.float64)


def test_a_store_gives_the_moments_of_its_train_split(store: Store) -> None:
    pipeline = preset("c3").fit(store)
    for modality in ("image", "text"):
        expected = store.load(modality, "train").embeddings.astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(mean_of(pipeline, modality), expected, atol=1e-12)
    assert pipeline.provenance == {"model": store.info.model, "split": "train", "n": {"image": 60, "text": 120}}


def test_arrays_are_moments_and_rows(pairs: Pairs) -> None:
    for name in ("c3", "ridge", "decap"):
        from_arrays = preset(name).fit({"image": pairs.x, "text": pairs.y})
        expected = preset(name).fit(rows=pairs.rows)
        assert from_arrays.provenance == expected.provenance
        same = [p.transform(pairs.x, modality="image") for p in (from_arrays, expected)]
        assert (same[0] == same[1]).all()


def test_external_moments_come_first(store: Store) -> None:
    other = Moments.from_rows(unit(np.random.default_rng(9).normal(size=(50, 16)) + 1))
    save_moments(store.external_path, {"image": other}, {"split": "train"})
    pipeline = preset("c3").fit(store)
    np.testing.assert_allclose(mean_of(pipeline, "image"), other.mean)
    np.testing.assert_allclose(mean_of(pipeline, "text"), store.moments("text", "train").mean)
    assert pipeline.provenance["source"] == "loaded moments (image), else store"


def test_moments_of_a_store_that_is_not_normalised(tmp_path: Path) -> None:
    store = Store.open(gap_store(tmp_path / "raw", dtype="float32", normalised=False))
    train = np.arange(180) // 2 % 3 > 0
    expected = unit(make_vectors()[1].astype(np.float64))[train]
    moments = store.fitting_moments("text")
    assert moments.n == 120
    np.testing.assert_allclose(moments.mean, expected.mean(axis=0), atol=1e-7)


def test_rows_are_read_up_to_a_limit(store: Store) -> None:
    rows = read_rows(store, "train", 50)
    for modality, read in rows.items():
        expected = store.load(modality, "train").select(np.arange(50))
        assert (read.embeddings == expected.embeddings).all()
        assert read.items == expected.items
    pipeline = preset("decap").fit(store, max_rows=50)
    assert pipeline.provenance["rows"] == {"image": 50, "text": 50}


@pytest.mark.parametrize("max_rows", [7, 60, 100, 1000])
def test_pairs_are_each_text_with_its_image(store: Store, max_rows: int) -> None:
    images, texts = store.load("image", "train"), store.load("text", "train")
    position = {key: row for row, key in enumerate(images.keys[:max_rows])}
    pairs = [(position[k], row) for row, k in enumerate(texts.column("image_key")) if k in position][:max_rows]
    read = read_rows(store, "train", max_rows, paired=True)
    assert (read["image"].embeddings == images.embeddings[[image for image, _ in pairs]]).all()
    assert (read["text"].embeddings == texts.embeddings[[text for _, text in pairs]]).all()
    assert read["image"].items == read["text"].items == [images.keys[image] for image, _ in pairs]


def test_a_split_without_pairs(store: Store) -> None:
    with pytest.raises(TransformError, match=r"no pairs of images and texts in the split 'nowhere'"):
        preset("ridge").fit(store, split="nowhere")


def test_an_array_alone_has_no_modality(pairs: Pairs) -> None:
    with pytest.raises(TransformError, match="by modality, not on ndarray"):
        preset("c3").fit(pairs.x)  # type: ignore[arg-type]


def test_other_splits_are_refused(store: Store) -> None:
    with pytest.raises(TransformError, match="fitted on the test split"):
        preset("c3").fit(store, split="test")


class TestUnitLength:
    """Moments are those of rows at unit length, as `transform` makes them."""

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_the_mean_squared_norm_is_that_of_the_rows(self, pairs: Pairs, dtype: type) -> None:
        moments = Moments.from_rows(pairs.x.astype(dtype) * dtype(3))
        expected = float((np.linalg.norm((pairs.x.astype(dtype) * dtype(3)).astype(np.float64), axis=1) ** 2).mean())
        assert moments.mean_squared_norm == pytest.approx(expected, rel=1e-12)
        assert not moments.of_unit_rows
        assert Moments.from_rows(pairs.x.astype(dtype)).of_unit_rows

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_few_rows(self, pairs: Pairs, n: int) -> None:
        assert Moments.from_rows(pairs.x[:n]).of_unit_rows
        assert not Moments.from_rows(pairs.x[:n] * 1.02).of_unit_rows

    def test_bfloat16_is_unit(self, pairs: Pairs) -> None:
        assert Moments.from_rows(torch.tensor(pairs.x).bfloat16().float().numpy()).of_unit_rows

    @pytest.mark.parametrize("name", ["c3", "whiten", "gap-shift", "c3-span"])
    def test_moments_of_other_rows_are_refused(self, pairs: Pairs, name: str) -> None:
        raw = {"image": Moments.from_rows(pairs.x), "text": Moments.from_rows(pairs.y * 10)}
        with pytest.raises(TransformError, match=r"moments of text .* is 100 instead of 1[\s\S]*unit_rows\(array\)"):
            preset(name).fit(raw)

    def test_arrays_of_any_norm_are_fitted_as_they_are_transformed(self, pairs: Pairs) -> None:
        lengths = np.random.default_rng(0).uniform(0.1, 20, (len(pairs.x), 1))
        pipeline = preset("c3").fit({"image": pairs.x * lengths, "text": pairs.y * lengths})
        np.testing.assert_allclose(mean_of(pipeline, "image"), pairs.x.mean(axis=0), atol=1e-6)

    def test_steps_that_fit_nothing_take_any_moments(self, pairs: Pairs) -> None:
        raw = {"text": Moments.from_rows(pairs.y * 10)}
        for name in ("c1", "c2-corrupt", "lafite"):
            assert preset(name).fit(raw).provenance["n"] == {"text": 120}

    def test_a_pipeline_that_keeps_norms_is_fitted_on_the_rows_as_they_are(self, tmp_path: Path) -> None:
        store = Store.open(gap_store(tmp_path / "raw", dtype="float32", normalised=False))
        rows = {name: store.load(name, "train").embeddings for name in store.modalities}
        raw = {name: Moments.from_rows(values) for name, values in rows.items()}
        for data in (store, rows, raw):
            with pytest.warns(OrderWarning):
                pipeline = Pipeline([Collapse(), Normalize()], strict=False)
            mean = pipeline.fit(data).steps[0].state["mean/text"].astype(np.float64)
            np.testing.assert_allclose(mean, rows["text"].astype(np.float64).mean(axis=0), atol=1e-7)

    def test_loaded_moments_of_other_rows_are_refused(self, store: Store, pairs: Pairs) -> None:
        raw = Moments.from_rows(unit_rows(50, 16) * 7)
        save_moments(store.external_path, {"image": raw}, {"split": "train"})  # as a store of before may have them
        with pytest.raises(TransformError, match=r"moments of image .* is 49 instead of 1[\s\S]*c3 means --unload"):
            preset("c3").fit(store)


class TestModality:
    """`transform` knows whose means apply, or asks."""

    def test_it_is_asked_for_where_several_are_fitted(self, pairs: Pairs, tmp_path: Path) -> None:
        pipeline = preset("c3").fit(pairs.moments)
        for each in (pipeline, Pipeline.load(pipeline.save(tmp_path / "p"))):
            with pytest.raises(TransformError, match=r"image and text.*\n.*modality='image' or modality='text'"):
                each.transform(pairs.x)

    @pytest.mark.parametrize("modality", ["image", "text"])
    def test_the_only_one_is_taken(self, pairs: Pairs, modality: str) -> None:
        pipeline = preset("c3").fit({modality: pairs.x})
        assert (pipeline.transform(pairs.x) == pipeline.transform(pairs.x, modality=modality)).all()
        np.testing.assert_allclose(pipeline.transform(pairs.x), unit(pairs.x - pairs.x.mean(axis=0)), atol=1e-6)

    @pytest.mark.parametrize("name", ["decap", "ridge"])
    def test_a_step_for_one_of_two(self, pairs: Pairs, name: str) -> None:
        pipeline = preset(name).fit(pairs.moments, pairs.rows)
        with pytest.raises(TransformError, match="fitted for image and text"):
            pipeline.transform(pairs.x)
        assert (pipeline.transform(pairs.y, training=True) == pipeline.transform(pairs.y, modality="text")).all()

    @pytest.mark.parametrize("name", ["c1", "project-out-gap", "lafite"])
    def test_it_makes_no_difference(self, pairs: Pairs, name: str) -> None:
        pipeline = preset(name).fit(pairs.moments)
        for modality in ("image", "text"):
            assert (pipeline.transform(pairs.x) == pipeline.transform(pairs.x, modality=modality)).all()

    def test_it_is_unknown(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match="not fitted for the modality 'audio', only for image, text"):
            preset("c3").fit(pairs.moments).transform(pairs.x, modality="audio")


@pytest.mark.parametrize("kind", ["list", "float16", "tensor", "bfloat16", "gradient"])
def test_what_stands_for_an_array(pairs: Pairs, kind: str) -> None:
    make: Callable[[npt.NDArray[np.float64]], Any] = {
        "list": lambda x: x.tolist(),
        "float16": lambda x: x.astype(np.float16),
        "tensor": torch.tensor,
        "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
        "gradient": lambda x: torch.tensor(x, requires_grad=True),
    }[kind]
    pipeline = preset("c3", sigma="auto").fit({"image": make(pairs.x), "text": make(pairs.y)})
    got = pipeline.transform(make(pairs.x), modality="image")
    np.testing.assert_allclose(got, unit(pairs.x - pairs.x.mean(axis=0)), atol=2e-2 if kind == "bfloat16" else 2e-3)
    assert got.dtype == np.float32


def test_rows_of_different_lengths_are_no_array() -> None:
    with pytest.raises(TransformError, match=r"rows of image must be numbers of shape \(n, d\)"):
        preset("c3").fit({"image": [[1.0, 2.0], [3.0]]})


class TestSigma:
    def test_auto_is_settled_by_an_array_of_texts(self, store: Store) -> None:
        images, texts = store.pairs(split="train").arrays()  # an image stands once for each of its texts
        pipeline = preset("c3", sigma="auto").fit({"image": images, "text": texts})
        assert pipeline.sigma == pytest.approx(preset("c3", sigma="auto").fit(store).sigma, rel=1e-3)
        items = store.load("text", "train").items
        named = preset("c3", sigma="auto").fit({"text": texts}, items={"text": items})
        assert named.sigma == pytest.approx(pipeline.sigma)
        alone = preset("c3", sigma="auto").fit({"text": texts})
        assert alone.sigma == PUBLISHED_SIGMA and "every image has one caption" in alone.provenance["sigma"]

    @pytest.mark.parametrize("name", ["c3", "c3-span"])
    def test_auto_is_settled_by_the_captions_of_a_store(self, store: Store, name: str, tmp_path: Path) -> None:
        pipeline = preset(name, sigma="auto")
        assert (pipeline.sigma, pipeline.fitted) == ("auto", False)
        pipeline.fit(store)
        expected, why = sigma_by_rule("auto", store)
        assert (pipeline.sigma, pipeline.provenance["sigma"]) == (expected, why)
        assert Pipeline.load(pipeline.save(tmp_path / "p")).sigma == expected

    def test_auto_needs_captions(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"sigma 'auto'[\s\S]*set sigma to a number"):
            preset("c3", sigma="auto").fit(pairs.moments)
        with pytest.raises(TransformError, match="not fitted: its step gaussian-noise"):
            preset("c2-corrupt", sigma="auto").transform(pairs.y)

    @pytest.mark.parametrize("rule", ["auto", "pairs"])
    def test_a_rule_in_a_config(self, rule: str) -> None:
        config = preset("c3", sigma=rule).config()
        assert config["steps"][2]["sigma"] == rule
        assert Pipeline.from_config(config).sigma == rule
        with pytest.raises(TransformError, match="sigma is 'float', not float"):
            Pipeline.from_config({**config, "steps": [{"step": "gaussian-noise", "sigma": "float"}]})

    def test_a_number_stays(self, store: Store) -> None:
        assert preset("c3", sigma=0.3).fit(store).sigma == 0.3
        assert preset("c1").sigma is None


def pairs_store(
    path: Path, splits: list[str], *, alone: int = 0, lonely: int = 0, normalised: bool = True, seed: int = 3
) -> Store:
    """An image with two texts for each split, ``alone`` texts without an image, ``lonely`` images without a text."""
    count = len(splits)
    all_images, all_texts = make_vectors(count + alone + lonely, seed)
    images, lonely_images, texts, lonely_texts = (
        all_images[:count],
        all_images[count : count + lonely],
        all_texts[: 2 * count],
        all_texts[2 * count :: 2][:alone],
    )
    names = [f"photo{i:03d}" for i in range(len(splits))]
    image_rows = Rows.of(
        "image",
        [f"lonely{i}" for i in range(lonely)] + names,
        np.concatenate([lonely_images, images]) * (1 if normalised else 3),
        split=["train"] * lonely + splits,
    )
    own = [name for name in names for _ in (0, 1)]
    text_rows = Rows.of(
        "text",
        [f"alone{i}" for i in range(alone)] + [f"{name}#{j}" for j, name in enumerate(own)],
        np.concatenate([lonely_texts, texts]),
        caption=["a caption"] * (alone + len(own)),
        image_key=[None] * alone + own,
        split=["train"] * alone + [split for split in splits for _ in (0, 1)],
    )
    return build_store(path, image_rows, text_rows, dtype="float32", normalised=normalised)


class TestSigmaOfPairs:
    def test_it_is_the_cosine_of_the_val_pairs_around_the_train_means(self, tmp_path: Path) -> None:
        store = pairs_store(tmp_path / "store", ["train", "train", "val", "test"] * 20)
        pipeline = preset("c3", sigma="pairs").fit(store)
        pairs = store.pairs(split="val")
        means = [store.moments(modality, "train").mean for modality in ("image", "text")]
        expected = pair_cosine(pairs.first.embeddings, pairs.second.embeddings, pairs.item_index, means).sigma
        assert pipeline.sigma == pytest.approx(expected)
        why = f"Sigma {expected:.4g}: the cosine of 20 images of the val split with their 40 captions"
        assert pipeline.provenance["sigma"] == why
        assert f" {why}." in pipeline.describe_fit(store)
        assert Pipeline.load(pipeline.save(tmp_path / "p")).provenance["sigma"] == why
        assert sigma_by_rule("pairs", store, noised="image")[0] != pipeline.sigma

    def test_few_photos_with_captions_among_many_texts(self, tmp_path: Path) -> None:
        splits = ["train"] * 12 + ["val"] * 2 + ["test"] * 6
        store = pairs_store(tmp_path / "store", splits, alone=200)
        sigma, why = sigma_by_rule("pairs", store)
        assert why.endswith(
            "the cosine of 14 images outside the test split with their 28 captions (20 images are recommended)"
        )
        pairs = store.pairs()
        kept = pairs.item_index[:] >= 0
        kept &= np.array(pairs.second.splits) != "test"
        means = [store.moments(modality, "train").mean for modality in ("image", "text")]
        rule = pair_cosine(pairs.first.embeddings, pairs.second.embeddings[kept], pairs.item_index[kept], means)
        assert sigma == pytest.approx(rule.sigma)

    def test_photos_that_are_hidden_among_others_are_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sigma_rules, "MAX_PAIRS", 30)
        store = pairs_store(tmp_path / "store", ["train"] * 15, alone=40, lonely=40)
        assert "15 images outside the test split with their 30 captions" in sigma_by_rule("pairs", store)[1]

    def test_without_images_in_train_the_mean_is_that_of_the_pairs(self, tmp_path: Path) -> None:
        store = pairs_store(tmp_path / "store", ["val"] * 20, alone=30)
        pairs = store.pairs(split="val")
        means = [pairs.first.embeddings.mean(axis=0, dtype=np.float64), store.moments("text", "train").mean]
        rule = pair_cosine(pairs.first.embeddings, pairs.second.embeddings, pairs.item_index, means)
        assert sigma_by_rule("pairs", store)[0] == pytest.approx(rule.sigma)

    def test_loaded_means_are_used(self, tmp_path: Path) -> None:
        store = pairs_store(tmp_path / "store", ["val"] * 20, alone=30)
        before = sigma_by_rule("pairs", store)[0]
        other = Moments.from_rows(unit(store.load("image").embeddings.astype(np.float64) + 0.1))
        save_moments(store.external_path, {"image": other}, {"split": "train"})
        assert sigma_by_rule("pairs", store)[0] > 1.01 * before

    def test_norms_make_no_difference(self, tmp_path: Path) -> None:
        splits = ["train", "val"] * 25
        sigmas = [
            sigma_by_rule("pairs", pairs_store(tmp_path / str(normalised), splits, normalised=normalised))[0]
            for normalised in (True, False)
        ]
        assert sigmas[0] == pytest.approx(sigmas[1], rel=1e-5)

    @pytest.mark.parametrize("count", [0, 9])
    def test_too_few_pairs_are_refused(self, tmp_path: Path, count: int) -> None:
        store = pairs_store(tmp_path / "store", ["val"] * count + ["test"] * 30, alone=30)
        few = rf"at least 10 images with captions, but there are {count} outside the test split in the store .*store"
        with pytest.raises(TransformError, match=few + r"[\s\S]*--sigma auto"):
            preset("c3", sigma="pairs").fit(store)

    def test_a_store_of_texts_is_refused(self, tmp_path: Path) -> None:
        texts = Rows.of("text", ["a"], np.ones((1, 4)) / 2, caption=["a"], image_key=[None])
        store = build_store(tmp_path / "store", texts)
        with pytest.raises(TransformError, match=r"has no images[\s\S]*--sigma auto"):
            sigma_by_rule("pairs", store)

    def test_captions_of_other_images_are_refused(self, tmp_path: Path) -> None:
        images, texts = unit_rows(40, 16, 1), unit_rows(80, 16, 2)
        store = build_store(tmp_path / "store", *two_texts_per_image(["train"] * 40, images, texts))
        with pytest.raises(TransformError, match=r"40 images with captions outside[\s\S]*no closer than unrelated"):
            sigma_by_rule("pairs", store)

    def test_arrays_are_paired_by_place_or_by_items(self, pairs: Pairs) -> None:
        means = [pairs.x.mean(axis=0), pairs.y.mean(axis=0)]
        expected = pair_cosine(pairs.x, pairs.y, np.arange(120), means).sigma
        pipeline = preset("c3", sigma="pairs").fit(pairs.rows)
        assert pipeline.sigma == pytest.approx(expected)
        assert pipeline.provenance["sigma"].endswith("the cosine of 120 images with their 120 captions")
        twice = {"image": np.repeat(pairs.x[:20], 2, axis=0), "text": np.repeat(pairs.y[:20], 2, axis=0)}
        assert "of 20 images with their 40" in preset("c3", sigma="pairs").fit(twice).provenance["sigma"]
        few = {"image": pairs.x[20::-1], "text": pairs.y}
        items = {"image": [str(i) for i in range(20, -1, -1)], "text": [str(i) for i in range(120)]}
        pipeline = preset("c3", sigma="pairs").fit(few, items=items)
        means[0] = pairs.x[:21].mean(axis=0)
        rule = pair_cosine(pairs.x[:21], pairs.y[:21], np.arange(21), means)
        assert pipeline.sigma == pytest.approx(rule.sigma)
        known = {"image": pairs.moments["image"], "text": pairs.moments["text"]}
        pipeline = preset("c3", sigma="pairs").fit(known, few, items=items)
        means[0] = pairs.x.mean(axis=0)
        rule = pair_cosine(pairs.x[:21], pairs.y[:21], np.arange(21), means)
        assert pipeline.sigma == pytest.approx(rule.sigma)

    def test_arrays_without_pairs_are_refused(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"needs pairs, but there are 20 image rows and 120 text rows"):
            preset("c3", sigma="pairs").fit({"image": pairs.x[:20], "text": pairs.y})
        with pytest.raises(TransformError, match=r"derived from images and texts, but no images were given"):
            preset("c3", sigma="pairs").fit({"text": pairs.y})
        with pytest.raises(TransformError, match=r"but there are 9 in the arrays"):
            preset("c3", sigma="pairs").fit({"image": pairs.x[:9], "text": pairs.y[:9]})

    def test_noise_on_images_is_for_generators(self) -> None:
        with pytest.raises(TransformError, match=r"trains on image[\s\S]*train-generator --sigma pairs"):
            preset("c3", sigma="pairs", train_on="image", infer_on="text")


def test_a_notebook_shows_steps_and_origin(store: Store) -> None:
    page = preset("c3", sigma=0.1).fit(store)._repr_html_()
    assert "<td>gaussian-noise</td><td>role training, sigma 0.1</td>" in page
    assert "c3: fitted on 60 image rows, 120 text rows of synthetic" in page
    assert "not fitted" in preset("c3")._repr_html_()
