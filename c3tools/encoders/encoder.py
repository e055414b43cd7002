"""The encoder: embeddings of image files and texts, by a model that a backend runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

from ..arrays import Floats, Indices, Mask, Matrix, Pixels
from ..choices import PositiveInt, checked
from ..devices import Compute
from ..errors import EncoderError
from ..identity import ModelIdentity
from ..io.images import UNREADABLE
from ..lists import as_list
from ..reporter import Progress
from .preprocessing import ImagePreprocessor

Modality = Literal["image", "text", "query", "audio"]
T = TypeVar("T")

# Inputs per batch. On a CPU the activations of a small batch stay in its cache. On a GPU
# `benchmarks/gpu.py forward` measures other sizes.
ON_CPU = {"image": 32, "text": 128}
_ON_GPU = {"image": 256, "text": 1024}
# Batches of inputs up to these sizes are full; batches of larger inputs have fewer.
_USUAL_PIXELS = 224 * 224
_USUAL_TEXT_LENGTH = 16  # tokens


class Backend(Protocol):
    """A loaded model, which runs batch by batch.

    Attributes:
        name: such as ``torch``.
        compute: device and precision.
        ahead: how many further batches to submit before waiting for the first.
    """

    compute: Compute
    ahead: int

    @property
    def name(self) -> str:
        """The backend's name."""

    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Start a batch, and return a function that waits for its unit vectors, float32 (n, d).

        Args:
            modality: of the batch.
            batch: pixels, uint8 (n, height, width, 3), or tokens, int64 (n, length); an array or a
                torch tensor.
        """


@dataclass(frozen=True)
class ModelFacts:
    """The facts of its model that an `Encoder` needs.

    Attributes:
        tokenizer: from texts to token ids, (n, context length); takes another context length as
            second argument.
        preprocess: from an RGB image to the pixels that the model takes.
        identity: ``name``, ``architecture``, ``pretrained``, ``weights_sha256``, ``random_init``.
        trims_texts: whether texts are run without their padding (only if that is exact).
        dim: dimension d of the embeddings.
        end_token: the id of the end-of-text token; None if it is the largest.
    """

    tokenizer: Any
    preprocess: ImagePreprocessor
    identity: Mapping[str, Any]
    trims_texts: bool
    dim: int
    end_token: int | None = None


class Encoder:
    """A contrastive model with its tokenizer and preprocessing.

    It embeds images and texts in one space. Most callers need `identity`, `dim`, `encode_images`
    and `encode_texts`; the other methods are for embedding in batches that are prepared elsewhere.

    Attributes:
        modalities: what can be embedded; frames of videos are images.
        normalised: whether the embeddings have unit length.
        sampling_rate: of audio, in samples per second; 0 if the model takes none.

    Args:
        backend: runs the model.
        facts: describes the model.
    """

    modalities: Collection[str] = ("image", "text")
    normalised = True
    sampling_rate = 0

    def __init__(self, backend: Backend, facts: ModelFacts) -> None:
        self.backend = backend
        self.compute = backend.compute
        self.identity = ModelIdentity(facts.identity)
        self.preprocess = facts.preprocess
        self.trims_texts = facts.trims_texts
        self.dim = facts.dim
        self._tokenizer = facts.tokenizer
        self._end_token = facts.end_token

    def __repr__(self) -> str:
        """Return model, dimension, device, precision and backend."""
        compute = self.compute
        return (
            f"Encoder({self.identity.name!r}, dim={self.dim}, {compute.device}, "
            f"{compute.precision}, {self.backend.name})"
        )

    def require(self, *modalities: str) -> None:
        """Refuse modalities that the model does not embed; frames of videos are images.

        Raises:
            EncoderError: with the first of ``modalities`` that it does not take.
        """
        for modality in modalities:
            embedded_as = "image" if modality == "video" else modality
            if embedded_as not in self.modalities:
                raise EncoderError(
                    f"The model {self.identity.name} takes {' and '.join(self.modalities)}, but "
                    f"not {modality}.",
                    remedy="Choose another --model, or pass inputs that it takes, such as a "
                    "captions file.",
                )

    def batch_size(self, modality: Modality) -> int:
        """Return how many images or texts are run at a time, a power of two.

        It is the same on every machine with the same kind of device, because the last bits of an
        embedding depend on what else is in its batch.
        """
        on_device = _ON_GPU if self.compute.device_type == "cuda" else ON_CPU
        size = on_device[modality]
        if modality == "image":
            height, width = self.preprocess.size
            size = min(size, size * _USUAL_PIXELS // (height * width))
        largest_power = max(1, size).bit_length() - 1
        return 1 << largest_power

    @checked
    def encode_images(
        self,
        images: str | Path | Image.Image | Pixels | Sequence[str | Path | Image.Image | Pixels],
        *,
        batch_size: PositiveInt | None = None,
        progress: Progress | None = None,
    ) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of images.

        Args:
            images: paths of image files, Pillow images, or arrays, uint8 (height, width, 3), of any
                size; or one of them.
            batch_size: images run at a time; None for `batch_size`.
            progress: counts the images of each batch.

        Raises:
            EncoderError: if the model takes no images, a file cannot be decoded (the message names
                it), or an array is not an RGB image.
        """
        images = as_list(images)
        self.require("image")
        batches = self._pixel_batches(images, batch_size or self.batch_size("image"))
        parts = [np.zeros((0, self.dim), np.float32)]
        for _, features in self.encode_batches("image", batches):
            parts.append(features)
            if progress is not None:
                progress.advance(len(features))
        return np.concatenate(parts)

    def _pixel_batches(self, images: Any, size: int) -> Iterator[tuple[int, Any]]:
        """Yield the number of the first image of each batch, and the pixels of the batch."""
        for start in range(0, len(images), size):
            pixels = [self.pixels(image) for image in images[start : start + size]]
            yield start, np.stack(pixels) if self.preprocess.fixed else pixels

    def encode_audio(self, sound: Floats) -> Matrix:
        """Return the embedding, float32 (1, d), of an audio signal.

        Args:
            sound: (samples,), at the sampling rate of the model.

        Raises:
            EncoderError: if the model takes no audio.
        """
        self.require("audio")
        return self.backend.submit("audio", [sound])()

    def encode_queries(self, texts: Sequence[str]) -> Matrix:
        """Return embeddings, float32 (n, d), of search queries.

        Some models put a prompt before them.
        """
        return self.encode_texts(texts)

    @checked
    def encode_texts(
        self, texts: Sequence[str], *, batch_size: PositiveInt | None = None
    ) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of texts; (1, d) of a single one.

        Texts longer than the context are cut.

        Raises:
            EncoderError: for anything but texts.
        """
        return self._encode("text", texts, batch_size)

    def _encode(
        self, modality: Modality, texts: Sequence[str], batch_size: int | None = None
    ) -> Matrix:
        texts = as_list(texts)
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise EncoderError(
                    f"A list of texts is needed, but item {position} is of type "
                    f"{type(text).__name__}.",
                    remedy="Leave it out, or write it as a string.",
                )
        out = np.zeros((len(texts), self.dim), np.float32)
        if texts:
            batches = self.token_batches(self.tokenise(texts), batch_size)
            for rows, embeddings in self.encode_batches(modality, batches):
                out[rows] = embeddings
        return out

    def tokenise(self, texts: Sequence[str]) -> Indices:
        """Return token ids, int64 (n, context length), padded."""
        return np.asarray(self._tokenizer(list(texts)), dtype=np.int64)

    def truncated(self, texts: Sequence[str], tokens: Indices) -> Mask:
        """Return which of n texts were cut to the context length, bool (n,).

        Args:
            texts: n texts.
            tokens: their tokens, (n, context length).
        """
        context_length = tokens.shape[1]
        is_cut = np.zeros(len(texts), bool)
        # A row that is not full ends with padding, so its last two tokens are equal.
        full_rows = np.flatnonzero(tokens[:, -1] != tokens[:, -2])
        # Tokenise full rows again with room for one more token, beside a row that is all padding.
        full_texts = [texts[row] for row in full_rows.tolist()]
        with_room = np.asarray(self._tokenizer(["", *full_texts], context_length + 1))
        padding = with_room[0, -2]
        last_tokens = with_room[1:, context_length - 1]
        # A text that goes on has another token here than the end token that the cut put there.
        is_cut[full_rows] = (last_tokens != tokens[full_rows, -1]) & (last_tokens != padding)
        return is_cut

    def token_batches(
        self, tokens: Indices, batch_size: int | None
    ) -> Iterator[tuple[Indices, Indices]]:
        """Yield row numbers and tokens of one batch after another, as the text tower takes them.

        If texts are run without padding, rows are ordered by length, so that each batch is as short
        as possible. The batches depend on the tokens alone.
        """
        if not self.trims_texts:
            lengths = np.full(len(tokens), tokens.shape[1])
        elif self._end_token is None:
            lengths = tokens.argmax(axis=1) + 1
        else:
            lengths = (tokens == self._end_token).argmax(axis=1) + 1
        order = np.argsort(lengths, kind="stable")
        size = batch_size or self.batch_size("text")
        start = 0
        while start < len(order):
            rows = order[start : start + size]
            if batch_size is None:
                # Batches of long texts have fewer rows, so that they take no more memory.
                longest = int(lengths[rows].max())
                rows = rows[: max(1, size * _USUAL_TEXT_LENGTH // longest)]
            longest = int(lengths[rows].max())
            yield rows, tokens[rows, :longest]
            start += len(rows)

    def pixels(self, image: str | Path | BinaryIO | Image.Image | Pixels) -> Pixels:
        """Return the pixels, uint8 (height, width, 3), that the image tower takes.

        Args:
            image: a file (a path or a stream), a Pillow image, or an array, uint8 (height, width,
                3), of any size.

        Raises:
            EncoderError: if it cannot be decoded, or is not an RGB image.
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.shape[2:] != (3,):
                raise EncoderError(
                    f"An image was given as an array of {image.dtype} of shape {image.shape}.",
                    remedy="Pass an RGB image: uint8 of shape (height, width, 3).",
                )
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return self.preprocess(image.convert("RGB"))
        try:
            return self.preprocess.load(image)[0]
        except UNREADABLE as error:
            raise EncoderError(f"{image} cannot be read as an image ({error}).") from error

    def encode_batches(
        self, modality: Modality, batches: Iterable[tuple[T, Any]]
    ) -> Iterator[tuple[T, Matrix]]:
        """Yield the embeddings of labelled batches, in order.

        Batches are read and submitted ahead, as many as the backend computes at a time.
        """
        no_rows = np.zeros((0, self.dim), np.float32)
        running: deque[tuple[T, Callable[[], Matrix]]] = deque()
        for label, batch in batches:
            result = self.backend.submit(modality, batch) if len(batch) else lambda: no_rows
            running.append((label, result))
            if len(running) > self.backend.ahead:
                finished_label, wait_for_result = running.popleft()
                yield finished_label, wait_for_result()
        for finished_label, wait_for_result in running:
            yield finished_label, wait_for_result()
