"""Pre-trained generators that take image embeddings, through diffusers: nothing is trained.

| name | pipeline | embeddings |
|---|---|---|
| ``kandinsky-2.2:`` | `KandinskyV22Pipeline` | OpenCLIP ViT-bigG-14, 1280-d |
| ``karlo:`` | `UnCLIPImageVariationPipeline` (deprecated in diffusers) | CLIP ViT-L-14, 768-d |
| ``unclip:`` | `StableUnCLIPImg2ImgPipeline` | OpenCLIP ViT-H-14, 1024-d, or CLIP ViT-L-14, 768-d |

A text embedding is moved to where image embeddings are, ``(e - mean_text) s + mean_image`` (ReAlign), so that no prior
model is needed, and scaled to the length that the generator knows: its image embeddings are not normalised.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..arrays import Matrix
from ..assets.paths import PHOTOS
from ..devices import Compute
from ..encoders import load_network, open_image
from ..errors import GeneratorError, MissingExtraError
from ..identity import ModelIdentity
from ..io.files import read_json
from ..seeds import generator as seeded
from ..store import Store
from ..transforms import Pipeline, preset
from .generator import ImageGenerator

_PROBES = 8  # bundled photos that the length of a model's embeddings is measured on
_VIT_L = ("ViT-L-14", "openai")
_VIT_H = ("ViT-H-14", "laion2b_s32b_b79k")
_BIG_G = ("ViT-bigG-14", "laion2b_s39b_b160k")


@dataclass(frozen=True)
class Kind:
    """A kind of pre-trained generator.

    Attributes:
        pipeline: the class of diffusers.
        guidance: its usual guidance.
        models: the model (architecture, weights) of its embeddings by their dimension.
        dim: returns the dimension of the embeddings that a loaded pipeline takes.
        call: returns one image from a loaded pipeline, an embedding (1, d), the mean of images (1, d), steps, guidance
            and a generator of random numbers.
    """

    pipeline: str
    guidance: float
    models: Mapping[int, tuple[str, str]]
    dim: Callable[[Any], int]
    call: Callable[[Any, Tensor, Tensor, int, float, torch.Generator], Any]


def _kandinsky(pipe: Any, e: Tensor, mean: Tensor, steps: int, guidance: float, random: torch.Generator) -> Any:
    # without its prior there is no embedding of an empty image; the mean of all images stands for "any image"
    side = (pipe.unet.config.sample_size or 64) * pipe.movq_scale_factor
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": random}
    return pipe(image_embeds=e, negative_image_embeds=mean, height=side, width=side, **options)


def _karlo(pipe: Any, e: Tensor, mean: Tensor, steps: int, guidance: float, random: torch.Generator) -> Any:
    options = {"decoder_num_inference_steps": steps, "decoder_guidance_scale": guidance, "generator": random}
    return pipe(image_embeddings=e, **options)


def _unclip(pipe: Any, e: Tensor, mean: Tensor, steps: int, guidance: float, random: torch.Generator) -> Any:
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": random}
    return pipe(image_embeds=e, prompt="", **options)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "kandinsky-2.2": Kind(
            "KandinskyV22Pipeline",
            4.0,
            {1280: _BIG_G},
            lambda pipe: int(pipe.unet.config.encoder_hid_dim),
            _kandinsky,
        ),
        "karlo": Kind(
            "UnCLIPImageVariationPipeline",
            8.0,
            {768: _VIT_L},
            lambda pipe: int(pipe.text_proj.config.clip_embeddings_dim),
            _karlo,
        ),
        "unclip": Kind(
            "StableUnCLIPImg2ImgPipeline",
            10.0,
            {1024: _VIT_H, 768: _VIT_L},
            lambda pipe: int(pipe.image_normalizer.config.embedding_dim),
            _unclip,
        ),
    }
)


class PretrainedGenerator(ImageGenerator):
    """A pre-trained pipeline of diffusers, driven by embeddings of a store's model.

    Attributes:
        kind: a key of `KINDS`.
        norm: length of the image embeddings that it was trained with.
    """

    def __init__(
        self,
        kind: str,
        pipe: Any,
        pipeline: Pipeline,
        mean: Matrix,
        norm: float,
        record: Mapping[str, Any],
        compute: Compute,
    ) -> None:
        super().__init__(pipeline, record, compute)
        self.kind, self.norm = kind, norm
        self._pipe = pipe
        self._mean = torch.from_numpy(mean)[None] * norm

    def __repr__(self) -> str:
        return f"{self.kind}:{self.record.get('source')}"

    @staticmethod
    def parse(name: str | Path) -> tuple[str, str] | None:
        """Return kind and source of ``KIND:PATH`` or ``KIND:ID``; None for a folder of `c3 train-generator`."""
        kind, colon, source = str(name).partition(":")
        return (kind, source) if colon and kind in KINDS else None

    @classmethod
    def load(
        cls, kind: str, source: str, store: Store | str | Path = "c3-store", compute: Compute | None = None
    ) -> PretrainedGenerator:
        """Load a pipeline, and fit where texts and images are on a store.

        Args:
            kind: a key of `KINDS`.
            source: a folder that ``save_pretrained`` wrote, or a name on the Hugging Face hub.
            store: of the model that the generator was trained with, with images and texts; its means are used.
            compute: device and precision; on a CPU always fp32.

        Raises:
            GeneratorError: if the weights cannot be loaded, or are of another model than the store (both are named).
            StoreError: if the store is missing.
            MissingExtraError: if diffusers is not installed.
        """
        chosen, store = KINDS[kind], Store.open(store)
        if compute is None or compute.device_type == "cpu":  # parts of these pipelines have no bf16 there
            compute = Compute("cpu", "fp32")
        pipe = _load_pipe(chosen.pipeline, source, compute)
        check_identity(f"{kind}:{source}", chosen, chosen.dim(pipe), store)
        pipeline = preset("realign", train_on="image", infer_on="text").fit(store)
        mean = store.fitting_moments("image").mean.astype("float32")
        norm = _shipped_norm(pipe) or _measured_norm(store.info.model)
        record = {"model": dict(store.info.model), "source": source, "norm": norm}
        return cls(kind, pipe, pipeline, mean, norm, record, compute)

    @property
    def dim(self) -> int:
        """The dimension of its embeddings."""
        return KINDS[self.kind].dim(self._pipe)

    @property
    def guidance(self) -> float:
        """The default weight of the embedding."""
        return KINDS[self.kind].guidance

    def fingerprint(self) -> str:
        """Return a digest of its name and its transform; the weights of a name are taken to stay the same."""
        return hashlib.sha256(f"{self!r}{self.norm}{self.pipeline.record()['checksum']}".encode()).hexdigest()

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
        for row, key in enumerate(keys):  # one by one, so that an image does not depend on the others
            random = torch.Generator(device).manual_seed(int(seeded(seed, "image", key).integers(2**62)))
            told = (torch.from_numpy(inputs[row : row + 1]) * self.norm).to(device, dtype)
            with _quiet():
                call = KINDS[self.kind].call
                made = call(self._pipe, told, self._mean.to(device, dtype), steps, guidance, random).images
            images.append(made[0])
            advance(1)
        return images


def check_identity(name: str, kind: Kind, dim: int, store: Store) -> None:
    """Refuse a store whose embeddings are not those that a generator was trained with.

    Raises:
        GeneratorError: with both dimensions, or both models.
    """
    model, expected = store.info.model, kind.models.get(dim)
    wants = f"{'/'.join(expected)}, {dim} dimensions" if expected else f"{dim} dimensions"
    named = " or ".join("/".join(known) for known in kind.models.values())
    model_name = "/".join(expected) if expected else named
    remedy = f"Embed with the model that it was trained with: c3 embed PATH --model {model_name}"
    if store.info.dim != dim:
        raise GeneratorError(
            f"The generator {name} needs embeddings of {wants}, but the store {store.path} has those of {model}, "
            f"{store.info.dim} dimensions.",
            remedy=remedy,
        )
    if expected is not None and not _is_model(model, expected):
        raise GeneratorError(
            f"The generator {name} needs embeddings of {'/'.join(expected)}, but the store {store.path} has those of "
            f"{model}. Both have {dim} dimensions, but they are different spaces.",
            remedy=remedy,
        )


def _is_model(model: ModelIdentity, expected: tuple[str, str]) -> bool:
    """Return whether a model is the one expected, or is not known to be another."""
    if not model:
        return True
    known = (model.get("architecture"), model.get("pretrained"))
    if all(known):
        return known == expected or (known[0] == f"{expected[0]}-quickgelu" and known[1] == expected[1])
    return model.name in ("/".join(expected), f"hf-hub:laion/CLIP-{expected[0]}-{expected[1]}")


def _load_pipe(pipeline: str, source: str, compute: Compute) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("diffusers", extra="images", purpose="A pre-trained generator") from error
    try:
        with _quiet():
            by_hand = pipeline == KINDS["karlo"].pipeline
            pipe = _load_karlo(source) if by_hand else getattr(diffusers, pipeline).from_pretrained(source)
            pipe.set_progress_bar_config(disable=True)
            return pipe.to(compute.device, compute.dtype)
    except Exception as error:  # diffusers, transformers and the hub raise whatever their layers raise
        reason = " ".join(str(error).split())[:300]
        raise GeneratorError(
            f"The generator {source} could not be loaded as {pipeline}: {type(error).__name__}: {reason}",
            remedy="Give a folder that save_pretrained wrote, or a repository of the hub if it can be reached.",
        ) from error


def _load_karlo(source: str) -> Any:
    """Load Karlo part by part: its files name a module that diffusers has moved, so that `from_pretrained` fails."""
    import diffusers
    from huggingface_hub import snapshot_download

    folder = Path(source) if Path(source).is_dir() else Path(snapshot_download(source))
    index = read_json(folder / "model_index.json")
    parts = {}
    for name, value in index.items():
        if not isinstance(value, list):
            continue
        library, kind = value
        if kind == "UnCLIPTextProjModel":
            found: Any = None
            for module in ("diffusers.pipelines.deprecated.unclip.text_proj", "diffusers.pipelines.unclip.text_proj"):
                with suppress(ImportError):
                    found = found or import_module(module).UnCLIPTextProjModel
        else:
            found = getattr(import_module(library), kind)
        parts[name] = found.from_pretrained(folder, subfolder=name)
    return diffusers.UnCLIPImageVariationPipeline(**parts)


def _shipped_norm(pipe: Any) -> float | None:
    """Return the typical length of image embeddings by the statistics that a pipeline ships; None without any."""
    normalizer = getattr(pipe, "image_normalizer", None)
    if normalizer is None:
        return None
    mean, std = normalizer.mean.detach().float(), normalizer.std.detach().float()
    return float((mean**2 + std**2).sum().sqrt())


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
