"""Cells of a table: a method with one sigma and one seed; how they are made, and where they are
kept.

    c3-ablation/              of captions; c3-image-ablation/ of images
      table.md, table.html    the table
      cells/DIGEST.json       a finished cell: its scores, and what it made
      decoders/DIGEST/        a trained decoder (generators/ for images), which several cells share

The digest of a model is of the options of its trainings and the data that it learns from; that of a
cell is of its method, its trainings, and the data that it is scored with.

Small networks do not use several cores well: on two cores, two parallel trainings take about two
thirds of the time of two trainings one after the other.
"""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ... import devices
from ...errors import C3Error, note_on_interrupt
from ...executors import Executor, Report, Work
from ...io.artifact import digest_of, require_result_or_empty
from ...io.files import MALFORMED, write_json_atomically
from ...io.lock import locked
from ...reporter import Progress, Reporter, counted
from ...store import Store
from ...transforms import Pipeline
from ...transforms.fitting import fitting_moments
from ...transforms.presets import is_recipe_file
from ...transforms.sigma import parse_sigma, sigma_by_rule
from ..imaging.evaluate_images import score_text
from .methods import CHOOSE_BY, Method, Options, recipe_method

_DIGITS = 16  # of a digest, in the names of files


@dataclass(frozen=True)
class Cell:
    """A method, a seed, and the standard deviation of the noise per dimension; 0 for none."""

    method: str
    seed: int
    sigma: float

    @property
    def label(self) -> str:
        """The cell in words."""
        return f"{self.method}, seed {self.seed}"


@dataclass(frozen=True)
class MethodRun:
    """A finished cell: the scores of what it made.

    Attributes:
        method: a key of `METHODS` or `IMAGE_METHODS`.
        seed: of the training.
        sigma: standard deviation of the noise per dimension; 0 if there is none.
        scores: by metric, in percent where metrics are.
        outputs: what was made, by image key: the captions, or the first images as ``data:`` URLs.
        images: how many captions or images were scored.
        values: by metric, a value per image whose mean is the score (`CaptionScores.image_values`,
            `photo_values`).
        sigma_from: ``given``, or the rule ``auto`` or ``pairs``.
        recipe_sigma: the sigma that the file of a method gives; 0 if there is none.
        best_val_loss: that the checkpoint was chosen by; None if nothing was trained.
        parameters: number of weights; 0 where nothing was trained.
        training_seconds: of all trainings of the cell.
    """

    method: str
    seed: int
    sigma: float
    scores: dict[str, float]
    outputs: dict[str, str] = field(default_factory=dict)
    images: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)
    sigma_from: str = "given"
    recipe_sigma: float = 0.0
    best_val_loss: float | None = None
    parameters: int = 0
    training_seconds: float = 0.0


@dataclass(frozen=True)
class Training:
    """A call of the verb that trains a model: its options, and the folder that it writes to."""

    options: Options
    folder: Path


@dataclass(frozen=True)
class Bench:
    """The shared side of the cells of a table.

    Attributes:
        folder: of the table.
        models: the name of the folder of trained models in it.
        methods: by name.
        store: that models learn from.
        verb: trains a model: `train_captioner` or `train_generator`.
        options: of the verb in every cell.
        device: to train on.
        fit: fits a preset with a sigma, or a recipe, which has its own, for training.
        learned: a digest of what models learn from.
        scored: a digest of what they are scored with.
        score: makes captions or images with the models that a cell trained, and scores them.
    """

    folder: Path
    models: str
    methods: Mapping[str, Method]
    store: Store
    verb: Callable[..., Any]
    options: Options
    device: str
    fit: Callable[[str, float | None], Pipeline]
    learned: str
    scored: str
    score: Callable[[Cell, Sequence[Any], Reporter], MethodRun]

    def trainings(self, cell: Cell) -> list[Training]:
        """Return the trainings of a cell; each starts from the model of the one before."""
        trainings: list[Training] = []
        chain: list[Options] = []
        for method_options in self.methods[cell.method].train:
            options = {**self.options, **method_options, "seed": cell.seed}
            if "preset" in options:
                options["sigma"] = None if "recipe" in options else cell.sigma
            chain.append(options)
            if trainings:
                options = {**options, "start": trainings[-1].folder}
            name = digest_of(chain, self.learned)[:_DIGITS]
            trainings.append(Training(options, self.folder / self.models / name))
        return trainings

    def arguments(self, training: Training) -> dict[str, Any]:
        """Return the arguments of the verb. A model that is there is loaded by it, or made again if
        it is damaged.
        """
        arguments = {**training.options, "output": training.folder, "overwrite": True}
        arguments.pop("recipe", None)
        if "start" in arguments:
            del arguments["size"]  # that of the model it starts from
        if "preset" in arguments:
            arguments["pipeline"] = self.fit(arguments.pop("preset"), arguments.pop("sigma"))
        return arguments

    def cell_file(self, cell: Cell) -> Path:
        """Return the file of a finished cell."""
        method = self.methods[cell.method]
        names = [training.folder.name for training in self.trainings(cell)]
        digest = digest_of(
            cell, names, method.inference, method.evaluate, self.learned, self.scored
        )
        return self.folder / "cells" / f"{digest[:_DIGITS]}.json"


def run_cells(
    bench: Bench, cells: Iterable[Cell], *, jobs: int, reporter: Reporter
) -> Iterator[MethodRun]:
    """Yield the cells of a table in their order: those that are finished are read, the others made
    and written.

    Args:
        bench: how cells are made.
        cells: their sigma does not matter where a method has no noise.
        jobs: how many trainings run at a time, each in its process.
        reporter: shows messages and progress.

    Raises:
        C3Error: if a training fails; those that are finished are kept, and the others saved at
            their last step.
    """
    # Read the cells that are finished
    cells = [
        cell if bench.methods[cell.method].noisy else replace(cell, sigma=0.0) for cell in cells
    ]
    finished: dict[Cell, MethodRun] = {}
    for cell in cells:
        with suppress(OSError, *MALFORMED):
            text = bench.cell_file(cell).read_text(encoding="utf-8")
            finished[cell] = MethodRun(**json.loads(text))

    # With several jobs, first trainings are done before all else, side by side
    first_trainings: dict[Path, Training] = {}
    for cell in cells:
        for training in bench.trainings(cell)[:1]:  # none of a method that trains nothing
            if cell not in finished and not training.folder.exists():
                first_trainings[training.folder] = training
    workers = min(jobs, len(first_trainings))
    if workers > 1:
        names = devices.pick_devices() if bench.device == "cuda" else [bench.device]
        executor = Executor([names[number % len(names)] for number in range(workers)])
        work = _Trainings(bench.verb, bench.store)
        calls = [bench.arguments(training) for training in first_trainings.values()]
        label = f"Percent of {counted(len(first_trainings), 'training')}, {workers} at a time"
        with reporter.progress(label, 100 * len(first_trainings)) as progress:
            for _ in executor.run(work, calls, lambda done, _: progress.advance(done)):
                pass

    # Then each cell: its models, which are loaded if they are there, and their scores
    for cell in cells:
        if cell in finished:
            reporter.message(f"{cell.label}: already finished")
        else:
            models = [
                bench.verb(
                    bench.store,
                    **bench.arguments(training),
                    device=bench.device,
                    reporter=_WithoutMessages(reporter, cell.label),
                )
                for training in bench.trainings(cell)
            ]
            finished[cell] = bench.score(cell, models, reporter)
            write_json_atomically(bench.cell_file(cell), asdict(finished[cell]))
        yield finished[cell]


class _WithoutMessages(Reporter):
    """A reporter of one training of a cell, whose messages are those of the whole table."""

    def __init__(self, reporter: Reporter, label: str) -> None:
        self._reporter = reporter
        self._label = label

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        with self._reporter.progress(f"{self._label}: {label}", total) as progress:
            yield progress

    def scalar(self, name: str, value: float, step: int) -> None:
        self._reporter.scalar(name, value, step)


class _Percent(Reporter, Progress):
    """A reporter of one training that tells another process of each percent that is done."""

    def __init__(self, report: Report) -> None:
        self._report = report

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        self._steps = 0
        self._total = total or 1
        yield self if label.startswith("Training") else Progress()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        before = 100 * self._steps // self._total
        self._steps += count
        self._report(100 * self._steps // self._total - before, 0)


class _Trainings(Work[dict[str, Any], None]):
    """Trainings in other processes, the results of which are in the folder of the table."""

    def __init__(self, verb: Callable[..., Any], store: Store) -> None:
        self._verb = verb
        self._store = store
        self._device: str | None = None

    def load(self, device: str, threads: int) -> None:
        """Use the device and the cores of this worker."""
        devices.limit_threads(threads)
        self._device = device

    def run(self, tasks: Iterable[dict[str, Any]], report: Report) -> Iterator[None]:
        """Do trainings one after the other."""
        for arguments in tasks:
            self._verb(self._store, **arguments, device=self._device, reporter=_Percent(report))
            yield None

    def name(self, task: dict[str, Any]) -> str:
        """Return the name of a training for messages."""
        return f"training of {task['output']}"


@contextmanager
def table_folder(output: str | Path) -> Iterator[Path]:
    """Yield the folder of a table, and keep other runs off it while the block runs.

    Raises:
        OutputError: if the folder contains other files, or another run is writing to it.
    """
    folder = Path(output)
    kept = (
        f"Finished results are kept in {folder}; run the same command again to compute the others."
    )
    with locked(folder), note_on_interrupt(lambda: kept):
        require_result_or_empty(folder, "ablation", ("cells", "decoders", "generators", "table.md"))
        yield folder


def run_table(
    bench: Bench,
    methods: Sequence[str],
    sigmas: Sequence[float | str],
    *,
    noised: Literal["text", "image"],
    seeds: int,
    jobs: int,
    reporter: Reporter,
) -> list[MethodRun]:
    """Return the runs of a table: of each method with each seed, and each sigma if it has noise.

    Args:
        bench: how cells are made.
        methods: names of methods.
        sigmas: values, or rules that give one.
        noised: the modality whose rows the rule ``auto`` reads.
        seeds: number of seeds per method.
        jobs: trainings at a time.
        reporter: shows messages and progress.

    Raises:
        C3Error: as the verbs that train and score.
    """
    runs: list[MethodRun] = []
    for number, noise in enumerate(sigmas):
        sigma_from = "given"
        value = noise
        if isinstance(noise, str):
            value, reason = sigma_by_rule(noise, bench.store, noised=noised)
            sigma_from = noise
            reporter.message(reason)
        # Methods without noise are in the rows of the first sigma alone
        names = [name for name in methods if number == 0 or bench.methods[name].noisy]
        cells = [Cell(name, seed, float(value)) for seed in range(seeds) for name in names]
        for run in run_cells(bench, cells, jobs=jobs, reporter=reporter):
            runs.append(replace(run, sigma_from=sigma_from))
            metric = CHOOSE_BY if CHOOSE_BY in run.scores else next(iter(run.scores))
            score = score_text(metric, run.scores[metric])
            reporter.message(f"{run.method}, seed {run.seed}: {metric} {score}")
    return runs


def content_digest(store: Store) -> str:
    """Return a digest of the rows of a store, and of the moments that transforms are fitted on."""
    moments = fitting_moments(store).moments
    means = [moments[modality].mean for modality in sorted(moments)]
    return digest_of([store.shard_digest(*shard) for shard in store.shards], *means)


def chosen_methods(methods: str | Sequence[str], known: Mapping[str, Method]) -> dict[str, Method]:
    """Return the methods that are asked for, by name.

    Args:
        methods: names of known methods, or JSON or YAML files with the steps of others; ``all`` for
            all that are known.
        known: by name.

    Raises:
        C3Error: if there is none, or one is unknown.
        TransformError: if the steps of a file are wrong.
    """
    names = list(known) if methods == "all" else _parts(methods)
    unknown = [name for name in names if name not in known and not is_recipe_file(name)]
    if unknown or not names:
        raise C3Error(
            f"There is no method {', '.join(unknown)!r} for this table.",
            remedy=f"Choose from {', '.join(known)}, or pass a file with the steps of another "
            f"method.",
        )
    return {name: known.get(name) or recipe_method(name, known["C3"]) for name in names}


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


def command_of(name: str, verb: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """Return the command that makes a table: the methods, and what is not the default of the verb.

    Args:
        name: of the command.
        verb: behind it.
        values: of its parameters, by name.
    """
    words = ["c3", name]
    for option, parameter in inspect.signature(verb).parameters.items():
        value = values[option]
        is_default = value == parameter.default or value in ([], ())
        is_shown = option in ("store", "methods") or not is_default
        if not is_shown or option in ("output", "reporter"):
            continue
        if option in ("methods", "metrics"):
            value = ",".join(value)
        for argument in value if isinstance(value, list | tuple) else [value]:
            text = str(argument.path if isinstance(argument, Store) else argument)
            words += [f"--{option.replace('_', '-')}", text]
    return shlex.join(words)
