"""The table on a store; finished results are kept in a folder, so that it can be continued and extended."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import devices
from ..captioning import GenerationConfig, load_size, training_config
from ..captioning.steering import load_text_encoder
from ..devices import Compute
from ..encoders import Encoder
from ..errors import DecoderError, MetricError, telling_what_is_kept
from ..io.files import MALFORMED, write_json_atomically
from ..io.lock import locked
from ..io.outputs import Output
from ..metrics.captions import score_captions
from ..reporter import SILENT, Reporter
from ..store import Store
from ..transforms.sigma import PAIRS, RULES, parse_sigma, sigma_by_rule
from .cells import AblationRun, image_values, run_ablation, train_decoders
from .data import AblationData, ablation_data
from .image_table import FILES
from .methods import ABLATION, METHODS, check_methods
from .table import CHOOSE_BY, Ablation, Row
from .trainings import check_jobs

GRID = (0.03, 0.045, 0.06, 0.08, 0.1)
_NAMED_DIGITS = 12


@dataclass(frozen=True)
class _Settings:
    """The checked arguments of `ablate`, for one table."""

    methods: tuple[str, ...] = ABLATION
    seeds: tuple[int, ...] = (0, 1, 2)
    sigmas: tuple[float | str, ...] = (0.1,)
    grid: tuple[float, ...] = GRID
    size: str = "small"
    set: tuple[str, ...] = ()
    epochs: int | None = None
    split: str = "test"
    test_store: Path | None = None
    train_fractions: tuple[float, ...] = (1.0,)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    keep_decoders: bool = True
    jobs: int = 1
    device: str | None = None
    backend: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        check_methods(self.methods)
        check_jobs(self.jobs, kept=self.keep_decoders)
        load_size(self.size, self.set)
        for name in ("methods", "seeds", "sigmas", "train_fractions"):
            if not getattr(self, name):
                raise DecoderError(f"A table needs at least one of the {name.replace('_', ' ')}.")
        for fraction in self.train_fractions:
            if not 0 < fraction <= 1:
                raise DecoderError(f"--train-fraction must be above 0 and at most 1, not {fraction}.")
        for sigma in ("best", PAIRS) if self.split == "val" else ():
            if sigma in self.sigmas:
                raise MetricError(f"--sigma {sigma} uses the val split, so the table cannot be scored on that split.")

    def command(self, row: Row, store: Path) -> str:
        """Return the command that makes one row of the table."""
        parts = ["c3", "ablate", "--methods", row["method"], "--seeds", str(row["seeds"])]
        if METHODS[row["method"]].noisy:
            parts += ["--sigma", f"{row['sigma']:.6g}"]
        if row["train_fraction"] != 1:
            parts += ["--train-fraction", f"{row['train_fraction']:g}"]
        parts += ["--size", self.size]
        for override in self.set:
            parts += ["--set", override]
        if self.epochs is not None:
            parts += ["--epochs", str(self.epochs)]
        if self.generation.method == "beam":
            parts += ["--beams", str(self.generation.beams)]
            parts += ["--length-penalty", f"{self.generation.length_penalty:g}"]
        if self.test_store is not None:
            parts += ["--test-store", str(self.test_store)]
        if self.split != "test":
            parts += ["--split", self.split]
        parts += ["--store", str(store)]
        parts += ["--device", self.device] if self.device else []
        parts += ["--precision", self.precision] if self.precision != "auto" else []
        return shlex.join(parts)


def ablate(
    store: Store | str | Path = "c3-store",
    *,
    methods: str | Sequence[str] = ("C1", "C2_1", "C2_2", "C3"),
    seeds: int = 3,
    sigma: float | str | Sequence[float | str] = (0.1,),
    grid: str | Sequence[float] = (0.03, 0.045, 0.06, 0.08, 0.1),
    output: str | Path = "c3-ablation",
    split: str = "test",
    test_store: Store | str | Path | None = None,
    size: str | None = None,
    set: Sequence[str] = (),
    epochs: int | None = None,
    train_fraction: float | Sequence[float] = (1.0,),
    beams: int = 1,
    length_penalty: float = 0.7,
    keep_decoders: bool = True,
    jobs: int = 1,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    reporter: Reporter = SILENT,
) -> Ablation:
    """Train and score each method with each seed on a store, and write table.md and table.html to ``output``.

    Finished results (cells of the table) are kept there. The same call continues, and one with more methods, seeds or
    sigmas adds to them. The table is that of the last call.

    Args:
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        methods: Methods to compare, comma-separated, or all.
        seeds: Number of seeds per method: 0, 1, 2, ...
        sigma: Standard deviation of the noise, per dimension: a number, auto (derived from the captions), pairs (from
            the cosine of at least 10 images with their captions, as in c3 train-decoder), or best (the value of
            ``grid`` that scores highest on the val split, for each method).
        grid: Values that ``sigma`` best tries, comma-separated.
        output: The folder for results, table.md and table.html.
        split: The split whose images are captioned and scored, or all.
        test_store: Caption and score the images of this store, to test in another domain.
        size: Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra hf). By default small.
        set: Change settings of ``size``, such as dropout=0.2, learning_rate=1e-3 or model=PATH.
        epochs: Passes over the captions. The default depends on ``size``.
        train_fraction: Train on the captions of this fraction of the images.
        beams: Number of beams in beam search; 1 is greedy decoding.
        length_penalty: Beams are ranked by log-probability / length ** PENALTY.
        keep_decoders: Keep the trained decoders, so that other decoding options (such as ``beams``) need no new
            training.
        jobs: Trainings that run at the same time. Each gets a share of the cores, or its own GPU.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        backend: auto, torch, openvino or onnx (the last two are for CPUs and need the extra of that name).
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        reporter: Shows messages and progress.

    Raises:
        DecoderError: if a method or a setting is unknown, or there are too few captions.
        MetricError: if the split has no images with captions.
        StoreError: if texts or images are missing.
        OutputError: if ``output`` contains other files, or another run is writing to it.
    """
    names = _listed(methods)
    tested = Path(test_store) if isinstance(test_store, str) else test_store
    settings = _Settings(
        methods=tuple(METHODS) if names == ["all"] else tuple(names),
        seeds=tuple(range(seeds)),
        sigmas=tuple(dict.fromkeys(parse_sigma(value, also=(*RULES, "best")) for value in _several(sigma))),
        grid=tuple(float(parse_sigma(value, also=())) for value in _listed(grid)),
        size=size or "small",
        set=tuple(set),
        epochs=epochs,
        split=split,
        test_store=tested.path if isinstance(tested, Store) else tested,
        train_fractions=tuple(dict.fromkeys(_several(train_fraction))),
        generation=GenerationConfig.from_options(beams=beams, length_penalty=length_penalty),
        keep_decoders=keep_decoders,
        jobs=jobs,
        device=device,
        backend=backend,
        precision=precision,
    )
    folder = Path(output)
    with locked(folder), telling_what_is_kept(lambda: _kept(folder)):
        Output(folder, "ablation", FILES).holds_result()
        other = None if tested is None else Store.open(tested, reporter=reporter)
        return _ablate(Store.open(store, reporter=reporter), other, settings, folder, reporter)


def _ablate(store: Store, test_store: Store | None, settings: _Settings, folder: Path, reporter: Reporter) -> Ablation:
    """Compute the cells that are not finished, and write the table."""
    device, precision = settings.device, settings.precision
    compute = devices.pick(device, precision)
    encoder = None
    if asking := [name for name in settings.methods if METHODS[name].needs_encoder]:
        options: dict[str, Any] = {"device": device, "backend": settings.backend, "precision": precision}
        encoder = load_text_encoder(store.info.model, ", ".join(asking), **options, reporter=reporter)
    choose = "best" in settings.sigmas
    everything, notes = ablation_data(store, settings.split, choose=choose, test_store=test_store)
    runs: list[AblationRun] = []
    for fraction in settings.train_fractions:
        data = everything.sample(fraction)
        for note in [*notes, *_overlaps(data)]:
            reporter.message(note)
        cells = _Cells(data, settings, fraction, folder, reporter, compute, encoder)
        for source, sigmas in _sigmas(store, cells):
            cells.train_ahead((name, seed, value) for seed in settings.seeds for name, value in sigmas.items())
            for seed in settings.seeds:
                for run in cells.runs(sigmas, seed):
                    runs.append(replace(run, sigma_from=source, train_fraction=fraction))
                    reporter.message(f"{run.method}, seed {run.seed}: {CHOOSE_BY} {run.scores[CHOOSE_BY]:.1f}")
    table = Ablation(runs, settings.methods, everything, lambda row: settings.command(row, store.path))
    table.save(folder)
    return table


def _kept(folder: Path) -> str:
    """Return a sentence that says what is kept if the table is interrupted now."""
    if cells := len(list(folder.glob("cells/*/*.json"))):
        return f"{cells:,} finished results are kept in {folder}; run the same command again to compute the others."
    return "No result of the table was finished."


def _overlaps(data: AblationData) -> list[str]:
    scored = frozenset[str]() if data.foreign else frozenset(data.images.keys)
    notes = []
    overlap = scored.intersection(data.train.items)
    if overlap:
        notes.append(f"The captions of {len(overlap):,} scored images are among the training captions.")
    if scored.intersection(data.val.items):
        notes.append("The captions of the scored images are among those that the checkpoints are chosen on.")
    return notes


def _sigmas(store: Store, cells: _Cells) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the source of sigma and the sigma of each method; methods without noise are yielded once."""
    settings, noiseless = cells.settings, True
    for sigma in settings.sigmas:
        methods = [name for name in settings.methods if noiseless or METHODS[name].noisy]
        if not methods:
            continue
        if sigma == "best":
            chosen = cells.choose([name for name in methods if METHODS[name].noisy])
            yield "best", {name: chosen.get(name, 0.0) for name in methods}
        elif isinstance(sigma, str):
            value, why = sigma_by_rule(sigma, store)
            cells.reporter.message(why)
            yield sigma, dict.fromkeys(methods, value)
        else:
            yield "given", dict.fromkeys(methods, sigma)
        noiseless = False


class _Cells:
    """The cells of one table with one train fraction: the folder of finished ones, and the data for the others."""

    def __init__(
        self,
        data: AblationData,
        settings: _Settings,
        fraction: float,
        folder: Path,
        reporter: Reporter,
        compute: Compute,
        encoder: Encoder | None,
    ) -> None:
        self.data, self.settings, self.reporter, self.encoder = data, settings, reporter, encoder
        size = {"size": settings.size, "set": settings.set, "epochs": settings.epochs}
        self.training: dict[str, Any] = {**size, "compute": compute, "reporter": reporter}
        trained = _training_identity(data, settings, compute)
        ways = {method.steer: settings.generation for method in METHODS.values()}
        ways |= {steer: GenerationConfig.from_options(steer=steer) for steer in ways if steer is not None}
        self.identities = {steer: _cell_identity(trained, data, way) for steer, way in ways.items()}
        self.cells = folder / "cells"
        self.choices = folder / ("sigma.json" if fraction == 1 else f"sigma-fraction{fraction:g}.json")
        self.decoders = folder / "decoders" / trained[:_NAMED_DIGITS] if settings.keep_decoders else None

    def runs(self, sigmas: dict[str, float], seed: int) -> Iterator[AblationRun]:
        """Yield one run per method, each at its sigma; methods of one sigma are run together and share trainings."""
        for sigma in dict.fromkeys(sigmas.values()):
            pending = []
            for method in (name for name, own in sigmas.items() if own == sigma):
                run = self._read(method, seed, sigma)
                if run is None:
                    pending.append(method)
                else:
                    self.reporter.message(f"{method}, seed {seed}: already finished")
                    yield run
            for run in run_ablation(
                self.data,
                pending,
                seeds=(seed,),
                sigma=sigma,
                generation=self.settings.generation,
                encoder=self.encoder,
                decoders=self.decoders,
                **self.training,
            ):
                self._write(run, sigma)
                yield run

    def train_ahead(self, cells: Iterable[tuple[str, int, float]]) -> None:
        """Train the decoders of unfinished cells (method, seed, sigma), ``jobs`` at the same time."""
        if self.settings.jobs > 1 and self.decoders is not None:
            pending = [cell for cell in cells if self._read(*cell) is None]
            train_decoders(self.data, pending, self.decoders, jobs=self.settings.jobs, **self.training)

    def choose(self, methods: Sequence[str]) -> dict[str, float]:
        """Return the sigma of the grid with the best score on the val split, for each method, by the first seed."""
        tried: dict[str, dict[float, float]] = {name: {} for name in methods}
        first = self.settings.seeds[0]
        self.train_ahead((name, first, sigma) for sigma in self.settings.grid for name in methods)
        for sigma in self.settings.grid:
            for run in self.runs(dict.fromkeys(methods, sigma), first):
                tried[run.method][sigma] = run.choice_scores[CHOOSE_BY]
        chosen = {name: max(scores, key=scores.__getitem__) for name, scores in tried.items()}
        for name, scores in tried.items():
            listed = ", ".join(f"{sigma:g}: {score:.1f}" for sigma, score in scores.items())
            self.reporter.message(
                f"{name}: sigma {chosen[name]:g} is best on the val split ({CHOOSE_BY} by sigma {listed})"
            )
        plain = {name: {f"{sigma:g}": score for sigma, score in scores.items()} for name, scores in tried.items()}
        write_json_atomically(self.choices, {"split": "val", "metric": CHOOSE_BY, "scores": plain})
        return chosen

    def _path(self, method: str, seed: int, sigma: float) -> Path:
        strength = sigma if METHODS[method].noisy else 0.0
        identity = self.identities[METHODS[method].steer]
        return self.cells / identity[:_NAMED_DIGITS] / f"{method}-sigma{strength:g}-seed{seed}.json"

    def _write(self, run: AblationRun, sigma: float) -> None:
        content = {"identity": self.identities[METHODS[run.method].steer], "run": asdict(run)}
        write_json_atomically(self._path(run.method, run.seed, sigma), content)

    def _read(self, method: str, seed: int, sigma: float) -> AblationRun | None:
        try:
            content = json.loads(self._path(method, seed, sigma).read_text(encoding="utf-8"))
            run = AblationRun(**content["run"])
        except (OSError, *MALFORMED):
            return None
        own = METHODS[method]
        unscored = self.data.choice is not None and own.noisy and not run.choice_scores
        if content["identity"] != self.identities[own.steer] or unscored:
            return None
        if not run.image_values:  # of a version that did not keep them
            run = replace(run, image_values=image_values(score_captions(run.captions, self.data.references)))
            self._write(run, sigma)
        return run


def _training_identity(data: AblationData, settings: _Settings, compute: Compute) -> str:
    """Return a digest of everything that a trained decoder depends on, except its method, sigma and seed."""
    chosen = load_size(settings.size, settings.set)
    plain: dict[str, Any] = {
        "size": asdict(replace(chosen, training=training_config(chosen, epochs=settings.epochs))),
        "captions": [list(data.train.captions), list(data.val.captions)],
        "precision": compute.precision,
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    images = data.train_images.embeddings if data.train_images is not None else np.empty(0, np.float32)
    for array in (data.train.embeddings, data.val.embeddings, images):
        digest.update(np.ascontiguousarray(array).tobytes())
    for _, moments in sorted(data.moments.items()):
        digest.update(moments.mean.tobytes())
    return digest.hexdigest()


def _cell_identity(trained: str, data: AblationData, generation: GenerationConfig) -> str:
    """Return a digest of everything that a cell depends on, except method, seed and sigma."""
    plain: dict[str, Any] = {
        "trained": trained,
        "generation": asdict(generation),
        "references": {key: list(data.references[key]) for key in data.images.keys},
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(data.images.embeddings).tobytes())
    return digest.hexdigest()


def _listed(values: Any) -> list[Any]:
    """Return the values of a sequence, or of a text in which they are separated by commas."""
    return [part.strip() for part in values.split(",") if part.strip()] if isinstance(values, str) else list(values)


def _several(values: Any) -> list[Any]:
    """Return the values of a sequence, or the one value."""
    return [values] if isinstance(values, str | float | int) else list(values)
