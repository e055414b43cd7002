"""`c3 ablate`: the table of a store. Finished cells are kept in a folder, so that it can be continued and extended."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import devices
from ..captioning import GenerationConfig
from ..captioning import load_size as load_decoder_size
from ..captioning.baselines.steering import load_text_encoder
from ..errors import C3Error, telling_what_is_kept
from ..imaging import load_size as load_generator_size
from ..imaging.evaluate import load_encoders, score_text
from ..io.artifact import holds_result
from ..io.files import write_json_atomically
from ..io.lock import locked
from ..reporter import SILENT, Reporter
from ..store import Store
from ..transforms.sigma import PAIRS, RULES, parse_sigma, sigma_by_rule
from .captions import CaptionTask, caption_data
from .cells import run_cells
from .images import ImageTask
from .methods import ABLATION, IMAGE_METHODS, METHODS, Cell
from .table import CHOOSE_BY, Ablation, Row, Run

GRID = (0.03, 0.045, 0.06, 0.08, 0.1)
_OF_CAPTIONS = ("grid", "test_store", "epochs", "train_fraction", "beams", "length_penalty")
_OF_IMAGES = ("steps", "encoder")
_OF_ROWS = ("methods", "seeds", "sigma", "train_fraction")
_NOT_IN_COMMANDS = ("grid", "keep_decoders", "jobs", "backend")


@dataclass(frozen=True)
class Settings:
    """The arguments of `ablate`, for one table."""

    task: str = "captions"
    methods: tuple[str, ...] = ABLATION
    seeds: int = 3
    sigma: tuple[float | str, ...] = (0.1,)
    grid: tuple[float, ...] = GRID
    split: str = "test"
    test_store: Path | None = None
    size: str | None = None
    set: tuple[str, ...] = ()
    epochs: int | None = None
    steps: int | None = None
    train_fraction: tuple[float, ...] = (1.0,)
    beams: int = 1
    length_penalty: float = 0.7
    encoder: tuple[str, ...] = ()
    keep_decoders: bool = True
    jobs: int = 1
    device: str | None = None
    backend: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other or are out of range."""
        if self.task not in ("captions", "images"):
            raise C3Error(f"There is no task {self.task!r}.", remedy="Use --task captions or --task images.")
        other, names = ("images", _OF_IMAGES) if self.task == "captions" else ("captions", _OF_CAPTIONS)
        for name in names:
            if name in self.changed():
                option = f"--{name.replace('_', '-')}"
                raise C3Error(f"{option} is only for --task {other}.", remedy=f"Leave out {option}.")
        known = METHODS if self.task == "captions" else IMAGE_METHODS
        if unknown := [name for name in self.methods if name not in known]:
            raise C3Error(
                f"There is no method {', '.join(unknown)} for {self.task}.", remedy=f"Choose from {', '.join(known)}."
            )
        for name in _OF_ROWS:
            if not getattr(self, name):
                raise C3Error(f"A table needs at least one of the {name.replace('_', ' ')}.")
        for fraction in self.train_fraction:
            if not 0 < fraction <= 1:
                raise C3Error(f"--train-fraction must be above 0 and at most 1, not {fraction}.")
        for sigma in {"best", PAIRS}.intersection(map(str, self.sigma)) if self.split == "val" else ():
            raise C3Error(f"--sigma {sigma} uses the val split, so the table cannot be scored on that split.")
        if self.jobs < 1:
            raise C3Error(f"--jobs must be at least 1, not {self.jobs}.")
        if self.jobs > 1 and not self.keep_decoders:
            raise C3Error(
                "--jobs needs decoders to be kept, because parallel trainings return their results as files.",
                remedy="Leave out --no-keep-decoders, or --jobs.",
            )
        if self.task == "captions":
            load_decoder_size(self.size or "small", self.set)
        else:
            load_generator_size(self.size or "tiny", self.set)

    def changed(self) -> dict[str, Any]:
        """Return the settings that are not those by default."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}

    def command(self, row: Row, store: Path) -> str:
        """Return the command that makes one row of the table."""
        known = METHODS if self.task == "captions" else IMAGE_METHODS
        parts = ["c3", "ablate", "--methods", row["method"], "--seeds", str(row["seeds"])]
        if known[row["method"]].noisy:
            parts += ["--sigma", f"{row['sigma']:.6g}"]
        if row["train_fraction"] != 1:
            parts += ["--train-fraction", f"{row['train_fraction']:g}"]
        for name, value in self.changed().items():
            if name not in (*_OF_ROWS, *_NOT_IN_COMMANDS):
                for each in value if isinstance(value, tuple) else (value,):
                    parts += [f"--{name.replace('_', '-')}", str(each)]
        return shlex.join([*parts, "--store", str(store)])


def ablate(
    store: Store | str | Path = "c3-store",
    *,
    task: str = "captions",
    methods: str | Sequence[str] = "C1,C2_1,C2_2,C3",
    seeds: int = 3,
    sigma: float | str | Sequence[float | str] = (0.1,),
    grid: str | Sequence[float | str] = "0.03,0.045,0.06,0.08,0.1",
    output: str | Path = "c3-ablation",
    split: str = "test",
    test_store: Store | str | Path | None = None,
    size: str | None = None,
    set: Sequence[str] = (),
    epochs: int | None = None,
    steps: int | None = None,
    train_fraction: float | Sequence[float] = (1.0,),
    beams: int = 1,
    length_penalty: float = 0.7,
    encoder: Sequence[str] = (),
    keep_decoders: bool = True,
    jobs: int = 1,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reporter: Reporter = SILENT,
) -> Ablation:
    """Compare methods: train and score each with several seeds, and print one table in percent.

    With ``task`` images, generators are trained on the photos alone. Each then makes an image from a caption of every
    test photo, and the images are scored (C1, C2_1, C2_2, C3, LAFITE, oracle). Training a tiny generator takes about 17
    minutes on one core with AVX-512 bf16, and an hour or more on one without.

    Finished results are kept. Run the same command again to continue, or add methods, seeds or sigmas to the table.

    Args:
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        task: captions (train decoders) or images (train generators).
        methods: Methods to compare, comma-separated, or all.
        seeds: Number of seeds per method: 0, 1, 2, ...
        sigma: Standard deviation of the noise, per dimension: a number, auto (derived from the captions; for images,
            from the photos), pairs (from the cosine of at least 10 images with their captions, as in c3 train-decoder),
            or best (the value of ``grid`` that scores highest on the val split, for each method).
        grid: Values that ``sigma`` best tries, comma-separated.
        output: The folder for results, table.md and table.html.
        split: The split whose images are captioned and scored, or all.
        test_store: Caption and score the images of this store, to test in another domain.
        size: Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra hf). Of the generator: tiny,
            small or base. By default small; for images tiny.
        set: Change settings of ``size``, such as dropout=0.2, learning_rate=1e-3 or model=PATH.
        epochs: Passes over the captions. The default depends on ``size``.
        steps: Training steps of a generator. The default depends on ``size``.
        train_fraction: Train on the captions of this fraction of the images.
        beams: Number of beams in beam search; 1 is greedy decoding.
        length_penalty: Beams are ranked by log-probability / length ** PENALTY.
        encoder: For images: also score with the features of this model.
        keep_decoders: Keep the trained decoders or generators, so that other decoding options (such as ``beams``) need
            no new training.
        jobs: Trainings that run at the same time. Each gets a share of the cores, or its own GPU.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        backend: auto, torch or openvino (for CPUs; needs the extra openvino).
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        reporter: Shows messages and progress.

    Raises:
        C3Error: if a method or a setting is unknown, or settings contradict each other.
        DecoderError: if there are too few captions.
        GeneratorError: if photos are missing.
        MetricError: if the split has no images with captions.
        StoreError: if texts or images are missing.
        OutputError: if ``output`` contains other files, or another run is writing to it.
    """
    names = _listed(methods)
    if isinstance(test_store, Store):
        test_store = test_store.path
    if names == ["all"]:
        names = list(METHODS if task == "captions" else IMAGE_METHODS)
    rules = (*RULES, "best") if task == "captions" else RULES
    settings = Settings(
        task=task,
        methods=tuple(dict.fromkeys(names)),
        seeds=seeds,
        sigma=tuple(dict.fromkeys(parse_sigma(value, also=rules) for value in _listed(sigma))),
        grid=tuple(float(parse_sigma(value, also=())) for value in _listed(grid)),
        split=split,
        test_store=None if test_store is None else Path(test_store),
        size=size,
        set=tuple(set),
        epochs=epochs,
        steps=steps,
        train_fraction=tuple(dict.fromkeys(map(float, _listed(train_fraction)))),
        beams=beams,
        length_penalty=length_penalty,
        encoder=tuple(encoder),
        keep_decoders=keep_decoders,
        jobs=jobs,
        device=device,
        backend=backend,
        precision=precision,
    )
    folder = Path(output)

    def kept() -> str:
        if cells := len(list(folder.glob("cells/*.json"))):
            return f"{cells:,} finished results are kept in {folder}; run the same command again to compute the others."
        return "No result of the table was finished."

    with locked(folder), telling_what_is_kept(kept):
        holds_result(folder, "ablation", ("cells", "decoders", "generators", "table.md"))
        store = Store.open(store, reporter=reporter)
        made = _task(store, settings, reporter)
        runs: list[Run] = []
        for fraction in settings.train_fraction:
            part = made.sample(fraction)
            for note in part.overlaps():
                reporter.message(note)
            make = partial(run_cells, part, folder=folder, keep=keep_decoders, jobs=jobs, reporter=reporter)
            choices = folder / ("sigma.json" if fraction == 1 else f"sigma-fraction{fraction:g}.json")
            noiseless = True  # methods without noise are in the rows of the first sigma alone
            for noise in settings.sigma:
                chosen = [name for name in settings.methods if noiseless or made.methods[name].noisy]
                sigmas = dict.fromkeys(chosen, noise if isinstance(noise, float) else 0.0)
                if noise == "best":
                    noisy = [name for name in chosen if made.methods[name].noisy]
                    sigmas |= _best_sigmas(noisy, settings.grid, make, choices, reporter)
                elif isinstance(noise, str):
                    value, why = sigma_by_rule(noise, store, noised="text" if task == "captions" else "image")
                    reporter.message(why)
                    sigmas = dict.fromkeys(chosen, value)
                noiseless = False
                for run in make([Cell(name, seed, sigmas[name]) for seed in range(seeds) for name in chosen]):
                    source = noise if isinstance(noise, str) else "given"
                    runs.append(replace(run, sigma_from=source, train_fraction=fraction))
                    metric = CHOOSE_BY if task == "captions" else next(m for m in run.scores if m.startswith("FD-"))
                    score = score_text(metric, run.scores[metric])
                    reporter.message(f"{run.method}, seed {run.seed}: {metric} {score}")
        table = made.table(runs, methods=settings.methods, command=lambda row: settings.command(row, store.path))
        table.save(folder)
    return table


def _listed(values: Any) -> list[Any]:
    """Return the values of a sequence, of a text in which they are separated by commas, or the one value."""
    if isinstance(values, str):
        return [part.strip() for part in values.split(",") if part.strip()]
    return [values] if isinstance(values, float | int) else list(values)


ablate_images = partial(ablate, task="images")


def _task(store: Store, settings: Settings, reporter: Reporter) -> CaptionTask | ImageTask:
    """Read the data of a table; return what makes its cells."""
    shared: dict[str, Any] = {"set": settings.set, "compute": devices.pick(settings.device, settings.precision)}
    encoding: dict[str, Any] = {"device": settings.device, "backend": settings.backend, "reporter": reporter}
    if settings.task == "images":
        shared |= {"size": settings.size or "tiny", "training_steps": settings.steps}
        encoders = load_encoders(store, settings.encoder, **encoding)
        return ImageTask.of(store, settings.split, encoders, reporter, **shared)
    if asking := [name for name in settings.methods if METHODS[name].needs_encoder]:
        encoding["precision"] = settings.precision
        shared["encoder"] = load_text_encoder(store.info.model, ", ".join(asking), **encoding)
    other = None if settings.test_store is None else Store.open(settings.test_store, reporter=reporter)
    data, notes = caption_data(store, settings.split, choose="best" in settings.sigma, test_store=other)
    for note in notes:
        reporter.message(note)
    generation = GenerationConfig.from_options(beams=settings.beams, length_penalty=settings.length_penalty)
    return CaptionTask(data, size=settings.size or "small", epochs=settings.epochs, generation=generation, **shared)


def _best_sigmas(
    methods: Sequence[str],
    grid: Sequence[float],
    make: Callable[[list[Cell]], Iterator[Run]],
    choices: Path,
    reporter: Reporter,
) -> dict[str, float]:
    """Return the sigma of the grid with the best score on the val split, for each method, by the first seed."""
    tried: dict[str, dict[float, float]] = {name: {} for name in methods}
    for run in make([Cell(name, 0, sigma) for sigma in grid for name in methods]):
        tried[run.method][run.sigma] = run.choice_scores[CHOOSE_BY]
    chosen = {name: max(scores, key=scores.__getitem__) for name, scores in tried.items()}
    for name, scores in tried.items():
        listed = ", ".join(f"{sigma:g}: {score:.1f}" for sigma, score in scores.items())
        best = f"{name}: sigma {chosen[name]:g} is best on the val split ({CHOOSE_BY} by sigma {listed})"
        reporter.message(best)
    plain = {name: {f"{sigma:g}": score for sigma, score in scores.items()} for name, scores in tried.items()}
    write_json_atomically(choices, {"split": "val", "metric": CHOOSE_BY, "scores": plain})
    return chosen
