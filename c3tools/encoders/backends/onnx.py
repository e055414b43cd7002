"""The backend ONNX Runtime (extra ``onnx``): fp32 on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...arrays import Matrix
from .base import Modality
from .converted import ConvertedBackend

if TYPE_CHECKING:
    from torch import Tensor, nn

_OPSET = 17
_FATAL = 4  # errors are raised, too


class OnnxBackend(ConvertedBackend):
    """Towers as ONNX files; a session runs on the thread that calls it."""

    name = "onnx"
    packages = ("onnxruntime", "onnx")

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """Return fp32: ONNX Runtime does not compute in bf16 on CPUs."""
        return ("fp32",)

    @classmethod
    def _convert(cls, tower: nn.Module, example: Tensor, folder: Path, modality: Modality) -> None:
        import torch

        names = {0: "n"} if modality == "image" else {0: "n", 1: "length"}
        torch.onnx.export(
            tower,
            (example,),
            str(folder / f"{modality}.onnx"),
            input_names=["batch"],
            output_names=["features"],
            dynamic_axes={"batch": names, "features": {0: "n"}},
            opset_version=_OPSET,
            dynamo=False,
        )

    def _open(self, folder: Path, threads: int, modality: Modality) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL
        return onnxruntime.InferenceSession(folder / f"{modality}.onnx", options, providers=["CPUExecutionProvider"])

    def _compute(self, tower: Any, batch: np.ndarray[Any, Any]) -> Matrix:
        return np.asarray(tower.run(None, {"batch": batch})[0])
