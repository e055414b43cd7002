"""Training a captioner: from the captions or the images of a store to a decoder folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import devices
from ..errors import DecoderError, telling_what_is_kept
from ..io.files import remove_leftovers
from ..io.outputs import Output
from ..reporter import SILENT, Reporter
from ..store import Store
from ..training.checkpoints import CheckpointDir
from ..training.tensorboard import tensorboard as record_scalars
from ..transforms import Pipeline
from ..transforms import preset as named_pipeline
from ..transforms.fitting import note_on_moments
from ..transforms.presets import chosen_sigma
from ..transforms.sigma import AUTO, parse_sigma, sigma_by_rule
from .captioner import Captioner, decoder_output, describe_decoder
from .config import (
    UNCONDITIONAL,
    fine_tuned_size,
    load_size,
    plan_training,
)
from .curves import save_curves
from .training import fit_captioner
from .training_rows import (
    inputs_to_learn,
    training_captions,
    training_images,
)

DEFAULT_PRESET = "c3"
LANGUAGE_MODEL_PRESET = "c1"  # its inputs are not read; images and texts are compared as the encoder gives them
MONITORS = ("text", "cross-modal")


def train_captioner(
    store: Store | str | Path = "c3-store",
    pipeline: Pipeline | None = None,
    *,
    output: str | Path = "c3-decoder",
    preset: str | None = None,
    sigma: float | str | None = None,
    size: str = "small",
    set: Sequence[str] = (),
    unconditional: bool = False,
    epochs: int | None = None,
    train_split: str = "train",
    train_fraction: float = 1.0,
    patience: int | None = None,
    monitor: str = "text",
    start: str | Path | None = None,
    pairs: float | None = None,
    esper: bool = False,
    seed: int = 0,
    tensorboard: str | Path | None = None,
    device: str | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Captioner:
    """Train a decoder on the text embeddings of a store, and write it to the folder ``output``.

    With ``pairs`` it is trained on images instead: after a training on texts (``start``) with the noise of that
    training, which is the low-data regime of the paper; or from scratch, without noise unless sigma is given. The state
    of the run is saved in a folder beside ``output``. The same call continues an interrupted run, and returns the
    decoder of a finished run.

    With ``unconditional`` it is a language model of the captions, which reads no embedding: what MAGIC and ZeroCap
    steer by the encoder while they write. With ``esper`` a mapper in front of one (``start``) learns from images alone,
    rewarded by the encoder (`c3tools.captioning.esper`).

    Args:
        store: The store of embeddings: a folder or a URL (s3://, gs://).
        pipeline: Used instead of a preset; fitted on the store if it is not yet fitted.
        output: The folder to write the decoder to.
        preset: The preset: c3, c1, c2-collapse, c2-corrupt, capdec, ... By default c3.
        sigma: Standard deviation of the noise, per dimension. auto: derived from how much captions of the same image
            differ. pairs: from the cosine of at least 10 images with their captions, those of the val split or of all
            splits but test. By default auto.
        size: Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra hf).
        set: Change settings of ``size``, such as dropout=0.2, learning_rate=1e-3 or model=PATH.
        unconditional: Train a language model of the captions, without a prefix, which --steer of c3 caption steers.
        epochs: Passes over the captions. The default depends on ``size``.
        train_split: The split to train on.
        train_fraction: Use the captions of this fraction of the images.
        patience: Stop after this many epochs without improvement.
        monitor: Choose the best epoch by the loss on val captions (text) or on captions of val images (cross-modal).
        start: Start from this decoder, and use its pipeline unless ``preset`` is given.
        pairs: Train on pairs: the images and captions of this fraction of the images.
        esper: Put a mapper before the language model of ``start``; train it on images alone.
        seed: Seed for all random numbers.
        tensorboard: Also write the losses to this folder, for TensorBoard.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        precision: auto, fp32, bf16, fp16, or int8 (encoders on a CPU; needs the extra int8).
        overwrite: Replace an existing result that has other settings. It is kept as OUTPUT.previous.
        reporter: Shows messages and progress.

    Returns:
        The captioner, as `Captioner.load` reads it from ``output``.

    Raises:
        StoreError: if the store has no texts, or no images if they are needed.
        DecoderError: if there are too few captions, the settings contradict each other, or the decoder to start from
            has another model.
        OutputError: if ``output`` contains another decoder or other files, another run is writing to it, or it is
            ``start``.
        TransformError: if sigma, the preset or the pipeline cannot be used.
    """
    sigma = None if sigma is None else parse_sigma(sigma)
    own_pipeline = start is not None and preset is None and pipeline is None  # that of the decoder to start from
    _check_options(preset, sigma, pipeline, own_pipeline, train_fraction, pairs, monitor)
    if esper:
        _check_esper(start, own_pipeline, set, pairs, monitor, train_fraction, patience, unconditional)
    if unconditional:
        _check_unconditional(preset, sigma, pipeline, start, pairs, monitor)
        preset, set = LANGUAGE_MODEL_PRESET, (*UNCONDITIONAL, *set)
    if pipeline is None and not own_pipeline:
        sigma = chosen_sigma(preset or DEFAULT_PRESET, sigma, AUTO if pairs is None else 0.0)
    output = Path(output)
    target, load = decoder_output(output, overwrite), partial(Captioner.load, output, trainable=True)
    if start is not None:
        target.refuse_start(start)
    compute = devices.pick(device, precision)
    checkpoints = CheckpointDir.beside(output, overwrite=overwrite)
    with checkpoints.locked(output):
        target.ask(
            {
                "preset": pipeline.name if pipeline is not None else None if own_pipeline else preset or DEFAULT_PRESET,
                "sigma": pipeline.sigma or 0.0 if pipeline is not None else None if own_pipeline else sigma,
                "size": size,
                "set": list(set),
                "epochs": epochs,
                "train_split": train_split,
                "train_fraction": train_fraction,
                "patience": patience,
                "monitor": monitor,
                "from": None if start is None else str(start),
                "pairs": pairs,
                "seed": seed,
                "precision": compute.precision,
            }
            | ({"esper": True} if esper else {}),
            lambda: describe_decoder(output),
        )
        store = Store.open(store, reporter=reporter)
        previous = None if start is None else Captioner.load(Path(start), trainable=True)
        if previous is not None:
            previous.check_model(store.info.model, store.info.dim)
            size = str(previous.record.get("size", size))
            if previous.is_language_model and not (own_pipeline and pairs is None and monitor == "text"):
                raise DecoderError(
                    f"The decoder at {start} is a language model: it reads no embedding.",
                    remedy="Leave out --preset, --pairs and --monitor, or continue from another decoder.",
                )
            set = (*UNCONDITIONAL[1:], *set) if previous.is_language_model else set
        options: dict[str, Any] = {
            "compute": compute,
            "checkpoints": checkpoints,
            "finished": lambda digest: load() if target.is_done(digest, load) else None,
        }
        if esper and previous is not None:
            captioner = _fit_esper(store, previous, start, train_split, epochs, seed, target, reporter, options)
            _finish(captioner, target, checkpoints, reporter)
            return captioner
        chosen = load_size(size, set) if previous is None else fine_tuned_size(size, set)
        train, val, notes = training_captions(store, train_split, spill=True)
        if train_fraction < 1:
            train = train.sample(train_fraction)
            notes.append(f"Using {len(train):,} captions of {train_fraction:.0%} of the images.")
        learned, validated, pair_notes = inputs_to_learn(store, train, val, pairs, monitor, seed)
        notes += pair_notes
        for note in notes:
            reporter.message(note)
        continued = previous if own_pipeline else None
        pipeline, noise = _pipeline_of(continued, pipeline, preset, sigma, store, train_split, reporter)
        if not any(map(pipeline.knows, {"image", *store.modalities} - {"text"})):
            notes.append(note_on_moments(pipeline.name, "text", "image", train_split))
            reporter.message(notes[-1])
        record: dict[str, Any] = {"model": dict(store.info.model), "sigma": noise, "notes": notes}
        record |= {"pairs": pairs} if pairs is not None else {}
        record |= {"from": str(start)} if start is not None else {}
        with record_scalars(tensorboard, reporter) as recorder:
            captioner = fit_captioner(
                learned,
                validated,
                pipeline,
                size=size,
                set=set,
                training=plan_training(chosen, len(learned), set, epochs=epochs, patience=patience, seed=seed),
                record=record | {"asked": target.asked},
                start=previous,
                label="Training a language model" if unconditional else f"Training {pipeline.name}",
                reporter=recorder,
                **options,
            )
        _finish(captioner, target, checkpoints, reporter)
    return captioner


def _check_options(
    preset: str | None,
    sigma: float | str | None,
    pipeline: Pipeline | None,
    own_pipeline: bool,
    train_fraction: float,
    pairs: float | None,
    monitor: str,
) -> None:
    if own_pipeline and sigma is not None:
        raise DecoderError(
            "Sigma comes from the decoder given by --from, as its pipeline does.",
            remedy="Leave out --sigma, or give a --preset for it, which takes the place of the decoder's pipeline.",
        )
    if pipeline is not None and not (preset is None and sigma is None):
        raise DecoderError(
            "A pipeline was given together with a preset or sigma, but it has its own steps and sigma.",
            remedy="Leave out preset and sigma.",
        )
    if not 0 < train_fraction <= 1:
        raise DecoderError(f"--train-fraction must be above 0 and at most 1, not {train_fraction}.")
    if pairs is not None and not 0 < pairs <= 1:
        raise DecoderError(f"--pairs must be above 0 and at most 1, not {pairs}.")
    if monitor not in MONITORS:
        raise DecoderError(f"There is no --monitor {monitor!r}.", remedy=f"Choose from {', '.join(MONITORS)}.")


def _check_unconditional(
    preset: str | None,
    sigma: float | str | None,
    pipeline: Pipeline | None,
    start: str | Path | None,
    pairs: float | None,
    monitor: str,
) -> None:
    if not (preset is None and sigma is None and pipeline is None and pairs is None and monitor == "text"):
        raise DecoderError(
            "A language model reads no embedding, so nothing about embeddings can be set.",
            remedy="Leave out --preset, --sigma, --pairs and --monitor, or --unconditional.",
        )
    if start is not None:
        raise DecoderError(
            "The architecture is that of the decoder to continue from.", remedy="Leave out --unconditional or --from."
        )


def _check_esper(
    start: str | Path | None,
    own_pipeline: bool,
    set: Sequence[str],
    pairs: float | None,
    monitor: str,
    train_fraction: float,
    patience: int | None,
    unconditional: bool,
) -> None:
    if start is None:
        raise DecoderError(
            "ESPER starts from a language model.",
            remedy="Train one with `c3 train-decoder --unconditional -o c3-lm`, and name it with --from c3-lm.",
        )
    changed = set or unconditional or pairs is not None or monitor != "text" or patience is not None
    if changed or train_fraction != 1 or not own_pipeline:
        raise DecoderError(
            "ESPER learns from all images by its own settings.",
            remedy="Of the settings of training, give --epochs, --train-split and --seed alone.",
        )


def _fit_esper(
    store: Store,
    language_model: Captioner,
    start: str | Path | None,
    train_split: str,
    epochs: int | None,
    seed: int,
    target: Output,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> Captioner:
    from .esper import ESPER_TRAINING, fit_esper
    from .steering import load_text_encoder

    train, val, notes = training_images(store, train_split)
    for note in notes:
        reporter.message(note)
    encoder = load_text_encoder(store.info.model, "ESPER", device=options["compute"].device, reporter=reporter)
    record = {"model": dict(store.info.model), "notes": notes, "from": str(start), "asked": target.asked}
    training = replace(ESPER_TRAINING, seed=seed, epochs=epochs or ESPER_TRAINING.epochs)
    return fit_esper(
        train, val, language_model, encoder, training=training, record=record, reporter=reporter, **options
    )


def _finish(captioner: Captioner, target: Output, checkpoints: CheckpointDir, reporter: Reporter) -> None:
    """Write the decoder and its curves, unless they exist, and remove the saved state of the run."""
    with telling_what_is_kept(
        lambda: "The training is finished and saved; run the same command again to write the decoder."
    ):
        target.write(captioner.save, reporter)
        remove_leftovers(target.folder)
        save_curves(captioner.record, target.folder)
        checkpoints.clear()


def _pipeline_of(
    continued: Captioner | None,
    pipeline: Pipeline | None,
    preset: str | None,
    sigma: float | str | None,
    store: Store,
    split: str,
    reporter: Reporter,
) -> tuple[Pipeline, float]:
    """Return the fitted pipeline to train with, and its sigma: of a decoder, the given one, or a preset."""
    if continued is not None:
        return continued.pipeline, float(continued.record.get("sigma", 0.0))
    if pipeline is not None:
        if not pipeline.fitted:
            pipeline = pipeline.fit(store, split=split)
        pipeline.check_model(store.info.model)
        return pipeline, float(pipeline.sigma or 0)
    return _preset_pipeline(preset or DEFAULT_PRESET, sigma, store, split, reporter)


def _preset_pipeline(
    name: str, sigma: float | str | None, store: Store, split: str, reporter: Reporter
) -> tuple[Pipeline, float]:
    """Return a preset fitted on the store, and its sigma."""
    noise, origin = sigma or 0.0, dict[str, str]()
    if isinstance(noise, str):
        noise, why = sigma_by_rule(noise, store, split)
        reporter.message(f"{why}. Choose another with --sigma.")
        origin["sigma"] = why
    return named_pipeline(name, sigma=noise).fit(store, split=split, provenance=origin), noise
