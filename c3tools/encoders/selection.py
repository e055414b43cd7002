"""The choice of backend and precision: the requested ones, or the fastest ones that agree with fp32."""

from __future__ import annotations

import copy
import math
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arrays import Matrix
from ..devices import Compute, pick, threads
from ..errors import C3Error, EncoderError
from ..reporter import SILENT, Reporter
from .backends import BACKENDS, CONVERTED, ConvertedBackend, Modality, ModelCache
from .backends import int8 as quantization
from .backends.converted import FORMAT
from .calibration import Calibration, digest_of, smallest_cosine
from .encoder import Encoder
from .preprocessing import ImagePreprocessor
from .probe import PROBE_TEXTS, agreement, measure_rate, probe_embeddings, probe_pixels

if TYPE_CHECKING:
    from torch import Tensor, nn

AGREEMENT = 0.999
INT8_AGREEMENT = 0.99
_INT8_BACKEND = "openvino"


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
        tokenizer, preprocess, trims_texts, end_token: see `Network` and `Encoder`.
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
        load: loads it, in fp32 on the CPU; called only if no converted model is there.
        reporter: shows messages and progress.
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

    def select(
        self,
        device: str | None,
        backend: str,
        precision: str,
        compiled: bool,
        calibration: Calibration | None = None,
    ) -> Encoder:
        """Return the requested encoder; ``auto`` is decided here.

        Args:
            device, backend, precision, compiled: see `c3tools.encoders.load_encoder`.
            calibration: for int8; None for bundled photos and captions.

        Raises:
            EncoderError: if the model does not work in the backend or in the precision.
            MissingExtraError: if the backend is not installed.
            C3Error: for an unknown backend or precision, or a missing device.
        """
        if backend not in ("auto", *BACKENDS):
            raise C3Error(f"There is no backend {backend!r}.", remedy=f"Use auto, {', '.join(BACKENDS)}.")
        compute = pick(device, "fp32" if precision == "auto" else precision, encoder=True)
        if precision == "int8":
            return self._select_int8(compute, backend, compiled, calibration or Calibration())
        if backend in CONVERTED:
            _require(backend, compute, compiled)
            _require_native(backend, precision)
            CONVERTED[backend].require_installed()
            return self._select_converted(compute.device, [backend], precision)
        others = _installed()
        if backend == "torch" or compiled or compute.device_type != "cpu" or not others:
            return self._select_torch(pick(device, precision, encoder=True), precision, compiled)
        native = [name for name in others if precision == "auto" or precision in _native(name)]
        # with graphs there is no need to import torch, which takes longer than it could save
        backends = native if self._description.graphs and native else ["torch", *others]
        return self._select_converted(compute.device, backends, precision)

    def _select_torch(self, compute: Compute, asked: str, compiled: bool) -> Encoder:
        if asked != "auto" or compute.precision == "fp32":
            return self._torch(compute, compiled)
        candidate = self._torch(compute, False)
        if self._agreement(candidate) < AGREEMENT:
            return self._torch(Compute(compute.device, "fp32"), compiled)
        return self._torch(compute, compiled) if compiled else candidate

    def _select_int8(self, compute: Compute, backend: str, compiled: bool, calibration: Calibration) -> Encoder:
        """Return the 8-bit model: the stored one, or else a new one, which is calibrated once for the same inputs."""
        kept = self._cache.copied(calibration.kept, self._reporter) if calibration.kept else None
        if backend not in ("auto", _INT8_BACKEND):
            raise EncoderError(
                f"The backend {backend} does not compute in int8.",
                remedy=f"Use --backend {_INT8_BACKEND}, or --precision auto.",
            )
        _require(_INT8_BACKEND, compute, compiled)
        kind = CONVERTED[_INT8_BACKEND]
        kind.require_installed()
        if kept is not None:
            return self._encoder(kind(kept, compute, threads()))
        quantization.require_nncf()
        exact = self._open(_INT8_BACKEND, "fp32", compute.device)
        inputs = calibration.inputs(exact)
        made_from = self._made_from(kind) | {
            "precision": "int8",
            "nncf": quantization.nncf_version(),
            "calibration": digest_of(inputs),
        }

        def quantize(folder: Path) -> None:
            self._reporter.message(f"Calibrating {self._identity['name']} for int8, once for these inputs.")
            try:
                quantization.quantize(exact.backend.folder, folder, inputs)  # type: ignore[attr-defined]
            except OSError:
                raise
            except Exception as error:  # NNCF raises errors of many kinds
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise self._does_not_convert(kind, f"int8: {reason}") from error
            rounded = kind(folder, compute, threads())
            for name in inputs:
                cosine = smallest_cosine(name, exact.backend, rounded, inputs)
                if not cosine >= INT8_AGREEMENT:  # NaN is refused, too
                    raise EncoderError(
                        f"int8 changes the embeddings of {self._identity['name']} too much: the cosine of {name} "
                        f"embeddings with fp32 is {cosine:.4f} on the calibration inputs (limit: {INT8_AGREEMENT}).",
                        remedy="Use --precision auto.",
                    )

        return self._encoder(kind(self._cache.converted(made_from, quantize, self._reporter), compute, threads()))

    def _select_converted(self, device: str, backends: list[str], precision: str) -> Encoder:
        """Return the fastest backend and precision that agrees with fp32; this is measured once per machine."""
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
            with suppress(EncoderError):  # it is measured again if the noted one does not work any more
                return self._open(noted["backend"], noted["precision"], device)
        self._reporter.message(
            f"Measuring {', '.join(dict.fromkeys(backends))} with {self._identity['name']}, once on this machine."
        )
        measured = [one for backend in backends for one in self._measure_all(backend, precision, device)]
        valid = [one for one in measured if one.get("cosine", 0) >= AGREEMENT]
        if not valid and "torch" in backends:  # no backend computes the requested precision well
            return self._torch(Compute(device, precision), False)
        if not valid:
            raise EncoderError(str(measured[0]["error"]), remedy="Use --backend torch.")
        best = max(valid, key=lambda one: math.sqrt(one["images"] * one["texts"]))
        self._cache.note_choice(key, {**best, "measured": measured})
        return self._open(best["backend"], best["precision"], device)

    def _measure_all(self, backend: str, precision: str, device: str) -> list[dict[str, Any]]:
        """Measure a backend in the requested precision, or in all precisions that it supports natively."""
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
        rates = {f"{modality}s": measure_rate(encoder, modality) for modality in ("image", "text")}
        return {**found, **rates, "cosine": self._agreement(encoder)}

    def _open(self, backend: str, precision: str, device: str) -> Encoder:
        compute = Compute(device, precision)
        if backend == "torch":
            return self._torch(compute, False, self._model if precision == "fp32" else None)
        kind = CONVERTED[backend]
        if self._description.graphs:
            return self._encoder(kind(self._description.graphs, compute, threads()))
        folder = self._cache.converted(
            self._made_from(kind), lambda folder: self._convert(kind, folder), self._reporter
        )
        return self._encoder(kind(folder, compute, threads()))

    def _made_from(self, kind: type[ConvertedBackend]) -> dict[str, Any]:
        """Return everything that the files of a converted model depend on."""
        return {
            "model": self._identity["name"],
            "weights_sha256": self._identity["weights_sha256"],
            **{name: list(getattr(self._description.preprocess, name)) for name in ("mean", "std", "size")},
            "backend": kind.name,
            "version": kind.version(),
            "precision": "fp32",
            "format": FORMAT,
        }

    def _agreement(self, candidate: Encoder) -> float:
        if self._expected is None:
            self._expected = probe_embeddings(self.reference)
        return agreement(self._expected, probe_embeddings(candidate))

    def _convert(self, kind: type[ConvertedBackend], folder: Path) -> None:
        """Convert the towers, and check that the result agrees with fp32.

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
        pixels, tokens = probe_pixels(preprocess), self.reference.tokenise(PROBE_TEXTS)
        cut = next(batch for _, batch in self.reference.token_batches(tokens[2:], None))
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
            raise self._does_not_convert(kind, f"the cosine with its embeddings falls to {cosine:.4f}")

    def _does_not_convert(self, kind: type[ConvertedBackend], reason: str) -> EncoderError:
        name = self._identity["name"]
        return EncoderError(f"{name} cannot be converted to {kind.name} ({reason}).", remedy="Use --backend torch.")

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
                remedy="Leave out --compile. On a CPU it needs a C++ compiler (g++ or clang++).",
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


def _require(backend: str, compute: Compute, compiled: bool) -> None:
    """Refuse options that a converted model does not support."""
    if compute.device_type != "cpu":
        raise EncoderError(
            f"The backend {backend} runs on the CPU, not on {compute.device}.",
            remedy="Use --device cpu, or --backend torch.",
        )
    if compiled:
        raise EncoderError(f"--compile is for the backend torch, not for {backend}.", remedy="Leave out one of them.")


def _require_native(backend: str, precision: str) -> None:
    """Refuse a precision that a converted model does not compute in natively."""
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


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or str(os.cpu_count())
