"""A trained decoder with its tokenizer, fitted pipeline and training record, and the captions of image files.

Saved as a folder, without any pickle:

    c3-decoder/
      decoder.json            kind, architecture, record, sha256 of the other files
      weights.safetensors     the weights with the best validation loss, float32
      tokenizer.json          the BPE tokenizer
      transform.json, transform.safetensors   the fitted pipeline
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from .. import devices
from ..corpus.folders import find_images
from ..corpus.items import IMAGE_SUFFIXES
from ..corpus.reading import assign_keys
from ..encoders import Encoder, resolve_encoder
from ..errors import CorpusError, DecoderError
from ..identity import ModelIdentity
from ..io.files import sha256_of, write_json_atomically
from ..io.outputs import Output, damaged_file, previous_folder, replacing, written_at
from ..reporter import SILENT, Reporter
from ..transforms import Pipeline
from .config import DecoderConfig
from .generation import GenerationConfig, generate
from .numpy_decoder import NumpyDecoder
from .tokenizer import CaptionTokenizer

if TYPE_CHECKING:
    from .model import Decoder

FORMAT_VERSION = 1
BUILT_IN, LANGUAGE_MODEL = "built-in", "language-model"
DECODER_FILE = "decoder.json"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_AGAIN = "`c3 train-decoder --overwrite`"
_PARTS = (WEIGHTS_FILE, TOKENIZER_FILE, "transform.json", "transform.safetensors")


@dataclass(repr=False)
class Captioner:
    """A trained decoder that captions images, or embeddings of them.

    Attributes:
        decoder: the built-in Transformer, in numpy or as a torch module, or a language model behind a mapper.
        tokenizer: its tokenizer.
        pipeline: the fitted transform of its inputs.
        record: how it was trained: ``model`` (identity of the encoder), ``preset``, ``sigma``, ``best_val_loss``, ….
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
        magic: bool = False,
        seed: int = 0,
        generation: GenerationConfig | None = None,
    ) -> list[str]:
        """Return one caption per image, or per embedding.

        Args:
            images: paths or PIL images; None where embeddings are given.
            embeddings: float32 (n, d) as the encoder gives them; the pipeline is applied here.
            modality: whose embeddings they are.
            keys: one per row, from which sampling draws; by default the numbers of the rows.
            encoder: of the decoder's model, to encode images, and texts for ``magic``; by default it is loaded.
            beams: beam search with so many beams, by log-probability / length ** ``length_penalty``.
            top_p, temperature: sample from the nucleus of this probability, at this temperature.
            magic: the encoder re-scores every word.
            seed, generation: of sampling; all settings at once, in place of the six before.

        Raises:
            DecoderError: if the model or the dimension is another than the decoder's, or the options contradict.
            EncoderError: if the encoder cannot be loaded, or an image cannot be read.
        """
        if (images is None) == (embeddings is None):
            raise DecoderError("Captions are generated from images or from embeddings.", remedy="Pass one of them.")
        generation = generation or GenerationConfig.from_options(
            beams=beams, length_penalty=length_penalty, top_p=top_p, temperature=temperature, magic=magic, seed=seed
        )
        if images is not None:
            encoder = encoder or resolve_encoder(recorded=self.model)
            self.check_model(encoder.identity, encoder.dim)
            embeddings = encoder.encode_images(images)
        assert embeddings is not None
        self.check_dim(embeddings.shape[1])
        if not len(embeddings):
            return []
        inputs = self.pipeline.transform(embeddings, modality=modality, training=False)
        if generation.method == "magic":
            from .magic import generate_magic

            if encoder is None and self.model:
                encoder = resolve_encoder(recorded=self.model)
            captions = generate_magic(self.torch_decoder(), self.tokenizer, inputs, embeddings, generation, encoder)
        else:
            keys = keys if keys is not None else [str(row) for row in range(len(embeddings))]
            captions = generate(self.decoder, inputs, generation, keys)
        return [self.tokenizer.decode(ids) for ids in captions]

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
                f"({self.model}); these have {dim}.",
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

    def to_dict(self) -> dict[str, Any]:
        """Return the training record and the number of parameters, as `c3 train-decoder --json` prints them."""
        return {**self.record, "parameters": self.decoder.count_parameters()}

    def save(self, folder: str | Path) -> None:
        """Write the folder, whole or not at all; the decoder that is there is kept as ``<folder>.previous``."""
        with replacing(Path(folder)) as new:
            self.decoder.save_weights(new / WEIGHTS_FILE)
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
    def load(cls, folder: str | Path, device: str = "cpu", *, trainable: bool = False) -> Captioner:
        """Read what `save` wrote.

        Args:
            folder: the folder.
            device: of the weights.
            trainable: have the decoder as a torch module in any case; on a CPU the built-in one else runs in numpy, as
                torch takes longer to import than it saves.

        Raises:
            DecoderError: if there is no decoder, or a file of it is missing, damaged or cut short.
        """
        folder = Path(folder)
        path = folder / DECODER_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = int(content["format_version"])
            if version > FORMAT_VERSION:
                raise DecoderError(
                    f"{path} has format version {version}; this c3tools reads up to {FORMAT_VERSION}.",
                    remedy="Update c3tools: pip install -U c3tools",
                )
            damage = damaged_file(folder, content["files"])
            if damage:
                raise DecoderError(damage, remedy=_remedy(folder, f"Train it again: {_AGAIN}."))
            kind, config, weights = content.get("kind", BUILT_IN), content["config"], folder / WEIGHTS_FILE
            decoder: Decoder | NumpyDecoder
            if kind == BUILT_IN and device == "cpu" and not trainable:
                decoder = NumpyDecoder(DecoderConfig(**config), load_file(weights))
            else:
                decoder = _load_torch_module(kind, config, weights, device)
        except (FileNotFoundError, NotADirectoryError):
            raise DecoderError(
                f"There is no trained decoder at {folder} ({DECODER_FILE} is not there).",
                remedy=_remedy(folder, "Train one with `c3 train-decoder`, or name another with --decoder."),
            ) from None
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise DecoderError(
                f"The decoder at {folder} is damaged ({error}).", remedy=f"Train it again: {_AGAIN}."
            ) from error
        tokenizer = CaptionTokenizer.load(folder / TOKENIZER_FILE, decoder.pad_id, decoder.end_id)
        return cls(decoder, tokenizer, Pipeline.load(folder), content["record"])

    def torch_decoder(self) -> Decoder:
        """Return the decoder as a torch module."""
        if not isinstance(self.decoder, NumpyDecoder):
            return self.decoder
        import torch

        decoder = _torch_module(BUILT_IN, asdict(self.decoder.config))
        decoder.load_state_dict({name: torch.from_numpy(value) for name, value in self.decoder.weights.items()})
        return decoder.eval()


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
        record = dict(json.loads(path.read_text(encoding="utf-8"))["record"])
        facts = [str(record["preset"]), f"sigma {record['sigma']:.3g}", f"size {record['size']}"]
        facts += [f"seed {record['seed']}", f"trained on {record['captions']['train']:,} captions"]
        facts += [f"finished {written_at(path)}", f"best validation loss {record['best_val_loss']:.3f}"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}, "it is damaged, or was made otherwise than by c3 train-decoder"
    return record, ", ".join(facts)


def _remedy(folder: Path, otherwise: str) -> str:
    """Return what to do without the decoder in a folder: use the one before it, if it is kept."""
    previous = previous_folder(folder)
    if not (previous / DECODER_FILE).is_file():
        return otherwise
    return f"The decoder before this one is at {previous}: use --decoder {previous}, or train again."


@dataclass
class Captions:
    """Captions of image files, as `caption_images` returns them.

    Attributes:
        captions: caption by image key, in the order the images were found.
        failures: path and reason of every file that could not be read as an image.
    """

    captions: dict[str, str] = field(default_factory=dict)
    failures: list[tuple[Path, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return captions and failures as JSON values."""
        return {
            "captions": [{"key": key, "caption": caption} for key, caption in self.captions.items()],
            "failures": [{"path": str(path), "error": reason} for path, reason in self.failures],
        }


def caption_images(
    paths: Sequence[str | Path],
    *,
    decoder: Captioner | str | Path = "c3-decoder",
    beams: int = 1,
    length_penalty: float = 0.7,
    top_p: float | None = None,
    temperature: float = 1.0,
    magic: bool = False,
    seed: int = 0,
    model: str | None = None,
    random_init: int | None = None,
    device: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    encoder: Encoder | None = None,
    reporter: Reporter = SILENT,
) -> Captions:
    """Caption image files and the images of folders (searched recursively).

    Args:
        paths: files and folders.
        decoder: a captioner, or its folder.
        beams, length_penalty, top_p, temperature, magic, seed: see `Captioner.caption`.
        model: of the encoder; the decoder's when None.
        random_init: seed of an encoder with random weights.
        device: ``cpu``, ``cuda``, ...; None for the best there is.
        backend, precision: of the encoder; see `c3tools.encoders.load_encoder`.
        encoder: an encoder that is loaded already, in place of ``model``.
        reporter: shows messages and progress.

    Raises:
        CorpusError: if a path is missing or is no image, or a folder holds none.
        DecoderError: if there is no decoder, or it was trained for another model than the encoder's.
        EncoderError: if the encoder cannot be loaded.
    """
    generation = GenerationConfig.from_options(
        beams=beams, length_penalty=length_penalty, top_p=top_p, temperature=temperature, magic=magic, seed=seed
    )
    images = list(images_by_key([Path(path) for path in paths]).items())
    if not isinstance(decoder, Captioner):
        decoder = Captioner.load(decoder, devices.pick(device, "fp32").device)
    encoder = encoder or resolve_encoder(
        model,
        recorded=decoder.model,
        random_init=random_init,
        device=device,
        backend=backend,
        precision=precision,
        reporter=reporter,
    )
    decoder.check_model(encoder.identity, encoder.dim)
    result, size = Captions(), encoder.batch_size("image")
    with reporter.progress("Captioning", len(images)) as progress:
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            keys, pixels = [], []
            for key, path in chunk:
                try:
                    pixels.append(encoder.preprocess.load(path)[0])
                except _UNREADABLE as error:
                    result.failures.append((path, f"{type(error).__name__}: {error}"))
                    continue
                keys.append(key)
            if keys:
                embeddings = encoder.encode_pixels(np.stack(pixels))
                captions = decoder.caption(embeddings=embeddings, keys=keys, encoder=encoder, generation=generation)
                result.captions.update(zip(keys, captions, strict=True))
            progress.advance(len(chunk))
    return result


def images_by_key(paths: Sequence[Path]) -> dict[str, Path]:
    """Find image files; their keys are paths relative to the folder without the suffix, as in a store.

    Raises:
        CorpusError: if a path is missing or is no image, or a folder holds none.
    """
    found: dict[str, Path] = {}
    folders = sum(path.is_dir() for path in paths)
    for root in paths:
        if root.is_dir():
            inside = find_images(root)[0]
            if not inside:
                raise CorpusError(f"No images in {root} or below it.", remedy="Name a folder that holds images.")
            keys = assign_keys([image.key for image in inside])
            prefix = f"{root.name}/" if folders > 1 else ""
            named = {f"{prefix}{key}": Path(image.path) for key, image in zip(keys, inside, strict=True)}
        elif not root.exists():
            raise CorpusError(f"There is nothing at {root}.", remedy="Check the path; it is relative to where you are.")
        elif root.suffix.lower() not in IMAGE_SUFFIXES:
            suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
            raise CorpusError(f"{root} is not an image file by its name.", remedy=f"Images end in {suffixes}.")
        else:
            named = {root.stem: root}
        for key, path in named.items():
            found[str(path) if key in found else key] = path
    return found
