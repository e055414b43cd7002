"""The encoder: from image files and texts to embeddings, through a contrastive model that a backend
runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

from ..arrays import Floats, Indices, Mask, Matrix, Pixels
from ..devices import Compute
from ..errors import EncoderError
from ..identity import ModelIdentity
from ..reporter import Progress
from .preprocessing import UNREADABLE, ImagePreprocessor

Modality = Literal["image", "text", "query", "audio"]
T = TypeVar("T")

# inputs at a time: with few the activations stay in the cache of a CPU, and a GPU gains nothing
# from more
ON_CPU, _ON_GPU = {"image": 32, "text": 128}, {"image": 256, "text": 1024}
# a batch is full up to these sizes, and smaller for larger inputs
_USUAL_PIXELS = 224 * 224
_USUAL_TEXT_LENGTH = 16  # tokens


class Backend(Protocol):
    """A way to run the two towers of a model.

    Attributes:
        name: ``torch`` or ``openvino``.
        compute: device and precision.
        ahead: batches to submit before the first is waited for.
    """

    name: str
    compute: Compute
    ahead: int

    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Start a batch, and return a function that waits for its unit vectors, float32 (n, d).

        Args:
            modality: of the batch.
            batch: pixels, uint8 (n, height, width, 3), or tokens, int64 (n, length); an array or a
                torch tensor.
        """


class Encoder:
    """A contrastive model with its tokenizer and preprocessing: embeddings of images and texts in
    one space.

    Most callers need `identity`, `dim`, `encode_images` and `encode_texts`; the other methods are
    for embedding in batches that are prepared elsewhere.

    Attributes:
        modalities: what can be embedded; frames of videos are images.
        normalised: whether the embeddings have unit length.
        sampling_rate: of sounds, in samples per second; 0 if the model takes none.

    Args:
        backend: runs the model.
        tokenizer: from texts to token ids, (n, context length); takes another context length as
            second argument.
        preprocess: from an RGB image to the pixels that the model takes.
        identity: ``name``, ``architecture``, ``pretrained``, ``weights_sha256``, ``random_init``.
        trims_texts: whether texts are run without their padding (only if that is exact).
        end_token: the id of the end-of-text token; None if it is the largest.
        dim: dimension d of the embeddings.
    """

    modalities: Collection[str] = ("image", "text")
    normalised = True
    sampling_rate = 0

    def __init__(
        self,
        backend: Backend,
        tokenizer: Any,
        preprocess: ImagePreprocessor,
        *,
        identity: Mapping[str, Any],
        trims_texts: bool,
        end_token: int | None = None,
        dim: int,
    ) -> None:
        self.backend, self.compute = backend, backend.compute
        self.identity = ModelIdentity(identity)
        self.preprocess = preprocess
        self.trims_texts = trims_texts
        self._tokenizer = tokenizer
        self._end_token = end_token
        self.dim = dim

    def require(self, *modalities: str) -> None:
        """Refuse modalities that the model does not embed; frames of videos are images.

        Raises:
            EncoderError: with the first of ``modalities`` that it does not take.
        """
        for modality in modalities:
            if {"video": "image"}.get(modality, modality) not in self.modalities:
                raise EncoderError(
                    f"The model {self.identity.name} takes {' and '.join(self.modalities)}, but "
                    f"not {modality}.",
                    remedy="Choose another --model, or give it inputs that it takes, such as a "
                    "file of captions.",
                )

    def batch_size(self, modality: Modality) -> int:
        """Return how many images or texts are run at a time, a power of two.

        The same on every machine with the same device: what is batched together decides the last
        bits of the result.
        """
        most = (_ON_GPU if self.compute.device_type == "cuda" else ON_CPU)[modality]
        height, width = self.preprocess.size
        fit = most * _USUAL_PIXELS // (height * width) if modality == "image" else most
        return 1 << max(1, min(fit, most)).bit_length() - 1

    def encode_images(
        self,
        images: Sequence[str | Path | Image.Image | Pixels] | Pixels,
        *,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of images.

        Args:
            images: paths of image files, Pillow images, or arrays, uint8 (height, width, 3), of any
                size.
            batch_size: images run at a time; None for `batch_size`.
            progress: counts the images of each batch.

        Raises:
            EncoderError: if the model takes no images, a file cannot be decoded (the message names
                it), or an array is no RGB image.
        """
        self.require("image")
        size = batch_size or self.batch_size("image")
        stack: Any = np.stack if self.preprocess.fixed else list
        batches = (
            (start, stack([self.pixels(image) for image in images[start : start + size]]))
            for start in range(0, len(images), size)
        )
        parts = [np.zeros((0, self.dim), np.float32)]
        for _, features in self.encode_batches("image", batches):
            parts.append(features)
            if progress is not None:
                progress.advance(len(features))
        return np.concatenate(parts)

    def encode_audio(self, sound: Floats) -> Matrix:
        """Return the embedding, float32 (1, d), of a sound (samples,) at the sampling rate of the
        model.

        Raises:
            EncoderError: if the model takes no sounds.
        """
        self.require("audio")
        return self.backend.submit("audio", [sound])()

    def chunks(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the parts of each text that the model reads whole: its halves, and theirs.

        Texts are divided at white space; where there is none, as in Chinese and Japanese, between
        characters.
        """
        parts = [[text] for text in texts]
        cut = np.flatnonzero(self.truncated(texts, self.tokenise(texts)))
        longer = [row for row in cut.tolist() if len(texts[row].strip()) > 1]
        if longer:
            halves = [_halves(texts[row]) for row in longer]
            left = self.chunks([first for first, _ in halves])
            right = self.chunks([second for _, second in halves])
            for row, before, after in zip(longer, left, right, strict=True):
                parts[row] = [*before, *after]
        return parts

    def encode_queries(self, texts: Sequence[str]) -> Matrix:
        """Return embeddings, float32 (n, d), of what is searched for; some models take a prompt for
        these.
        """
        return self.encode_texts(texts)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int | None = None) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of texts; those over the context length
        are cut.

        Raises:
            EncoderError: for anything but a list of texts.
        """
        return self._encode("text", texts, batch_size)

    def _encode(
        self, modality: Modality, texts: Sequence[str], batch_size: int | None = None
    ) -> Matrix:
        _require_texts(texts)
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
        """Return which of n texts, whose tokens are (n, context length), were cut to it, bool
        (n,).
        """
        length = tokens.shape[1]
        full = np.flatnonzero(tokens[:, -1] != tokens[:, -2])  # others end with padding
        longer = np.asarray(
            self._tokenizer(["", *(texts[row] for row in full.tolist())], length + 1)
        )
        # a text that goes on has no end at this place
        padding, there = longer[0, -2], longer[1:, length - 1]
        cut = np.zeros(len(texts), bool)
        cut[full] = (there != tokens[full, -1]) & (there != padding)
        return cut

    def token_batches(
        self, tokens: Indices, batch_size: int | None
    ) -> Iterator[tuple[Indices, Indices]]:
        """Yield row numbers and tokens, as the text tower is given them, of one batch after
        another.

        Where padding is not computed on, rows are ordered by length, so that a batch is as short as
        it can be; what is batched together depends on the tokens alone.
        """
        ends = tokens if self._end_token is None else tokens == self._end_token
        lengths = (
            ends.argmax(axis=1) + 1 if self.trims_texts else np.full(len(tokens), tokens.shape[1])
        )
        order = np.argsort(lengths, kind="stable")
        size = batch_size or self.batch_size("text")
        start = 0
        while start < len(order):
            rows = order[start : start + size]
            # long texts in smaller batches, so that they take no more memory than short ones
            if batch_size is None:
                rows = rows[: max(1, size * _USUAL_TEXT_LENGTH // int(lengths[rows].max()))]
            yield rows, tokens[rows, : int(lengths[rows].max())]
            start += len(rows)

    def pixels(self, image: str | Path | BinaryIO | Image.Image | Pixels) -> Pixels:
        """Return pixels, uint8 (height, width, 3), as the image tower takes them, of a file, an
        image or an array.

        Raises:
            EncoderError: if it cannot be decoded, or is no RGB image.
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
        """Yield the embeddings of labelled batches, in order; as many as are computed at a time are
        read ahead.
        """
        nothing = np.zeros((0, self.dim), np.float32)
        running: deque[tuple[T, Callable[[], Matrix]]] = deque()
        for label, batch in batches:
            running.append(
                (label, self.backend.submit(modality, batch) if len(batch) else lambda: nothing)
            )
            if len(running) > self.backend.ahead:
                done, result = running.popleft()
                yield done, result()
        for done, result in running:
            yield done, result()


def _halves(text: str) -> tuple[str, str]:
    """Return the halves of a text by words, or by characters if it is one word."""
    words = text.split()
    units, between = (words, " ") if len(words) > 1 else (list(text.strip()), "")
    middle = len(units) // 2
    return between.join(units[:middle]), between.join(units[middle:])


def _require_texts(texts: Sequence[str]) -> None:
    """Refuse anything but a list of texts; of one text, each letter would be a text.

    Raises:
        EncoderError: with the type of what was given.
    """
    if isinstance(texts, str):
        raise EncoderError(
            f"A list of texts is needed, but one text was given: {texts[:40]!r}.",
            remedy="Put it in a list: encode_texts([text])",
        )
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise EncoderError(
                f"A list of texts is needed, but item {position} is of type {type(text).__name__}.",
                remedy="Leave it out, or write it as a string.",
            )
