"""From embeddings and captions to a trained captioner: tokenizer, architecture, training."""

from __future__ import annotations

import copy
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
from ..reporter import SilentTracker, Tracker
from ..seeds import generator
from ..transforms import Pipeline
from .captioner import Captioner
from .config import AnySize, Size, TrainingConfig, size
from .decoder import Decoder
from .model import CaptionDecoder
from .runs import RunFolder, fingerprint
from .tokenizer import CaptionTokenizer, has_words
from .training import CaptionSet, Recorder, Trainer

Progress = Callable[[str, int | None], AbstractContextManager[Tracker]]
_NAMED_KEYS = 5


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
        """The rows whose caption holds a letter or a digit of some script."""
        kept = np.array([has_words(caption) for caption in self.captions], dtype=bool)
        return self if kept.all() else self.select(np.flatnonzero(kept))

    def unwritten(self) -> str | None:
        """What to say about the rows that `written` leaves out; None where there are none."""
        left_out = [key for key, text in zip(self.keys, self.captions, strict=True) if not has_words(text)]
        if not left_out:
            return None
        named = ", ".join(left_out[:_NAMED_KEYS]) + (", …" if len(left_out) > _NAMED_KEYS else "")
        return (
            f"{len(left_out):,} of {len(self):,} captions are empty or hold no letter of any script, and are left "
            f"out: {named}."
        )


def training_config(chosen: AnySize, *, seed: int = 0, epochs: int | None = None, **changes: Any) -> TrainingConfig:
    """The training settings that go with a size, with what is changed."""
    config = replace(chosen.training, seed=seed, **changes)
    return config if epochs is None else replace(config, epochs=epochs)


def fit_captioner(
    train: CaptionRows,
    val: CaptionRows,
    pipeline: Pipeline,
    *,
    size_name: str = "small",
    changes: Sequence[str] = (),
    training: TrainingConfig | None = None,
    compute: Compute | None = None,
    record: Mapping[str, Any] | None = None,
    start: Captioner | None = None,
    run: RunFolder | None = None,
    recorder: Recorder | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda message: None,
    label: str = "Training",
) -> Captioner:
    """Train a captioner; text-only when both sets are of texts.

    Args:
        train: what it learns from.
        val: what its checkpoint is chosen on: no noise is added to these.
        pipeline: fitted; its noise goes to the training inputs.
        size_name: a key of `SIZES`; not used where training starts from a captioner.
        changes: settings of the size that are changed, ``name=value`` (see `size`).
        training: settings; those of the size when None.
        compute: device and precision; the best there is when None.
        record: kept in the captioner's record, beside what is known here.
        start: continue from its weights, with its tokenizer; they are kept if no epoch has a better validation loss.
        run: where the run is saved, to be continued after it was interrupted; None saves nothing.
        recorder: told of the losses.
        progress: opens the display.
        say: told which captions are left out, and whether a saved run is continued.
        label: what the display calls it.

    Raises:
        DecoderError: if there is no caption to learn from or to validate on, or the loss is not finite.
    """
    for left_out in filter(None, (train.unwritten(), val.unwritten())):
        say(left_out)
    train, val = train.written(), val.written()
    if not len(train) or not len(val):
        raise DecoderError(
            f"Training needs captions to learn from and others to validate on; there are {len(train)} and {len(val)}.",
            remedy="Embed a corpus with more captions, or check that they are not empty.",
        )
    chosen = size(size_name, changes)
    training = training or training_config(chosen)
    compute = compute or devices.pick()
    if start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(training.seed, "initialise").integers(2**62)))
            model, tokenizer = _build(chosen, train)
    else:
        start.check_dim(train.embeddings.shape[1])
        model, tokenizer = copy.deepcopy(start.decoder), start.tokenizer
    config = model.shape
    trainer = Trainer(
        model,
        _tokenised(train, tokenizer, config.max_tokens),
        _tokenised(val, tokenizer, config.max_tokens),
        pipeline,
        training,
        compute,
    )
    identity = fingerprint(config, training, pipeline, train, val, start and start.digest())
    resumed = run is not None and run.resume(trainer, identity)
    for message in run.messages if run is not None else ():
        say(message)
    if start is not None and not resumed:
        trainer.keep_start()
    with progress(label, trainer.total_steps) as tracker:
        history = trainer.run(tracker, None if run is None else lambda t: run.save(t, identity), recorder)
    content = {
        **dict(record or {}),
        "preset": pipeline.name,
        "modality": train.modality,
        "monitor": "text" if val.modality == train.modality == "text" else "cross-modal",
        "size": size_name if start is None else start.record.get("size"),
        "changes": list(changes),
        "seed": training.seed,
        "dim": config.dim,
        "captions": {"train": len(train), "val": len(val)},
        "training": {**asdict(training), "precision": compute.precision},
        "history": [asdict(epoch) for epoch in history],
        "trace": [list(point) for point in trainer.state.trace],
        "start_val_loss": trainer.state.start_val_loss,
        "best_val_loss": trainer.state.best_val_loss,
    }
    return Captioner(trainer.model, tokenizer, pipeline, content)


def _build(chosen: AnySize, train: CaptionRows) -> tuple[Decoder, CaptionTokenizer]:
    dim = train.embeddings.shape[1]
    if isinstance(chosen, Size):
        tokenizer = CaptionTokenizer.train(train.captions, chosen.vocab_size)
        return CaptionDecoder(chosen.config(dim, tokenizer.vocab_size)), tokenizer
    from .language_model import pretrained

    return pretrained(chosen, dim)


def _tokenised(rows: CaptionRows, tokenizer: CaptionTokenizer, max_tokens: int) -> CaptionSet:
    return CaptionSet(rows.keys, rows.embeddings, tokenizer.encode(rows.captions, max_tokens), rows.modality)
