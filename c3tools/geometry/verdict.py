"""The measurements of a gap report, and the verdict on them in six sentences.

They answer: is there a gap, will Collapse help, will Corrupt help, can images and texts be searched
in one list, can they be clustered together, is anything unusual. Each follows from numbers of the
report by the thresholds below; docs/reference/gap-report.md has them as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import inf
from typing import Any

from markupsafe import Markup

from ..arrays import Array
from ..reporter import counted
from ..transforms.sigma import AUTO, PAIRS, SigmaRule
from .assumptions import Answer, Word
from .collect import Collected
from .measures import GapMeasures, ModalityMeasures, PairMeasures, Residuals
from .mixed_clusters import LEAST_ITEMS, MixedClusters
from .one_list import OneList
from .spaces import COLLAPSE, RAW, SpaceMeasures, TransformedRows

SMALL_GAP = 0.05
"""Share of the gap in the squared distance of a pair, below which it does not matter."""
LARGE_GAP = 0.25
"""That share, from which the gap is large."""
CLOSED = 0.25
"""Share of the gap's length that Collapse leaves, up to which the gap is closed."""
NOT_CLOSED = 0.5
"""That share, beyond which the gap is not closed."""
SEPARABLE = 0.75
"""Accuracy of a linear probe for the modality, from which the modalities count as told apart (0.5
is a coin)."""
LOST_RECALL = 0.01
"""Recall@1 that Collapse may lose; more counts if the interval of the paired difference excludes
0."""
ALIKE = 0.05
"""Squared distance of pairs over that of strangers, without the gap, up to which pairs coincide."""
STRANGERS = 0.95
"""That ratio, from which pairs are as far apart as any rows."""
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
"""Share of the first ten that are of the other modality, if a list is fair."""
FAIR = 0.15
"""Distance of that share from `NO_BIAS`, in the calibrated list, up to which one list is fair."""
UNFAIR = 0.3
"""That distance, beyond which it is not."""
FOUND = 0.5
"""Share of the answers among its first ten, below which one list finds few."""
TOGETHER = 0.3
"""Lower end of the interval of kappa, from which pairs come into one cluster."""
HARDLY_TOGETHER = 0.05
"""That end, below which they do not."""
APART = 0.1
"""What a cluster may say of the modality of its rows (U)."""
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
        mixed_clusters: where pairs come to in clusters of both modalities; None with few pairs.
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
    mixed_clusters: MixedClusters | None = None
    noise: Residuals | None = None
    sigmas: list[SigmaRule] = field(default_factory=list)
    recommended: tuple[SigmaRule, str] | None = None
    collected: Collected | None = None
    orthogonal: dict[str, Array] = field(default_factory=dict)
    transformed: dict[str, TransformedRows] = field(default_factory=dict)
    draw_map: Callable[[], Markup] | None = None

    @cached_property
    def verdict(self) -> dict[str, Answer]:
        """The answers to the questions of this module."""
        answers = {}
        if self.gap is not None:
            gap = judge_gap(self.gap, self.pairs, self.modalities)
            if gap.answer != "yes" and _is_denied(self, "constant"):
                because = f"{gap.because} But parts of the store have gaps of their own."
                gap = replace(gap, answer="partly", because=because)
            answers["gap"] = gap
            answers["collapse"] = _judge_collapse(self, answers["gap"])
            answers["corrupt"] = _judge_corrupt(self)
        if self.one_list:
            answers["one_list"] = _judge_one_list(self)
        if self.gap is not None:
            answers["clusters"] = judge_clusters(self.mixed_clusters, list(self.modalities))
        answers["unusual"] = _judge_unusual(self)
        if _doubt_about_pairs(self):
            # It comes first, because all other answers depend on the pairs
            answers = {"unusual": answers.pop("unusual"), **answers}
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

    # The squared gap, and the ends of its interval, as shares of the squared distance of a pair
    if pairs:
        squared_distance = pairs.alignment.value
        distance = f"the squared distance between each {second} row and its own {first} row"
    else:
        squared_distance = length**2 + sum(_variances(modalities).values())
        distance = f"the squared distance between any {second} row and any {first} row"
    low_length, high_length = gap.length_debiased.interval or (0.0, inf)
    share, low, high = (
        min(gap_length**2 / max(squared_distance, 1e-12), 1.0)
        for gap_length in (length, low_length, high_length)
    )
    measures = {"share": share, "share_interval": [low, high]}
    shown = f"{100 * share:.0f}% ({100 * low:.0f} to {100 * high:.0f}%) of {distance}"

    # No gap, one that cannot be told from none, or a small or large one
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
    if size == "small":
        because += (
            " This assumes independent items: near copies, such as frames of a few videos, look "
            "like this even without a gap."
        )
    return Answer(question, "yes", because, share, measures)


def _judge_collapse(report: Measured, gap: Answer) -> Answer:
    """Judge whether subtracting the means closes the gap without costing recall."""
    answer = partial(Answer, "Will Collapse help?")
    raw = report.spaces.get(RAW)
    collapsed = report.spaces.get(COLLAPSE)
    if raw is None or collapsed is None:
        return answer("unknown", "It cannot be applied to these embeddings.")
    if gap.answer == "partly":
        constant = report.assumptions["constant"].because
        return answer("no", f"One mean per modality does not close the gaps of parts. {constant}")
    if gap.answer == "no":
        return answer("no", "There is no gap to close.")
    if gap.answer == "unknown":
        return answer("unknown", "It is not known whether there is a gap to close.")

    # How much of the gap is left
    left = collapsed.gap / raw.gap if raw.gap > 0 else 1.0
    leaves = f"It leaves {100 * left:.0f}% of the gap"
    if left > NOT_CLOSED:
        return answer("no", f"{leaves}: the subtracted means belong to other rows.")

    # What Collapse may cost or miss: recall, the gaps of parts, modalities that still differ
    probe = collapsed.separability
    recognised = ""
    if probe is not None:
        recognised = (
            f", and a linear probe recognises the modality of {100 * probe.value:.0f}% of the rows"
        )
    recall_losses = []
    for direction, change in collapsed.recall_change.items():
        high = inf if change.interval is None else change.interval[1]
        if change.value < -LOST_RECALL and high < 0:
            before = raw.recall[direction]["recall@1"].value
            after = collapsed.recall[direction]["recall@1"].value
            words = direction.replace("_", " ")
            recall_losses.append(f"{100 * before:.1f} to {100 * after:.1f}% {words}")
    if recall_losses:
        because = f"{leaves}{recognised}, but recall@1 falls: {', '.join(recall_losses)}."
        return answer("partly", because)
    if left > CLOSED:
        return answer("partly", f"{leaves}{recognised}.")
    if _is_denied(report, "constant"):
        because = (
            "but the gap is not the same across the store, so one mean per modality does "
            "not close it everywhere."
        )
        return answer("partly", f"{leaves}, {because}")
    if probe is None:
        return answer("yes", f"{leaves}.")
    if probe.value >= SEPARABLE:
        because = f"{leaves}{recognised}: the modalities differ in more than their means."
        return answer("partly", because)
    return answer("yes", f"{leaves}{recognised} (chance: 50%).")


def _judge_corrupt(report: Measured) -> Answer:
    """Judge whether pairs differ once the gap is gone, and whether the sigma of ``--sigma auto``
    fits that.
    """
    assert report.recommended is not None
    answer = partial(Answer, "Will Corrupt help?")
    rule, why = report.recommended
    option = PAIRS if rule.name == "pair_cosine" else AUTO
    sigma = float(rule.sigma or 0.0)
    sigma_given = f"--sigma {option} gives {sigma:.3f}, {why}"
    pairs = report.pairs
    if not pairs or pairs.items < 2:
        few = "The pairs of a single item are too few" if pairs else "There are no pairs"
        return answer("unknown", f"{few} to measure the alignment noise; {sigma_given}.")

    # How far apart pairs are without the gap
    dim = next(iter(report.modalities.values())).dim
    unrelated_distance = max(sum(_variances(report.modalities).values()), 1e-12)  # squared
    ratio = dim * pairs.residual_rms.value**2 / unrelated_distance
    if ratio <= ALIKE:
        distance = f"they have {100 * ratio:.0f}% of the squared distance of unrelated rows"
        return answer("no", f"Without the gap, pairs are almost identical: {distance}.")
    if ratio >= STRANGERS:
        distance = f"as unrelated rows ({100 * ratio:.0f}% of their squared distance)"
        because = (
            f"Without the gap, pairs are as far apart {distance}, and no noise makes up for that."
        )
        return answer("no", because)

    # Whether both rules agree on the noise
    differ = (
        f"Without the gap, pairs have {100 * ratio:.0f}% of the squared distance of unrelated rows"
    )
    sigma_by_rule = {candidate.name: candidate.sigma for candidate in report.sigmas}
    pairs_sigma = sigma_by_rule.get("pair_cosine")
    if not pairs_sigma or option == PAIRS:
        return answer("yes", f"{differ}. {sigma_given}.")
    pairs_sigma_given = f"the cosine of the pairs gives {pairs_sigma:.3f} (--sigma pairs)"
    if 1 / SIGMA_FACTOR <= sigma / pairs_sigma <= SIGMA_FACTOR:
        return answer("yes", f"{differ}. {sigma_given}; {pairs_sigma_given}.")
    compare = "Compare both with `c3 ablate-captions --sigma auto --sigma pairs`."
    return answer("partly", f"{differ}. {sigma_given}, but {pairs_sigma_given}. {compare}")


def _judge_one_list(report: Measured) -> Answer:
    """Judge whether the calibrated list mixes both modalities and finds answers, for the worse kind
    of query.
    """
    # The worse kind of query; of two with the same answer, the one with more bias
    from_worst: Sequence[Word] = ("no", "partly", "yes")
    words = {asked: _one_list_word(one_list) for asked, one_list in report.one_list.items()}
    asked = min(
        words, key=lambda name: (from_worst.index(words[name]), -_bias(report.one_list[name]))
    )
    worst = report.one_list[asked]
    other = next(name for name in report.modalities if name != asked)
    raw, centred, calibrated = (10 * share.value for share in worst.other_modality.values())
    found = worst.recall["calibrated"].value
    because = (
        f"When the answers are {other}s, the first ten hits of {asked} queries contain {raw:.1f} "
        f"{other}s by cosine, {centred:.1f} after Collapse, and {calibrated:.1f} by the calibrated "
        f"scores of `c3 search` (5 is unbiased), which find {100 * found:.0f}% of the answers "
        f"(chance: {100 * worst.chance:.0f}%)."
    )
    if words[asked] == "partly" and found < FOUND:
        because += " So most answers are not among the first ten."
    names = " and ".join(f"{name}s" for name in report.modalities)
    return Answer(f"Can {names} be searched in one list?", words[asked], because)


def _one_list_word(one_list: OneList) -> Word:
    """Return the answer for one kind of query."""
    if _finds_by_chance(one_list) or _bias(one_list) > UNFAIR:
        return "no"
    if _bias(one_list) > FAIR or one_list.recall["calibrated"].value < FOUND:
        return "partly"
    return "yes"


def _bias(one_list: OneList) -> float:
    """Return the distance of the calibrated share of the other modality from that without bias."""
    return abs(one_list.other_modality["calibrated"].value - NO_BIAS)


def _finds_by_chance(one_list: OneList) -> bool:
    """Return whether the calibrated list may find no more answers than rows drawn at random."""
    recall = one_list.recall["calibrated"]
    low = recall.value if recall.interval is None else recall.interval[0]
    return low <= one_list.chance


def judge_clusters(
    mixed: MixedClusters | None, modalities: Sequence[str], *, fewer: MixedClusters | None = None
) -> Answer:
    """Judge whether cross-centroids bring pairs into one cluster, and mix the modalities.

    That they mix does not suffice: unrelated images and texts do so too.
    benchmarks/assumption_power.py counts the answers.

    Args:
        mixed: the clusters; None where they could not be measured.
        modalities: their names.
        fewer: the default number of clusters, where more were asked for.
    """
    names = " and ".join(f"{name}s" for name in modalities)
    answer = partial(Answer, f"Can {names} be clustered together?")
    if mixed is None:
        because = (
            f"At least {LEAST_ITEMS} different items with pairs are needed, and no more clusters "
            f"than four fifths of these items."
        )
        return answer("unknown", because)

    # What was measured, in words
    kappa = mixed.kappa["cross"]
    low, high = kappa.interval or (0.0, 1.0)
    one_kind = mixed.one_kind["cross"]
    because = (
        f"With {mixed.clusters} cross-centroids made from other pairs, {100 * kappa.value:.0f}% "
        f"({100 * low:.0f} to {100 * high:.0f}%) of the pairs fall into one cluster, beyond chance"
    )
    if "raw" in mixed.kappa:
        because += (
            f"; with k-means {100 * mixed.kappa['raw'].value:.0f}%, and after Collapse "
            f"{100 * mixed.kappa['collapsed'].value:.0f}%"
        )
    because += f". The cluster of a row reveals {100 * max(one_kind, 0.0):.0f}% of its modality."
    if fewer is not None and fewer.kappa["cross"].value > high:
        because += (
            f" More clusters divide more pairs: with the default of {fewer.clusters}, "
            f"{100 * fewer.kappa['cross'].value:.0f}% stay together."
        )

    # Pairs must come together, and each cluster must have both modalities
    measures = mixed.to_dict()
    if low >= TOGETHER and one_kind <= APART:
        return answer("yes", because, kappa.value, measures)
    word: Word = "partly" if low >= HARDLY_TOGETHER else "no"
    return answer(word, because, kappa.value, measures)


def _doubt_about_pairs(report: Measured) -> str:
    """Return a sentence if pairs are not closer than unrelated rows; else an empty one."""
    pairs = report.pairs
    if pairs is None or not pairs.unpaired_cosine:
        return ""
    paired = pairs.paired_cosine.value
    unpaired = pairs.unpaired_cosine.value
    check = "check that the pairs are correct, and files without ids in the same order."
    if paired - unpaired <= HARDLY_CLOSER:
        return (
            f"Pairs are hardly closer than unrelated rows (cosine {paired:.3f} against "
            f"{unpaired:.3f}): {check}"
        )
    # Recall@1 over that of chance, in the better direction, unless items are too few
    raw = report.spaces.get(RAW)
    if raw and raw.recall and report.collected and pairs.items >= MIN_RECALL_ITEMS:
        working = report.collected.working
        best = max(recall["recall@1"].value for recall in raw.recall.values())
        times = best * min(len(working.first), len(working.second))
        if times <= CHANCE_RECALL:
            return f"Recall@1 is only {times:.1f} times chance: {check}"
    return ""


def _judge_unusual(report: Measured) -> Answer:
    """Judge whether the embeddings show what none of the trained encoders of
    docs/results/geometry.md shows.

    So the noise may be anisotropic, and the gap not orthogonal: that is what CLIP is like.
    """
    pairs = report.pairs
    doubt = _doubt_about_pairs(report)
    remarks = [doubt] if doubt else []
    for name, measures in report.modalities.items():
        if 1 - measures.mean_norm**2 <= CROWDED:
            remarks.append(
                f"The {name} rows are all similar: their mean has length {measures.mean_norm:.3f} "
                f"(at most 1)."
            )
        error = measures.mean_direction_error_degrees
        if error is not None and error > UNSURE_DEGREES:
            rows = counted(measures.independent_rows, "independent row")
            remarks.append(
                f"The direction of the {name} mean is uncertain by {error:.0f}° ({rows}): embed "
                f"more rows."
            )
        dimension = measures.effective_dimension
        if not measures.limited_by_rows and dimension <= FEW_DIRECTIONS * measures.dim:
            remarks.append(f"The {name} rows fill only {dimension} of {measures.dim} dimensions.")
    if _is_denied(report, "constant"):
        remarks.append("The gap is not constant.")
    if _is_denied(report, "gaussian"):
        remarks.append("The alignment noise is not Gaussian.")
    if remarks:
        return Answer("Is anything unusual?", "yes", " ".join(remarks))
    because = "The spread, the dimensions and the means of the rows were checked"
    if pairs:
        because += ", and the gap and the pairs as a whole; `c3 pairs` checks individual pairs"
    return Answer("Is anything unusual?", "no", f"{because}.")


def _variances(modalities: Mapping[str, ModalityMeasures]) -> dict[str, float]:
    """Return the mean squared distance of the rows of each modality, of unit length, from their
    mean.
    """
    return {name: max(1 - measures.mean_norm**2, 0.0) for name, measures in modalities.items()}


def _is_denied(report: Measured, name: str) -> bool:
    """Return whether a question about the paper's model was answered with no."""
    return name in report.assumptions and report.assumptions[name].answer == "no"
