"""Training a captioner: from the captions, the pairs or the images of a store to a decoder folder.

It follows the method as published, which the released code of the paper does not always do: noise
is drawn again in every epoch, for training inputs only, from (seed, epoch, key); the validation
loss that chooses the checkpoint has no noise; an end-of-text token is learned; the loss ignores
padding and nothing else.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import devices
from ..arrays import Indices
from ..choices import (
    DecoderSize,
    Monitor,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Precision,
    checked,
)
from ..devices import Compute
from ..errors import DecoderError
from ..io.artifact import digest_of, reserve_output
from ..lists import as_list
from ..metrics.retrieval import nearest
from ..moments import unit_rows
from ..reporter import SILENT, Reporter, counted
from ..seeds import generator, torch_seed
from ..store import Pairs, Rows, Store
from ..store.reader import training_split
from ..training.loop import train_or_load
from ..transforms import Pipeline
from ..transforms.presets import TrainingPipeline
from ..transforms.sigma import AUTO
from .captioner import DECODER, Captioner
from .config import UNCONDITIONAL, AnySize, Size, load_size
from .esper import ESPER_TRAINING, LANGUAGE_MODEL_REMEDY, EsperTask
from .evaluate_captions import require_captions
from .language_model import LanguageModelDecoder
from .model import CaptionDecoder
from .steering import load_text_encoder
from .task import CaptioningTask
from .tokenizer import CaptionTokenizer, TokenRows

_VALIDATION_BATCH = 512
_VALIDATION_SCORES = 2**26  # at most, of a batch: 256 MiB in float32
_PSEUDO_CAPTIONS = 5  # of an image


@dataclass(frozen=True)
class CaptionerSettings:
    """The options of `train_captioner` that its result depends on, as its record has them.

    A field that is added needs the default that trains as before: `reserve_output` takes it for
    decoders whose records lack the field.
    """

    preset: str | None
    sigma: float | str | None
    size: str
    set: Sequence[str]
    unconditional: bool
    epochs: int | None
    train_split: str
    train_fraction: float
    patience: int | None
    monitor: str
    start: str | Path | None
    pairs: float | None
    esper: bool
    seed: int
    precision: str
    pseudo_pairs: bool = False


class RowsToLearn(NamedTuple):
    """Rows to learn from, others to choose the checkpoint on, and what the user should know."""

    train: Rows
    val: Rows
    notes: list[str]


@checked
def train_captioner(
    store: Store | str | Path = "c3-store",
    pipeline: Pipeline | None = None,
    *,
    output: str | Path = "c3-decoder",
    preset: str | None = None,
    sigma: float | str | None = None,
    size: DecoderSize = "small",
    set: Sequence[str] = (),
    unconditional: bool = False,
    epochs: PositiveInt | None = None,
    train_split: str = "train",
    train_fraction: float = 1.0,
    patience: NonNegativeInt | None = None,
    monitor: Monitor = "text",
    start: str | Path | None = None,
    pairs: NonNegativeFloat | None = None,
    pseudo_pairs: bool = False,
    esper: bool = False,
    seed: int = 0,
    device: str | None = None,
    precision: Precision = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Captioner:
    """Train a decoder on the text embeddings of a store, and write it to the folder ``output``.

    With ``pairs``, the decoder is trained on images instead: after training on texts (``start``)
    with the same noise, as in the paper's low-data regime, or from scratch, without noise unless
    ``sigma`` is given. The state of the run is saved in a folder beside ``output``. The same call
    continues an interrupted run, and returns the decoder of a finished run.

    With ``pseudo_pairs``, it is trained on images with the captions nearest to them (WS-ClipCap).

    With ``unconditional``, it is a plain language model of the captions, which reads no embedding;
    MAGIC and ZeroCap let the encoder steer it. With ``esper``, a mapper in front of such a model
    (``start``) learns from images alone, rewarded by the encoder (`c3tools.captioning.esper`).

    Args:
        store: See `embed`.
        pipeline: Used instead of a preset; fitted on the store if it is not yet fitted.
        output: The folder to write the decoder to.
        preset: The preset, or a JSON or YAML file of steps; `c3 export --list` shows the presets.
            By default c3.
        sigma: Standard deviation of the noise, per dimension. auto (the default) estimates it from
            the differences between captions of the same image, pairs from at least 10 images with
            their captions.
        size: Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra `hf`).
        set: Override a setting of ``size``, for example dropout=0.2, learning_rate=1e-3 or
            model=PATH.
        unconditional: Train a plain language model on the captions, without embeddings, for c3
            caption --steer.
        epochs: Number of passes over the captions. The default depends on ``size``.
        train_split: The split to train on, or all.
        train_fraction: Train on the captions of only this fraction of the images.
        patience: Stop after this many epochs without improvement.
        monitor: Choose the best epoch by the loss from the embeddings of val captions (text) or of
            val images (cross-modal).
        start: Start from this decoder, and use its pipeline unless ``preset`` is given.
        pairs: Train on image–caption pairs, using this fraction of the images.
        pseudo_pairs: Train on images, each paired with its five nearest captions in the store. No
            noise is added unless you set ``sigma``.
        esper: Train a mapper on images alone, in front of the language model given by ``start``.
        seed: Seed for all random numbers.
        device: See `connect_heads`.
        precision: See `connect_heads`.
        overwrite: See `connect_heads`.
        reporter: Shows messages and progress.

    Returns:
        The captioner, as `Captioner.load` reads it from ``output``.

    Raises:
        StoreError: if the store has no texts, or no images if they are needed.
        DecoderError: if there are too few captions, a share is out of range, or the decoder to
            start from is missing or has another model.
        OutputError: if ``output`` contains another decoder or other files, another run is writing
            to it, or it is ``start``.
        TransformError: if sigma, the preset or the pipeline cannot be used.
        UnusedOptionError: if an option has no effect with another.

    Example:
        >>> captioner = c3tools.train_captioner("c3-store", size="tiny", epochs=1)
        >>> captioner.pipeline
        Pipeline('c3': normalize > collapse > gaussian-noise > normalize)
    """
    set = as_list(set)
    asked = CaptionerSettings(
        preset=preset,
        sigma=sigma,
        size=size,
        set=set,
        unconditional=unconditional,
        epochs=epochs,
        train_split=train_split,
        train_fraction=train_fraction,
        patience=patience,
        monitor=monitor,
        start=start,
        pairs=pairs,
        esper=esper,
        seed=seed,
        precision=precision,
        pseudo_pairs=pseudo_pairs,
    )
    store = Store.open(store, reporter=reporter)
    _check_settings(asked)
    previous = None if start is None else Captioner.load(start, "cpu")
    training_pipeline, changes = _choose_pipeline(store, asked, pipeline, previous, reporter)
    compute = devices.pick(device, precision)
    settings = replace(
        asked,
        preset=training_pipeline.preset,
        sigma=training_pipeline.sigma,
        set=changes,
        precision=compute.precision,
    )
    with reserve_output(
        Path(output), DECODER, settings, overwrite=overwrite, start=start, reporter=reporter
    ) as target:
        record: dict[str, Any] = {"model": dict(store.info.model)}
        if start:
            record["from"] = str(start)
        task: CaptioningTask
        if esper and previous is not None:
            # A mapper in front of a language model, on images alone
            rows = training_rows(store, train_split, "image")
            notes = rows.notes
            text_encoder = load_text_encoder(
                store.info.model,
                "ESPER",
                device=compute.device,
                precision=precision,
                reporter=reporter,
            )
            config = replace(ESPER_TRAINING, seed=seed)
            if epochs:
                config = replace(config, epochs=epochs)
            task = EsperTask(rows.train, rows.val, previous, text_encoder, config, compute.device)
        else:
            # A decoder on texts or pairs, or a language model on captions
            rows = _rows_to_learn(store, settings)
            fitted, notes_on_pipeline = training_pipeline.fit(store, train_split, "text")
            notes = [*rows.notes, *notes_on_pipeline]
            trained_size: str = size
            if previous is not None and previous.size:
                trained_size = previous.size
            size_settings = load_size(
                trained_size,
                changes,
                fine_tuned=previous is not None,
                captions=len(rows.train),
                epochs=epochs,
                patience=patience,
                seed=seed,
            )
            task = DecoderTask(
                rows.train,
                rows.val,
                fitted,
                size_settings,
                compute,
                start=previous,
                applied=training_pipeline.applied,
            )
            record["sigma"] = float(fitted.sigma or 0)
            if pairs is not None:
                record["pairs"] = pairs
            record["size"] = trained_size
            record["changes"] = list(changes)
        record["notes"] = notes
        for note in notes:
            reporter.message(note)
        trained = "a language model" if unconditional else task.pipeline.name
        return train_or_load(
            target,
            task,
            partial(Captioner.load, device=compute.device),
            lambda run, made_from: task.captioner(run, {**record, "made_from": made_from}).save,
            label=f"Training {trained}",
        )


def _choose_pipeline(
    store: Store,
    asked: CaptionerSettings,
    pipeline: Pipeline | None,
    previous: Captioner | None,
    reporter: Reporter,
) -> tuple[TrainingPipeline, Sequence[str]]:
    """Choose the pipeline of the inputs, and the changes of the size.

    Args:
        store: of the texts.
        asked: the options of `train_captioner`.
        pipeline: used instead of a preset.
        previous: the decoder to start from; its pipeline is used unless another is named.
        reporter: gets messages about sigma.

    Raises:
        DecoderError: if the decoder to start from has another model, or reads no embedding although
            options are about embeddings.
        TransformError: if sigma, the preset or the pipeline cannot be used.
    """
    names_pipeline = asked.preset is not None or pipeline is not None
    if previous is not None and not names_pipeline:
        pipeline = previous.pipeline
    changes = asked.set
    if asked.unconditional:
        # Its inputs are not read; images and texts are compared as the encoder gives them
        training_pipeline = TrainingPipeline("c1")
        changes = (*UNCONDITIONAL, *changes)
    else:
        training_pipeline = TrainingPipeline.choose(
            store,
            pipeline,
            asked.preset,
            asked.sigma,
            default=AUTO if asked.pairs is None and not asked.pseudo_pairs else 0.0,
            reporter=reporter,
        )

    # A language model that training starts from takes no option about embeddings
    if previous is not None:
        previous.check_model(store.info.model, store.info.dim)
        if previous.is_language_model:
            reads_pairs = asked.pairs is not None or asked.pseudo_pairs or asked.monitor != "text"
            if names_pipeline or reads_pairs:
                raise DecoderError(
                    f"The decoder at {asked.start} is a plain language model, which reads no "
                    f"embedding.",
                    remedy="Leave out --preset, --pairs, --pseudo-pairs and --monitor, or continue "
                    "from another decoder.",
                )
            changes = (*UNCONDITIONAL[1:], *changes)
    return training_pipeline, changes


def _check_settings(asked: CaptionerSettings) -> None:
    """Refuse shares that are out of range, and ESPER without a decoder to start from."""
    if not 0 < asked.train_fraction <= 1:
        raise DecoderError(
            f"--train-fraction must be above 0 and at most 1, not {asked.train_fraction}."
        )
    if asked.pairs is not None and not 0 < asked.pairs <= 1:
        raise DecoderError(f"--pairs must be above 0 and at most 1, not {asked.pairs}.")

    if asked.esper and asked.start is None:
        raise DecoderError(
            "ESPER starts from a plain language model.", remedy=LANGUAGE_MODEL_REMEDY
        )


def training_rows(store: Store, split: str = "train", modality: str = "text") -> RowsToLearn:
    """Read the captions, or images, to learn from, and others to validate on.

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
        train = _drop_empty(train, notes)
        val = _drop_empty(val, notes)
    return RowsToLearn(train, val, notes)


def _drop_empty(rows: Rows, notes: list[str]) -> Rows:
    """Leave out captions without a letter or digit of any script, and note how many they are."""
    has_letters = np.zeros(len(rows), bool)
    for row, caption in enumerate(rows.captions):
        categories = map(unicodedata.category, caption)
        has_letters[row] = any(category[0] in "LN" for category in categories)
    if has_letters.all():
        return rows
    empty_keys = rows.select(~has_letters).keys
    notes.append(
        f"{len(empty_keys):,} of {len(rows):,} captions are empty or contain no letters, and are "
        f"left out; the first is {empty_keys[0]}."
    )
    return rows.select(has_letters)


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


def _rows_to_learn(store: Store, settings: CaptionerSettings) -> RowsToLearn:
    """Read texts, or captions with the embeddings of their images, as the settings say."""
    train, val, notes = training_rows(store, settings.train_split)
    fraction = settings.train_fraction
    if fraction < 1:
        train = train.sample(fraction)
        notes.append(f"Using {len(train):,} captions of {fraction:.0%} of the images.")
    if settings.pseudo_pairs:
        # The checkpoint is chosen on pseudo pairs of other images, with captions of training too
        image_rows = training_rows(store, settings.train_split, "image")
        val = _with_nearest_captions(image_rows.val, train)
        train = _with_nearest_captions(image_rows.train, train)
        return RowsToLearn(train, val, [*notes, *image_rows.notes])
    if settings.pairs is None and settings.monitor == "text":
        return RowsToLearn(train, val, notes)
    images = store.load("image")
    if settings.pairs is None:
        val = captions_of_images(images, val)
        notes.append(
            f"The checkpoint is chosen on {counted(len(val), 'caption')}, from the embeddings of "
            f"their images."
        )
        return RowsToLearn(train, val, notes)

    # The same share of both, so that the pairs used to choose the checkpoint are counted too
    sample = f"pairs {settings.seed}"
    train = captions_of_images(images, train).sample(settings.pairs, sample)
    val = captions_of_images(images, val).sample(settings.pairs, sample)
    notes.append(
        f"Training on pairs: {counted(len(train), 'caption')} of "
        f"{counted(train.item_count, 'image')}; the checkpoint is chosen on "
        f"{counted(len(val), 'caption')} of {counted(val.item_count, 'other')}."
    )
    return RowsToLearn(train, val, notes)


def _with_nearest_captions(images: Rows, texts: Rows) -> Rows:
    """Return each image as often as it gets a caption: the nearest of the texts (WS-ClipCap)."""
    nearest_rows, _ = nearest(images.embeddings, unit_rows(texts.embeddings), _PSEUDO_CAPTIONS)
    count = nearest_rows.shape[1]
    return Rows.of(
        "image",
        [f"{key}#{rank}" for key in images.keys for rank in range(count)],
        images.embeddings.repeat(count, axis=0),
        caption=[texts.captions[row] for row in nearest_rows.ravel()],
    )


class DecoderTask(CaptioningTask):
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

    unit = "tokens"
    error = DecoderError

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
        self.train = train
        self.val = val
        self.pipeline = pipeline
        self._steps_left = pipeline.part(applied)
        self.config = size.training
        self.compute = compute or devices.pick()

        # The network and its tokenizer: of another decoder, or with weights drawn from the seed
        dim = train.embeddings.shape[1]
        if start is not None:
            start.check_dim(dim)
            self.model = copy.deepcopy(start.decoder)
            self.tokenizer = start.tokenizer
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch_seed(self.config.seed, "initialise"))
                if isinstance(size, Size):
                    self.tokenizer = CaptionTokenizer.train(train.captions, size.vocab_size)
                    self.model = CaptionDecoder(size.config(dim, self.tokenizer.vocab_size))
                else:
                    self.model, self.tokenizer = LanguageModelDecoder.pretrained(size, dim)
        self.model.to(self.compute.device)
        self.module = self.model

        # What it reads and writes; validation inputs get no noise, so they are made once
        longest = self.model.config.max_tokens
        self.train_tokens = TokenRows(self.tokenizer, train.captions, longest)
        self.val_tokens = TokenRows(self.tokenizer, val.captions, longest)
        batches = partial(self.train_tokens.batches, self.config.batch_size, self.config.seed)
        self._batches: Callable[[int], list[Indices]] = lru_cache(maxsize=1)(batches)
        self._val_inputs = self._steps_left.transform(
            val.embeddings, modality=val.modality, training=False
        )

        # The schedule
        self.steps_per_epoch = len(self._batches(0))
        total = self.config.epochs * self.steps_per_epoch
        rise = total * self.config.warmup
        if self.config.warmup_steps:
            rise = min(self.config.warmup_steps, total // 2)
        self.plan = self.config.plan(self.steps_per_epoch, rise, "keep" if start else "skip")
        self.optimizer = self.config.optimizer(self.model, fused=True)

        # A run is continued with the same settings, weights and rows
        settings = [
            self.model.config,
            self.config,
            pipeline.config(),
            applied,
            self.model.digest(),
            self.compute.precision,
        ]
        data: list[Any] = []
        for rows in (train, val):
            data += [rows.keys, rows.captions, rows.embeddings]
        self.identity = digest_of(settings, pipeline.record()["tensors"], *data)
        is_text_only = val.modality == train.modality == "text"
        self.facts = {
            "modality": train.modality,
            "monitor": "text" if is_text_only else "cross-modal",
            "training": {**asdict(self.config), "precision": self.compute.precision},
        }

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Learn from one batch of captions."""
        config = self.config
        pad = self.model.pad_id
        device = self.compute.device
        epoch, place = divmod(number, self.steps_per_epoch)
        rows = self._batches(epoch)[place]

        # The embeddings, with the noise of this epoch
        rng = generator(config.seed, "step", epoch, place)
        torch.manual_seed(int(rng.integers(2**62)))
        inputs = self._steps_left.transform(
            self.train.embeddings[rows],
            modality=self.train.modality,
            training=True,
            keys=[self.train.keys[row] for row in rows],
            items=[self.train.items[row] for row in rows],
            seed=config.seed,
            epoch=epoch,
        )

        # Their captions, some words of which the decoder does not see, though it learns to write
        # them
        tokens = torch.from_numpy(self.train_tokens.batch(rows, pad))  # (B, T)
        token_count = int((tokens != pad).sum())
        seen = tokens
        if config.word_dropout:
            is_dropped = torch.from_numpy(rng.random(tokens.shape) < config.word_dropout)
            seen = tokens.masked_fill(is_dropped, pad)
        tokens = tokens.to(device)
        with self.compute.autocast():
            logits, states = self.model(
                torch.from_numpy(inputs).to(device), tokens, seen.to(device)
            )
        loss = self._loss(logits, tokens, label_smoothing=config.label_smoothing)
        if config.contrastive_margin:
            # The loss of other trainings is reported, without the contrastive term
            update(loss + _contrastive_loss(states, tokens != pad, config.contrastive_margin))
            return float(loss.detach()), token_count
        return update(loss), token_count

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the mean loss per token over the validation captions, without noise or dropout."""
        pad = self.model.pad_id
        total = 0.0
        count = 0
        for rows in self._validation_batches():
            tokens = torch.from_numpy(self.val_tokens.batch(rows, pad))
            count += int((tokens != pad).sum())
            tokens = tokens.to(self.compute.device)
            inputs = torch.from_numpy(self._val_inputs[rows]).to(self.compute.device)
            with self.compute.autocast():
                logits, _ = self.model(inputs, tokens)
            total += float(self._loss(logits, tokens, reduction="sum"))
        return total / count, {}

    def _validation_batches(self) -> Iterator[Indices]:
        """Yield the validation captions from short to long, fewer at once if the vocabulary is
        large.
        """
        lengths = self.val_tokens.lengths
        order = np.argsort(lengths, kind="stable")
        start = 0
        while start < len(order):
            rows = order[start : start + _VALIDATION_BATCH]
            scores_per_caption = int(lengths[rows[-1]]) * self.model.config.vocab_size
            rows = rows[: max(1, _VALIDATION_SCORES // scores_per_caption)]
            yield rows
            start += len(rows)

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


def _contrastive_loss(hidden: Tensor, is_word: Tensor, margin: float) -> Tensor:
    """Return the contrastive loss of SimCTG (Su et al., 2022), which keeps the hidden states of a
    caption apart.

        1 / (T (T - 1)) sum_i sum_(j != i) max(0, margin - 1 + cos(h_i, h_j)), mean over the
        captions

    Args:
        hidden: hidden states (B, T, W).
        is_word: bool (B, T), False for padding.
        margin: 0.5 in MAGIC.
    """
    unit = F.normalize(hidden.float(), dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # (B, T, T)
    excess = (margin - 1 + cosines).clamp(min=0)
    is_other = ~torch.eye(hidden.shape[1], dtype=torch.bool, device=hidden.device)
    is_pair = is_word[:, :, None] & is_word[:, None, :] & is_other  # (B, T, T)
    pair_counts = is_pair.sum((1, 2)).clamp(min=1)  # (B,)
    return ((excess * is_pair).sum((1, 2)) / pair_counts).mean()
