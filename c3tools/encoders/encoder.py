"""The encoder: from image files and texts to embeddings, through a contrastive model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..devices import Compute
from ..errors import EncoderError
from ..identity import ModelIdentity
from .inference import USUAL_TEXT_LENGTH, can_trim, end_positions, find_batch_size, trimmed_forward, use_int8

Matrix = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

# beyond this ratio of the sides only the middle is used: a 20,000 × 10 image, its short side resized to 224,
# would have 100 million pixels before the centre crop throws almost all of them away
MAX_ASPECT_RATIO = 16
# JPEGs may be decoded at a lower scale (1/2, 1/4, 1/8) while that leaves this many times the pixels needed per side
SCALED_DECODING_MARGIN = 2


def open_image(
    source: str | Path | BinaryIO, target_size: tuple[int, int] | None = None
) -> tuple[Image.Image, int, int]:
    """Decode an image file: first frame, EXIF rotation applied, RGB.

    Args:
        source: the file's path, or its content as a binary stream.
        target_size: (height, width) the model takes; large JPEGs are then decoded at a lower scale that keeps at
            least twice that.

    Returns:
        The image, and width and height in pixels as the viewer sees the file (after EXIF rotation).

    Raises:
        OSError: if the file cannot be read or decoded.
        Image.DecompressionBombError: if it has more than 179 million pixels.
        SyntaxError, ValueError: for some kinds of damaged file.
    """
    with warnings.catch_warnings():
        # metadata that Pillow finds odd, and images between 89 and 179 million pixels, are no reason to stop
        warnings.simplefilter("ignore")
        with Image.open(source) as file:
            width, height = file.size
            if target_size is not None and file.format == "JPEG":
                needed = SCALED_DECODING_MARGIN * max(target_size)
                file.draft(None, (needed, needed))
            file.load()
            turned = file.getexif().get(0x0112, 1) >= 5
            image = _to_rgb(ImageOps.exif_transpose(file))
    return image, *((height, width) if turned else (width, height))


@dataclass(frozen=True)
class ImagePreprocessor:
    """The resizing and cropping that a model was trained with; scaling to floats is left to the device.

    Attributes:
        geometry: open_clip's own transforms up to, and without, the conversion to a tensor.
        size: (height, width) of the result.
        mean, std: per channel, in units of 0…1.
        config: open_clip's preprocessing settings, for the record.
    """

    geometry: tuple[Callable[[Image.Image], Image.Image], ...]
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    config: dict[str, Any]

    def __call__(self, image: Image.Image) -> Pixels:
        """Return pixels (height, width, 3), uint8, of an RGB image of any size."""
        image = _crop_extreme(image)
        for step in self.geometry:
            image = step(image)
        return np.array(image, dtype=np.uint8)

    def load(self, source: str | Path | BinaryIO) -> tuple[Pixels, int, int]:
        """Return pixels (height, width, 3) of an image file (a path or a stream), and width and height of the original.

        Raises:
            OSError, Image.DecompressionBombError, SyntaxError, ValueError: as `open_image`.
        """
        image, width, height = open_image(source, self.size)
        return self(image), width, height


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would clip 16-bit and float pixels at 255
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max(initial=0.0)), 1e-12)
        image = Image.fromarray(np.clip(values / top * 255.0, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _crop_extreme(image: Image.Image) -> Image.Image:
    width, height = image.size
    limit = MAX_ASPECT_RATIO * min(width, height)
    if max(width, height) <= limit:
        return image
    if width > height:
        left = (width - limit) // 2
        return image.crop((left, 0, left + limit, height))
    top = (height - limit) // 2
    return image.crop((0, top, width, top + limit))


class Encoder:
    """A contrastive model with its tokenizer and preprocessing: embeddings of images and texts in one space.

    Attributes:
        identity: ``name``, ``architecture``, ``pretrained``, ``weights_sha256``, ``random_init``.
        dim: dimension d of the embeddings.
        compute: device and precision.
        preprocess: from an RGB image to the pixels the model takes.
        compiled: whether the towers run through `torch.compile`.
        trims_texts: whether texts are run without their padding (only where that is exact).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        preprocess: ImagePreprocessor,
        *,
        identity: Mapping[str, Any],
        compute: Compute,
        compiled: bool = False,
        trims_texts: bool | None = None,
    ) -> None:
        self.identity = ModelIdentity(identity)
        self.compute = compute
        self.compiled = compiled
        self.preprocess = preprocess
        self._tokenizer = tokenizer
        self._model = model.to(compute.device, compute.dtype)
        # measured in float32: rounding would hide whether the padding matters
        self.trims_texts = can_trim(self._model, tokenizer) if trims_texts is None else trims_texts
        if compute.precision == "int8":
            use_int8(self._model)
        if compute.device.type in ("cpu", "cuda"):
            self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (1, 1, 1, 3)
        self._mean = torch.tensor(preprocess.mean, device=compute.device).view(shape)
        self._std = torch.tensor(preprocess.std, device=compute.device).view(shape)
        self._forward = {"image": self._image_features, "text": self._text_features}
        if compiled:
            self._forward = {name: torch.compile(forward, dynamic=True) for name, forward in self._forward.items()}
        self._limits: dict[str, int] = {}  # largest batch that fits into memory, once one did not
        self._batch_sizes: dict[str, int] = {}
        self.dim = next(self.encode_token_batches(self.tokenise(["a photo"]), batch_size=1))[1].shape[1]

    def in_precision(self, compute: Compute) -> Encoder:
        """Return the same model on another device or in another precision; this one stays unchanged."""
        return self._copy(compute, self.compiled)

    def through_compiler(self) -> Encoder:
        """Return the same model run through `torch.compile`: faster after the minutes it takes, equal up to rounding.

        Raises:
            EncoderError: if it cannot be compiled here (a CPU needs a C++ compiler).
        """
        try:
            encoder = self._copy(self.compute, compiled=True)
            for modality in ("image", "text"):
                encoder._run_probe(modality, 2)
            return encoder
        except Exception as error:  # the compilers raise their own, and so do the tools they call
            reason = " ".join(str(error).split())[:300]
            raise EncoderError(
                f"The model {self.identity.name} could not be compiled: {type(error).__name__}: {reason}",
                remedy="Leave --compile away; on a CPU it needs a C++ compiler (g++ or clang++).",
            ) from error

    def _copy(self, compute: Compute, compiled: bool) -> Encoder:
        return Encoder(
            copy.deepcopy(self._model),
            self._tokenizer,
            self.preprocess,
            identity=self.identity,
            compute=compute,
            compiled=compiled,
            trims_texts=self.trims_texts,
        )

    def batch_size(self, modality: str) -> int:
        """Return how many images or texts are run at a time: by the memory of a GPU, fixed on other devices.

        The same on every machine with the same device: what is batched together decides the last bits of the result.
        """
        if modality not in self._batch_sizes:
            height, width = self.preprocess.size
            found = find_batch_size(modality, self.compute.device, self._run_probe, height * width)
            self._batch_sizes[modality] = found
        return self._batch_sizes[modality]

    def encode_images(
        self, images: Sequence[str | Path | Image.Image | Pixels], *, batch_size: int | None = None
    ) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of images.

        Args:
            images: paths of image files, Pillow images, or arrays, uint8 (height, width, 3), of any size.
            batch_size: images run at a time; None for `batch_size`.

        Raises:
            EncoderError: if a file cannot be decoded (the message names it), or an array is no RGB image.
        """
        parts = []
        size = batch_size or self.batch_size("image")
        for start in range(0, len(images), size):
            pixels = [self._pixels(image) for image in images[start : start + size]]
            parts.append(self.encode_pixels(np.stack(pixels)))
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int | None = None) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of texts; those over the context length are cut."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return self.encode_tokens(self.tokenise(texts), batch_size=batch_size)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        """Return token ids, int64 (n, context length), padded."""
        return self._tokenizer(list(texts))  # type: ignore[no-any-return]

    def truncated(self, texts: Sequence[str], tokens: Tensor) -> int:
        """Return how many of n texts, whose tokens are (n, context length), were cut to the context length."""
        full = (end_positions(self._model, tokens) == tokens.shape[1] - 1).nonzero()[:, 0].tolist()
        encode = getattr(self._tokenizer, "encode", None)
        if encode is None:
            return len(full)
        longest = tokens.shape[1] - 2  # the start and the end token
        return sum(len(encode(texts[row])) > longest for row in full)

    def encode_tokens(self, tokens: Tensor, *, batch_size: int | None = None) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of token ids (n, context length)."""
        out = np.zeros((len(tokens), self.dim), np.float32)
        for rows, embeddings in self.encode_token_batches(tokens, batch_size=batch_size):
            out[rows] = embeddings
        return out

    def encode_token_batches(
        self, tokens: Tensor, *, batch_size: int | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Matrix]]:
        """Yield row numbers and embeddings of one batch after another.

        Where padding is not computed on, rows are ordered by length, so that a batch is as short as it can be; what
        is batched together depends on the tokens alone.
        """
        if self.trims_texts:
            lengths = end_positions(self._model, tokens).numpy() + 1
        else:
            lengths = np.full(len(tokens), tokens.shape[1])
        order = np.argsort(lengths, kind="stable")
        size = batch_size or self.batch_size("text")
        start = 0
        while start < len(order):
            rows = order[start : start + size]
            if batch_size is None:  # long texts in smaller batches, so that they take no more memory than short ones
                rows = rows[: max(1, size * USUAL_TEXT_LENGTH // int(lengths[rows].max()))]
            cut = tokens[torch.from_numpy(rows), : int(lengths[rows].max())]
            yield rows, to_numpy(self._features("text", cut))
            start += len(rows)

    def encode_pixels(self, pixels: Pixels | Tensor) -> Matrix:
        """Return L2-normalised embeddings, float32 (n, d), of pixels, uint8 (n, height, width, 3)."""
        return to_numpy(self.start_pixels(torch.as_tensor(pixels)))

    def start_pixels(self, pixels: Tensor) -> Tensor:
        """Start `encode_pixels` on a GPU without waiting for the result, as `to_numpy` does."""
        return self._features("image", pixels)

    def _features(self, modality: str, batch: Tensor) -> Tensor:
        """Return unit vectors, float32 (n, d), on the device, normalised in float32 in any precision of the model.

        Where a batch does not fit into memory it is run in halves, and so are those that follow.
        """
        limit = self._limits.get(modality, len(batch))
        if len(batch) > limit:
            return torch.cat([self._features(modality, part) for part in torch.split(batch, limit)])
        try:
            with torch.inference_mode():
                return nn.functional.normalize(self._forward[modality](batch).float(), dim=-1)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
            if not out_of_memory or len(batch) == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._limits[modality] = len(batch) // 2
        return self._features(modality, batch)

    def _run_probe(self, modality: str, n: int) -> None:
        if modality == "image":
            self._features("image", torch.zeros((n, *self.preprocess.size, 3), dtype=torch.uint8))
        else:
            self._features("text", self.tokenise(["word " * 500]).repeat(n, 1))

    def _image_features(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.compute.device, non_blocking=True)
        x = (x.float().div_(255).sub_(self._mean)).div_(self._std)  # (n, height, width, 3)
        # a view as (n, 3, height, width) of this memory is channels_last already
        x = x.permute(0, 3, 1, 2).to(self.compute.dtype)
        return self._model.encode_image(x)  # type: ignore[operator,no-any-return]

    def _text_features(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.compute.device)
        if self.trims_texts:
            return trimmed_forward(self._model, tokens)
        return self._model.encode_text(tokens)  # type: ignore[operator,no-any-return]

    def _pixels(self, image: str | Path | Image.Image | Pixels) -> Pixels:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise EncoderError(
                    f"An image is an array of {image.dtype} {image.shape}.",
                    remedy="Pass uint8 (height, width, 3), RGB.",
                )
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return self.preprocess(image.convert("RGB"))
        try:
            return self.preprocess.load(image)[0]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise EncoderError(f"{image} cannot be read as an image ({error}).") from error


def to_numpy(features: Tensor) -> Matrix:
    """Return features (n, d) of any device as a matrix, float32."""
    return features.cpu().numpy()
