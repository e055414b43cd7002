"""Settings of decoders: their architecture and their training, as plain data that is saved with the
weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.optim import AdamW

from ..errors import DecoderError
from ..training.loop import Start, TrainingPlan, adamw
from ..training.sizes import load_named_size, require_valid

_MIN_STEPS = 600
_MOST_LAYERS = 1000  # so that a damaged record cannot ask for more than fits into memory
_MAX_STRETCHED_EPOCHS = 60
_PATIENCE = 5
_FINE_TUNING = 0.1  # of the size's learning rate: the weights are good already


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture of the built-in decoder.

    Attributes:
        dim: dimension d of the embeddings it reads.
        vocab_size: number V of tokens, padding and end-of-text included.
        width: dimension W of the residual stream.
        layers: number of Transformer blocks.
        heads: attention heads per block; divides ``width``.
        prefix_length: number P of positions that the embedding is mapped to; 0 for a language model
            of captions, which reads no embedding and begins with the end-of-text token.
        dropout: dropout probability on embeddings and on the output of each sub-layer.
        max_tokens: longest caption in tokens, the end-of-text token included.
    """

    dim: int
    vocab_size: int
    width: int
    layers: int
    heads: int
    prefix_length: int
    dropout: float
    max_tokens: int = 40

    def __post_init__(self) -> None:
        require_valid(
            self,
            positive=("dim", "vocab_size", "width", "layers", "heads", "max_tokens"),
            not_negative=("prefix_length",),
            fractions=("dropout",),
            error=DecoderError,
        )
        if self.layers > _MOST_LAYERS:
            raise DecoderError(
                f"A decoder has at most {_MOST_LAYERS:,} layers, not {self.layers:,}."
            )
        if self.width % self.heads:
            raise DecoderError(
                f"The width {self.width} cannot be divided into {self.heads} heads.",
                remedy="Use a number of heads that divides the width.",
            )


@dataclass(frozen=True)
class LanguageModelConfig:
    """Architecture of a language model behind a two-layer MLP, the mapper.

    Attributes:
        dim: dimension d of the embeddings it reads.
        vocab_size: number V of tokens that the model scores.
        end_id: its end-of-text token.
        architecture: the model's own configuration, as transformers writes it.
        prefix_length: number P of positions that the embedding is mapped to; 0 for none, and no
            mapper.
        max_tokens: longest caption in tokens, the end-of-text token included.
        frozen: whether the mapper alone is trained.
    """

    dim: int
    vocab_size: int
    end_id: int
    architecture: dict[str, Any]
    prefix_length: int
    max_tokens: int
    frozen: bool

    def __post_init__(self) -> None:
        require_valid(
            self, positive=("max_tokens",), not_negative=("prefix_length",), error=DecoderError
        )
        if self.frozen and not self.prefix_length:
            raise DecoderError(
                "A frozen language model without a prefix has nothing to train.",
                remedy="Unfreeze it.",
            )


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training.

    Attributes:
        epochs: passes over the captions, at most.
        batch_size: captions per step.
        learning_rate: peak of the schedule: linear warm-up, then ``decay``.
        warmup: share of all steps spent warming up; ESPER takes this share of the steps of one
            epoch.
        warmup_steps: a number of steps instead of the share, at most half of all; 0 for the share.
        decay: ``cosine`` or ``linear``, both to zero.
        weight_decay: AdamW's, on matrices only.
        beta2: AdamW's second decay rate.
        word_dropout: probability that an input word is hidden from the decoder, which makes it rely
            more on the embedding (Bowman et al., 2016).
        label_smoothing: share of the target's probability spread over the vocabulary; not in
            validation.
        contrastive_margin: hidden states of a caption with a cosine above 1 minus this are pushed
            apart (SimCTG, Su et al., 2022; 0.5 in MAGIC); 0 for none.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        ema: decay per step of an exponential moving average of the weights; the average is then
            validated and kept. 0 for none.
        patience: stop after this many epochs without a better validation loss; 0 never stops early.
        seed: seed of initialisation, order, noise and dropout.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.05
    warmup_steps: int = 0
    decay: str = "cosine"
    weight_decay: float = 0.05
    beta2: float = 0.98
    word_dropout: float = 0.0
    label_smoothing: float = 0.0
    contrastive_margin: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.0
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.decay not in ("cosine", "linear"):
            raise DecoderError(
                f"There is no decay {self.decay!r}.", remedy="Choose cosine or linear."
            )
        require_valid(
            self,
            positive=("epochs", "batch_size", "learning_rate"),
            not_negative=(
                "warmup_steps",
                "weight_decay",
                "contrastive_margin",
                "clip_norm",
                "patience",
            ),
            fractions=("beta2", "word_dropout", "label_smoothing", "ema"),
            shares=("warmup",),
            error=DecoderError,
        )

    def plan(self, per_epoch: int, rise: float, start: Start = "skip") -> TrainingPlan:
        """Return the plan of a run.

        Args:
            per_epoch: steps per epoch.
            rise: steps of the whole run that are spent warming up; rounded, and at least one.
            start: what is done with the initial weights; see `c3tools.training.loop.TrainingPlan`.
        """
        return TrainingPlan(
            steps=self.epochs * per_epoch,
            learning_rate=self.learning_rate,
            validate_every=per_epoch,
            rise=max(1, round(rise)),
            decay=self.decay,
            clip_norm=self.clip_norm,
            ema=self.ema,
            patience=self.patience,
            start=start,
            steps_per_epoch=per_epoch,
        )

    def optimizer(self, module: nn.Module, *, fused: bool | None = None) -> AdamW:
        """Return the optimiser of a module."""
        betas = (0.9, self.beta2)
        return adamw(module.parameters(), weight_decay=self.weight_decay, betas=betas, fused=fused)


@dataclass(frozen=True, kw_only=True)
class Size(DecoderConfig):
    """A size of the built-in decoder, with training settings that suit it."""

    training: TrainingConfig
    dim: int = 1
    dropout: float = 0.0

    def config(self, dim: int, vocab_size: int) -> DecoderConfig:
        """Return the architecture for embeddings of ``dim`` dimensions and a tokenizer of
        ``vocab_size`` tokens.
        """
        settings = {field.name: getattr(self, field.name) for field in fields(DecoderConfig)}
        settings["dim"] = dim
        settings["vocab_size"] = vocab_size
        return DecoderConfig(**settings)


@dataclass(frozen=True)
class LanguageModelSize:
    """A causal language model of transformers behind a mapper (the extra ``hf``).

    Attributes:
        model: a folder that ``save_pretrained`` wrote, or a name on the Hugging Face hub.
        training: see `TrainingConfig`.
        prefix_length: prefix positions.
        frozen: train the mapper alone.
        max_tokens: longest caption.
    """

    model: str
    training: TrainingConfig
    prefix_length: int = 10
    frozen: bool = False
    max_tokens: int = 40


AnySize = Size | LanguageModelSize
# what turns a size into a language model of captions: no prefix, and the contrastive loss that
# MAGIC's is trained with
UNCONDITIONAL = ("prefix_length=0", "contrastive_margin=0.5")


def _size(epochs: int, learning_rate: float, **architecture: Any) -> Size:
    return Size(
        training=TrainingConfig(epochs, 64, learning_rate, word_dropout=0.1), **architecture
    )


SIZES: Mapping[str, AnySize] = MappingProxyType(
    {
        "tiny": _size(8, 2e-3, width=192, layers=2, heads=3, prefix_length=2, vocab_size=2048),
        "small": _size(6, 1.5e-3, width=256, layers=3, heads=4, prefix_length=4, vocab_size=4096),
        "base": _size(
            10, 6e-4, width=512, layers=6, heads=8, prefix_length=10, vocab_size=8192, dropout=0.1
        ),
        # GPT-2 fully fine-tuned behind an MLP 512 -> 3840 -> 7680, AdamW; 5,000 steps of warm-up,
        # then linear decay
        "paper": LanguageModelSize(
            "gpt2",
            TrainingConfig(
                10,
                40,
                2e-5,
                warmup_steps=5000,
                decay="linear",
                weight_decay=0.0,
                beta2=0.999,
                clip_norm=0.0,
            ),
        ),
    }
)


def load_size(
    name: str,
    overrides: Sequence[str] = (),
    *,
    fine_tuned: bool = False,
    captions: int | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    seed: int = 0,
) -> AnySize:
    """Return a size by name, with some of its settings changed; few captions get more epochs, and
    stop early.

    Args:
        name: a key of `SIZES`.
        overrides: ``setting=value``, for fields of the size or of its training; epochs and patience
            are kept.
        fine_tuned: of a decoder that training continues from, with a lower learning rate.
        captions: how many there are to learn from; None for the epochs of the size, however few.
        epochs: None for those of the size, or as many as give 600 steps (at most 60).
        patience: None for that of the size, or 5 where epochs were added.
        seed: for all random numbers.

    Raises:
        DecoderError: if there is no such size or setting, a value is not of the setting's type, or
            the architecture of a decoder that training continues from is changed.
    """
    size = load_named_size(SIZES, name, overrides, ("seed", "dim"), error=DecoderError)
    if fine_tuned and replace(size, training=SIZES[name].training) != SIZES[name]:
        raise DecoderError(
            "The architecture comes from the decoder given by --from and cannot be changed."
        )
    training = size.training
    changed = [override.partition("=")[0].strip() for override in overrides]

    # Few captions get more epochs, and then the training may stop early
    if captions and epochs is None and isinstance(size, Size) and "epochs" not in changed:
        steps_per_epoch = math.ceil(captions / training.batch_size)
        epochs_for_min_steps = math.ceil(_MIN_STEPS / steps_per_epoch)
        epochs = max(training.epochs, min(_MAX_STRETCHED_EPOCHS, epochs_for_min_steps))
        if patience is None and epochs > training.epochs and "patience" not in changed:
            patience = _PATIENCE

    if epochs is not None:
        training = replace(training, epochs=epochs)
    if patience is not None:
        training = replace(training, patience=patience)
    if fine_tuned and "learning_rate" not in changed:
        training = replace(training, learning_rate=_FINE_TUNING * training.learning_rate)
    return replace(size, training=replace(training, seed=seed))
