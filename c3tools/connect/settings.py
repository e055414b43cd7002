"""How contrastive training goes."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ConnectError
from .losses import KINDS, LogitScale


@dataclass(frozen=True)
class TrainingSettings:
    """What the training of any two towers depends on beside them and the pairs.

    Attributes:
        loss: ``infonce`` or ``sigmoid``.
        scale: see `LogitScale`.
        batch_size: pairs per step, over all processes.
        chunk: pairs embedded at a time (gradient caching), or None for the whole batch.
        epochs: passes over the pairs, at most.
        learning_rate: peak of the schedule: linear warm-up, then cosine to zero.
        weight_decay: AdamW's, on matrices only.
        warmup: share of all steps spent warming up.
        log_every: steps between two points of the log; None for once an epoch.
        patience: stop after so many points without a better recall@1; 0 never stops early.
        seed: of everything random.
    """

    loss: str = "infonce"
    scale: LogitScale = field(default_factory=LogitScale)
    batch_size: int = 512
    chunk: int | None = None
    epochs: int = 20
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    log_every: int | None = None
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in KINDS:
            raise ConnectError(f"There is no loss {self.loss!r}.", remedy=f"Choose from {', '.join(KINDS)}.")
        if self.batch_size < 2:
            raise ConnectError(
                f"A batch of {self.batch_size} has no negatives.", remedy="Choose a batch of 2 pairs or more."
            )
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConnectError(f"{name} must be greater than 0, not {getattr(self, name)}.")
        for name in ("chunk", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConnectError(f"{name} must be at least 1, not {value}.")
        if not 0 <= self.warmup <= 1 or self.patience < 0 or self.weight_decay < 0:
            raise ConnectError("warmup lies between 0 and 1; patience and weight decay are 0 or more.")
