from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c3tools.errors import StoreError
from c3tools.moments import load_moments, save_moments
from c3tools.store import Rows, Shard, Store, finish_store, write_shard
from c3tools.store.means import compute_means, load_means, merge_means, save_means, unload_means
from c3tools.transforms import preset
from tests.conftest import build_store, make_store, unit_rows
from tests.stores import gap_store


def test_the_table_is_that_of_the_rows(tmp_path: Path) -> None:
    image, text = unit_rows(400, 8), unit_rows(300, 8, 1)
    store = make_store(tmp_path / "s", image, text)
    rows = {(row.modality, row.split): row for row in compute_means(store).rows}
    assert set(rows) == {("image", "train"), ("image", "all"), ("text", "train"), ("text", "all")}
    row = rows["image", "all"]
    assert row.n == 400
    assert row.mean_norm == pytest.approx(np.linalg.norm(image.mean(axis=0)), abs=1e-6)
    expected = np.sqrt((image.std(axis=0, ddof=1) ** 2 / 400).sum())
    assert row.standard_error == pytest.approx(expected, rel=1e-4)
    gap = np.linalg.norm(image.mean(axis=0) - text.mean(axis=0))
    assert compute_means(store).gap_length == pytest.approx(gap, abs=1e-6)


def test_a_modality_without_rows_has_no_mean_and_no_gap(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", Rows.of("text", list("abc"), unit_rows(3, 8)))
    write_shard(store.path, store.info, Shard("image", 0, np.empty((0, 8)), {"key": []}))
    finish_store(store.path)
    means = compute_means(store)
    assert {row.modality for row in means.rows} == {"text"}
    assert means.gap_length is None


def test_saved_means_load_into_another_store_and_are_fitted_on(tmp_path: Path) -> None:
    first = make_store(tmp_path / "a", unit_rows(50, 8), unit_rows(60, 8, 1))
    second = make_store(tmp_path / "b", unit_rows(5, 8, 2), unit_rows(5, 8, 3))
    save_means(first, tmp_path / "means.safetensors")
    load_means(second, tmp_path / "means.safetensors")
    np.testing.assert_array_equal(second.fitting_moments("image").mean, first.moments("image").mean)
    assert second.moments("image").n == 5
    assert [row.source for row in compute_means(second).rows][-2:] == ["a", "a"]
    unload_means(second)
    assert second.fitting_moments("image").n == 5


def test_the_bundled_moments_are_named_after_their_model(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", unit_rows(5, 256), unit_rows(5, 256), model={"name": "c3-mini"})
    load_means(store, "c3-mini")
    rows = compute_means(store).rows
    assert [(row.modality, row.n) for row in rows if row.source == "c3-mini"] == [("image", 6000), ("text", 30000)]


def test_merging_files_is_merging_rows(tmp_path: Path) -> None:
    parts = [unit_rows(50, 8), unit_rows(70, 8, 1)]
    for name, rows in zip("ab", parts, strict=True):
        save_means(make_store(tmp_path / name, rows, rows), tmp_path / f"{name}.safetensors")
    merge_means([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "c.safetensors")
    groups, header = load_moments(tmp_path / "c.safetensors")
    whole = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(groups["text"].mean, whole.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(groups["text"].covariance, np.cov(whole.T, bias=True), atol=1e-12)
    assert header["source"] == "a.safetensors + b.safetensors"


def test_merging_counts_no_file_twice_and_mixes_no_models(tmp_path: Path) -> None:
    rows = unit_rows(50, 8)
    files = [tmp_path / f"{name}.safetensors" for name in ("a", "moved", "other")]
    models = [{"name": f"local-dir:{n}", "weights_sha256": digest * 64} for n, digest in enumerate("112")]
    for file, model in zip(files, models, strict=True):
        save_means(make_store(tmp_path / file.stem, rows, rows, model=model), file, split="all")
    # the same weights in another folder
    assert merge_means(files[:2], tmp_path / "all.safetensors")["text"].n == 100
    for merged, target, message in (
        (files[:2], files[0], r"a\.safetensors is the file to write, so its rows would be counted twice"),
        ([*files[:2], files[1]], tmp_path / "new", r"moved\.safetensors is given twice"),
        (
            files,
            tmp_path / "new",
            r"a\.safetensors is of the model local-dir:0 .*, but .*other\.safetensors of",
        ),
    ):
        with pytest.raises(StoreError, match=message):
            merge_means(merged, target)
    assert not (tmp_path / "new").exists()
    save_means(Store.open(tmp_path / "moved"), files[1], split="train")
    merge_means(files[:2], tmp_path / "all.safetensors")
    assert load_moments(tmp_path / "all.safetensors")[1]["split"] == "all + train"


def test_moments_of_another_model_or_dimension_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", unit_rows(50, 8), unit_rows(60, 8, 1))
    with pytest.raises(StoreError, match="c3-mini"):
        load_means(store, "c3-mini")
    save_means(make_store(tmp_path / "b", unit_rows(5, 4), unit_rows(5, 4)), tmp_path / "b.safetensors")
    with pytest.raises(StoreError, match="have dimension 4, but the store has dimension 8"):
        load_means(store, tmp_path / "b.safetensors")
    with pytest.raises(StoreError, match=r"moments file .* does not exist"):
        load_means(store, tmp_path / "nowhere")
    (tmp_path / "bad").write_bytes(b"\x00" * 40)
    with pytest.raises(StoreError, match="not a readable moments file"):
        load_means(store, tmp_path / "bad")


def test_means_are_those_of_rows_at_unit_length(tmp_path: Path) -> None:
    raw = Store.open(gap_store(tmp_path / "raw", dtype="float32", normalised=False))
    saved = save_means(raw, tmp_path / "m.safetensors")
    rows = raw.load("text", "train").embeddings.astype(np.float64)
    expected = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(saved["text"].mean, expected, atol=1e-7)
    load_means(raw, tmp_path / "m.safetensors")
    np.testing.assert_allclose(preset("c3").fit(raw).steps[1].state["mean/text"].astype(float), expected, atol=1e-7)
    other = {name: raw.moments(name, "train") for name in raw.modalities}
    save_moments(tmp_path / "raw.safetensors", other, {})
    with pytest.raises(StoreError, match=r"image moments .* squared norm of the rows is 9\."):
        load_means(raw, tmp_path / "raw.safetensors")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", unit_rows(50, 8), unit_rows(60, 8, 1))
    with pytest.raises(StoreError, match="no rows in the split 'val'"):
        save_means(store, tmp_path / "m", split="val")


def test_the_table_is_plain_values_and_html(tmp_path: Path) -> None:
    found = compute_means(make_store(tmp_path / "a", unit_rows(50, 8), unit_rows(60, 8, 1)))
    value = found.to_dict()
    assert value["means"][0]["modality"] == "image"
    assert value["gap_length"] == found.gap_length
    table = found.table()
    assert [len(row) for row in table.rows] == [len(table.columns)] * 4
    assert "<td>60</td>" in found._repr_html_()
