"""Keep what was measured, and judge it in five sentences.

They answer: is there a gap, will Collapse help, will Corrupt help, can images and texts be searched
in one list, is anything unusual. Each follows from numbers of
the report by the thresholds below; docs/reference/geometry.md has them as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from markupsafe import Markup

from ..arrays import Array, Floats
from ..reporter import counted
from ..transforms.sigma import AUTO, PAIRS, SigmaRule
from .assumptions import Answer, Judgement
from .collect import Collected
from .measures import GapMeasures, ModalityMeasures, PairMeasures, Residuals
from .one_list import OneList
from .spaces import COLLAPSE, RAW, SpaceMeasures

CHANCE = 2.0
"""A gap of at most twice the length that sampling alone gives is none."""
NO_GAP, LARGE_GAP = 0.05, 0.25
"""Shares of the gap in the squared distance of a pair: below the first there is none, from the
second it is large."""
CLOSED, NOT_CLOSED = 0.25, 0.5
"""Shares of the gap's length that Collapse leaves: up to the first it is closed, beyond the second
it is not."""
SEPARABLE = 0.75
"""Accuracy of a linear probe for the modality, from which the modalities count as told apart (0.5
is a coin)."""
LOST_RECALL = 0.01
"""Recall@1 that Collapse may lose; more counts if it is also below the interval of the recall
before."""
ALIKE, STRANGERS = 0.05, 0.95
"""Squared distance of pairs over that of strangers, without the gap: up to the first pairs
coincide, from the second they are as far apart as any rows."""
SIGMA_FACTOR = 2.0
"""The sigma of --sigma auto and that of --sigma pairs agree within this factor."""
HARDLY_CLOSER = 0.02
"""Difference of the cosines of pairs and of strangers, up to which the pairs are doubtful."""
CHANCE_RECALL = 5.0
"""Times the recall@1 of chance, up to which the pairs are doubtful."""
CROWDED = 0.05
"""Mean squared distance of the rows of a modality from their mean, up to which they are crowded (1:
spread out)."""
FEW_DIRECTIONS = 0.05
"""Effective dimension over the dimension, up to which rows fill few directions."""
NO_BIAS = 0.5
FAIR, UNFAIR = 0.15, 0.3
"""Distance from `NO_BIAS` of the share of the first ten that are of the other modality, in the
calibrated list: up to the first one list is fair, beyond the second it is not."""
UNSURE_DEGREES = 5.0
"""Standard error of the direction of a mean, beyond which there are too few rows."""


@dataclass(repr=False)
class Measured:
    """Everything that is measured of two modalities, or of one: then ``gap`` is None, and what
    follows is empty.

    Attributes:
        modalities: measures of each modality.
        provenance: where the numbers come from: store, model, numbers of rows, split and seed.
        notes: what the reader should know.
        gap: measures of the gap.
        pairs: measures of the pairs; None without pairs.
        spaces: preset → measures of the space that it makes.
        assumptions: question → answer.
        one_list: modality of the queries → what they find in a mixed corpus; empty with few pairs.
        noise: the alignment noise; None without pairs.
        sigmas: what each rule gives for sigma.
        recommended: one of these rules, and why.
        collected: the rows that were read.
        orthogonal: modality → cosines of its differences with the gap.
        transformed: ``raw`` and ``c2-collapse`` → the rows of both modalities.
        draw_map: returns the data of the map of two modalities, see `gap_map`.
    """

    modalities: dict[str, ModalityMeasures]
    provenance: dict[str, Any]
    notes: list[str]
    gap: GapMeasures | None = None
    pairs: PairMeasures | None = None
    spaces: dict[str, SpaceMeasures] = field(default_factory=dict)
    assumptions: dict[str, Answer] = field(default_factory=dict)
    one_list: dict[str, OneList] = field(default_factory=dict)
    noise: Residuals | None = None
    sigmas: list[SigmaRule] = field(default_factory=list)
    recommended: tuple[SigmaRule, str] | None = None
    collected: Collected | None = None
    orthogonal: dict[str, Array] = field(default_factory=dict)
    transformed: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    draw_map: Callable[[], Markup] | None = None

    @cached_property
    def verdict(self) -> dict[str, Answer]:
        """The answers to the questions of this module."""
        found = list(_unusual(self))
        because = " ".join(f"{text}." for text in found) or "All checks passed."
        unusual = {"unusual": Answer("Is anything unusual?", "yes" if found else "no", because)}
        if self.gap is None:
            return unusual
        gap = Answer("Is there a modality gap?", *_judge_gap(self))
        names = " and ".join(f"{name}s" for name in self.modalities)
        one_list = (
            Answer(f"Can {names} be searched in one list?", *_judge_one_list(self))
            if self.one_list
            else None
        )
        return {
            "gap": gap,
            "collapse": Answer("Will Collapse help?", *_judge_collapse(self, gap)),
            "corrupt": Answer("Will Corrupt help?", *_judge_corrupt(self)),
            **({"one_list": one_list} if one_list else {}),
            **unusual,
        }


def _judge_gap(report: Measured) -> Judgement:
    """Judge whether there is a gap, by its share in the squared distance of a pair and by what
    sampling alone gives.
    """
    assert report.gap is not None
    length = report.gap.length.value
    spread = _variances(report)
    chance = math.sqrt(
        sum(spread[name] / found.independent_rows for name, found in report.modalities.items())
    )
    if length <= CHANCE * chance:
        small = (
            f"The means are {length:.2f} apart, but so few rows show {chance:.2f} without any gap."
        )
        return "no", small
    first, second = report.modalities
    if report.pairs:
        share, between = (
            length**2 / max(report.pairs.alignment.value, 1e-12),
            f"a {second} row and its own {first} row",
        )
    else:
        share, between = (
            length**2 / (length**2 + sum(spread.values())),
            f"a {second} row and any {first} row",
        )
    size = "hardly a gap" if share < NO_GAP else "small" if share < LARGE_GAP else "large"
    shown = f"{100 * share:.0f} % of the squared distance between {between}"
    because = f"The means are {length:.2f} apart, which is {size}: {shown}."
    return "no" if share < NO_GAP else "partly" if share < LARGE_GAP else "yes", because


def _judge_collapse(report: Measured, gap: Answer) -> Judgement:
    """Judge whether subtracting the means closes the gap without costing recall."""
    raw, collapsed = report.spaces.get(RAW), report.spaces.get(COLLAPSE)
    if raw is None or collapsed is None:
        return "unknown", "It cannot be applied to these embeddings."
    if gap.answer == "no":
        return "no", "There is no gap to close."
    left = collapsed.gap / raw.gap if raw.gap > 0 else 1.0
    closes = f"It leaves {100 * left:.0f} % of the gap"
    if left > NOT_CLOSED:
        return "no", f"{closes}: the subtracted means are not those of these rows."
    probe, told = collapsed.separability, ""
    if probe is not None:
        told = (
            f", and a linear probe recognises the modality of {100 * probe.value:.0f} % of the rows"
        )
    lost = []
    for way, recall in raw.recall.items():
        before, after = recall["recall@1"], collapsed.recall[way]["recall@1"].value
        if before.value - after > LOST_RECALL and (
            before.interval is None or after < before.interval[0]
        ):
            lost.append(f"{100 * before.value:.1f} to {100 * after:.1f} % {way.replace('_', ' ')}")
    if lost:
        return "partly", f"{closes}{told}, but recall@1 falls: {', '.join(lost)}."
    if left > CLOSED:
        return "partly", f"{closes}{told}."
    if _denied(report, "constant"):
        because = (
            "but the gap is not the same across the store, so one mean per modality does "
            "not close it everywhere."
        )
        return "partly", f"{closes}, {because}"
    if probe is not None and probe.value >= SEPARABLE:
        return "partly", f"{closes}{told}: the modalities differ in more than their means."
    return "yes", f"{closes}{told}{' (chance: 50 %)' if told else ''}."


def _judge_corrupt(report: Measured) -> Judgement:
    """Judge whether pairs differ once the gap is gone, and whether the sigma of ``--sigma auto``
    fits that.
    """
    assert report.recommended is not None
    pairs, (rule, why) = report.pairs, report.recommended
    option, sigma = PAIRS if rule.name == "pair_cosine" else AUTO, float(rule.sigma or 0.0)
    chosen = f"--sigma {option} gives {sigma:.3f}, {why}"
    if not pairs or pairs.items < 2:
        few = "The pairs of a single item are too few" if pairs else "There are no pairs"
        return "unknown", f"{few} to measure the alignment noise; {chosen}."
    dim = next(iter(report.modalities.values())).dim
    ratio = dim * pairs.residual_rms.value**2 / max(sum(_variances(report).values()), 1e-12)
    if ratio <= ALIKE:
        distance = f"their squared distance is {100 * ratio:.0f} % of that of unrelated rows"
        return "no", f"Without the gap, pairs are almost equal: {distance}."
    if ratio >= STRANGERS:
        distance = f"as unrelated rows ({100 * ratio:.0f} % of their squared distance)"
        because = (
            f"Without the gap, pairs are as far apart {distance}, and no noise makes up for that."
        )
        return "no", because
    needed = next((each.sigma for each in report.sigmas if each.name == "pair_cosine"), None)
    differ = (
        f"Without the gap, the squared distance of pairs is {100 * ratio:.0f} % of that of "
        f"unrelated rows"
    )
    if not needed or option == PAIRS:
        return "yes", f"{differ}. {chosen}."
    other = f"the cosine of the pairs gives {needed:.3f} (--sigma pairs)"
    if 1 / SIGMA_FACTOR <= sigma / needed <= SIGMA_FACTOR:
        return "yes", f"{differ}. {chosen}; {other}."
    compare = "Compare both with `c3 ablate --sigma auto --sigma pairs`."
    return "partly", f"{differ}. {chosen}, but {other}. {compare}"


def _judge_one_list(report: Measured) -> Judgement:
    """Judge whether the calibrated list mixes both modalities and finds answers, for the worse kind
    of query.
    """
    asked, worst = min(
        report.one_list.items(), key=lambda pair: (not _finds_by_chance(pair[1]), -_bias(pair[1]))
    )
    other = next(name for name in report.modalities if name != asked)
    raw, centred, calibrated = (10 * share.value for share in worst.other_modality.values())
    because = (
        f"When {other}s have the answers, the first ten of {asked} queries hold {raw:.1f} {other}s "
        f"by cosine, {centred:.1f} after Collapse, and {calibrated:.1f} by the calibrated scores "
        f"of `c3 search` (5 without bias), which find "
        f"{100 * worst.recall['calibrated'].value:.0f} % of the answers "
        f"(chance: {100 * worst.chance:.0f} %)."
    )
    if _finds_by_chance(worst) or _bias(worst) > UNFAIR:
        return "no", because
    return "partly" if _bias(worst) > FAIR else "yes", because


def _bias(one_list: OneList) -> float:
    """Return the distance of the calibrated share of the other modality from that without bias."""
    return abs(one_list.other_modality["calibrated"].value - NO_BIAS)


def _finds_by_chance(one_list: OneList) -> bool:
    """Return whether the calibrated list may find no more answers than rows drawn at random."""
    found = one_list.recall["calibrated"]
    low = found.value if found.interval is None else found.interval[0]
    return low <= one_list.chance


def _unusual(report: Measured) -> Iterator[str]:
    """Yield what contrastive embeddings rarely show; anisotropic noise is not among it, as every
    model has that.
    """
    pairs, raw = report.pairs, report.spaces.get(RAW)
    if pairs and pairs.unpaired_cosine:
        own, other = pairs.paired_cosine.value, pairs.unpaired_cosine.value
        if own - other <= HARDLY_CLOSER:
            cosines = f"{own:.3f} against {other:.3f}"
            yield (
                f"Pairs are hardly closer than unrelated rows (cosine {cosines}): check that "
                f"the pairs are correct"
            )
        elif raw and raw.recall and report.collected:
            working = report.collected.working
            best = max(recall["recall@1"].value for recall in raw.recall.values())
            if (times := best * min(len(working.first), len(working.second))) <= CHANCE_RECALL:
                yield (
                    f"Recall@1 is only {times:.1f} times that of chance: check that the pairs "
                    f"are correct"
                )
    for name, found in report.modalities.items():
        if 1 - found.mean_norm**2 <= CROWDED:
            yield (
                f"The {name} rows are all similar: their mean has length {found.mean_norm:.3f} "
                f"of at most 1"
            )
        error = found.mean_direction_error_degrees
        if error is not None and error > UNSURE_DEGREES:
            rows = counted(found.independent_rows, "independent row")
            yield (
                f"The direction of the {name} mean is uncertain by {error:.0f}° ({rows}): embed "
                f"more rows"
            )
        if not found.limited_by_rows and found.effective_dimension <= FEW_DIRECTIONS * found.dim:
            yield f"The {name} rows fill only {found.effective_dimension} of {found.dim} dimensions"
    said = {
        "constant": "The gap is not constant",
        "orthogonal": "The gap is not orthogonal to both modalities",
        "gaussian": "The alignment noise is not Gaussian",
    }
    yield from (text for name, text in said.items() if _denied(report, name))


def _variances(report: Measured) -> dict[str, float]:
    """Return the mean squared distance of the rows of each modality, of unit length, from their
    mean.
    """
    return {name: max(1 - found.mean_norm**2, 0.0) for name, found in report.modalities.items()}


def _denied(report: Measured, name: str) -> bool:
    return name in report.assumptions and report.assumptions[name].answer == "no"
