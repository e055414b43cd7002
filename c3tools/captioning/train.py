"""Training a captioner: from the captions of a store, or from rows in memory, to a decoder folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import devices
from ..devices import Compute
from ..errors import DecoderError, telling_what_is_kept
from ..io.files import remove_leftovers
from ..io.outputs import Output
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store import Rows, Store
from ..training.checkpoints import CheckpointDir
from ..training.tensorboard import tensorboard as record_scalars
from ..transforms import Pipeline
from ..transforms import preset as named_pipeline
from ..transforms.sigma import AUTO, parse_sigma
from .captioner import Captioner, decoder_output, describe_decoder
from .config import (
    UNCONDITIONAL,
    AnySize,
    Size,
    TrainingConfig,
    fine_tuned_size,
    load_size,
    plan_training,
    training_config,
)
from .curves import save_curves
from .model import CaptionDecoder, Decoder
from .tokenizer import CaptionTokenizer
from .training import Trainer
from .training_rows import inputs_to_learn, require_captioned, sigma_from_texts, training_captions

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
    steer by the encoder while they write.

    Args:
        store: a store of text embeddings with their captions.
        pipeline: used instead of a preset; fitted on the store if it is not yet fitted.
        output: the folder to write the decoder to.
        preset: name of the pipeline, a key of `c3tools.transforms.PRESETS`; ``c3`` when None.
        sigma: standard deviation of the noise per dimension, or ``auto``: derived from how much captions of the same
            image differ. None means ``auto``, or no noise for pairs from scratch.
        size: of the decoder, a key of `c3tools.captioning.SIZES`.
        set: settings of the size that are changed, ``name=value`` each.
        unconditional: train a language model: without a prefix, with the contrastive loss of MAGIC's (`UNCONDITIONAL`).
        epochs: passes over the captions; None for the size's own, and more for a small corpus.
        train_split: the split to learn from.
        train_fraction: share of its images (by a stable hash of their keys) whose captions are used.
        patience: epochs without a better validation loss before training stops; 0 never stops early.
        monitor: how the checkpoint is chosen: ``text``, by the loss of val captions given their own embeddings, without
            noise, or ``cross-modal``, by their loss given the embeddings of their images.
        start: the folder of a decoder to start from; its size and pipeline are used.
        pairs: train on images and captions of this fraction of the images (drawn with the seed); None for texts only.
        seed: for all random numbers.
        tensorboard: folder to write losses to, for TensorBoard.
        device: ``cpu``, ``cuda``, ...; None for the fastest available.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        overwrite: replace a decoder in ``output`` that has other settings or data; it is kept as
            ``<output>.previous`` (an earlier one is removed). Also discard an interrupted training with other settings.
        reporter: shows messages and progress.

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
    if sigma is not None:
        sigma = parse_sigma(sigma, also=(AUTO,))
    _check_options(preset, sigma, pipeline, start, train_fraction, pairs, monitor)
    if unconditional:
        _check_unconditional(preset, sigma, pipeline, start, pairs, monitor)
        preset, set = LANGUAGE_MODEL_PRESET, (*UNCONDITIONAL, *set)
    output = Path(output)
    target, load = decoder_output(output, overwrite), partial(Captioner.load, output, trainable=True)
    if start is not None:
        target.refuse_start(start)
    compute = devices.pick(device, precision)
    checkpoints = CheckpointDir.beside(output, overwrite=overwrite)
    with checkpoints.locked(output):
        target.ask(
            {
                "preset": pipeline.name if pipeline is not None else None if start else preset or DEFAULT_PRESET,
                "sigma": pipeline.sigma or 0.0 if pipeline is not None else None if start else sigma or AUTO,
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
            },
            lambda: describe_decoder(output),
        )
        store = Store.open(store, reporter=reporter)
        previous = None if start is None else Captioner.load(Path(start), trainable=True)
        if previous is not None:
            previous.check_model(store.info.model, store.info.dim)
            size = str(previous.record.get("size", size))
            if previous.is_language_model and (pairs is not None or monitor != "text"):
                raise DecoderError(
                    f"The decoder at {start} is a language model: it learns nothing from pairs.",
                    remedy="Continue from a decoder that was trained without --unconditional.",
                )
            set = (*UNCONDITIONAL[1:], *set) if previous.is_language_model else set
        chosen = load_size(size, set) if previous is None else fine_tuned_size(size, set)
        train, val, notes = training_captions(store, train_split, spill=True)
        if train_fraction < 1:
            train = train.sample(train_fraction)
            notes.append(f"Using {len(train):,} captions: {train_fraction:.0%} of the images.")
        learned, validated, pair_notes = inputs_to_learn(store, train, val, pairs, monitor, seed)
        notes += pair_notes
        for note in notes:
            reporter.message(note)
        if previous is not None:
            pipeline, noise = previous.pipeline, float(previous.record.get("sigma", 0.0))
        elif pipeline is not None:
            if not pipeline.fitted:
                pipeline = pipeline.fit(store, split=train_split)
            pipeline.check_model(store.info.model)
            noise = float(pipeline.sigma or 0)
        else:
            if sigma is None and pairs is not None:
                sigma = 0.0
            pipeline, noise = _preset_pipeline(preset or DEFAULT_PRESET, sigma, store, train, train_split, reporter)
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
                training=plan_training(chosen, len(learned), epochs=epochs, patience=patience, seed=seed),
                compute=compute,
                record=record | {"asked": target.asked},
                start=previous,
                checkpoints=checkpoints,
                finished=lambda digest: load() if target.is_done(digest, load) else None,
                label="Training a language model" if unconditional else f"Training {pipeline.name}",
                reporter=recorder,
            )
        _finish(captioner, target, checkpoints, reporter)
    return captioner


def _check_options(
    preset: str | None,
    sigma: float | str | None,
    pipeline: Pipeline | None,
    start: str | Path | None,
    train_fraction: float,
    pairs: float | None,
    monitor: str,
) -> None:
    if start is not None and not (preset is None and sigma is None and pipeline is None):
        raise DecoderError(
            "The pipeline and its sigma come from the decoder given by --from and cannot be changed.",
            remedy="Leave out --preset and --sigma, or train a new decoder without --from.",
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


def _finish(captioner: Captioner, target: Output, checkpoints: CheckpointDir, reporter: Reporter) -> None:
    """Write the decoder, unless it already exists, with its curves, and remove what the run has saved."""
    with telling_what_is_kept(
        lambda: "The training is finished and saved; run the same command again to write the decoder."
    ):
        target.write(captioner.save, reporter)
        remove_leftovers(target.folder)
        save_curves(captioner.record, target.folder)
        checkpoints.clear()


def fit_captioner(
    train: Rows,
    val: Rows,
    pipeline: Pipeline,
    *,
    size: str = "small",
    set: Sequence[str] = (),
    training: TrainingConfig | None = None,
    compute: Compute | None = None,
    record: Mapping[str, Any] | None = None,
    start: Captioner | None = None,
    checkpoints: CheckpointDir | None = None,
    finished: Callable[[str], Captioner | None] = lambda identity: None,
    label: str = "Training",
    reporter: Reporter = SILENT,
) -> Captioner:
    """Train a captioner on rows; it sees no image when both are rows of texts.

    Args:
        train: rows with the column ``caption`` to learn from.
        val: rows that the checkpoint is chosen on; no noise is added to these.
        pipeline: fitted; its noise goes to the training inputs.
        size: a key of `SIZES`; not used where training starts from a captioner.
        set: settings of the size that are changed, ``name=value`` (see `load_size`).
        training: settings; those of the size when None.
        compute: device and precision; the fastest available when None.
        record: kept in the captioner's record, beside what is known here.
        start: continue from its weights, with its tokenizer; they are kept if no epoch has a better validation loss.
        checkpoints: where the run is saved, to be continued after it was interrupted; None saves nothing.
        finished: takes a digest of all that the training depends on, and returns its decoder if there is one already.
        label: what the progress is called.
        reporter: shows messages and progress.

    Raises:
        DecoderError: if there is no caption to learn from or to validate on, or the loss is not finite.
    """
    require_captioned(train, val)
    chosen = load_size(size, set)
    training = training or training_config(chosen)
    compute = compute or devices.pick()
    if start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(training.seed, "initialise").integers(2**62)))
            model, tokenizer = _new_decoder(chosen, train)
    else:
        start.check_dim(train.embeddings.shape[1])
        model, tokenizer = copy.deepcopy(start.torch_decoder()), start.tokenizer
    trainer = Trainer(model, tokenizer, train, val, pipeline, training, compute)
    if (there := finished(trainer.identity)) is not None:
        return there
    history = trainer.run(checkpoints, keep_initial=start is not None, label=label, reporter=reporter)
    content = {
        **dict(record or {}),
        "identity": trainer.identity,
        "preset": pipeline.name,
        "modality": train.modality,
        "monitor": "text" if val.modality == train.modality == "text" else "cross-modal",
        "size": size if start is None else start.record.get("size"),
        "changes": list(set),
        "seed": training.seed,
        "dim": model.config.dim,
        "captions": {"train": len(train), "val": len(val)},
        "training": {**asdict(training), "precision": compute.precision},
        "history": [asdict(epoch) for epoch in history],
        "trace": [list(point) for point in trainer.state.trace],
        "start_val_loss": trainer.state.start_val_loss,
        "best_val_loss": trainer.state.best_val_loss,
    }
    return Captioner(trainer.model, tokenizer, pipeline, content)


def _preset_pipeline(
    name: str, sigma: float | str | None, store: Store, train: Rows, split: str, reporter: Reporter
) -> tuple[Pipeline, float]:
    """Return a preset fitted on the store, and its sigma."""
    noise = 0.0
    if named_pipeline(name, sigma=0.0).noisy:
        if isinstance(sigma, float):
            noise = sigma
        else:
            noise, why = sigma_from_texts(store, train, split)
            reporter.message(f"{why}. Choose another with --sigma.")
    return named_pipeline(name, sigma=noise).fit(store, split=split), noise


def _new_decoder(size: AnySize, train: Rows) -> tuple[Decoder, CaptionTokenizer]:
    dim = train.embeddings.shape[1]
    if isinstance(size, Size):
        tokenizer = CaptionTokenizer.train(train.captions, size.vocab_size)
        return CaptionDecoder(size.config(dim, tokenizer.vocab_size)), tokenizer
    from .language_model import pretrained

    return pretrained(size, dim)
