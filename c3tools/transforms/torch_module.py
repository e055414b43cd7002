"""Pipelines inside torch: a module for use in a model.

The only file of this package that imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import Indices
from ..errors import TransformError
from .operations import Affine, MemoryAttention, Noise, Operation, Unit
from .pipeline import Pipeline
from .steps import Step

_LEAST_NORM = 1e-30


class TransformModule(nn.Module):
    """A fitted pipeline for inputs of one modality, as a torch module. In evaluation mode,
    ``torch.export`` and ``torch.onnx.export`` support it, with any number of rows.

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
                    # The operation, with its arrays as buffers
                    number = len(self._operations)
                    for name, value in vars(operation).items():
                        if isinstance(value, np.ndarray):
                            dtype = torch.int64 if name == "items" else torch.float32
                            buffer = torch.tensor(value, dtype=dtype)
                            self.register_buffer(f"{name}_{number}", buffer)
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

        A row of zeros, which the numpy path refuses, becomes NaN.

        Args:
            x: embeddings.
            keys: one per row: noise is then drawn from (seed, epoch, key), the same as in the numpy
                path; without keys it comes from torch's own generator.
            epoch: training epoch.
            items: of the rows; in training, captions of the same item are not retrieved.

        Raises:
            TransformError: if the shape or dimension is another, or items are missing.
        """
        if x.dim() != 2:
            raise TransformError(
                f"The embeddings have shape {tuple(x.shape)}, not (n, d).",
                remedy="Pass x.flatten(0, -2), and unflatten the result.",
            )
        self.pipeline.check_dim(x.shape[-1])
        x = x.float()
        draws = 0
        for number, (operation, step) in enumerate(self._operations):
            if not step.applies(self.modality, self.training):
                continue
            values: dict[str, Any] = {}
            for name, value in vars(operation).items():
                values[name] = self._buffers.get(f"{name}_{number}", value)
            fitted: Any = SimpleNamespace(**values)

            # As `operations.apply` does it, but with tensors, and never in place
            match operation:
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
                        shape = tuple(x.shape)
                        drawn = self.pipeline.draw_noise(shape, keys, self.seed, epoch, draws)
                        noise = torch.from_numpy(drawn).to(x.device)
                    draws += 1
                    if fitted.matrix is not None:
                        noise = noise @ fitted.matrix
                    if relative:
                        x = (1 - scale) * x + _norms(x) / _norms(noise) * scale * noise
                    else:
                        x = x + scale * noise
                case MemoryAttention():
                    item_hashes = step.own_items(items, len(x)) if self.training else None
                    x = _attend(fitted, x, item_hashes)
        return nn.functional.pad(x, (0, 1)) if self.pipeline.metric == "l2" else x


def _attend(fitted: Any, x: Tensor, item_hashes: Indices | None) -> Tensor:
    """Return the rows x (n, d) after a `MemoryAttention`, differentiable.

    Args:
        fitted: its attributes, with tensors.
        x: float32 (n, d).
        item_hashes: int64 (n,), a hash of each row's item; None leaves out no rows of the memory.
    """
    memory: Tensor = fitted.memory
    scores = x @ memory.T  # (n, m)
    # A row of whose item all rows of the memory are
    is_alone = torch.zeros_like(scores[:, :1], dtype=torch.bool)
    if item_hashes is not None:
        is_left_out = torch.from_numpy(item_hashes).to(x.device)[:, None] == fitted.items
        is_alone = is_left_out.all(dim=1, keepdim=True)
        scores = scores.masked_fill(is_left_out & ~is_alone, float("-inf"))
    if fitted.tau == 0:
        mean: Tensor = memory[scores.argmax(dim=1)]
    elif fitted.neighbours is None or fitted.neighbours >= len(memory):
        mean = (scores / fitted.tau).softmax(dim=1) @ memory
    else:
        best = scores.topk(fitted.neighbours, dim=1)
        weights = (best.values / fitted.tau).softmax(dim=1)
        mean = torch.einsum("nk,nkd->nd", weights, memory[best.indices])
    if fitted.weight is None:
        return mean
    added = (mean / _norms(mean).clamp_min(_LEAST_NORM)).masked_fill(is_alone, 0)
    weighted: Tensor = fitted.weight * added
    return x + weighted


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return norms
