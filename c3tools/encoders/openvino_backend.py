"""The backend OpenVINO (extra ``openvino``): models converted from torch, in fp32, bf16 or int8, on CPUs.

A model is converted in memory each time that it is loaded, which takes about as long as reading it from a file would.
Each batch is computed by one thread, so the result does not depend on their number.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import Matrix
from ..assets.paths import PHOTOS
from ..devices import Compute, threads
from ..errors import EncoderError, MissingExtraError
from ..io.files import sha256_of
from ..io.locations import download
from .encoder import Backend, Encoder, Modality

if TYPE_CHECKING:
    from torch import nn

    from .preprocessing import ImagePreprocessor

CALIBRATION_INPUTS = 64  # of each modality
INT8_FILES = ("image.bin", "image.xml", "text.bin", "text.xml")
_INT8_AGREEMENT = 0.99
# int8 is in the model itself; the hint is for what is not in 8 bits
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
# the division by the norm, and its likes, stay in float32: embeddings have unit length in any precision
_IN_FLOAT = ("Divide", "Maximum", "ReduceL2")
_QUIET = "NNCF_CI"  # the variable under which NNCF sends no messages to its makers


class OpenVINOBackend(Backend):
    """Towers as OpenVINO models; each thread has a stream of its own.

    Args:
        towers: models of OpenVINO, or files that it reads, by modality; they are compiled when they are first run.
        precision: ``fp32``, ``bf16`` or ``int8``.

    Attributes:
        towers: as given.
        folder: where the files of an int8 model are.
        sha256: digest of an int8 model.
    """

    name = "openvino"
    folder: Path | None = None
    sha256: str | None = None

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
        return ("fp32", "bf16") if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else ("fp32",)

    def submit(self, modality: Modality, batch: Any) -> Future[Matrix]:
        """Start a batch on a free thread."""
        return self._pool.submit(self._compute, modality, self._compiled(modality), np.ascontiguousarray(batch))

    def _compile(self, modality: Modality) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.compute.precision],
            "NUM_STREAMS": str(self.ahead),
            "INFERENCE_NUM_THREADS": self.ahead,
            "ENABLE_CPU_PINNING": False,  # two commands would be pinned to the same cores
        }
        return core().compile_model(self.towers[modality], "CPU", settings)

    def _compute(self, modality: Modality, tower: Any, batch: np.ndarray[Any, Any]) -> Matrix:
        ready = self._requests.__dict__  # of this thread
        if modality not in ready:
            ready[modality] = tower.create_infer_request()
        ready[modality].infer({0: batch}, share_inputs=True)
        return np.array(ready[modality].get_output_tensor(0).data)


@cache
def core() -> Any:
    """Return the one core of this process, which is never dropped.

    A core gives the thread that makes it another stack for signals, and takes it away when it goes. Of two that go in
    the order they came the first leaves the thread with a stack that is no longer there: the next Ctrl-C, or any other
    signal, would be a segmentation fault.

    The bindings fill their tables of types at first use. Two threads that both come first wait for each other for ever,
    so the tables are filled here, before there are threads.
    """
    import openvino

    openvino.Tensor(np.zeros(1, np.float32)).element_type.to_dtype()
    return openvino.Core()


def convert(
    name: str, model: nn.Module, preprocess: ImagePreprocessor, texts: tuple[Any, Any], *, trims: bool
) -> OpenVINOBackend:
    """Convert the towers of a model from torch, and compare the embeddings of a few inputs.

    Args:
        name: of the model.
        model: open_clip's module; its attentions are replaced.
        preprocess: of the model.
        texts: tokens of two texts and of others, int64 (n, length): to trace the model with, and to compare with.
        trims: whether texts come without their padding.

    Raises:
        EncoderError: if the model cannot be converted, or the results differ.
    """
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from .towers import ImageTower, TextTower, use_plain_attention

    # all sizes that may change have to change between tracing and comparing
    images = torch.randint(256, (3, *preprocess.size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = (torch.as_tensor(one) for one in texts)
    towers: dict[Modality, Any] = {}
    try:
        use_plain_attention(model)
        cases: dict[Modality, tuple[nn.Module, Any, Any, tuple[int, ...]]] = {
            "image": (ImageTower(model, preprocess).eval(), images[:2], images[2:], images.shape[1:]),
            "text": (TextTower(model, trims=trims).eval(), first, second, (-1,)),
        }
        # what `openvino.convert_model` does, without the messages that it sends to its makers
        frontend = FrontEndManager().load_by_framework("pytorch")
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns of every size that it takes for a constant
            for modality, (tower, example, _, sizes) in cases.items():
                # as a function, which takes half the time of a module
                traced = torch.jit.trace(lambda x, tower=tower: tower(x), example, check_trace=False)
                decoder = TorchScriptPythonDecoder(traced)  # has to outlive the conversion
                towers[modality] = frontend.convert(frontend.load(decoder))
                towers[modality].reshape({0: openvino.PartialShape([-1, *sizes])})
            backend = OpenVINOBackend(towers)
            for modality, (tower, _, others, _) in cases.items():
                found = backend.submit(modality, others.numpy()).result()
                cosine = float((found * tower(others).numpy()).sum(axis=1).min())
                if not cosine >= 0.999:
                    raise ValueError(f"the cosine of {modality} embeddings with those of torch falls to {cosine:.4f}")
    except Exception as error:  # converters raise whatever their layers raise
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{name} cannot be converted to OpenVINO ({type(error).__name__}: {reason}).",
            remedy="Use --backend torch.",
        ) from error
    return backend


@dataclass(frozen=True)
class Calibration:
    """Inputs by which the activations of a model are scaled for int8: the first 64 images and the first 64 texts.

    Attributes:
        images: as in `Encoder.pixels`; what cannot be decoded is left out. Bundled photos are added if they are few.
        texts: captions; bundled ones are added if they are few.
        kept: the folder or URL of a model that was calibrated before; it is used instead.
        sha256: its digest.
    """

    images: Iterable[Any] = ()
    texts: Iterable[str] = ()
    kept: Path | None = None
    sha256: str | None = None


def int8_backend(exact: Encoder, towers: Mapping[Modality, Any], calibration: Calibration) -> OpenVINOBackend:
    """Convert a model to 8-bit integers with NNCF (extra ``int8``); the files are in a folder of this process.

    Args:
        exact: the model in fp32 with this backend.
        towers: of that backend.
        calibration: the inputs to scale by.

    Raises:
        EncoderError: if the model cannot be converted, or the result differs too much from fp32.
        MissingExtraError: if NNCF is not installed.
    """
    if not importlib.util.find_spec("nncf"):
        raise MissingExtraError("nncf", extra="int8", purpose="--precision int8")
    import openvino

    inputs = _calibration_inputs(exact, calibration)
    folder = _temporary_folder()
    try:
        for modality, batches in inputs.items():
            tower = towers[modality]
            model = core().read_model(tower) if isinstance(tower, Path) else tower
            openvino.save_model(_quantize(model, batches), folder / f"{modality}.xml", compress_to_fp16=False)
    except OSError as error:
        raise EncoderError(f"The int8 model cannot be written to {folder} ({error.strerror or error}).") from error
    except Exception as error:  # NNCF raises errors of many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise EncoderError(
            f"{exact.identity.name} cannot be converted to int8 ({reason}).", remedy="Use --precision auto."
        ) from error
    rounded = _open_int8(folder)
    for modality, batches in inputs.items():
        results = [
            np.concatenate([one.result() for one in [backend.submit(modality, batch) for batch in batches]])
            for backend in (exact.backend, rounded)
        ]
        cosine = float((results[0] * results[1]).sum(axis=1).min())
        if not cosine >= _INT8_AGREEMENT:  # NaN is refused, too
            raise EncoderError(
                f"int8 changes the embeddings of {exact.identity.name} too much: the cosine of {modality} embeddings "
                f"with fp32 is {cosine:.4f} on the calibration inputs (limit: {_INT8_AGREEMENT}).",
                remedy="Use --precision auto.",
            )
    return rounded


def kept_int8_backend(calibration: Calibration) -> OpenVINOBackend:
    """Open an int8 model that was kept in a folder or at a URL.

    Raises:
        EncoderError: if a file is missing, or it is not the model with this digest.
    """
    assert calibration.kept is not None
    folder = _temporary_folder()
    try:
        for name in INT8_FILES:
            download(calibration.kept / name, folder / name)
    except FileNotFoundError as error:
        raise EncoderError(
            f"The int8 model {calibration.kept} is missing ({Path(error.filename or '').name}).",
            remedy="Copy this folder from the store that it was made for, or embed into another --store.",
        ) from None
    backend = _open_int8(folder)
    if backend.sha256 != calibration.sha256:
        raise EncoderError(
            f"The int8 model {calibration.kept} is damaged: its digest is not {str(calibration.sha256)[:12]}.",
            remedy="Copy this folder from a copy of the store, or embed into another --store.",
        )
    return backend


def _open_int8(folder: Path) -> OpenVINOBackend:
    towers: dict[Modality, Any] = {"image": folder / "image.xml", "text": folder / "text.xml"}
    backend = OpenVINOBackend(towers, "int8")
    backend.folder = folder
    backend.sha256 = hashlib.sha256("".join(sha256_of(folder / name) for name in INT8_FILES).encode()).hexdigest()
    return backend


def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="c3-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _calibration_inputs(encoder: Encoder, calibration: Calibration) -> dict[Modality, list[Any]]:
    """Return the inputs of both towers, each a batch of its own."""
    lines = (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    bundled = (caption for line in lines for caption in json.loads(line)["captions"])
    texts = list(islice(chain(calibration.texts, bundled), CALIBRATION_INPUTS))
    pixels: list[Any] = []
    for image in chain(calibration.images, sorted((PHOTOS / "images").iterdir())):
        if len(pixels) == CALIBRATION_INPUTS:
            break
        with contextlib.suppress(Exception):  # a decoder may raise anything on a damaged file
            pixels.append(encoder.pixels(image)[None])
    return {"image": pixels, "text": [batch for _, batch in encoder.token_batches(encoder.tokenise(texts), 1)]}


def _quantize(model: Any, batches: list[Any]) -> Any:
    """Return a model in 8 bits where NNCF knows how; its activations are scaled for these inputs."""
    # NNCF prints its progress, and its log, to standard output
    with contextlib.redirect_stdout(io.StringIO()):
        quiet = os.environ.get(_QUIET)
        os.environ[_QUIET] = "1"
        try:
            import nncf
        finally:
            del os.environ[_QUIET]
            if quiet is not None:
                os.environ[_QUIET] = quiet
        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,  # more exact for convolutions, too
            ignored_scope=nncf.IgnoredScope(types=list(_IN_FLOAT), validate=False),
        )
