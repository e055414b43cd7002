"""Encoders of other libraries, behind the interface of `Encoder`.

Packages name their classes as entry points:

    [project.entry-points."c3tools.encoders"]
    NAME = "package.module:Class"

`--model NAME:REST` loads ``Class(REST, device="cpu", precision="auto")``; with `--truncate-dim` and
`--query-prompt` it is given ``truncate_dim`` and ``query_prompt`` too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..arrays import Floats, Indices, Mask, Matrix, Pixels
from ..devices import Compute
from ..errors import EncoderError
from ..extras import install_command
from ..plugins import plugins
from ..result_table import Table
from .encoder import ON_CPU, Encoder, Modality, ModelFacts
from .preprocessing import ImagePreprocessor

_LARGEST_SIDE = 2048  # of images: larger ones would take gigabytes in the batches ahead
_CHARACTERS = 16_384  # of the texts in a batch, padded
_GROUP = "c3tools.encoders"
_REPORT = "Report this to the maintainer of the encoder."
_SENTENCE_TRANSFORMERS = EntryPoint("st", "c3tools.encoders.st:SentenceTransformersModel", _GROUP)


class EncoderModel(Protocol):
    """The interface of a class that an entry point names.

    It may also have

    - ``modalities``: by default image and text; audio needs ``encode_audio`` and ``sampling_rate``,
    - ``normalised``: False to keep the norms of its vectors,
    - ``encode_queries``: for texts that are searched for,
    - ``is_longer``: returns which of some texts are longer than the model reads,
    - ``device`` and ``precision``,
    - ``parallel``: how many batches may be run at a time, in threads.

    Attributes:
        identity: distinguishes the model from others, as JSON; with ``weights_sha256`` if known.
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
    if not colon or "/" in kind or kind in ("local-dir", "hf-hub"):
        return None
    return _encoder_plugins().get(kind)


def _encoder_plugins() -> dict[str, EntryPoint]:
    """Return the entry points of encoders by the name of their kind."""
    return {**plugins(_GROUP), _SENTENCE_TRANSFORMERS.name: _SENTENCE_TRANSFORMERS}


@dataclass(frozen=True)
class ModelKind:
    """A form of model names.

    Attributes:
        form: such as ``st:NAME``.
        about: what such a name loads.
        install: the command that installs what is missing; empty if nothing is.
    """

    form: str
    about: str
    install: str = ""


def model_kinds() -> list[ModelKind]:
    """Return the forms of model names beside those that open_clip lists."""
    is_installed = importlib.util.find_spec("sentence_transformers") is not None
    kinds = [
        ModelKind("local-dir:PATH", "a folder with open_clip_config.json"),
        ModelKind("hf-hub:ORG/NAME", "a model of open_clip on the Hugging Face hub"),
        ModelKind(
            "st:NAME or st:FOLDER",
            "images, texts, audio: what sentence-transformers loads",
            "" if is_installed else install_command("st"),
        ),
    ]
    for name, entry in _encoder_plugins().items():
        if entry is not _SENTENCE_TRANSFORMERS:
            kinds.append(ModelKind(f"{name}:…", f"of {entry.dist.name}" if entry.dist else ""))
    return kinds


def kind_table() -> Table:
    """Return the kinds of `model_kinds` as a table, one row each."""
    rows = [[kind.form, kind.about, kind.install or "yes"] for kind in model_kinds()]
    return Table(["also", "of", "installed"], rows, left=["of", "installed"])


class PluginBackend:
    """Runs a model of another library, in threads of its own.

    So the next images are read meanwhile.

    Args:
        kind: the name of the entry point.
        model: the model.

    Attributes:
        name: the name of the entry point.
        compute: device and precision, as the model tells them.
        ahead: the batches that the model runs at a time.

    Raises:
        EncoderError: if the model has audio among its modalities, but no ``encode_audio``.
    """

    def __init__(self, kind: str, model: EncoderModel) -> None:
        self.name = kind
        self.compute = Compute(getattr(model, "device", "cpu"), getattr(model, "precision", "fp32"))
        self.ahead = getattr(model, "parallel", 1)
        self._dim = model.dim
        self._normalised = getattr(model, "normalised", True)
        self._encode_images = model.encode_images
        self._encode: dict[str, Callable[[Any], Any]] = {
            "image": self._encode_pixels,
            "text": model.encode_texts,
            "query": getattr(model, "encode_queries", model.encode_texts),
        }
        if "audio" in getattr(model, "modalities", ()):
            encode_audio = getattr(model, "encode_audio", None)
            if encode_audio is None:
                raise EncoderError(
                    f"The encoder {kind} lists audio among its modalities, but has no method "
                    f"encode_audio.",
                    remedy=_REPORT,
                )
            self._encode["audio"] = encode_audio
        self._pool = ThreadPoolExecutor(self.ahead, thread_name_prefix="c3-encoder")

    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Start a batch, and return a function that waits for its embeddings, float32 (n, d)."""
        return self._pool.submit(self._run, modality, batch).result

    def _run(self, modality: Modality, batch: Collection[Any]) -> Matrix:
        """Run the model, and check and normalise what it returns."""
        rows = np.asarray(self._encode[modality](batch), np.float32)
        if rows.shape != (len(batch), self._dim) or not np.isfinite(rows).all():
            raise EncoderError(
                f"The encoder {self.name} returned an array of shape {rows.shape} for "
                f"{len(batch)} inputs, not ({len(batch)}, {self._dim}) finite numbers.",
                remedy=_REPORT,
            )
        if not self._normalised:
            return rows
        norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        unit_rows: Matrix = rows / norms
        return unit_rows

    def _encode_pixels(self, images: Sequence[Pixels]) -> Floats:
        return self._encode_images([Image.fromarray(pixels) for pixels in images])


class PluginEncoder(Encoder):
    """An `Encoder` whose model, of another library, prepares images and texts itself.

    Args:
        kind: the name of the entry point.
        model: the model.
        identity: see `Encoder`.
    """

    def __init__(self, kind: str, model: EncoderModel, identity: Mapping[str, Any]) -> None:
        facts = ModelFacts(
            tokenizer=None,  # the model has its own
            preprocess=ImagePreprocessor((_within_limit,), {"size": _LARGEST_SIDE}, fixed=False),
            identity=identity,
            trims_texts=False,
            dim=model.dim,
        )
        super().__init__(PluginBackend(kind, model), facts)
        self.modalities = getattr(model, "modalities", Encoder.modalities)
        self.normalised = getattr(model, "normalised", True)
        self.sampling_rate = getattr(model, "sampling_rate", 0)
        self._is_longer = getattr(model, "is_longer", lambda texts: [False] * len(texts))

    def batch_size(self, modality: Modality) -> int:
        """Return how many inputs are run at a time, the same on every device."""
        return ON_CPU[modality]

    def encode_queries(self, texts: Sequence[str]) -> Matrix:
        """Return embeddings, float32 (n, d), of texts with the prompt for queries."""
        return self._encode("query", texts)

    def tokenise(self, texts: Sequence[str]) -> Any:
        """Return the texts, which the model itself tokenises."""
        return list(texts)

    def truncated(self, texts: Sequence[str], tokens: Any) -> Mask:
        """Return which of n texts are longer than the model reads, bool (n,).

        None is, if the model does not say.
        """
        return np.array(self._is_longer(texts), bool)

    def token_batches(self, tokens: Any, batch_size: int | None) -> Iterator[tuple[Indices, Any]]:
        """Yield row numbers and texts of one batch after another, ordered by length.

        Batches of long texts have fewer.
        """
        lengths = np.array([len(text) for text in tokens], np.int64)
        order = np.argsort(lengths, kind="stable")
        size = batch_size or 2 * self.batch_size("text")
        start = 0
        while start < len(order):
            rows = order[start : start + size]
            if batch_size is None:
                # Each further text makes the batch wider: all are padded to the longest.
                characters = np.arange(1, len(rows) + 1) * lengths[rows]
                rows = rows[: max(1, np.sum(characters <= _CHARACTERS))]
            yield rows, [tokens[row] for row in rows]
            start += len(rows)


def _within_limit(image: Image.Image) -> Image.Image:
    """Return an image, scaled down if a side is longer than `_LARGEST_SIDE`."""
    if max(image.size) > _LARGEST_SIDE:
        image = image.copy()
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return image
