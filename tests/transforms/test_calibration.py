"""Calibrations in a service: saved and loaded, merged for JSON, with a tag for rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import Calibration, preset
from c3tools.errors import StoreError, TransformError
from tests.stores import make_vectors, unit


def in_a_service(rows: Mapping[str, np.ndarray]) -> tuple[Calibration, np.ndarray, dict[str, Any]]:
    """A calibration, two queries, and what databases find: ids and cosines as NumPy has them."""
    calibration = Calibration.fit(rows)
    queries = calibration.pipeline.transform(rows["text"][:2], modality="text")
    centred = {
        name: calibration.pipeline.transform(own, modality=name) for name, own in rows.items()
    }
    return (
        calibration,
        queries,
        {name: (np.arange(len(own)), own @ queries[0]) for name, own in centred.items()},
    )


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    images, texts = make_vectors(60, 1)
    return {"image": images, "text": texts}


def test_merged_rows_are_json(rows: dict[str, np.ndarray]) -> None:
    calibration, queries, found = in_a_service(rows)
    best = calibration.merge(queries[0], found, k=5)
    assert json.loads(json.dumps(best)) == [list(row) for row in best]
    assert {(type(key), type(z)) for key, _, z in best} == {(int, float)}
    names = {kind: (keys.astype("U3"), cosines) for kind, (keys, cosines) in found.items()}
    assert {type(key) for key, _, _ in calibration.merge(queries[0], names)} == {str}


def test_searches_that_cannot_be_merged_are_refused(rows: dict[str, np.ndarray]) -> None:
    calibration, queries, found = in_a_service(rows)
    keys, cosines = found["image"]
    with pytest.raises(TransformError, match=r"image rows has ids of shape \(59,\) and cosines"):
        calibration.merge(queries[0], {"image": (keys[:-1], cosines)})
    with pytest.raises(TransformError, match="A batch of 1 query needs as many"):
        calibration.merge(queries[:1], found)
    with pytest.raises(TransformError, match="ids of shape"):
        calibration.merge(queries[:1], {"image": (keys[:1], cosines[:1])})
    with pytest.raises(TransformError, match="A batch of 2 queries needs"):
        calibration.merge(queries, found)
    for k in (0, -1):
        with pytest.raises(TransformError, match=f"k must be at least 1, not {k}"):
            calibration.merge(queries[0], found, k=k)


def test_a_saved_calibration_is_the_same(rows: dict[str, np.ndarray], tmp_path: Path) -> None:
    calibration, queries, found = in_a_service(rows)
    x = {name: calibration.pipeline.transform(own, modality=name) for name, own in rows.items()}
    first_texts = x["text"][::2]
    fitted = calibration.fit_pairs(
        {
            ("text", "image"): (first_texts, x["image"]),
            ("text", "text"): (first_texts, x["text"][1::2]),
        }
    )
    for number, saved in enumerate((calibration, fitted)):
        folder = saved.save(tmp_path / str(number))
        loaded = Calibration.load(folder)
        assert repr(loaded) == repr(saved)
        for asked in (None, "text"):
            expected = saved.merge(queries[0], found, asked=asked)
            assert loaded.merge(queries[0], found, asked=asked) == expected
    assert loaded.curves.keys() == fitted.curves.keys()
    path = folder / "calibration.safetensors"
    slope = str(fitted.curves["text", "image"][0])[:8].encode()
    content = path.read_bytes()
    assert slope in content
    path.write_bytes(content.replace(slope, b"9" + slope[1:]))
    with pytest.raises(StoreError, match="is damaged: its checksum"):
        Calibration.load(folder)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(TransformError, match="is an export or an index"):
        fitted.save(tmp_path)


def test_a_calibration_says_what_it_is(rows: dict[str, np.ndarray]) -> None:
    calibration = Calibration.fit(rows)
    tag = calibration.pipeline.tag
    assert repr(calibration) == f"Calibration(gr-clip; image: 60 rows, text: 120 rows; tag {tag})"
    alone = Calibration({}, calibration.pipeline)
    assert "no moments, so scores are cosines" in repr(alone)


def test_rows_carry_the_tag_of_steps_and_tensors(rows: dict[str, np.ndarray]) -> None:
    pipeline, again = preset("gr-clip").fit(rows), preset("gr-clip").fit(rows)
    again.name = "mine"
    again.provenance = {"split": "another"}
    assert re.fullmatch("[0-9a-f]{12}", pipeline.tag)
    assert again.tag == pipeline.tag
    pipeline.check_tag(again.tag)
    others = [
        preset("gr-clip").fit({**rows, "text": rows["text"][1:]}),  # other tensors
        preset("c1").fit(rows),  # other steps
        pipeline.for_metric(metric="l2"),
    ]
    assert len({pipeline.tag, *(other.tag for other in others)}) == 4
    for other in others:
        with pytest.raises(TransformError, match=f"tag {other.tag}.* has {pipeline.tag}"):
            pipeline.check_tag(other.tag)


def test_fitting_on_what_went_through_a_pipeline(
    rows: dict[str, np.ndarray], tmp_path: Path
) -> None:
    calibration = Calibration.fit(rows)
    folder = calibration.save(tmp_path / "saved")
    with pytest.raises(TransformError, match=r"(?s)is a calibration.*Calibration.load\("):
        Calibration.fit(folder / "calibration.safetensors")
    # centred by the means of other rows
    rng = np.random.default_rng(0)
    many = {name: unit(rng.normal(size=(400, 16)) + 1) for name in ("image", "text")}
    halves = [{name: own[start::2] for name, own in many.items()} for start in (0, 1)]
    pipeline = preset("gr-clip").fit(halves[0])
    centred = {name: pipeline.transform(own, modality=name) for name, own in halves[1].items()}
    with pytest.warns(UserWarning, match="The mean of the (image|text) rows is almost 0"):
        Calibration.fit(centred)
    Calibration.fit(centred, pipeline=preset("c1"))  # which does not centre
    Calibration.fit(halves[1])
