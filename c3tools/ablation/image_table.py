"""The table for images as a result: methods, runs, and rows with mean and spread, in the terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..imaging.scorer import decimals, score_interval, score_text
from ..io.files import write_text_atomically
from ..metrics.significance import mean_and_std
from ..pages import render_page
from ..pages.render import interval, signed
from ..tables import Table
from .comparison import INTERVAL, compared, paired_difference, stacked

_KINDS = ("KID", "FD", "IS", "recall@1-", "recall")  # in the order of the columns
_DISTANCES = ("KID", "FD", "FID")
FILES = ("cells", "decoders", "generators", "table.md")  # of a folder of tables


@dataclass(frozen=True)
class ImageMethod:
    """A method of the table.

    Attributes:
        preset: of the pipeline.
        asked_with: the modality of the embeddings that the generator is asked with.
        noisy: whether sigma matters.
        summary: one line.
    """

    preset: str
    asked_with: str
    noisy: bool
    summary: str


IMAGE_METHODS: Mapping[str, ImageMethod] = {
    "C1": ImageMethod("c1", "text", False, "Connect alone"),
    "C2_1": ImageMethod("c2-collapse", "text", False, "Connect, Collapse"),
    "C2_2": ImageMethod("c2-corrupt", "text", True, "Connect, Corrupt"),
    "C3": ImageMethod("c3", "text", True, "Connect, Collapse, Corrupt"),
    "LAFITE": ImageMethod("lafite", "text", False, "noise of 0.75 of each vector (Zhou et al., 2022)"),
    "oracle": ImageMethod("c3", "image", True, "the generator of C3, given the embeddings of the photos themselves"),
}
# FID and IS on MS-COCO, as the paper prints them (Zhang et al., ICLR 2024): another generator and other data
PUBLISHED = (
    ("DALL-E", 27.5, 17.9),
    ("CogView", 27.1, 18.2),
    ("LAFITE_G", 20.9, 24.9),
    ("C1", 29.8, 22.4),
    ("C2_1", 21.7, 24.4),
    ("C2_2", 19.8, 25.5),
    ("C3", 19.6, 26.0),
)


@dataclass(frozen=True)
class ImageRun:
    """One cell of the table.

    Attributes:
        method: a key of `IMAGE_METHODS`.
        seed: of the training and of the images.
        sigma: noise per dimension; 0 if there is none.
        scores: see `c3tools.imaging.ImageEvaluation`.
        best_val_loss: that the checkpoint was chosen by.
        seconds: of the training.
        examples: the first images by key of the photo, as ``data:`` URLs.
        photo_values: by metric, a value per scored photo, whose mean is the score (see
            `c3tools.metrics.images.photo_values`); empty in results of versions that did not keep them.
    """

    method: str
    seed: int
    sigma: float
    scores: dict[str, float]
    best_val_loss: float
    seconds: float
    examples: dict[str, str] = field(default_factory=dict)
    photo_values: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `c3 ablate --task images --json` writes."""
        return {name: value for name, value in asdict(self).items() if name not in ("examples", "photo_values")}


@dataclass(frozen=True)
class ImageAblation:
    """Runs of a table, with what real photos score.

    Attributes:
        runs: one per method and seed.
        n: images of each.
        real: scores of real photos: what a perfect generator would get.
        real_n: how many these are.
        photos: the first photos that the captions are of, by key, as ``data:`` URLs.
        captions: the texts that the images were generated from, by key of the photo.
        remarks: what a reader should know.
        command: that makes the table.
    """

    runs: Sequence[ImageRun]
    n: int
    real: dict[str, float]
    real_n: int
    photos: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    command: str = ""

    @cached_property
    def _members(self) -> dict[str, list[ImageRun]]:
        """The runs of each method: one per seed."""
        found = {name: [run for run in self.runs if run.method == name] for name in IMAGE_METHODS}
        return {name: members for name, members in found.items() if members}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One row per method.

        Each score has its mean and sample standard deviation over seeds, and the 95 % interval of the mean over photos
        and seeds; None where results have no values per photo, or these do not vary.
        """
        return [
            {
                "method": name,
                "sigma": members[0].sigma,
                "seeds": len(members),
                "scores": {metric: _score(members, metric) for metric in members[0].scores},
            }
            for name, members in self._members.items()
        ]

    def tables(self) -> list[Table]:
        """Return the rows as cells of text that fit a terminal, real photos last: for each encoder, two tables.

        The first has sigma, the distances and the interval of KID, the second the other scores and the interval of the
        last one.
        """
        shown = []
        for encoder, names in self._by_encoder.items():
            distances = {name: short for name, short in names.items() if short in _DISTANCES}
            others = {name: short for name, short in names.items() if short not in _DISTANCES}
            shown += [self._table(encoder, distances, list(distances)[:1])] if distances else []
            shown += [self._table(encoder, others, list(others)[-1:], settings=not distances)] if others else []
        return shown

    def wide_tables(self) -> list[Table]:
        """Return a table for the scores by each encoder, with the interval of every score, as a page shows it."""
        return [self._table(encoder, names, list(names)) for encoder, names in self._by_encoder.items()]

    @property
    def _by_encoder(self) -> dict[str, dict[str, str]]:
        return _by_encoder(list(self.rows[0]["scores"]) if self.rows else [])

    def _table(
        self, encoder: str, names: Mapping[str, str], with_interval: Sequence[str], *, settings: bool = True
    ) -> Table:
        rows = self.rows
        cells = [("method", [*(row["method"] for row in rows), "real photos"])]
        if settings:
            sigmas = (f"{row['sigma']:.3g}" if IMAGE_METHODS[row["method"]].noisy else "–" for row in rows)
            cells += [("sigma", [*sigmas, "–"]), ("seeds", [*(str(row["seeds"]) for row in rows), "–"])]
        for name, short in names.items():
            scores = [row["scores"][name] for row in rows]
            cells.append((short, [*(_text(name, score) for score in scores), score_text(name, self.real.get(name))]))
            if name in with_interval and any(score["interval"] for score in scores):
                cells.append((INTERVAL, [*(interval(score["interval"], decimals(name)) for score in scores), ""]))
        title = f"{self.n:,} images of each and {self.real_n:,} real photos"
        title += f", scored by {encoder}" if encoder else ""
        return Table([heading for heading, _ in cells], list(zip(*(column for _, column in cells), strict=True)), title)

    @staticmethod
    def published() -> Table:
        """Return the rows of the paper, marked as made with another generator and other data."""
        title = "Published, for another generator (LAFITE) and other data (MS-COCO); the sizes are not comparable"
        return Table(
            ["method", "FID", "IS"], [[name, f"{fid:.1f}", f"{score:.1f}"] for name, fid, score in PUBLISHED], title
        )

    @cached_property
    def notes(self) -> list[str]:
        """Sentences that compare each step of the method with what it follows, and other methods with C3."""
        notes = []
        for before, after in compared(self._members):
            runs = self._members[before], self._members[after]
            for metric in (name for name in runs[0][0].scores if name.startswith(("FD-", "KID-"))):
                if note := _difference(*runs, metric):
                    notes.append(f"{after} − {before}: {note}")
        return notes

    @property
    def commands(self) -> list[str]:
        """The command that makes the table."""
        return [self.command] if self.command else []

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, and all runs (``runs``, the list that `c3 ablate --task images --json` writes)."""
        real = {"n": self.real_n, "scores": self.real}
        runs = [{**run.to_dict(), **({"command": self.command} if self.command else {})} for run in self.runs]
        return {"rows": self.rows, "runs": runs, "real": real, "n": self.n}

    def to_markdown(self) -> str:
        """Return the tables as Markdown, then what the differences mean."""
        lines: list[str] = []
        for table in (*self.wide_tables(), self.published()):
            lines += [f"{table.title}:", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows]
            lines.append("")
        lines += [*self.notes, *self.remarks, "", f"    {self.command}"]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """Return one self-contained page: the tables, and the images of the first captions by every method."""
        first = {run.method: run.examples for run in reversed(self.runs)}
        names = [name for name in IMAGE_METHODS if name in first]
        examples = [
            {"caption": self.captions[key], "photo": photo, "images": [first[name].get(key, "") for name in names]}
            for key, photo in self.photos.items()
        ]
        return render_page(
            Path(__file__).parent / "templates" / "images.html",
            title="Images from texts, trained on images alone",
            tables=self.wide_tables(),
            published=self.published(),
            summaries=[(name, IMAGE_METHODS[name].summary) for name in names],
            notes=[*self.notes, *self.remarks],
            names=names,
            examples=examples,
            command=self.command,
        )

    def save(self, folder: Path) -> None:
        """Write ``table.md`` and ``table.html`` to a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / "table.md", self.to_markdown())
        write_text_atomically(folder / "table.html", self.to_html())

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.wide_tables())


def _score(members: Sequence[ImageRun], metric: str) -> dict[str, Any]:
    mean, std = mean_and_std([run.scores[metric] for run in members])
    ends = score_interval(metric, stacked([run.photo_values.get(metric, []) for run in members]))
    return {"mean": mean, "std": std, "interval": None if ends is None else list(ends)}


def _difference(before: Sequence[ImageRun], after: Sequence[ImageRun], metric: str) -> str | None:
    """Return the difference of two methods with its interval, or the spread over seeds for lack of values per photo."""
    earlier, later = ({run.seed: run.photo_values.get(metric, []) for run in runs} for runs in (before, after))
    if all([*earlier.values(), *later.values()]):
        return paired_difference(earlier, later, metric, decimals=decimals(metric), over="photos")
    (one, first), (two, second) = (mean_and_std([run.scores[metric] for run in runs]) for runs in (before, after))
    if first is None or second is None:
        return None
    difference, spread = two - one, max(first, second)
    within = "within" if abs(difference) <= spread else "beyond"
    return (
        f"{signed(difference, decimals(metric))} {metric}, {within} the spread over seeds "
        f"({score_text(metric, spread)}); no interval, because results of an earlier version have no values per photo"
    )


def _text(metric: str, score: Mapping[str, Any]) -> str:
    """Return ``mean ± std``, or the mean alone if there is one seed."""
    spread = "" if score["std"] is None else f" ± {score_text(metric, score['std'])}"
    return score_text(metric, score["mean"]) + spread


def _by_encoder(metrics: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the short names of metrics by their full ones, by the encoder that is part of these, or ""."""
    encoders = sorted((name.removeprefix("KID-") for name in metrics if name.startswith("KID-")), key=len)
    found: dict[str, dict[str, str]] = {}
    for name in sorted(metrics, key=_place):
        own = next((encoder for encoder in reversed(encoders) if f"-{encoder}" in name), "")
        found.setdefault(own, {})[name] = name.replace(f"-{own}", "", 1) if own else name
    return found


def _place(metric: str) -> int:
    """Return where the column of a metric stands, after those whose kind comes before its own."""
    return next((place for place, kind in enumerate(_KINDS) if metric.startswith(kind)), len(_KINDS))
