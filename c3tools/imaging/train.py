"""Training a generator: from the image rows of a store and their photos to a generator folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from .. import devices
from ..devices import Compute
from ..errors import GeneratorError, telling_what_is_kept
from ..io.files import find_leftovers, remove_leftovers, sync_folder
from ..io.outputs import Output
from ..pages import palette
from ..pages.figures import new_figure, save_figure, styled
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator, keyed_normal
from ..store import Store
from ..store.reader import training_split
from ..training.checkpoints import CheckpointDir
from ..training.tensorboard import tensorboard as record_scalars
from ..transforms import Pipeline
from ..transforms import preset as named_pipeline
from ..transforms.fitting import note_on_moments
from ..transforms.presets import chosen_sigma
from ..transforms.sigma import AUTO, parse_sigma, sigma_by_rule
from .generator import Generator, describe_generator, generator_output
from .model import ImageNetwork, TrainingConfig, load_size, sample
from .photos import Photos, read_photos
from .sheet import contact_sheet, in_rows, save_image
from .training import MAX_VALIDATED, Trainer

DEFAULT_PRESET = "c3"
SAMPLES_FILE = "samples.png"
CURVES_FILE = "curves.png"
_SHOWN = 16  # photos of the sheet of samples, each above what is generated from its embedding
_SHEET_STEPS = 15


def train_generator(
    store: Store | str | Path = "c3-store",
    pipeline: Pipeline | None = None,
    *,
    output: str | Path = "c3-generator",
    preset: str | None = None,
    sigma: float | str | None = None,
    size: str = "tiny",
    set: Sequence[str] = (),
    steps: int | None = None,
    train_split: str = "train",
    train_fraction: float = 1.0,
    download: bool = False,
    seed: int = 0,
    tensorboard: str | Path | None = None,
    device: str | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Generator:
    """Train an image generator on the photos of a store and their image embeddings, and write it to ``output``.

    No text is read. The generator is trained to make each photo from the embedding of this photo; later it gets the
    embedding of a text instead. Both are collapsed by the mean of their own modality (C3, Zhang et al., ICLR 2024,
    trained image to image). The state of the run is saved in a folder beside ``output``. The same call continues an
    interrupted run, and returns the generator of a finished run.

    Args:
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        pipeline: Used instead of a preset; fitted on the store if it is not yet fitted.
        output: The folder to write the generator to.
        preset: The preset: c3, c1, c2-collapse, c2-corrupt, lafite, ... By default c3.
        sigma: Standard deviation of the noise, per dimension. auto: derived from the distance of photos to their
            nearest neighbour. pairs: from the cosine of at least 10 photos with their captions, those of the val split
            or of all splits but test. By default auto.
        size: Size of the images: tiny (32 pixels, for a CPU), small (64 pixels) or base (128 pixels, for a GPU).
        set: Change settings of ``size``, such as learning_rate=5e-4 or batch_size=32.
        steps: Number of training steps. The default depends on ``size``.
        train_split: The split to train on.
        train_fraction: Use this fraction of the photos.
        download: Download photos that are given by URL.
        seed: Seed for all random numbers.
        tensorboard: Also write the losses to this folder, for TensorBoard.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        overwrite: Replace an existing result that has other settings. It is kept as OUTPUT.previous.
        reporter: Shows messages and progress.

    Returns:
        The generator, as `Generator.load` reads it from ``output``.

    Raises:
        StoreError: if the store has no images.
        GeneratorError: if photos are missing, or settings contradict each other.
        OutputError: if ``output`` contains another generator or other files, or another run is writing to it.
        TransformError: if sigma, the preset or the pipeline cannot be used.
        MissingExtraError: if diffusers is not installed.
    """
    if sigma is not None:
        sigma = parse_sigma(sigma)
    if pipeline is not None and not (preset is None and sigma is None):
        raise GeneratorError(
            "A pipeline was given together with a preset or sigma, but it has its own steps and sigma.",
            remedy="Leave out preset and sigma.",
        )
    if not 0 < train_fraction <= 1:
        raise GeneratorError(f"--train-fraction must be above 0 and at most 1, not {train_fraction}.")
    if pipeline is None:
        sigma = chosen_sigma(preset or DEFAULT_PRESET, sigma, AUTO)
    chosen = load_size(size, set)
    training = replace(chosen.training, seed=seed, steps=chosen.training.steps if steps is None else steps)
    output = Path(output)
    target, compute = generator_output(output, overwrite), devices.pick(device, precision)
    load = partial(Generator.load, output, compute)
    checkpoints = CheckpointDir.beside(output, overwrite=overwrite)
    with checkpoints.locked(output):
        target.ask(
            {
                "preset": pipeline.name if pipeline is not None else preset or DEFAULT_PRESET,
                "sigma": pipeline.sigma or 0.0 if pipeline is not None else sigma,
                "size": size,
                "set": list(set),
                "steps": training.steps,
                "train_split": train_split,
                "train_fraction": train_fraction,
                "seed": seed,
                "precision": compute.precision,
            },
            lambda: describe_generator(output),
        )
        store = Store.open(store, reporter=reporter)
        train, val, notes = training_photos(
            store, chosen.pixels, train_split, fraction=train_fraction, download=download, spill=True, reporter=reporter
        )
        for note in notes:
            reporter.message(note)
        pipeline = fitted_pipeline(store, pipeline, preset, sigma, train_split, reporter)
        if not pipeline.knows("text"):
            notes.append(note_on_moments(pipeline.name, "image", "text", train_split))
            reporter.message(notes[-1])
        record = {
            "model": dict(store.info.model),
            "sigma": float(pipeline.sigma or 0),
            "notes": notes,
            "asked": target.asked,
        }
        with record_scalars(tensorboard, reporter) as recorder:
            made = fit_generator(
                train,
                val,
                pipeline,
                size=size,
                set=set,
                training=training,
                compute=compute,
                record=record,
                checkpoints=checkpoints,
                samples=output.with_name(f"{output.name}.{SAMPLES_FILE}"),
                finished=lambda digest: load() if target.is_done(digest, load) else None,
                label=f"Training {pipeline.name}",
                reporter=recorder,
            )
        _finish(made, target, checkpoints, reporter)
    return made


def fit_generator(
    train: Photos,
    val: Photos,
    pipeline: Pipeline,
    *,
    size: str = "tiny",
    set: Sequence[str] = (),
    training: TrainingConfig | None = None,
    compute: Compute | None = None,
    record: Mapping[str, Any] | None = None,
    checkpoints: CheckpointDir | None = None,
    samples: Path | None = None,
    finished: Callable[[str], Generator | None] = lambda identity: None,
    label: str = "Training",
    reporter: Reporter = SILENT,
) -> Generator:
    """Train a generator on photos.

    Args:
        train: photos to learn from, with their embeddings.
        val: other photos that the checkpoint is chosen on.
        pipeline: fitted; its noise goes to the training inputs.
        size, set: as `train_generator` takes them.
        training: settings; those of the size when None.
        compute: device and precision; the fastest available when None.
        record: kept in the generator's record, beside what is known here.
        checkpoints: where the run is saved, to be continued after it was interrupted; None saves nothing.
        samples: file for a sheet of samples that is made again at each validation; None for none.
        finished: takes a digest of all that the training depends on, and returns its generator if there is one already.
        label: what the progress is called.
        reporter: shows messages and progress.

    Raises:
        GeneratorError: if the loss is not finite before any checkpoint was kept.
    """
    chosen = load_size(size, set)
    training, compute = training or chosen.training, compute or devices.pick()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(training.seed, "initialise").integers(2**62)))
        network = ImageNetwork(chosen.config(train.rows.embeddings.shape[1]))
    trainer = Trainer(network, train, val, pipeline, training, compute)
    if trainer.batch_size < training.batch_size:
        reporter.message(
            f"There are {len(train):,} photos, fewer than a batch of {training.batch_size}, so all of them are one "
            "batch."
        )
    done = finished(trainer.identity)
    if done is not None:
        return done
    sheet = _Sheet(trainer, samples, reporter)
    trainer.run(checkpoints, on_validation=sheet.draw, label=label, reporter=reporter)
    content = {
        **dict(record or {}),
        "identity": trainer.identity,
        "preset": pipeline.name,
        "size": size,
        "changes": list(set),
        "seed": training.seed,
        "dim": network.config.dim,
        "photos": {"train": len(train), "val": len(trainer.val)},
        "training": {**asdict(training), "precision": compute.precision},
        "trace": [list(point) for point in trainer.state.trace],
        "validations": [list(point) for point in trainer.state.validations],
        "best_val_loss": trainer.state.best_val_loss,
        "seconds": round(trainer.state.seconds, 1),
    }
    return Generator(trainer.network, pipeline, content, compute)


def fitted_pipeline(
    store: Store,
    pipeline: Pipeline | None,
    preset: str | None,
    sigma: float | str | None,
    split: str,
    reporter: Reporter = SILENT,
) -> Pipeline:
    """Return the pipeline of a training, fitted on the store: train on images, infer on texts.

    Raises:
        TransformError: if the pipeline is of another model, or cannot be fitted.
    """
    if pipeline is not None:
        if not pipeline.fitted:
            pipeline = pipeline.fit(store, split=split)
        pipeline.check_model(store.info.model)
        return pipeline
    noise, origin = sigma or 0.0, dict[str, str]()
    if isinstance(noise, str):
        noise, why = sigma_by_rule(noise, store, split, noised="image")
        reporter.message(f"{why}. Choose another with --sigma.")
        origin["sigma"] = why
    unfitted = named_pipeline(preset or DEFAULT_PRESET, sigma=noise, train_on="image", infer_on="text")
    return unfitted.fit(store, split=split, provenance=origin)


def training_photos(
    store: Store,
    pixels: int,
    split: str = "train",
    *,
    fraction: float = 1.0,
    download: bool = False,
    spill: bool = False,
    reporter: Reporter = SILENT,
) -> tuple[Photos, Photos, list[str]]:
    """Read the photos to learn from and others to validate on, with what the user should know about them.

    Where the store has no ``val`` split, a tenth of the training photos (by a stable hash of their keys) is held out.
    For ``spill`` see `Store.load`.

    Raises:
        StoreError: if the store has no images.
        GeneratorError: if the split has no photos, or too few to hold some out, or none can be read.
    """
    train, val, why = training_split(store, "image", split, called="images", error=GeneratorError)
    notes = [store.split_note] if store.split_note else []
    if why:
        notes.append(f"{why}, so {counted(len(val), 'photo is', 'photos are')} held out.")
    if fraction < 1:
        train = train.sample(fraction)
        notes.append(f"Using {counted(len(train), 'photo')}, {fraction:.0%} of all.")
    if not len(train) or not len(val):
        raise GeneratorError(
            f"Training needs photos for training and for validation, but there are {len(train)} and {len(val)}.",
            remedy="Embed more photos.",
        )
    learned = read_photos(store, train, pixels, download=download, spill=spill, reporter=reporter)
    validated = read_photos(
        store,
        val.select(np.sort(val.hash_order("validated")[:MAX_VALIDATED])),
        pixels,
        download=download,
        label="Reading others",
        reporter=reporter,
    )
    return learned, validated, [*notes, *learned.notes, *validated.notes]


class _Sheet:
    """The sheet of samples of a running training: validation photos, each above the image from its embedding."""

    def __init__(self, trainer: Trainer, path: Path | None, reporter: Reporter) -> None:
        self._trainer, self._path, self._reporter = trainer, path, reporter

    def draw(self, network: ImageNetwork, step: int) -> None:
        """Write the sheet, as of a step."""
        if self._path is None:
            return
        trainer, pixels = self._trainer, network.config.pixels
        shown = trainer.val.pixels[:_SHOWN]
        keys = trainer.val.rows.keys[:_SHOWN]
        noise = torch.from_numpy(keyed_normal(trainer.config.seed, 0, keys, 3 * pixels**2))
        made = sample(
            network,
            trainer.val_inputs[:_SHOWN],
            noise.view(-1, 3, pixels, pixels),
            trainer.compute,
            steps=_SHEET_STEPS,
        ).numpy()
        columns = _SHOWN // 2
        rows = [
            row
            for pair in zip(in_rows(list(shown), columns), in_rows(list(made), columns), strict=True)
            for row in pair
        ]
        first = not trainer.state.validations[1:]
        save_image(contact_sheet(rows), self._path)
        if first:
            self._reporter.message(
                f"{self._path} shows samples below the photos they belong to, and is updated during training."
            )


@styled
def training_curves(record: Mapping[str, Any]) -> Figure:
    """Draw the losses of a generator's record (``trace``, ``validations``, ``best_val_loss``)."""
    figure, axes = new_figure(6.4, 3.4)
    axes.plot(*zip(*record["trace"], strict=True), color=palette.FIRST, linewidth=1.0, label="training")
    steps, losses = zip(*record["validations"], strict=True)
    axes.plot(steps, losses, "o-", color=palette.SECOND, markersize=4, label="validation: photos, no noise")
    best = record["best_val_loss"]
    axes.plot(steps[losses.index(best)], best, "o", color=palette.SECOND, markersize=8)
    axes.set_title(f"{record['preset']}, sigma {record.get('sigma', 0):.3g}")
    axes.set(xlabel="step", ylabel="mean squared error of the velocity")
    axes.legend()
    return figure


def _finish(made: Generator, target: Output, checkpoints: CheckpointDir, reporter: Reporter) -> None:
    """Write the generator, unless it already exists, with its curves, and remove what the run has saved."""
    folder = target.folder
    with telling_what_is_kept(
        lambda: "The training is finished and saved; run the same command again to write the generator."
    ):
        target.write(made.save, reporter)
        remove_leftovers(folder)
        for left in find_leftovers(folder.parent, {f"{folder.name}.{SAMPLES_FILE}"}):
            left.unlink(missing_ok=True)
        save_figure(training_curves(made.record), folder / CURVES_FILE)
        samples = folder.with_name(f"{folder.name}.{SAMPLES_FILE}")
        if samples.is_file():
            samples.replace(folder / SAMPLES_FILE)
            sync_folder(folder)
        checkpoints.clear()
