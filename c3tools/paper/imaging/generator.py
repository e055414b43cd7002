"""Image generators: trained ones with their fitted pipeline and training record, and pre-trained
ones of diffusers.

A trained one is saved as a folder, without any pickle:

    c3-generator/
      generator.json          architecture, record, sha256 of the other files
      weights.safetensors     the averaged weights with the best validation loss, float32
      transform.json, transform.safetensors   the fitted pipeline
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_model, save_model

from ... import devices
from ...arrays import Matrix
from ...devices import Compute
from ...encoders import Encoder, resolve_encoder
from ...encoders.networks import quiet, weights_sha256
from ...errors import GeneratorError, reason_of
from ...identity import ModelIdentity
from ...io.artifact import ArtifactType, digest_of, reading, writing
from ...io.hub import Card, HubRepository
from ...lists import as_list
from ...reporter import SILENT, Reporter
from ...result_table import Table
from ...seeds import keyed_normal, torch_seed
from ...store import Store
from ...transforms import Pipeline, preset
from .model import GUIDANCE, SAMPLING_STEPS, ImageNetwork, Size, diffusers_class

_FACTS = ("preset", "sigma", "size", "seed")
GENERATOR = ArtifactType(
    "generator", "generator.json", GeneratorError, "c3 train-generator", "--generator"
)
_WEIGHTS_FILE = "weights.safetensors"
PREFIX = "unclip:"
_PIPELINE = "StableUnCLIPImg2ImgPipeline"
_GUIDANCE = 10.0
_MODEL_OF_DIM = {1024: "ViT-H-14/laion2b_s32b_b79k", 768: "ViT-L-14/openai"}


class ImageGenerator(ABC):
    """Images from texts, photos or embeddings, through one embedding each.

    Attributes:
        pipeline: the fitted transform of its inputs.
        record: how it was made; ``model`` is the identity of the encoder of its embeddings.
        compute: device and precision.
        dim: dimension of its embeddings.
        guidance: the default weight of the embedding.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        record: Mapping[str, Any],
        compute: Compute,
        dim: int,
        guidance: float,
    ) -> None:
        self.pipeline = pipeline
        self.record = dict(record)
        self.compute = compute
        self.dim = dim
        self.guidance = guidance

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of its weights and its pipeline."""

    @abstractmethod
    def _sample(
        self, inputs: Matrix, keys: Sequence[str], seed: int, steps: int, guidance: float
    ) -> Iterator[Image.Image]:
        """Yield one image per transformed embedding (n, d); its noise comes from (seed, its
        key).
        """

    def generate(
        self,
        texts: Sequence[str] | None = None,
        *,
        images: Sequence[str | Path | Image.Image] | None = None,
        embeddings: Matrix | None = None,
        modality: str = "text",
        keys: Sequence[str] | None = None,
        encoder: Encoder | None = None,
        n: int = 1,
        seed: int = 0,
        sampling_steps: int = SAMPLING_STEPS,
        guidance: float | None = None,
        reporter: Reporter = SILENT,
    ) -> list[Image.Image]:
        """Return ``n`` images for each text, photo or embedding, one after another.

        An image depends on its text, its key, its number among the ``n``, and the settings, but not
        on the other images of the call.

        Args:
            texts: what the images are to show; one of ``texts``, ``images`` and ``embeddings`` is
                given.
            images: paths or PIL images to make variations of.
            embeddings: float32 (m, d) as the encoder computes them; the pipeline is applied here.
            modality: of ``embeddings``.
            keys: one per text, photo or embedding, from which the noise is drawn; by default the
                text itself, or the number of the row.
            encoder: of the generator's model; by default it is loaded.
            n: images for each.
            seed: of the noise.
            sampling_steps: more are slower and a little sharper.
            guidance: how much the embedding counts; 1 is as in training. None for the generator's
                own default.
            reporter: shows messages and progress.

        Raises:
            GeneratorError: if the model or the dimension is another than the generator's.
            EncoderError: if the encoder cannot be loaded, or a photo cannot be read.
        """
        texts = as_list(texts)
        images = as_list(images)
        if sum(given is not None for given in (texts, images, embeddings)) != 1:
            raise GeneratorError("Pass exactly one of texts, photos and embeddings.")
        if embeddings is None:
            embeddings = self.encode(texts=texts, images=images, encoder=encoder, reporter=reporter)
            modality = "text" if texts is not None else "image"
        if keys is None:
            keys = texts if texts is not None else [str(row) for row in range(len(embeddings))]
        numbered = [(key, number) for key in keys for number in range(n)]
        repeated = embeddings.repeat(n, axis=0)
        return list(
            self.sample(repeated, modality, numbered, seed, sampling_steps, guidance, reporter)
        )

    def sample(
        self,
        embeddings: Matrix,
        modality: str,
        keys: Sequence[tuple[str, int]],
        seed: int,
        steps: int,
        guidance: float | None,
        reporter: Reporter,
    ) -> Iterator[Image.Image]:
        """Yield one image per embedding, whose noise is drawn from the seed and its key.

        Args:
            embeddings: float32 (n, d) as the encoder computes them.
            modality: of the embeddings.
            keys: a name, and a number among the images of that name.
            seed, steps, guidance, reporter: see `generate`.

        Raises:
            GeneratorError: if the dimension is another than the generator's.
        """
        self.check_model(None, embeddings.shape[1])
        if not len(embeddings):
            return
        inputs = self.pipeline.transform(embeddings, modality=modality, training=False)
        noise_keys = [f"{number}\x1f{key}" if number else key for key, number in keys]
        weight = self.guidance if guidance is None else guidance
        with reporter.progress("Generating images", len(noise_keys)) as progress:
            for image in self._sample(inputs, noise_keys, seed, steps, weight):
                yield image
                progress.advance()

    def encode(
        self,
        *,
        texts: Sequence[str] | None = None,
        images: Sequence[str | Path | Image.Image] | None = None,
        encoder: Encoder | None = None,
        **options: Any,
    ) -> Matrix:
        """Return the embeddings of texts, or of photos, float32 (n, d).

        They are encoded one by one: in a batch, the last bits of an embedding depend on the others
        in it. The ``options`` are those of `c3tools.encoders.resolve_encoder`, for an encoder that
        is loaded.

        Raises:
            GeneratorError: if the encoder is of another model than the generator.
            EncoderError: if the encoder cannot be loaded, or a photo cannot be read.
        """
        encoder = encoder or resolve_encoder(
            recorded=self.model, **{"device": self.compute.device, **options}
        )
        self.check_model(encoder.identity, encoder.dim)
        if texts is None:
            return encoder.encode_images(images or [], batch_size=1)
        return encoder.encode_texts(texts, batch_size=1)

    @property
    def model(self) -> ModelIdentity:
        """The model whose embeddings it takes."""
        return ModelIdentity(self.record.get("model") or {})

    def check_model(self, model: Mapping[str, Any] | None, dim: int) -> None:
        """Refuse embeddings of another model or dimension; a model that is not known passes.

        Raises:
            GeneratorError: with both models or dimensions named.
        """
        remedy = (
            "Use embeddings from the same model, or train a generator on these: `c3 "
            "train-generator`."
        )
        self.model.require_same(
            model,
            own="The generator",
            theirs="these embeddings",
            error=GeneratorError,
            remedy=remedy,
        )
        if dim != self.dim:
            raise GeneratorError(
                f"The generator needs embeddings of {self.dim} dimensions ({self.model}), but "
                f"these have {dim}.",
                remedy=remedy,
            )


class Generator(ImageGenerator, HubRepository):
    """A generator trained on the photos of a store and their image embeddings.

    Attributes:
        network: predicts the velocity of its flow.
        record: ``model`` (identity of the encoder), ``preset``, ``sigma``, ``size``, ``seed``,
            ``photos``, ``training``, ``trace``, ``validations`` (each a step, the training loss
            since the last one, and its own loss), ``best_val_loss``.
    """

    def __init__(
        self, network: ImageNetwork, pipeline: Pipeline, record: Mapping[str, Any], compute: Compute
    ) -> None:
        super().__init__(pipeline, record, compute, network.config.dim, GUIDANCE)
        self.network = network.to(compute.device).eval()

    def __repr__(self) -> str:
        return f"Generator({self.model}, {self.pipeline!r}, size {self.record.get('size')})"

    def fingerprint(self) -> str:
        """Return a digest of its weights and its pipeline."""
        return digest_of(weights_sha256(self.network), self.pipeline.record()["checksum"])

    def _sample(
        self, inputs: Matrix, keys: Sequence[str], seed: int, steps: int, guidance: float
    ) -> Iterator[Image.Image]:
        pixels = self.network.config.pixels
        noise = torch.from_numpy(keyed_normal(seed, 0, keys, 3 * pixels**2)).view(
            -1, 3, pixels, pixels
        )
        told = torch.from_numpy(inputs)
        sampled = self.network.sample(told, noise, self.compute, steps=steps, guidance=guidance)
        yield from map(Image.fromarray, sampled)

    def to_dict(self) -> dict[str, Any]:
        """Return the training record and the number of parameters, as `c3 train-generator --json`
        prints them.
        """
        return {**self.record, "parameters": sum(p.numel() for p in self.network.parameters())}

    def losses(self) -> Table:
        """Return the losses of its training by step, as `c3 train-generator` prints them."""
        rows = []
        for step, train_loss, val_loss in self.record["validations"]:
            is_kept = val_loss == self.record["best_val_loss"]
            validation_loss = f"{val_loss:.4f} (kept)" if is_kept else f"{val_loss:.4f}"
            rows.append([f"{step:,}", f"{train_loss:.4f}", validation_loss])
        return Table(["step", "training loss", "validation loss"], rows)

    def card(self) -> Card:
        """Return its card on the hub."""
        chosen = {name: self.record.get(name) for name in _FACTS}
        photos = (self.record.get("photos") or {}).get("train")
        facts = {
            "encoder": self.model,
            **chosen,
            "photos": photos,
            "validation loss": self.record.get("best_val_loss"),
        }
        return Card(
            summary=f"A generator of small images from embeddings of `{self.model.name}`. It "
            "learned from photos and their image embeddings alone, without texts.",
            code='import c3tools\n\ngenerator = c3tools.Generator.from_pretrained("{name}")\n'
            'generator.generate(["a dog on the beach"])',
            facts=facts,
            metadata={
                "tags": ["c3tools", "image-generation", "CLIP", "modality-gap"],
                "pipeline_tag": "text-to-image",
            },
            base_model=self.model.repository,
            validation_loss=self.record.get("best_val_loss"),
        )

    def save(self, folder: str | Path) -> None:
        """Write the folder atomically; an existing generator is kept as ``<folder>.previous``."""
        config = asdict(self.network.config)
        del config["training"]  # the record has the settings that were used
        with writing(folder, GENERATOR, {"config": config, "record": self.record}) as new:
            save_model(self.network, str(new / _WEIGHTS_FILE))
            self.pipeline.save(new)

    @classmethod
    def load(cls, folder: str | Path, compute: Compute | None = None) -> Generator:
        """Load what `save` wrote.

        Args:
            folder: of the generator, or ``hf-hub:ORG/NAME`` for one of the hub.
            compute: device and precision of sampling; None for the fastest available.

        Raises:
            GeneratorError: if there is no generator, or one of its files is missing, damaged or
                truncated.
            MissingExtraError: if diffusers is not installed.
        """
        with reading(folder, GENERATOR) as (found, content):
            network = ImageNetwork(Size(**content["config"]))
            load_model(network, found / _WEIGHTS_FILE)
            return cls(
                network, Pipeline.load(found), dict(content["record"]), compute or devices.pick()
            )


class PretrainedGenerator(ImageGenerator):
    """A pre-trained pipeline of diffusers, driven by embeddings of a store's model; nothing is
    trained.

    It is a `StableUnCLIPImg2ImgPipeline`, for embeddings of OpenCLIP ViT-H-14 (1024-d) or of CLIP
    ViT-L-14 (768-d). A text embedding is moved to where image embeddings are, ``(e - mean_text) s +
    mean_image`` (ReAlign), so that no prior model is needed, and scaled to the length that the
    generator knows: its image embeddings are not normalised.

    Args:
        name: ``unclip:PATH`` of a folder that ``save_pretrained`` wrote, or ``unclip:ID`` on the
            Hugging Face hub.
        store: of the model that the generator was trained with, with images and texts; its means
            are used.
        compute: device and precision; on a CPU always fp32.

    Raises:
        GeneratorError: if the weights cannot be loaded, or are of another model than the store
            (both are named).
        StoreError: if the store is missing.
        MissingExtraError: if diffusers is not installed.
    """

    def __init__(self, name: str, store: Store | str | Path, compute: Compute) -> None:
        store = Store.open(store)
        store.info.require_raw(store.path)
        self.name = name
        if compute.device_type == "cpu":  # parts of these pipelines have no bf16 there
            compute = Compute("cpu", "fp32")
        pipeline_class = diffusers_class(_PIPELINE)
        for library in ("diffusers", "transformers"):
            import_module(f"{library}.utils.logging").disable_progress_bar()
        try:
            with quiet():
                self.pipe = pipeline_class.from_pretrained(name.removeprefix(PREFIX))
                self.pipe.set_progress_bar_config(disable=True)
                self.pipe.to(compute.device, compute.dtype)
        except Exception as error:
            # diffusers, transformers and the hub raise whatever their layers raise
            raise GeneratorError(
                f"The generator {name} could not be loaded as {_PIPELINE}: "
                f"{type(error).__name__}: {reason_of(error)}",
                remedy="Pass a folder written by save_pretrained, or a repository on the hub, if "
                "it is reachable.",
            ) from error
        normalizer = self.pipe.image_normalizer
        dim = int(normalizer.config.embedding_dim)
        self._require_model_of(store, dim)
        # The typical length of image embeddings, by the statistics that the pipeline ships: the
        # root of the mean squared length, which is |mean|^2 + the sum of the variances
        mean = normalizer.mean.detach().float()
        std = normalizer.std.detach().float()
        self.norm = float((mean**2 + std**2).sum().sqrt())
        # Moves text embeddings to where image embeddings are
        realign = preset("realign", train_on="image", infer_on="text").fit(store)
        super().__init__(
            pipeline=realign,
            record={"model": dict(store.info.model)},
            compute=compute,
            dim=dim,
            guidance=_GUIDANCE,
        )

    def _require_model_of(self, store: Store, dim: int) -> None:
        """Refuse a store of another model than that whose embeddings, of ``dim`` dimensions, the
        generator was trained with.
        """
        store_model = store.info.model
        model_of_generator = _MODEL_OF_DIM.get(dim)
        # ViT-L-14-quickgelu/openai and ViT-L-14/openai name the same weights
        recorded = f"{store_model.get('architecture')}/{store_model.get('pretrained')}"
        names_of_store_model = (recorded.replace("-quickgelu/", "/"), store_model.name)
        # Only compared if both are known: imported embeddings may name no model
        both_known = bool(store_model) and model_of_generator is not None
        is_other_model = both_known and model_of_generator not in names_of_store_model
        if store.info.dim != dim or is_other_model:
            wanted = model_of_generator or " or ".join(_MODEL_OF_DIM.values())
            raise GeneratorError(
                f"The generator {self.name} needs embeddings of {wanted}, {dim} dimensions, but "
                f"the store {store.path} has embeddings of {store_model}, "
                f"{store.info.dim} dimensions.",
                remedy=f"Embed with the generator's model: c3 embed PATH --model {wanted}",
            )

    def __repr__(self) -> str:
        return self.name

    def fingerprint(self) -> str:
        """Return a digest of its name and its transform; the weights of a name are taken to stay
        the same.
        """
        return digest_of(self.name, self.norm, self.pipeline.record()["checksum"])

    def _sample(
        self, inputs: Matrix, keys: Sequence[str], seed: int, steps: int, guidance: float
    ) -> Iterator[Image.Image]:
        device = self.compute.device
        # one by one, so that an image does not depend on the others
        for row, key in enumerate(keys):
            random = torch.Generator(device).manual_seed(torch_seed(seed, "image", key))
            told = (torch.from_numpy(inputs[row : row + 1]) * self.norm).to(
                device, self.compute.dtype
            )
            with quiet():
                made = self.pipe(
                    prompt="",
                    image_embeds=told,
                    generator=random,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                )
            yield made.images[0]
