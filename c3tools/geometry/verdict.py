"""Keep what was measured, and judge it in five sentences.

They answer: is there a gap, will Collapse help, will Corrupt help, can images and texts be searched
in one list, is anything unusual. Each follows from numbers of
the report by the thresholds below; docs/reference/geometry.md has them as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import inf
from typing import Any

from markupsafe import Markup

from ..arrays import Array, Floats
from ..reporter import counted
from ..transforms.sigma import AUTO, PAIRS, SigmaRule
from .assumptions import Answer
from .collect import Collected
from .measures import GapMeasures, ModalityMeasures, PairMeasures, Residuals
from .one_list import OneList
from .spaces import COLLAPSE, RAW, SpaceMeasures

SMALL_GAP, LARGE_GAP = 0.05, 0.25
"""Shares of the gap in the squared distance of a pair: below the first it does not matter, from the
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
MIN_RECALL_ITEMS = 12
"""Items from which recall is compared with chance; five items cannot exceed `CHANCE_RECALL`."""
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
        answers = {}
        if self.gap is not None:
            answers["gap"] = judge_gap(self.gap, self.pairs, self.modalities)
            answers["collapse"] = _judge_collapse(self, answers["gap"])
            answers["corrupt"] = _judge_corrupt(self)
        if self.one_list:
            answers["one_list"] = _judge_one_list(self)
        answers["unusual"] = _judge_unusual(self)
        return answers


def judge_gap(
    gap: GapMeasures, pairs: PairMeasures | None, modalities: Mapping[str, ModalityMeasures]
) -> Answer:
    """Judge whether there is a gap, by the debiased interval of its squared length as a share of
    the squared distance of a pair.

    The answer is no where the whole interval is below `SMALL_GAP`, yes where it excludes 0, and
    else unknown. benchmarks/assumption_power.py counts the answers for small gaps and for none.
    """
    question = "Is there a modality gap?"
    first, second = modalities
    length = gap.length_debiased.value
    if pairs:
        squared_distance = pairs.alignment.value
        distance = f"the squared distance between each {second} row and its own {first} row"
    else:
        squared_distance = length**2 + sum(_variances(modalities).values())
        distance = f"the squared distance between any {second} row and any {first} row"
    share, low, high = (
        min(end**2 / max(squared_distance, 1e-12), 1.0)
        for end in (length, *(gap.length_debiased.interval or (0.0, inf)))
    )
    measures = {"share": share, "share_interval": [low, high]}
    shown = f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f} %) of {distance}"
    if high < SMALL_GAP:
        because = f"The means are {length:.2f} apart, which is hardly a gap: {shown}."
        return Answer(question, "no", because, share, measures)
    if low == 0:
        because = (
            f"There are too few independent items to tell: the means are {length:.2f} apart, "
            f"{shown}."
        )
        return Answer(question, "unknown", because, share, measures)
    size = "small" if share < LARGE_GAP else "large"
    because = f"The means are {length:.2f} apart, which is {size}: {shown}."
    return Answer(question, "yes", because, share, measures)


def _judge_collapse(report: Measured, gap: Answer) -> Answer:
    """Judge whether subtracting the means closes the gap without costing recall."""
    answer = partial(Answer, "Will Collapse help?")
    raw = report.spaces.get(RAW)
    collapsed = report.spaces.get(COLLAPSE)
    if raw is None or collapsed is None:
        return answer("unknown", "It cannot be applied to these embeddings.")
    if gap.answer == "no":
        return answer("no", "There is no gap to close.")
    if gap.answer == "unknown":
        return answer("unknown", "It is not known whether there is a gap to close.")
    left = collapsed.gap / raw.gap if raw.gap > 0 else 1.0
    closes = f"It leaves {100 * left:.0f} % of the gap"
    if left > NOT_CLOSED:
        return answer("no", f"{closes}: the subtracted means are not those of these rows.")
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
        return answer("partly", f"{closes}{told}, but recall@1 falls: {', '.join(lost)}.")
    if left > CLOSED:
        return answer("partly", f"{closes}{told}.")
    if _denied(report, "constant"):
        because = (
            "but the gap is not the same across the store, so one mean per modality does "
            "not close it everywhere."
        )
        return answer("partly", f"{closes}, {because}")
    if probe is not None and probe.value >= SEPARABLE:
        return answer("partly", f"{closes}{told}: the modalities differ in more than their means.")
    return answer("yes", f"{closes}{told}{' (chance: 50 %)' if told else ''}.")


def _judge_corrupt(report: Measured) -> Answer:
    """Judge whether pairs differ once the gap is gone, and whether the sigma of ``--sigma auto``
    fits that.
    """
    assert report.recommended is not None
    answer = partial(Answer, "Will Corrupt help?")
    pairs, (rule, why) = report.pairs, report.recommended
    option, sigma = PAIRS if rule.name == "pair_cosine" else AUTO, float(rule.sigma or 0.0)
    chosen = f"--sigma {option} gives {sigma:.3f}, {why}"
    if not pairs or pairs.items < 2:
        few = "The pairs of a single item are too few" if pairs else "There are no pairs"
        return answer("unknown", f"{few} to measure the alignment noise; {chosen}.")
    dim = next(iter(report.modalities.values())).dim
    ratio = (
        dim * pairs.residual_rms.value**2 / max(sum(_variances(report.modalities).values()), 1e-12)
    )
    if ratio <= ALIKE:
        distance = f"their squared distance is {100 * ratio:.0f} % of that of unrelated rows"
        return answer("no", f"Without the gap, pairs are almost equal: {distance}.")
    if ratio >= STRANGERS:
        distance = f"as unrelated rows ({100 * ratio:.0f} % of their squared distance)"
        because = (
            f"Without the gap, pairs are as far apart {distance}, and no noise makes up for that."
        )
        return answer("no", because)
    needed = next((each.sigma for each in report.sigmas if each.name == "pair_cosine"), None)
    differ = (
        f"Without the gap, the squared distance of pairs is {100 * ratio:.0f} % of that of "
        f"unrelated rows"
    )
    if not needed or option == PAIRS:
        return answer("yes", f"{differ}. {chosen}.")
    other = f"the cosine of the pairs gives {needed:.3f} (--sigma pairs)"
    if 1 / SIGMA_FACTOR <= sigma / needed <= SIGMA_FACTOR:
        return answer("yes", f"{differ}. {chosen}; {other}.")
    compare = "Compare both with `c3 ablate --sigma auto --sigma pairs`."
    return answer("partly", f"{differ}. {chosen}, but {other}. {compare}")


def _judge_one_list(report: Measured) -> Answer:
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
    names = " and ".join(f"{name}s" for name in report.modalities)
    answer = partial(Answer, f"Can {names} be searched in one list?")
    if _finds_by_chance(worst) or _bias(worst) > UNFAIR:
        return answer("no", because)
    return answer("partly" if _bias(worst) > FAIR else "yes", because)


def _bias(one_list: OneList) -> float:
    """Return the distance of the calibrated share of the other modality from that without bias."""
    return abs(one_list.other_modality["calibrated"].value - NO_BIAS)


def _finds_by_chance(one_list: OneList) -> bool:
    """Return whether the calibrated list may find no more answers than rows drawn at random."""
    found = one_list.recall["calibrated"]
    low = found.value if found.interval is None else found.interval[0]
    return low <= one_list.chance


def _judge_unusual(report: Measured) -> Answer:
    """Say what contrastive embeddings rarely show."""
    remarks = list(_unusual(report))
    because = " ".join(f"{remark}." for remark in remarks) or "All checks passed."
    return Answer("Is anything unusual?", "yes" if remarks else "no", because)


def _unusual(report: Measured) -> Iterator[str]:
    """Yield what none of the trained encoders of docs/results/geometry.md shows.

    So the noise may be anisotropic, and the gap not orthogonal: that is what CLIP is like.
    """
    pairs = report.pairs
    raw = report.spaces.get(RAW)
    if pairs and pairs.unpaired_cosine:
        paired = pairs.paired_cosine.value
        unpaired = pairs.unpaired_cosine.value
        if paired - unpaired <= HARDLY_CLOSER:
            yield (
                f"Pairs are hardly closer than unrelated rows (cosine {paired:.3f} against "
                f"{unpaired:.3f}): check that the pairs are correct"
            )
        elif raw and raw.recall and report.collected and pairs.items >= MIN_RECALL_ITEMS:
            working = report.collected.working
            best = max(recall["recall@1"].value for recall in raw.recall.values())
            times = best * min(len(working.first), len(working.second))
            if times <= CHANCE_RECALL:
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
        "gaussian": "The alignment noise is not Gaussian",
    }
    yield from (text for name, text in said.items() if _denied(report, name))


def _variances(modalities: Mapping[str, ModalityMeasures]) -> dict[str, float]:
    """Return the mean squared distance of the rows of each modality, of unit length, from their
    mean.
    """
    return {name: max(1 - found.mean_norm**2, 0.0) for name, found in modalities.items()}


def _denied(report: Measured, name: str) -> bool:
    return name in report.assumptions and report.assumptions[name].answer == "no"
