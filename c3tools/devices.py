"""The one place that picks device and precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .errors import C3Error

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where and in which precision a model runs."""

    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of weights and activations."""
        return _DTYPES[self.precision]


def pick(device: str | None = None, precision: str = "auto") -> Compute:
    """Pick device and precision.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or None for the best one there is.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 where the hardware computes in it
            natively (CPU with avx512_bf16 or amx, GPU from Ampere on), else fp32.

    Raises:
        C3Error: for an unknown precision, or a device that is not there.
    """
    if precision not in get_args(PrecisionName):
        raise C3Error(f"Unknown precision {precision!r}.", remedy="Choose auto, fp32, bf16 or fp16.")
    place = torch.device(device) if device else _best_device()
    if place.type == "cuda" and not torch.cuda.is_available():
        raise C3Error(f"The device {place} is not there: this torch sees no CUDA GPU.", remedy="Use --device cpu.")
    if precision == "auto":
        precision = "bf16" if _has_native_bf16(place) else "fp32"
    if precision == "fp16" and place.type == "cpu":
        raise C3Error("fp16 is not computed natively by CPUs.", remedy="Use --precision bf16 or fp32 here.")
    return Compute(place, precision)


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _has_native_bf16(place: torch.device) -> bool:
    if place.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if place.type == "cpu":
        features = torch.backends.cpu.get_cpu_capability()
        return "AMX" in features or _cpu_flag("_is_avx512_bf16_supported") or _cpu_flag("_is_amx_tile_supported")
    return False


def _cpu_flag(name: str) -> bool:
    probe = getattr(torch.cpu, name, None)
    return bool(probe()) if probe is not None else False
