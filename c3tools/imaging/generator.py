"""A trained image generator with its fitted pipeline and training record, and what all generators share.

Saved as a folder, without any pickle:

    c3-generator/
      generator.json          architecture, record, sha256 of the other files
      weights.safetensors     the averaged weights with the best validation loss, float32
      transform.json, transform.safetensors   the fitted pipeline
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_model, save_model

from .. import devices
from ..arrays import Matrix
from ..devices import Compute
from ..encoders import Encoder, resolve_encoder
from ..encoders.loading import weights_sha256
from ..errors import GeneratorError
from ..identity import ModelIdentity
from ..io.artifact import Card, HubRepository, Kind, digest_of, reading, write_result
from ..pages import palette
from ..pages.figures import new_figure, save_figure, styled
from ..reporter import SILENT, Reporter
from ..seeds import keyed_normal
from ..transforms import Pipeline
from .model import GUIDANCE, SAMPLING_STEPS, ImageNetwork, NetworkConfig, sample

KIND = Kind(
    "generator",
    "generator.json",
    GeneratorError,
    "c3 train-generator",
    "--generator",
    ("preset", "sigma", "size", "seed", "best_val_loss"),
)
_WEIGHTS_FILE = "weights.safetensors"
_CURVES_FILE = "curves.png"


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
        self, pipeline: Pipeline, record: Mapping[str, Any], compute: Compute, dim: int, guidance: float
    ) -> None:
        self.pipeline, self.record, self.compute = pipeline, dict(record), compute
        self.dim, self.guidance = dim, guidance

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a digest of its weights and its pipeline."""

    @abstractmethod
    def _sample(
        self,
        inputs: Matrix,
        keys: Sequence[str],
        seed: int,
        steps: int,
        guidance: float,
        advance: Callable[[int], object],
    ) -> list[Image.Image]:
        """Return one image per transformed embedding (n, d); its noise comes from (seed, its key)."""

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

        An image depends on its text, its key, its number among the ``n``, and the settings, but not on the other images
        of the call.

        Args:
            texts: what the images are to show; one of ``texts``, ``images`` and ``embeddings`` is given.
            images: paths or PIL images to make variations of.
            embeddings: float32 (m, d) as the encoder computes them; the pipeline is applied here.
            modality: of ``embeddings``.
            keys: one per text, photo or embedding, from which the noise is drawn; by default the text itself, or the
                number of the row.
            encoder: of the generator's model; by default it is loaded.
            n: images for each.
            seed: of the noise.
            sampling_steps: more are slower and a little sharper.
            guidance: how much the embedding counts; 1 is as in training. None for the generator's own default.
            reporter: shows messages and progress.

        Raises:
            GeneratorError: if a text is empty, the guidance is no finite number, or the model or the dimension is
                another than the generator's.
            EncoderError: if the encoder cannot be loaded, or a photo cannot be read.
        """
        if sum(given is not None for given in (texts, images, embeddings)) != 1:
            raise GeneratorError("Give exactly one of texts, photos and embeddings.")
        if n < 1 or sampling_steps < 1:
            raise GeneratorError(f"n and sampling_steps must be at least 1, not {n} and {sampling_steps}.")
        if embeddings is None:
            embeddings = self.encode(texts=texts, images=images, encoder=encoder, reporter=reporter)
            modality = "text" if texts is not None else "image"
        if keys is None:
            keys = list(texts) if texts is not None else [str(row) for row in range(len(embeddings))]
        with reporter.progress("Generating images", n * len(keys)) as progress:
            return self.sample(
                embeddings.repeat(n, axis=0),
                modality,
                [(key, number) for key in keys for number in range(n)],
                seed=seed,
                steps=sampling_steps,
                guidance=guidance,
                advance=progress.advance,
            )

    def sample(
        self,
        embeddings: Matrix,
        modality: str,
        keys: Sequence[tuple[str, int]],
        *,
        seed: int = 0,
        steps: int = SAMPLING_STEPS,
        guidance: float | None = None,
        advance: Callable[[int], object] = lambda count: None,
    ) -> list[Image.Image]:
        """Return one image per embedding, whose noise is drawn from the seed and its key.

        Args:
            embeddings: float32 (n, d) as the encoder computes them.
            modality: of the embeddings.
            keys: a name, and a number among the images of that name.
            seed, steps, guidance: see `generate`.
            advance: is called with the number of further images done.

        Raises:
            GeneratorError: if the dimension is another than the generator's, or the guidance is no finite number.
        """
        self.check_dim(embeddings.shape[1])
        guidance = self.guidance if guidance is None else guidance
        if not math.isfinite(guidance):
            raise GeneratorError(f"The guidance must be a finite number, not {guidance}.")
        if not len(embeddings):
            return []
        inputs = self.pipeline.transform(embeddings, modality=modality, training=False)
        own = [key if number == 0 else f"{number}\x1f{key}" for key, number in keys]
        return self._sample(inputs, own, seed, steps, guidance, advance)

    def encode(
        self,
        *,
        texts: Sequence[str] | None = None,
        images: Sequence[str | Path | Image.Image] | None = None,
        encoder: Encoder | None = None,
        reporter: Reporter = SILENT,
    ) -> Matrix:
        """Return the embeddings of texts, or of photos, float32 (n, d).

        They are encoded one by one: in a batch, the last bits of an embedding depend on the others in it.

        Raises:
            GeneratorError: if a text is empty, or the encoder is of another model than the generator.
            EncoderError: if the encoder cannot be loaded, or a photo cannot be read.
        """
        empty = [number for number, text in enumerate(texts or (), start=1) if not text.strip()]
        if empty:
            raise GeneratorError(f"Text {empty[0]} is empty.", remedy="Write what the image should show.")
        encoder = encoder or resolve_encoder(recorded=self.model, device=str(self.compute.device), reporter=reporter)
        self.check_model(encoder.identity, encoder.dim)
        if texts is None:
            return encoder.encode_images(list(images or ()), batch_size=1)
        cut = encoder.truncated(texts, encoder.tokenise(texts)) if texts else 0
        if cut:
            reporter.message(
                f"{cut:,} of {len(texts):,} texts are longer than the context of the model, and cut short."
            )
        return encoder.encode_texts(texts, batch_size=1)

    @property
    def model(self) -> ModelIdentity:
        """The model whose embeddings it takes."""
        return ModelIdentity(self.record.get("model") or {})

    def check_dim(self, dim: int) -> None:
        """Refuse embeddings of another dimension.

        Raises:
            GeneratorError: with both dimensions and the generator's model.
        """
        if dim != self.dim:
            raise GeneratorError(
                f"The generator needs embeddings of {self.dim} dimensions ({self.model}), but these have {dim}.",
                remedy="Use embeddings of the same model, or train a generator on these: `c3 train-generator`.",
            )

    def check_model(self, model: Mapping[str, Any] | None, dim: int) -> None:
        """Refuse embeddings of another model than the generator's: by the hash of the weights, else by name.

        Raises:
            GeneratorError: with both models named.
        """
        self.model.require_same(
            ModelIdentity(model or {}),
            own="The generator",
            theirs="these embeddings",
            error=GeneratorError,
            remedy="Use the same --model, or train a generator on these embeddings: `c3 train-generator`.",
        )
        self.check_dim(dim)


class Generator(ImageGenerator, HubRepository):
    """A generator trained on the photos of a store and their image embeddings.

    Attributes:
        network: predicts the velocity of its flow.
        record: ``model`` (identity of the encoder), ``preset``, ``sigma``, ``size``, ``seed``, ``photos``,
            ``training``, ``trace``, ``validations``, ``best_val_loss``.
    """

    def __init__(
        self, network: ImageNetwork, pipeline: Pipeline, record: Mapping[str, Any], compute: Compute | None = None
    ) -> None:
        compute = compute or Compute("cpu", "fp32")
        super().__init__(pipeline, record, compute, network.config.dim, GUIDANCE)
        self.network = network.to(compute.device).eval()

    def __repr__(self) -> str:
        return f"Generator({self.model}, {self.pipeline!r}, size {self.record.get('size')})"

    def fingerprint(self) -> str:
        """Return a digest of its weights and its pipeline."""
        return digest_of(weights_sha256(self.network), self.pipeline.record()["checksum"])

    def _sample(
        self,
        inputs: Matrix,
        keys: Sequence[str],
        seed: int,
        steps: int,
        guidance: float,
        advance: Callable[[int], object],
    ) -> list[Image.Image]:
        pixels = self.network.config.pixels
        noise = torch.from_numpy(keyed_normal(seed, 0, keys, 3 * pixels**2)).view(-1, 3, pixels, pixels)
        options: dict[str, Any] = {"steps": steps, "guidance": guidance, "advance": advance}
        squares = sample(self.network, torch.from_numpy(inputs), noise, self.compute, **options)
        return [Image.fromarray(square) for square in squares.numpy()]

    def to_dict(self) -> dict[str, Any]:
        """Return the training record and the number of parameters, as `c3 train-generator --json` prints them."""
        return {**self.record, "parameters": sum(p.numel() for p in self.network.parameters())}

    def card(self) -> Card:
        """Return the facts of its card on the hub."""
        chosen = {name: self.record.get(name) for name in ("preset", "sigma", "size", "seed")}
        return Card(
            f"A generator of small images from embeddings of `{self.model.name}`. It learned from photos and their "
            "image embeddings alone, without texts.",
            'import c3tools\n\ngenerator = c3tools.Generator.from_pretrained("{name}")\n'
            'generator.generate(["a dog on the beach"])',
            {"encoder": self.model, **chosen, "photos": (self.record.get("photos") or {}).get("train")},
            tags=("image-generation", "CLIP", "modality-gap"),
            task="text-to-image",
            loss=self.record.get("best_val_loss"),
        )

    def save(self, folder: str | Path) -> None:
        """Write the folder atomically; an existing generator is kept as ``<folder>.previous``."""

        def save_files(new: Path) -> None:
            save_model(self.network, str(new / _WEIGHTS_FILE))
            self.pipeline.save(new)
            if self.record.get("trace"):
                save_figure(training_curves(self.record), new / _CURVES_FILE)

        write_result(folder, KIND, {"config": asdict(self.network.config), "record": self.record}, save_files)

    @classmethod
    def load(cls, folder: str | Path, compute: Compute | None = None) -> Generator:
        """Load what `save` wrote.

        Args:
            folder: of the generator, or ``hf-hub:ORG/NAME`` for one of the hub.
            compute: device and precision of sampling; None for the fastest available.

        Raises:
            GeneratorError: if there is no generator, or a file of it is missing, damaged or cut short.
            MissingExtraError: if diffusers is not installed.
        """
        with reading(folder, KIND) as (found, content):
            network = ImageNetwork(NetworkConfig(**content["config"]))
            load_model(network, found / _WEIGHTS_FILE)
            return cls(network, Pipeline.load(found), dict(content["record"]), compute or devices.pick())


@styled
def training_curves(record: Mapping[str, Any]) -> Figure:
    """Draw the losses of a generator's record (``trace``, ``validations``, ``best_val_loss``)."""
    figure, axes = new_figure(6.4, 3.4)
    axes.plot(*zip(*record["trace"], strict=True), color=palette.FIRST, linewidth=1.0, label="training")
    steps, losses = zip(*record["validations"], strict=True)
    axes.plot(steps, losses, "o-", color=palette.SECOND, markersize=4, label="validation: photos, no noise")
    best = record["best_val_loss"]
    axes.plot(steps[losses.index(best)], best, "o", color=palette.SECOND, markersize=8)
    axes.set_title(f"{record['preset']}, sigma {record.get('sigma', 0):.3g}")
    axes.set(xlabel="step", ylabel="mean squared error of the velocity")
    axes.legend()
    return figure
