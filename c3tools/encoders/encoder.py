"""The encoder: from image files and texts to embeddings, through a contrastive model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..arrays import Matrix, Pixels
from ..devices import Compute
from ..errors import EncoderError
from ..identity import ModelIdentity
from ..reporter import Progress
from .backends.base import USUAL_TEXT_LENGTH, Backend, Modality, Pending
from .preprocessing import ImagePreprocessor

Tokens = npt.NDArray[np.int64]


class Encoder:
    """A contrastive model with its tokenizer and preprocessing: embeddings of images and texts in one space.

    Args:
        end_token: the id of the end-of-text token; None if it is the largest.
        dim: dimension d of the embeddings; None to find out by a text.

    Attributes:
        identity: ``name``, ``architecture``, ``pretrained``, ``weights_sha256``, ``random_init``.
        dim: dimension d of the embeddings.
        backend: what runs the model.
        preprocess: from an RGB image to the pixels the model takes.
        trims_texts: whether texts are run without their padding (only if that is exact).
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Any,
        preprocess: ImagePreprocessor,
        *,
        identity: Mapping[str, Any],
        trims_texts: bool,
        end_token: int | None = None,
        dim: int | None = None,
    ) -> None:
        self.backend = backend
        self.identity = ModelIdentity(identity)
        self.preprocess = preprocess
        self.trims_texts = trims_texts
        self._tokenizer = tokenizer
        self._end_token = end_token
        self._batch_sizes: dict[str, int] = {}
        self.dim = dim or next(self.encode_token_batches(self.tokenise(["a photo"]), batch_size=1))[1].shape[1]

    @property
    def compute(self) -> Compute:
        """Device and precision."""
        return self.backend.compute

    @property
    def compiled(self) -> bool:
        """True if the towers run through `torch.compile`."""
        return self.backend.compiled

    def batch_size(self, modality: Modality) -> int:
        """Return how many images or texts are run at a time: by the memory of a GPU, fixed on other devices.

        The same on every machine with the same device: what is batched together decides the last bits of the result.
        """
        if modality not in self._batch_sizes:
            height, width = self.preprocess.size
            self._batch_sizes[modality] = self.backend.batch_size(modality, height * width)
        return self._batch_sizes[modality]

    def encode_images(
        self,
        images: Sequence[str | Path | Image.Image | Pixels] | Pixels,
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of images.

        Args:
            images: paths of image files, Pillow images, or arrays, uint8 (height, width, 3), of any size.
            batch_size: images run at a time; None for `batch_size`.
            progress: counts the images of each batch.

        Raises:
            EncoderError: if a file cannot be decoded (the message names it), or an array is no RGB image.
        """
        size = batch_size or self.batch_size("image")
        batches = (
            (start, np.stack([self.pixels(image) for image in images[start : start + size]]))
            for start in range(0, len(images), size)
        )
        parts = []
        for _, features in self.backend.run("image", batches):
            parts.append(features)
            if progress is not None:
                progress.advance(len(features))
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int | None = None) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of texts; those over the context length are cut."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return self.encode_tokens(self.tokenise(texts), batch_size=batch_size)

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Return token ids, int64 (n, context length), padded."""
        return np.asarray(self._tokenizer(list(texts)), dtype=np.int64)

    def truncated(self, texts: Sequence[str], tokens: Tokens) -> int:
        """Return how many of n texts, whose tokens are (n, context length), were cut to the context length."""
        whole = getattr(self._tokenizer, "tokenizer", None)
        if callable(whole):  # of transformers: it may pad with the end token, so rows do not tell
            texts = [self._tokenizer.clean_fn(text) for text in texts]
            long = [text for text in texts if len(text.encode()) >= tokens.shape[1] - 2]  # a byte is a token at most
            return sum(len(ids) > tokens.shape[1] for ids in whole(long, verbose=False)["input_ids"]) if long else 0
        full = np.flatnonzero(self._ends(tokens) == tokens.shape[1] - 1).tolist()
        encode = getattr(self._tokenizer, "encode", None)
        if encode is None:
            return len(full)
        longest = tokens.shape[1] - 2  # the start and the end token
        return sum(len(encode(texts[row])) > longest for row in full)

    def encode_tokens(self, tokens: Tokens, *, batch_size: int | None = None) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of token ids (n, context length)."""
        out = np.zeros((len(tokens), self.dim), np.float32)
        for rows, embeddings in self.encode_token_batches(tokens, batch_size=batch_size):
            out[rows] = embeddings
        return out

    def encode_token_batches(
        self, tokens: Tokens, *, batch_size: int | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Matrix]]:
        """Yield row numbers and embeddings of one batch after another.

        Where padding is not computed on, rows are ordered by length, so that a batch is as short as it can be; what
        is batched together depends on the tokens alone.
        """
        return self.backend.run("text", self.token_batches(tokens, batch_size))

    def token_batches(self, tokens: Tokens, batch_size: int | None) -> Iterator[tuple[npt.NDArray[np.int64], Tokens]]:
        """Yield row numbers and tokens, as the text tower is given them, of one batch after another."""
        lengths = self._ends(tokens) + 1 if self.trims_texts else np.full(len(tokens), tokens.shape[1])
        order = np.argsort(lengths, kind="stable")
        size = batch_size or self.batch_size("text")
        start = 0
        while start < len(order):
            rows = order[start : start + size]
            if batch_size is None:  # long texts in smaller batches, so that they take no more memory than short ones
                rows = rows[: max(1, size * USUAL_TEXT_LENGTH // int(lengths[rows].max()))]
            yield rows, tokens[rows, : int(lengths[rows].max())]
            start += len(rows)

    def _ends(self, tokens: Tokens) -> npt.NDArray[np.int64]:
        """Return the position (n,) of the end-of-text token of each row."""
        ends: npt.NDArray[np.int64] = np.argmax(
            tokens if self._end_token is None else tokens == self._end_token, axis=1
        )
        return ends

    def encode_pixels(self, pixels: Pixels) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of pixels, uint8 (n, height, width, 3)."""
        return self.start_pixels(pixels).result()

    def start_pixels(self, pixels: Any) -> Pending:
        """Start `encode_pixels`, of an array or a torch tensor, without waiting for the result."""
        return self.backend.submit("image", pixels)

    def pixels(self, image: str | Path | BinaryIO | Image.Image | Pixels) -> Pixels:
        """Return pixels, uint8 (height, width, 3), as the image tower takes them, of a file, an image or an array.

        Raises:
            EncoderError: if it cannot be decoded, or is no RGB image.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise EncoderError(
                    f"An image was given as an array of {image.dtype} of shape {image.shape}.",
                    remedy="Pass an RGB image: uint8 of shape (height, width, 3).",
                )
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return self.preprocess(image.convert("RGB"))
        try:
            return self.preprocess.load(image)[0]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise EncoderError(f"{image} cannot be read as an image ({error}).") from error
