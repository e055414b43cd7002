"""`c3 ablate`: the table of a store, from cells that are kept in a folder, so that it can be
continued and extended.

    c3-ablation/
      table.md, table.html    the table
      cells/DIGEST.json       a finished cell; the digest is of its method, sigma, seed, and all
      that it depends on decoders/DIGEST/        a trained decoder (``generators/`` for images),
      which several cells may share

Small networks do not use several cores well: on two cores, two parallel trainings take about two
thirds of the time of two trainings one after the other.
"""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import devices
from ..errors import C3Error, note_on_interrupt
from ..executors import Executor, Report, Work
from ..imaging.evaluate import score_text
from ..io.artifact import digest_of, holds_result
from ..io.files import MALFORMED, write_json_atomically
from ..io.lock import locked
from ..reporter import SILENT, Progress, Reporter, counted
from ..store import Store
from ..training.loop import CheckpointDir
from ..transforms.sigma import PAIRS, parse_sigma, sigma_by_rule
from .captions import CaptionTask
from .images import ImageTask
from .methods import Cell, Method, Training
from .table import CHOOSE_BY, Ablation, Run

_OTHER_TASK = {
    "captions": ("steps", "encoder"),
    "images": ("test_store", "epochs", "beams", "spice"),
}
_NOT_IN_COMMAND = ("store", "methods", "output", "reporter")


def ablate(
    store: Store | str | Path = "c3-store",
    *,
    task: str = "captions",
    methods: str | Sequence[str] = "C1,C2_1,C2_2,C3",
    seeds: int = 3,
    sigma: Sequence[float | str] | float | str = (0.1,),
    output: str | Path = "c3-ablation",
    split: str = "test",
    test_store: Store | str | Path | None = None,
    size: str | None = None,
    set: Sequence[str] = (),
    epochs: int | None = None,
    steps: int | None = None,
    beams: int | None = None,
    spice: bool = False,
    encoder: Sequence[str] = (),
    jobs: int = 1,
    device: str | None = None,
    precision: str = "auto",
    reporter: Reporter = SILENT,
) -> Ablation:
    """Compare methods: train and score each with several seeds, and print one table in percent.

    With ``task`` images, generators are trained on the photos alone. Each then makes an image from
    a caption of every test photo, and the images are scored (C1, C2_1, C2_2, C3, LAFITE, oracle).
    Training a tiny generator takes about 17 minutes on one core with AVX-512 bf16, and an hour or
    more on one without.

    Finished results and trained decoders or generators are kept. Run the same command again to
    continue, or add methods, seeds, sigmas or other decoding options (such as ``beams``).

    Args:
        store: See `embed`.
        task: captions (train decoders) or images (train generators).
        methods: Methods to compare, comma-separated, or all.
        seeds: Number of seeds per method: 0, 1, 2, ...
        sigma: Standard deviation of the noise, per dimension: a number, auto (derived from the
            captions; for images, from the photos), or pairs (from the cosine of at least 10 images
            with their captions, as in c3 train-decoder).
        output: The folder for results, table.md and table.html.
        split: The split whose images are captioned and scored, or all.
        test_store: Caption and score the images of this store, to test in another domain.
        size: Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra hf). Of the
            generator: tiny, small or base. By default small; for images tiny.
        set: See `train_captioner`.
        epochs: See `train_captioner`.
        steps: Training steps of a generator. The default depends on ``size``.
        beams: See `caption_images`.
        spice: Add SPICE (needs Java and the Stanford models); METEOR is added where there is Java.
        encoder: For images: also score with the features of this model.
        jobs: Trainings that run at the same time. Each gets a share of the cores, or its own GPU.
        device: See `connect_heads`.
        precision: See `embed`.
        reporter: Shows messages and progress.

    Raises:
        C3Error: if a method or a setting is unknown, or settings contradict each other.
        DecoderError: if there are too few captions.
        GeneratorError: if photos are missing.
        MetricError: if the split has no images with captions.
        StoreError: if texts or images are missing.
        OutputError: if ``output`` contains other files, or another run is writing to it.
    """
    options = dict(locals())
    defaults = {name: each.default for name, each in inspect.signature(ablate).parameters.items()}
    asked = {name: value for name, value in options.items() if value not in (defaults[name], [])}
    kind: Any = {"captions": CaptionTask, "images": ImageTask}.get(task)
    known: Mapping[str, Method] = kind.methods if kind else {}
    names = list(known) if methods == "all" else list(dict.fromkeys(_listed(methods)))
    sigmas = list(dict.fromkeys(map(parse_sigma, _listed(sigma))))
    if kind is None or not names or not known.keys() >= {*names}:
        raise C3Error(
            f"There is no method {', '.join(name for name in names if name not in known)!r} for "
            f"--task {task}.",
            remedy=f"Choose from {', '.join(known)}."
            if known
            else "Use --task captions or --task images.",
        )
    if wrong := [f"--{name.replace('_', '-')}" for name in _OTHER_TASK[task] if name in asked]:
        raise C3Error(
            f"{', '.join(wrong)} cannot be used with --task {task}.",
            remedy=f"Leave out {wrong[0]}.",
        )
    if split == "val" and PAIRS in sigmas:
        raise C3Error(
            f"--sigma {PAIRS} uses the val split, so the table cannot be scored on that split."
        )
    folder = Path(output)
    kept = (
        f"Finished results are kept in {folder}; run the same command again to compute the others."
    )
    with locked(folder), note_on_interrupt(lambda: kept):
        holds_result(folder, "ablation", ("cells", "decoders", "generators", "table.md"))
        store = Store.open(store, reporter=reporter)
        made: CaptionTask | ImageTask = kind.of(**{**options, "store": store, "methods": names})
        runs: list[Run] = []
        for number, noise in enumerate(sigmas):
            if isinstance(noise, str):
                value, why = sigma_by_rule(
                    noise, store, noised="text" if task == "captions" else "image"
                )
                reporter.message(why)
            else:
                value = noise
            # methods without noise are in the rows of the first sigma alone
            chosen = [name for name in names if number == 0 or known[name].noisy]
            cells = [Cell(name, seed, value) for seed in range(seeds) for name in chosen]
            for run in run_cells(made, cells, folder, jobs=jobs, reporter=reporter):
                runs.append(replace(run, sigma_from=noise if isinstance(noise, str) else "given"))
                metric = next(name for name in (CHOOSE_BY, *run.scores) if name in run.scores)
                reporter.message(
                    f"{run.method}, seed {run.seed}: {metric} "
                    f"{score_text(metric, run.scores[metric])}"
                )
        parts = ["c3", "ablate", "--store", str(store.path), "--methods", ",".join(names)]
        for name in [name for name in asked if name not in _NOT_IN_COMMAND]:
            values = asked[name] if isinstance(asked[name], list | tuple) else [asked[name]]
            for value in values:
                own = (
                    []
                    if value is True
                    else [str(value.path if isinstance(value, Store) else value)]
                )
                parts += [f"--{name.replace('_', '-')}", *own]
        table = made.table(runs, command=shlex.join(parts))
        table.save(folder)
    return table


ablate_images = partial(ablate, task="images")


def _listed(values: Any) -> list[Any]:
    """Return the values of a sequence, of a text in which they are separated by commas, or the one
    value.
    """
    if isinstance(values, str):
        return [part.strip() for part in values.split(",") if part.strip()]
    return [values] if isinstance(values, float | int) else list(values)


def run_cells(
    task: CaptionTask | ImageTask,
    cells: Iterable[Cell],
    folder: Path,
    *,
    jobs: int = 1,
    reporter: Reporter = SILENT,
) -> Iterator[Run]:
    """Yield the cells of a table in their order: those that are finished are read, the others made
    and written.

    Args:
        task: how cells are made.
        cells: their sigma does not matter where a method has no noise.
        folder: of the finished cells and the trained models.
        jobs: how many trainings run at a time, each in its process.
        reporter: shows messages and progress.

    Raises:
        C3Error: if a training fails; those that are finished are kept, and the others saved at
            their last step.
    """
    cells = [
        cell if task.methods[cell.method].noisy else cell._replace(sigma=0.0) for cell in cells
    ]
    paths = {
        cell: folder / "cells" / f"{digest_of(cell, task.learned, task.scored)[:16]}.json"
        for cell in cells
    }
    finished: dict[Cell, Run] = {}
    for cell, path in paths.items():
        with suppress(OSError, *MALFORMED):
            finished[cell] = Run(**json.loads(path.read_text(encoding="utf-8")))
    trainings: dict[Cell, Training] = {}
    for cell in cells:
        method = task.methods[cell.method]
        if cell not in finished and method.training is not None:
            trainings[cell] = Training(method.training, method.learns_from, cell.sigma, cell.seed)
    first = dict.fromkeys(training.start or training for training in trainings.values())
    ahead = [training for training in first if not _kept(task, training, folder).exists()]
    if jobs > 1 and len(ahead) > 1:
        count, device = min(jobs, len(ahead)), str(task.compute.device)
        names = devices.pick_devices() if device == "cuda" else [device]
        executor = Executor([names[number % len(names)] for number in range(count)])
        label = f"Percent of {counted(len(ahead), 'training')}, {count} at a time"
        with reporter.progress(label, 100 * len(ahead)) as progress:
            list(
                executor.run(
                    _Trainings(task.learner(), folder),
                    ahead,
                    lambda done, _: progress.advance(done),
                )
            )
    for cell in cells:
        if cell in finished:
            reporter.message(f"{cell.label}: already finished")
        else:
            model = _model(task, trainings[cell], folder, reporter) if cell in trainings else None
            finished[cell] = task.run(cell, model, reporter)
            write_json_atomically(paths[cell], asdict(finished[cell]))
        yield finished[cell]


def _kept(task: CaptionTask | ImageTask, training: Training, folder: Path) -> Path:
    return folder / task.kept_in / digest_of(task.learned, training)[:16]


def _model(task: Any, training: Training, folder: Path, reporter: Reporter) -> Any:
    """Return the model of a training; if there is none, train it."""
    path = _kept(task, training, folder)
    with suppress(C3Error):  # missing, or cut short: trained (again)
        return task.load(path)
    start = None if training.start is None else _model(task, training.start, folder, reporter)
    checkpoints = CheckpointDir(path.with_name(f"{path.name}.training"))
    model = task.fit_model(training, start, checkpoints, reporter)
    model.save(path)
    checkpoints.clear()
    return model


class _Percent(Reporter, Progress):
    """A reporter of one training that tells another process of each percent that is done."""

    def __init__(self, report: Report) -> None:
        self._report = report

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        self._steps, self._total = 0, total or 1
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        before, self._steps = self._steps, self._steps + count
        self._report(100 * self._steps // self._total - 100 * before // self._total, 0)


class _Trainings(Work[Training, None]):
    """Trainings in other processes, the results of which are in the folder."""

    def __init__(self, task: CaptionTask | ImageTask, folder: Path) -> None:
        self._task, self._folder = task, folder

    def load(self, device: str, threads: int) -> None:
        """Use the device and the cores of this worker."""
        devices.limit_threads(threads)
        self._task = replace(self._task, compute=devices.pick(device, self._task.compute.precision))

    def run(self, tasks: Iterable[Training], report: Report) -> Iterator[None]:
        """Do trainings one after the other."""
        for training in tasks:
            _model(self._task, training, self._folder, _Percent(report))
            yield None

    def name(self, task: Training) -> str:
        """Return the name of a training for messages."""
        return task.label
