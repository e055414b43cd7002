"""From embeddings and captions to a trained captioner: tokenizer, architecture, training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import devices
from ..devices import Compute
from ..errors import DecoderError
from ..progress import SilentTracker, Tracker
from ..seeds import generator
from ..transforms import Pipeline
from .captioner import Captioner
from .config import Size, size
from .model import CaptionDecoder
from .runs import RunFolder, fingerprint
from .tokenizer import CaptionTokenizer
from .training import CaptionSet, Trainer, TrainingConfig

Progress = Callable[[str, int | None], AbstractContextManager[Tracker]]


@contextmanager
def silent(label: str, total: int | None) -> Iterator[Tracker]:
    """The `Progress` of library calls: shows nothing."""
    yield SilentTracker()


@dataclass(frozen=True)
class CaptionRows:
    """Captions with the embeddings they are to be written from.

    Attributes:
        keys: one per row, unique; noise is keyed by them.
        embeddings: float32 (n, d), as encoded.
        captions: n captions.
        modality: what the embeddings are of: ``text`` for text-only training, ``image`` for real pairs.
    """

    keys: Sequence[str]
    embeddings: npt.NDArray[np.float32]
    captions: Sequence[str]
    modality: str = "text"

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, rows: npt.NDArray[np.int64]) -> CaptionRows:
        """The given rows."""
        return CaptionRows(
            [self.keys[row] for row in rows], self.embeddings[rows], [self.captions[row] for row in rows], self.modality
        )

    def written(self) -> CaptionRows:
        """The rows whose caption is not empty."""
        kept = np.array([bool(caption.strip()) for caption in self.captions], dtype=bool)
        return self if kept.all() else self.select(np.flatnonzero(kept))


def training_config(chosen: Size, *, seed: int = 0, epochs: int | None = None, **changes: Any) -> TrainingConfig:
    """The training settings that go with a size, with what is changed."""
    config = TrainingConfig(
        epochs=chosen.epochs if epochs is None else epochs,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        word_dropout=chosen.word_dropout,
        seed=seed,
    )
    return replace(config, **changes)


def fit_captioner(
    train: CaptionRows,
    val: CaptionRows,
    pipeline: Pipeline,
    *,
    size_name: str = "small",
    training: TrainingConfig | None = None,
    compute: Compute | None = None,
    record: Mapping[str, Any] | None = None,
    tokenizer: CaptionTokenizer | None = None,
    run: RunFolder | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
    label: str = "Training",
) -> Captioner:
    """Train a captioner; text-only when both sets are of texts.

    Args:
        train: what it learns from.
        val: what its checkpoint is chosen on: no noise is added to these.
        pipeline: fitted; its noise goes to the training inputs.
        size_name: a key of `SIZES`.
        training: settings; those of the size when None.
        compute: device and precision; the best there is when None.
        record: kept in the captioner's record, beside what is known here.
        tokenizer: learned from the training captions when None.
        run: where the run is saved, to be continued after it was interrupted; None saves nothing.
        progress: opens the display.
        say: told whether a saved run is continued.
        label: what the display calls it.

    Raises:
        DecoderError: if there is no caption to learn from or to validate on, or the loss is not finite.
    """
    train, val = train.written(), val.written()
    if not len(train) or not len(val):
        raise DecoderError(
            f"Training needs captions to learn from and others to validate on; there are {len(train)} and {len(val)}.",
            remedy="Embed a corpus with more captions, or check that they are not empty.",
        )
    chosen = size(size_name)
    training = training or training_config(chosen)
    compute = compute or devices.pick()
    tokenizer = tokenizer or CaptionTokenizer.train(train.captions, chosen.vocab_size)
    config = chosen.config(train.embeddings.shape[1], tokenizer.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(training.seed, "initialise").integers(2**62)))
        model = CaptionDecoder(config)
    trainer = Trainer(
        model,
        _tokenised(train, tokenizer, config.max_tokens),
        _tokenised(val, tokenizer, config.max_tokens),
        pipeline,
        training,
        compute,
    )
    identity = fingerprint(config, training, pipeline, train, val)
    if run is not None:
        run.resume(trainer, identity)
        for message in run.messages:
            say(message)
    with progress(label, trainer.total_steps) as tracker:
        history = trainer.run(tracker, None if run is None else lambda t: run.save(t, identity))
    content = {
        **dict(record or {}),
        "preset": pipeline.name,
        "modality": train.modality,
        "size": size_name,
        "seed": training.seed,
        "dim": config.dim,
        "captions": {"train": len(train), "val": len(val)},
        "training": {**asdict(training), "precision": compute.precision},
        "history": [asdict(epoch) for epoch in history],
        "best_val_loss": trainer.state.best_val_loss,
    }
    return Captioner(trainer.model, tokenizer, pipeline, content)


def _tokenised(rows: CaptionRows, tokenizer: CaptionTokenizer, max_tokens: int) -> CaptionSet:
    return CaptionSet(rows.keys, rows.embeddings, tokenizer.encode(rows.captions, max_tokens), rows.modality)
