"""The base class of training tasks that produce a captioner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..store import Rows
from ..training.loop import Task, TrainingRun
from ..transforms import Pipeline
from .captioner import Captioner
from .config import TrainingConfig
from .model import Decoder
from .tokenizer import CaptionTokenizer


class CaptioningTask(Task):
    """A training that gives a captioner. A subclass sets the attributes.

    Attributes:
        train: rows to learn from.
        val: rows that the checkpoint is chosen on.
        model: the decoder, which has the best weights after the training.
        tokenizer: of the decoder.
        pipeline: the fitted transform of its inputs.
        config: settings of the training.
        facts: about the training, for the record, as JSON values.
    """

    train: Rows
    val: Rows
    model: Decoder
    tokenizer: CaptionTokenizer
    pipeline: Pipeline
    config: TrainingConfig
    facts: dict[str, Any]

    def captioner(self, run: TrainingRun, record: Mapping[str, Any]) -> Captioner:
        """Return the captioner of a run; its record is ``record`` and facts of the training."""
        history = []
        for epoch, validation in enumerate(run.history, 1):
            history.append(
                {
                    "train_loss": validation.train_loss,
                    "val_loss": validation.val_loss,
                    "seconds": validation.seconds,
                    "epoch": epoch,
                    "tokens": validation.count,
                }
            )
        facts_of_run = {
            "preset": self.pipeline.name,
            "seed": self.config.seed,
            "dim": self.train.embeddings.shape[1],
            "captions": {"train": len(self.train), "val": len(self.val)},
            "history": history,
            "trace": [list(point) for point in run.trace],
            "start_val_loss": run.start and run.start.val_loss,
            "best_val_loss": run.kept and run.kept.val_loss,
        }
        all_facts = {**self.facts, **record, **facts_of_run}
        return Captioner(self.model, self.tokenizer, self.pipeline, all_facts)
