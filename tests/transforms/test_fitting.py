"""What pipelines are fitted on: a store, moments, or arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from c3tools.errors import TransformError
from c3tools.moments import Moments, save_moments
from c3tools.store import Store
from c3tools.transforms import Pipeline, preset
from c3tools.transforms.fitting import fit_moments, read_rows
from c3tools.transforms.sigma import auto_sigma
from tests.stores import gap_store, make_vectors, unit

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
    moments = fit_moments(store, "text")
    assert moments.n == 120
    np.testing.assert_allclose(moments.mean, expected.mean(axis=0), atol=1e-7)


def test_rows_are_read_up_to_a_limit(store: Store) -> None:
    rows = read_rows(store, "train", 50)
    for modality, read in rows.items():
        assert (read == store.load(modality, "train").embeddings[:50]).all()
    pipeline = preset("decap").fit(store, max_rows=50)
    assert pipeline.provenance["rows"] == {"image": 50, "text": 50}


@pytest.mark.parametrize("max_rows", [7, 60, 100, 1000])
def test_pairs_are_each_text_with_its_image(store: Store, max_rows: int) -> None:
    images, texts = store.load("image", "train"), store.load("text", "train")
    position = {key: row for row, key in enumerate(images.keys[:max_rows])}
    pairs = [(position[k], row) for row, k in enumerate(texts.column("image_key")) if k in position][:max_rows]
    read = read_rows(store, "train", max_rows, paired=True)
    assert (read["image"] == images.embeddings[[image for image, _ in pairs]]).all()
    assert (read["text"] == texts.embeddings[[text for _, text in pairs]]).all()


def test_a_split_without_pairs(store: Store) -> None:
    with pytest.raises(TransformError, match=r"no pairs of images and texts in the split 'nowhere'"):
        preset("ridge").fit(store, split="nowhere")


def test_an_array_alone_has_no_modality(pairs: Pairs) -> None:
    with pytest.raises(TransformError, match="by modality, not on ndarray"):
        preset("c3").fit(pairs.x)  # type: ignore[arg-type]


def test_other_splits_are_refused(store: Store) -> None:
    with pytest.raises(TransformError, match="fitted on the test split"):
        preset("c3").fit(store, split="test")


class TestSigma:
    @pytest.mark.parametrize("name", ["c3", "c3-span"])
    def test_auto_is_settled_by_the_captions_of_a_store(self, store: Store, name: str, tmp_path: Path) -> None:
        pipeline = preset(name, sigma="auto")
        assert (pipeline.sigma, pipeline.fitted) == ("auto", False)
        pipeline.fit(store)
        texts = store.load("text", "train")
        expected, why = auto_sigma(texts.embeddings, texts.item_index, store.moments("text", "train").mean)
        assert (pipeline.sigma, pipeline.provenance["sigma"]) == (expected, why)
        assert Pipeline.load(pipeline.save(tmp_path / "p")).sigma == expected

    def test_auto_needs_captions(self, pairs: Pairs) -> None:
        with pytest.raises(TransformError, match=r"sigma 'auto'[\s\S]*give sigma a number"):
            preset("c3", sigma="auto").fit(pairs.moments)
        with pytest.raises(TransformError, match="not fitted: its step gaussian-noise"):
            preset("c2-corrupt", sigma="auto").transform(pairs.y)

    def test_auto_in_a_config(self) -> None:
        config = preset("c3", sigma="auto").config()
        assert config["steps"][2]["sigma"] == "auto"
        assert Pipeline.from_config(config).sigma == "auto"

    def test_a_number_stays(self, store: Store) -> None:
        assert preset("c3", sigma=0.3).fit(store).sigma == 0.3
        assert preset("c1").sigma is None


def test_a_notebook_shows_steps_and_origin(store: Store) -> None:
    page = preset("c3", sigma=0.1).fit(store)._repr_html_()
    assert "<td>gaussian-noise</td><td>role training, sigma 0.1</td>" in page
    assert "c3: fitted on 60 image rows, 120 text rows of synthetic" in page
    assert "not fitted" in preset("c3")._repr_html_()
