"""Which moments transforms of a store are fitted on where a modality has few rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import Calibration, Store, gap_report, preset
from c3tools.assets.paths import C3_MINI_MOMENTS
from c3tools.errors import TransformError
from c3tools.moments import Moments, load_moments
from c3tools.store import Rows
from c3tools.store.means import load_means, save_means
from c3tools.transforms.fitting import (
    BUNDLED,
    LOADED,
    RECOMMENDED_ROWS_OF_A_MEAN,
    FittingMoments,
    fitting_moments,
)
from c3tools.transforms.presets import TrainingPipeline
from tests.conftest import MODEL, build_store, unit_rows

DIM = 8
BUNDLED_MOMENTS, _HEADER = load_moments(C3_MINI_MOMENTS)
C3_MINI: dict[str, Any] = _HEADER["model"]


def store_of(
    path: Path,
    texts: int,
    *,
    images: int = 150,
    split: str = "train",
    dim: int = DIM,
    model: Mapping[str, Any] = MODEL,
) -> Store:
    """A store of train images and texts of a split, which do not belong together."""
    keys = {name: [f"{name}{i}" for i in range(n)] for name, n in (("i", images), ("t", texts))}
    image_rows = Rows.of("image", keys["i"], unit_rows(images, dim, 1), split=["train"] * images)
    text_rows = Rows.of(
        "text", keys["t"], unit_rows(texts, dim, 2), split=[split] * texts, caption=keys["t"]
    )
    return build_store(path, image_rows, text_rows, dtype="float32", model=model)


def known(store: Store) -> FittingMoments:
    return fitting_moments(store)


@pytest.mark.parametrize("texts", [1, 19])
def test_nothing_is_centred_below_twenty_rows(tmp_path: Path, texts: int) -> None:
    store = store_of(tmp_path / "s", texts)
    pipeline = preset("gr-clip").fit(store)
    for modality in ("image", "text"):
        rows = store.load(modality).embeddings
        np.testing.assert_allclose(pipeline.transform(rows, modality=modality), rows, atol=1e-6)
    assert f"{texts} text row" in pipeline.provenance["note"]
    assert "Nothing is centred" in pipeline.describe_fit(store)


def test_twenty_rows_have_their_own_mean(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", 20)
    pipeline = preset("gr-clip").fit(store)
    texts = store.load("text").embeddings
    expected = unit_rows_of(texts - texts.mean(axis=0))
    np.testing.assert_allclose(pipeline.transform(texts, modality="text"), expected, atol=1e-5)
    assert pipeline.provenance["moments"] == {"image": "train", "text": "train"}
    assert "The text mean of 20 rows is uncertain" in pipeline.provenance["note"]


def test_a_hundred_rows_need_no_note(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", RECOMMENDED_ROWS_OF_A_MEAN)
    assert "note" not in preset("gr-clip").fit(store).provenance


def test_rows_outside_train_are_no_train_rows(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", 50, split="test")
    assert known(store).too_few == {"text": 0}
    rows = store.load("text").embeddings
    fitted = preset("c3", sigma=0.1).fit(store)
    np.testing.assert_allclose(fitted.transform(rows, modality="text"), rows, atol=1e-6)


def test_few_rows_take_the_moments_bundled_with_their_model(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", 1, dim=256, model=C3_MINI)
    assert known(store).sources == {"image": "train", "text": BUNDLED}
    pipeline = preset("gr-clip").fit(store)
    centre = pipeline.steps[1].state["centre/text"]
    np.testing.assert_array_equal(centre, BUNDLED_MOMENTS["text"].mean)
    assert pipeline.provenance["moments"]["text"] == BUNDLED
    assert "30,000 text rows bundled with c3-mini" in pipeline.describe_fit(store)
    assert "c3 split" not in known(store).note  # one row has no mean in any split


def test_bundled_moments_of_a_store_with_rows_in_other_splits_come_with_a_remedy(
    tmp_path: Path,
) -> None:
    store = store_of(tmp_path / "s", 50, split="test", dim=256, model=C3_MINI)
    assert known(store).sources == {"image": "train", "text": BUNDLED}
    assert "use the store that `c3 split --fractions 1,0,0 -o FOLDER` writes" in known(store).note


def test_a_store_without_train_rows_is_told_what_its_commands_have(tmp_path: Path) -> None:
    texts = Rows.of("text", ["a", "b"], unit_rows(2, DIM, 0), split=["test"] * 2)
    store = build_store(tmp_path / "s", texts)
    with pytest.raises(TransformError, match="no rows in the split 'train'") as error:
        preset("gr-clip").fit(store)
    assert "Make new splits with `c3 split`" in str(error.value)
    assert "fit on another split in Python" in str(error.value)


def test_loaded_moments_come_first(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", 3)
    other = store_of(tmp_path / "other", 40)
    save_means(other, tmp_path / "m.safetensors")
    load_means(store, tmp_path / "m.safetensors")
    found = known(Store.open(store.path))
    assert found.sources == {"image": LOADED, "text": LOADED}
    np.testing.assert_array_equal(found.moments["text"].mean, other.moments("text").mean)


def test_an_absent_modality_does_not_count(tmp_path: Path) -> None:
    texts = Rows.of("text", [f"t{i}" for i in range(30)], unit_rows(30, DIM, 0), caption=["a"] * 30)
    store = build_store(tmp_path / "s", texts)
    assert not known(store).too_few


@pytest.mark.parametrize("name", ["whiten", "standardize", "gap-shift", "realign", "tomcap"])
def test_methods_that_need_more_than_means_are_refused(tmp_path: Path, name: str) -> None:
    store = store_of(tmp_path / "s", 3)
    with pytest.raises(
        TransformError, match="needs the moments of 'text' rows, but only 3 are in the train split"
    ):
        preset(name).fit(store)


def test_a_training_says_that_nothing_is_centred(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", 3)
    pipeline, notes = TrainingPipeline("c3", 0.1).fit(store, "train", "text")
    assert pipeline.knows("image")
    assert any("Nothing is centred" in note for note in notes)


def test_scores_are_cosines_where_nothing_is_known(tmp_path: Path) -> None:
    calibration = Calibration.fit(store_of(tmp_path / "s", 1))
    query, cosines = unit_rows(1, DIM, 3)[0], np.array([0.3, -0.2])
    np.testing.assert_array_equal(calibration.z(query, cosines, "text"), cosines)


def test_a_report_says_that_nothing_is_centred(tmp_path: Path) -> None:
    report = gap_report(store_of(tmp_path / "s", 5))
    assert any("Nothing is centred" in note for note in report.notes)
    assert "all rows" in report.provenance["fitted_on"]


@pytest.mark.parametrize("of_moments", [False, True])
def test_one_row_of_arrays_is_refused(of_moments: bool) -> None:
    row = unit_rows(1, DIM, 0)
    given: Any = Moments.from_rows(row) if of_moments else row
    with pytest.raises(TransformError, match="1 text row: the row is its own mean"):
        preset("gr-clip").fit({"image": unit_rows(30, DIM, 1), "text": given})


def test_few_given_moments_have_a_note() -> None:
    for count in (19, 20):
        moments = Moments.from_rows(unit_rows(count, DIM, 0))
        pipeline = preset("gr-clip").fit({"text": moments})
        assert ("means of 19 text rows" in pipeline.provenance.get("note", "")) == (count == 19)


@pytest.mark.parametrize("as_rows", [False, True])
def test_nothing_is_centred_below_twenty_rows_of_arrays(as_rows: bool) -> None:
    arrays = {"image": unit_rows(150, DIM, 1), "text": unit_rows(19, DIM, 2)}
    given: Any = {"rows": arrays} if as_rows else {"data": arrays}
    with pytest.warns(UserWarning, match=r"Nothing is centred: .* there are 19 text rows"):
        pipeline = preset("gr-clip").fit(**given)
    for modality, rows in arrays.items():
        np.testing.assert_allclose(pipeline.transform(rows, modality=modality), rows, atol=1e-6)
    assert "Nothing is centred" in pipeline.provenance["note"]


def test_twenty_rows_of_arrays_have_their_own_mean() -> None:
    rows = unit_rows(20, DIM, 2)
    got = preset("gr-clip").fit({"text": rows}).transform(rows, modality="text")
    np.testing.assert_allclose(got, unit_rows_of(rows - rows.mean(axis=0)), atol=1e-5)


def test_methods_that_need_more_than_means_refuse_few_rows_of_arrays() -> None:
    with pytest.raises(TransformError, match="needs the moments of 'text' rows, but only 3 are"):
        preset("whiten").fit({"image": unit_rows(150, DIM, 1), "text": unit_rows(3, DIM, 2)})


def test_scores_are_cosines_below_twenty_rows_of_arrays() -> None:
    with pytest.warns(UserWarning, match="Nothing is centred"):
        calibration = Calibration.fit({"image": unit_rows(150, DIM, 1), "text": unit_rows(5, DIM)})
    cosines = np.array([0.3, -0.2])
    query = unit_rows(1, DIM, 3)[0]
    for modality in ("image", "text"):
        np.testing.assert_array_equal(calibration.z(query, cosines, modality), cosines)


def unit_rows_of(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
