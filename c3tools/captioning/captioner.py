"""A trained decoder with its tokenizer, fitted pipeline and training record.

Saved as a folder, without any pickle:

    c3-decoder/
      decoder.json            kind, architecture, record, sha256 of the other files
      weights.safetensors     the weights with the best validation loss, float32 or float16
      tokenizer.json          the BPE tokenizer
      transform.json, transform.safetensors   the fitted pipeline
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..assets.paths import C3_MINI_CAPTIONER
from ..encoders import Encoder, resolve_encoder
from ..errors import DecoderError
from ..identity import ModelIdentity
from ..io.files import MALFORMED, read_json, sha256_of, write_json_atomically
from ..io.float16 import to_float16, to_float32
from ..io.hub import Card, HubRepository, local_folder
from ..io.outputs import Output, damaged_file, previous_folder, replacing, written_at
from ..reporter import SILENT, Reporter
from ..transforms import Pipeline
from .config import DecoderConfig
from .generation import STEERED, GenerationConfig, generate
from .numpy_decoder import NumpyDecoder
from .space import UNIT_TOLERANCE, check_space
from .tokenizer import CaptionTokenizer

if TYPE_CHECKING:
    from .model import Decoder

FORMAT_VERSION = 1
BUILT_IN, LANGUAGE_MODEL = "built-in", "language-model"
DECODER_FILE = "decoder.json"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
DTYPES = ("float32", "float16")
BUNDLED = {"c3-mini": C3_MINI_CAPTIONER}
OWN = Path("c3-decoder")  # where c3 train-decoder writes to
_AGAIN = "`c3 train-decoder --overwrite`"
_PARTS = (WEIGHTS_FILE, TOKENIZER_FILE, "transform.json", "transform.safetensors")


@dataclass(repr=False)
class Captioner(HubRepository):
    """A trained decoder that captions images, or embeddings of them.

    Attributes:
        decoder: the built-in Transformer, in numpy or as a torch module, or a language model behind a mapper.
        tokenizer: its tokenizer.
        pipeline: the fitted transform of its inputs.
        record: of its training: ``model`` (identity of the encoder), ``preset``, ``sigma``, ``best_val_loss``, ….
    """

    decoder: Decoder | NumpyDecoder
    tokenizer: CaptionTokenizer
    pipeline: Pipeline
    record: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Captioner({self.model}, {self.pipeline!r}, size {self.record.get('size')})"

    def caption(
        self,
        images: Sequence[str | Path | Image.Image] | None = None,
        *,
        embeddings: npt.NDArray[np.float32] | None = None,
        modality: str = "image",
        keys: Sequence[str] | None = None,
        encoder: Encoder | None = None,
        beams: int = 1,
        length_penalty: float = 0.7,
        top_p: float | None = None,
        temperature: float = 1.0,
        steer: str | None = None,
        seed: int = 0,
        generation: GenerationConfig | None = None,
        reporter: Reporter = SILENT,
    ) -> list[str]:
        """Return one caption per image, or per embedding.

        An image has the same caption as its embedding in a store, because both are rounded to float16.

        Args:
            images: paths or PIL images; None if embeddings are given.
            embeddings: (n, d), as the encoder computes them; the pipeline is applied here. No encoder is loaded for
                them, unless they are steered.
            modality: of the embeddings.
            keys: one per row, for sampling; by default the numbers of the rows.
            encoder: of the decoder's model, to encode images, and texts to ``steer``; loaded by default.
            beams: number of beams of beam search, which ranks by log-probability / length ** ``length_penalty``.
            top_p, temperature: of nucleus sampling.
            steer: ``magic`` or ``zerocap``: the encoder steers the decoder at every word (see `GenerationConfig`).
            seed: of sampling.
            generation: all settings at once, instead of the six before.
            reporter: gets messages about embeddings that may be wrong (see `check_embeddings`).

        Raises:
            DecoderError: if the model or the dimension is not that of the decoder, the embeddings cannot come from the
                encoder, or the options contradict each other.
            EncoderError: if the encoder cannot be loaded, or an image cannot be read.
        """
        if (images is None) == (embeddings is None):
            raise DecoderError("Captions need either images or embeddings.", remedy="Pass one of them.")
        generation = generation or GenerationConfig.from_options(
            beams=beams, length_penalty=length_penalty, top_p=top_p, temperature=temperature, steer=steer, seed=seed
        )
        if images is not None:
            encoder = encoder or resolve_encoder(recorded=self.model)
            self.check_model(encoder.identity, encoder.dim)
            embeddings = encoder.encode_images(images)
        else:
            embeddings = np.asarray(embeddings, dtype=np.float32)
            self.check_embeddings(embeddings, modality, keys, reporter)
        return self.write(embeddings, modality, keys, encoder, generation)

    def write(
        self,
        embeddings: npt.NDArray[np.float32],
        modality: str,
        keys: Sequence[str] | None,
        encoder: Encoder | None,
        generation: GenerationConfig,
    ) -> list[str]:
        """Return one caption per embedding, float32 (n, d), without checking or rounding them; see `caption`."""
        if not len(embeddings):
            return []
        if np.abs(np.linalg.norm(embeddings, axis=1) - 1).max() < UNIT_TOLERANCE:
            embeddings = to_float32(to_float16(embeddings))
        inputs = self.pipeline.transform(embeddings, modality=modality, training=False)
        if generation.method in STEERED:
            from .steering import generate_steered

            if encoder is None and self.model:
                encoder = resolve_encoder(recorded=self.model)
            captions = generate_steered(self.torch_decoder(), self.tokenizer, inputs, embeddings, generation, encoder)
        elif self.is_language_model:
            raise DecoderError(
                "The decoder is a language model: it reads no embedding, and its captions say nothing about an image.",
                remedy="Steer it by the encoder with --steer magic or --steer zerocap, or use another --decoder.",
            )
        else:
            keys = keys if keys is not None else [str(row) for row in range(len(embeddings))]
            captions = generate(self.decoder, inputs, generation, keys)
        return [self.tokenizer.decode(ids) for ids in captions]

    @property
    def is_language_model(self) -> bool:
        """True where the decoder reads no embedding: a language model of captions."""
        return self.decoder.config.prefix_length == 0

    @property
    def model(self) -> ModelIdentity:
        """The model whose embeddings it was trained on."""
        return ModelIdentity(self.record.get("model") or {})

    def check_dim(self, dim: int) -> None:
        """Refuse embeddings of another dimension.

        Raises:
            DecoderError: with both dimensions and the decoder's model.
        """
        if dim != self.decoder.config.dim:
            raise DecoderError(
                f"The decoder was trained on embeddings of {self.decoder.config.dim} dimensions "
                f"({self.model}), but these have {dim}.",
                remedy="Use embeddings of the same model, or train a decoder on these: `c3 train-decoder`.",
            )

    def check_model(self, model: Mapping[str, Any] | None, dim: int) -> None:
        """Refuse embeddings of another model than the decoder's: by the hash of the weights, else by name.

        Raises:
            DecoderError: with both models named.
        """
        self.model.require_same(
            ModelIdentity(model or {}),
            own="The decoder",
            theirs="these embeddings",
            error=DecoderError,
            remedy="Use the same --model, or train a decoder on these embeddings: `c3 train-decoder`.",
        )
        self.check_dim(dim)

    def check_embeddings(
        self,
        embeddings: npt.NDArray[np.float32],
        modality: str = "image",
        keys: Sequence[str] | None = None,
        reporter: Reporter = SILENT,
    ) -> None:
        """Refuse embeddings (n, d) that cannot come from the decoder's model, and report doubtful ones.

        See `c3tools.captioning.space.check_space`.

        Raises:
            DecoderError: if they have another dimension or come from another space.
        """
        if embeddings.ndim != 2:
            raise DecoderError(
                f"Embeddings must have the shape (n, {self.decoder.config.dim}), not {embeddings.shape}."
            )
        self.check_dim(embeddings.shape[1])
        keys = keys if keys is not None else [str(row) for row in range(len(embeddings))]
        check_space(embeddings, self.pipeline, self.model.name, modality, keys, reporter)

    def fingerprint(self) -> str:
        """Return a digest of everything that a caption depends on, except the settings of generation."""
        found = hashlib.sha256(f"{self.tokenizer.to_json()}{self.pipeline.record()['checksum']}".encode())
        if isinstance(self.decoder, NumpyDecoder):
            weights = self.decoder.weights
        else:
            weights = {name: value.detach().cpu().float().numpy() for name, value in self.decoder.state_dict().items()}
        for name in sorted(weights):
            found.update(name.encode() + weights[name].tobytes())
        return found.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the training record and the number of parameters, as `c3 train-decoder --json` prints them."""
        return {**self.record, "parameters": self.decoder.count_parameters()}

    def card(self) -> Card:
        """Return the facts of its card on the hub."""
        facts = {"encoder": self.model, **_chosen(self.record), "parameters": self.decoder.count_parameters()}
        learned = "captions alone, without images"
        if self.record.get("modality") == "image":
            rewarded = self.record.get("monitor") == "reward"  # ESPER
            learned = "images alone, without captions of them" if rewarded else "images and their captions"
        return Card(
            f"A captioner of embeddings of `{self.model.name}`. It learned from {learned}.",
            'import c3tools\n\ncaptioner = c3tools.Captioner.from_pretrained("{name}")\n'
            'captioner.caption(["photo.jpg"])',
            facts,
            tags=("image-captioning", "CLIP", "modality-gap"),
            task="image-to-text",
            loss=self.record.get("best_val_loss"),
        )

    def save(self, folder: str | Path, *, dtype: str = "float32") -> None:
        """Write the folder atomically; an existing decoder is kept as ``<folder>.previous``.

        Args:
            folder: the folder.
            dtype: of the weights in the file: ``float32``, or ``float16``, which is half as large and is read as
                float32.

        Raises:
            DecoderError: if there is no such dtype.
        """
        if dtype not in DTYPES:
            raise DecoderError(f"Weights cannot be saved as {dtype!r}.", remedy=f"Choose from {', '.join(DTYPES)}.")
        with replacing(Path(folder)) as new:
            self.decoder.save_weights(new / WEIGHTS_FILE, dtype)
            self.tokenizer.save(new / TOKENIZER_FILE)
            self.pipeline.save(new)
            content = {
                "format_version": FORMAT_VERSION,
                "kind": BUILT_IN if isinstance(self.decoder.config, DecoderConfig) else LANGUAGE_MODEL,
                "config": asdict(self.decoder.config),  # type: ignore[call-overload]
                "record": self.record,
                "files": {name: sha256_of(new / name) for name in _PARTS if (new / name).is_file()},
            }
            write_json_atomically(new / DECODER_FILE, content)

    @classmethod
    def load(cls, folder: str | Path | None = None, device: str = "cpu", *, trainable: bool = False) -> Captioner:
        """Load what `save` wrote.

        Args:
            folder: the folder; ``c3-mini`` for the bundled captioner of that model; ``hf-hub:ORG/NAME`` for one of the
                hub; None for `find_decoder`.
            device: of the weights.
            trainable: always load the decoder as a torch module. By default the built-in decoder runs in numpy on a
                CPU, because importing torch takes longer than it saves.

        Raises:
            DecoderError: if there is no decoder, or a file of it is missing, damaged or cut short.
        """
        folder = find_decoder(folder)
        path = folder / DECODER_FILE
        try:
            content = read_json(path)
            version = int(content["format_version"])
            if version > FORMAT_VERSION:
                raise DecoderError(
                    f"{path} has format version {version}, but this version of c3tools only reads up to "
                    f"{FORMAT_VERSION}.",
                    remedy="Update c3tools: pip install -U c3tools",
                )
            damage = damaged_file(folder, content["files"])
            if damage:
                raise DecoderError(damage, remedy=_remedy(folder, f"Train it again: {_AGAIN}."))
            kind, config, weights = content.get("kind", BUILT_IN), content["config"], folder / WEIGHTS_FILE
            record = dict(content["record"])
            decoder: Decoder | NumpyDecoder
            if kind == BUILT_IN and device == "cpu" and not trainable:
                decoder = NumpyDecoder(DecoderConfig(**config), load_file(weights))
            else:
                decoder = _load_torch_module(kind, config, weights, device)
        except (FileNotFoundError, NotADirectoryError):
            raise DecoderError(
                f"There is no trained decoder at {folder} ({DECODER_FILE} is missing).",
                remedy=_remedy(folder, "Train one with `c3 train-decoder`, or choose another with --decoder."),
            ) from None
        except (*MALFORMED, RuntimeError, SafetensorError) as error:
            raise DecoderError(
                f"The decoder at {folder} is damaged ({error}).", remedy=f"Train it again: {_AGAIN}."
            ) from error
        tokenizer = CaptionTokenizer.load(folder / TOKENIZER_FILE, decoder.pad_id, decoder.end_id)
        return cls(decoder, tokenizer, Pipeline.load(folder), record)

    def torch_decoder(self) -> Decoder:
        """Return the decoder as a torch module."""
        if not isinstance(self.decoder, NumpyDecoder):
            return self.decoder
        import torch

        decoder = _torch_module(BUILT_IN, asdict(self.decoder.config))
        decoder.load_state_dict({name: torch.from_numpy(value) for name, value in self.decoder.weights.items()})
        return decoder.eval()


def find_decoder(folder: str | Path | None = None) -> Path:
    """Return the folder of a decoder: the one that is given, that of a bundled one for its name, or for None a default.

    One of the hub, ``hf-hub:ORG/NAME``, is fetched.

    The default is ``c3-decoder``, where `c3 train-decoder` writes to, and if there is none here the bundled decoder. A
    folder comes before a bundled decoder of the same name.
    """
    if folder is None:
        there = OWN.exists() or not all(map(Path.exists, BUNDLED.values()))
        return OWN if there else next(iter(BUNDLED.values()))
    own = local_folder(folder)
    return own if own.exists() else BUNDLED.get(str(folder), own)


def _torch_module(kind: str, config: Mapping[str, Any]) -> Decoder:
    if kind == BUILT_IN:
        from .model import CaptionDecoder

        return CaptionDecoder(DecoderConfig(**config))
    from .language_model import LanguageModelConfig, LanguageModelDecoder

    return LanguageModelDecoder(LanguageModelConfig(**config))


def _load_torch_module(kind: str, config: Mapping[str, Any], weights: Path, device: str) -> Decoder:
    from safetensors.torch import load_model

    decoder = _torch_module(kind, config)
    load_model(decoder, weights)
    return decoder.to(device).eval()


def decoder_output(folder: Path, overwrite: bool = False) -> Output:
    """Return the folder of a decoder as the output of a training."""
    return Output(folder, "decoder", (DECODER_FILE,), overwrite, kept=previous_folder(folder))


def describe_decoder(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the record of the decoder in a folder, empty if it is damaged, and in words what it is."""
    path = folder / DECODER_FILE
    try:
        record = dict(read_json(path)["record"])
        facts = [str(record["preset"]), f"sigma {record['sigma']:.3g}", f"size {record['size']}"]
        facts += [f"seed {record['seed']}", f"trained on {record['captions']['train']:,} captions"]
        facts += [f"finished {written_at(path)}", f"best validation loss {record['best_val_loss']:.3f}"]
    except (OSError, *MALFORMED):
        return {}, "it is damaged, or it was not made by c3 train-decoder"
    return record, ", ".join(facts)


def _chosen(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training settings that a model card shows."""
    chosen = {name: record[name] for name in ("preset", "sigma", "size", "seed") if record.get(name) is not None}
    captions = record.get("captions") or {}
    return {**chosen, **({"captions": captions["train"]} if "train" in captions else {})}


def _remedy(folder: Path, otherwise: str) -> str:
    """Return the remedy for a folder without a decoder: the previous decoder, if it still exists."""
    previous = previous_folder(folder)
    if not (previous / DECODER_FILE).is_file():
        return otherwise
    return f"The previous decoder is kept at {previous}: use --decoder {previous}, or train again."
