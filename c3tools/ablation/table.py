"""The result of an ablation: its cells, and rows with mean, spread and interval as text, Markdown,
JSON and HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..imaging.evaluate import score_interval, score_text
from ..io.files import write_text_atomically
from ..metrics.captions import METRICS
from ..metrics.significance import crossed_interval
from ..pages import render_page
from ..pages.render import interval, signed
from ..tables import Table
from .cells import Run
from .methods import ABLATION, IMAGE_METHODS, METHODS, PUBLISHED_IMAGES, Method

_INTERVAL = "95 % interval"  # heading
CHOOSE_BY = "CIDEr"
_COMPARED = (CHOOSE_BY, "FD-", "KID-")
# a step, and what it follows
_BEFORE = {"C2_1": ("C1",), "C2_2": ("C1",), "C3": ("C2_2", "C2_1", "C1")}
Row = dict[str, Any]


@dataclass(frozen=True)
class Ablation:
    """Runs of a table, and what is shown beside them.

    Attributes:
        runs: one per method, seed and sigma.
        task: ``captions`` or ``images``.
        title: what was scored, in words.
        command: that makes the table; empty to leave it out.
        real: scores of real photos: what a perfect generator would get; empty for captions.
        examples: of the page: by image key, what stands before and behind the outputs of the
            methods: the key and a caption that a person wrote, or the caption that images were made
            from and the photo.
        facts: what a reader should know about the data, and where published values are from.
    """

    runs: Sequence[Run]
    task: str = "captions"
    title: str = ""
    command: str = ""
    real: Mapping[str, float] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)

    @property
    def _known(self) -> Mapping[str, Method]:
        return METHODS if self.task == "captions" else IMAGE_METHODS

    @cached_property
    def _groups(self) -> list[list[Run]]:
        """The runs of each row, one per seed, in the order of the methods."""
        order = [run.method for run in self.runs]
        groups: dict[tuple[object, ...], list[Run]] = {}
        for run in self.runs:
            groups.setdefault((run.method, run.sigma, run.sigma_from), []).append(run)
        return sorted(groups.values(), key=lambda runs: order.index(runs[0].method))

    @cached_property
    def rows(self) -> list[Row]:
        """One row per method and sigma.

        Each score has its mean and sample standard deviation over seeds, and the 95 % interval of
        the mean over images and seeds (see `c3tools.imaging.evaluate.score_interval`).
        """
        rows = []
        for runs in self._groups:
            first, known, scores = runs[0], self._known[runs[0].method], {}
            for name in sorted(first.scores):  # one order for all rows, computed now or read
                of_seeds = [run.scores[name] for run in runs]
                std = float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else None
                ends = score_interval(name, _stacked([run.values.get(name, ()) for run in runs]))
                scores[name] = {"mean": float(np.mean(of_seeds)), "std": std, "interval": ends}
            row = {
                name: getattr(first, name) for name in ("method", "sigma", "sigma_from", "images")
            }
            of_method = {"published": known.published, "checkpoint": known.chosen_on}
            rows.append({**row, "seeds": len(runs), **of_method, "scores": scores})
        return rows

    def tables(self) -> list[Table]:
        """Return the rows as tables that fit a terminal.

        Captions have one of scores, and one of trainings with the scores that need Java. Images
        have two for each encoder, of distances and of other scores; then come the published scores.
        One score of each table has its interval.
        """
        scored = self.rows[0]["scores"] if self.rows else {}
        if self.task == "captions":
            trainings = ("seeds", "images", "published", "checkpoint")
            return [
                self._table(self.title, _caption_scores(with_needs=False), CHOOSE_BY),
                self._table("", _caption_scores(with_needs=True), facts=trainings),
            ]
        tables = []
        for own in [name.removeprefix("KID") for name in scored if name.startswith("KID-")]:
            title = f"{self.title}, scored by {own[1:]}"
            others = [f"IS{own}-coco80", f"recall@1{own}", f"recall@10{own}"]
            tables.append(
                self._table(title, [f"KID{own}", f"FD{own}"], f"KID{own}", own, ["seeds"])
            )
            tables.append(self._table(title, others, others[-1], own))
        title = (
            "Published, for another generator (LAFITE) and other data (MS-COCO); the sizes "
            "are not comparable"
        )
        return [
            *tables,
            Table(["method", "FID", "IS"], [[*row] for row in PUBLISHED_IMAGES], title),
        ]

    def _table(
        self,
        title: str,
        metrics: Sequence[str],
        with_interval: str = "",
        own: str = "",
        facts: Sequence[str] = (),
    ) -> Table:
        """Return one table: what names a row, facts of it, and its scores, without ``own`` in their
        names.
        """
        lines, real = [], {"method": "real photos"}
        for row in self.rows:
            line = {"method": row["method"], "sigma": self._sigma(row)} | {
                n: format(row[n], "," * (n == "images")) for n in facts
            }
            for name in [name for name in metrics if name in row["scores"]]:
                heading, score = name.replace(own, ""), row["scores"][name]
                line[heading], real[heading] = (
                    _with_spread(name, score),
                    score_text(name, self.real.get(name)),
                )
                if name == with_interval:
                    line[_INTERVAL] = score_text(name, score["interval"], interval)
            lines.append(line)
        columns = [*lines[0]] if lines else []
        if self.real:
            lines.append(real)
        return Table(columns, [[line.get(name, "") for name in columns] for line in lines], title)

    def _sigma(self, row: Row) -> str:
        """Return the sigma of a row and its source, or a dash if there is no noise."""
        if not self._known[row["method"]].noisy:
            return "–"
        return f"{row['sigma']:.3g}" + (
            "" if row["sigma_from"] == "given" else f" ({row['sigma_from']})"
        )

    @cached_property
    def notes(self) -> list[str]:
        """Sentences that compare each step of the method with what it follows, and other methods
        with C3.

        Rows are compared that have the same noise, where they have any. Collapse alone and Corrupt
        alone each follow C1. C3 follows Corrupt alone or, if that is missing, what there is.
        """
        notes = []
        for sigma in dict.fromkeys(run.sigma for run in self.runs):
            found = {runs[0].method: runs for runs in self._groups if runs[0].sigma in (sigma, 0)}
            pairs = [
                (next((b for b in before if b in found), ""), name)
                for name, before in _BEFORE.items()
            ]
            pairs += [("C3", name) for name in found if name not in ABLATION]
            for before, after in [pair for pair in pairs if found.keys() >= {*pair}]:
                noise = max(found[before][0].sigma, found[after][0].sigma)
                for metric in [
                    name for name in found[before][0].scores if name.startswith(_COMPARED)
                ]:
                    if said := _difference(found[before], found[after], metric):
                        notes.append(
                            f"{after} − {before}{f', sigma {noise:.3g}' if noise else ''}: {said}"
                        )
        return list(dict.fromkeys(notes))

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, all runs (``runs``, the list that `c3 ablate --json` writes), and scores
        of real photos.
        """
        runs = [
            {name: value for name, value in vars(run).items() if name not in ("outputs", "values")}
            for runs in self._groups
            for run in runs
        ]
        return {"rows": self.rows, "runs": runs, "real": dict(self.real)}

    def to_markdown(self) -> str:
        """Return the tables as Markdown, then what they show, and the command."""
        lines: list[str] = []
        for table in self.tables():
            lines += [f"{table.title}:", ""] if table.title else []
            lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows] + [""]
        for note in [*self.notes, *self.facts]:
            lines += [note, ""]
        if self.command:
            lines += ["This command makes the table:", "", f"    {self.command}"]
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """Return one self-contained page: the tables, and captions or images by every method, of
        its first seed.
        """
        first: dict[str, Run] = {}
        for run in self.runs:
            first.setdefault(run.method + (f", sigma {run.sigma:.3g}" if run.sigma else ""), run)
        captions = self.task == "captions"
        return render_page(
            Path(__file__).parent / "templates" / "ablation.html",
            title="Ablation" if captions else "Images from texts, trained on images alone",
            result=self,
            seeds=max((row["seeds"] for row in self.rows), default=0),
            summaries={run.method: self._known[run.method].summary for run in self.runs},
            headings=[
                "image" if captions else "caption",
                *first,
                "written by a person" if captions else "photo",
            ],
            examples=[
                [before, *(run.outputs.get(key, "") for run in first.values()), behind]
                for key, (before, behind) in self.examples.items()
            ],
        )

    def save(self, folder: Path) -> None:
        """Write ``table.md`` and ``table.html`` to a folder, which is made."""
        write_text_atomically(folder / "table.md", self.to_markdown())
        write_text_atomically(folder / "table.html", self.to_html())

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


def _difference(before: Sequence[Run], after: Sequence[Run], metric: str = CHOOSE_BY) -> str | None:
    """Return the difference of two rows in a score with its 95 % interval, and what it shows.

    The rows are compared on the same images and with the seeds that both have.

    Args:
        before, after: a run per seed.
        metric: name of the score.

    Returns:
        None if the rows share no seed, have different numbers of images, or fewer than 3.
    """
    first, second = (
        {run.seed: run.values.get(metric, ()) for run in row} for row in (before, after)
    )
    seeds = [seed for seed in second if seed in first]
    values = _stacked([found[seed] for found in (first, second) for seed in seeds])
    differences = values[len(seeds) :] - values[: len(seeds)]
    ends = crossed_interval(differences) if seeds else None
    if ends is None:
        return None
    sampled = "images and seeds" if len(seeds) > 1 else "images (one seed)"
    shown = "" if ends[0] > 0 or ends[1] < 0 else "; no significant difference"
    difference, low, high = (
        score_text(metric, value, signed) for value in (float(differences.mean()), *ends)
    )
    return f"{difference} {metric}, 95 % interval {low} to {high} over {sampled}{shown}"


def _with_spread(metric: str, score: Mapping[str, Any]) -> str:
    """Return ``mean ± std`` of a score of a row, or the mean alone if there is one seed."""
    spread = "" if score["std"] is None else f" ± {score_text(metric, score['std'])}"
    return score_text(metric, score["mean"]) + spread


def _stacked(values: Sequence[Sequence[float]]) -> Array:
    """Return float64 (seeds, images), without images if a seed has others."""
    return (
        np.array(values) if len({len(each) for each in values}) == 1 else np.empty((len(values), 0))
    )


def _caption_scores(*, with_needs: bool) -> list[str]:
    """Return the scores of captions that tables show, of metrics with or without further needs.

    The one that decoders are chosen by comes first.
    """
    names: list[str] = []
    for metric in METRICS.values():
        if bool(metric.needs) == with_needs:
            names += metric.shown
    return sorted(names, key=lambda name: name != CHOOSE_BY)
