"""A causal language model of transformers behind a mapper: ClipCap's decoder, and the paper's (the
extra ``hf``).

A mapper turns an embedding into P prefix positions of the model's width; the model continues them
with a caption and its own end-of-text token. The model is fine-tuned with the mapper, or frozen.
Any causal model that takes ``inputs_embeds`` and has a fast tokenizer will do. Padding is the id
after the last token: no token of the model is ever ignored by the loss. With P = 0 there is no
mapper: the model reads no embedding, and begins with its end-of-text token.

Shapes: B captions, T tokens, P prefix positions, W width of the model, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..errors import DecoderError, optional_module, reason_of
from .config import LanguageModelConfig, LanguageModelSize
from .model import Decoder
from .tokenizer import CaptionTokenizer


class LanguageModelDecoder(Decoder):
    """A language model behind a mapper; see the module's docstring."""

    config: LanguageModelConfig
    language_model: Any

    def __init__(
        self, config: LanguageModelConfig, language_model: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.pad_id = config.vocab_size
        self.end_id = config.end_id
        if language_model is None:
            transformers = _transformers()
            architecture = transformers.AutoConfig.for_model(**config.architecture)
            language_model = transformers.AutoModelForCausalLM.from_config(architecture).float()
        self.language_model = language_model
        width = self.language_model.get_input_embeddings().weight.shape[1]
        if config.prefix_length:
            filled = config.prefix_length * width
            hidden = filled // 2
            self.mapper = nn.Sequential(
                nn.Linear(config.dim, hidden), nn.Tanh(), nn.Linear(hidden, filled)
            )
        if config.frozen:
            self.language_model.requires_grad_(False)
        arguments = inspect.signature(self.language_model.forward).parameters
        # its name changed with the version of transformers
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"
        self._can_skip_scores = "logits_to_keep" in arguments

    @classmethod
    def pretrained(
        cls, size: LanguageModelSize, dim: int
    ) -> tuple[LanguageModelDecoder, CaptionTokenizer]:
        """Load a language model and its tokenizer, and put it behind a new mapper for embeddings of
        ``dim`` dimensions.

        Raises:
            MissingExtraError: if transformers is not installed.
            DecoderError: if there is no such model, or it has no fast tokenizer or end-of-text
                token.
        """
        transformers = _transformers()
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(size.model).float()
            tokenizer = transformers.AutoTokenizer.from_pretrained(size.model)
        except (OSError, ValueError, KeyError) as error:
            raise DecoderError(
                f"The language model {size.model!r} cannot be loaded ({reason_of(error)}).",
                remedy="Pass a folder written by save_pretrained, with its tokenizer (--set "
                "model=PATH), or a model on the Hugging Face hub, if it is reachable. The sizes "
                "tiny, small and base need neither.",
            ) from error
        backend = getattr(tokenizer, "backend_tokenizer", None)
        end_id = (
            tokenizer.eos_token_id
            if tokenizer.eos_token_id is not None
            else model.config.eos_token_id
        )
        if backend is None or end_id is None:
            raise DecoderError(
                f"The language model {size.model!r} has no fast tokenizer with an end-of-text "
                f"token."
            )
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
        return cls(config, model), CaptionTokenizer(backend, vocab_size, int(end_id))

    def train(self, mode: bool = True) -> LanguageModelDecoder:
        """Set the training mode; a frozen model stays without dropout."""
        super().train(mode)
        if self.config.frozen:
            self.language_model.eval()
        return self

    def map_prefix(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (B, d) by the MLP to (B, P * W)."""
        return self.mapper(embeddings)  # type: ignore[no-any-return]

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed tokens as (B, T, W); padding and hidden words look like end-of-text."""
        readable = tokens.masked_fill(tokens == self.pad_id, self.end_id)
        return self.language_model.get_input_embeddings()(readable)  # type: ignore[no-any-return]

    def predict(self, x: Tensor, first: int, cache: Any = None) -> tuple[Tensor, Tensor]:
        """Run the language model on inputs (B, S, W).

        Most models can leave out the scores before ``first``. A vocabulary is large: of the prefix
        they would take as much time and memory as those of the caption.
        """
        count = len(range(x.shape[1])[first:])  # S'
        options = {"use_cache": cache is not None, self._cache_argument: cache}
        if self._can_skip_scores:
            options["logits_to_keep"] = count
        out = self.language_model(inputs_embeds=x, output_hidden_states=True, **options)
        logits = out.logits[:, -count:]  # (B, S', V)
        hidden = out.hidden_states[-1][:, -count:]  # (B, S', W)
        return logits, hidden

    def new_cache(self) -> Any:
        """Return an empty cache of transformers."""
        return _transformers().DynamicCache()

    def copy_behind_mapper(self, length: int) -> tuple[LanguageModelDecoder, nn.Sequential]:
        """Return a copy behind a new mapper; see `Decoder.behind_prefix`."""
        config = replace(self.config, prefix_length=length, frozen=True)
        decoder = LanguageModelDecoder(config, copy.deepcopy(self.language_model))
        return decoder, decoder.mapper


def _transformers() -> Any:
    return optional_module(
        "transformers", "transformers", extra="hf", purpose="A language-model decoder"
    )
