"""Calibrated scores against a direct computation, from every source, and of degenerate inputs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import Calibration, Moments, Pipeline, Store, preset
from c3tools.errors import TransformError
from c3tools.store.means import save_means
from tests.stores import assert_close, make_vectors, unit


def test_it_is_the_formula(store: Store) -> None:
    train = {name: unit(store.load(name, "train").embeddings.astype(np.float64)) for name in ("image", "text")}
    calibration = Calibration.fit(train)
    queries = unit(train["text"][3:5] - train["text"].mean(axis=0))
    for name, rows in train.items():
        off = rows - rows.mean(axis=0)
        spread = off.T @ off / (off**2).sum()  # the covariance, its trace 1
        cosines = queries @ unit(off).T
        expected = [own / np.sqrt(query @ spread @ query) for query, own in zip(queries, cosines, strict=True)]
        assert_close(calibration.z(1e-3 * queries, cosines, name), expected, 1e-5)


def test_every_source_gives_the_same(store: Store, tmp_path: Path) -> None:
    calibration = Calibration.fit(store)
    save_means(store, tmp_path / "means.safetensors")
    moments = {name: store.moments(name, "train") for name in store.modalities}
    for source in (store.path, str(tmp_path / "means.safetensors"), moments):
        found, expected = ({n: asdict(m) for n, m in c.moments.items()} for c in (Calibration.fit(source), calibration))
        np.testing.assert_equal(found, expected)
    other = Calibration.fit({name: 3 * store.load(name, "train").embeddings for name in store.modalities})
    assert_close(other.moments["text"].scatter, calibration.moments["text"].scatter, 1e-2)


def test_merging_orders_all_modalities_by_z() -> None:
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(50, 8)) + 5 * rng.normal(size=8) for name in ("image", "text", "audio")}
    found = Calibration.fit(rows)
    queries = found.pipeline.transform(rows["text"][:3], modality="text")
    cosines = {name: queries @ found.pipeline.transform(own, modality=name).T for name, own in rows.items()}
    cosines["audio"][:, 7] = -np.inf  # what indexes give where there is no row
    merged = found.merge(queries, {name: (np.tile(range(50), (3, 1)), own) for name, own in cosines.items()}, k=200)
    for row, query in enumerate(queries):
        alone = {name: (range(50), own[row]) for name, own in cosines.items()}
        scores = [(z, n, name) for name in rows for n, z in enumerate(found.z(query, cosines[name][row], name))]
        expected = [(n, name, z) for z, n, name in sorted(scores, reverse=True) if np.isfinite(z)]
        assert (merged[row], {name for _, name, _ in expected[:100]}) == (expected, set(rows))
        assert (found.merge(query, alone, k=4), found.merge(query, alone)) == (expected[:4], expected[:10])


def test_curves_are_the_logistic_regression_of_pairs() -> None:
    rows = dict(zip(("image", "text"), make_vectors(60, 1), strict=True))
    rows["text"] = rows["text"][::2]
    found = Calibration.fit(rows)
    x = {name: found.pipeline.transform(own, modality=name).astype(np.float64) for name, own in rows.items()}
    pairs = {("text", name): (3 * x["text"], own) for name, own in x.items()}
    fitted = found.fit_pairs({**pairs, ("image", "text"): (x["image"], x["text"])})
    assert fitted.curves.keys() == pairs.keys()  # images lack pairs with images
    cosines = x["text"] @ x["image"].T
    off = 1 / (1 + np.exp(-fitted.z(x["text"], cosines, "image", "text"))) - np.eye(60)
    assert [off.sum(), (off * cosines).sum()] == pytest.approx([0, 0], abs=1e-4)  # the likelihood is at its maximum
    assert (fitted.z(x["image"], cosines.T, "text", "image") == found.z(x["image"], cosines.T, "text")).all()
    query, searched = x["text"][0], {name: (range(60), x["text"][0] @ own.T) for name, own in x.items()}
    curves = [(name, *fitted.curves["text", name]) for name in x]
    expected = max((a * s + b, name) for name, a, b in curves for s in searched[name][1])
    assert fitted.merge(query, searched, 1, "text")[0][1:] == (expected[1], pytest.approx(expected[0]))


def test_degenerate_inputs() -> None:
    flat = np.random.default_rng(0).normal(size=(100, 3)) * [1, 1, 1e-9]
    found = Calibration.fit({"image": flat}, pipeline=preset("c1").fit({"image": flat}))
    assert (found.z(np.zeros(3), [0.3, np.nan], "image")[0]) == 0
    steep = found.z([0, 0, 1.0], [0.1], "image")[0]  # no row varies in this direction
    assert steep == pytest.approx(0.1 / np.sqrt(1e-3 / 3), rel=0.05)
    constant = {"text": np.eye(3)[[0] * 4]}
    plain = preset("c1").fit(constant)
    assert Calibration.fit(constant, pipeline=plain).z([1.0, 0, 0], [1.0], "text") == [0]
    assert found.merge([1.0, 0, 0], {"image": ([], [])}) == []
    for query, modality in (([1.0, 0, 0], "audio"), ([1.0, 0], "image")):
        with pytest.raises(TransformError, match=r"image \(3 dimensions\)"):
            found.z(query, [0.5], modality)
    refused: list[tuple[Any, Pipeline, str]] = [
        (Moments.from_rows(3 * flat), plain, "norm 1"),
        (flat, preset("c3"), "'c3' is not fitted"),
        (flat, preset("clipre").fit({"image": flat, "text": flat}), "only rows"),
    ]
    for rows, pipeline, words in refused:
        with pytest.raises(TransformError, match=words):
            Calibration.fit({"image": rows}, pipeline=pipeline)
