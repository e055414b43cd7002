from __future__ import annotations

import json

import numpy as np
import pytest

from c3tools.corpus.splits import hashed_split
from c3tools.errors import StoreError
from c3tools.geometry import collect as collecting
from c3tools.geometry import reading
from c3tools.geometry.gap_report import compare, gap_report
from c3tools.store import Shard, Store, StoreInfo, create_store, write_shard
from tests.conftest import make_store, unit_rows
from tests.geometry.spaces import paper_model, plain_measures, reported_measures, unit

ONLY_TWO = ("raw", "c2-collapse")


def test_agrees_with_plain_numpy_where_images_have_many_captions(tmp_path):
    image, text, owner = paper_model(130, 16, captions=3, sigma=0.08)
    x, y = unit(image).astype(np.float32), unit(text).astype(np.float32)
    make_store(tmp_path / "s", x, y, owners=list(owner), part_rows=70)
    values = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    expected = plain_measures(x, y, owner, np.arange(130), np.arange(390))
    assert reported_measures(values) == pytest.approx(expected, abs=1e-6)
    assert values["pairs"]["n"] == 390
    assert values["pairs"]["items"] == 130
    assert values["modalities"]["text"]["independent_rows"] == 130


def test_published_numbers_on_500_clip_pairs(tmp_path, shared_data):
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    image, text = np.load(folder / "image.npy"), np.load(folder / "text.npy")
    make_store(tmp_path / "s", image, text, split=None)
    values = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    train = np.array([hashed_split(f"image{i}") == "train" for i in range(500)])
    expected = plain_measures(image, text, np.arange(500), train, train)
    assert reported_measures(values) == pytest.approx(expected, abs=1e-6)
    assert values["gap"]["length"] == pytest.approx(0.8514, abs=5e-5)
    assert values["gap"]["rmg"] == pytest.approx(0.5915, abs=5e-5)
    assert values["pairs"]["paired_cosine"] == pytest.approx(0.310, abs=5e-4)
    assert values["pairs"]["unpaired_cosine"] == pytest.approx(0.162, abs=5e-4)
    assert values["pairs"]["residual_rms"] == pytest.approx(0.0358, abs=5e-5)
    assert values["retrieval"]["raw"]["image_to_text"]["recall@1"] == 0.552
    assert values["retrieval"]["raw"]["text_to_image"]["recall@1"] == 0.506
    assert values["assumptions"]["isotropic"]["answer"] == "no"
    assert (values["noise"]["std_smallest"], values["noise"]["std_largest"]) == pytest.approx((0.020, 0.114), abs=5e-4)
    assert values["sigma"]["candidates"]["pair_cosine"]["sigma"] == pytest.approx(0.093, abs=1e-3)
    assert any("limited by the number of rows" in note for note in values["notes"])


@pytest.mark.parametrize("window", [None, 10])
def test_pairs_are_found_by_key_in_any_order(tmp_path, monkeypatch, window):
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


def test_large_stores_are_measured_on_a_stated_sample(tmp_path, monkeypatch):
    image, text, owner = paper_model(400, 8, captions=2, sigma=0.05)
    x, y = unit(image).astype(np.float32), unit(text).astype(np.float32)
    make_store(tmp_path / "s", x, y, owners=list(owner))
    whole = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    monkeypatch.setattr(collecting, "EXACT_SCORES", 1000)
    monkeypatch.setattr(collecting, "SAMPLE_ITEMS", 50)
    sampled = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    again = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    assert sampled == again
    assert sampled["provenance"]["working_set"] == {"complete": False, "image": 50, "text": 100}
    assert any("seeded sample of 50 image rows with all their 100 text rows" in note for note in sampled["notes"])
    exact = ("gap", "pairs", "modalities")
    for part in exact:
        assert {k: v for k, v in sampled[part].items() if "interval" not in k} == {
            k: v for k, v in whole[part].items() if "interval" not in k
        }
    low, high = sampled["gap"]["length_interval"]
    assert low < sampled["gap"]["length"] < high


def test_float32_batches_agree_with_float64(tmp_path, monkeypatch):
    from c3tools.geometry import stream

    image, text, owner = paper_model(200, 16, captions=2)
    make_store(tmp_path / "s", unit(image).astype(np.float32), unit(text).astype(np.float32), owners=list(owner))
    exact = reported_measures(gap_report(tmp_path / "s", presets=ONLY_TWO).values)
    monkeypatch.setattr(stream, "EXACT_VALUES", 0)
    assert reported_measures(gap_report(tmp_path / "s", presets=ONLY_TWO).values) == pytest.approx(exact, abs=2e-6)


def test_split_narrows_and_subsets_are_compared(tmp_path):
    x, y, _ = paper_model(120, 8)
    x, y = unit(x).astype(np.float32), unit(y).astype(np.float32)
    info = StoreInfo({"name": "m"}, 8, dtype="float32")
    create_store(tmp_path / "s", info)
    keys, split = [f"i{k}" for k in range(120)], ["train", "val"] * 60
    write_shard(tmp_path / "s", info, Shard("image", 0, x, {"key": keys, "split": split}))
    text = {"key": [f"{k}#0" for k in keys], "image_key": keys, "split": split}
    write_shard(tmp_path / "s", info, Shard("text", 0, y, text))
    val = gap_report(tmp_path / "s", split="val", presets=ONLY_TWO).values
    assert val["modalities"]["image"]["n"] == val["pairs"]["n"] == 60
    expected = np.linalg.norm(x[1::2].mean(axis=0, dtype=float) - y[1::2].mean(axis=0, dtype=float))
    assert val["gap"]["length"] == pytest.approx(expected, abs=1e-6)
    both = gap_report(tmp_path / "s", by="split", presets=ONLY_TWO).values["subsets"]
    assert [(row["value"], row["pairs"]) for row in both] == [("train", 60), ("val", 60)]
    assert both[1]["length"] == pytest.approx(expected, abs=1e-6)
    assert both[1]["cosine_with_gap"] > 0.99
    with pytest.raises(StoreError, match="no column 'colour'"):
        gap_report(tmp_path / "s", by="colour")
    with pytest.raises(StoreError, match="has 120 values"):
        gap_report(tmp_path / "s", by="image_key")


def store_with_topics(path, turn):
    """200 pairs, half of them of the topic ``b``, whose gap is turned by the angle ``turn``."""
    image, text, _ = paper_model(200, 8, gap=0.8, sigma=0.02)
    image[:, 7], text[:, 7] = 1.0, 1.0
    half = np.arange(200) >= 100
    for rows, sign in ((image, 0.4), (text, -0.4)):
        rows[half, 0], rows[half, 1] = sign * np.cos(turn), sign * np.sin(turn)
    info = StoreInfo({"name": "m"}, 8, dtype="float32")
    create_store(path, info)
    keys, topics = [f"i{k}" for k in range(200)], ["a"] * 100 + ["b"] * 100
    write_shard(path, info, Shard("image", 0, unit(image).astype(np.float32), {"key": keys, "split": topics}))
    columns = {"key": [f"{k}#0" for k in keys], "image_key": keys}
    write_shard(path, info, Shard("text", 0, unit(text).astype(np.float32), columns))


@pytest.mark.parametrize(("turn", "answer"), [(0.0, "yes"), (np.pi / 3, "partly"), (np.pi / 2, "no")])
def test_a_gap_that_turns_with_a_column_is_seen(tmp_path, turn, answer):
    store_with_topics(tmp_path / "s", turn)
    values = gap_report(tmp_path / "s", by="split", presets=ONLY_TWO).values
    found = values["assumptions"]["subsets"]
    assert found["answer"] == answer
    # two vectors of one length at an angle: each is off their mean by tan(angle / 2) of its length
    assert found["number"] == pytest.approx(np.tan(turn / 2), abs=0.02)
    assert [row["items"] for row in values["subsets"]] == [100, 100]


def test_chance_differences_of_small_subsets_are_taken_off(tmp_path):
    x, y, _ = paper_model(400, 16, gap=0.3, sigma=0.2)
    info = StoreInfo({"name": "m"}, 16, dtype="float32")
    create_store(tmp_path / "s", info)
    keys, topics = [f"i{k}" for k in range(400)], [f"topic {k % 40}" for k in range(400)]
    write_shard(tmp_path / "s", info, Shard("image", 0, unit(x).astype(np.float32), {"key": keys, "split": topics}))
    columns = {"key": [f"{k}#0" for k in keys], "image_key": keys}
    write_shard(tmp_path / "s", info, Shard("text", 0, unit(y).astype(np.float32), columns))
    rows = gap_report(tmp_path / "s", by="split", presets=ONLY_TWO).values["subsets"]
    # 40 subsets of ten items with the same gap: what is left beyond chance is half of the time nothing
    assert np.mean([row["difference"] == 0 for row in rows]) > 0.3
    assert np.mean([row["difference"] for row in rows]) < 0.25


def test_a_column_without_values_is_refused(tmp_path):
    make_store(tmp_path / "s", unit_rows(20, 4), unit_rows(20, 4, seed=1), split=None)
    with pytest.raises(StoreError, match="is empty for every pair"):
        gap_report(tmp_path / "s", by="split")


def test_fewer_rows_than_dimensions_are_said_to_limit_the_dimension(tmp_path):
    make_store(tmp_path / "s", unit_rows(12, 32), unit_rows(12, 32, seed=1))
    values = gap_report(tmp_path / "s").values
    assert values["modalities"]["image"]["limited_by_rows"]
    assert values["modalities"]["image"]["effective_dimension"] <= 11
    assert any("image: 12 rows span at most 11 of 32 dimensions" in note for note in values["notes"])


def test_collapse_is_fitted_on_train_where_there_is_enough_of_it(tmp_path):
    x, y, _ = paper_model(150, 8)
    make_store(tmp_path / "many", unit(x).astype(np.float32), unit(y).astype(np.float32))
    make_store(tmp_path / "few", unit(x[:50]).astype(np.float32), unit(y[:50]).astype(np.float32))
    assert (
        "the train split (150 image, 150 text rows" in gap_report(tmp_path / "many").values["provenance"]["fitted_on"]
    )
    assert "fewer than 100 rows" in gap_report(tmp_path / "few").values["provenance"]["fitted_on"]


def test_unpaired_modalities_still_have_a_gap(tmp_path):
    make_store(tmp_path / "s", unit_rows(30, 8), unit_rows(40, 8, seed=1), owners=[None] * 40)
    values = gap_report(tmp_path / "s").values
    assert values["gap"]["length"] > 0
    assert values["pairs"] is None
    assert values["retrieval"] == {}
    assert any("No text row belongs to any image row" in note and "cannot be given" in note for note in values["notes"])
    assert values["assumptions"]["isotropic"]["answer"] == "unknown"
    assert values["sigma"]["recommended"] == "published"


def test_texts_alone_beside_pairs_count_for_the_mean_only(tmp_path):
    x, y, _ = paper_model(40, 8)
    x, y = unit(x).astype(np.float32), unit(y).astype(np.float32)
    extra = unit_rows(60, 8, seed=5)
    make_store(tmp_path / "s", x, np.concatenate([y, extra]), owners=[*range(40), *[None] * 60])
    values = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    assert (values["pairs"]["n"], values["modalities"]["text"]["n"]) == (40, 100)
    cosines = unit(x) @ unit(y).T
    off = cosines[~np.eye(40, dtype=bool)].mean()
    assert values["pairs"]["unpaired_cosine"] == pytest.approx(off, abs=1e-6)


def test_one_modality_says_what_cannot_be_said(tmp_path):
    info = StoreInfo({"name": "m"}, 4, dtype="float32")
    create_store(tmp_path / "s", info)
    write_shard(tmp_path / "s", info, Shard("text", 0, unit_rows(9, 4), {"key": [str(k) for k in range(9)]}))
    values = gap_report(tmp_path / "s").values
    assert values["gap"] is None
    assert values["modalities"]["text"]["n"] == 9
    assert "one modality" in values["notes"][0]


def test_one_modality_is_checked_too(tmp_path):
    info = StoreInfo({"name": "m"}, 4, dtype="float32")
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
    assert any("unit length" in note for note in values["notes"])


def test_other_modalities_can_be_chosen(tmp_path):
    x, y, _ = paper_model(30, 8)
    store = make_store(tmp_path / "s", unit(x).astype(np.float32), unit(y).astype(np.float32))
    audio = {"key": [f"audio{k}" for k in range(30)], "pair_key": [f"image{k}" for k in range(30)]}
    write_shard(tmp_path / "s", store.info, Shard("audio", 0, unit(x[:, ::-1]).astype(np.float32), audio))
    values = gap_report(tmp_path / "s", modalities=("audio", "text")).values
    assert set(values["modalities"]) == {"audio", "text"}
    assert values["pairs"]["n"] == 30
    assert "audio_to_text" in values["retrieval"]["raw"]
    default = gap_report(tmp_path / "s").values
    assert set(default["modalities"]) == {"image", "text"}
    assert any("also has audio" in note for note in default["notes"])
    means = {"image": unit(x), "text": unit(y), "audio": unit(x[:, ::-1])}
    assert [(row["first"], row["second"]) for row in default["modality_gaps"]] == [
        ("image", "text"),
        ("image", "audio"),
        ("text", "audio"),
    ]
    for row in default["modality_gaps"]:
        expected = np.linalg.norm(means[row["first"]].mean(axis=0) - means[row["second"]].mean(axis=0))
        assert row["length"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(StoreError, match="two different modalities"):
        gap_report(tmp_path / "s", modalities=("text", "text"))
    with pytest.raises(StoreError, match="no modality 'video'"):
        gap_report(tmp_path / "s", modalities=("video", "text"))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_invalid_rows_are_named_and_can_be_left_out(tmp_path):
    image, text, owner = paper_model(60, 8, captions=2)
    x, y = unit(image).astype(np.float32), unit(text).astype(np.float32)
    clean = make_store(
        tmp_path / "clean",
        np.delete(x, 7, axis=0),
        np.delete(y, [14, 15, 30], axis=0),
        owners=[int(o) - (o > 7) for o in np.delete(owner, [14, 15, 30])],
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


def test_overflow_of_float16_is_explained(tmp_path):
    x, y = unit_rows(10, 4), unit_rows(10, 4, seed=1)
    x[3, 0] = np.inf
    with np.errstate(all="ignore"):
        make_store(tmp_path / "s", x, y, dtype="float16")
    with pytest.raises(StoreError, match="65,504"):
        gap_report(tmp_path / "s")


def test_vectors_of_other_lengths_are_normalised_and_that_is_said(tmp_path):
    image, text, _ = paper_model(50, 8)
    make_store(tmp_path / "loose", image.astype(np.float32), text.astype(np.float32))
    make_store(tmp_path / "unit", unit(image).astype(np.float32), unit(text).astype(np.float32))
    loose = gap_report(tmp_path / "loose", presets=ONLY_TWO).values
    expected = reported_measures(gap_report(tmp_path / "unit", presets=ONLY_TWO).values)
    assert reported_measures(loose) == pytest.approx(expected, abs=1e-6)
    assert any("not exactly of unit length" in note for note in loose["notes"])


@pytest.mark.parametrize("rows", [1, 2])
def test_fewer_than_three_rows_are_refused(tmp_path, rows):
    make_store(tmp_path / "s", unit_rows(rows, 4), unit_rows(rows, 4, seed=1))
    with pytest.raises(StoreError, match=f"has {rows} rows; a report needs at least 3"):
        gap_report(tmp_path / "s")


def test_three_rows_are_enough(tmp_path):
    make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4, seed=1))
    values = gap_report(tmp_path / "s").values
    assert values["pairs"]["n"] == 3
    json.dumps(values, allow_nan=False)


def test_an_empty_store_and_a_split_without_rows(tmp_path):
    create_store(tmp_path / "empty", StoreInfo({"name": "m"}, 4))
    with pytest.raises(StoreError, match="is empty"):
        gap_report(tmp_path / "empty")
    make_store(tmp_path / "s", unit_rows(5, 4), unit_rows(5, 4, seed=1))
    with pytest.raises(StoreError, match="0 rows in the split 'test'"):
        gap_report(tmp_path / "s", split="test")


def test_rows_that_are_all_equal_are_measured_as_far_as_possible(tmp_path):
    x = np.tile(np.eye(4, dtype=np.float32)[0], (6, 1))
    make_store(tmp_path / "s", x, np.roll(x, 1, axis=1))
    values = gap_report(tmp_path / "s").values
    assert values["gap"]["length"] == pytest.approx(np.sqrt(2))
    assert values["modalities"]["image"]["effective_dimension"] == 0
    assert values["retrieval"]["raw"]["image_to_text"]["recall@1"] == pytest.approx(1 / 6)


def test_two_stores_of_different_models_are_compared_with_a_note(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        info = StoreInfo({"name": name}, 4, dtype="float32")
        create_store(tmp_path / name, info)
        keys = [str(k) for k in range(20 + seed)]
        write_shard(tmp_path / name, info, Shard("image", 0, unit_rows(len(keys), 4, seed), {"key": keys}))
        text = {"key": [f"{k}t" for k in keys], "image_key": keys}
        write_shard(tmp_path / name, info, Shard("text", 0, unit_rows(len(keys), 4, seed + 7), text))
    reports = [gap_report(tmp_path / name) for name in ("a", "b")]
    values = compare(*reports)
    assert [report["provenance"]["model"] for report in values["stores"]] == ["a", "b"]
    assert "two models, a and b" in values["notes"][0]
    assert "size of the gallery" in values["notes"][1]


def test_unknown_presets_are_refused(tmp_path):
    make_store(tmp_path / "s", unit_rows(5, 4), unit_rows(5, 4, seed=1))
    with pytest.raises(StoreError, match="not measured under 'c3'"):
        gap_report(tmp_path / "s", presets=("c3",))


def test_a_store_of_another_folder_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        gap_report(tmp_path / "nothing")
    assert isinstance(make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4)), Store)
