"""The result of an ablation as a table: rows with mean, spread and interval, as text, Markdown, JSON and HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..arrays import Array
from ..metrics.captions import BLEU
from ..metrics.significance import crossed_interval, mean_and_std
from ..pages import render_page
from ..pages.render import interval
from ..tables import Table
from .cells import AblationRun
from .comparison import INTERVAL, compared, paired_difference, stacked
from .data import AblationData
from .methods import METHODS

CHOOSE_BY = "CIDEr"
_NAMING = ("method", "sigma", "train fraction")
_SCORES = ("images", CHOOSE_BY, INTERVAL, "BLEU-4", "ROUGE-L")
_EXAMPLES = 60
_MINUTES_FROM = 120  # seconds
Row = dict[str, Any]


@dataclass(frozen=True)
class Ablation:
    """Runs of a table, and the data that they were computed from.

    Attributes:
        runs: one per method, seed, sigma and train fraction.
        methods: in the order of the rows; those of the runs when empty.
        data: the rows that captions were learned from, and the images that were captioned.
        command: returns the command that makes a row; None leaves it out.
    """

    runs: Sequence[AblationRun]
    methods: Sequence[str] = ()
    data: AblationData | None = None
    command: Callable[[Row], str] | None = None

    @cached_property
    def _members(self) -> dict[tuple[object, ...], list[AblationRun]]:
        """The runs of each row: one per seed."""
        groups: dict[tuple[object, ...], list[AblationRun]] = {}
        for run in self.runs:
            groups.setdefault(_row_key(run.to_dict()), []).append(run)
        return groups

    @cached_property
    def rows(self) -> list[Row]:
        """One row per method, sigma and train fraction.

        Each score has its mean and sample standard deviation over seeds, and the 95 % interval of the mean over images
        and seeds (see `c3tools.metrics.significance.crossed_interval`), cut off at 0; None for fewer than 3 images.
        """
        rows = []
        for members in self._members.values():
            first = members[0]
            row: Row = {
                "method": first.method,
                "sigma": first.sigma,
                "sigma_from": first.sigma_from,
                "train_fraction": first.train_fraction,
                "seeds": len(members),
                "images": len(first.captions),
                "checkpoint": METHODS[first.method].chosen_on,
                "parameters": first.parameters,
                "training_seconds": mean_and_std([run.training_seconds for run in members])[0],
                "published": _published(first.method),
                # one order of metrics for all rows, whether computed now or read from a finished cell
                "scores": {name: _score(members, name) for name in sorted(first.scores)},
            }
            rows.append(row | ({"command": self.command(row)} if self.command else {}))
        # rows are in the order of the methods, whichever were finished first
        return sorted(rows, key=lambda row: self.methods.index(row["method"]) if self.methods else 0)

    def table(self) -> Table:
        """Return the rows as cells of text, in one wide table.

        Beside the scores stand the 95 % interval of CIDEr, the published CIDEr (on MS-COCO, with other models:
        `remarks`), what the checkpoint was chosen on, and parameters and training time, where they are known.
        """
        return _table_of(self._columns())

    def tables(self) -> list[Table]:
        """Return what `table` has in two tables that fit a terminal: scores, and trainings; without BLEU-1 to 3."""
        columns = self._columns()
        scores = {name: columns[name] for name in (*_NAMING, *_SCORES) if name in columns}
        others = {name: columns[name] for name in columns if name not in (*_SCORES, *BLEU)}
        return [_table_of(scores), _table_of(others)]

    def _columns(self) -> dict[str, list[str]]:
        """Return the cells of each column by its heading."""
        rows = self.rows
        columns = {"method": [row["method"] for row in rows], "sigma": [_sigma_text(row) for row in rows]}
        if len({row["train_fraction"] for row in rows}) > 1:
            columns["train fraction"] = [f"{row['train_fraction']:g}" for row in rows]
        columns["seeds"] = [str(row["seeds"]) for row in rows]
        if len({row["images"] for row in rows}) > 1:
            columns["images"] = [f"{row['images']:,}" for row in rows]
        for name in rows[0]["scores"] if rows else ():
            columns[name] = [score_text(row["scores"][name]) for row in rows]
            if name == CHOOSE_BY and any(row["scores"][name]["interval"] for row in rows):
                columns[INTERVAL] = [interval(row["scores"][name]["interval"], 1) for row in rows]
        columns["published"] = [_published_text(row["published"]) for row in rows]
        columns["checkpoint"] = [row["checkpoint"] for row in rows]
        if any(row["parameters"] for row in rows):
            columns["parameters"] = [_count_text(row["parameters"]) for row in rows]
            columns["training"] = [_time_text(row["training_seconds"]) for row in rows]
        return columns

    @cached_property
    def remarks(self) -> list[str]:
        """Sentences on where the methods stand between floor and oracle, and where published values are from."""
        found = {row["method"]: row["scores"][CHOOSE_BY]["mean"] for row in reversed(self.rows)}
        remarks = []
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
        """Sentences that compare each step of the method in CIDEr with what it follows, and other methods with C3."""
        notes = []
        for fraction, sigma in dict.fromkeys(_comparable(row) for row in self.rows):
            found = {
                row["method"]: self._members[_row_key(row)]
                for row in self.rows
                if row["train_fraction"] == fraction
                and (_comparable(row) == (fraction, sigma) or not METHODS[row["method"]].noisy)
            }
            for before, after in compared(found):
                where = ""
                if METHODS[after].noisy or METHODS[before].noisy:
                    where = f", sigma {sigma if sigma == 'best' else f'{float(sigma):.3g}'}"
                where += "" if fraction == 1 else f", train fraction {fraction:g}"
                if note := describe_difference(found[before], found[after]):
                    notes.append(f"{after} − {before}{where}: {note}")
        return list(dict.fromkeys(notes))

    @property
    def commands(self) -> list[str]:
        """The command that makes each row."""
        return [row["command"] for row in self.rows if "command" in row]

    def to_dict(self) -> dict[str, Any]:
        """Return the rows, and all runs (``runs``, the list that `c3 ablate --json` writes)."""
        commands = {_row_key(row): {"command": row["command"]} for row in self.rows if "command" in row}
        plain = [run.to_dict() for run in self.runs]
        return {"rows": self.rows, "runs": [{**run, **commands.get(_row_key(run), {})} for run in plain]}

    def to_markdown(self) -> str:
        """Return the table as Markdown, then the command of each row."""
        table = self.table()
        lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        for note in [*self.notes, *self.remarks]:
            lines += ["", note]
        lines += (
            ["", "These commands make the rows:", "", *(f"    {line}" for line in self.commands)]
            if self.commands
            else []
        )
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """Return one self-contained page: the table, and the captions of the first images by every method."""
        assert self.data is not None
        first: dict[str, AblationRun] = {}
        for run in self.runs:
            fraction = "" if run.train_fraction == 1 else f", {run.train_fraction:g} of the images"
            sigma = f", sigma {run.sigma:.3g}" if METHODS[run.method].noisy else ""
            first.setdefault(f"{run.method}{sigma}{fraction}", run)
        table = self.table()
        return render_page(
            Path(__file__).parent / "templates" / "ablation.html",
            title="Ablation",
            images=len(self.data.images),
            captions=len(self.data.train),
            seeds=max((row["seeds"] for row in self.rows), default=0),
            columns=table.columns,
            rows=list(zip(table.rows, [METHODS[row["method"]].summary for row in self.rows], strict=True)),
            notes=[*self.notes, *self.remarks],
            commands=self.commands,
            writers=list(first),
            examples=[
                {
                    "key": key,
                    "captions": [run.captions.get(key, "") for run in first.values()],
                    "reference": next(iter(self.data.references.get(key, ())), ""),
                }
                for key in list(self.data.images.keys)[:_EXAMPLES]
            ],
        )

    def save(self, folder: Path) -> None:
        """Write ``table.md`` and ``table.html`` to a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(self.to_markdown(), encoding="utf-8")
        (folder / "table.html").write_text(self.to_html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _table_of(columns: Mapping[str, Sequence[str]]) -> Table:
    return Table(list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)])


def _row_key(plain: Row) -> tuple[object, ...]:
    return tuple(plain[name] for name in ("method", "sigma", "sigma_from", "train_fraction"))


def _comparable(row: Row) -> tuple[float, str]:
    """Return the values that are the same in comparable rows; a sigma chosen on val differs by method."""
    source, noisy = row["sigma_from"], METHODS[row["method"]].noisy
    return row["train_fraction"], f"{row['sigma']:g}" if noisy and source != "best" else source


def _score(members: Sequence[AblationRun], metric: str) -> dict[str, Any]:
    mean, std = mean_and_std([run.scores[metric] for run in members])
    ends = crossed_interval(_image_values(members, metric))
    return {"mean": mean, "std": std, "interval": None if ends is None else [max(ends[0], 0.0), ends[1]]}


def _image_values(runs: Sequence[AblationRun], metric: str) -> Array:
    """Return float64 (seeds, images), without images where a run lacks them."""
    same = all(run.captions.keys() == runs[0].captions.keys() for run in runs)
    return stacked([run.image_values.get(metric, []) if same else [] for run in runs])


def describe_difference(before: Sequence[AblationRun], after: Sequence[AblationRun]) -> str | None:
    """Return the difference of two rows in CIDEr with its 95 % interval, and what it shows.

    The rows are compared on the same images and with the same seeds, those that both have.

    Args:
        before, after: a run per seed.

    Returns:
        None if the rows share no seed, have different images, or fewer than 3.
    """
    if any(run.captions.keys() != before[0].captions.keys() for run in (*before, *after)):
        return None
    first, second = ({run.seed: run.image_values.get(CHOOSE_BY, []) for run in row} for row in (before, after))
    return paired_difference(first, second, CHOOSE_BY)


def score_text(score: dict[str, Any]) -> str:
    """Return ``mean ± std``, or the mean alone if there is one seed."""
    spread = "" if score["std"] is None else f" ± {score['std']:.1f}"
    return f"{score['mean']:.1f}{spread}"


def _published(method: str) -> dict[str, Any] | None:
    found = METHODS[method].published
    return None if found is None else asdict(found)


def _published_text(published: dict[str, Any] | None) -> str:
    return "–" if published is None else score_text({"mean": published["value"], "std": published["spread"]})


def _count_text(parameters: int) -> str:
    return "–" if not parameters else f"{parameters / 1e6:.1f} M"


def _time_text(seconds: float | None) -> str:
    if not seconds:
        return "–"
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM else f"{seconds / 60:.0f} min"


def _sigma_text(row: Row) -> str:
    """Return the sigma of a row and its source, or a dash if there is no noise."""
    if not METHODS[row["method"]].noisy:
        return "–"
    source = "" if row["sigma_from"] == "given" else f" ({row['sigma_from']})"
    return f"{row['sigma']:.3g}{source}"
