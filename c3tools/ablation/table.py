"""The table of `c3 ablate`: rows with mean and spread, the command of each, what the order of the methods is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .cells import TableSettings
from .run import ABLATION, METHODS, AblationRun

_BY = "CIDEr"


def table_rows(
    runs: Sequence[AblationRun],
    settings: TableSettings | None = None,
    store: Path | None = None,
    also: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row per method, sigma and train fraction: mean and sample standard deviation over seeds, by metric.

    With the settings of the table and its store, rows are in the order of its methods, whichever were finished first,
    and each has the command that makes it, which ends in ``also``.
    """
    groups: dict[tuple[object, ...], list[AblationRun]] = {}
    for run in runs:
        groups.setdefault(_row_of(run.to_json()), []).append(run)
    rows = []
    for members in groups.values():
        scores = {}
        # one order for all rows, whether computed now or read from a finished cell
        for name in sorted(members[0].scores):
            values = np.array([run.scores[name] for run in members])
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            scores[name] = {"mean": float(values.mean()), "std": spread}
        first = members[0]
        row: dict[str, Any] = {
            "method": first.method,
            "sigma": first.sigma,
            "sigma_from": first.sigma_from,
            "train_fraction": first.train_fraction,
            "seeds": len(members),
            "scores": scores,
        }
        if settings is not None:
            row["command"] = command(row, settings, store, also)
        rows.append(row)
    if settings is not None:
        rows.sort(key=lambda row: settings.methods.index(row["method"]))
    return rows


def runs_to_json(runs: Sequence[AblationRun], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `c3 ablate --json` writes: every run, with the command of its row."""
    commands = {_row_of(row): row["command"] for row in rows}
    plain = [run.to_json() for run in runs]
    return [{**run, "command": commands[_row_of(run)]} for run in plain]


def _row_of(plain: dict[str, Any]) -> tuple[object, ...]:
    return tuple(plain[name] for name in ("method", "sigma", "sigma_from", "train_fraction"))


def command(row: dict[str, Any], settings: TableSettings, store: Path | None = None, also: Sequence[str] = ()) -> str:
    """What to type to make one row."""
    parts = ["c3", "ablate", "--methods", row["method"], "--seeds", str(row["seeds"])]
    if METHODS[row["method"]].noisy:
        parts += ["--sigma", f"{row['sigma']:.6g}"]
    if row["train_fraction"] != 1:
        parts += ["--train-fraction", f"{row['train_fraction']:g}"]
    parts += ["--size", settings.size]
    for change in settings.changes:
        parts += ["--set", change]
    if settings.epochs is not None:
        parts += ["--epochs", str(settings.epochs)]
    if settings.generation.method == "beam":
        parts += ["--beams", str(settings.generation.beams)]
        parts += ["--length-penalty", f"{settings.generation.length_penalty:g}"]
    if settings.generation.method == "magic":
        parts.append("--magic")
    if settings.split != "test":
        parts += ["--split", settings.split]
    if store is not None:
        parts += ["--store", str(store)]
    return shlex.join([*parts, *also])


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, then the command of each row."""
    names = list(rows[0]["scores"]) if rows else []
    fractions = len({row["train_fraction"] for row in rows}) > 1
    head = ["method", "sigma", *(["train fraction"] if fractions else []), "seeds", *names]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["method"], sigma_text(row), *([f"{row['train_fraction']:g}"] if fractions else [])]
        cells += [str(row["seeds"]), *(cell_text(row["scores"][name]) for name in names)]
        lines.append("| " + " | ".join(cells) + " |")
    notes = order_notes(rows)
    lines += ["", *notes] if notes else []
    commands = [row["command"] for row in rows if "command" in row]
    lines += ["", "Each row is made by:", "", *(f"    {line}" for line in commands)] if commands else []
    return "\n".join(lines) + "\n"


def cell_text(score: dict[str, float | None]) -> str:
    """``mean ± std``, or the mean alone where there is one seed."""
    spread = "" if score["std"] is None else f" ± {score['std']:.1f}"
    return f"{score['mean']:.1f}{spread}"


def sigma_text(row: dict[str, Any]) -> str:
    """The sigma of a row and where it is from; a dash where there is no noise."""
    if not METHODS[row["method"]].noisy:
        return "–"
    source = "" if row["sigma_from"] == "given" else f" ({row['sigma_from']})"
    return f"{row['sigma']:.3g}{source}"


def _comparable(row: dict[str, Any]) -> tuple[float, str]:
    """Rows of one table of the paper have this in common; a chosen sigma differs by method."""
    source, noisy = row["sigma_from"], METHODS[row["method"]].noisy
    return row["train_fraction"], f"{row['sigma']:g}" if noisy and source != "best" else source


def order_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How the steps of the method compare in CIDEr, each with the one before it and with the spread over seeds."""
    notes = []
    for key in dict.fromkeys(_comparable(row) for row in rows):
        found = {
            row["method"]: row["scores"][_BY]
            for row in rows
            if row["train_fraction"] == key[0] and (_comparable(row) == key or not METHODS[row["method"]].noisy)
        }
        present = [name for name in ABLATION if name in found]
        for before, after in pairwise(present):
            difference = found[after]["mean"] - found[before]["mean"]
            spreads = [found[name]["std"] for name in (before, after)]
            if any(spread is None for spread in spreads):
                continue
            within = "within" if abs(difference) <= max(spreads) else "beyond"
            noisy = METHODS[after].noisy
            where = f", sigma {key[1]}" if noisy else ""
            where += "" if key[0] == 1 else f", train fraction {key[0]:g}"
            spread = f"{within} the spread over seeds ({max(spreads):.1f})"
            notes.append(f"{after} − {before}: {difference:+.1f} {_BY}, {spread}{where}")
    return list(dict.fromkeys(notes))
