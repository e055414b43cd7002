"""A trained decoder with its tokenizer, fitted pipeline and training record.

Saved as a folder, without any pickle:

    c3-decoder/
      decoder.json            kind, architecture, record, sha256 of the other files
      weights.safetensors     the weights with the best validation loss, float32 or float16
      tokenizer.json          the BPE tokenizer
      transform.json, transform.safetensors   the fitted pipeline
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer

from .. import devices
from ..arrays import Mask, Matrix
from ..assets.paths import C3_MINI_CAPTIONER
from ..choices import NumberFormat, PositiveInt, Steer, checked
from ..encoders import Encoder, resolve_encoder
from ..errors import DecoderError
from ..identity import ModelIdentity
from ..io.artifact import ArtifactType, digest_of, reading, writing
from ..io.hub import Card, HubRepository, local_folder
from ..lists import as_list
from ..moments import unit_rows
from ..reporter import SILENT, Reporter, counted
from ..result_table import Table
from ..transforms import Pipeline
from ..transforms.space import Space
from .config import DecoderConfig, LanguageModelConfig
from .generation import STEERED, GenerationConfig, GenerationOptions, generate
from .language_model import LanguageModelDecoder
from .model import CaptionDecoder, Decoder
from .steering import load_text_encoder, write_steered
from .tokenizer import CaptionTokenizer

_BUILT_IN = "built-in"
DECODER = ArtifactType("decoder", "decoder.json", DecoderError, "c3 train-decoder", "--decoder")
_WEIGHTS_FILE = "weights.safetensors"
_TOKENIZER_FILE = "tokenizer.json"
_DEFAULT_FOLDER = Path("c3-decoder")  # where c3 train-decoder writes to
_UNIT_TOLERANCE = 0.01
# The embeddings of a modality lie around its mean: along it c3-mini's photos come to 0.93 to 1.08
# of its length, its texts, given as photos, to 0.22 to 0.30, random directions to at most 0.25.
# Near the origin a mean tells nothing.
_FAR = 0.5
_SHORTEST_MEAN = 0.3


@dataclass(repr=False)
class Captioner(HubRepository):
    """A trained decoder that captions images or their embeddings.

    Attributes:
        decoder: the built-in Transformer, or a language model behind a mapper.
        tokenizer: its tokenizer.
        pipeline: the fitted transform of its inputs.
        record: of its training: ``model`` (identity of the encoder), ``preset``, ``sigma``,
            ``best_val_loss``, ….
    """

    decoder: Decoder
    tokenizer: CaptionTokenizer
    pipeline: Pipeline
    record: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Captioner({self.model}, {self.pipeline!r}, size {self.size})"

    @checked
    def caption(
        self,
        images: str | Path | Image.Image | Sequence[str | Path | Image.Image] | None = None,
        *,
        embeddings: Matrix | None = None,
        modality: str = "image",
        keys: Sequence[str] | None = None,
        encoder: Encoder | None = None,
        beams: PositiveInt | None = None,
        length_penalty: float = 0.7,
        top_p: float | None = None,
        temperature: float = 1.0,
        steer: Steer | None = None,
        seed: int = 0,
        generation: GenerationConfig | None = None,
        reporter: Reporter = SILENT,
    ) -> list[str]:
        """Return one caption per image, or per embedding.

        An image has the same caption as its embedding in a store, because both are rounded to
        float16.

        Args:
            images: paths or PIL images, or one of them; None if embeddings are given.
            embeddings: (n, d), as the encoder computes them; the pipeline is applied here. No
                encoder is loaded for them, unless they are steered.
            modality: of the embeddings.
            keys: one per row, for sampling; by default the numbers of the rows.
            encoder: of the decoder's model, to encode images, and texts to ``steer``; loaded by
                default.
            beams: number of beams of beam search, which ranks by log-probability / length **
                ``length_penalty``; 1 is greedy. By default 5, or 1 for a language model of
                transformers.
            top_p, temperature: of nucleus sampling.
            steer: ``magic`` or ``zerocap``: the encoder steers the decoder at every word (see
                `GenerationConfig`).
            seed: of sampling.
            generation: the six settings above at once.
            reporter: gets messages about embeddings that may be wrong (see `check_embeddings`), and
                shows the progress of steering.

        Raises:
            DecoderError: if the model or the dimension does not match the decoder, the embeddings
                cannot come from the encoder, or the options contradict each other.
            EncoderError: if the encoder cannot be loaded, or an image cannot be read.

        Example:
            >>> captioner = c3tools.Captioner.load("c3-mini")
            >>> captioner.caption("images/000000020247.jpg")
            ['a brown dog is running in the sand']
            >>> captioner.caption(embeddings=store.load("image").embeddings[:1])
            ['a golden haired dog is looking up at the camera']
        """
        images = as_list(images)
        if (images is None) == (embeddings is None):
            raise DecoderError(
                "Captions need either images or embeddings.", remedy="Pass one of them."
            )
        if generation is None:
            options = GenerationOptions(
                beams=beams,
                length_penalty=length_penalty,
                top_p=top_p,
                temperature=temperature,
                steer=steer,
                seed=seed,
            )
            generation = self.generation(options)
        if images is not None:
            encoder = encoder or resolve_encoder(recorded=self.model)
            self.check_model(encoder.identity, encoder.dim)
            embeddings = encoder.encode_images(images)
        else:
            embeddings = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
            self.check_embeddings(embeddings, modality, keys, reporter)
        return self.write(embeddings, modality, keys, encoder, generation, reporter)

    def write(
        self,
        embeddings: Matrix,
        modality: str,
        keys: Sequence[str] | None,
        encoder: Encoder | None,
        generation: GenerationConfig,
        reporter: Reporter = SILENT,
    ) -> list[str]:
        """Return one caption per embedding, float32 (n, d), without checking them; see
        `caption`.
        """
        if not len(embeddings):
            return []
        # Unit rows are rounded as a store has them
        distances = np.abs(np.linalg.norm(embeddings, axis=1) - 1)
        if distances.max() < _UNIT_TOLERANCE:
            embeddings = embeddings.astype(np.float16).astype(np.float32)
        inputs = self.pipeline.transform(embeddings, modality=modality, training=False)
        if generation.method in STEERED:
            encoder = encoder or load_text_encoder(self.model, generation.method)
            images = unit_rows(embeddings)
            with reporter.progress("Captioning", len(images)) as progress:
                captions = write_steered(
                    self.decoder,
                    self.tokenizer,
                    inputs,
                    images,
                    generation.method,
                    encoder,
                    progress,
                )
        elif self.is_language_model:
            raise DecoderError(
                "The decoder is a plain language model. It reads no embedding, so its captions do "
                "not describe an image.",
                remedy="Let the encoder steer it with --steer magic or --steer zerocap, or use "
                "another --decoder.",
            )
        else:
            if keys is None:
                keys = [str(row) for row in range(len(embeddings))]
            captions = generate(self.decoder, inputs, generation, keys)
        return [self.tokenizer.decode(ids) for ids in captions]

    def generation(self, options: GenerationOptions) -> GenerationConfig:
        """Return the generation settings for this decoder from the options of `caption`.

        Raises:
            DecoderError: if the options mean several methods at once.
        """
        return options.config(built_in=isinstance(self.decoder, CaptionDecoder))

    @property
    def is_language_model(self) -> bool:
        """True where the decoder reads no embedding: a language model of captions."""
        return self.decoder.config.prefix_length == 0

    @property
    def size(self) -> str | None:
        """The size of the decoder, a key of `c3tools.captioning.config.SIZES`."""
        return self.record.get("size")

    @property
    def model(self) -> ModelIdentity:
        """The model whose embeddings it was trained on."""
        return ModelIdentity(self.record.get("model") or {})

    @property
    def space(self) -> Space:
        """The space of its inputs."""
        return Space.after(self.pipeline, "the decoder", self.model)

    def check_dim(self, dim: int) -> None:
        """Refuse embeddings of another dimension.

        Raises:
            DecoderError: with both dimensions and the decoder's model.
        """
        if dim != self.decoder.config.dim:
            raise DecoderError(
                f"The decoder was trained on embeddings of {self.decoder.config.dim} dimensions "
                f"({self.model}), but these have {dim}.",
                remedy="Use embeddings from the same model, or train a decoder on these: `c3 "
                "train-decoder`.",
            )

    def check_model(self, model: Mapping[str, Any] | None, dim: int) -> None:
        """Refuse embeddings of another model than the decoder's: by the hash of the weights, else
        by name.

        Raises:
            DecoderError: with both models named.
        """
        self.model.require_same(
            model,
            own="The decoder",
            theirs="these embeddings",
            error=DecoderError,
            remedy="Use the same --model, or train a decoder on these embeddings: `c3 "
            "train-decoder`.",
        )
        self.check_dim(dim)

    def check_embeddings(
        self,
        embeddings: Matrix,
        modality: str = "image",
        keys: Sequence[str] | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        """Reject embeddings (n, d) from another model, and warn about doubtful ones.

        Embeddings with NaN, infinity or norm 0 are rejected. So are embeddings that are all far
        from the mean of their modality, if the pipeline has one: they come from another model or
        modality, or have already been transformed. If only some are far, or if norms differ from 1,
        the reporter gets a warning.

        Raises:
            DecoderError: if they have another dimension, no direction, or come from another space.
        """
        self.check_dim(embeddings.shape[1])
        names = keys if keys is not None else [str(row) for row in range(len(embeddings))]

        def described(is_meant: Mask) -> str:
            first = names[int(np.flatnonzero(is_meant)[0])]
            total = counted(len(is_meant), "embedding")
            return f"{is_meant.sum():,} of {total} (the first is {first})"

        # A direction, and the norm of an encoder's output
        norms = np.linalg.norm(embeddings, axis=1)
        without_direction = ~np.isfinite(norms) | (norms == 0)
        if without_direction.any():
            raise DecoderError(
                f"{described(without_direction)} contain NaN or infinity, or are zero vectors, "
                f"which have no direction.",
                remedy="Remove them, or embed them again.",
            )
        not_unit = np.abs(norms - 1) > _UNIT_TOLERANCE
        if not_unit.any():
            reporter.message(
                f"{described(not_unit)} have norms of up to {norms[not_unit].max():.3g}, unlike "
                f"embeddings of {self.model.name}."
            )

        # How far the embeddings reach along the mean of each modality that the pipeline subtracts
        # from unit rows, as shares (n,) of its length. A mean near the origin tells nothing
        shares: dict[str, Matrix] = {}
        first_step = next((step for step in self.pipeline.steps if step.kind != "normalize"), None)
        if first_step is not None:
            unit = unit_rows(embeddings)
            for name, array in first_step.state.items():
                mean = np.asarray(array, dtype=np.float32)
                if name.startswith("centre/") and np.linalg.norm(mean) >= _SHORTEST_MEAN:
                    shares[name.removeprefix("centre/")] = unit @ mean / (mean @ mean)
        if modality not in shares:
            return
        is_far = shares[modality] < _FAR
        if not is_far.any():
            return

        # The modality that the far ones rather belong to
        nearest = next((name for name in shares if np.median(shares[name][is_far]) >= _FAR), None)
        message = (
            f"{described(is_far)} are far from the mean of {modality} embeddings of "
            f"{self.model.name}"
        )
        if nearest:
            message += f", but close to the mean of {nearest} embeddings"
        if not is_far.all():
            reporter.message(f"{message}, so their captions may be wrong.")
            return
        remedy = (
            "Use embeddings from the same model, exactly as the encoder computes them, without a "
            "transform."
        )
        if nearest:
            remedy = f"If they are {nearest} embeddings, use --modality {nearest}."
        raise DecoderError(f"{message}.", remedy=remedy)

    def fingerprint(self) -> str:
        """Return a digest of all that a caption depends on, except generation settings."""
        return digest_of(self.decoder.digest(), self.tokenizer.to_json(), self.pipeline.digest)

    def to_dict(self) -> dict[str, Any]:
        """Return the training record and the number of parameters, as `c3 train-decoder --json`
        prints them.
        """
        return {**self.record, "parameters": self.decoder.count_parameters()}

    def losses(self) -> Table:
        """Return the losses of its training by epoch, as `c3 train-decoder` prints them."""
        start = self.record["start_val_loss"]
        best = self.record["best_val_loss"]
        rows = []
        if start is not None:
            rows.append(["before", "", _loss_in_words(start, best), ""])
        for epoch in self.record["history"]:
            rows.append(
                [
                    str(epoch["epoch"]),
                    f"{epoch['train_loss']:.3f}",
                    _loss_in_words(epoch["val_loss"], best),
                    f"{epoch['tokens'] / epoch['seconds']:,.0f}",
                ]
            )
        return Table(["epoch", "training loss", "validation loss", "tokens/s"], rows)

    def card(self) -> Card:
        """Return its card on the hub."""
        record = self.record
        facts = {
            "encoder": self.model,
            "preset": record.get("preset"),
            "sigma": record.get("sigma"),
            "size": record.get("size"),
            "seed": record.get("seed"),
            "captions": (record.get("captions") or {}).get("train"),
            "parameters": self.decoder.count_parameters(),
            "validation loss": record.get("best_val_loss"),
        }
        learned = "captions alone, without images"
        if record.get("modality") == "image":
            learned = "images and their captions"
            if record.get("monitor") == "reward":  # ESPER
                learned = "images alone, without captions of them"
        return Card(
            summary=f"A captioner of embeddings of `{self.model.name}`. It learned from {learned}.",
            code='import c3tools\n\ncaptioner = c3tools.Captioner.from_pretrained("{name}")\n'
            'captioner.caption(["photo.jpg"])',
            facts=facts,
            metadata={
                "tags": ["c3tools", "image-captioning", "CLIP", "modality-gap"],
                "pipeline_tag": "image-to-text",
            },
            base_model=self.model.repository,
            validation_loss=record.get("best_val_loss"),
        )

    @checked
    def save(self, folder: str | Path, *, dtype: NumberFormat = "float32") -> None:
        """Write the folder atomically; an existing decoder is kept as ``<folder>.previous``.

        Args:
            folder: the folder.
            dtype: of the weights in the file: ``float32``, or ``float16``, which is half as large
                and is read as float32.
        """
        config = self.decoder.config
        content = {
            "kind": _BUILT_IN if isinstance(config, DecoderConfig) else "language-model",
            "config": asdict(config),
            "record": self.record,
        }
        with writing(folder, DECODER, content) as new:
            decoder = self.decoder if dtype == "float32" else copy.deepcopy(self.decoder).half()
            save_model(decoder, str(new / _WEIGHTS_FILE))  # tied weights are written once
            (new / _TOKENIZER_FILE).write_text(self.tokenizer.to_json(), encoding="utf-8")
            self.pipeline.save(new)

    @classmethod
    def load(cls, folder: str | Path | None = None, device: str | None = None) -> Captioner:
        """Load what `save` wrote.

        Args:
            folder: the folder; ``c3-mini`` for the bundled captioner of that model;
                ``hf-hub:ORG/NAME`` for one of the hub; None for the default; see `find`.
            device: of the weights; None for the fastest available.

        Raises:
            DecoderError: if there is no decoder, or one of its files is missing, damaged or
                truncated.
        """
        device = devices.pick(device, "fp32").device
        with reading(cls.find(folder), DECODER) as (local, content):
            config = content["config"]
            if content["kind"] == _BUILT_IN:
                decoder: Decoder = CaptionDecoder(DecoderConfig(**config))
            else:
                decoder = LanguageModelDecoder(LanguageModelConfig(**config))
            load_model(decoder, local / _WEIGHTS_FILE)
            text = (local / _TOKENIZER_FILE).read_text(encoding="utf-8")
            return cls(
                decoder=decoder.to(device).eval(),
                tokenizer=CaptionTokenizer(
                    Tokenizer.from_str(text), decoder.pad_id, decoder.end_id
                ),
                pipeline=Pipeline.load(local),
                record=dict(content["record"]),
            )

    @staticmethod
    def find(folder: str | Path | None = None) -> Path:
        """Return the folder of a decoder.

        Args:
            folder: a folder, which comes before a bundled decoder of the same name; ``c3-mini`` for
                the bundled captioner of that model; ``hf-hub:ORG/NAME``, which is fetched; None for
                ``c3-decoder``, the default output of `c3 train-decoder`, or the bundled decoder if
                that folder does not exist.
        """
        if folder is None:
            return _DEFAULT_FOLDER if _DEFAULT_FOLDER.exists() else C3_MINI_CAPTIONER
        local = local_folder(folder)
        if str(folder) == "c3-mini" and not local.exists():
            return C3_MINI_CAPTIONER
        return local


def notes_on_empty_captions(captions: Collection[str]) -> list[str]:
    """Return a note if captions that a decoder wrote are empty, otherwise none."""
    empty = sum(not caption.strip() for caption in captions)
    if not empty:
        return []
    are_empty = counted(len(captions), "caption is empty", "captions are empty")
    return [
        f"{empty:,} of {are_empty}. A decoder that was trained too little ends before the first "
        f"word: train it longer (--epochs)."
    ]


def _loss_in_words(loss: float, best: float) -> str:
    """Return a validation loss, and whether its weights are those that were kept."""
    return f"{loss:.3f} (kept)" if loss == best else f"{loss:.3f}"
