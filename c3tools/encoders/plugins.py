"""Encoders of other libraries: classes that packages name as entry points, behind the interface of
`Encoder`.

    [project.entry-points."c3tools.encoders"]
    NAME = "package.module:Class"

`--model NAME:REST` loads ``Class(REST, device="cpu", precision="auto")``; with `--truncate-dim` and
`--query-prompt` it is given ``truncate_dim`` and ``query_prompt`` too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..arrays import Floats, Indices, Mask, Matrix
from ..devices import Compute
from ..errors import EncoderError
from .encoder import ON_CPU, Encoder, Modality
from .preprocessing import ImagePreprocessor

_LARGEST_SIDE = 2048  # of images: larger ones would take gigabytes in the batches ahead
_CHARACTERS = 16_384  # of the texts in a batch, padded
_GROUP = "c3tools.encoders"
_OWN = EntryPoint("st", "c3tools.encoders.st:SentenceTransformersModel", _GROUP)


class EncoderModel(Protocol):
    """The interface of a class that an entry point names.

    It may also have ``modalities`` (by default image and text; audio needs ``encode_audio`` and
    ``sampling_rate``), ``normalised`` (False to keep the norms of its vectors), ``encode_queries``
    (for texts that are searched for), ``is_longer`` (which of some texts are longer than the model
    reads), ``device``, ``precision`` and ``parallel`` (the batches that may be run at a time, in
    threads).

    Attributes:
        identity: what tells the model from others, as JSON; ``weights_sha256`` if it is known.
        dim: dimension d of the embeddings.
    """

    identity: Mapping[str, Any]
    dim: int

    def encode_images(self, images: Sequence[Image.Image]) -> Floats:
        """Return embeddings (n, d) of RGB images."""

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return embeddings (n, d) of texts."""


def find_plugin(model: str) -> EntryPoint | None:
    """Return the entry point for a name such as ``st:FOLDER``; None for a model of open_clip."""
    kind, colon, _ = model.partition(":")
    return (
        plugins().get(kind)
        if colon and "/" not in kind and kind not in ("local-dir", "hf-hub")
        else None
    )


def plugins() -> dict[str, EntryPoint]:
    """Return the entry points of encoders by the name of their kind."""
    return {**{found.name: found for found in entry_points(group=_GROUP)}, _OWN.name: _OWN}


def model_kinds() -> list[tuple[str, str, str]]:
    """Return the forms of other names than those that are listed, what they load, and how to
    install it if need be.
    """
    installed = importlib.util.find_spec("sentence_transformers") is not None
    others = [
        (f"{name}:…", f"of {found.dist.name}" if found.dist else "", "")
        for name, found in plugins().items()
        if found is not _OWN
    ]
    install = "" if installed else 'pip install "c3tools[st]"'
    return [
        ("local-dir:PATH", "a folder with open_clip_config.json", ""),
        ("hf-hub:ORG/NAME", "a model of open_clip on the Hugging Face hub", ""),
        ("st:NAME or st:FOLDER", "images, texts, audio: what sentence-transformers loads", install),
        *others,
    ]


class PluginEncoder(Encoder):
    """An `Encoder` that lets a model of another library prepare images and texts, and is its own
    backend.

    The model runs in threads of its own, so that the next images are read meanwhile.

    Args:
        kind: the name of the entry point.
        model: the model.
        identity: see `Encoder`.
    """

    def __init__(self, kind: str, model: EncoderModel, identity: Mapping[str, Any]) -> None:
        self.name, self.ahead = kind, getattr(model, "parallel", 1)
        self.compute = Compute(getattr(model, "device", "cpu"), getattr(model, "precision", "fp32"))
        preprocess = ImagePreprocessor((_within_limit,), {"size": _LARGEST_SIDE}, fixed=False)
        super().__init__(
            self, list, preprocess, identity=identity, trims_texts=False, dim=model.dim
        )
        self.modalities = getattr(model, "modalities", Encoder.modalities)
        self.normalised = getattr(model, "normalised", True)
        self.sampling_rate = getattr(model, "sampling_rate", 0)
        self._is_longer = getattr(model, "is_longer", lambda texts: [False] * len(texts))
        self._model: dict[str, Callable[[Any], Any]] = {
            "image": lambda images: model.encode_images(
                [Image.fromarray(pixels) for pixels in images]
            ),
            "text": model.encode_texts,
            "query": getattr(model, "encode_queries", model.encode_texts),
            "audio": getattr(model, "encode_audio", model.encode_texts),
        }
        self._pool = ThreadPoolExecutor(self.ahead, thread_name_prefix="c3-encoder")

    def batch_size(self, modality: Modality) -> int:
        """Return how many inputs are run at a time: what is batched together decides the last bits
        of the result.
        """
        return ON_CPU[modality]

    def encode_queries(self, texts: Sequence[str]) -> Matrix:
        """Return embeddings, float32 (n, d), of texts with the prompt for queries."""
        return self._encode("query", texts)

    def tokenise(self, texts: Sequence[str]) -> Any:
        """Return the texts, which the model itself tokenises."""
        return list(texts)

    def truncated(self, texts: Sequence[str], tokens: Any) -> Mask:
        """Return which of n texts are longer than the model reads, bool (n,); none if it does not
        say.
        """
        return np.array(self._is_longer(texts), bool)

    def token_batches(self, tokens: Any, batch_size: int | None) -> Iterator[tuple[Indices, Any]]:
        """Yield row numbers and texts of one batch after another, ordered by length; long texts in
        smaller batches.
        """
        lengths = np.array([len(text) for text in tokens], np.int64)
        order, size, start = (
            np.argsort(lengths, kind="stable"),
            batch_size or 2 * self.batch_size("text"),
            0,
        )
        while start < len(order):
            rows = order[start : start + size]
            if batch_size is None:
                rows = rows[
                    : max(1, np.sum(np.arange(1, len(rows) + 1) * lengths[rows] <= _CHARACTERS))
                ]
            yield rows, [tokens[row] for row in rows]
            start += len(rows)

    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Start a batch, and return a function that waits for its embeddings, float32 (n, d)."""
        return self._pool.submit(self._run, modality, batch).result

    def _run(self, modality: Modality, batch: Collection[Any]) -> Matrix:
        rows = np.asarray(self._model[modality](batch), np.float32)
        if rows.shape != (len(batch), self.dim) or not np.isfinite(rows).all():
            raise EncoderError(
                f"The encoder {self.name} returned an array of shape {rows.shape} for "
                f"{len(batch)} inputs, not "
                f"({len(batch)}, {self.dim}) finite numbers.",
                remedy="Report this to the maker of the encoder.",
            )
        return (
            rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            if self.normalised
            else rows
        )


def _within_limit(image: Image.Image) -> Image.Image:
    """Return an image, made smaller if a side is longer than `_LARGEST_SIDE`."""
    if max(image.size) > _LARGEST_SIDE:
        image = image.copy()
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return image
