"""A pre-trained generator that takes image embeddings, through diffusers: nothing is trained.

``unclip:PATH`` or ``unclip:ID`` is a `StableUnCLIPImg2ImgPipeline`, for embeddings of OpenCLIP ViT-H-14 (1024-d) or of
CLIP ViT-L-14 (768-d). A text embedding is moved to where image embeddings are, ``(e - mean_text) s + mean_image``
(ReAlign), so that no prior model is needed, and scaled to the length that the generator knows: its image embeddings are
not normalised.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image

from ..arrays import Matrix
from ..devices import Compute
from ..errors import GeneratorError
from ..io.artifact import digest_of
from ..seeds import generator as seeded
from ..store import Store
from ..transforms import preset
from .generator import ImageGenerator
from .model import diffusers_class

PREFIX = "unclip:"
_PIPELINE = "StableUnCLIPImg2ImgPipeline"
_GUIDANCE = 10.0
_MODELS = {1024: "ViT-H-14/laion2b_s32b_b79k", 768: "ViT-L-14/openai"}


class PretrainedGenerator(ImageGenerator):
    """A pre-trained pipeline of diffusers, driven by embeddings of a store's model.

    Args:
        name: ``unclip:PATH`` of a folder that ``save_pretrained`` wrote, or ``unclip:ID`` on the Hugging Face hub.
        store: of the model that the generator was trained with, with images and texts; its means are used.
        compute: device and precision; on a CPU always fp32.

    Raises:
        GeneratorError: if the weights cannot be loaded, or are of another model than the store (both are named).
        StoreError: if the store is missing.
        MissingExtraError: if diffusers is not installed.
    """

    def __init__(self, name: str, store: Store | str | Path = "c3-store", compute: Compute | None = None) -> None:
        store, self.name = Store.open(store), name
        if compute is None or compute.device_type == "cpu":  # parts of these pipelines have no bf16 there
            compute = Compute("cpu", "fp32")
        pipeline = diffusers_class(_PIPELINE)
        try:
            with _quiet():
                self.pipe = pipeline.from_pretrained(name.removeprefix(PREFIX))
                self.pipe.set_progress_bar_config(disable=True)
                self.pipe.to(compute.device, compute.dtype)
        except Exception as error:  # diffusers, transformers and the hub raise whatever their layers raise
            reason = " ".join(str(error).split())[:300]
            raise GeneratorError(
                f"The generator {name} could not be loaded as {_PIPELINE}: {type(error).__name__}: {reason}",
                remedy="Give a folder that save_pretrained wrote, or a repository of the hub if it can be reached.",
            ) from error
        normalizer = self.pipe.image_normalizer
        dim, model = int(normalizer.config.embedding_dim), store.info.model
        check_identity(name, dim, store)
        # the typical length of image embeddings by the statistics that the pipeline ships
        mean, std = normalizer.mean.detach().float(), normalizer.std.detach().float()
        self.norm = float((mean**2 + std**2).sum().sqrt())
        moved = preset("realign", train_on="image", infer_on="text").fit(store)
        super().__init__(moved, {"model": dict(model)}, compute, dim, _GUIDANCE)

    def __repr__(self) -> str:
        return self.name

    def fingerprint(self) -> str:
        """Return a digest of its name and its transform; the weights of a name are taken to stay the same."""
        return digest_of(self.name, self.norm, self.pipeline.record()["checksum"])

    def _sample(
        self, inputs: Matrix, keys: Sequence[str], seed: int, steps: int, guidance: float
    ) -> Iterator[Image.Image]:
        device = self.compute.device
        for row, key in enumerate(keys):  # one by one, so that an image does not depend on the others
            random = torch.Generator(device).manual_seed(int(seeded(seed, "image", key).integers(2**62)))
            told = (torch.from_numpy(inputs[row : row + 1]) * self.norm).to(device, self.compute.dtype)
            options = {"prompt": "", "num_inference_steps": steps, "guidance_scale": guidance}
            with _quiet():
                image = self.pipe(image_embeds=told, generator=random, **options).images[0]
            yield image


def check_identity(name: str, dim: int, store: Store) -> None:
    """Refuse a store whose embeddings are not those that a generator of ``dim`` dimensions was trained with.

    Raises:
        GeneratorError: with both dimensions and models.
    """
    model, expected = store.info.model, _MODELS.get(dim)
    known = f"{model.get('architecture')}/{model.get('pretrained')}".replace("-quickgelu/", "/")
    if store.info.dim != dim or (model and expected and expected not in (known, model.name)):
        wanted = expected or " or ".join(_MODELS.values())
        raise GeneratorError(
            f"The generator {name} needs embeddings of {wanted}, {dim} dimensions, but the store {store.path} has "
            f"those of {model}, {store.info.dim} dimensions.",
            remedy=f"Embed with the model that it was trained with: c3 embed PATH --model {wanted}",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log lines and bars of diffusers and transformers from the user's terminal."""
    with ExitStack() as stack:
        for library in ("diffusers", "transformers"):
            logger = import_module(f"{library}.utils.logging")
            stack.callback(logger.set_verbosity, logger.get_verbosity())
            stack.callback(logger.enable_progress_bar)
            logger.set_verbosity(logging.CRITICAL)
            logger.disable_progress_bar()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
