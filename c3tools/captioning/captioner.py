"""A trained decoder with all that belongs to it: tokenizer, fitted pipeline, and the record of its training.

Saved as a folder, without any pickle:

    c3-decoder/
      decoder.json            kind, architecture, record, sha256 of the other files
      weights.safetensors     the weights with the best validation loss, float32
      tokenizer.json          the BPE tokenizer
      transform.json, transform.safetensors   the fitted pipeline
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from ..errors import DecoderError
from ..identity import ModelIdentity
from ..io.files import sha256_of, write_json_atomically
from ..transforms import Pipeline
from .config import DecoderConfig
from .decoder import Decoder
from .generation import GenerationConfig, TextEncoder, generate
from .magic import magic
from .model import CaptionDecoder
from .tokenizer import CaptionTokenizer

FORMAT_VERSION = 1
BUILT_IN, LANGUAGE_MODEL = "built-in", "language-model"
DECODER_FILE = "decoder.json"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
_PARTS = (WEIGHTS_FILE, TOKENIZER_FILE, "transform.json", "transform.safetensors")


@dataclass
class Captioner:
    """Writes captions from embeddings.

    Attributes:
        decoder: the built-in Transformer, or a language model behind a mapper.
        tokenizer: its tokenizer.
        pipeline: the fitted transform of its inputs.
        record: how it was trained: ``model`` (identity of the encoder), ``preset``, ``sigma``, ``seed``,
            ``captions``, ``training``, ``history``, ``best_val_loss``.
    """

    decoder: Decoder
    tokenizer: CaptionTokenizer
    pipeline: Pipeline
    record: dict[str, Any] = field(default_factory=dict)

    def caption(
        self,
        embeddings: npt.NDArray[np.float32],
        *,
        modality: str = "image",
        keys: Sequence[str] | None = None,
        generation: GenerationConfig | None = None,
        encoder: TextEncoder | None = None,
    ) -> list[str]:
        """One caption per embedding.

        Args:
            embeddings: float32 (n, d) as the encoder gives them; the pipeline is applied here.
            modality: whose embeddings they are.
            keys: one per row, needed by nucleus sampling.
            generation: method and settings; greedy by default.
            encoder: of the decoder's model; ``magic`` has it score what is written.

        Raises:
            DecoderError: if the dimension is another than the decoder's, or ``magic`` is given no encoder.
        """
        self.check_dim(embeddings.shape[1])
        if not len(embeddings):
            return []
        inputs = self.pipeline.transform(embeddings, modality=modality, training=False)
        self.decoder.eval()
        if generation is not None and generation.method == "magic":
            written = magic(self.decoder, self.tokenizer, inputs, embeddings, generation, encoder)
        else:
            written = generate(self.decoder, inputs, generation, keys)
        return [self.tokenizer.decode(ids) for ids in written]

    @property
    def model(self) -> ModelIdentity:
        """The model whose embeddings it was trained on."""
        return ModelIdentity(self.record.get("model") or {})

    def check_dim(self, dim: int) -> None:
        """Refuse embeddings of another dimension.

        Raises:
            DecoderError: with both dimensions and the decoder's model.
        """
        if dim != self.decoder.shape.dim:
            raise DecoderError(
                f"The decoder was trained on embeddings of {self.decoder.shape.dim} dimensions "
                f"({self.model}); these have {dim}.",
                remedy="Use embeddings of the same model, or train a decoder on these: `c3 train-decoder`.",
            )

    def check_model(self, model: Mapping[str, Any] | None, dim: int) -> None:
        """Refuse embeddings of another model than the decoder's: by the hash of the weights, else by name.

        Raises:
            DecoderError: with both models named.
        """
        self.model.require_same(
            ModelIdentity(model or {}),
            own="The decoder",
            theirs="these embeddings",
            error=DecoderError,
            remedy="Use the same --model, or train a decoder on these embeddings: `c3 train-decoder`.",
        )
        self.check_dim(dim)

    def digest(self) -> str:
        """A digest of the weights."""
        found = hashlib.sha256()
        for name, value in self.decoder.state_dict().items():
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all; one that is there is replaced."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            save_model(self.decoder, str(temporary / WEIGHTS_FILE))  # tied weights are written once
            self.tokenizer.save(temporary / TOKENIZER_FILE)
            self.pipeline.save(temporary)
            content = {
                "format_version": FORMAT_VERSION,
                "kind": BUILT_IN if isinstance(self.decoder, CaptionDecoder) else LANGUAGE_MODEL,
                "config": asdict(self.decoder.shape),  # type: ignore[call-overload]
                "record": self.record,
                "files": {name: sha256_of(temporary / name) for name in _PARTS if (temporary / name).is_file()},
            }
            write_json_atomically(temporary / DECODER_FILE, content)
            _replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, device: torch.device | None = None) -> Captioner:
        """Read what `save` wrote, with the weights on ``device`` (CPU by default).

        Raises:
            DecoderError: if there is no decoder, or a file of it is missing, damaged or cut short.
        """
        path = folder / DECODER_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = int(content["format_version"])
            if version > FORMAT_VERSION:
                raise DecoderError(
                    f"{path} has format version {version}; this c3tools reads up to {FORMAT_VERSION}.",
                    remedy="Update c3tools: pip install -U c3tools",
                )
            _check_files(folder, content["files"])
            decoder = _build(content.get("kind", BUILT_IN), content["config"])
            load_model(decoder, folder / WEIGHTS_FILE)
        except (FileNotFoundError, NotADirectoryError):
            raise DecoderError(
                f"There is no trained decoder at {folder} ({DECODER_FILE} is not there).",
                remedy="Train one with `c3 train-decoder`, or name another with --decoder.",
            ) from None
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise DecoderError(
                f"The decoder at {folder} is damaged ({error}).", remedy="Train it again: `c3 train-decoder`."
            ) from error
        decoder.to(device or torch.device("cpu")).eval()
        tokenizer = CaptionTokenizer.load(folder / TOKENIZER_FILE, decoder.pad_id, decoder.end_id)
        return cls(decoder, tokenizer, Pipeline.load(folder), content["record"])


def _build(kind: str, config: Mapping[str, Any]) -> Decoder:
    if kind == BUILT_IN:
        return CaptionDecoder(DecoderConfig(**config))
    from .language_model import LanguageModelConfig, LanguageModelDecoder

    return LanguageModelDecoder(LanguageModelConfig(**config))


def _check_files(folder: Path, expected: Mapping[str, str]) -> None:
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            state = "is damaged or was cut short" if path.is_file() else "is missing"
            previous = previous_folder(folder)
            remedy = "Train it again: `c3 train-decoder`."
            if previous.is_dir():
                remedy = f"The decoder before this one is at {previous}: use --decoder {previous}, or train again."
            raise DecoderError(f"{path} {state}.", remedy=remedy)


def previous_folder(folder: Path) -> Path:
    """Where the decoder that a new one replaced is kept."""
    return folder.with_name(f"{folder.name}.previous")


def _replace_folder(new: Path, folder: Path) -> None:
    if folder.exists():
        previous = previous_folder(folder)
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    new.rename(folder)
