"""The backend OpenVINO (extra ``openvino``): models converted from torch, in fp32, bf16 or int8, on
CPUs.

A model is converted in memory each time that it is loaded, which takes about as long as reading it
from a file would. Each batch is computed by one thread, so the result does not depend on their
number.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import Matrix
from ..assets.paths import PHOTOS
from ..devices import Compute, threads
from ..errors import EncoderError, MissingExtraError, reason_of
from .encoder import Encoder, Modality

if TYPE_CHECKING:
    from torch import nn

AGREEMENT = 0.999  # least cosine of an embedding with that of torch in fp32
PROBE_TEXTS = (
    "a dog runs on the grass",
    "two people at a table",
    "an old red train in the snow",
    "food",
)
# photos, since random images are rounded by other amounts
PROBE_PHOTOS = [
    PHOTOS / f"images/{number:012d}.jpg" for number in (285, 785, 790, 872, 885, 1296, 2149, 2473)
]
_CALIBRATION_INPUTS = 64  # of each modality
_INT8_AGREEMENT = 0.99
# int8 is in the model itself; the hint is for what is not in 8 bits
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
# the division by the norm, and its likes, stay in float32: embeddings have unit length in any
# precision
_IN_FLOAT = ("Divide", "Maximum", "ReduceL2")


class OpenVINOBackend:
    """Towers as OpenVINO models; each thread has a stream of its own.

    Args:
        towers: models of OpenVINO, or files that it reads, by modality; they are compiled when they
            are first run.
        precision: ``fp32``, ``bf16`` or ``int8``.

    Attributes:
        towers: as given.
    """

    name = "openvino"

    def __init__(self, towers: Mapping[Modality, Any], precision: str = "fp32") -> None:
        self.compute = Compute("cpu", precision)
        self.ahead = threads()
        self.towers = towers
        self._compiled = cache(self._compile)
        self._requests = threading.local()  # by tower
        self._pool = ThreadPoolExecutor(self.ahead, thread_name_prefix="c3-encoder")

    @staticmethod
    def is_installed() -> bool:
        """Return whether OpenVINO is installed."""
        return importlib.util.find_spec("openvino") is not None

    @staticmethod
    def precisions() -> tuple[str, ...]:
        """Return fp32, and bf16 where the CPU has it."""
        return (
            ("fp32", "bf16")
            if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            else ("fp32",)
        )

    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Start a batch on a free thread."""
        return self._pool.submit(
            self._compute, modality, self._compiled(modality), np.ascontiguousarray(batch)
        ).result

    def _compile(self, modality: Modality) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.compute.precision],
            "NUM_STREAMS": str(self.ahead),
            "INFERENCE_NUM_THREADS": self.ahead,
            "ENABLE_CPU_PINNING": False,  # two commands would be pinned to the same cores
        }
        return _core().compile_model(self.towers[modality], "CPU", settings)

    def _compute(self, modality: Modality, tower: Any, batch: np.ndarray[Any, Any]) -> Matrix:
        ready = self._requests.__dict__  # of this thread
        if modality not in ready:
            ready[modality] = tower.create_infer_request()
        ready[modality].infer({0: batch}, share_inputs=True)
        return np.array(ready[modality].get_output_tensor(0).data)


@cache
def _core() -> Any:
    """Return the one core of this process, which is never dropped.

    A core gives the thread that makes it another stack for signals, and takes it away when it goes.
    Of two that go in the order they came the first leaves the thread with a stack that is no longer
    there: the next Ctrl-C, or any other signal, would be a segmentation fault.

    The bindings fill their tables of types at first use. Two threads that both come first wait for
    each other for ever, so the tables are filled here, before there are threads.
    """
    import openvino

    openvino.Tensor(np.zeros(1, np.float32)).element_type.to_dtype()
    return openvino.Core()


def convert(
    model: nn.Module, facts: Mapping[str, Any], precisions: Iterable[str]
) -> OpenVINOBackend:
    """Return the towers of a model in the first precision in which a few embeddings are those of
    torch in fp32.

    Args:
        model: open_clip's module; its attentions are replaced.
        facts: what an `Encoder` needs to know of it, see `c3tools.encoders.Network.describe`.
        precisions: of `OpenVINOBackend`.

    Raises:
        EncoderError: if the model cannot be converted, or the embeddings differ in each.
    """
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from torch.nn.functional import normalize

    from .towers import ImageTower, TextTower, use_plain_attention

    towers: dict[Modality, Any] = {}
    expected: dict[Modality, Matrix] = {}
    plain, least = Encoder(OpenVINOBackend(towers), **facts), float("nan")
    photos = np.stack([plain.pixels(photo) for photo in PROBE_PHOTOS])
    few, texts = (next(plain.token_batches(plain.tokenise(PROBE_TEXTS[:n]), n))[1] for n in (2, 4))
    try:
        use_plain_attention(model)
        # all sizes that may change do so between tracing and comparing
        cases: dict[Modality, Any] = {
            "image": (
                ImageTower(model, facts["preprocess"]).eval(),
                photos[:2],
                photos,
                photos.shape[1:],
            ),
            "text": (TextTower(model, trims=facts["trims_texts"]).eval(), few, texts, (-1,)),
        }
        # what `openvino.convert_model` does, without the messages that it sends to its makers
        frontend = FrontEndManager().load_by_framework("pytorch")
        with torch.no_grad(), warnings.catch_warnings():
            # the tracer warns of every size that it takes for a constant
            warnings.simplefilter("ignore")
            for modality, (tower, example, inputs, sizes) in cases.items():
                # as a function, which takes half the time of a module
                unit = lambda x, tower=tower: normalize(tower(x).float(), dim=-1)  # noqa: E731
                traced = torch.jit.trace(unit, torch.as_tensor(example), check_trace=False)
                decoder = TorchScriptPythonDecoder(traced)
                # the decoder has to outlive it
                towers[modality] = frontend.convert(frontend.load(decoder))
                towers[modality].reshape({0: openvino.PartialShape([-1, *sizes])})
                expected[modality] = normalize(tower(torch.as_tensor(inputs)), dim=-1).numpy()
        for precision in precisions:
            backend = OpenVINOBackend(towers, precision)
            results = {
                modality: backend.submit(modality, inputs)
                for modality, (_, _, inputs, _) in cases.items()
            }
            cosines = [(results[modality]() * expected[modality]).sum(axis=1) for modality in cases]
            least = float(np.concatenate(cosines).min())
            if least >= AGREEMENT:  # NaN is refused, too
                return backend
        raise ValueError(f"the cosine of embeddings with those of torch falls to {least:.4f}")
    except Exception as error:  # converters raise whatever their layers raise
        raise EncoderError(
            f"{facts['identity']['name']} cannot be converted to OpenVINO ({type(error).__name__}: "
            f"{reason_of(error)}).",
            remedy="Use --backend torch.",
        ) from error


def quantized(exact: Encoder) -> OpenVINOBackend:
    """Convert a model in fp32 with this backend to 8-bit integers with NNCF (extra ``int8``).

    Its activations are scaled for bundled photos and captions.

    Raises:
        EncoderError: if the model cannot be converted, or the result differs too much from fp32.
        MissingExtraError: if NNCF is not installed.
    """
    if not importlib.util.find_spec("nncf"):
        raise MissingExtraError("nncf", extra="int8", purpose="--precision int8")
    lines = (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [caption for line in lines for caption in json.loads(line)["captions"]][
        :_CALIBRATION_INPUTS
    ]
    photos = sorted((PHOTOS / "images").iterdir())[:_CALIBRATION_INPUTS]
    inputs: dict[Modality, list[Any]] = {  # each a batch of its own
        "image": [exact.pixels(photo)[None] for photo in photos],
        "text": [batch for _, batch in exact.token_batches(exact.tokenise(texts), 1)],
    }
    plain: Any = exact.backend
    name = exact.identity.name
    try:
        rounded = OpenVINOBackend(
            {one: _quantize(plain.towers[one], inputs[one]) for one in inputs}, "int8"
        )
    except Exception as error:  # NNCF raises errors of many kinds
        raise EncoderError(
            f"{name} cannot be converted to int8 ({type(error).__name__}: {reason_of(error)}).",
            remedy="Use --precision auto.",
        ) from error
    for modality, batches in inputs.items():
        a, b = (
            np.concatenate(
                [result() for result in [backend.submit(modality, batch) for batch in batches]]
            )
            for backend in (plain, rounded)
        )
        cosine = float((a * b).sum(axis=1).min())
        if not cosine >= _INT8_AGREEMENT:  # NaN is refused, too
            raise EncoderError(
                f"int8 changes the embeddings of {name} too much: the cosine of {modality} "
                f"embeddings with fp32 is "
                f"{cosine:.4f} on the calibration inputs (limit: {_INT8_AGREEMENT}).",
                remedy="Use --precision auto.",
            )
    return rounded


def _quantize(tower: Any, batches: list[Any]) -> Any:
    """Return a tower in 8 bits where NNCF knows how; its activations are scaled for these
    inputs.
    """
    os.environ.setdefault("NNCF_CI", "1")  # or NNCF sends messages to its makers
    with contextlib.redirect_stdout(io.StringIO()):  # NNCF prints its progress, and its log
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            _core().read_model(tower) if isinstance(tower, Path) else tower,
            nncf.Dataset(batches),
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,  # more exact for convolutions, too
            ignored_scope=nncf.IgnoredScope(types=list(_IN_FLOAT), validate=False),
        )
