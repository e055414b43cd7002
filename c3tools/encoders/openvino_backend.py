"""The backend OpenVINO (extra ``openvino``): models converted from torch, on CPUs.

A model is converted in memory each time that it is loaded, which takes about as long as reading it
from a file would. Each batch is computed by one thread, so the result does not depend on their
number.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..arrays import Matrix
from ..devices import Compute, threads
from ..errors import EncoderError, reason_of
from ..interrupts import interrupts_held
from .backend import AUTO, PROBE_PHOTOS, PROBE_TEXTS, EncoderBackend, agrees
from .encoder import Encoder, Modality, ModelFacts
from .openvino_int8 import calibration_batches, quantise, require_agreement, require_nncf

if TYPE_CHECKING:
    from torch import nn

_Batch = np.ndarray[Any, Any]  # pixels or tokens of n inputs
# An int8 model has its precision in itself; the hint is for what is not in 8 bits.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVINOBackend(EncoderBackend):
    """Towers as OpenVINO models; each thread has a stream of its own.

    Args:
        towers: models of OpenVINO, or files that it reads, by modality; they are compiled when they
            are first run.
        precision: ``fp32``, ``bf16`` or ``int8``.

    Attributes:
        towers: as given.
    """

    name = "openvino"
    devices = "CPUs, in fp32, bf16 or int8"
    module = "openvino"
    extra = "openvino"
    reads_graphs = True

    def __init__(self, towers: Mapping[Modality, Any], precision: str = "fp32") -> None:
        self.compute = Compute("cpu", precision)
        self.ahead = threads()
        self.towers = towers
        self._compiled = cache(self._compile)
        self._requests = threading.local()  # by tower
        self._pool = ThreadPoolExecutor(self.ahead, thread_name_prefix="c3-encoder")

    @classmethod
    def runs_on(cls, device_type: str) -> bool:
        """Return True for CPUs."""
        return device_type == "cpu"

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """Return fp32 and int8, and bf16 if the CPU has it."""
        if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return ("fp32", "bf16", "int8")
        return ("fp32", "int8")

    @classmethod
    def convert(cls, model: nn.Module, facts: ModelFacts, compute: Compute, precision: str) -> Self:
        """Convert a model, and compare it with torch on the probe; see `EncoderBackend`."""
        tried = (compute.precision, "fp32") if precision == AUTO else ("fp32",)
        try:
            backend = cls._first_that_agrees(_convert_towers(model, facts), tried)
        except Exception as error:  # converters raise whatever their layers raise
            raise EncoderError(
                f"{facts.identity['name']} cannot be converted to OpenVINO "
                f"({type(error).__name__}: {reason_of(error)}).",
                remedy="Use --backend torch.",
            ) from error
        if precision == "int8":
            return backend._in_int8(facts)
        if precision in (AUTO, "fp32"):
            return backend
        return cls(backend.towers, precision)

    @classmethod
    def from_graphs(
        cls, graphs: Mapping[Modality, Path], facts: ModelFacts, compute: Compute, precision: str
    ) -> Self:
        """Run ONNX graphs, which OpenVINO reads itself; see `EncoderBackend`."""
        if precision == "int8":
            return cls(graphs, "fp32")._in_int8(facts)
        return cls(graphs, compute.precision)

    @classmethod
    def _first_that_agrees(
        cls, converted: Mapping[Modality, _ConvertedTower], precisions: Iterable[str]
    ) -> Self:
        """Return the towers in the first precision in which the probe's embeddings are torch's.

        Raises:
            ValueError: if they differ in each.
        """
        towers = {modality: one.tower for modality, one in converted.items()}
        cosine = float("nan")
        for precision in precisions:
            backend = cls(towers, precision)
            running = {
                modality: backend.submit(modality, one.inputs)
                for modality, one in converted.items()
            }
            cosines = [
                (running[modality]() * one.expected).sum(axis=1)
                for modality, one in converted.items()
            ]
            cosine = float(np.concatenate(cosines).min())
            if agrees(cosine):
                return backend
        raise ValueError(f"the cosine with torch's embeddings falls to {cosine:.4f}")

    def _in_int8(self, facts: ModelFacts) -> Self:
        """Return this model, which is in fp32, in 8-bit integers.

        Raises:
            EncoderError: if it cannot be converted, or the result differs too much from fp32.
            MissingExtraError: if NNCF is not installed.
        """
        require_nncf()
        model_name = facts.identity["name"]
        batches = calibration_batches(Encoder(self, facts))
        models = {
            modality: _core().read_model(tower) if isinstance(tower, Path) else tower
            for modality, tower in self.towers.items()
        }
        rounded = type(self)(quantise(models, batches, model_name), "int8")
        require_agreement(self, rounded, batches, model_name)
        return rounded

    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Start a batch on a free thread."""
        tower = self._compiled(modality)
        inputs = np.ascontiguousarray(batch)
        return self._pool.submit(self._compute, modality, tower, inputs).result

    def _compile(self, modality: Modality) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.compute.precision],
            "NUM_STREAMS": str(self.ahead),
            "INFERENCE_NUM_THREADS": self.ahead,
            "ENABLE_CPU_PINNING": False,  # two commands would be pinned to the same cores
        }
        return _core().compile_model(self.towers[modality], "CPU", settings)

    def _compute(self, modality: Modality, tower: Any, batch: _Batch) -> Matrix:
        """Run a compiled tower in a request of this thread."""
        requests_of_thread = self._requests.__dict__
        if modality not in requests_of_thread:
            requests_of_thread[modality] = tower.create_infer_request()
        request = requests_of_thread[modality]
        request.infer({0: batch}, share_inputs=True)
        return np.array(request.get_output_tensor(0).data)


def _openvino() -> Any:
    """Import OpenVINO, which by itself sends messages to its makers, and starts a process for each.

    Without their module OpenVINO sends none, nor does NNCF, which is imported after it.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing it fails
    with interrupts_held():  # where Ctrl-C comes during its import, it raises an ImportError
        import openvino

    return openvino


@cache
def _core() -> Any:
    """Return the one core of this process, which is never dropped.

    A core gives the thread that makes it another stack for signals, and takes it away when it goes.
    If two cores go in the order they came, the first leaves the thread with a stack that no longer
    exists: the next Ctrl-C, or any other signal, would be a segmentation fault.

    The bindings fill their tables of types at first use. Two threads that both come first wait for
    each other for ever, so the tables are filled here, before there are threads.
    """
    openvino = _openvino()
    openvino.Tensor(np.zeros(1, np.float32)).element_type.to_dtype()
    return openvino.Core()


@dataclass(frozen=True)
class _ConvertedTower:
    """A tower as OpenVINO runs it, and what torch computes of the probe.

    Attributes:
        tower: model of OpenVINO.
        inputs: the probe's photos as pixels, or texts as tokens, (n, …).
        expected: their embeddings by torch in fp32, (n, d).
    """

    tower: Any
    inputs: _Batch
    expected: Matrix


def _convert_towers(model: nn.Module, facts: ModelFacts) -> dict[Modality, _ConvertedTower]:
    """Convert both towers of open_clip's module, which is left as it was."""
    import torch

    from .towers import ImageTower, TextTower, plain_attention

    # Every size that may change differs between the example, which is traced, and the probe.
    encoder = Encoder(OpenVINOBackend({}), facts)
    photos = np.stack([encoder.pixels(photo) for photo in PROBE_PHOTOS])
    texts = _tokens_of_one_batch(encoder, PROBE_TEXTS)
    few_texts = _tokens_of_one_batch(encoder, PROBE_TEXTS[:2])
    with plain_attention(model), torch.no_grad():
        image_tower = ImageTower(model, facts.preprocess).eval()
        text_tower = TextTower(model, trims=facts.trims_texts).eval()
        return {
            "image": _convert_tower(image_tower, photos[:2], photos, photos.shape[1:]),
            "text": _convert_tower(text_tower, few_texts, texts, (-1,)),
        }


def _tokens_of_one_batch(encoder: Encoder, texts: tuple[str, ...]) -> _Batch:
    _, tokens = next(encoder.token_batches(encoder.tokenise(texts), len(texts)))
    return tokens


def _convert_tower(
    tower: nn.Module, example: _Batch, inputs: _Batch, sizes: tuple[int, ...]
) -> _ConvertedTower:
    """Convert a tower, with the division by the norm of its features.

    Args:
        tower: the tower.
        example: a batch to trace.
        inputs: the batch of the probe.
        sizes: of one input; -1 where it may be any.
    """
    openvino = _openvino()
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from torch.nn.functional import normalize

    def unit_vectors(batch: torch.Tensor) -> torch.Tensor:
        return normalize(tower(batch).float(), dim=-1)

    with warnings.catch_warnings():
        # The tracer warns of every size that it takes for a constant.
        warnings.simplefilter("ignore")
        # A function is traced, which takes half the time of a module.
        traced = torch.jit.trace(unit_vectors, torch.as_tensor(example), check_trace=False)
        # These are the steps of `openvino.convert_model` that a torch model needs.
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced)  # has to outlive the conversion
        converted = frontend.convert(frontend.load(decoder))
        converted.reshape({0: openvino.PartialShape([-1, *sizes])})
        expected = normalize(tower(torch.as_tensor(inputs)), dim=-1).numpy()
    return _ConvertedTower(converted, inputs, expected)
