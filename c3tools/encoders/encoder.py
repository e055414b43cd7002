"""The encoder: a contrastive model with its tokenizer and its preprocessing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from ..devices import Compute
from ..errors import EncoderError
from . import texts as text_tower
from .images import ImagePreprocessor, Pixels

Matrix = npt.NDArray[np.float32]
IMAGE_BATCH = {"cpu": 64, "cuda": 256}
TEXT_BATCH = {"cpu": 128, "cuda": 1024}


class Encoder:
    """Embeddings of images and texts, in one space.

    Attributes:
        identity: ``name``, ``architecture``, ``pretrained``, ``weights_sha256``, ``random_init``.
        dim: dimension d of the embeddings.
        compute: device and precision.
        preprocess: from an RGB image to the pixels the model takes.
        image_batch, text_batch: how many images or texts are run at a time.
        trims_texts: whether texts are run without their padding (only where that is exact).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        preprocess: ImagePreprocessor,
        *,
        identity: dict[str, Any],
        compute: Compute,
    ) -> None:
        self.identity = identity
        self.compute = compute
        self.preprocess = preprocess
        self._tokenizer = tokenizer
        self._model = model.to(compute.device, compute.dtype)
        self.trims_texts = text_tower.can_trim(self._model, tokenizer)
        if compute.device.type in ("cpu", "cuda"):
            self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (1, 1, 1, 3)
        self._mean = torch.tensor(preprocess.mean, device=compute.device).view(shape)
        self._std = torch.tensor(preprocess.std, device=compute.device).view(shape)
        self.image_batch = IMAGE_BATCH.get(compute.device.type, 64)
        self.text_batch = TEXT_BATCH.get(compute.device.type, 128)
        self.dim = next(self.encode_token_batches(self.tokenise(["a photo"])))[1].shape[1]

    def in_precision(self, compute: Compute) -> Encoder:
        """The same model on another device or in another precision; this one stays as it is."""
        model = copy.deepcopy(self._model)
        return Encoder(model, self._tokenizer, self.preprocess, identity=self.identity, compute=compute)

    def encode_images(self, images: Sequence[str | Path | Image.Image], *, batch_size: int | None = None) -> Matrix:
        """L2-normalised embeddings, float32 (n, d), of image files or Pillow images.

        Raises:
            EncoderError: if a file cannot be decoded; it is named.
        """
        parts = []
        size = batch_size or self.image_batch
        for start in range(0, len(images), size):
            pixels = [self._pixels(image) for image in images[start : start + size]]
            parts.append(self.encode_pixels(np.stack(pixels)))
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int | None = None) -> Matrix:
        """L2-normalised embeddings, float32 (n, d), of texts; those over the context length are cut."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return self.encode_tokens(self.tokenise(texts), batch_size=batch_size)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64 (n, context length), padded."""
        return self._tokenizer(list(texts))  # type: ignore[no-any-return]

    def truncated(self, tokens: Tensor) -> int:
        """How many of the texts behind these tokens (n, context length) filled the whole context."""
        return int((text_tower.end_positions(self._model, tokens) == tokens.shape[1] - 1).sum())

    def encode_tokens(self, tokens: Tensor, *, batch_size: int | None = None) -> Matrix:
        """L2-normalised embeddings, float32 (n, d), of token ids (n, context length)."""
        out = np.zeros((len(tokens), self.dim), np.float32)
        for rows, embeddings in self.encode_token_batches(tokens, batch_size=batch_size):
            out[rows] = embeddings
        return out

    def encode_token_batches(
        self, tokens: Tensor, *, batch_size: int | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Matrix]]:
        """Row numbers and embeddings of one batch after another.

        Where padding is not computed on, rows are ordered by length, so that a batch is as short as it can be; what
        is batched together depends on the tokens alone.
        """
        if self.trims_texts:
            lengths = text_tower.end_positions(self._model, tokens).numpy() + 1
        else:
            lengths = np.full(len(tokens), tokens.shape[1])
        order = np.argsort(lengths, kind="stable")
        size = batch_size or self.text_batch
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            cut = tokens[torch.from_numpy(rows), : int(lengths[rows].max())]
            yield rows, _halving(self._text_features, cut)

    def encode_pixels(self, pixels: Pixels | Tensor) -> Matrix:
        """L2-normalised embeddings, float32 (n, d), of pixels, uint8 (n, height, width, 3)."""
        return _halving(self._image_features, torch.as_tensor(pixels))

    def _image_features(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.compute.device, non_blocking=True)
        x = (x.float().div_(255).sub_(self._mean)).div_(self._std)  # (n, height, width, 3)
        # a view as (n, 3, height, width) of this memory is channels_last already
        x = x.permute(0, 3, 1, 2).to(self.compute.dtype)
        return self._model.encode_image(x)  # type: ignore[operator,no-any-return]

    def _text_features(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.compute.device)
        if self.trims_texts:
            return text_tower.trimmed_forward(self._model, tokens)
        return self._model.encode_text(tokens)  # type: ignore[operator,no-any-return]

    def _pixels(self, image: str | Path | Image.Image) -> Pixels:
        if isinstance(image, Image.Image):
            return self.preprocess(image.convert("RGB"))
        try:
            return self.preprocess.load(image)[0]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise EncoderError(f"{image} cannot be read as an image ({error}).") from error


def _halving(features: Callable[[Tensor], Tensor], batch: Tensor) -> Matrix:
    """Unit vectors, float32, on the CPU; a batch that does not fit into memory is run in halves.

    Normalised in float32, whatever the precision of the model.
    """
    try:
        with torch.inference_mode():
            return nn.functional.normalize(features(batch).float(), dim=-1).cpu().numpy()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
        if not out_of_memory or len(batch) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(batch) // 2
    return np.concatenate([_halving(features, batch[:half]), _halving(features, batch[half:])])
