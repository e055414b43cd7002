"""Each verdict says yes, partly, no or unknown by its stated rule, on numbers and on stores made to
show it."""

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

MODALITY = ModalityMeasures(500, 64, 40, 20.0, 15.0, 0.7, 0.01, 1.5, 100, 500, False, np.ones(64))

RECALL = {"recall@1": Estimate(0.55, (0.45, 0.6))}
RAW = SpaceMeasures(
    {"image_to_text": RECALL, "text_to_image": RECALL}, 0.8, separability=Estimate(1.0)
)
ONE, APART, ROWS = Estimate(0.09), Estimate(0.8, (0.78, 0.82)), range(500)
NO, PARTLY, YES = (Answer("?", answer, "") for answer in ("no", "partly", "yes"))
SIGMAS = [SigmaRule("scaled_spread", 0.06, "texts"), SigmaRule("pair_cosine", 0.07, "pairs")]
# numbers as of CLIP ViT-B/16 on COCO, whose noise is anisotropic and whose gap is not orthogonal
USUAL = GapReport(
    {"image": MODALITY, "text": MODALITY},
    {},
    [],
    gap=GapMeasures(APART, APART, None, None, None, None),
    pairs=PairMeasures(500, 500, Estimate(0.3), Estimate(0.16), ONE, ONE, Estimate(1.2)),
    spaces={"raw": RAW, "c2-collapse": replace(RAW, gap=0.03, separability=Estimate(0.5))},
    assumptions={"constant": PARTLY, "orthogonal": NO, "gaussian": YES, "isotropic": NO},
    sigmas=SIGMAS,
    recommended=(SIGMAS[0], "from texts"),
    collected=SimpleNamespace(working=SimpleNamespace(first=ROWS, second=ROWS)),  # type: ignore[arg-type]
)


def changed(whole: Any, path: str, value: Any) -> Any:
    """The usual numbers with one changed: ``gap.length``, ``spaces.c2-collapse.gap``, …"""
    if not path:
        return (
            Estimate(value) if isinstance(whole, Estimate) and isinstance(value, float) else value
        )
    name, _, rest = path.partition(".")
    if isinstance(whole, dict):
        return {**whole, name: changed(whole.get(name), rest, value)}
    return replace(whole, **{name: changed(getattr(whole, name), rest, value)})


BARE = {way: {"recall@1": Estimate(0.004)} for way in RAW.recall}
SAME = SigmaRule("pair_cosine", 0.07, ""), "why"
MORE, LESS = ((SigmaRule("scaled_spread", sigma, ""), "t") for sigma in (0.15, 0.03))
FEW = replace(MODALITY, effective_dimension=3, limited_by_rows=True)


def between(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, (low, high))


def one_list(found: float, answers: float = 0.7) -> dict[str, OneList]:
    """Text queries whose first ten have no images by cosine, and so many by the calibrated scores;
    and image queries without bias."""
    interval = (answers - 0.01, answers + 0.01)
    lists = {}
    for asked, calibrated in (("image", 0.5), ("text", found)):
        shares = {"raw": Estimate(0), "centred": Estimate(0.1), "calibrated": Estimate(calibrated)}
        lists[asked] = OneList(shares, {"calibrated": Estimate(answers, interval)}, chance=0.04)
    return lists


def lost(change: float, low: float, high: float) -> SpaceMeasures:
    """Collapse that changes recall@1 of texts by images, from 0.55."""
    recall = {**RAW.recall, "image_to_text": {"recall@1": Estimate(0.55 + change)}}
    changes = {"image_to_text": between(change, low, high)}
    return replace(USUAL.spaces["c2-collapse"], recall=recall, recall_change=changes)


CASES: dict[str, list[tuple[str, Any, str]]] = {
    "gap": [
        ("notes", [], "yes: 0.80 apart, which is large: 53% (51 to 56%)"),
        # the squared distance of a pair is 1.2
        ("gap.length_debiased", between(0.4, 0.3, 0.5), "yes: small: 13% (8 to 21%)"),
        ("gap.length_debiased", between(0.2, 0.01, 0.5), "yes: small: 3% (0 to 21%)"),
        ("gap.length_debiased", between(0.4, 0.3, 0.5), "yes: near copies, such as frames"),
        ("gap.length_debiased", between(0.2, 0.1, 0.24), "no: hardly a gap: 3% (1 to 5%)"),
        ("gap.length_debiased", between(0.2, 0.0, 0.24), "no: hardly"),
        ("gap.length_debiased", between(0.2, 0.0, 0.25), "unknown: too few independent items"),
        ("gap.length_debiased", Estimate(0.8), "unknown: 53% (0 to 100%)"),
        (
            "modalities",
            {"text": MODALITY, "audio": MODALITY},
            "yes: between each audio row and its own text row",
        ),
        ("pairs", None, "yes: 39% (37 to 41%) of the squared distance between any text row and"),
    ],
    "collapse": [
        (
            "notes",
            [],
            "yes: leaves 4% of the gap, and a linear probe recognises the modality of 50% of the "
            "rows",
        ),
        ("spaces", {}, "unknown: cannot be applied"),
        ("gap.length_debiased", between(0.1, 0.0, 0.2), "no: no gap to close"),
        ("gap.length_debiased", between(0.1, 0.0, 0.3), "unknown: not known"),
        ("spaces.c2-collapse.gap", 0.5, "no: leaves 62% of the gap: the subtracted means"),
        ("spaces.c2-collapse.gap", 0.3, "partly: leaves 37% of the gap"),
        ("spaces.c2-collapse.separability", 0.9, "partly: 90% of the rows: the modalities differ"),
        ("spaces.c2-collapse.separability", None, "yes: leaves 4% of the gap."),
        ("assumptions.constant", NO, "partly: not the same across the store"),
        ("spaces.c2-collapse", lost(-0.15, -0.2, -0.1), "partly: 55.0 to 40.0% image to text"),
        ("spaces.c2-collapse", lost(-0.15, -0.31, 0.01), "yes: leaves"),
        ("spaces.c2-collapse", lost(-0.009, -0.01, -0.008), "yes: leaves"),
    ],
    "corrupt": [
        # 64 dimensions of variance 0.09^2, over twice the variance 1 - 0.7^2 of a modality
        (
            "notes",
            [],
            "yes: 51% of the squared distance of unrelated rows. --sigma auto gives 0.060, from "
            "texts; the cosine of",
        ),
        (
            "pairs",
            None,
            "unknown: no pairs to measure the alignment noise; --sigma auto gives 0.060",
        ),
        ("pairs.items", 1, "unknown: single item are too few"),
        ("pairs.residual_rms", 0.01, "no: almost identical"),
        ("pairs.residual_rms", 0.125, "no: as far apart as unrelated rows (98%"),
        ("recommended", MORE, "partly: but the cosine of the pairs gives 0.070 (--sigma pairs)."),
        ("recommended", LESS, "partly: but the cosine"),
        ("recommended", SAME, "yes: --sigma pairs gives 0.070, why."),
        ("sigmas", [], "yes: --sigma auto gives 0.060, from texts."),
    ],
    "unusual": [
        ("pairs.paired_cosine", 0.17, "yes: unrelated rows (cosine 0.170 against 0.160)"),
        ("spaces.raw.recall", BARE, "yes: only 2.0 times chance"),
        ("modalities.image.mean_norm", 0.99, "yes: The image rows are all similar"),
        (
            "modalities.text.mean_direction_error_degrees",
            12.0,
            "yes: by 12° (500 independent rows)",
        ),
        ("modalities.text.effective_dimension", 3, "yes: text rows fill only 3 of 64 dimensions"),
        (
            "modalities.text",
            FEW,
            "no: The spread, the dimensions and the means of the rows were checked, and the gap "
            "and the pairs as a whole; `c3 pairs` checks individual pairs.",
        ),
        ("notes", [], "no: individual pairs"),
        ("pairs", None, "no: and the means of the rows were checked."),
        ("assumptions.constant", NO, "yes: not constant"),
        ("assumptions.gaussian", NO, "yes: not Gaussian"),
    ],
    "one_list": [
        (
            "one_list",
            one_list(0.36),
            "yes: When the answers are images, the first ten hits of text queries contain 0.0 "
            "images by cosine, 1.0 after Collapse, and 3.6 by the calibrated scores of `c3 "
            "search` (5 is unbiased), which find 70% of the answers (chance: 4%).",
        ),
        ("one_list", one_list(0.34), "partly: 3.4 by the calibrated scores"),
        ("one_list", one_list(0.64), "yes: 6.4 by the calibrated scores"),
        ("one_list", one_list(0.66), "partly: 6.6 by the calibrated scores"),
        ("one_list", one_list(0.81), "no: 8.1 by the calibrated scores"),
        ("one_list", one_list(0.5, 0.49), "partly: most answers are not among the first ten"),
        ("one_list", one_list(0.5, 0.51), "yes: find 51% of the answers (chance: 4%)."),
        ("one_list", one_list(0.5, 0.04), "no: 4% of the answers (chance: 4%)"),
        ("one_list", one_list(0.19), "no: 1.9 by the calibrated scores"),
    ],
}


def test_recall_of_a_handful_of_pairs_is_not_compared_with_chance() -> None:
    for items, answer in ((11, "no"), (12, "yes")):
        few = changed(changed(USUAL, "spaces.raw.recall", BARE), "pairs.items", items)
        assert few.verdict["unusual"].answer == answer


def test_a_doubt_about_the_pairs_comes_first() -> None:
    assert list(USUAL.verdict)[-1] == "unusual"
    for path, value in (("pairs.paired_cosine", 0.17), ("spaces.raw.recall", BARE)):
        verdict = changed(USUAL, path, value).verdict
        assert next(iter(verdict)) == "unusual"
        assert "files without ids in the same order" in verdict["unusual"].because
    assert next(iter(changed(USUAL, "modalities.image.mean_norm", 0.99).verdict)) == "gap"


@pytest.mark.parametrize("verdict", CASES)
def test_one_number_decides(verdict: str) -> None:
    for path, value, said in CASES[verdict]:
        found, (answer, words) = changed(USUAL, path, value).verdict[verdict], said.split(": ", 1)
        assert found.answer == answer and words in found.because, found
