"""Training a captioner from rows in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from .. import devices
from ..devices import Compute
from ..reporter import SILENT, Reporter
from ..seeds import generator
from ..store import Rows
from ..training.checkpoints import CheckpointDir
from ..transforms import Pipeline
from .captioner import Captioner
from .config import AnySize, Size, TrainingConfig, load_size, training_config
from .model import CaptionDecoder, Decoder
from .tokenizer import CaptionTokenizer
from .training import Trainer
from .training_rows import require_captioned


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


def _new_decoder(size: AnySize, train: Rows) -> tuple[Decoder, CaptionTokenizer]:
    dim = train.embeddings.shape[1]
    if isinstance(size, Size):
        tokenizer = CaptionTokenizer.train(train.captions, size.vocab_size)
        return CaptionDecoder(size.config(dim, tokenizer.vocab_size)), tokenizer
    from .language_model import pretrained

    return pretrained(size, dim)
