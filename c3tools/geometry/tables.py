"""Gap reports as sentences and tables, which terminal, page and notebook all show.

To show a further number of a report, add it here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..metrics.retrieval import DEFAULT_KS
from ..metrics.significance import Estimate
from ..pages.render import FigureBlock, Section, interval, number
from ..tables import Table
from ..transforms import PRESETS, PUBLISHED_SIGMA
from .spaces import COLLAPSE, RAW
from .verdict import Measured

_PAPER_FIGURES = "gap-length", "gap-direction", "orthogonality", "noise-marginals", "noise-size", "noise-direction"


def report_sections(report: Measured, figures: Mapping[str, FigureBlock] | None = None) -> list[Section]:
    """Lay out the report of two modalities, or of one; ``figures`` are those of a page."""

    def shown(*names: str) -> list[FigureBlock]:
        return [figures[name] for name in names if figures and name in figures]

    known = [[name.replace("_", " "), _listed(value)] for name, value in report.provenance.items()]
    settings = Section("Data and settings", tables=[Table(["setting", "value"], known, left=("value",))])
    if report.gap is None or report.recommended is None:
        return [Section("The modality", tables=_modalities(report), figures=shown("spectra")), settings]
    pairs, (rule, why) = report.pairs, report.recommended
    assumptions = [[found.question, found.answer, found.because] for found in report.assumptions.values()]
    option = "pairs" if rule.name == "pair_cosine" else "auto"
    noise = f"--sigma {option} gives {number(rule.sigma)}: {why}."
    if pairs and pairs.residual_rms.value > 0:
        ratio = PUBLISHED_SIGMA / pairs.residual_rms.value
        noise += f" The published {PUBLISHED_SIGMA:.4f} is {ratio:.1f} times the alignment noise measured here."
    sigmas = [
        [each.name.replace("_", " "), number(each.sigma, 4), each.rests_on + (each.missing and f"; {each.missing}")]
        for each in report.sigmas
    ]
    return [
        Section("How far apart the modalities are", tables=[_measures(report)]),
        Section(
            "Does the model of the paper hold here?",
            [
                "C3 assumes e_x − e_y = c + ε: a constant gap c that is orthogonal to the directions in which the "
                "modalities vary, and Gaussian noise ε of the same size in every direction."
            ],
            [Table(["question", "answer", "because"], assumptions, left=("answer", "because"))],
            shown(*_PAPER_FIGURES),
            "Bars show shares; the line in the gap's length marks that over all rows. For CLIP ViT-B/32 on COCO, the "
            "paper reports length 0.83 ± 0.01, direction 0.99, orthogonality 0.00 ± 0.06 and noise direction "
            "0.00 ± 0.10.",
        ),
        Section("The two modalities", tables=_modalities(report), figures=shown("spectra", "projection")),
        Section(
            "What Collapse will do",
            [f"Transforms are fitted on {report.provenance['fitted_on']}."],
            [*([_recall(report)] if pairs and report.spaces else []), _before_and_after(report)],
        ),
        Section("How much noise to add", [noise], [Table(["rule", "sigma", "rests on"], sigmas, left=("rests on",))]),
        settings,
    ]


def _listed(value: Any) -> str:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def _value(found: Estimate | None, digits: int = 3, scale: float = 1) -> str:
    """Return a measured number, multiplied by ``scale``, or a dash if there is none."""
    return number(None if found is None else scale * found.value, digits)


def _ends(found: Estimate | None, digits: int = 3, scale: float = 1) -> str:
    return interval(None if found is None else found.interval, digits, scale)


def _modalities(report: Measured) -> list[Table]:
    spans, means = [], []
    for name, found in report.modalities.items():
        ranks = number(found.effective_rank, 1), number(found.participation_ratio, 1)
        spans.append([name, number(found.n, 0), f"{found.effective_dimension} of {found.dim}", *ranks])
        angle, counts = found.mean_direction_error_degrees, (found.independent_rows, found.rows_for_one_degree)
        lengths = number(found.mean_norm), number(found.mean_norm_error, 4)
        means.append([name, *lengths, number(angle, 2), *(number(count, 0) for count in counts)])
    note = (
        "Collapse subtracts the mean, which is accurate enough if its direction is known to about one degree. The "
        "errors count independent rows only: all captions of an image count as one."
    )
    return [
        Table(["modality", "rows", "eff. dimension", "eff. rank", "participation ratio"], spans, "Dimensions"),
        Table(["modality", "length", "±", "direction ±, °", "independent", "rows for 1°"], means, "Means", note=note),
    ]


def _measures(report: Measured) -> Table:
    gap, pairs = report.gap, report.pairs
    assert gap is not None
    rows: list[tuple[str, Estimate | None, str]] = [
        ("gap length", gap.length, "distance of the means; 0 is no gap"),
        ("gap length, debiased", gap.length_debiased, "without what so few items show by chance"),
    ]
    if pairs:
        true = "around the true mean, not that of so few items"
        rows += [
            ("instance distance", gap.instance_distance, "mean, over pairs"),
            ("relative gap (RMG)", gap.rmg, "pairs, relative to distances within a modality; 0 is aligned"),
            ("paired cosine", pairs.paired_cosine, f"over {pairs.n:,} pairs"),
            ("unpaired cosine", pairs.unpaired_cosine, "over all unrelated rows"),
            ("residual rms", pairs.residual_rms, "alignment noise, per dimension"),
            ("residual rms, debiased", pairs.residual_rms_debiased, true),
        ]
    cells = [[name, _value(found, 4), _ends(found, 4), meaning] for name, found, meaning in rows]
    return Table(["measure", "value", "95 %", "meaning"], cells, left=("meaning",))


def _recall(report: Measured) -> Table:
    ways = list(next(iter(report.spaces.values())).recall)
    rows = [
        [
            name,
            *(_value(space.recall[way][f"recall@{k}"], 1, 100) for way in ways for k in DEFAULT_KS),
            number(space.gap),
        ]
        for name, space in report.spaces.items()
    ]
    formulas = (f"{name}: {'norm(e)' if name == RAW else PRESETS[name][0]}" for name in report.spaces)
    note = f"How often one of the k nearest rows belongs to the same item. The presets: {'; '.join(formulas)}."
    heads = [f"to {way.split('_to_')[-1]} @{k}" for way in ways for k in DEFAULT_KS]
    return Table(["preset", *heads, "gap left"], rows, "Recall, %", note=note)


def _before_and_after(report: Measured) -> Table:
    heads = {name: head for name, head in ((RAW, "before"), (COLLAPSE, "after")) if name in report.spaces}
    spaces = [report.spaces[name] for name in heads]

    def row(name: str, found: Iterable[Estimate | None], digits: int, scale: float) -> list[str]:
        return [name, *(cell(one, digits, scale) for one in found for cell in (_value, _ends))]

    rows = [row("linear separability, %", (space.separability for space in spaces), 1, 100)]
    for name in report.modalities:
        rows.append(row(f"modality bias@10, %, {name}", (space.modality_bias[name] for space in spaces), 1, 100))
        rows.append(row(f"uniformity, {name}", (space.uniformity[name] for space in spaces), 3, 1))
    note = (
        "Separability: accuracy, on held-out rows, of a linear probe for the modality. Modality bias: share of the "
        "ten nearest rows of both modalities that have the modality of the query. 50 % is ideal for both. Uniformity: "
        "log E exp(−2 |x − x′|²); lower means more spread out."
    )
    columns = ["measure", *(part for head in heads.values() for part in (head, "95 %"))]
    return Table(columns, rows, "Before and after Collapse", note=note)
