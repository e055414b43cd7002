"""The only module that picks the device, the precision and the number of threads. It imports torch
only where it is needed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .arrays import Pixels
from .errors import C3Error, explain_missing

if TYPE_CHECKING:
    import torch

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "float32"}
_THREADS_VARIABLE = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Compute:
    """The device and the precision of a model.

    ``int8`` is for encoders only: 8-bit matrix products, with everything around them in float32.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``, as torch takes it.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``int8``.
    """

    device: str
    precision: str

    @property
    def device_type(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of weights and activations."""
        import torch

        dtype: torch.dtype = getattr(torch, _DTYPES[self.precision])
        return dtype

    def empty_pixels(self, shape: tuple[int, ...]) -> Pixels:
        """Return memory for pixels, uint8, from which they are copied to the device quickly."""
        if self.device_type != "cuda":
            return np.empty(shape, np.uint8)
        import torch

        # The memory is pinned. torch uses it again once it is free and copies from it have ended
        pixels: Pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        return pixels

    def autocast(self) -> torch.autocast:
        """Return the context in which a model with weights in float32 is run in this precision."""
        import torch

        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.precision != "fp32")


def pick(device: str | None = None, precision: str = "auto", *, encoder: bool = False) -> Compute:
    """Pick device and precision.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or None for the best one available.
        precision: ``fp32``, ``bf16``, ``fp16``, ``int8``, or ``auto``: bf16 if the hardware
            computes in it natively (GPU from Ampere on; CPUs of `_cpu_has_fast_bf16`), else fp32.
        encoder: it is for an encoder, which may run in int8.

    Raises:
        C3Error: for a missing device, or a precision that the device does not support.
    """
    if precision == "int8" and not encoder:
        raise C3Error("Only encoders run in int8.", remedy="Use auto, fp32, bf16 or fp16.")
    name = _device(device)
    kind = name.partition(":")[0]
    if kind == "cpu":
        _keep_freed_memory()
    if precision == "fp16" and kind == "cpu":
        raise C3Error("CPUs do not compute in fp16.", remedy="Use --precision bf16 or fp32 here.")
    if precision == "int8" and not (kind == "cpu" and has_int8()):
        raise C3Error(
            f"int8 needs a CPU with avx512_vnni, not {name}.", remedy="Use --precision auto."
        )
    if precision == "auto":
        has_fast_bf16 = kind == "cpu" and _cpu_has_fast_bf16()
        if kind == "cuda":
            import torch

            is_ampere = torch.cuda.get_device_capability(name) >= (8, 0)
            has_fast_bf16 = is_ampere or torch.version.hip is not None
        precision = "bf16" if has_fast_bf16 else "fp32"
    return Compute(name, precision)


def pick_devices(devices: str | None = None) -> list[str]:
    """Return the devices to spread work over: those named, or every CUDA GPU, or the best one
    available.

    Args:
        devices: names with commas between them (``cuda:0,cuda:1``), or None.

    Raises:
        C3Error: if one is missing.
    """
    names = [name.strip() for name in (devices or "").split(",") if name.strip()]
    if names:
        return [_device(name) for name in names]
    if _may_have_gpu():
        import torch

        if torch.cuda.device_count() > 1:
            return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [_device(None)]


def _keep_freed_memory() -> None:
    """Have glibc's malloc keep freed memory, up to 1 GiB, for the next allocation.

    By default it gives large blocks back to the kernel at once, which clears each page again when
    the next activations are allocated: a third of the time of a small model on a CPU. Other C
    libraries are left as they are.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library; TypeError: on Windows
        mallopt = ctypes.CDLL(None).mallopt
        # -3 is M_MMAP_THRESHOLD, which old glibcs limit to 32 MiB; -1 is M_TRIM_THRESHOLD
        for parameter, size in ((-3, 2**25), (-3, 2**30), (-1, 2**30)):
            mallopt(parameter, size)


def has_int8() -> bool:
    """Return whether the CPU multiplies 8-bit integers natively (avx512_vnni)."""
    with explain_missing("int8"):
        import torch

    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)())


def threads() -> int:
    """Return the number of threads that a model may use: OMP_NUM_THREADS, else one for each core of
    this process.

    Two threads of the processor that share a core count once: matrix products keep a core busy with
    one.
    """
    with suppress(ValueError):
        return max(1, int(os.environ.get(_THREADS_VARIABLE, "").partition(",")[0]))
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    usable = os.sched_getaffinity(0)
    cores = set()
    for number in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text(encoding="ascii"))
        except OSError:
            return len(usable)
    return len(cores)


def limit_threads(number: int) -> None:
    """Let models in this process use at most so many threads."""
    number = min(number, threads())
    os.environ[_THREADS_VARIABLE] = str(number)
    if "torch" in sys.modules:  # else it will read the variable
        sys.modules["torch"].set_num_threads(number)


def _device(name: str | None) -> str:
    """Return the name of a device that is there; for None the best one, without torch the CPU."""
    if name == "cpu" or not (name or _may_have_gpu()):
        return "cpu"
    with explain_missing(f"The device {name}"):
        import torch

    if not name:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise C3Error(
            f"There is no device {name!r}.", remedy="Use cpu, cuda, cuda:1 or mps."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise C3Error(
            f"The device {device} is not available: torch finds no CUDA GPU.",
            remedy="Use --device cpu.",
        )
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise C3Error(f"The device {device} is not available: this machine has {count} CUDA GPUs.")
    return str(device)


def _may_have_gpu() -> bool:
    """Return False if torch or the driver of a GPU is missing, without importing torch, which takes
    long.

    torch itself opens the same library of NVIDIA's driver; /dev/kfd is that of AMD's.
    """
    if importlib.util.find_spec("torch") is None:
        return False
    system = platform.system()
    if system == "Darwin":
        return platform.machine() == "arm64"
    with suppress(OSError):
        ctypes.CDLL("nvcuda.dll" if system == "Windows" else "libcuda.so.1")
        return True
    return Path("/dev/kfd").exists()


def _cpu_has_fast_bf16() -> bool:
    """Return whether this CPU computes faster in bf16 than in fp32, by what Linux says of it.

    With AMX it does, and so it does with avx512_bf16, except on CPUs that have avx512_fp16 too:
    those are Intel's with AMX switched off by the hypervisor, which run bf16 slower.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "avx512_fp16" not in flags)
