"""The result of an ablation: its cells, and rows with mean, spread and interval as text, Markdown, JSON and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..imaging.evaluate import decimals, score_interval, score_text
from ..io.files import write_text_atomically
from ..metrics.significance import crossed_interval, mean_and_std
from ..pages import render_page
from ..pages.render import interval, signed
from ..tables import Table
from .methods import ABLATION, IMAGE_METHODS, METHODS, PUBLISHED, PUBLISHED_IMAGES, Method

INTERVAL = "95 % interval"  # heading
CHOOSE_BY = "CIDEr"
_OF_CAPTIONS = (CHOOSE_BY, "BLEU-4", "ROUGE-L")
_COMPARED = (CHOOSE_BY, "FD-", "KID-")
_BEFORE = {"C2_1": ("C1",), "C2_2": ("C1",), "C3": ("C2_2", "C2_1", "C1")}  # a step, and what it follows
_MINUTES_FROM = 120  # seconds
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One cell of a table: a method, its training with one seed, and the scores of what it made.

    Attributes:
        method: a key of `METHODS` or `IMAGE_METHODS`.
        seed: of the training.
        sigma: standard deviation of the noise per dimension; 0 if there is none.
        scores: by metric, in percent where metrics are.
        outputs: what was made, by image key: the captions, or the first images as ``data:`` URLs.
        images: how many captions or images were scored.
        values: by metric, a value per image whose mean is the score (`CaptionScores.image_values`, `photo_values`).
        sigma_from: ``given``, or the rule ``auto`` or ``pairs``.
        best_val_loss: that the checkpoint was chosen by; None if nothing was trained.
        parameters: number of weights; 0 where nothing was trained.
        training_seconds: of the training, that of a language model included where it has one.
    """

    method: str
    seed: int
    sigma: float
    scores: dict[str, float]
    outputs: dict[str, str] = field(default_factory=dict)
    images: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)
    sigma_from: str = "given"
    best_val_loss: float | None = None
    parameters: int = 0
    training_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `c3 ablate --json` writes, but those of its row."""
        return {name: value for name, value in vars(self).items() if name not in ("outputs", "values")}


@dataclass(frozen=True)
class Ablation:
    """Runs of a table, and what is shown beside them.

    Attributes:
        runs: one per method, seed and sigma.
        methods: in the order of the rows; that of the runs when empty.
        task: ``captions`` or ``images``.
        title: what was scored, in words.
        command: that makes the table; empty to leave it out.
        real: scores of real photos: what a perfect generator would get; empty for captions.
        examples: of the page: by image key, what stands before and behind the outputs of the methods: the key and a
            caption that a person wrote, or the caption that images were made from and the photo.
        facts: what a reader should know about the data.
    """

    runs: Sequence[Run]
    methods: Sequence[str] = ()
    task: str = "captions"
    title: str = ""
    command: str = ""
    real: Mapping[str, float] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    facts: Sequence[str] = ()

    @property
    def _known(self) -> Mapping[str, Method]:
        return METHODS if self.task == "captions" else IMAGE_METHODS

    @cached_property
    def _rows(self) -> list[tuple[Row, list[Run]]]:
        """The rows, each with its runs: one per seed."""
        groups: dict[tuple[object, ...], list[Run]] = {}
        for run in self.runs:
            groups.setdefault((run.method, run.sigma, run.sigma_from), []).append(run)
        rows = []
        for members in groups.values():
            first, known = members[0], self._known[members[0].method]
            row: Row = {
                name: getattr(first, name) for name in ("method", "sigma", "sigma_from", "images", "parameters")
            }
            row |= {
                "seeds": len(members),
                "checkpoint": known.chosen_on,
                "training_seconds": mean_and_std([run.training_seconds for run in members])[0],
                "published": known.published,
                "scores": {},
            }
            for name in sorted(first.scores):  # one order for all rows, computed now or read
                mean, std = mean_and_std([run.scores[name] for run in members])
                ends = score_interval(name, _stacked([run.values.get(name, ()) for run in members]))
                row["scores"][name] = {"mean": mean, "std": std, "interval": None if ends is None else list(ends)}
            rows.append((row, members))
        # in the order of the methods, whichever were finished first
        return sorted(rows, key=lambda pair: self.methods.index(pair[0]["method"]) if self.methods else 0)

    @property
    def rows(self) -> list[Row]:
        """One row per method and sigma.

        Each score has its mean and sample standard deviation over seeds, and the 95 % interval of the mean over images
        and seeds (see `c3tools.imaging.evaluate.score_interval`).
        """
        return [row for row, _ in self._rows]

    def tables(self) -> list[Table]:
        """Return the rows as tables that fit a terminal.

        Captions have one of scores and one of trainings. Images have two for each encoder, of distances and of other
        scores; then come the published scores. The first or the last score of a table has its interval.
        """
        scored, shown = self.rows[0]["scores"] if self.rows else {}, []
        if self.task == "captions":
            names = {name: name for name in _OF_CAPTIONS if name in scored}
            return [self._table(names, CHOOSE_BY, self.title), self._table({}, seeds=True, trainings=True)]
        for encoder in [name.removeprefix("KID-") for name in scored if name.startswith("KID-")]:
            title = f"{self.title}, scored by {encoder}"
            distances = {f"{kind}-{encoder}": kind for kind in ("KID", "FD")}
            others = {f"{kind}-{encoder}": kind for kind in ("recall@1", "recall@10")}
            others = {
                f"IS-{encoder}-coco80": "IS-coco80",
                **{name: kind for name, kind in others.items() if name in scored},
            }
            shown += [
                self._table(distances, f"KID-{encoder}", title, seeds=True),
                self._table(others, [*others][-1], title),
            ]
        title = "Published, for another generator (LAFITE) and other data (MS-COCO); the sizes are not comparable"
        return [*shown, Table(["method", "FID", "IS"], PUBLISHED_IMAGES, title)]

    def _table(
        self,
        metrics: Mapping[str, str],
        with_interval: str = "",
        title: str = "",
        *,
        seeds: bool = False,
        trainings: bool = False,
    ) -> Table:
        """Return one table: what names a row, then its seeds, its scores, and facts of its training, as requested."""
        rows = self.rows
        columns = [("method", [row["method"] for row in rows]), ("sigma", [self._sigma(row) for row in rows])]
        if seeds:
            columns.append(("seeds", [str(row["seeds"]) for row in rows]))
        if len({row["images"] for row in rows}) > 1:
            columns.append(("images", [f"{row['images']:,}" for row in rows]))
        real = ["real photos", *("–" for _ in columns[1:])]
        for name, heading in metrics.items():
            scores = [row["scores"][name] for row in rows]
            columns.append((heading, [score_with_spread(name, score) for score in scores]))
            real.append(score_text(name, self.real.get(name)))
            if name == with_interval and any(score["interval"] for score in scores):
                columns.append((INTERVAL, [interval(score["interval"], decimals(name)) for score in scores]))
                real.append("")
        if trainings:
            columns += [(name, [row[name] for row in rows]) for name in ("published", "checkpoint")]
            columns.append(("parameters", [f"{p / 1e6:.1f} M" if (p := row["parameters"]) else "–" for row in rows]))
            columns.append(("training", [_time_text(row["training_seconds"]) for row in rows]))
        lines = [list(line) for line in zip(*(cells for _, cells in columns), strict=True)]
        return Table([heading for heading, _ in columns], [*lines, *([real] if self.real else [])], title)

    def _sigma(self, row: Row) -> str:
        """Return the sigma of a row and its source, or a dash if there is no noise."""
        if not self._known[row["method"]].noisy:
            return "–"
        return f"{row['sigma']:.3g}" + ("" if row["sigma_from"] == "given" else f" ({row['sigma_from']})")

    @property
    def remarks(self) -> list[str]:
        """Sentences on the data, and where published values are from."""
        return [*self.facts, PUBLISHED] if self.task == "captions" else list(self.facts)

    @cached_property
    def notes(self) -> list[str]:
        """Sentences that compare each step of the method with what it follows, and other methods with C3.

        Rows are compared that have the same noise, where they have any. Collapse alone and Corrupt alone each follow
        C1. C3 follows Corrupt alone or, if that is missing, what there is.
        """
        notes = []
        for sigma in dict.fromkeys(row["sigma"] for row in self.rows):
            found = {row["method"]: members for row, members in self._rows if row["sigma"] in (sigma, 0)}
            pairs = [(next((b for b in before if b in found), ""), name) for name, before in _BEFORE.items()]
            pairs += [("C3", name) for name in found if name not in ABLATION]
            for before, after in pairs:
                if before in found and after in found:
                    noise = max(found[before][0].sigma, found[after][0].sigma)
                    for metric in found[before][0].scores:
                        said = describe_difference(found[before], found[after], metric)
                        if metric.startswith(_COMPARED) and said:
                            notes.append(f"{after} − {before}{f', sigma {noise:.3g}' if noise else ''}: {said}")
        return list(dict.fromkeys(notes))

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, all runs (``runs``, the list that `c3 ablate --json` writes), and scores of real photos."""
        runs = [{**run.to_dict(), "checkpoint": row["checkpoint"]} for row, members in self._rows for run in members]
        return {"rows": self.rows, "runs": runs, "real": dict(self.real)}

    def to_markdown(self) -> str:
        """Return the tables as Markdown, then what they show, and the command."""
        lines: list[str] = []
        for table in self.tables():
            lines += [f"{table.title}:", ""] if table.title else []
            lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows] + [""]
        for note in [*self.notes, *self.remarks]:
            lines += [note, ""]
        if self.command:
            lines += ["This command makes the table:", "", f"    {self.command}"]
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """Return one self-contained page: the tables, and captions or images by every method, of its first seed."""
        first: dict[str, Run] = {}
        for run in self.runs:
            first.setdefault(run.method + (f", sigma {run.sigma:.3g}" if self._known[run.method].noisy else ""), run)
        captions = self.task == "captions"
        return render_page(
            Path(__file__).parent / "templates" / "ablation.html",
            title="Ablation" if captions else "Images from texts, trained on images alone",
            tables=self.tables(),
            seeds=max((row["seeds"] for row in self.rows), default=0),
            summaries={row["method"]: self._known[row["method"]].summary for row in self.rows},
            notes=[*self.notes, *self.remarks],
            command=self.command,
            what="Captions" if captions else "Images",
            headings=["image" if captions else "caption", *first, "written by a person" if captions else "photo"],
            examples=[
                [before, *(run.outputs.get(key, "") for run in first.values()), behind]
                for key, (before, behind) in self.examples.items()
            ],
        )

    def save(self, folder: Path) -> None:
        """Write ``table.md`` and ``table.html`` to a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / "table.md", self.to_markdown())
        write_text_atomically(folder / "table.html", self.to_html())

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())


def describe_difference(before: Sequence[Run], after: Sequence[Run], metric: str = CHOOSE_BY) -> str | None:
    """Return the difference of two rows in a score with its 95 % interval, and what it shows.

    The rows are compared on the same images and with the seeds that both have.

    Args:
        before, after: a run per seed.
        metric: name of the score.

    Returns:
        None if the rows share no seed, have different numbers of images, or fewer than 3.
    """
    first, second = ({run.seed: run.values.get(metric, ()) for run in row} for row in (before, after))
    seeds = [seed for seed in second if seed in first]
    values = _stacked([found[seed] for found in (first, second) for seed in seeds])
    differences = values[len(seeds) :] - values[: len(seeds)]
    ends = crossed_interval(differences) if seeds else None
    if ends is None:
        return None
    sampled = "images and seeds" if len(seeds) > 1 else "images (one seed)"
    shown = "" if ends[0] > 0 or ends[1] < 0 else "; not shown to differ"
    difference, low, high = (signed(value, decimals(metric)) for value in (float(differences.mean()), *ends))
    return f"{difference} {metric}, 95 % interval {low} to {high} over {sampled}{shown}"


def score_with_spread(metric: str, score: Mapping[str, Any]) -> str:
    """Return ``mean ± std`` of a score of a row, or the mean alone if there is one seed."""
    spread = "" if score["std"] is None else f" ± {score_text(metric, score['std'])}"
    return score_text(metric, score["mean"]) + spread


def _stacked(values: Sequence[Sequence[float]]) -> Array:
    """Return float64 (seeds, images), without images if a seed has others."""
    return np.array(values) if len({len(each) for each in values}) == 1 else np.empty((len(values), 0))


def _time_text(seconds: float) -> str:
    if not seconds:
        return "–"
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM else f"{seconds / 60:.0f} min"
