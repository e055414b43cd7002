"""Shared steps of the tables of captions and images: methods and noise, the command, the cells."""

from __future__ import annotations

import inspect
import shlex
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..errors import C3Error, note_on_interrupt
from ..imaging.evaluate_images import score_text
from ..io.artifact import require_result_or_empty
from ..io.lock import locked
from ..reporter import Reporter
from ..store import Store
from ..transforms.sigma import parse_sigma, sigma_by_rule
from .cells import Bench, Cell, Run, run_cells
from .methods import Method
from .table import CHOOSE_BY, Ablation


class TableBench(Bench):
    """A bench that shows its cells as a table."""

    @abstractmethod
    def table(self, runs: Sequence[Run], command: str = "") -> Ablation:
        """Return the table of runs."""


def chosen_methods(methods: str | Sequence[str], known: Mapping[str, Method]) -> list[str]:
    """Return the names of the methods that are asked for, each once.

    Raises:
        C3Error: if there is none, or one is unknown.
    """
    names = list(known) if methods == "all" else list(dict.fromkeys(_parts(methods)))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise C3Error(
            f"There is no method {', '.join(unknown)!r} for this table.",
            remedy=f"Choose from {', '.join(known)}.",
        )
    return names


def chosen_sigmas(sigma: Sequence[float | str] | float | str) -> list[float | str]:
    """Return the values and rules of sigma that are asked for, each once.

    Raises:
        TransformError: if one is neither a positive number nor a rule.
    """
    values: Iterable[float | str]
    if isinstance(sigma, str):
        values = _parts(sigma)
    elif isinstance(sigma, float | int):
        values = [sigma]
    else:
        values = sigma
    return list(dict.fromkeys(map(parse_sigma, values)))


def _parts(values: str | Sequence[str]) -> list[str]:
    """Return the values of a sequence, or of a text in which they are separated by commas."""
    if not isinstance(values, str):
        return list(values)
    return [part.strip() for part in values.split(",") if part.strip()]


def command_of(
    name: str,
    verb: Callable[..., Any],
    store: Store | str | Path,
    options: Mapping[str, Any],
) -> str:
    """Return the command that makes a table: its options that are not the defaults of the verb."""
    defaults = inspect.signature(verb).parameters
    words = ["c3", name, "--store", _text(store)]
    for option, value in options.items():
        is_default = value == defaults[option].default or value in ([], ())
        if is_default and option != "methods":
            continue
        flag = f"--{option.replace('_', '-')}"
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [flag] if each is True else [flag, _text(each)]
    return shlex.join(words)


def _text(value: Any) -> str:
    return str(value.path if isinstance(value, Store) else value)


def make_table(
    store: Store | str | Path,
    read: Callable[[Store], TableBench],
    methods: Sequence[str],
    sigmas: Sequence[float | str],
    *,
    noised: Literal["text", "image"],
    seeds: int,
    folder: Path,
    jobs: int,
    command: str,
    reporter: Reporter,
) -> Ablation:
    """Make the cells of a table, or read those that are finished, and write the table.

    Args:
        store: what is learned from.
        read: reads the data of the table.
        methods: names of methods.
        sigmas: values, or rules that give one.
        noised: the modality whose rows the rule ``auto`` reads.
        seeds: number of seeds per method.
        folder: of cells, models and the table.
        jobs: trainings at a time.
        command: that makes the table.
        reporter: shows messages and progress.

    Raises:
        OutputError: if the folder contains other files, or another run is writing to it.
        C3Error: as the functions of the table.
    """
    kept = (
        f"Finished results are kept in {folder}; run the same command again to compute the others."
    )
    with locked(folder), note_on_interrupt(lambda: kept):
        require_result_or_empty(folder, "ablation", ("cells", "decoders", "generators", "table.md"))
        opened = Store.open(store, reporter=reporter)
        bench = read(opened)
        runs: list[Run] = []
        for number, noise in enumerate(sigmas):
            if isinstance(noise, str):
                value, reason = sigma_by_rule(noise, opened, noised=noised)
                reporter.message(reason)
            else:
                value = noise
            # methods without noise are in the rows of the first sigma alone
            names = [name for name in methods if number == 0 or bench.methods[name].noisy]
            cells = [Cell(name, seed, value) for seed in range(seeds) for name in names]
            for run in run_cells(bench, cells, folder, jobs=jobs, reporter=reporter):
                runs.append(replace(run, sigma_from=noise if isinstance(noise, str) else "given"))
                metric = CHOOSE_BY if CHOOSE_BY in run.scores else next(iter(run.scores))
                score = score_text(metric, run.scores[metric])
                reporter.message(f"{run.method}, seed {run.seed}: {metric} {score}")
        table = bench.table(runs, command)
        table.save(folder)
    return table
