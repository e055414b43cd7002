"""A causal language model of transformers behind a mapper: ClipCap's decoder, and the paper's (the extra ``hf``).

A mapper turns an embedding into P prefix positions of the model's width; the model continues them with a caption and
its own end-of-text token. The model is fine-tuned with the mapper, or frozen. Any causal model that takes
``inputs_embeds`` and has a fast tokenizer will do. Padding is the id after the last token: no token of the model is
ever ignored by the loss. With P = 0 there is no mapper: the model reads no embedding, and begins with its end-of-text
token.

Shapes: B captions, T tokens, P prefix positions, W width of the model, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DecoderError, MissingExtraError
from .config import LanguageModelConfig, LanguageModelSize
from .model import CaptionDecoder, DecoderBase, start_at
from .tokenizer import CaptionTokenizer


class LanguageModelDecoder(DecoderBase):
    """A language model behind a mapper; see the module's docstring. Methods are those of `CaptionDecoder`."""

    def __init__(self, config: LanguageModelConfig, language_model: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.pad_id, self.end_id = config.vocab_size, config.end_id
        self.language_model = language_model if language_model is not None else _from_config(config.architecture)
        width = self.language_model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        if config.prefix_length:
            filled = config.prefix_length * width
            self.mapper = nn.Sequential(nn.Linear(config.dim, filled // 2), nn.Tanh(), nn.Linear(filled // 2, filled))
        if config.frozen:
            self.language_model.requires_grad_(False)
        # its name changed with the version of transformers
        known = inspect.signature(self.language_model.forward).parameters
        self._cache_argument = "cache" if "cache" in known else "past_key_values"

    def train(self, mode: bool = True) -> LanguageModelDecoder:
        """Set the training mode; a frozen model stays without dropout."""
        super().train(mode)
        if self.config.frozen:
            self.language_model.eval()
        return self

    def embed_prefix(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (B, d) to prefix positions (B, P, W), or without a mapper to the end-of-text token."""
        if not self.config.prefix_length:
            return self.embed_tokens(torch.full((len(embeddings), 1), self.end_id, device=embeddings.device))
        x: Tensor = self.mapper(embeddings)  # (B, P * W)
        return x.view(len(embeddings), self.config.prefix_length, -1)  # (B, P, W)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed tokens as (B, T, W); padding and hidden words look like end-of-text."""
        known = tokens.masked_fill(tokens == self.pad_id, self.end_id)
        embedded: Tensor = self.language_model.get_input_embeddings()(known)  # type: ignore[operator]
        return embedded

    def forward(self, embeddings: Tensor, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """Compute the scores of all tokens at once, without keeping hidden states."""
        x, start = self._sequence(embeddings, tokens if seen is None else seen)
        logits: Tensor = self.language_model(inputs_embeds=x, use_cache=False).logits  # (B, P + T - 1, V)
        return logits[:, start:]  # (B, T, V)

    def score(self, embeddings: Tensor, tokens: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the scores and the hidden states of all tokens at once."""
        x, start = self._sequence(embeddings, tokens if seen is None else seen)
        out = self.language_model(inputs_embeds=x, use_cache=False, output_hidden_states=True)
        return out.logits[:, start:], out.hidden_states[-1][:, start:]  # (B, T, V), (B, T, W)

    def _sequence(self, embeddings: Tensor, shown: Tensor) -> tuple[Tensor, int]:
        """Return prefix and tokens (B, P + T - 1, W), and the position that predicts the first token."""
        prefix = self.embed_prefix(embeddings)  # (B, P, W)
        return torch.cat([prefix, self.embed_tokens(shown[:, :-1])], dim=1), prefix.shape[1] - 1

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Run the prefix."""
        cache = _Cache()
        logits, hidden = self._step(self.embed_prefix(embeddings), cache)
        return logits, hidden, cache

    def decode_step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Run one more token."""
        return self._step(self.embed_tokens(tokens[:, None]), cache)

    def behind_prefix(self, length: int) -> LanguageModelDecoder:
        """Return a copy of a language model behind a new mapper."""
        config = replace(self.config, prefix_length=length, frozen=True)
        decoder = LanguageModelDecoder(config, copy.deepcopy(self.language_model))
        start_at(decoder.mapper, self.embed_tokens(torch.tensor([self.end_id], device=self.device))[0].detach())
        return decoder

    def cache_of(self, tensors: list[Tensor]) -> Any:
        """Return a cache of given keys and values."""
        cache = _Cache()
        for layer, (keys, values) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
            cache.past.update(keys, values, layer)
        return cache

    def _step(self, x: Tensor, cache: _Cache) -> tuple[Tensor, Tensor]:
        past = {self._cache_argument: cache.past}
        out = self.language_model(inputs_embeds=x, use_cache=True, output_hidden_states=True, **past)
        return out.logits[:, -1], out.hidden_states[-1][:, -1]  # (B, V), (B, W)


Decoder = CaptionDecoder | LanguageModelDecoder


class _Cache:
    """The cache of the language model, which extends it in place."""

    def __init__(self) -> None:
        self.past = _transformers().DynamicCache()

    def select(self, rows: Tensor) -> None:
        self.past.batch_select_indices(rows)

    def tensors(self) -> list[Tensor]:
        return [part for layer in self.past for part in layer[:2]]  # keys, values, and more in some versions


def pretrained(size: LanguageModelSize, dim: int) -> tuple[LanguageModelDecoder, CaptionTokenizer]:
    """Load a language model and its tokenizer, and put it behind a new mapper for embeddings of ``dim`` dimensions.

    Raises:
        MissingExtraError: if transformers is not installed.
        DecoderError: if there is no such model, or it has no fast tokenizer or end-of-text token.
    """
    transformers = _transformers()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(size.model).float()
        tokenizer = transformers.AutoTokenizer.from_pretrained(size.model)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DecoderError(
            f"The language model {size.model!r} cannot be loaded ({reason}).",
            remedy="Give a folder that save_pretrained wrote, with its tokenizer (--set model=PATH), or a model of the "
            "Hugging Face hub if it can be reached. The sizes tiny, small and base need neither.",
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    end_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else model.config.eos_token_id
    if backend is None or end_id is None:
        raise DecoderError(f"The language model {size.model!r} has no fast tokenizer with an end-of-text token.")
    backend.no_padding()
    backend.no_truncation()
    vocab_size = int(model.get_output_embeddings().weight.shape[0])
    config = LanguageModelConfig(
        dim=dim,
        vocab_size=vocab_size,
        end_id=int(end_id),
        architecture=model.config.to_dict(),
        prefix_length=size.prefix_length,
        max_tokens=size.max_tokens,
        frozen=size.frozen,
    )
    return LanguageModelDecoder(config, model), CaptionTokenizer(backend, vocab_size, int(end_id))


def _from_config(architecture: Mapping[str, Any]) -> nn.Module:
    transformers = _transformers()
    settings = dict(architecture)
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config).float()
    return model


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", extra="hf", purpose="A language-model decoder") from error
    return transformers
