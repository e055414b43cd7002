"""The result of an ablation: its cells, and rows with mean, spread and interval as text, Markdown, JSON and HTML."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..imaging.evaluate import decimals, score_interval, score_text
from ..io.files import write_text_atomically
from ..metrics.captions import BLEU
from ..metrics.significance import crossed_interval, mean_and_std
from ..pages import render_page
from ..pages.render import interval, signed
from ..tables import Table
from .methods import ABLATION, IMAGE_METHODS, METHODS, PUBLISHED_IMAGES, Method

INTERVAL = "95 % interval"  # heading
CHOOSE_BY = "CIDEr"
_DISTANCES = ("KID", "FD", "FID")
_KINDS = ("KID", "FD", "IS", "recall@1-", "recall")  # scores of images in the order of their columns
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
        sigma_from: ``given``, ``auto`` or ``pairs`` (a rule), or ``best`` (chosen on the val split).
        train_fraction: share of the training images whose captions were used.
        choice_scores: of the images that sigma is chosen on.
        best_val_loss: that the checkpoint was chosen by; None if nothing was trained.
        parameters: number of weights; 0 where nothing was trained.
        training_seconds: of the training, that of a language model included where it has one.
        seconds: of the whole cell.
    """

    method: str
    seed: int
    sigma: float
    scores: dict[str, float]
    outputs: dict[str, str] = field(default_factory=dict)
    images: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)
    sigma_from: str = "given"
    train_fraction: float = 1.0
    choice_scores: dict[str, float] = field(default_factory=dict)
    best_val_loss: float | None = None
    parameters: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `c3 ablate --json` writes, but those of its row."""
        names = ("method", "seed", "sigma", "sigma_from", "train_fraction", "scores", "images", "best_val_loss")
        return {
            **{name: getattr(self, name) for name in names},
            "val_scores": self.choice_scores,
            "parameters": self.parameters,
            "training_seconds": round(self.training_seconds, 1),
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True)
class Ablation:
    """Runs of a table, and what is shown beside them.

    Attributes:
        runs: one per method, seed, sigma and train fraction.
        methods: in the order of the rows; that of the runs when empty.
        task: ``captions`` or ``images``.
        title: what was scored, in words.
        command: returns the command that makes a row; None leaves it out.
        real: scores of real photos: what a perfect generator would get; empty for captions.
        examples: of the page: by image key, what stands before and behind the outputs of the methods: the key and a
            caption that a person wrote, or the caption that images were made from and the photo.
        facts: what a reader should know about the data.
    """

    runs: Sequence[Run]
    methods: Sequence[str] = ()
    task: str = "captions"
    title: str = ""
    command: Callable[[Row], str] | None = None
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
            groups.setdefault((run.method, run.sigma, run.sigma_from, run.train_fraction), []).append(run)
        rows = []
        for members in groups.values():
            first = members[0]
            known = self._known[first.method]
            row: Row = {
                "method": first.method,
                "sigma": first.sigma,
                "sigma_from": first.sigma_from,
                "train_fraction": first.train_fraction,
                "seeds": len(members),
                "images": first.images,
                "checkpoint": known.chosen_on,
                "parameters": first.parameters,
                "training_seconds": mean_and_std([run.training_seconds for run in members])[0],
                "published": None if known.published is None else known.published._asdict(),
                "scores": {},
            }
            for name in sorted(first.scores):  # one order for all rows, computed now or read
                mean, std = mean_and_std([run.scores[name] for run in members])
                ends = score_interval(name, _stacked([run.values.get(name, ()) for run in members]))
                row["scores"][name] = {"mean": mean, "std": std, "interval": None if ends is None else list(ends)}
            rows.append((row | ({"command": self.command(row)} if self.command else {}), members))
        # in the order of the methods, whichever were finished first
        return sorted(rows, key=lambda pair: self.methods.index(pair[0]["method"]) if self.methods else 0)

    @property
    def rows(self) -> list[Row]:
        """One row per method, sigma and train fraction.

        Each score has its mean and sample standard deviation over seeds, and the 95 % interval of the mean over images
        and seeds (see `c3tools.imaging.evaluate.score_interval`).
        """
        return [row for row, _ in self._rows]

    def tables(self, *, wide: bool = False) -> list[Table]:
        """Return the rows as tables that fit a terminal, or as the wide tables of a page.

        Captions have one table of scores and one of trainings, or one wide one, which has BLEU-1 to 3 too. Images have
        two for each encoder, of distances and of other scores, each with one interval, or a wide one with all
        intervals; then come the published scores.
        """
        captions, shown = self.task == "captions", []
        for title, names in self._groups.items():
            near = {name: short for name, short in names.items() if short in _DISTANCES}
            others = {name: short for name, short in names.items() if short not in _DISTANCES}
            if wide:
                own = [CHOOSE_BY] if captions else names
                shown.append(self._table(names, own, title, settings=True, trainings=captions))
            elif captions:
                brief = {name: name for name in sorted(names, key=CHOOSE_BY.__ne__) if name not in BLEU[:-1]}
                shown += [self._table(brief, [CHOOSE_BY]), self._table({}, (), settings=True, trainings=True)]
            else:
                shown += [self._table(near, list(near)[:1], title, settings=True)] if near else []
                shown += [self._table(others, list(others)[-1:], title, settings=not near)] if others else []
        return shown if captions else [*shown, _published_images()]

    @property
    def _groups(self) -> dict[str, dict[str, str]]:
        """The headings of metrics, by their name, by the title of their table: those of one encoder stand together."""
        metrics = sorted(self.rows[0]["scores"], key=_place) if self.rows else []
        encoders = sorted((name.removeprefix("KID-") for name in metrics if name.startswith("KID-")), key=len)
        found: dict[str, dict[str, str]] = {}
        for name in metrics:
            own = next((encoder for encoder in reversed(encoders) if f"-{encoder}" in name), "")
            title = f"{self.title}, scored by {own}" if own else self.title
            found.setdefault(title, {})[name] = name.replace(f"-{own}", "", 1) if own else name
        return found

    def _table(
        self,
        metrics: Mapping[str, str],
        with_interval: Collection[str],
        title: str = "",
        *,
        settings: bool = False,
        trainings: bool = False,
    ) -> Table:
        """Return one table: what names a row, then its seeds, its scores, and facts of its training, as requested."""
        rows = self.rows
        columns = {"method": [row["method"] for row in rows], "sigma": [self._sigma(row) for row in rows]}
        if len({row["train_fraction"] for row in rows}) > 1:
            columns["train fraction"] = [f"{row['train_fraction']:g}" for row in rows]
        if settings:
            columns["seeds"] = [str(row["seeds"]) for row in rows]
        if len({row["images"] for row in rows}) > 1:
            columns["images"] = [f"{row['images']:,}" for row in rows]
        cells = list(columns.items())
        for name, heading in metrics.items():
            scores = [row["scores"][name] for row in rows]
            cells.append((heading, [score_with_spread(name, score) for score in scores]))
            if name in with_interval and any(score["interval"] for score in scores):
                cells.append((INTERVAL, [interval(score["interval"], decimals(name)) for score in scores]))
        if trainings:
            known = [row["published"] for row in rows]
            cells.append(("published", [score_with_spread(CHOOSE_BY, score) if score else "–" for score in known]))
            cells.append(("checkpoint", [row["checkpoint"] for row in rows]))
            if any(row["parameters"] for row in rows):
                cells.append(("parameters", [f"{p / 1e6:.1f} M" if (p := row["parameters"]) else "–" for row in rows]))
                cells.append(("training", [_time_text(row["training_seconds"]) for row in rows]))
        lines = [list(line) for line in zip(*(column for _, column in cells), strict=True)]
        if self.real and metrics:
            real = dict.fromkeys(columns, "–") | {"method": "real photos"}
            real |= {heading: score_text(name, self.real.get(name)) for name, heading in metrics.items()}
            lines.append([real.get(heading, "") for heading, _ in cells])
        return Table([heading for heading, _ in cells], lines, title)

    def _sigma(self, row: Row) -> str:
        """Return the sigma of a row and its source, or a dash if there is no noise."""
        if not self._known[row["method"]].noisy:
            return "–"
        return f"{row['sigma']:.3g}" + ("" if row["sigma_from"] == "given" else f" ({row['sigma_from']})")

    @cached_property
    def remarks(self) -> list[str]:
        """Sentences on the data, where methods stand between floor and oracle, and where published values are from."""
        remarks = list(self.facts)
        if self.task != "captions":
            return remarks
        found = {row["method"]: row["scores"][CHOOSE_BY]["mean"] for row in reversed(self.rows)}
        if {"C1", "C3", "oracle"} <= set(found) and found["oracle"] > found["C1"]:
            share = (found["C3"] - found["C1"]) / (found["oracle"] - found["C1"])
            remarks.append(
                f"C3 covers {share:.0%} of the way from the floor (C1) to the oracle (C3, given captions in place of "
                f"images) in {CHOOSE_BY}."
            )
        by_source: dict[str, dict[str, None]] = {}
        for row in self.rows:
            if row["published"] is not None:
                by_source.setdefault(row["published"]["source"], {})[row["method"]] = None
        sources = "; ".join(f"{source} ({', '.join(names)})" for source, names in by_source.items())
        if sources:
            remarks.append(f"Published: CIDEr on MS-COCO, with other encoders and decoders: {sources}.")
        return remarks

    @cached_property
    def notes(self) -> list[str]:
        """Sentences that compare each step of the method with what it follows, and other methods with C3.

        Rows are compared that have the same train fraction and the same noise, where they have any. Collapse alone and
        Corrupt alone each follow C1. C3 follows Corrupt alone or, if that is missing, what there is.
        """

        def comparable(row: Row) -> tuple[float, str]:  # a sigma that is chosen on val differs by method
            given = row["sigma_from"] != "best" and self._known[row["method"]].noisy
            return row["train_fraction"], f"{row['sigma']:.3g}" if given else row["sigma_from"]

        notes = []
        for fraction, sigma in dict.fromkeys(map(comparable, self.rows)):
            found = {
                row["method"]: members
                for row, members in self._rows
                if row["train_fraction"] == fraction
                and (comparable(row)[1] == sigma or not self._known[row["method"]].noisy)
            }
            pairs = [(next((b for b in before if b in found), ""), name) for name, before in _BEFORE.items()]
            pairs += [("C3", name) for name in found if name not in ABLATION]
            for before, after in pairs:
                if before not in found or after not in found:
                    continue
                where = f", sigma {sigma}" if self._known[after].noisy or self._known[before].noisy else ""
                where += "" if fraction == 1 else f", train fraction {fraction:g}"
                for metric in found[before][0].scores:
                    if metric.startswith((CHOOSE_BY, "FD-", "KID-")) and (
                        said := describe_difference(found[before], found[after], metric)
                    ):
                        notes.append(f"{after} − {before}{where}: {said}")
        return list(dict.fromkeys(notes))

    @property
    def commands(self) -> list[str]:
        """The command that makes each row."""
        return [row["command"] for row in self.rows if "command" in row]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, all runs (``runs``, the list that `c3 ablate --json` writes), and scores of real photos."""
        runs = []
        for row, members in self._rows:
            own = {name: value for name, value in row.items() if name in ("checkpoint", "command")}
            runs += [{**run.to_dict(), **own} for run in members]
        return {"rows": self.rows, "runs": runs, "real": dict(self.real)}

    def to_markdown(self) -> str:
        """Return the tables as Markdown, then what they show, and the command of each row."""
        lines: list[str] = []
        for table in self.tables(wide=True):
            lines += [f"{table.title}:", ""] if table.title else []
            lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows] + [""]
        for note in [*self.notes, *self.remarks]:
            lines += [note, ""]
        if self.commands:
            lines += ["These commands make the rows:", "", *(f"    {line}" for line in self.commands)]
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """Return one self-contained page: the tables, and captions or images by every method, of its first seed."""
        first: dict[str, Run] = {}
        for run in self.runs:
            name = run.method + (f", sigma {run.sigma:.3g}" if self._known[run.method].noisy else "")
            first.setdefault(name + ("" if run.train_fraction == 1 else f", {run.train_fraction:g} of the images"), run)
        captions = self.task == "captions"
        return render_page(
            Path(__file__).parent / "templates" / "ablation.html",
            title="Ablation" if captions else "Images from texts, trained on images alone",
            tables=self.tables(wide=True),
            seeds=max((row["seeds"] for row in self.rows), default=0),
            summaries={row["method"]: self._known[row["method"]].summary for row in self.rows},
            notes=[*self.notes, *self.remarks],
            commands=self.commands,
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
        return "".join(table._repr_html_() for table in self.tables(wide=True))


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


def _place(metric: str) -> int:
    """Return where the column of a score of images stands, after those whose kind comes before its own."""
    return next((place for place, kind in enumerate(_KINDS) if metric.startswith(kind)), len(_KINDS))


def _published_images() -> Table:
    title = "Published, for another generator (LAFITE) and other data (MS-COCO); the sizes are not comparable"
    rows = [[name, f"{fid:.1f}", f"{score:.1f}"] for name, fid, score in PUBLISHED_IMAGES]
    return Table(["method", "FID", "IS"], rows, title)


def _time_text(seconds: float) -> str:
    if not seconds:
        return "–"
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM else f"{seconds / 60:.0f} min"
