"""Pre-trained generators that take image embeddings, through diffusers: nothing is trained.

| name | pipeline | embeddings |
|---|---|---|
| ``kandinsky-2.2:`` | `KandinskyV22Pipeline` | OpenCLIP ViT-bigG-14, 1280-d |
| ``unclip:`` | `StableUnCLIPImg2ImgPipeline` | OpenCLIP ViT-H-14, 1024-d, or CLIP ViT-L-14, 768-d |

A text embedding is moved to where image embeddings are, ``(e - mean_text) s + mean_image`` (ReAlign), so that no prior
model is needed, and scaled to the length that the generator knows: its image embeddings are not normalised.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..arrays import Matrix
from ..assets.paths import PHOTOS
from ..devices import Compute
from ..encoders import load_network, open_image
from ..errors import GeneratorError, MissingExtraError
from ..identity import ModelIdentity
from ..io.artifact import digest_of
from ..seeds import generator as seeded
from ..store import Store
from ..transforms import preset
from .generator import ImageGenerator

_PROBES = 8  # bundled photos that the length of a model's embeddings is measured on
_VIT_L = ("ViT-L-14", "openai")
_VIT_H = ("ViT-H-14", "laion2b_s32b_b79k")
_BIG_G = ("ViT-bigG-14", "laion2b_s39b_b160k")


class Kind(NamedTuple):
    """A kind of pre-trained generator.

    Attributes:
        pipeline: the class of diffusers.
        guidance: its usual guidance.
        models: the model (architecture, weights) of its embeddings by their dimension.
        dim: returns the dimension of the embeddings that a loaded pipeline takes.
        options: returns what a pipeline is called with beside its embedding, given the mean of images (1, d).
    """

    pipeline: str
    guidance: float
    models: Mapping[int, tuple[str, str]]
    dim: Callable[[Any], int]
    options: Callable[[Any, Tensor], dict[str, Any]]


def _kandinsky(pipe: Any, mean: Tensor) -> dict[str, Any]:
    # without its prior there is no embedding of an empty image; the mean of all images stands for "any image"
    side = (pipe.unet.config.sample_size or 64) * pipe.movq_scale_factor
    return {"negative_image_embeds": mean, "height": side, "width": side}


KINDS: Mapping[str, Kind] = {
    "kandinsky-2.2": Kind(
        "KandinskyV22Pipeline", 4.0, {1280: _BIG_G}, lambda pipe: int(pipe.unet.config.encoder_hid_dim), _kandinsky
    ),
    "unclip": Kind(
        "StableUnCLIPImg2ImgPipeline",
        10.0,
        {1024: _VIT_H, 768: _VIT_L},
        lambda pipe: int(pipe.image_normalizer.config.embedding_dim),
        lambda pipe, mean: {"prompt": ""},
    ),
}


class PretrainedGenerator(ImageGenerator):
    """A pre-trained pipeline of diffusers, driven by embeddings of a store's model.

    Args:
        name: ``KIND:PATH`` of a folder that ``save_pretrained`` wrote, or ``KIND:ID`` on the Hugging Face hub.
        store: of the model that the generator was trained with, with images and texts; its means are used.
        compute: device and precision; on a CPU always fp32.

    Raises:
        GeneratorError: if the weights cannot be loaded, or are of another model than the store (both are named).
        StoreError: if the store is missing.
        MissingExtraError: if diffusers is not installed.
    """

    def __init__(self, name: str, store: Store | str | Path = "c3-store", compute: Compute | None = None) -> None:
        kind, _, source = name.partition(":")
        self.name, self.kind, store = name, KINDS[kind], Store.open(store)
        if compute is None or compute.device_type == "cpu":  # parts of these pipelines have no bf16 there
            compute = Compute("cpu", "fp32")
        self.pipe = _load_pipe(self.kind.pipeline, source, compute)
        dim, model = self.kind.dim(self.pipe), store.info.model
        check_identity(name, self.kind, dim, store)
        normalizer = getattr(self.pipe, "image_normalizer", None)
        if normalizer is None:
            self.norm = _measured_norm(model)
        else:  # the typical length of image embeddings by the statistics that the pipeline ships
            mean, std = normalizer.mean.detach().float(), normalizer.std.detach().float()
            self.norm = float((mean**2 + std**2).sum().sqrt())
        self.mean = torch.from_numpy(store.fitting_moments("image").mean.astype("float32"))[None] * self.norm
        pipeline = preset("realign", train_on="image", infer_on="text").fit(store)
        record = {"model": dict(model), "source": source, "norm": self.norm}
        super().__init__(pipeline, record, compute, dim, self.kind.guidance)

    def __repr__(self) -> str:
        return self.name

    @staticmethod
    def is_name(name: str | Path) -> bool:
        """Return whether this is the name of a pre-trained generator, not a folder of `c3 train-generator`."""
        kind, colon, _ = str(name).partition(":")
        return bool(colon) and kind in KINDS

    def fingerprint(self) -> str:
        """Return a digest of its name and its transform; the weights of a name are taken to stay the same."""
        return digest_of(self.name, self.norm, self.pipeline.record()["checksum"])

    def _sample(
        self,
        inputs: Matrix,
        keys: Sequence[str],
        seed: int,
        steps: int,
        guidance: float,
        advance: Callable[[int], object],
    ) -> list[Image.Image]:
        images = []
        device, dtype = self.compute.device, self.compute.dtype
        options = self.kind.options(self.pipe, self.mean.to(device, dtype))
        options |= {"num_inference_steps": steps, "guidance_scale": guidance}
        for row, key in enumerate(keys):  # one by one, so that an image does not depend on the others
            random = torch.Generator(device).manual_seed(int(seeded(seed, "image", key).integers(2**62)))
            told = (torch.from_numpy(inputs[row : row + 1]) * self.norm).to(device, dtype)
            with _quiet():
                images.append(self.pipe(image_embeds=told, generator=random, **options).images[0])
            advance(1)
        return images


def check_identity(name: str, kind: Kind, dim: int, store: Store) -> None:
    """Refuse a store whose embeddings are not those that a generator was trained with.

    Raises:
        GeneratorError: with both dimensions and models.
    """
    model, expected = store.info.model, kind.models.get(dim)
    same = True
    if model and expected is not None:
        known = (model.get("architecture"), model.get("pretrained"))
        names = ("/".join(expected), f"hf-hub:laion/CLIP-{expected[0]}-{expected[1]}")
        quick = (f"{expected[0]}-quickgelu", expected[1])
        same = known in (expected, quick) if all(known) else model.name in names
    if store.info.dim != dim or not same:
        wanted = "/".join(expected) if expected else " or ".join("/".join(known) for known in kind.models.values())
        raise GeneratorError(
            f"The generator {name} needs embeddings of {wanted}, {dim} dimensions, but the store {store.path} has "
            f"those of {model}, {store.info.dim} dimensions.",
            remedy=f"Embed with the model that it was trained with: c3 embed PATH --model {wanted}",
        )


def _load_pipe(pipeline: str, source: str, compute: Compute) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("diffusers", extra="images", purpose="A pre-trained generator") from error
    try:
        with _quiet():
            pipe = getattr(diffusers, pipeline).from_pretrained(source)
            pipe.set_progress_bar_config(disable=True)
            return pipe.to(compute.device, compute.dtype)
    except Exception as error:  # diffusers, transformers and the hub raise whatever their layers raise
        reason = " ".join(str(error).split())[:300]
        raise GeneratorError(
            f"The generator {source} could not be loaded as {pipeline}: {type(error).__name__}: {reason}",
            remedy="Give a folder that save_pretrained wrote, or a repository of the hub if it can be reached.",
        ) from error


@torch.inference_mode()
def _measured_norm(model: ModelIdentity) -> float:
    """Return the mean length of a model's image embeddings before they are normalised, on bundled photos.

    Raises:
        EncoderError: if the model cannot be loaded.
    """
    network = load_network(str(model["name"]), random_init=model.get("random_init"))
    preprocess = network.preprocess
    squares = []
    for path in sorted((PHOTOS / "images").iterdir())[:_PROBES]:
        image, _, _ = open_image(io.BytesIO(path.read_bytes()), preprocess.size)
        squares.append(torch.from_numpy(preprocess(image)).float() / 255)
    pixels = (torch.stack(squares) - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
    features = network.model.encode_image(pixels.permute(0, 3, 1, 2))  # type: ignore[operator]
    return float(features.float().norm(dim=1).mean())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log lines and bars of diffusers and transformers from the user's terminal."""
    with ExitStack() as stack:
        for library in ("diffusers", "transformers"):
            with suppress(ImportError):
                logger = import_module(f"{library}.utils.logging")
                stack.callback(logger.set_verbosity, logger.get_verbosity())
                stack.callback(logger.enable_progress_bar)
                logger.set_verbosity(logging.CRITICAL)
                logger.disable_progress_bar()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
