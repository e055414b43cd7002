"""The gap report in four sentences: is there a gap, will Collapse help, will Corrupt help, what is unusual.

Each follows from numbers of the report's JSON object by the thresholds below; docs/reference/geometry.md has them as a
table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..pages import Section
from ..reporter import counted
from ..transforms.sigma import AUTO, PAIRS
from .spaces import COLLAPSE, RAW

Values = Mapping[str, Any]
Answer = Literal["yes", "partly", "no", "unknown"]

CHANCE = 2.0
"""A gap of at most twice the length that sampling alone gives is none."""
NO_GAP, LARGE_GAP = 0.05, 0.25
"""Shares of the gap in the squared distance of a pair: below the first there is none, from the second it is large."""
CLOSED, NOT_CLOSED = 0.25, 0.5
"""Shares of the gap's length that Collapse leaves: up to the first it is closed, beyond the second it is not."""
SEPARABLE = 0.75
"""Accuracy of a linear probe for the modality, from which the modalities count as told apart (0.5 is a coin)."""
LOST_RECALL = 0.01
"""Recall@1 that Collapse may lose; more counts if it is also below the interval of the recall before."""
ALIKE, STRANGERS = 0.05, 0.95
"""Squared distance of pairs over that of strangers, without the gap: up to the first pairs coincide, from the second
they are as far apart as any rows."""
SIGMA_FACTOR = 2.0
"""The sigma of --sigma auto and that of --sigma pairs agree within this factor."""
HARDLY_CLOSER = 0.02
"""Difference of the cosines of pairs and of strangers, up to which the pairs are doubtful."""
CHANCE_RECALL = 5.0
"""Times the recall@1 of chance, up to which the pairs are doubtful."""
CROWDED = 0.05
"""Mean squared distance of the rows of a modality from their mean, up to which they are crowded (1: spread out)."""
FEW_DIRECTIONS = 0.05
"""Effective dimension over the dimension, up to which rows fill few directions."""
UNSURE_DEGREES = 5.0
"""Standard error of the direction of a mean, beyond which there are too few rows."""


@dataclass(frozen=True)
class Verdict:
    """One of the four sentences.

    Attributes:
        name: key in the report's JSON.
        question: in words.
        answer: ``yes``, ``partly``, ``no`` or ``unknown``.
        because: what the answer rests on, with the numbers.
    """

    name: str
    question: str
    answer: Answer
    because: str


def verdict_section(values: Values, title: str = "Verdict") -> Section:
    """Return the verdicts of a report's JSON object as one sentence each, under a heading."""
    found = values["verdict"].values()
    return Section(title, [f"{one['question']} {one['answer'].capitalize()}. {one['because']}" for one in found])


def verdicts(values: Values) -> list[Verdict]:
    """Return the four verdicts on two modalities, or what can be said of one, from the report's JSON object."""
    if values["gap"] is None:
        return [judge_unusual(values)]
    gap = judge_gap(values)
    return [gap, judge_collapse(values, gap), judge_corrupt(values), judge_unusual(values)]


def judge_gap(values: Values) -> Verdict:
    """Judge whether there is a gap, by its share in the squared distance of a pair and by what sampling alone gives."""
    question, length = "Is there a modality gap?", float(values["gap"]["length"])
    spread = _variances(values)
    chance = math.sqrt(sum(spread[name] / found["independent_rows"] for name, found in values["modalities"].items()))
    first, second = values["modalities"]
    pairs = values["pairs"]
    if pairs:
        share, between = length**2 / max(pairs["alignment"], 1e-12), f"a {second} row and its own {first} row"
    else:
        share, between = length**2 / (length**2 + sum(spread.values())), f"a {second} row and any {first} row"
    if length <= CHANCE * chance:
        because = f"The means are {length:.2f} apart, but so few rows show {chance:.2f} without any gap."
        return Verdict("gap", question, "no", because)
    answer: Answer = "no" if share < NO_GAP else "partly" if share < LARGE_GAP else "yes"
    size = {"no": "which is hardly a gap", "partly": "which is small", "yes": "which is large"}[answer]
    because = (
        f"The means are {length:.2f} apart, {size}: {100 * share:.0f} % of the squared distance between {between}."
    )
    return Verdict("gap", question, answer, because)


def judge_collapse(values: Values, gap: Verdict) -> Verdict:
    """Judge whether subtracting the means closes the gap without costing recall."""
    question = "Will Collapse help?"
    raw, collapsed = values["spaces"].get(RAW), values["spaces"].get(COLLAPSE)
    if raw is None or collapsed is None:
        return Verdict("collapse", question, "unknown", "It cannot be applied to these embeddings.")
    if gap.answer == "no":
        return Verdict("collapse", question, "no", "There is no gap to close.")
    left = collapsed["gap"] / raw["gap"] if raw["gap"] > 0 else 1.0
    closes = f"It reduces the gap from {raw['gap']:.2f} to {collapsed['gap']:.2f}"
    if left > NOT_CLOSED:
        because = f"{closes} only: the subtracted means are not those of these rows."
        return Verdict("collapse", question, "no", because)
    probe = collapsed["separability"]
    told = "" if probe is None else f", and a linear probe recognises the modality of {100 * probe:.0f} % of the rows"
    lost = list(_lost_recall(values))
    if lost:
        because = f"{closes}{told}, but recall@1 falls: {', '.join(lost)}."
        return Verdict("collapse", question, "partly", because)
    if left > CLOSED:
        return Verdict("collapse", question, "partly", f"{closes}{told}.")
    uneven = [name for name in ("constant", "subsets") if _answer(values, name) == "no"]
    if uneven:
        where = "across the store" if uneven[0] == "constant" else "between subsets"
        because = (
            f"{closes}, but the gap is not the same {where}, so one mean per modality does not close it everywhere."
        )
        return Verdict("collapse", question, "partly", because)
    if probe is not None and probe >= SEPARABLE:
        return Verdict(
            "collapse", question, "partly", f"{closes}{told}: the modalities differ in more than their means."
        )
    return Verdict("collapse", question, "yes", f"{closes}{told}{' (chance: 50 %)' if told else ''}.")


def judge_corrupt(values: Values) -> Verdict:
    """Judge whether pairs differ once the gap is gone, and whether the sigma of ``--sigma auto`` fits that."""
    question, sigma, pairs = "Will Corrupt help?", values["sigma"], values["pairs"]
    option = PAIRS if sigma["recommended"] == "pair_cosine" else AUTO
    chosen = f"--sigma {option} gives {sigma['value']:.3f}, {sigma['why']}"
    if not pairs or pairs["items"] < 2:
        few = "The pairs of a single item are too few" if pairs else "There are no pairs"
        return Verdict("corrupt", question, "unknown", f"{few} to measure the alignment noise; {chosen}.")
    dim = next(iter(values["modalities"].values()))["dim"]
    ratio = dim * pairs["residual_rms"] ** 2 / max(sum(_variances(values).values()), 1e-12)
    if ratio <= ALIKE:
        because = (
            f"Without the gap, pairs are almost equal: their squared distance is {100 * ratio:.0f} % of that of "
            "unrelated rows."
        )
        return Verdict("corrupt", question, "no", because)
    if ratio >= STRANGERS:
        because = (
            f"Without the gap, pairs are as far apart as unrelated rows ({100 * ratio:.0f} % of their squared "
            "distance), and no noise makes up for that."
        )
        return Verdict("corrupt", question, "no", because)
    needed = sigma["candidates"].get("pair_cosine", {}).get("sigma")
    differ = f"Without the gap, the squared distance of pairs is {100 * ratio:.0f} % of that of unrelated rows"
    if not needed or option == PAIRS:
        return Verdict("corrupt", question, "yes", f"{differ}. {chosen}.")
    other = f"the cosine of the pairs gives {needed:.3f} (--sigma pairs)"
    if 1 / SIGMA_FACTOR <= sigma["value"] / needed <= SIGMA_FACTOR:
        return Verdict("corrupt", question, "yes", f"{differ}. {chosen}; {other}.")
    compare = "Compare both with `c3 ablate --sigma auto --sigma pairs`."
    return Verdict("corrupt", question, "partly", f"{differ}. {chosen}, but {other}. {compare}")


def judge_unusual(values: Values) -> Verdict:
    """List what contrastive embeddings rarely show; anisotropic noise is not among it, as every model has that."""
    found = list(_unusual(values))
    if not found:
        return Verdict("unusual", "Is anything unusual?", "no", "All checks passed.")
    return Verdict("unusual", "Is anything unusual?", "yes", " ".join(f"{text}." for text in found))


def _unusual(values: Values) -> Iterator[str]:
    pairs = values["pairs"]
    if pairs and pairs["unpaired_cosine"] is not None:
        if pairs["paired_cosine"] - pairs["unpaired_cosine"] <= HARDLY_CLOSER:
            cosines = f"{pairs['paired_cosine']:.3f} against {pairs['unpaired_cosine']:.3f}"
            yield f"Pairs are hardly closer than unrelated rows (cosine {cosines}): check that the pairs are correct"
        elif (recall := _recall_over_chance(values)) is not None and recall <= CHANCE_RECALL:
            yield f"Recall@1 is only {recall:.1f} times that of chance: check that the pairs are correct"
    for name, found in values["modalities"].items():
        spread, error = 1 - found["mean_norm"] ** 2, found["mean_direction_error_degrees"]
        if spread <= CROWDED:
            yield f"The {name} rows are all similar: their mean has length {found['mean_norm']:.3f} of at most 1"
        if error is not None and error > UNSURE_DEGREES:
            rows = counted(found["independent_rows"], "independent row")
            yield f"The direction of the {name} mean is uncertain by {error:.0f}° ({rows}): embed more rows"
        if not found["limited_by_rows"] and found["effective_dimension"] <= FEW_DIRECTIONS * found["dim"]:
            yield f"The {name} rows fill only {found['effective_dimension']} of {found['dim']} dimensions"
    said = {
        "constant": "The gap is not constant",
        "orthogonal": "The gap is not orthogonal to both modalities",
        "gaussian": "The alignment noise is not Gaussian",
        "subsets": "The gap differs between subsets",
    }
    for name, text in said.items():
        if _answer(values, name) == "no":
            yield text


def _variances(values: Values) -> dict[str, float]:
    """Return the mean squared distance of the rows of each modality, of unit length, from their mean."""
    return {name: max(1 - found["mean_norm"] ** 2, 0.0) for name, found in values["modalities"].items()}


def _answer(values: Values, name: str) -> str | None:
    found = values["assumptions"].get(name)
    return None if found is None else str(found["answer"])


def _lost_recall(values: Values) -> Iterator[str]:
    """Yield the directions in which Collapse costs recall@1, beyond the uncertainty of the recall before it."""
    before, after = values["retrieval"].get(RAW, {}), values["retrieval"].get(COLLAPSE, {})
    for way in before:
        if way not in after:
            continue
        old, new = before[way]["recall@1"], after[way]["recall@1"]
        ends = values["retrieval_intervals"].get(RAW, {}).get(way, {}).get("recall@1")
        if old - new > LOST_RECALL and (ends is None or new < ends[0]):
            yield f"{100 * old:.1f} to {100 * new:.1f} % {way.replace('_', ' ')}"


def _recall_over_chance(values: Values) -> float | None:
    """Return the better of the two raw recalls@1 over what a random ranking would have; None without recall."""
    scores, working = values["retrieval"].get(RAW), values["provenance"].get("working_set")
    if not scores or not working:
        return None
    items = min(int(working[name]) for name in values["modalities"])
    return max(float(found["recall@1"]) for found in scores.values()) * items
