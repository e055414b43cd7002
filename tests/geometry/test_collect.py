from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.errors import StoreError
from c3tools.geometry import collect, reading, stream
from c3tools.geometry.report import gap_report
from c3tools.identity import ModelIdentity
from c3tools.store import Rows, Shard, StoreInfo, create_store, write_shard
from tests.conftest import build_store, make_store, unit_rows
from tests.geometry.spaces import paper_model, reported_measures, unit

ONLY_TWO = ("raw", "c2-collapse")


@pytest.mark.parametrize("window", [None, 10])
def test_pairs_are_found_by_key_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """A shuffled store gives the same numbers; with a small window the first modality is spilled to a file."""
    image, text, owner = paper_model(90, 8, captions=2)
    x, y = unit(image).astype(np.float32), unit(text).astype(np.float32)
    make_store(tmp_path / "ordered", x, y, owners=list(owner), part_rows=25)
    order = np.random.default_rng(3).permutation(180)
    make_store(tmp_path / "shuffled", x, y[order], owners=list(owner[order]), part_rows=25)
    if window is not None:
        monkeypatch.setattr(reading, "MAX_WINDOW_ROWS", window)
    ordered = reported_measures(gap_report(tmp_path / "ordered", presets=ONLY_TWO).values)
    assert reported_measures(gap_report(tmp_path / "shuffled", presets=ONLY_TWO).values) == pytest.approx(ordered)


def test_large_stores_are_measured_on_a_stated_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, owner = paper_model(400, 8, captions=2, sigma=0.05)
    x, y = unit(image).astype(np.float32), unit(text).astype(np.float32)
    make_store(tmp_path / "s", x, y, owners=list(owner))
    whole = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    monkeypatch.setattr(collect, "EXACT_SCORES", 1000)
    monkeypatch.setattr(collect, "SAMPLE_ITEMS", 50)
    sampled = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    again = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    assert sampled == again
    assert sampled["provenance"]["working_set"] == {"complete": False, "image": 50, "text": 100}
    assert any("seeded sample of 50 image rows with all their 100 text rows" in note for note in sampled["notes"])
    exact = ("gap", "pairs", "modalities")
    for part in exact:
        # what is taken off for chance rests on the covariance of the sample
        assert {k: v for k, v in sampled[part].items() if "interval" not in k and "debiased" not in k} == {
            k: v for k, v in whole[part].items() if "interval" not in k and "debiased" not in k
        }
    assert sampled["gap"]["length_debiased"] == pytest.approx(whole["gap"]["length_debiased"], rel=1e-4)
    low, high = sampled["gap"]["length_interval"]
    assert low < sampled["gap"]["length"] < high


def test_float32_batches_agree_with_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, owner = paper_model(200, 16, captions=2)
    make_store(tmp_path / "s", unit(image).astype(np.float32), unit(text).astype(np.float32), owners=list(owner))
    exact = reported_measures(gap_report(tmp_path / "s", presets=ONLY_TWO).values)
    monkeypatch.setattr(stream, "EXACT_VALUES", 0)
    assert reported_measures(gap_report(tmp_path / "s", presets=ONLY_TWO).values) == pytest.approx(exact, abs=2e-6)


def test_texts_alone_beside_pairs_count_for_the_mean_only(tmp_path: Path) -> None:
    x, y, _ = paper_model(40, 8)
    x, y = unit(x).astype(np.float32), unit(y).astype(np.float32)
    extra = unit_rows(60, 8, seed=5)
    make_store(tmp_path / "s", x, np.concatenate([y, extra]), owners=[*range(40), *[None] * 60])
    values = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    assert (values["pairs"]["n"], values["modalities"]["text"]["n"]) == (40, 100)
    cosines = unit(x) @ unit(y).T
    off = cosines[~np.eye(40, dtype=bool)].mean()
    assert values["pairs"]["unpaired_cosine"] == pytest.approx(off, abs=1e-6)


@pytest.mark.parametrize("paired", [30, 5, 0])
def test_captions_of_one_image_count_as_one_row_whether_the_image_is_there_or_not(tmp_path: Path, paired: int) -> None:
    owners = [*np.repeat(np.arange(30) + 30 - paired, 3), None, None]
    make_store(tmp_path / "s", unit_rows(30, 8), unit_rows(92, 8, seed=1), owners=owners)
    values = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    assert values["provenance"]["items"] == paired
    assert [values["modalities"][name]["independent_rows"] for name in ("image", "text")] == [30, 32]
    alone = gap_report(tmp_path / "s", modalities=["text"]).values
    assert alone["modalities"]["text"] == values["modalities"]["text"]


def test_independent_rows_are_those_of_the_split_that_are_valid(tmp_path: Path) -> None:
    rows, owners = unit_rows(60, 8), [f"i{k // 3}" for k in range(60)]
    rows[:3] = 0
    texts = Rows.of("text", [f"t{k}" for k in range(60)], rows, image_key=owners, split=["val", "test"] * 30)
    images = Rows.of("image", [f"i{k}" for k in range(20)], unit_rows(20, 8, seed=1), split=["val"] * 20)
    build_store(tmp_path / "s", images, texts)
    for chosen in (None, ["text"]):
        values = gap_report(tmp_path / "s", modalities=chosen, split="val", skip_invalid=True).values
        assert (values["modalities"]["text"]["n"], values["modalities"]["text"]["independent_rows"]) == (28, 19)


def test_one_modality_is_checked_too(tmp_path: Path) -> None:
    info = StoreInfo(ModelIdentity(name="m"), 4, dtype="float32")
    create_store(tmp_path / "s", info)
    rows = 2 * unit_rows(9, 4)
    rows[3] = np.nan
    with np.errstate(all="ignore"):
        write_shard(tmp_path / "s", info, Shard("text", 0, rows, {"key": list("abcdefghi")}))
    with pytest.raises(StoreError, match=r"text: 1 with NaN or infinity, 0 of norm 0 \(d\)"):
        gap_report(tmp_path / "s")
    values = gap_report(tmp_path / "s", skip_invalid=True).values
    found = values["modalities"]["text"]
    expected = np.delete(unit_rows(9, 4), 3, axis=0).mean(axis=0)
    assert found["n"] == 8
    assert found["mean_norm"] == pytest.approx(np.linalg.norm(expected), abs=1e-6)
    assert any("left out" in note for note in values["notes"])
    assert any("norm 1" in note for note in values["notes"])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_invalid_rows_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    image, text, owner = paper_model(60, 8, captions=2)
    x, y = unit(image).astype(np.float32), unit(text).astype(np.float32)
    clean = make_store(
        tmp_path / "clean",
        np.delete(x, 7, axis=0),
        np.delete(y, [14, 15, 30], axis=0),
        owners=[int(o) - int(o > 7) for o in np.delete(owner, [14, 15, 30])],
    )
    x[7, 0], y[30] = np.nan, 0.0
    make_store(tmp_path / "s", x, y, owners=list(owner))
    with pytest.raises(
        StoreError, match=r"image: 1 with NaN or infinity, 0 of norm 0 .image7.; text: 0 .* 1 of norm 0"
    ):
        gap_report(tmp_path / "s")
    values = gap_report(tmp_path / "s", skip_invalid=True, presets=ONLY_TWO).values
    assert values["modalities"]["image"]["n"] == 59
    assert values["pairs"]["n"] == 117
    assert values["pairs"]["paired_cosine"] == pytest.approx(
        gap_report(clean.path, presets=ONLY_TWO).values["pairs"]["paired_cosine"], abs=1e-6
    )
    assert any("1 of 60 image rows were left out" in note for note in values["notes"])


def test_overflow_of_float16_is_explained(tmp_path: Path) -> None:
    x, y = unit_rows(10, 4), unit_rows(10, 4, seed=1)
    x[3, 0] = np.inf
    with np.errstate(all="ignore"):
        make_store(tmp_path / "s", x, y, dtype="float16")
    with pytest.raises(StoreError, match="65,504"):
        gap_report(tmp_path / "s")


def test_vectors_of_other_lengths_are_normalised_and_that_is_said(tmp_path: Path) -> None:
    image, text, _ = paper_model(50, 8)
    make_store(tmp_path / "loose", image.astype(np.float32), text.astype(np.float32))
    make_store(tmp_path / "unit", unit(image).astype(np.float32), unit(text).astype(np.float32))
    loose = gap_report(tmp_path / "loose", presets=ONLY_TWO).values
    expected = reported_measures(gap_report(tmp_path / "unit", presets=ONLY_TWO).values)
    assert reported_measures(loose) == pytest.approx(expected, abs=1e-6)
    assert any("do not have norm 1 exactly" in note for note in loose["notes"])


@pytest.mark.parametrize("rows", [1, 2])
def test_fewer_than_three_rows_are_refused(tmp_path: Path, rows: int) -> None:
    make_store(tmp_path / "s", unit_rows(rows, 4), unit_rows(rows, 4, seed=1))
    with pytest.raises(StoreError, match=rf"has {rows} rows?; a report needs at least 3"):
        gap_report(tmp_path / "s")


def test_three_rows_are_enough(tmp_path: Path) -> None:
    make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4, seed=1))
    values = gap_report(tmp_path / "s").values
    assert values["pairs"]["n"] == 3
    json.dumps(values, allow_nan=False)


def test_an_empty_store_and_a_split_without_rows(tmp_path: Path) -> None:
    create_store(tmp_path / "empty", StoreInfo(ModelIdentity(name="m"), 4))
    with pytest.raises(StoreError, match="is empty"):
        gap_report(tmp_path / "empty")
    make_store(tmp_path / "s", unit_rows(5, 4), unit_rows(5, 4, seed=1))
    with pytest.raises(StoreError, match="0 rows in the split 'test'"):
        gap_report(tmp_path / "s", split="test")


def test_collapse_is_fitted_on_train_where_there_is_enough_of_it(tmp_path: Path) -> None:
    x, y, _ = paper_model(150, 8)
    make_store(tmp_path / "many", unit(x).astype(np.float32), unit(y).astype(np.float32))
    make_store(tmp_path / "few", unit(x[:50]).astype(np.float32), unit(y[:50]).astype(np.float32))
    assert (
        "the train split (150 image, 150 text rows" in gap_report(tmp_path / "many").values["provenance"]["fitted_on"]
    )
    assert "fewer than 100 rows" in gap_report(tmp_path / "few").values["provenance"]["fitted_on"]


@pytest.mark.parametrize("flaw", ["all lengths", "a few lengths", "an invalid row"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_collapse_is_fitted_on_train_where_rows_of_another_split_are_mended(tmp_path: Path, flaw: str) -> None:
    x, y, _ = paper_model(200, 8)
    x, y = unit(x).astype(np.float32), unit(y).astype(np.float32)
    splits = ["train"] * 150 + ["test"] * 50

    def found(name: str, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
        keys = [f"i{k}" for k in range(200)]
        images = Rows.of("image", keys, x, split=splits)
        texts = Rows.of("text", keys, y, image_key=keys, split=splits)
        build_store(tmp_path / name, images, texts, dtype="float32", normalised=flaw != "all lengths")
        return gap_report(tmp_path / name, split="test", skip_invalid=True, presets=ONLY_TWO).values

    expected = found("clean", x, y)
    lengths = np.ones(200, dtype=np.float32)
    if flaw == "all lengths":
        lengths = np.linspace(0.5, 2, 200, dtype=np.float32)
    else:
        lengths[199] = 2 if flaw == "a few lengths" else np.nan
    mended = found("flawed", x * lengths[:, None], y)
    assert mended["provenance"]["fitted_on"] == expected["provenance"]["fitted_on"]
    assert "the train split (150 image, 150 text rows" in mended["provenance"]["fitted_on"]
    if flaw != "an invalid row":
        gaps = [values["spaces"]["c2-collapse"]["gap"] for values in (mended, expected)]
        assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)
