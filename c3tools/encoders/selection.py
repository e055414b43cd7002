"""The choice of backend and precision: what was asked for, what is fastest of what agrees with fp32."""

from __future__ import annotations

import copy
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..devices import Compute, pick, threads
from ..errors import C3Error, EncoderError
from ..reporter import SILENT, Reporter
from .backends import BACKENDS, CONVERTED, ConvertedBackend, ModelCache
from .backends.base import Matrix, Modality
from .backends.converted import FORMAT
from .encoder import Encoder, Tokens
from .preprocessing import ImagePreprocessor, Pixels

if TYPE_CHECKING:
    from torch import Tensor, nn

AGREEMENT = 0.999
INT8_AGREEMENT = 0.99
_ROUNDS = 2
_LONG = 0.5  # seconds of a round that is not repeated
_PROBE_TEXTS = ("a dog runs on the grass", "two people at a table", "an old red train in the snow", "food")
_IMAGES_AT_A_TIME = 4
_TEXTS_AT_A_TIME = 64


@dataclass(frozen=True)
class Network:
    """A loaded model.

    Attributes:
        model: open_clip's module.
        tokenizer: from texts to token ids.
        preprocess: from an image to pixels.
        identity: ``name``, ``architecture``, ``pretrained``, ``random_init``.
    """

    model: nn.Module
    tokenizer: Any
    preprocess: ImagePreprocessor
    identity: dict[str, Any]


@dataclass(frozen=True)
class Description:
    """The facts about a network that an encoder needs beside the towers.

    Attributes:
        identity: with the hash of the weights.
        tokenizer, preprocess: see `Network`.
        trims_texts, end_token: see `Encoder`.
        dim: dimension d of the embeddings; None to find out.
        graphs: a folder with the towers as ONNX files, which the backends for converted models run as they are.
    """

    identity: Mapping[str, Any]
    tokenizer: Any
    preprocess: ImagePreprocessor
    trims_texts: bool
    end_token: int | None
    dim: int | None = None
    graphs: Path | None = None


def describe(network: Network, weights_sha256: str) -> Description:
    """Return the description of a network, whose text tower is run for it."""
    from .backends.towers import can_trim, end_token

    return Description(
        {**network.identity, "weights_sha256": weights_sha256},
        network.tokenizer,
        network.preprocess,
        can_trim(network.model, network.tokenizer),
        end_token(network.model),
    )


class EncoderFactory:
    """Encoders of one network, in any backend and precision.

    Args:
        description: of the network.
        load: loads it, in fp32 on the CPU; called only where no converted model is there.
        reporter: is told of what takes long and what does not work.
    """

    def __init__(self, description: Description, load: Callable[[], nn.Module], reporter: Reporter = SILENT) -> None:
        self._description = description
        self._identity = description.identity
        self._load = load
        self._reporter = reporter
        self._cache = ModelCache()
        self._loaded: nn.Module | None = None
        self._reference: Encoder | None = None
        self._expected: tuple[Matrix, Matrix] | None = None

    @property
    def _model(self) -> nn.Module:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    @property
    def reference(self) -> Encoder:
        """The network in fp32 on the CPU: by torch, unless it comes with graphs for a backend that is installed."""
        if self._reference is None:
            installed = _installed() if self._description.graphs else []
            self._reference = self._open([*installed, "torch"][0], "fp32", "cpu")
        return self._reference

    def select(self, device: str | None, backend: str, precision: str, compiled: bool) -> Encoder:
        """Return the encoder that was asked for; ``auto`` is decided here.

        Raises:
            EncoderError: if the model does not work in the backend or in the precision.
            MissingExtraError: if the backend is not installed.
            C3Error: for an unknown backend or precision, or a missing device.
        """
        if backend not in ("auto", *BACKENDS):
            raise C3Error(f"Unknown backend {backend!r}.", remedy=f"Choose auto, {', '.join(BACKENDS)}.")
        compute = pick(device, "fp32" if precision == "auto" else precision, encoder=True)
        if backend in CONVERTED:
            _require(backend, compute, precision, compiled)
            CONVERTED[backend].require_installed()
            return self._select_converted(compute.device, [backend], precision)
        others = _installed()
        if backend == "torch" or compiled or compute.device_type != "cpu" or not others or precision == "int8":
            return self._select_torch(pick(device, precision, encoder=True), precision, compiled)
        native = [name for name in others if precision == "auto" or precision in _native(name)]
        # with graphs there is no need to import torch, which takes longer than it could save
        backends = native if self._description.graphs and native else ["torch", *others]
        return self._select_converted(compute.device, backends, precision)

    def _select_torch(self, compute: Compute, asked: str, compiled: bool) -> Encoder:
        plain = Compute(compute.device, "fp32")
        if asked not in ("auto", "int8") or compute.precision == "fp32":
            return self._torch(compute, compiled)
        candidate = self._torch(compute, False)
        cosine = self._agreement(candidate)
        if asked == "int8" and cosine < INT8_AGREEMENT:
            raise EncoderError(
                f"{self._identity['name']} loses too much in int8: the cosine with its fp32 embeddings falls to "
                f"{cosine:.4f} on a probe (the limit is {INT8_AGREEMENT}).",
                remedy="Use --precision auto.",
            )
        if asked == "auto" and cosine < AGREEMENT:
            return self._torch(plain, compiled)
        return self._torch(compute, compiled) if compiled else candidate

    def _select_converted(self, device: str, backends: list[str], precision: str) -> Encoder:
        """Return the fastest of several backends and precisions that agrees with fp32; measured once on a machine."""
        if precision != "auto" and len(backends) == 1:
            return self._open(backends[0], precision, device)
        key = {
            "weights_sha256": self._identity["weights_sha256"],
            "backends": backends,
            "precision": precision,
            "versions": {b: CONVERTED[b].version() if b in CONVERTED else version(b) for b in backends},
            "machine": [platform.node(), platform.machine(), _cpu_name(), threads()],
            "format": FORMAT,
        }
        noted = self._cache.choice(key)
        if noted and noted.get("backend") in backends and noted.get("precision") in ("fp32", "bf16"):
            with suppress(EncoderError):  # it is measured again where the noted one does not work any more
                return self._open(noted["backend"], noted["precision"], device)
        self._reporter.message(
            f"Measuring {', '.join(dict.fromkeys(backends))} with {self._identity['name']}, once on this machine."
        )
        measured = [one for backend in backends for one in self._measure_all(backend, precision, device)]
        valid = [one for one in measured if one.get("cosine", 0) >= AGREEMENT]
        if not valid and "torch" in backends:  # a precision that was asked for, and that no backend does well
            return self._torch(Compute(device, precision), False)
        if not valid:
            raise EncoderError(str(measured[0]["error"]), remedy="Use --backend torch.")
        base = valid[0]
        best = max(valid, key=lambda one: math.sqrt(one["images"] / base["images"] * one["texts"] / base["texts"]))
        self._cache.note_choice(key, {**best, "measured": measured})
        return self._open(best["backend"], best["precision"], device)

    def _measure_all(self, backend: str, precision: str, device: str) -> list[dict[str, Any]]:
        """Measure a backend in the precision that was asked for, or in all that it computes in natively."""
        measured: list[dict[str, Any]] = []
        for name in _native(backend):
            if precision in ("auto", name) and not (measured and "error" in measured[-1]):
                measured.append(self._measure(backend, name, device))
        return measured

    def _measure(self, backend: str, precision: str, device: str) -> dict[str, Any]:
        """Return images and texts per second and the smallest cosine with fp32, or the error."""
        found: dict[str, Any] = {"backend": backend, "precision": precision}
        try:
            encoder = self._open(backend, precision, device)
        except EncoderError as error:
            self._reporter.message(f"{error.message} It is not used.")
            return {**found, "error": error.message}
        rates = {f"{modality}s": _rate(encoder, modality) for modality in ("image", "text")}
        return {**found, **rates, "cosine": self._agreement(encoder)}

    def _open(self, backend: str, precision: str, device: str) -> Encoder:
        compute = Compute(device, precision)
        if backend == "torch":
            return self._torch(compute, False, self._model if precision == "fp32" else None)
        kind = CONVERTED[backend]
        if self._description.graphs:
            return self._encoder(kind(self._description.graphs, compute, threads()))
        made_from = {
            "model": self._identity["name"],
            "weights_sha256": self._identity["weights_sha256"],
            **{name: list(getattr(self._description.preprocess, name)) for name in ("mean", "std", "size")},
            "backend": backend,
            "version": kind.version(),
            "precision": "fp32",
            "format": FORMAT,
        }
        folder = self._cache.converted(made_from, lambda folder: self._convert(kind, folder), self._reporter)
        return self._encoder(kind(folder, compute, threads()))

    def _agreement(self, candidate: Encoder) -> float:
        if self._expected is None:
            self._expected = probe_embeddings(self.reference)
        return agreement(self._expected, probe_embeddings(candidate))

    def _convert(self, kind: type[ConvertedBackend], folder: Path) -> None:
        """Convert the towers, and see that the result agrees.

        Raises:
            EncoderError: if it does not.
            OSError: if the folder cannot be written.
        """
        import torch

        from .backends.towers import ImageTower, TextTower, use_plain_attention

        model, preprocess = copy.deepcopy(self._model), self._description.preprocess
        use_plain_attention(model)
        towers: dict[Modality, nn.Module] = {
            "image": ImageTower(model, preprocess).eval(),
            "text": TextTower(model, trims=self._description.trims_texts).eval(),
        }
        pixels, tokens = probe_pixels(preprocess), self.reference.tokenise(_PROBE_TEXTS)
        cut = next(batch for _, batch in self.reference._token_batches(tokens[2:], None))
        examples: dict[Modality, Tensor] = {"image": torch.from_numpy(pixels[:2]), "text": torch.from_numpy(cut)}
        try:
            kind.convert(towers, examples, folder)
            plain = Compute("cpu", "fp32")
            cosine = self._agreement(self._encoder(kind(folder, plain, threads())))
        except OSError:
            raise
        except Exception as error:  # converters raise whatever their layers raise
            reason = " ".join(str(error).split())[:300]
            raise self._does_not_convert(kind, f"{type(error).__name__}: {reason}") from error
        if cosine < AGREEMENT:
            raise self._does_not_convert(kind, f"the cosine with its own embeddings falls to {cosine:.4f}")

    def _does_not_convert(self, kind: type[ConvertedBackend], reason: str) -> EncoderError:
        name = self._identity["name"]
        return EncoderError(f"{name} does not convert to {kind.name} ({reason}).", remedy="Use --backend torch.")

    def _torch(self, compute: Compute, compiled: bool, model: nn.Module | None = None) -> Encoder:
        import torch

        from .backends.torch import TorchBackend

        longest = torch.as_tensor(self._description.tokenizer(["word " * 500]))

        def open_backend(through_compiler: bool) -> Encoder:
            backend = TorchBackend(
                model or copy.deepcopy(self._model),
                self._description.preprocess,
                compute,
                trims_texts=self._description.trims_texts,
                longest_text=longest,
                compiled=through_compiler,
            )
            return self._encoder(backend)

        if not compiled:
            return open_backend(False)
        try:
            encoder = open_backend(True)
            for modality in ("image", "text"):
                encoder.backend.run_probe(modality, 2)  # type: ignore[attr-defined]
            return encoder
        except Exception as error:  # the compilers raise their own, and so do the tools they call
            reason = " ".join(str(error).split())[:300]
            raise EncoderError(
                f"The model {self._identity['name']} could not be compiled: {type(error).__name__}: {reason}",
                remedy="Leave --compile away; on a CPU it needs a C++ compiler (g++ or clang++).",
            ) from error

    def _encoder(self, backend: Any) -> Encoder:
        return Encoder(
            backend,
            self._description.tokenizer,
            self._description.preprocess,
            identity=self._identity,
            trims_texts=self._description.trims_texts,
            end_token=self._description.end_token,
            dim=self._description.dim,
        )


def _require(backend: str, compute: Compute, precision: str, compiled: bool) -> None:
    """Refuse what a converted model cannot do."""
    if compute.device_type != "cpu":
        raise EncoderError(
            f"The backend {backend} runs on the CPU, not on {compute.device}.",
            remedy="Use --device cpu, or --backend torch.",
        )
    if compiled:
        raise EncoderError(f"--compile is for the backend torch, not for {backend}.", remedy="Leave one of them away.")
    if CONVERTED[backend].is_installed() and precision not in ("auto", *_native(backend)):
        raise EncoderError(
            f"The backend {backend} does not compute in {precision} on this machine.",
            remedy=f"Use --precision {' or '.join(('auto', *_native(backend)))}, or --backend torch.",
        )


def _installed() -> list[str]:
    return [name for name, kind in CONVERTED.items() if kind.is_installed()]


def _native(backend: str) -> tuple[str, ...]:
    """Return the precisions that a backend computes in natively on this CPU."""
    if backend == "torch":
        return tuple(dict.fromkeys(("fp32", pick("cpu").precision)))
    return CONVERTED[backend].precisions()


def _rate(encoder: Encoder, modality: Modality) -> float:
    """Return inputs per second: the best of a few rounds, in each of which all threads are busy."""
    batches = 2 * max(1, encoder.backend.ahead)
    if modality == "image":
        batch: Pixels | Tokens = probe_pixels(encoder.preprocess)[:_IMAGES_AT_A_TIME]
    else:
        tokens = encoder.tokenise(_PROBE_TEXTS * (_TEXTS_AT_A_TIME // len(_PROBE_TEXTS)))
        batch = next(part for _, part in encoder._token_batches(tokens, _TEXTS_AT_A_TIME))
    best = math.inf
    for _ in range(_ROUNDS + 1):  # the first also compiles
        start = time.perf_counter()
        for _ in encoder.backend.run(modality, ((None, batch) for _ in range(batches))):
            pass
        seconds = time.perf_counter() - start
        best = min(best, seconds)
        if seconds > _LONG:
            break
    return round(batches * len(batch) / best, 2)


def probe_pixels(preprocess: ImagePreprocessor) -> Pixels:
    """Return eight smooth random images, uint8 (8, height, width, 3)."""
    coarse = np.random.RandomState(0).randint(0, 2**32, (8, 3, 6, 6), np.uint64) % 2**24 / 2**24
    down, across = (_bicubic(6, length) for length in preprocess.size)
    smooth = (down @ coarse @ across.T).clip(0, 1).transpose(0, 2, 3, 1)
    return np.ascontiguousarray((smooth * 255).astype(np.uint8))


def _bicubic(length: int, wanted: int) -> npt.NDArray[np.float64]:
    """Return the matrix (wanted, length) that interpolates a row by Keys' cubic convolution with a = -0.75."""
    weights = np.zeros((wanted, length))
    at = (np.arange(wanted) + 0.5) * length / wanted - 0.5
    for step in (-1, 0, 1, 2):
        place = np.floor(at) + step
        x = abs(at - place)
        near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
        np.add.at(weights, (np.arange(wanted), place.clip(0, length - 1).astype(int)), np.where(x <= 1, near, far))
    return weights


def probe_embeddings(encoder: Encoder) -> tuple[Matrix, Matrix]:
    """Return embeddings (8, d) of smooth random images, and (4, d) of texts."""
    return encoder.encode_pixels(probe_pixels(encoder.preprocess)), encoder.encode_texts(_PROBE_TEXTS)


def agreement(expected: tuple[Matrix, Matrix], got: tuple[Matrix, Matrix]) -> float:
    """Return the smallest cosine between the `probe_embeddings` of two encoders."""
    return min(float((a * b).sum(axis=1).min()) for a, b in zip(expected, got, strict=True))


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or str(os.cpu_count())
