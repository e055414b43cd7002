"""The backend torch: any model, on any device, in any precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..arrays import Matrix
from ..devices import Compute
from .encoder import Backend, Modality, Pending, largest_batch
from .preprocessing import ImagePreprocessor
from .towers import ImageTower, TextTower

_LARGEST = {"image": 256, "text": 1024}  # beyond these a GPU gains nothing, and images in flight cost memory
_SHARE_OF_MEMORY = 0.5
_PROBES = (4, 8)
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")  # on MPS, and on CPUs


class TorchBackend(Backend):
    """The towers as torch modules.

    Args:
        model: open_clip's module, which is changed: moved to the device, in the precision.
        preprocess: knows size, mean and standard deviation of the pixels.
        compute: device and precision.
        trims_texts: whether texts come without their padding.
        longest_text: tokens of the longest text, int64 (1, length), for measuring memory.
        compiled: run the towers through `torch.compile`.
    """

    name = "torch"

    def __init__(
        self,
        model: nn.Module,
        preprocess: ImagePreprocessor,
        compute: Compute,
        *,
        trims_texts: bool,
        longest_text: Tensor,
        compiled: bool = False,
    ) -> None:
        self.compute = compute
        self.compiled = compiled
        self.ahead = 0 if compute.device_type == "cpu" else 1
        model = model.to(compute.device, compute.dtype)
        if compute.device_type in ("cpu", "cuda"):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._probes = {"image": torch.zeros((1, *preprocess.size, 3), dtype=torch.uint8), "text": longest_text}
        towers: dict[str, nn.Module] = {
            "image": ImageTower(model, preprocess, compute.dtype),
            "text": TextTower(model, trims=trims_texts),
        }
        self._forward: dict[str, Callable[[Tensor], Tensor]] = {
            name: torch.compile(tower, dynamic=True) if compiled else tower for name, tower in towers.items()
        }
        self._limits: dict[str, int] = {}  # largest batch that fits into memory, once one did not

    def submit(self, modality: Modality, batch: Any) -> Pending:
        """Compute a batch; on a GPU without waiting for it. Where it does not fit into memory it is run in halves."""
        return _Features(self._features(modality, torch.as_tensor(batch)))

    def batch_size(self, modality: Modality, pixels: int) -> int:
        """Return a constant, but on a CUDA GPU the largest power of two whose activations take half of the memory."""
        if self.compute.device_type != "cuda":
            return super().batch_size(modality, pixels)
        device, peaks = self.compute.device, []
        for n in _PROBES:
            torch.cuda.reset_peak_memory_stats(device)
            self.run_probe(modality, n)
            torch.cuda.synchronize(device)
            peaks.append(torch.cuda.max_memory_allocated(device))
        per_input = max(1, (peaks[1] - peaks[0]) // (_PROBES[1] - _PROBES[0]))
        memory = torch.cuda.get_device_properties(device).total_memory
        return largest_batch(per_input, int(_SHARE_OF_MEMORY * memory), _LARGEST[modality])

    def run_probe(self, modality: Modality, n: int) -> None:
        """Run n inputs of the largest size."""
        probe = self._probes[modality]
        self._features(modality, probe.repeat(n, *[1] * (probe.ndim - 1)))

    def _features(self, modality: Modality, batch: Tensor) -> Tensor:
        """Return unit vectors, float32 (n, d), on the device.

        If a batch does not fit into memory, this batch and those that follow are run in halves.
        """
        limit = self._limits.get(modality, len(batch))
        if len(batch) > limit:
            return torch.cat([self._features(modality, part) for part in torch.split(batch, limit)])
        try:
            with torch.inference_mode():
                return self._forward[modality](batch.to(self.compute.device, non_blocking=True))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            told = any(words in str(error) for words in _OUT_OF_MEMORY)
            if not (told or isinstance(error, torch.OutOfMemoryError)) or len(batch) == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._limits[modality] = len(batch) // 2
        return self._features(modality, batch)


class _Features:
    """Unit vectors (n, d) on the device, which may still be computing them."""

    def __init__(self, features: Tensor) -> None:
        self._features = features

    def result(self) -> Matrix:
        return self._features.cpu().numpy()
