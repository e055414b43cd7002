"""Training a captioner: from the captions, the pairs or the images of a store to a decoder folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import devices
from ..errors import DecoderError, StoreError
from ..io.artifact import claimed
from ..reporter import SILENT, Reporter, counted
from ..store import Pairs, Rows, Store
from ..store.reader import training_split
from ..training.checkpoints import CheckpointDir
from ..training.tensorboard import tensorboard as record_scalars
from ..transforms import Pipeline
from ..transforms import preset as named_pipeline
from ..transforms.fitting import note_on_moments
from ..transforms.presets import chosen_sigma
from ..transforms.sigma import AUTO, parse_sigma
from .baselines.esper import ESPER_TRAINING
from .baselines.steering import load_text_encoder
from .captioner import DECODER, Captioner
from .config import UNCONDITIONAL, fine_tuned_size, load_size, plan_training
from .evaluate import require_captions
from .tokenizer import drop_empty
from .training import fit_captioner, fit_esper

DEFAULT_PRESET = "c3"
LANGUAGE_MODEL_PRESET = "c1"  # its inputs are not read; images and texts are compared as the encoder gives them
MONITORS = ("text", "cross-modal")
_NO_SETTINGS = ("store", "pipeline", "output", "tensorboard", "device", "overwrite", "reporter")


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
    rewarded by the encoder (`c3tools.captioning.baselines.esper`).

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
    settings = {name: value for name, value in locals().items() if name not in _NO_SETTINGS}
    sigma = None if sigma is None else parse_sigma(sigma)
    own_pipeline = start is not None and preset is None and pipeline is None  # that of the decoder to start from
    _check_options(settings, pipeline, own_pipeline)
    if unconditional:
        preset, set = LANGUAGE_MODEL_PRESET, (*UNCONDITIONAL, *set)
    if pipeline is None and not own_pipeline:
        preset = preset or DEFAULT_PRESET
        sigma = chosen_sigma(preset, sigma, AUTO if pairs is None else 0.0)
    compute, output = devices.pick(device, precision), Path(output)
    settings |= {"preset": preset, "sigma": sigma, "set": set, "precision": compute.precision}
    if pipeline is not None:
        settings |= {"preset": pipeline.name, "sigma": pipeline.sigma or 0.0}
    checkpoints = CheckpointDir.beside(output, overwrite=overwrite)
    claim = claimed(output, DECODER, settings, overwrite=overwrite, start=start, reporter=reporter)
    with claim as target, record_scalars(tensorboard, reporter) as recorder:
        store = Store.open(store, reporter=reporter)
        previous = None if start is None else Captioner.load(start)
        if previous is not None:
            previous.check_model(store.info.model, store.info.dim)
            size = str(previous.record.get("size", size))
        if previous is not None and previous.is_language_model:
            _check_language_model(start, own_pipeline and pairs is None and monitor == "text")
            set = (*UNCONDITIONAL[1:], *set)
        record: dict[str, Any] = {"model": dict(store.info.model)}
        record |= {"from": str(start)} if start is not None else {}
        options: dict[str, Any] = {
            "compute": compute,
            "record": record,
            "checkpoints": checkpoints,
            "target": target,
            "reporter": recorder,
        }
        if esper and previous is not None:
            captioner = _train_esper(store, previous, train_split, epochs, seed, options)
        else:
            train, val, notes = _rows_to_learn(store, train_split, train_fraction, pairs, monitor, seed)
            for note in notes:
                reporter.message(note)
            if previous is not None and own_pipeline:
                pipeline, record["sigma"] = previous.pipeline, float(previous.record.get("sigma", 0.0))
            else:
                pipeline = _fitted_pipeline(pipeline, preset, sigma, store, train_split, reporter)
                record["sigma"] = float(pipeline.sigma or 0)
            if not any(map(pipeline.knows, {"image", *store.modalities} - {"text"})):
                notes.append(note_on_moments(pipeline.name, "text", "image", train_split))
                reporter.message(notes[-1])
            record |= {"notes": notes} | ({} if pairs is None else {"pairs": pairs})
            chosen = load_size(size, set) if previous is None else fine_tuned_size(size, set)
            training = plan_training(chosen, len(train), set, epochs=epochs, patience=patience, seed=seed)
            label = "Training a language model" if unconditional else f"Training {pipeline.name}"
            options |= {"size": size, "set": set, "start": previous, "label": label}
            captioner = fit_captioner(train, val, pipeline, training=training, **options)
        target.write(captioner.save)
        checkpoints.clear()
    return captioner


def _check_options(asked: dict[str, Any], pipeline: Pipeline | None, own_pipeline: bool) -> None:
    """Refuse arguments of `train_captioner` that contradict each other, or that are out of range."""
    preset, sigma, start, pairs, monitor = (asked[name] for name in ("preset", "sigma", "start", "pairs", "monitor"))
    fraction = asked["train_fraction"]
    of_texts = pairs is None and monitor == "text"
    own_training = asked["set"] or asked["unconditional"] or asked["patience"] is not None or fraction != 1
    refused = [
        (
            own_pipeline and sigma is not None,
            "Sigma comes from the decoder given by --from, as its pipeline does.",
            "Leave out --sigma, or give a --preset for it, which takes the place of the decoder's pipeline.",
        ),
        (
            pipeline is not None and not (preset is None and sigma is None),
            "A pipeline was given together with a preset or sigma, but it has its own steps and sigma.",
            "Leave out preset and sigma.",
        ),
        (not 0 < fraction <= 1, f"--train-fraction must be above 0 and at most 1, not {fraction}.", None),
        (pairs is not None and not 0 < pairs <= 1, f"--pairs must be above 0 and at most 1, not {pairs}.", None),
        (monitor not in MONITORS, f"There is no --monitor {monitor!r}.", f"Choose from {', '.join(MONITORS)}."),
        (
            asked["esper"] and start is None,
            "ESPER starts from a language model.",
            "Train one with `c3 train-decoder --unconditional -o c3-lm`, and name it with --from c3-lm.",
        ),
        (
            asked["esper"] and (own_training or not (of_texts and own_pipeline)),
            "ESPER learns from all images by its own settings.",
            "Of the settings of training, give --epochs, --train-split and --seed alone.",
        ),
        (
            asked["unconditional"] and not (preset is None and sigma is None and pipeline is None and of_texts),
            "A language model reads no embedding, so nothing about embeddings can be set.",
            "Leave out --preset, --sigma, --pairs and --monitor, or --unconditional.",
        ),
        (
            asked["unconditional"] and start is not None,
            "The architecture is that of the decoder to continue from.",
            "Leave out --unconditional or --from.",
        ),
    ]
    for wrong, message, remedy in refused:
        if wrong:
            raise DecoderError(message, remedy=remedy)


def _check_language_model(start: object, reads_nothing: bool) -> None:
    if not reads_nothing:
        raise DecoderError(
            f"The decoder at {start} is a language model: it reads no embedding.",
            remedy="Leave out --preset, --pairs and --monitor, or continue from another decoder.",
        )


def _train_esper(
    store: Store, language_model: Captioner, split: str, epochs: int | None, seed: int, options: dict[str, Any]
) -> Captioner:
    """Train ESPER's mapper on the images of a store; the options are those of `fit_esper`."""
    train, val, notes = training_images(store, split)
    for note in notes:
        options["reporter"].message(note)
    options["record"]["notes"] = notes
    device, reporter = options["compute"].device, options["reporter"]
    encoder = load_text_encoder(store.info.model, "ESPER", device=device, reporter=reporter)
    training = replace(ESPER_TRAINING, seed=seed, epochs=epochs or ESPER_TRAINING.epochs)
    return fit_esper(train, val, language_model, encoder, training=training, **options)


def training_captions(store: Store, split: str = "train") -> tuple[Rows, Rows, list[str]]:
    """Read the captions to learn from and others to validate on, with what the user should know about them.

    Captions without a letter of any script are left out. Where the store has no ``val`` split, a tenth of the
    training images (by a stable hash of their keys) is held out with all their captions.

    Raises:
        StoreError: if the store has no texts, or they have no captions.
        DecoderError: if the split has no captions, or too few to hold some out.
    """
    require_captions(store)
    train, val, why = training_split(store, "text", split, called="captions", error=DecoderError)
    notes = [store.split_note] if store.split_note else []
    if why:
        held = f"{counted(len(val), 'caption')} of {counted(val.item_count, 'image is', 'images are')}"
        notes.append(f"{why}, so {held} held out.")
    (train, train_note), (val, val_note) = drop_empty(train), drop_empty(val)
    notes += [note for note in (train_note, val_note) if note]
    if not len(train) or not len(val):
        raise DecoderError(
            f"Training needs captions for training and for validation, but there are {len(train)} and {len(val)}. "
            f"{' '.join(notes)}".rstrip(),
            remedy="Embed a corpus with more captions, or check that they are not empty.",
        )
    return train, val, notes


def training_images(store: Store, split: str = "train") -> tuple[Rows, Rows, list[str]]:
    """Read the images to learn from and others to choose the checkpoint on, with what the user should know about them.

    Raises:
        StoreError: if the store has no images.
        DecoderError: if the split has none.
    """
    if "image" not in store.modalities:
        there = ", ".join(store.modalities) or "no rows"
        raise StoreError(
            f"The store {store.path} has no images; it has {there}.", remedy="Embed images: c3 embed PATH."
        )
    train, val, why = training_split(store, "image", split, called="images", error=DecoderError)
    notes = [store.split_note] if store.split_note else []
    if why:
        notes.append(f"{why}, so {counted(len(val), 'image is', 'images are')} held out.")
    return train, val, notes


def captions_of_images(images: Rows, texts: Rows) -> Rows:
    """Return the captions that have an image, each with its image's embedding.

    Raises:
        DecoderError: if none of the captions has one.
    """
    rows = Pairs.match(images, texts).captions_of_first()
    if not len(rows):
        raise DecoderError(
            f"None of the {len(texts):,} captions belongs to an image of the store.",
            remedy="Embed the images of these captions, or train on texts only (without --pairs and --monitor).",
        )
    return rows


def _rows_to_learn(
    store: Store, split: str, fraction: float, pairs: float | None, monitor: str, seed: int
) -> tuple[Rows, Rows, list[str]]:
    """Return the rows to learn from and to validate on: texts, or captions with the embeddings of their images."""
    train, val, notes = training_captions(store, split)
    if fraction < 1:
        train = train.sample(fraction)
        notes.append(f"Using {len(train):,} captions of {fraction:.0%} of the images.")
    if pairs is None and monitor == "text":
        return train, val, notes
    images = store.load("image")
    if pairs is None:
        val = captions_of_images(images, val)
        note = f"The checkpoint is chosen on {counted(len(val), 'caption')} from the embeddings of their images."
        return train, val, [*notes, note]
    # the same share of both, so that the pairs used to choose the checkpoint are counted too
    train, val = (rows.sample(pairs, f"pairs {seed}") for rows in (train, val))
    of_images, of_others = (counted(rows.item_count, noun) for rows, noun in ((train, "image"), (val, "other")))
    train, val = captions_of_images(images, train), captions_of_images(images, val)
    chosen_on = f"the checkpoint is chosen on {counted(len(val), 'caption')} of {of_others}."
    return train, val, [*notes, f"Training on pairs: {counted(len(train), 'caption')} of {of_images}; {chosen_on}"]


def _fitted_pipeline(
    pipeline: Pipeline | None,
    preset: str | None,
    sigma: float | str | None,
    store: Store,
    split: str,
    reporter: Reporter,
) -> Pipeline:
    """Return the given pipeline or a preset, fitted on the store."""
    if pipeline is not None:
        pipeline = pipeline if pipeline.fitted else pipeline.fit(store, split=split)
        pipeline.check_model(store.info.model)
        return pipeline
    fitted = named_pipeline(preset or DEFAULT_PRESET, sigma=sigma or 0.0).fit(store, split=split)
    if isinstance(sigma, str):
        reporter.message(f"{fitted.provenance['sigma']}. Choose another with --sigma.")
    return fitted
