"""Training a captioner from rows in memory.

It follows the method as published, which the released code of the paper does not always do: noise is drawn again in
every epoch, for training inputs only, from (seed, epoch, key); the validation loss that chooses the checkpoint has no
noise; an end-of-text token is learned; the loss ignores padding and nothing else.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import devices
from ..arrays import Indices
from ..devices import Compute
from ..errors import DecoderError
from ..io.spill import blocks_of, collect_rows, hash_rows
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store.rows import Rows
from ..store.strings import hash_strings
from ..training.checkpoints import CheckpointDir
from ..training.loop import Plan, Run, Task, adamw
from ..training.loop import train as run_training
from ..transforms import Pipeline
from .captioner import Captioner
from .config import AnySize, Size, TrainingConfig, load_size, training_config
from .losses import contrastive_loss, cross_entropy
from .model import CaptionDecoder, Decoder
from .tokenizer import CaptionTokenizer, TokenRows, length_bucketed, token_batch

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
        encode = partial(tokenizer.encode, max_tokens=model.config.max_tokens)
        self.train_tokens, self.val_tokens = TokenRows(encode, train.captions), TokenRows(encode, val.captions)
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
        transformed = (
            pipeline.transform(block, modality=val.modality, training=False) for block in blocks_of(val.embeddings)
        )
        self._val_inputs = collect_rows(transformed, val.embeddings.shape[1:], np.float32)
        plain = [asdict(model.config), asdict(config), pipeline.config(), model.digest(), compute.precision]  # type: ignore[call-overload]
        plain += [pipeline.record()["tensors"]]
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
        for rows in (train, val):
            hash_strings(digest, rows.keys, rows.captions)
            hash_rows(digest, rows.embeddings)
        self.identity = digest.hexdigest()

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
        tokens = torch.from_numpy(token_batch(self.train_tokens, rows, pad))  # (B, T)
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
            return update(cross_entropy(logits, tokens, pad, label_smoothing=config.label_smoothing)), count
        with self._autocast():
            logits, states = self.model.score(*read)
        loss = cross_entropy(logits, tokens, pad, label_smoothing=config.label_smoothing)
        update(loss + contrastive_loss(states, tokens != pad, config.contrastive_margin))
        return float(loss.detach()), count

    def validate(self) -> tuple[float, dict[str, Any]]:
        """Return the mean loss per token over the validation captions, without noise or dropout."""
        total, count, pad = 0.0, 0, self.model.pad_id
        order = np.argsort(self.val_tokens.lengths, kind="stable")
        for start in range(0, len(order), _VALIDATION_BATCH):
            rows = order[start : start + _VALIDATION_BATCH]
            tokens = torch.from_numpy(token_batch(self.val_tokens, rows, pad)).to(self.compute.device)
            inputs = torch.from_numpy(self._val_inputs[rows]).to(self.compute.device)
            with self._autocast():
                logits = self.model(inputs, tokens)
            total += float(cross_entropy(logits, tokens, pad, reduction="sum"))
            count += int((tokens != pad).sum())
        return total / count, {}

    def _batches_of(self, epoch: int) -> list[Indices]:
        return length_bucketed(self.train_tokens.lengths, self.config.batch_size, seed=self.config.seed, epoch=epoch)

    def _autocast(self) -> torch.autocast:
        compute = self.compute
        return torch.autocast(compute.device_type, dtype=compute.dtype, enabled=compute.precision != "fp32")


def training_record(run: Run) -> dict[str, Any]:
    """Return epochs, trace and losses of a run as a captioner's record has them."""
    return {
        "history": [
            {
                "epoch": number,
                "train_loss": epoch.train_loss,
                "val_loss": epoch.val_loss,
                "seconds": epoch.seconds,
                "tokens": epoch.count,
            }
            for number, epoch in enumerate(run.history, 1)
        ],
        "trace": [list(point) for point in run.trace],
        "start_val_loss": None if run.start is None else run.start.val_loss,
        "best_val_loss": None if run.kept is None else run.kept.val_loss,
    }


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
        model, tokenizer = copy.deepcopy(start.torch_decoder()), start.tokenizer
    task = CaptionTask(model, tokenizer, train, val, pipeline, training, compute, keep_start=start is not None)
    if (there := finished(task.identity)) is not None:
        return there
    run = run_training(task, checkpoints=checkpoints, label=label, reporter=reporter)
    content = {
        **dict(record or {}),
        "identity": task.identity,
        "preset": pipeline.name,
        "modality": train.modality,
        "monitor": "text" if val.modality == train.modality == "text" else "cross-modal",
        "size": size if start is None else start.record.get("size"),
        "changes": list(set),
        "seed": training.seed,
        "dim": model.config.dim,
        "captions": {"train": len(train), "val": len(val)},
        "training": {**asdict(training), "precision": compute.precision},
        **training_record(run),
    }
    return Captioner(model, tokenizer, pipeline, content)


def _new_decoder(size: AnySize, rows: Rows) -> tuple[Decoder, CaptionTokenizer]:
    dim = rows.embeddings.shape[1]
    if isinstance(size, Size):
        tokenizer = CaptionTokenizer.train(rows.captions, size.vocab_size)
        return CaptionDecoder(size.config(dim, tokenizer.vocab_size)), tokenizer
    from .language_model import pretrained

    return pretrained(size, dim)
