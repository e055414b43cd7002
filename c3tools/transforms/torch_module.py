"""Pipelines inside torch: a module for use in a model.

The only file of this package that imports torch; import it by its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .operations import Affine, MemoryAttention, Noise, Operation, Unit
from .pipeline import Pipeline
from .steps import Step

_LEAST_NORM = 1e-30


class TransformModule(nn.Module):
    """A fitted pipeline for inputs of one modality, as a torch module.

    In training mode (`module.train()`) inputs are training inputs and get the pipeline's noise; in
    evaluation mode they never do. The fitted tensors are buffers: they move with the module and are
    saved with it.

    Args:
        pipeline: fitted.
        modality: what the inputs are; needed if the pipeline is fitted for several modalities.
        seed: of noise that is drawn from keys.

    Raises:
        TransformError: if the pipeline is not fitted, or not for this modality.
    """

    def __init__(self, pipeline: Pipeline, modality: str | None = None, *, seed: int = 0) -> None:
        super().__init__()
        pipeline.check_fitted()
        self.pipeline = pipeline
        self.modality = modality = pipeline.choose_modality(modality)
        self.seed = seed
        self._operations: list[tuple[Operation, Step]] = []
        for step in pipeline.steps:
            if step.applies(modality, training=True) or step.applies(modality, training=False):
                for operation in step.operations(modality):
                    for name, value in vars(operation).items():
                        if isinstance(value, np.ndarray):
                            kind = torch.int64 if name == "items" else torch.float32
                            self.register_buffer(
                                f"{name}_{len(self._operations)}", torch.tensor(value, dtype=kind)
                            )
                    self._operations.append((operation, step))
        self.train(False)

    def forward(
        self,
        x: Tensor,
        keys: Sequence[str] | None = None,
        epoch: int = 0,
        items: Sequence[str] | None = None,
    ) -> Tensor:
        """Return transformed embeddings, float32 (n, d), differentiable in ``x`` (n, d).

        Args:
            x: embeddings.
            keys: one per row: noise is then drawn from (seed, epoch, key), the same as in the numpy
                path; without keys it comes from torch's own generator.
            epoch: training epoch.
            items: of the rows; in training, captions of the same item are not retrieved.

        Raises:
            TransformError: if the dimension is another, or items are missing.
        """
        self.pipeline.check_dim(x.shape[-1])
        x, draws = x.float(), 0
        for number, (operation, step) in enumerate(self._operations):
            if not step.applies(self.modality, self.training):
                continue
            own = step.own_items(items, len(x)) if self.training else None
            fitted: Any = SimpleNamespace(
                **{
                    name: self._buffers.get(f"{name}_{number}", value)
                    for name, value in vars(operation).items()
                }
            )
            match operation:  # as `operations.apply` does it, but with tensors, and never in place
                case Unit():
                    x = x / _norms(x)
                case Affine():
                    x = x if fitted.centre is None else x - fitted.centre
                    x = x if fitted.scale is None else x * fitted.scale
                    x = x if fitted.matrix is None else x @ fitted.matrix
                    x = x if fitted.offset is None else x + fitted.offset
                case Noise(scale, _, relative):
                    if keys is None:
                        noise = torch.randn_like(x)
                    else:
                        drawn = self.pipeline.draw_noise(
                            tuple(x.shape), keys, self.seed, epoch, draws
                        )
                        noise = torch.from_numpy(drawn).to(x.device)
                    draws += 1
                    noise = noise if fitted.matrix is None else noise @ fitted.matrix
                    x = (
                        (1 - scale) * x + _norms(x) / _norms(noise) * scale * noise
                        if relative
                        else x + scale * noise
                    )
                case MemoryAttention(_, tau, count, weight):
                    memory, scores = fitted.memory, x @ fitted.memory.T  # (m, d), (n, m)
                    # whose own rows are the whole memory
                    alone = torch.zeros_like(scores[:, :1], dtype=torch.bool)
                    if own is not None:
                        left_out = torch.from_numpy(own).to(x.device)[:, None] == fitted.items
                        alone = left_out.all(dim=1, keepdim=True)
                        scores = scores.masked_fill(left_out & ~alone, float("-inf"))
                    if tau == 0:
                        mean = memory[scores.argmax(dim=1)]
                    elif count is None or count >= len(memory):
                        mean = (scores / tau).softmax(dim=1) @ memory
                    else:
                        best = scores.topk(count, dim=1)
                        mean = torch.einsum(
                            "nk,nkd->nd", (best.values / tau).softmax(dim=1), memory[best.indices]
                        )
                    added = (mean / _norms(mean).clamp_min(_LEAST_NORM)).masked_fill(alone, 0)
                    x = mean if weight is None else x + weight * added
        return x


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return norms
