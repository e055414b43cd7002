"""Training a captioner from rows in memory.

It follows the method as published, which the released code of the paper does not always do: noise is drawn again in
every epoch, for training inputs only, from (seed, epoch, key); the validation loss that chooses the checkpoint has no
noise; an end-of-text token is learned; the loss ignores padding and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import devices
from ..arrays import Indices
from ..devices import Compute
from ..errors import DecoderError
from ..io.artifact import Target, digest_of
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store.rows import Rows
from ..training.checkpoints import CheckpointDir
from ..training.loop import Plan, Run, Task, adamw
from ..training.loop import train as run_training
from ..transforms import Pipeline
from .baselines.esper import ESPER_TRAINING, EsperTask
from .baselines.magic import TextEncoder
from .captioner import Captioner
from .config import AnySize, Size, TrainingConfig, load_size, training_config
from .language_model import pretrained
from .model import CaptionDecoder, Decoder
from .tokenizer import CaptionTokenizer, TokenRows, length_bucketed

_VALIDATION_BATCH = 512


class CaptionTask(Task):
    """The training of one decoder.

    Args:
        model: the decoder to train.
        tokenizer: its tokenizer.
        train: rows with the column ``caption``; the decoder learns to write each caption from its embedding.
        val: rows that the checkpoint is chosen on; their embeddings get no noise.
        pipeline: fitted; applied to the embeddings during training.
        config: settings of the training.
        compute: device and precision.
        keep_start: keep the initial weights if no epoch improves on them.
    """

    unit, error = "tokens", DecoderError
    remedy = "Lower the learning rate, or train with --precision fp32."

    def __init__(
        self,
        model: Decoder,
        tokenizer: CaptionTokenizer,
        train: Rows,
        val: Rows,
        pipeline: Pipeline,
        config: TrainingConfig,
        compute: Compute,
        *,
        keep_start: bool = False,
    ) -> None:
        self.module = self.model = model.to(compute.device)
        self.train, self.val = train, val
        longest = model.config.max_tokens
        self.train_tokens, self.val_tokens = (TokenRows(tokenizer, rows.captions, longest) for rows in (train, val))
        self.pipeline, self.config, self.compute = pipeline, config, compute
        self.counters = {}
        self._batches: tuple[int, list[Indices]] = (0, self._batches_of(0))
        self.steps_per_epoch = len(self._batches[1])
        total = config.epochs * self.steps_per_epoch
        rise = min(config.warmup_steps, total // 2) if config.warmup_steps else round(total * config.warmup)
        self.plan = Plan(
            total,
            config.learning_rate,
            self.steps_per_epoch,
            max(1, rise),
            config.decay,
            config.clip_norm,
            config.ema,
            config.patience,
            "keep" if keep_start else "skip",
            self.steps_per_epoch,
        )
        self.optimizer = adamw(
            model.parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, config.beta2),
            fused=True,
        )
        self._val_inputs = pipeline.transform(val.embeddings, modality=val.modality, training=False)
        settings = [model.config, config, pipeline.config(), model.digest(), compute.precision]
        data = [part for rows in (train, val) for part in (rows.keys, rows.captions, rows.embeddings)]
        self.identity = digest_of(settings, pipeline.record()["tensors"], *data)

    def step(self, number: int, update: Callable[[Tensor | float], float]) -> tuple[float, int]:
        """Learn from one batch of captions."""
        config, pad, device = self.config, self.model.pad_id, self.compute.device
        epoch, place = divmod(number, self.steps_per_epoch)
        if self._batches[0] != epoch:
            self._batches = epoch, self._batches_of(epoch)
        rows = self._batches[1][place]
        rng = generator(config.seed, "step", epoch, place)
        torch.manual_seed(int(rng.integers(2**62)))
        inputs = self.pipeline.transform(
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
        read = (torch.from_numpy(inputs).to(device), tokens, seen.to(device))
        count = int((tokens != pad).sum())
        if not config.contrastive_margin:
            with self._autocast():
                logits = self.model(*read)
            return update(self._loss(logits, tokens, label_smoothing=config.label_smoothing)), count
        with self._autocast():
            logits, states = self.model.score(*read)
        loss = self._loss(logits, tokens, label_smoothing=config.label_smoothing)
        update(loss + contrastive_loss(states, tokens != pad, config.contrastive_margin))
        return float(loss.detach()), count

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the mean loss per token over the validation captions, without noise or dropout."""
        total, count, pad = 0.0, 0, self.model.pad_id
        order = np.argsort(self.val_tokens.lengths, kind="stable")
        for start in range(0, len(order), _VALIDATION_BATCH):
            rows = order[start : start + _VALIDATION_BATCH]
            tokens = torch.from_numpy(self.val_tokens.batch(rows, pad)).to(self.compute.device)
            inputs = torch.from_numpy(self._val_inputs[rows]).to(self.compute.device)
            with self._autocast():
                logits = self.model(inputs, tokens)
            total += float(self._loss(logits, tokens, reduction="sum"))
            count += int((tokens != pad).sum())
        return total / count, {}

    def _loss(self, logits: Tensor, tokens: Tensor, **options: Any) -> Tensor:
        """Return the cross-entropy of scores (B, T, V) and tokens (B, T), in nats; padding is left out."""
        return F.cross_entropy(
            logits.flatten(0, 1).float(), tokens.flatten(), ignore_index=self.model.pad_id, **options
        )

    def _batches_of(self, epoch: int) -> list[Indices]:
        return length_bucketed(self.train_tokens.lengths, self.config.batch_size, seed=self.config.seed, epoch=epoch)

    def _autocast(self) -> torch.autocast:
        compute = self.compute
        return torch.autocast(compute.device_type, dtype=compute.dtype, enabled=compute.precision != "fp32")


def contrastive_loss(hidden: Tensor, real: Tensor, margin: float) -> Tensor:
    """Return the contrastive loss of SimCTG (Su et al., 2022), which keeps the hidden states of a caption apart.

        1 / (T (T - 1)) sum_i sum_(j != i) max(0, margin - 1 + cos(h_i, h_j)), mean over the captions

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
    target: Target | None = None,
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
        target: where the captioner is going to be written; the one that is there is returned if it is the same.
        label: what the progress is called.
        reporter: shows messages and progress.

    Raises:
        DecoderError: if there is no caption to learn from or to validate on, or the loss is not finite.
    """
    if not len(train) or not len(val):
        raise DecoderError(
            f"Training needs captions for training and for validation, but there are {len(train)} and {len(val)}.",
            remedy="Embed a corpus with more captions, or check that they are not empty.",
        )
    chosen = load_size(size, set)
    training = training or training_config(chosen)
    compute = compute or devices.pick()
    if start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(training.seed, "initialise").integers(2**62)))
            model, tokenizer = _new_decoder(chosen, train)
    else:
        start.check_dim(train.embeddings.shape[1])
        model, tokenizer = copy.deepcopy(start.decoder), start.tokenizer
    task = CaptionTask(model, tokenizer, train, val, pipeline, training, compute, keep_start=start is not None)
    if target is not None and (there := target.finished(task.identity, partial(Captioner.load, target.folder))):
        return there
    run = run_training(task, checkpoints=checkpoints, label=label, reporter=reporter)
    content = {
        "modality": train.modality,
        "monitor": "text" if val.modality == train.modality == "text" else "cross-modal",
        "size": size if start is None else start.record.get("size"),
        "changes": list(set),
        "training": {**asdict(training), "precision": compute.precision},
    }
    content |= _record(task, run, pipeline, target)
    return Captioner(model, tokenizer, pipeline, {**dict(record or {}), **content})


def fit_esper(
    train: Rows,
    val: Rows,
    language_model: Captioner,
    encoder: TextEncoder,
    *,
    training: TrainingConfig | None = None,
    compute: Compute | None = None,
    record: Mapping[str, Any] | None = None,
    checkpoints: CheckpointDir | None = None,
    target: Target | None = None,
    label: str = "ESPER",
    reporter: Reporter = SILENT,
) -> Captioner:
    """Train a mapper in front of a language model on images; no caption of them is used. See `baselines.esper`.

    Args:
        train: images to learn from.
        val: other images, the first 500 of which choose the checkpoint: by the mean cosine with their captions.
        language_model: a captioner without a prefix; it is not changed.
        encoder: of the model that the embeddings are of.
        training: `ESPER_TRAINING` when None.
        compute: the device is used; computed in fp32.
        record, checkpoints, target, label, reporter: as `fit_captioner` takes them.

    Raises:
        DecoderError: if the decoder reads embeddings, or there are no images to learn from or to choose by.
    """
    if not language_model.is_language_model:
        raise DecoderError(
            "ESPER starts from a language model, and this decoder reads embeddings.",
            remedy="Train one with `c3 train-decoder --unconditional -o c3-lm`, and name it with --from c3-lm.",
        )
    if not len(train) or not len(val):
        raise DecoderError(
            f"ESPER learns from images, and chooses the checkpoint on others; there are {len(train)} and {len(val)}.",
            remedy="Embed images of the train and the val split.",
        )
    device = (compute or devices.pick(precision="fp32")).device
    decoder, tokenizer, pipeline = language_model.decoder, language_model.tokenizer, language_model.pipeline
    task = EsperTask(train, val, decoder, tokenizer, pipeline, encoder, training or ESPER_TRAINING, device)
    if target is not None and (there := target.finished(task.identity, partial(Captioner.load, target.folder))):
        return there
    run = run_training(task, checkpoints=checkpoints, label=label, reporter=reporter)
    content = {
        "modality": "image",
        "monitor": "reward",
        "size": language_model.record.get("size"),
        "training": {**asdict(task.config), "precision": "fp32"},
    }
    content |= _record(task, run, pipeline, target)
    model = task.policy.model
    return Captioner(model, tokenizer, pipeline, {"sigma": 0.0, **dict(record or {}), **content})


def _record(task: CaptionTask | EsperTask, run: Run, pipeline: Pipeline, target: Target | None) -> dict[str, Any]:
    """Return what the record of a captioner has of its training: data, epochs, losses."""
    keys = ("train_loss", "val_loss", "seconds")
    epochs = [{key: getattr(epoch, key) for key in keys} | {"tokens": epoch.count} for epoch in run.history]
    return {
        "preset": pipeline.name,
        "seed": task.config.seed,
        "dim": task.train.embeddings.shape[1],
        "captions": {"train": len(task.train), "val": len(task.val)},
        "history": [{"epoch": number, **epoch} for number, epoch in enumerate(epochs, 1)],
        "trace": [list(point) for point in run.trace],
        "start_val_loss": None if run.start is None else run.start.val_loss,
        "best_val_loss": None if run.kept is None else run.kept.val_loss,
        **({} if target is None else {"made_from": target.made_from(task.identity)}),
    }


def _new_decoder(size: AnySize, rows: Rows) -> tuple[Decoder, CaptionTokenizer]:
    dim = rows.embeddings.shape[1]
    if isinstance(size, Size):
        tokenizer = CaptionTokenizer.train(rows.captions, size.vocab_size)
        return CaptionDecoder(size.config(dim, tokenizer.vocab_size)), tokenizer
    return pretrained(size, dim)
