"""The backend torch: any model, on any device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..arrays import Matrix
from ..devices import Compute
from ..errors import is_out_of_memory
from .backend import AUTO, PROBE_PHOTOS, PROBE_TEXTS, EncoderBackend, agrees
from .encoder import Encoder, Modality, ModelFacts
from .preprocessing import ImagePreprocessor

if TYPE_CHECKING:
    from torch import Tensor, nn

# torch is imported in the functions, because it takes seconds and other backends run without it.


class TorchBackend(EncoderBackend):
    """The towers as torch modules.

    Args:
        model: open_clip's module, which is changed: moved to the device, in the precision.
        preprocess: knows size, mean and standard deviation of the pixels.
        compute: device and precision.
        trims: whether texts come without their padding.
    """

    name = "torch"
    module = "torch"
    extra = "models"
    devices = "any device, in fp32, bf16 or fp16"

    def __init__(
        self, model: nn.Module, preprocess: ImagePreprocessor, compute: Compute, trims: bool
    ) -> None:
        import torch

        from .towers import ImageTower, TextTower

        self.compute = compute
        # While the host waits for a batch, a GPU has the next one; on CUDA two, so that it goes on
        # while the host prepares another
        self.ahead = {"cpu": 0, "cuda": 2}.get(compute.device_type, 1)
        model = model.to(compute.device, compute.dtype)
        if compute.device_type in ("cpu", "cuda"):
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward: dict[str, nn.Module] = {
            "image": ImageTower(model, preprocess, compute.dtype),
            "text": TextTower(model, trims=trims),
        }
        # the largest batch that fits into memory, by modality, once one did not fit
        self._limits: dict[str, int] = {}

    @classmethod
    def runs_on(cls, device_type: str) -> bool:
        """Return True: torch runs models on every device."""
        return True

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """Return fp32, bf16 and fp16."""
        return ("fp32", "bf16", "fp16")

    @classmethod
    def convert(cls, model: nn.Module, facts: ModelFacts, compute: Compute, precision: str) -> Self:
        """Run a model in a precision; see `EncoderBackend`."""
        exact_compute = Compute(compute.device, "fp32")
        if compute == exact_compute:
            return cls(model, facts.preprocess, exact_compute, facts.trims_texts)
        rounded = cls(copy.deepcopy(model), facts.preprocess, compute, facts.trims_texts)
        if precision != AUTO:
            return rounded
        exact = cls(model, facts.preprocess, exact_compute, facts.trims_texts)
        cosines = (_embed_probe(rounded, facts) * _embed_probe(exact, facts)).sum(axis=1)
        return rounded if agrees(float(cosines.min())) else exact

    def submit(self, modality: Modality, batch: Any) -> Callable[[], Matrix]:
        """Compute a batch; on a GPU without waiting for it.

        A batch that does not fit into memory is run in halves.
        """
        import torch

        features = self._features(modality, torch.as_tensor(batch))
        if not features.is_cuda:
            return lambda: features.cpu().numpy()

        # The copy is issued before the next batch: a copy waits for all that was issued before it
        on_host = torch.empty_like(features, device="cpu", pin_memory=True)
        on_host.copy_(features, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(features.device))

        def wait_for_rows() -> Matrix:
            copied.synchronize()
            return on_host.numpy().copy()  # pinned memory is scarce

        return wait_for_rows

    def _features(self, modality: Modality, batch: Tensor) -> Tensor:
        """Return unit vectors, float32 (n, d), on the device.

        If a batch does not fit into memory, this batch and those that follow are run in halves.
        """
        import torch

        limit = self._limits.get(modality, len(batch))
        if len(batch) > limit:
            return torch.cat([self._features(modality, part) for part in torch.split(batch, limit)])
        try:
            if self.compute.device_type == "cuda" and not (batch.is_cuda or batch.is_pinned()):
                batch = batch.pin_memory()  # the copy to the GPU then runs in the background
            with torch.inference_mode():
                rows = self._forward[modality](batch.to(self.compute.device, non_blocking=True))
                return torch.nn.functional.normalize(rows.float(), dim=-1)
        except RuntimeError as error:  # of CUDA, of MPS and of CPUs
            if not is_out_of_memory(error) or len(batch) == 1:
                raise
        torch.cuda.empty_cache()
        self._limits[modality] = len(batch) // 2
        return self._features(modality, batch)


def _embed_probe(backend: TorchBackend, facts: ModelFacts) -> Matrix:
    """Return the embeddings, float32 (n, d), of the photos and texts of the probe."""
    encoder = Encoder(backend, facts)
    images = encoder.encode_images(PROBE_PHOTOS, batch_size=len(PROBE_PHOTOS))
    texts = encoder.encode_texts(PROBE_TEXTS)
    return np.concatenate([images, texts])
