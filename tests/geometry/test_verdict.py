"""Each verdict says yes, partly, no or unknown by its stated rule, on numbers and on stores made to show it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from c3tools.geometry.assumptions import Answer
from c3tools.geometry.measures import GapMeasures, ModalityMeasures, PairMeasures
from c3tools.geometry.one_list import OneList
from c3tools.geometry.report import GapReport
from c3tools.geometry.spaces import SpaceMeasures
from c3tools.metrics.significance import Estimate
from c3tools.transforms.sigma import SigmaRule

DIM = 64
WAYS = ("image_to_text", "text_to_image")


def usual() -> GapReport:
    """Numbers of a store like CLIP's on COCO: nothing is unusual, Collapse and Corrupt help."""
    modality = ModalityMeasures(500, DIM, 40, 20.0, 15.0, 0.7, 0.01, 1.5, 100, 500, False, np.ones(DIM))
    recall = {way: {"recall@1": Estimate(value, (0.45, 0.6))} for way, value in zip(WAYS, (0.55, 0.5), strict=True)}
    space = SpaceMeasures(recall, 0.8, separability=Estimate(1.0))
    one, cosines = Estimate(0.09), (Estimate(0.3), Estimate(0.16))
    rule, pairs = SigmaRule("scaled_spread", 0.06, "texts"), SigmaRule("pair_cosine", 0.07, "pairs")
    names = ("constant", "orthogonal", "gaussian", "isotropic")
    found = GapReport(
        {"image": modality, "text": modality},
        {},
        [],
        gap=GapMeasures(Estimate(0.8), Estimate(0.8), None, None, None, None),
        pairs=PairMeasures(500, 500, *cosines, one, one, Estimate(1.2)),
        spaces={"raw": space, "c2-collapse": replace(space, gap=0.03, separability=Estimate(0.5))},
        assumptions={name: Answer("?", "no" if name == "isotropic" else "yes", "") for name in names},
        sigmas=[rule, pairs],
        recommended=(rule, "from texts"),
    )
    rows = SimpleNamespace(first=np.empty((500, 1)), second=np.empty((500, 1)))
    found.collected = SimpleNamespace(working=rows)  # type: ignore[assignment]
    return found


def changed(path: str, value: Any) -> GapReport:
    """The usual numbers with one changed: ``gap.length``, ``spaces.c2-collapse.gap``, …"""

    def change(whole: Any, parts: list[str]) -> Any:
        if not parts:
            return Estimate(value) if isinstance(whole, Estimate) and isinstance(value, float) else value
        if isinstance(whole, dict):
            return {**whole, parts[0]: change(whole.get(parts[0]), parts[1:])}
        return replace(whole, **{parts[0]: change(getattr(whole, parts[0]), parts[1:])})

    found: GapReport = change(usual(), path.split("."))
    return found


def test_usual_numbers() -> None:
    found = usual().verdict
    assert [answer.answer for answer in found.values()] == ["yes", "yes", "yes", "no"]
    assert "0.80 apart, which is large: 53 %" in found["gap"].because
    assert "from 0.80 to 0.03" in found["collapse"].because
    # 64 dimensions of variance 0.09^2, over twice the variance 1 - 0.7^2 of a modality
    assert "51 % of that of unrelated rows. --sigma auto gives 0.060" in found["corrupt"].because


NO = Answer("?", "no", "")
LOST = {"recall@1": Estimate(0.4)}
WITHIN = {"recall@1": Estimate(0.5)}
ORDER = ("raw", "centred", "calibrated")
LISTS = [
    {"text": OneList(dict(zip(ORDER, map(Estimate, (0, 0.1, found)), strict=True)), {})} for found in (0.36, 0.34, 0.19)
]
BARE = {way: {"recall@1": Estimate(0.004)} for way in WAYS}


@pytest.mark.parametrize(
    ("verdict", "path", "value", "answer", "words"),
    [
        ("gap", "gap.length", 0.2, "no", "hardly"),  # 0.04 / 1.2 = 3 %
        ("gap", "gap.length", 0.4, "partly", "small: 13 %"),
        ("gap", "gap.length", 0.05, "no", "so few rows show 0.05"),
        ("gap", "pairs", None, "yes", "39 % of the squared distance between a text row and any image"),
        ("collapse", "spaces", {}, "unknown", "cannot be applied"),
        ("collapse", "gap.length", 0.1, "no", "no gap to close"),
        ("collapse", "spaces.c2-collapse.gap", 0.5, "no", "from 0.80 to 0.50 only"),
        ("collapse", "spaces.c2-collapse.gap", 0.3, "partly", "from 0.80 to 0.30"),
        ("collapse", "spaces.c2-collapse.separability", 0.9, "partly", "90 % of the rows: the modalities differ"),
        ("collapse", "spaces.c2-collapse.separability", None, "yes", "from 0.80 to 0.03."),
        ("collapse", "assumptions.constant", NO, "partly", "not the same across the store"),
        ("collapse", "spaces.c2-collapse.recall.image_to_text", LOST, "partly", "55.0 to 40.0 % image to text"),
        ("collapse", "spaces.c2-collapse.recall.image_to_text", WITHIN, "yes", "from"),
        ("collapse", "spaces.raw.recall", {}, "yes", "from"),
        ("corrupt", "pairs", None, "unknown", "no pairs to measure the alignment noise; --sigma auto gives 0.060"),
        ("corrupt", "pairs.items", 1, "unknown", "single item are too few"),
        ("corrupt", "pairs.residual_rms", 0.01, "no", "almost equal"),
        ("corrupt", "pairs.residual_rms", 0.125, "no", "as far apart as unrelated rows (98 %"),
        ("corrupt", "notes", [], "yes", "; the cosine of the pairs gives 0.070 (--sigma pairs)."),
        ("corrupt", "recommended", (SigmaRule("scaled_spread", 0.15, ""), "t"), "partly", "but the cosine"),
        ("corrupt", "recommended", (SigmaRule("scaled_spread", 0.03, ""), "t"), "partly", "but the cosine"),
        (
            "corrupt",
            "recommended",
            (SigmaRule("pair_cosine", 0.07, ""), "why"),
            "yes",
            "--sigma pairs gives 0.070, why.",
        ),
        ("corrupt", "sigmas", [], "yes", "--sigma auto gives 0.060, from texts."),
        ("unusual", "pairs.paired_cosine", 0.17, "yes", "unrelated rows (cosine 0.170 against 0.160)"),
        ("unusual", "spaces.raw.recall", BARE, "yes", "only 2.0 times that of chance"),
        ("unusual", "modalities.image.mean_norm", 0.99, "yes", "The image rows are all similar"),
        ("unusual", "modalities.text.mean_direction_error_degrees", 12.0, "yes", "by 12° (500 independent rows)"),
        ("unusual", "modalities.text.effective_dimension", 3, "yes", "text rows fill only 3 of 64 dimensions"),
        ("unusual", "assumptions.orthogonal", NO, "yes", "not orthogonal"),
        ("unusual", "assumptions.gaussian", NO, "yes", "not Gaussian"),
        (
            "one_list",
            "one_list",
            LISTS[0],
            "yes",
            "0.0 of the first ten that text queries find are images by cosine, 1.0",
        ),
        ("one_list", "one_list", LISTS[1], "partly", "3.4 by the calibrated scores"),
        ("one_list", "one_list", LISTS[2], "no", "1.9 by the calibrated scores"),
    ],
)
def test_one_number_decides(verdict: str, path: str, value: Any, answer: str, words: str) -> None:
    found = changed(path, value).verdict[verdict]
    assert (found.answer, words in found.because) == (answer, True), found


def test_few_rows_are_not_few_directions() -> None:
    found = changed("modalities.text.effective_dimension", 3)
    found.modalities["text"] = replace(found.modalities["text"], limited_by_rows=True)
    assert found.verdict["unusual"].answer == "no"
