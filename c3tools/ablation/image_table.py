"""The table for images as a result: methods, runs, and rows with mean and spread, in the terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..imaging.evaluate import score_text
from ..io.files import write_text_atomically
from ..metrics.significance import mean_and_std
from ..pages import render_page
from ..tables import Table
from .methods import ABLATION

_KINDS = ("KID", "FD", "IS", "recall@1-", "recall")  # in the order of the columns
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
    """

    method: str
    seed: int
    sigma: float
    scores: dict[str, float]
    best_val_loss: float
    seconds: float
    examples: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `c3 ablate --task images --json` writes."""
        return {name: value for name, value in asdict(self).items() if name != "examples"}


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
    def rows(self) -> list[dict[str, Any]]:
        """One row per method: mean and sample standard deviation of each score over seeds."""
        rows = []
        for name in IMAGE_METHODS:
            members = [run for run in self.runs if run.method == name]
            if members:
                spreads = {s: mean_and_std([run.scores[s] for run in members]) for s in members[0].scores}
                scores = {s: {"mean": mean, "std": std} for s, (mean, std) in spreads.items()}
                rows.append({"method": name, "sigma": members[0].sigma, "seeds": len(members), "scores": scores})
        return rows

    def tables(self) -> list[Table]:
        """Return the rows as cells of text, real photos last: a table for the scores by each encoder."""
        metrics = list(self.rows[0]["scores"]) if self.rows else []
        return [self._table(encoder, names) for encoder, names in _by_encoder(metrics).items()]

    def _table(self, encoder: str, names: Mapping[str, str]) -> Table:
        cells = []
        for row in self.rows:
            sigma = f"{row['sigma']:.3g}" if IMAGE_METHODS[row["method"]].noisy else "–"
            scores = [(name, row["scores"][name]) for name in names]
            spread = ["" if s["std"] is None else f" ± {score_text(name, s['std'])}" for name, s in scores]
            means = [score_text(name, s["mean"]) + also for (name, s), also in zip(scores, spread, strict=True)]
            cells.append([row["method"], sigma, str(row["seeds"]), *means])
        real = [score_text(name, self.real.get(name)) for name in names]
        cells.append([f"{self.real_n:,} real photos", "–", "–", *real])
        title = f"{self.n:,} images of each" + (f", scored by {encoder}" if encoder else "")
        return Table(["method", "sigma", "seeds", *names.values()], cells, title=title)

    @staticmethod
    def published() -> Table:
        """Return the rows of the paper, marked as made with another generator and other data."""
        title = "Published, for another generator (LAFITE) and other data (MS-COCO); the sizes are not comparable"
        return Table(
            ["method", "FID", "IS"], [[name, f"{fid:.1f}", f"{score:.1f}"] for name, fid, score in PUBLISHED], title
        )

    @cached_property
    def notes(self) -> list[str]:
        """Sentences that compare each step of the method with the one before it and the spread over seeds."""
        rows = {row["method"]: row["scores"] for row in self.rows}
        notes = []
        for before, after in pairwise(name for name in ABLATION if name in rows):
            for metric in (name for name in rows[after] if name.startswith(("FD-", "KID-"))):
                one, two = rows[before][metric], rows[after][metric]
                if one["std"] is None or two["std"] is None:
                    continue
                difference, spread = two["mean"] - one["mean"], max(one["std"], two["std"])
                within = "within" if abs(difference) <= spread else "beyond"
                notes.append(
                    f"{after} − {before}: {difference:+.3f} {metric}, {within} the spread over seeds ({spread:.3f})"
                )
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
        for table in (*self.tables(), self.published()):
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
            tables=self.tables(),
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
        return "".join(table._repr_html_() for table in self.tables())


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
