"""Training a captioner: from the captions, the pairs or the images of a store to a decoder folder.

It follows the method as published, which the released code of the paper does not always do: noise
is drawn again in every epoch, for training inputs only, from (seed, epoch, key); the validation
loss that chooses the checkpoint has no noise; an end-of-text token is learned; the loss ignores
padding and nothing else.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import devices
from ..arrays import Indices
from ..devices import Compute
from ..errors import DecoderError
from ..io.artifact import digest_of, reserve_output
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator, torch_seed
from ..store import Pairs, Rows, Store
from ..store.reader import training_split
from ..training.loop import CheckpointDir, Run, Task, train_or_load
from ..training.loop import train as run_training
from ..transforms import Pipeline
from ..transforms.presets import TrainingPipeline
from ..transforms.sigma import AUTO
from .captioner import DECODER, Captioner
from .config import UNCONDITIONAL, AnySize, Size, load_size
from .esper import ESPER_TRAINING, LANGUAGE_MODEL_REMEDY, EsperTask
from .evaluate import require_captions
from .language_model import LanguageModelDecoder
from .model import CaptionDecoder, Decoder
from .steering import load_text_encoder
from .tokenizer import CaptionTokenizer, TokenRows

_MONITORS = ("text", "cross-modal")
_NO_SETTINGS = ("store", "pipeline", "output", "device", "overwrite", "reporter")
_VALIDATION_BATCH = 512


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
    device: str | None = None,
    precision: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Captioner:
    """Train a decoder on the text embeddings of a store, and write it to the folder ``output``.

    With ``pairs`` it is trained on images instead: after a training on texts (``start``) with the
    noise of that training, which is the low-data regime of the paper; or from scratch, without
    noise unless sigma is given. The state of the run is saved in a folder beside ``output``. The
    same call continues an interrupted run, and returns the decoder of a finished run.

    With ``unconditional`` it is a language model of the captions, which reads no embedding: what
    MAGIC and ZeroCap steer by the encoder while they write. With ``esper`` a mapper in front of one
    (``start``) learns from images alone, rewarded by the encoder (`c3tools.captioning.esper`).

    Args:
        store: See `embed`.
        pipeline: Used instead of a preset; fitted on the store if it is not yet fitted.
        output: The folder to write the decoder to.
        preset: The preset: c3, c1, c2-collapse, c2-corrupt, capdec, ... By default c3.
        sigma: Standard deviation of the noise, per dimension. auto: derived from how much captions
            of the same image differ. pairs: from the cosine of at least 10 images with their
            captions, those of the val split or of all splits but test. By default auto.
        size: Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra hf).
        set: Change settings of ``size``, such as dropout=0.2, learning_rate=1e-3 or model=PATH.
        unconditional: Train a language model of the captions, without a prefix, which --steer of c3
            caption steers.
        epochs: Passes over the captions. The default depends on ``size``.
        train_split: The split to train on.
        train_fraction: Use the captions of this fraction of the images.
        patience: Stop after this many epochs without improvement.
        monitor: Choose the best epoch by the loss on val captions (text) or on captions of val
            images (cross-modal).
        start: Start from this decoder, and use its pipeline unless ``preset`` is given.
        pairs: Train on pairs: the images and captions of this fraction of the images.
        esper: Put a mapper before the language model of ``start``; train it on images alone.
        seed: Seed for all random numbers.
        device: See `connect_heads`.
        precision: See `embed`.
        overwrite: See `connect_heads`.
        reporter: Shows messages and progress.

    Returns:
        The captioner, as `Captioner.load` reads it from ``output``.

    Raises:
        StoreError: if the store has no texts, or no images if they are needed.
        DecoderError: if there are too few captions, the settings contradict each other, or the
            decoder to start from has another model.
        OutputError: if ``output`` contains another decoder or other files, another run is writing
            to it, or it is ``start``.
        TransformError: if sigma, the preset or the pipeline cannot be used.
    """
    settings = {name: value for name, value in locals().items() if name not in _NO_SETTINGS}
    store = Store.open(store, reporter=reporter)
    _check_options(settings, pipeline)
    previous = None if start is None else Captioner.load(start)
    own_pipeline = previous is not None and preset is None and pipeline is None
    if unconditional:
        # its inputs are not read; images and texts are compared as the encoder gives them
        chosen, set = TrainingPipeline("c1"), (*UNCONDITIONAL, *set)
    else:
        given = previous.pipeline if previous is not None and own_pipeline else pipeline
        default = AUTO if pairs is None else 0.0
        chosen = TrainingPipeline.choose(
            store, given, preset, sigma, default=default, reporter=reporter
        )
    if previous is not None:
        previous.check_model(store.info.model, store.info.dim)
        if previous.is_language_model:
            if not (own_pipeline and pairs is None and monitor == "text"):
                raise DecoderError(
                    f"The decoder at {start} is a language model: it reads no embedding.",
                    remedy="Leave out --preset, --pairs and --monitor, or continue from another "
                    "decoder.",
                )
            set = (*UNCONDITIONAL[1:], *set)
    compute, output = devices.pick(device, precision), Path(output)
    settings |= {
        "preset": chosen.preset,
        "sigma": chosen.sigma,
        "set": set,
        "precision": compute.precision,
    }
    with reserve_output(
        output, DECODER, settings, overwrite=overwrite, start=start, reporter=reporter
    ) as target:
        record: dict[str, Any] = {"model": dict(store.info.model)} | (
            {"from": str(start)} if start else {}
        )
        task: DecoderTask | EsperTask
        if esper and previous is not None:
            train, val, notes = training_rows(store, train_split, "image")
            encoder = load_text_encoder(
                store.info.model, "ESPER", device=compute.device, reporter=reporter
            )
            training = replace(ESPER_TRAINING, seed=seed, epochs=epochs or ESPER_TRAINING.epochs)
            task = EsperTask(train, val, previous, encoder, training, compute.device)
        else:
            train, val, notes = _rows_to_learn(
                store, train_split, train_fraction, pairs, monitor, seed
            )
            pipeline, more = chosen.fit(store, train_split, "text")
            notes += more
            record |= {"sigma": float(pipeline.sigma or 0)} | (
                {} if pairs is None else {"pairs": pairs}
            )
            size = size if previous is None else previous.size or size
            changes: dict[str, Any] = {
                "epochs": epochs,
                "patience": patience,
                "seed": seed,
                "captions": len(train),
            }
            own_size = load_size(size, set, fine_tuned=previous is not None, **changes)
            record |= {"size": size, "changes": list(set)}
            task = DecoderTask(train, val, pipeline, own_size, compute, previous, chosen.applied)
        for note in notes:
            reporter.message(note)
        record["notes"] = notes
        return train_or_load(
            target,
            task,
            partial(Captioner.load, device=compute.device),
            lambda run, made_from: _captioner(task, run, {**record, "made_from": made_from}).save,
            label="Training a language model"
            if unconditional
            else f"Training {task.pipeline.name}",
        )


def _check_options(asked: dict[str, Any], pipeline: Pipeline | None) -> None:
    """Refuse arguments of `train_captioner` that contradict each other, or that are out of
    range.
    """
    preset, sigma, start, pairs, monitor = (
        asked[name] for name in ("preset", "sigma", "start", "pairs", "monitor")
    )
    fraction, language_model = asked["train_fraction"], asked["unconditional"]
    of_texts, no_pipeline = (
        pairs is None and monitor == "text",
        preset is None and sigma is None and pipeline is None,
    )
    own_training = asked["set"] or language_model or asked["patience"] is not None or fraction != 1
    refused = [
        (
            not 0 < fraction <= 1,
            f"--train-fraction must be above 0 and at most 1, not {fraction}.",
            None,
        ),
        (
            pairs is not None and not 0 < pairs <= 1,
            f"--pairs must be above 0 and at most 1, not {pairs}.",
            None,
        ),
        (
            monitor not in _MONITORS,
            f"There is no --monitor {monitor!r}.",
            f"Choose from {', '.join(_MONITORS)}.",
        ),
        (
            asked["esper"] and (start is None or own_training or not (of_texts and no_pipeline)),
            "ESPER starts from a language model, and learns from all images by its own settings.",
            f"{LANGUAGE_MODEL_REMEDY} Of the settings of training, give --epochs, --train-split "
            f"and --seed alone.",
        ),
        (
            language_model and not (no_pipeline and of_texts and start is None),
            "A language model reads no embedding, so nothing about embeddings can be set.",
            "Leave out --preset, --sigma, --pairs, --monitor and --from, or --unconditional.",
        ),
    ]
    for wrong, message, remedy in refused:
        if wrong:
            raise DecoderError(message, remedy=remedy)


def training_rows(
    store: Store, split: str = "train", modality: str = "text"
) -> tuple[Rows, Rows, list[str]]:
    """Read the captions, or images, to learn from and others to validate on, with what the user
    should know about them.

    Captions without a letter of any script are left out. Where the store has no ``val`` split, a
    tenth of the training images (by a stable hash of their keys) is held out with all their
    captions.

    Raises:
        StoreError: if the store has no such rows, or no captions.
        DecoderError: if the split has none.
    """
    if modality == "text":
        require_captions(store)
    train, val, notes = training_split(store, modality, split, error=DecoderError)
    if modality == "text":
        train, val = _drop_empty(train, notes), _drop_empty(val, notes)
    return train, val, notes


def _drop_empty(rows: Rows, notes: list[str]) -> Rows:
    """Leave out captions without a letter or digit of any script, and note how many they are."""
    kept = np.array(
        [any(unicodedata.category(letter)[0] in "LN" for letter in text) for text in rows.captions],
        bool,
    )
    if kept.all():
        return rows
    left_out = rows.select(~kept).keys
    note = (
        f"{len(left_out):,} of {len(rows):,} captions are empty or contain no letters, and are "
        f"left out"
    )
    notes.append(f"{note}; the first is {left_out[0]}.")
    return rows.select(kept)


def captions_of_images(images: Rows, texts: Rows) -> Rows:
    """Return the captions that have an image, each with its image's embedding.

    Raises:
        DecoderError: if none of the captions has one.
    """
    rows = Pairs.match(images, texts).captions_of_first()
    if not len(rows):
        raise DecoderError(
            f"None of the {len(texts):,} captions belongs to an image of the store.",
            remedy="Embed the images of these captions, or train on texts only (without --pairs "
            "and --monitor).",
        )
    return rows


def _rows_to_learn(
    store: Store, split: str, fraction: float, pairs: float | None, monitor: str, seed: int
) -> tuple[Rows, Rows, list[str]]:
    """Return the rows to learn from and to validate on: texts, or captions with the embeddings of
    their images.
    """
    train, val, notes = training_rows(store, split)
    if fraction < 1:
        train = train.sample(fraction)
        notes.append(f"Using {len(train):,} captions of {fraction:.0%} of the images.")
    if pairs is None and monitor == "text":
        return train, val, notes
    images = store.load("image")
    if pairs is None:
        val = captions_of_images(images, val)
        note = (
            f"The checkpoint is chosen on {counted(len(val), 'caption')} from the embeddings "
            f"of their images."
        )
        return train, val, [*notes, note]
    # the same share of both, so that the pairs used to choose the checkpoint are counted too
    train, val = (rows.sample(pairs, f"pairs {seed}") for rows in (train, val))
    of_images, of_others = (
        counted(rows.item_count, noun) for rows, noun in ((train, "image"), (val, "other"))
    )
    train, val = captions_of_images(images, train), captions_of_images(images, val)
    chosen_on = f"the checkpoint is chosen on {counted(len(val), 'caption')} of {of_others}."
    return (
        train,
        val,
        [
            *notes,
            f"Training on pairs: {counted(len(train), 'caption')} of {of_images}; {chosen_on}",
        ],
    )


def fit(
    task: DecoderTask | EsperTask,
    *,
    record: Mapping[str, Any] | None = None,
    checkpoints: CheckpointDir | None = None,
    label: str = "Training",
    reporter: Reporter = SILENT,
) -> Captioner:
    """Train a captioner in memory; ``record`` becomes a part of its own.

    Raises:
        DecoderError: if the loss is not finite.
    """
    return _captioner(
        task,
        run_training(task, checkpoints=checkpoints, label=label, reporter=reporter),
        record or {},
    )


def _captioner(task: DecoderTask | EsperTask, run: Run, record: Mapping[str, Any]) -> Captioner:
    """Return the captioner of a run, with what is known of the training in its record."""
    facts = {
        "preset": task.pipeline.name,
        "seed": task.config.seed,
        "dim": task.train.embeddings.shape[1],
        "captions": {"train": len(task.train), "val": len(task.val)},
        "history": [
            {"train_loss": one.train_loss, "val_loss": one.val_loss, "seconds": one.seconds}
            | {"epoch": number, "tokens": one.count}
            for number, one in enumerate(run.history, 1)
        ],
        "trace": [list(point) for point in run.trace],
        "start_val_loss": run.start and run.start.val_loss,
        "best_val_loss": run.kept and run.kept.val_loss,
    }
    return Captioner(task.model, task.tokenizer, task.pipeline, {**task.facts, **record, **facts})


class DecoderTask(Task):
    """The training of one decoder; it sees no image when both ``train`` and ``val`` are rows of
    texts.

    Args:
        train: rows with the column ``caption``; the decoder learns to write each caption from its
            embedding.
        val: rows that the checkpoint is chosen on; their embeddings get no noise.
        pipeline: fitted; applied to the embeddings during training.
        size: of the decoder, with the settings of its training; see `load_size`.
        compute: device and precision; the fastest available when None.
        start: continue from its weights, with its tokenizer; they are kept if no epoch has a better
            validation loss.
        applied: the steps of the pipeline that the rows went through already.

    Raises:
        DecoderError: if there is no caption to learn from or to validate on.
    """

    unit, error = "tokens", DecoderError

    def __init__(
        self,
        train: Rows,
        val: Rows,
        pipeline: Pipeline,
        size: AnySize,
        compute: Compute | None = None,
        start: Captioner | None = None,
        applied: int = 0,
    ) -> None:
        if not len(train) or not len(val):
            raise DecoderError(
                f"Training needs captions for training and for validation, but there are "
                f"{len(train)} and {len(val)}.",
                remedy="Embed a corpus with more captions, or check that they are not empty.",
            )
        dim = train.embeddings.shape[1]
        self.train, self.val, self.pipeline, self._rest = (
            train,
            val,
            pipeline,
            pipeline.part(applied),
        )
        self.config = config = size.training
        self.compute = compute = compute or devices.pick()
        model: Decoder
        if start is not None:
            start.check_dim(dim)
            model, self.tokenizer = copy.deepcopy(start.decoder), start.tokenizer
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch_seed(config.seed, "initialise"))
                if isinstance(size, Size):
                    self.tokenizer = CaptionTokenizer.train(train.captions, size.vocab_size)
                    model = CaptionDecoder(size.config(dim, self.tokenizer.vocab_size))
                else:
                    model, self.tokenizer = LanguageModelDecoder.pretrained(size, dim)
        self.module = self.model = model.to(compute.device)
        longest = model.config.max_tokens
        self.train_tokens, self.val_tokens = (
            TokenRows(self.tokenizer, rows.captions, longest) for rows in (train, val)
        )
        batches = partial(self.train_tokens.batches, config.batch_size, config.seed)
        self._batches: Callable[[int], list[Indices]] = lru_cache(maxsize=1)(batches)
        self.steps_per_epoch = len(self._batches(0))
        total = config.epochs * self.steps_per_epoch
        rise = (
            min(config.warmup_steps, total // 2) if config.warmup_steps else total * config.warmup
        )
        self.plan = config.plan(self.steps_per_epoch, rise, "skip" if start is None else "keep")
        self.optimizer = config.optimizer(model, fused=True)
        self._val_inputs = self._rest.transform(
            val.embeddings, modality=val.modality, training=False
        )
        settings = [
            model.config,
            config,
            pipeline.config(),
            applied,
            model.digest(),
            compute.precision,
        ]
        data = [
            part for rows in (train, val) for part in (rows.keys, rows.captions, rows.embeddings)
        ]
        self.identity = digest_of(settings, pipeline.record()["tensors"], *data)
        self.facts = {
            "modality": train.modality,
            "monitor": "text" if val.modality == train.modality == "text" else "cross-modal",
            "training": {**asdict(config), "precision": compute.precision},
        }

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Learn from one batch of captions."""
        config, pad, device = self.config, self.model.pad_id, self.compute.device
        epoch, place = divmod(number, self.steps_per_epoch)
        rows = self._batches(epoch)[place]
        rng = generator(config.seed, "step", epoch, place)
        torch.manual_seed(int(rng.integers(2**62)))
        inputs = self._rest.transform(
            self.train.embeddings[rows],
            modality=self.train.modality,
            training=True,
            keys=[self.train.keys[row] for row in rows],
            items=[self.train.items[row] for row in rows],
            seed=config.seed,
            epoch=epoch,
        )
        tokens = torch.from_numpy(self.train_tokens.batch(rows, pad))  # (B, T)
        seen = tokens
        if config.word_dropout:
            hidden = torch.from_numpy(rng.random(tokens.shape) < config.word_dropout)
            seen = tokens.masked_fill(hidden, pad)
        tokens = tokens.to(device)
        with self.compute.autocast():
            logits, states = self.model(
                torch.from_numpy(inputs).to(device), tokens, seen.to(device)
            )
        real = tokens != pad
        loss = self._loss(logits, tokens, label_smoothing=config.label_smoothing)
        margin = config.contrastive_margin
        update(loss + _contrastive_loss(states, real, margin) if margin else loss)
        return float(loss.detach()), int(real.sum())

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the mean loss per token over the validation captions, without noise or dropout."""
        total, count, pad = 0.0, 0, self.model.pad_id
        order = np.argsort(self.val_tokens.lengths, kind="stable")
        for start in range(0, len(order), _VALIDATION_BATCH):
            rows = order[start : start + _VALIDATION_BATCH]
            tokens = torch.from_numpy(self.val_tokens.batch(rows, pad)).to(self.compute.device)
            inputs = torch.from_numpy(self._val_inputs[rows]).to(self.compute.device)
            with self.compute.autocast():
                logits, _ = self.model(inputs, tokens)
            total += float(self._loss(logits, tokens, reduction="sum"))
            count += int((tokens != pad).sum())
        return total / count, {}

    def _loss(self, logits: Tensor, tokens: Tensor, **options: Any) -> Tensor:
        """Return the cross-entropy of scores (B, T, V) and tokens (B, T), in nats; padding is left
        out.
        """
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            tokens.flatten(),
            ignore_index=self.model.pad_id,
            **options,
        )


def _contrastive_loss(hidden: Tensor, real: Tensor, margin: float) -> Tensor:
    """Return the contrastive loss of SimCTG (Su et al., 2022), which keeps the hidden states of a
    caption apart.

        1 / (T (T - 1)) sum_i sum_(j != i) max(0, margin - 1 + cos(h_i, h_j)), mean over the
        captions

    Args:
        hidden: hidden states (B, T, W).
        real: bool (B, T), False for padding.
        margin: 0.5 in MAGIC.
    """
    unit = F.normalize(hidden.float(), dim=-1)
    excess = (margin - 1 + unit @ unit.transpose(1, 2)).clamp(min=0)  # (B, T, T)
    other = ~torch.eye(hidden.shape[1], dtype=torch.bool, device=hidden.device)
    pairs = real[:, :, None] & real[:, None, :] & other  # (B, T, T)
    return ((excess * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)).mean()
