"""Models that sentence-transformers loads (extra ``st``), behind the interface of
`c3tools.encoders.plugins`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..arrays import Floats
from ..devices import Compute, threads
from ..errors import EncoderError, MissingExtraError
from ..io.hub import is_reachable
from .networks import OFFLINE_REMEDY, weights_sha256

# names of prompts, by precedence as in `encode_document`
_DOCUMENTS = ("document", "passage", "corpus")
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class SentenceTransformersModel:
    """A model of sentence-transformers.

    Texts and images are given the model's prompt for documents, queries that for queries. Code that
    comes with a model is not run.

    Args:
        name: of a repository of the Hugging Face hub, or a folder.
        device: as torch names it.
        precision: ``fp32``, ``bf16`` or ``fp16``; ``auto`` for that of the weights.
        truncate_dim: keep only so many dimensions.
        query_prompt: precedes each query; None for the model's own.

    Raises:
        MissingExtraError: if sentence-transformers is not installed.
        EncoderError: if the weights cannot be downloaded, or the model has fewer dimensions than
            ``truncate_dim``.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str = "cpu",
        precision: str = "auto",
        truncate_dim: int | None = None,
        query_prompt: str | None = None,
    ) -> None:
        try:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.base.modality import infer_modality
        except ImportError:
            raise MissingExtraError(
                "sentence-transformers", extra="st", purpose=f"The model st:{name}"
            ) from None
        from huggingface_hub import constants
        from transformers.utils import logging

        # Load the weights: of a folder, of the cache if the hub does not answer, else of the hub
        logging.disable_progress_bar()
        folder = Path(name).expanduser()
        is_folder = folder.is_dir()
        is_offline = not is_folder and not is_reachable(constants.ENDPOINT)
        try:
            model: Any = SentenceTransformer(
                str(folder) if is_folder else name,
                device=device,
                local_files_only=is_folder or is_offline,
            )
        except Exception as error:
            if not is_offline:
                raise
            raise EncoderError(
                f"The model st:{name} is not on this machine, and it cannot be downloaded: "
                f"{constants.ENDPOINT} does not answer.",
                remedy=OFFLINE_REMEDY,
            ) from error
        model.eval()
        self._model = model
        self._infer = infer_modality
        self._lock = threading.Lock()

        # What it takes, and what it returns
        dim = model.get_embedding_dimension()
        if truncate_dim is not None and not 1 <= truncate_dim <= dim:
            raise EncoderError(
                f"The model st:{name} has embeddings of {dim:,} dimensions, so they cannot be "
                f"truncated to {truncate_dim:,}.",
                remedy=f"Use --truncate-dim with 1 to {dim:,}, or leave it out.",
            )
        self.dim = truncate_dim or dim
        self.normalised = model.similarity_fn_name == "cosine"
        self.modalities = [kind for kind in ("image", "text", "audio") if model.supports(kind)]
        feature_extractor = getattr(model.processor, "feature_extractor", model.processor)
        self.sampling_rate = getattr(feature_extractor, "sampling_rate", 0)

        # What precedes documents and queries
        default_prompt = model.prompts.get(model.default_prompt_name)
        document_prompts = [model.prompts.get(kind) for kind in _DOCUMENTS]
        self._document = next(filter(None, document_prompts), default_prompt)
        self._query = query_prompt
        if query_prompt is None:
            self._query = model.prompts.get("query") or default_prompt

        # How long texts may be
        self._longest = model.max_seq_length
        self._options: dict[str, Any] = {}
        if str(getattr(model.config, "model_type", "")).startswith("siglip"):
            # It was trained with texts padded to full length; padded to the longest of a batch they
            # depend on the batch
            self._longest = model.config.text_config.max_position_embeddings
            self._options["processing_kwargs"] = {"text": {"padding": "max_length"}}

        # The weights as they are in the files, before they are rounded to another precision
        self.identity = {
            "weights_sha256": weights_sha256(model),
            "truncate_dim": truncate_dim,
            "query_prompt": self._query,
            "document_prompt": self._document,
            "similarity": model.similarity_fn_name,
            "max_length": self._longest,
        }
        if precision != "auto":
            model.to(Compute(device, precision).dtype)
        self.device = device
        self.precision = _PRECISIONS[str(model.dtype).removeprefix("torch.")]
        self.parallel = threads() if device == "cpu" else 1

    def encode_images(self, images: Sequence[Image.Image]) -> Floats:
        """Return embeddings (n, d) of RGB images."""
        return self._run(images, self._document, "document")

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return embeddings (n, d) of texts as documents."""
        return self._run(self._as_texts(texts), self._document, "document")

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Return embeddings (n, d) of texts as queries."""
        return self._run(self._as_texts(texts), self._query, "query")

    def encode_audio(self, sounds: Sequence[Floats]) -> Floats:
        """Return embeddings (n, d) of sounds (samples,); processors that cut at a random place cut
        at the same.
        """
        random = np.random.get_state()
        np.random.seed(0)
        try:
            inputs = [{"array": sound, "sampling_rate": self.sampling_rate} for sound in sounds]
            return self._run(inputs, self._document, "document")
        finally:
            np.random.set_state(random)

    def is_longer(self, texts: Sequence[str]) -> list[bool]:
        """Return which texts the model cuts; those with fewer bytes than it reads tokens are not
        tokenised for this.
        """
        most = self._longest
        tokenizer = self._model.tokenizer
        if most is None or tokenizer is None:
            return [False] * len(texts)
        special_tokens = tokenizer.num_special_tokens_to_add()
        is_longer = [False] * len(texts)
        rows_to_count = []
        texts_to_count = []
        for row, text in enumerate(texts):
            prompted = (self._document or "") + text
            # A token has at least one byte
            if len(prompted.encode()) + special_tokens > most:
                rows_to_count.append(row)
                texts_to_count.append(prompted)
        if texts_to_count:
            if self._uncut is None:
                tokens = self._model.tokenizer(texts_to_count, verbose=False)["input_ids"]
            else:
                tokens = self._uncut.encode_batch_fast(texts_to_count)
            for row, tokens_of_row in zip(rows_to_count, tokens, strict=True):
                is_longer[row] = len(tokens_of_row) > most
        return is_longer

    @cached_property
    def _uncut(self) -> Any:
        """A copy of a tokenizer in Rust that does not cut, which is quicker; None if it is another
        tokenizer.
        """
        copied = copy.deepcopy(getattr(self._model.tokenizer, "backend_tokenizer", None))
        if copied is not None:
            copied.no_truncation()
            copied.no_padding()
        return copied

    def _as_texts(self, texts: Sequence[str]) -> list[Any]:
        """Return texts in a form in which the path or URL of a file is a text too: it would be
        opened.
        """
        return [text if self._infer(text) == "text" else {"text": text} for text in texts]

    def _run(self, inputs: Sequence[Any], prompt: str | None, task: str) -> Floats:
        """Compute what ``encode`` does for one batch, on one core of a CPU: each of them has a
        batch of its own.
        """
        import torch

        if self.device == "cpu":
            torch.set_num_threads(1)  # of this thread
        with torch.inference_mode():
            with self._lock:  # tokenizers are changed while they are used
                features = self._model.preprocess(
                    list(inputs), prompt=prompt, task=task, **self._options
                )
            on_device = {}
            for name, value in features.items():
                on_device[name] = value.to(self.device) if hasattr(value, "to") else value
            embeddings = self._model(on_device, task=task)["sentence_embedding"]
            rows: Floats = embeddings.float().cpu().numpy()
        return rows[:, : self.dim]
