"""The backend OpenVINO (extra ``openvino``): fp32 and bf16 on CPUs, and int8 of models that `.int8` has made."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays import Matrix
from ...devices import Compute
from .base import Modality
from .converted import ConvertedBackend

if TYPE_CHECKING:
    from torch import Tensor, nn

# int8 is in the model itself; the hint is for what is not in 8 bits
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVINOBackend(ConvertedBackend):
    """Towers as OpenVINO models; each thread has a stream of its own."""

    name = "openvino"
    packages = ("openvino",)

    def __init__(self, folder: Path, compute: Compute, threads: int) -> None:
        super().__init__(folder, compute, threads)
        self._ready = threading.local()  # requests, by tower

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """Return fp32, and bf16 where the CPU has it."""
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("fp32", "bf16") if "BF16" in capabilities else ("fp32",)

    @classmethod
    def _convert(cls, tower: nn.Module, example: Tensor, folder: Path, modality: Modality) -> None:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        # what `openvino.convert_model` does, without the messages that it sends to its makers
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(tower, example_input=(example,))  # has to outlive the conversion
        model = frontend.convert(frontend.load(decoder))
        sizes = example.shape[1:] if modality == "image" else (-1,)
        model.reshape({0: openvino.PartialShape([-1, *sizes])})
        write_model(model, folder, modality)

    def _open(self, folder: Path, threads: int, modality: Modality) -> Any:
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.compute.precision],
            "NUM_STREAMS": str(threads),
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # two commands would be pinned to the same cores
        }
        return _core().compile_model(_file(folder, modality), "CPU", settings)

    def _compute(self, tower: Any, batch: np.ndarray[Any, Any]) -> Matrix:
        ready = self._ready.__dict__  # of this thread
        request = ready.get(str(id(tower))) or tower.create_infer_request()
        ready[str(id(tower))] = request
        request.infer({0: batch}, share_inputs=True)
        return np.array(request.get_output_tensor(0).data)


def read_model(folder: Path, modality: Modality) -> Any:
    """Return a tower as OpenVINO's model."""
    return _core().read_model(_file(folder, modality))


def _file(folder: Path, modality: Modality) -> Path:
    own = folder / f"{modality}.xml"
    return own if own.is_file() else own.with_suffix(".onnx")


def write_model(model: Any, folder: Path, modality: Modality) -> None:
    """Write a tower to a folder, with its numbers as they are."""
    import openvino

    openvino.save_model(model, folder / f"{modality}.xml", compress_to_fp16=False)


@cache
def _core() -> Any:
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
