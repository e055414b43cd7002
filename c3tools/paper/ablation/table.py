"""The result of an ablation: its cells, and rows with mean, spread and interval as text, Markdown,
JSON and HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from markupsafe import Markup

from ...arrays import Array
from ...captioning.captioner import notes_on_empty_captions
from ...io.files import write_text_atomically
from ...metrics.caption_scores import caption_metrics
from ...metrics.significance import crossed_interval
from ...pages import figure_svg, new_figure, palette, render_page, styled
from ...pages.render import interval, signed
from ...result_table import Table
from ..imaging.evaluate_images import score_interval, score_text
from .cells import MethodRun
from .methods import ABLATION, CHOOSE_BY, IMAGE_METHODS, METHODS, PUBLISHED_IMAGES, Method

_INTERVAL = "95% interval"  # heading
_HEADING_WIDTH = 28  # characters; a method may be the path of a file
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
        methods: of the runs, by name; empty for those that c3tools knows.
    """

    runs: Sequence[MethodRun]
    task: str = "captions"
    title: str = ""
    command: str = ""
    real: Mapping[str, float] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)
    methods: Mapping[str, Method] = field(default_factory=dict)

    @property
    def _methods(self) -> Mapping[str, Method]:
        known = METHODS if self.task == "captions" else IMAGE_METHODS
        return {**known, **self.methods}

    @cached_property
    def _groups(self) -> list[list[MethodRun]]:
        """The runs of each row, one per seed, in the order of the methods."""
        order = [run.method for run in self.runs]
        groups: dict[tuple[object, ...], list[MethodRun]] = {}
        for run in self.runs:
            groups.setdefault((run.method, run.sigma, run.sigma_from), []).append(run)
        return sorted(groups.values(), key=lambda runs: order.index(runs[0].method))

    @cached_property
    def rows(self) -> list[Row]:
        """One row per method and sigma.

        Each score has its mean and sample standard deviation over seeds, and the 95% interval of
        the mean over images and seeds (see `c3tools.paper.imaging.evaluate_images.score_interval`).
        """
        rows = []
        for runs in self._groups:
            first = runs[0]
            method = self._methods[first.method]
            row = {
                "method": first.method,
                "sigma": first.sigma,
                "sigma_from": first.sigma_from,
                "recipe_sigma": first.recipe_sigma,
                "images": first.images,
                "seeds": len(runs),
                "published": method.published,
                "checkpoint": method.chosen_on,
                # one order for all rows, computed now or read
                "scores": {name: _summary(name, runs) for name in sorted(first.scores)},
            }
            rows.append(row)
        return rows

    def tables(self) -> list[Table]:
        """Return the rows as tables that fit a terminal.

        Captions have one of scores, and one of trainings with the scores that need Java. Images
        have two for each encoder, of distances and of other scores; then come the published scores.
        One score of each table has its interval.
        """
        if self.task == "captions":
            trainings = ("seeds", "images", "published", "checkpoint")
            return [
                self._table(self.title, _caption_scores(with_needs=False), CHOOSE_BY),
                self._table("", _caption_scores(with_needs=True), facts=trainings),
            ]
        tables = []
        scores = self.rows[0]["scores"] if self.rows else {}
        for name in scores:
            if not name.startswith("KID-"):
                continue
            suffix = name.removeprefix("KID")  # -ENCODER
            title = f"{self.title}, scored by {suffix[1:]}"
            distances = [f"KID{suffix}", f"FD{suffix}"]
            other_scores = [f"IS{suffix}-coco80", f"recall@1{suffix}", f"recall@10{suffix}"]
            tables.append(self._table(title, distances, f"KID{suffix}", suffix, ["seeds"]))
            tables.append(self._table(title, other_scores, f"recall@10{suffix}", suffix))
        title = (
            "Published, for another generator (LAFITE) and other data (MS-COCO); the sizes "
            "are not comparable"
        )
        tables.append(
            Table(["method", "FID", "IS"], [list(row) for row in PUBLISHED_IMAGES], title)
        )
        return tables

    def _table(
        self,
        title: str,
        metrics: Sequence[str],
        with_interval: str = "",
        suffix: str = "",
        facts: Sequence[str] = (),
    ) -> Table:
        """Return one table: a row for each method and sigma, and one of real photos.

        Args:
            title: above the table.
            metrics: names of scores; those that the first row lacks are left out, since all rows
                have the same.
            with_interval: the score that is followed by its interval.
            suffix: left out of the names of scores.
            facts: keys of a row that come before the scores.
        """
        known = self.rows[0]["scores"] if self.rows else {}
        metrics = [name for name in metrics if name in known]
        columns = ["method", "sigma", *facts]
        real = ["real photos", "", *("" for _ in facts)]
        lines = []
        for row in self.rows:
            facts_of_row = [
                f"{row[name]:,}" if name == "images" else str(row[name]) for name in facts
            ]
            lines.append([row["method"], self._sigma(row), *facts_of_row])
        for name in metrics:
            columns.append(name.replace(suffix, ""))
            real.append(score_text(name, self.real.get(name)))
            for row, line in zip(self.rows, lines, strict=True):
                line.append(_with_spread(name, row["scores"][name]))
            if name == with_interval:
                columns.append(_INTERVAL)
                real.append("")
                for row, line in zip(self.rows, lines, strict=True):
                    line.append(score_text(name, row["scores"][name]["interval"], interval))
        return Table(columns, [*lines, real] if self.real else lines, title)

    def _sigma(self, row: Row) -> str:
        """Return the sigma of a row and its source, or a dash if there is no noise."""
        if not self._methods[row["method"]].noisy:
            return f"{row['recipe_sigma']:.3g} (recipe)" if row["recipe_sigma"] else "–"
        source = "" if row["sigma_from"] == "given" else f" ({row['sigma_from']})"
        return f"{row['sigma']:.3g}{source}"

    @cached_property
    def notes(self) -> list[str]:
        """Sentences that name methods with empty captions, then compare each step of the method
        with what it follows, and other methods with C3.

        Rows are compared that have the same noise, where they have any. Collapse alone and Corrupt
        alone each follow C1. C3 follows Corrupt alone or, if that is missing, what there is.
        """
        notes = []
        for runs in self._groups if self.task == "captions" else ():
            first = runs[0]
            label = f"{first.method}, sigma {first.sigma:.3g}" if first.sigma else first.method
            captions = [caption for run in runs for caption in run.outputs.values()]
            notes += [f"{label}: {note}" for note in notes_on_empty_captions(captions)]
        for sigma in dict.fromkeys(run.sigma for run in self.runs):
            runs_of = {runs[0].method: runs for runs in self._groups if runs[0].sigma in (sigma, 0)}
            for before, after in _compared_methods(list(runs_of)):
                first = runs_of[before][0]
                noise = max(first.sigma, runs_of[after][0].sigma)
                at_noise = f", sigma {noise:.3g}" if noise else ""
                for metric in first.scores:
                    if not metric.startswith(_COMPARED):
                        continue
                    difference = _difference(runs_of[before], runs_of[after], metric)
                    if difference:
                        notes.append(f"{after} − {before}{at_noise}: {difference}")
        return list(dict.fromkeys(notes))

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, all runs (``runs``, the list that `c3 ablate-captions --json` writes),
        and scores of real photos.
        """
        runs = []
        for group in self._groups:
            for run in group:
                values = dict(vars(run))
                del values["outputs"], values["values"]
                runs.append({**values, "command": self.command})
        return {"rows": self.rows, "runs": runs, "real": dict(self.real)}

    def to_markdown(self) -> str:
        """Return the tables as Markdown, then what they show, and the command."""
        lines: list[str] = []
        for table in self.tables():
            if table.title:
                lines += [f"{table.title}:", ""]
            lines.append("| " + " | ".join(table.columns) + " |")
            lines.append("|" + "---|" * len(table.columns))
            lines += ["| " + " | ".join(row) + " |" for row in table.rows]
            lines.append("")
        for note in [*self.notes, *self.facts]:
            lines += [note, ""]
        if self.command:
            lines += ["This command produces the table:", "", f"    {self.command}"]
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """Return one self-contained page: the tables, a plot of CIDEr, and captions or images by
        every method, of its first seed.
        """
        first_runs: dict[str, MethodRun] = {}  # by the heading of their column
        for run in self.runs:
            first_runs.setdefault(_heading(run), run)
        examples = []
        for key, (before, behind) in self.examples.items():
            outputs = [run.outputs.get(key, "") for run in first_runs.values()]
            examples.append([before, *outputs, behind])
        is_captions = self.task == "captions"
        scores = self.rows[0]["scores"] if self.rows else {}
        first_heading = "image" if is_captions else "caption"
        last_heading = "written by a person" if is_captions else "photo"
        return render_page(
            Path(__file__).parent / "templates" / "ablation.html",
            title="Ablation" if is_captions else "Images from texts, trained on images alone",
            result=self,
            plot=self._plot() if CHOOSE_BY in scores else "",
            seeds=max((row["seeds"] for row in self.rows), default=0),
            summaries={run.method: self._methods[run.method].summary for run in self.runs},
            headings=[first_heading, *first_runs, last_heading],
            examples=examples,
        )

    @styled
    def _plot(self) -> Markup:
        """Draw CIDEr of each row with its interval."""
        headings = [fill(_heading(runs[0]), _HEADING_WIDTH) for runs in self._groups]
        lines = sum(heading.count("\n") + 1 for heading in headings)
        figure, axes = new_figure(width=4.6, height=0.6 + 0.28 * lines)
        for place, row in enumerate(self.rows):
            score = row["scores"][CHOOSE_BY]
            if score["interval"] is not None:
                axes.plot(score["interval"], [place, place], color=palette.FIRST)
            axes.plot(score["mean"], place, "o", color=palette.FIRST)
        axes.set(yticks=range(len(headings)), yticklabels=headings, xlabel=CHOOSE_BY)
        axes.grid(axis="x")
        axes.invert_yaxis()
        return figure_svg(figure, name="scores", label=f"{CHOOSE_BY} of each method")

    def save(self, folder: Path) -> None:
        """Write ``table.md`` and ``table.html`` to a folder, which is made."""
        write_text_atomically(folder / "table.md", self.to_markdown())
        write_text_atomically(folder / "table.html", self.to_html())

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


def _heading(run: MethodRun) -> str:
    """Return the method of a run, with its noise if it has any."""
    noise = f", sigma {run.sigma:.3g}" if run.sigma else ""
    return run.method + noise


def _summary(metric: str, runs: Sequence[MethodRun]) -> dict[str, Any]:
    """Return the mean of a score over seeds, its sample standard deviation (None for one seed), and
    the 95% interval of the mean.
    """
    scores = [run.scores[metric] for run in runs]
    values = _stacked([run.values.get(metric, ()) for run in runs])
    return {
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "interval": score_interval(metric, values),
    }


def _compared_methods(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of methods that notes compare: a step and the first that it may follow, then
    C3 and the methods of others.
    """
    pairs = []
    for step, possible_before in _BEFORE.items():
        before = [name for name in possible_before if name in methods]
        if step in methods and before:
            pairs.append((before[0], step))
    if "C3" in methods:
        pairs += [("C3", name) for name in methods if name not in ABLATION]
    return pairs


def _difference(
    before: Sequence[MethodRun], after: Sequence[MethodRun], metric: str = CHOOSE_BY
) -> str | None:
    """Return the difference of two rows in a score with its 95% interval, and what it shows.

    The rows are compared on the same images and with the seeds that both have.

    Args:
        before, after: a run per seed.
        metric: name of the score.

    Returns:
        None if the rows share no seed, have different numbers of images, or fewer than 3.
    """
    values_before = {run.seed: run.values.get(metric, ()) for run in before}
    values_after = {run.seed: run.values.get(metric, ()) for run in after}
    seeds = [seed for seed in values_after if seed in values_before]
    if not seeds:
        return None
    # The rows before, then those after: they have to be of as many images
    values = _stacked(
        [values_before[seed] for seed in seeds] + [values_after[seed] for seed in seeds]
    )
    differences = values[len(seeds) :] - values[: len(seeds)]
    ends = crossed_interval(differences)
    if ends is None:
        return None
    low, high = ends
    sampled = "images and seeds" if len(seeds) > 1 else "images (one seed)"
    conclusion = "" if low > 0 or high < 0 else "; no significant difference"
    return (
        f"{score_text(metric, float(differences.mean()), signed)} {metric}, 95% interval "
        f"{score_text(metric, low, signed)} to {score_text(metric, high, signed)} "
        f"over {sampled}{conclusion}"
    )


def _with_spread(metric: str, score: Mapping[str, Any]) -> str:
    """Return ``mean ± std`` of a score of a row, or the mean alone if there is one seed."""
    spread = "" if score["std"] is None else f" ± {score_text(metric, score['std'])}"
    return score_text(metric, score["mean"]) + spread


def _stacked(values: Sequence[Sequence[float]]) -> Array:
    """Return float64 (seeds, images), without images if a seed has others."""
    lengths = {len(values_of_seed) for values_of_seed in values}
    return np.array(values) if len(lengths) == 1 else np.empty((len(values), 0))


def _caption_scores(*, with_needs: bool) -> list[str]:
    """Return the scores of captions that tables show, of metrics with or without further needs.

    The one that decoders are chosen by comes first.
    """
    names: list[str] = []
    for metric in caption_metrics().values():
        if bool(metric.needs) == with_needs:
            names += metric.shown
    return sorted(names, key=lambda name: name != CHOOSE_BY)
