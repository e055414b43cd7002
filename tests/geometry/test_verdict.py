"""Each verdict says yes, partly, no or unknown by its stated rule, on numbers and on stores made to show it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from c3tools.geometry.report import gap_report
from c3tools.geometry.verdict import judge_collapse, judge_corrupt, judge_gap, judge_unusual, verdicts
from tests.conftest import make_store
from tests.geometry.spaces import unit

DIM = 64


def values() -> dict[str, Any]:
    """Numbers of a store like CLIP's on COCO: nothing is unusual, Collapse and Corrupt help."""
    modality = {
        "n": 500,
        "dim": DIM,
        "effective_dimension": 40,
        "mean_norm": 0.7,
        "mean_direction_error_degrees": 1.5,
        "independent_rows": 500,
        "limited_by_rows": False,
    }
    recall = {"image_to_text": {"recall@1": 0.55}, "text_to_image": {"recall@1": 0.5}}
    return {
        "modalities": {"image": dict(modality), "text": dict(modality)},
        "gap": {"length": 0.8},
        "pairs": {"items": 500, "paired_cosine": 0.3, "unpaired_cosine": 0.16, "alignment": 1.2, "residual_rms": 0.09},
        "spaces": {"raw": {"gap": 0.8, "separability": 1.0}, "c2-collapse": {"gap": 0.03, "separability": 0.5}},
        "retrieval": {"raw": recall, "c2-collapse": copy.deepcopy(recall)},
        "retrieval_intervals": {"raw": {way: {"recall@1": [0.45, 0.6]} for way in recall}},
        "assumptions": {name: {"answer": "yes"} for name in ("constant", "orthogonal", "gaussian")}
        | {"isotropic": {"answer": "no"}},
        "sigma": {
            "recommended": "scaled_spread",
            "value": 0.06,
            "why": "from texts",
            "candidates": {"pair_cosine": {"sigma": 0.07}},
        },
        "provenance": {"working_set": {"image": 500, "text": 500}},
    }


def change(**changes: Any) -> dict[str, Any]:
    """The numbers with some changed, named by their path with double underscores."""
    found = values()
    for path, value in changes.items():
        *parts, last = path.replace("c2_collapse", "c2-collapse").replace("_at_1", "@1").split("__")
        place = found
        for part in parts:
            place = place[part]
        place[last] = value
    return found


def test_usual_numbers() -> None:
    found = {verdict.name: verdict for verdict in verdicts(values())}
    assert {name: verdict.answer for name, verdict in found.items()} == {
        "gap": "yes",
        "collapse": "yes",
        "corrupt": "yes",
        "unusual": "no",
    }
    assert "0.80 apart, which is large: 53 %" in found["gap"].because
    assert "from 0.80 to 0.03" in found["collapse"].because
    # 64 dimensions of variance 0.09^2, over twice the variance 1 - 0.7^2 of a modality
    assert "51 % of that of unrelated rows. --sigma auto gives 0.060, from texts" in found["corrupt"].because


@pytest.mark.parametrize(
    ("changes", "answer", "words"),
    [
        ({"gap__length": 0.2}, "no", "hardly"),  # 0.04 / 1.2 = 3 %
        ({"gap__length": 0.4}, "partly", "small: 13 %"),
        ({"gap__length": 0.05, "pairs__alignment": 0.001}, "no", "so few rows show 0.05"),
        ({"gap__length": 0.8, "pairs": None}, "yes", "39 % of the squared distance between a text row and any image"),
        ({"gap__length": 0.0, "pairs": None}, "no", "0.00 apart"),
    ],
)
def test_gap(changes: dict[str, Any], answer: str, words: str) -> None:
    verdict = judge_gap(change(**changes))
    assert (verdict.answer, words in verdict.because) == (answer, True), verdict


@pytest.mark.parametrize(
    ("changes", "answer", "words"),
    [
        ({"spaces": {}}, "unknown", "cannot be applied"),
        ({"gap__length": 0.1}, "no", "no gap to close"),
        ({"spaces__c2_collapse__gap": 0.5}, "no", "from 0.80 to 0.50 only"),
        ({"spaces__c2_collapse__gap": 0.3}, "partly", "from 0.80 to 0.30"),
        (
            {"spaces__c2_collapse__separability": 0.9},
            "partly",
            "90 % of the rows: the modalities differ in more than their means",
        ),
        ({"spaces__c2_collapse__separability": None}, "yes", "from 0.80 to 0.03."),
        ({"assumptions__constant__answer": "no"}, "partly", "not the same across the store"),
        ({"assumptions__subsets": {"answer": "no"}}, "partly", "not the same between subsets"),
        ({"retrieval__c2_collapse__image_to_text__recall_at_1": 0.4}, "partly", "falls: 55.0 to 40.0 % image to text"),
        ({"retrieval__c2_collapse__image_to_text__recall_at_1": 0.5}, "yes", "from"),  # within the interval
        ({"retrieval": {}}, "yes", "from"),
    ],
)
def test_collapse(changes: dict[str, Any], answer: str, words: str) -> None:
    found = change(**changes)
    verdict = judge_collapse(found, judge_gap(found))
    assert (verdict.answer, words in verdict.because) == (answer, True), verdict


@pytest.mark.parametrize(
    ("changes", "answer", "words"),
    [
        ({"pairs": None}, "unknown", "no pairs to measure the alignment noise; --sigma auto gives 0.060"),
        ({"pairs__items": 1}, "unknown", "single item are too few to measure the alignment noise; --sigma auto gives"),
        ({"pairs__residual_rms": 0.01}, "no", "almost equal"),
        ({"pairs__residual_rms": 0.125}, "no", "as far apart as unrelated rows (98 %"),
        ({}, "yes", "; the cosine of the pairs gives 0.070 (--sigma pairs)."),
        ({"sigma__value": 0.15}, "partly", "but the cosine of the pairs gives 0.070"),
        ({"sigma__value": 0.03}, "partly", "but the cosine of the pairs gives 0.070"),
        ({"sigma__candidates": {"pair_cosine": {"sigma": None}}}, "yes", "--sigma auto gives 0.060, from texts."),
        (
            {"sigma__recommended": "pair_cosine", "sigma__value": 0.07, "sigma__why": "the cosine"},
            "yes",
            "rows. --sigma pairs gives 0.070, the cosine.",
        ),
    ],
)
def test_corrupt(changes: dict[str, Any], answer: str, words: str) -> None:
    verdict = judge_corrupt(change(**changes))
    assert (verdict.answer, words in verdict.because) == (answer, True), verdict


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pairs__paired_cosine": 0.17}, "hardly closer than unrelated rows (cosine 0.170 against 0.160)"),
        ({"retrieval__raw": {"a_to_b": {"recall@1": 0.004}}}, "only 2.0 times that of chance"),
        ({"modalities__image__mean_norm": 0.99}, "The image rows are all similar"),
        ({"modalities__text__mean_direction_error_degrees": 12.0}, "uncertain by 12° (500 independent rows)"),
        ({"modalities__text__effective_dimension": 3}, "text rows fill only 3 of 64 dimensions"),
        ({"assumptions__constant__answer": "no"}, "The gap is not constant."),
        ({"assumptions__orthogonal__answer": "no"}, "not orthogonal"),
        ({"assumptions__gaussian__answer": "no"}, "not Gaussian"),
        ({"assumptions__subsets": {"answer": "no"}}, "differs between subsets"),
    ],
)
def test_unusual(changes: dict[str, Any], words: str) -> None:
    verdict = judge_unusual(change(**changes))
    assert (verdict.answer, words in verdict.because) == ("yes", True), verdict
    assert verdict.because.endswith(".")


def test_few_rows_are_not_few_directions() -> None:
    found = change(modalities__text__effective_dimension=3, modalities__text__limited_by_rows=True)
    assert judge_unusual(found).answer == "no"


Matrix = npt.NDArray[np.floating[Any]]


def answers(path: Path, image: Matrix, text: Matrix) -> dict[str, str]:
    """The answers about a store of these rows, of which row i of one belongs to row i of the other."""
    report = gap_report(make_store(path, unit(image), unit(text)), presets=["raw"])
    return {name: found["answer"] for name, found in report.values["verdict"].items()}


def test_stores_that_were_made_to_show_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shared, gap = rng.normal(size=(400, DIM)), rng.normal(size=DIM)
    noise = [rng.normal(size=(400, DIM)) for _ in range(2)]
    alike = answers(tmp_path / "gap", shared + gap + 0.5 * noise[0], shared - gap + 0.5 * noise[1])
    assert (alike["gap"], alike["collapse"], alike["corrupt"]) == ("yes", "yes", "yes")
    none = answers(tmp_path / "none", shared + 0.5 * noise[0], shared + 0.5 * noise[1])
    assert (none["gap"], none["collapse"]) == ("no", "no")
    exact = answers(tmp_path / "exact", shared, shared)
    assert (exact["gap"], exact["corrupt"]) == ("no", "no")
    strangers = answers(tmp_path / "strangers", noise[0] + gap, noise[1] - gap)
    assert (strangers["gap"], strangers["corrupt"], strangers["unusual"]) == ("yes", "no", "yes")
    # two opposite gaps, one for each half of the store: their mean is subtracted, and neither is closed
    turned = np.where(np.arange(400)[:, None] < 200, gap, np.roll(gap, 1) * 1.5)
    halves = answers(tmp_path / "halves", shared + turned + 0.5 * noise[0], shared - turned + 0.5 * noise[1])
    assert halves["gap"] == "yes"
    assert halves["collapse"] == "partly"


def test_one_modality_has_no_gap_to_judge(tmp_path: Path) -> None:
    rows = unit(np.random.default_rng(0).normal(size=(50, 8)))
    report = gap_report(make_store(tmp_path / "s", rows, rows), modalities=["image"])
    assert list(report.values["verdict"]) == ["unusual"]
    assert [section.title for section in report.summary()] == ["Verdict"]
