"""Pipelines inside torch: a module for use in a model, and a data set of transformed embeddings.

The only file of this package that imports torch; import it by its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..store import Rows
from .operations import Affine, MemoryAttention, MixMemory, MixNoise, Noise, Operation, Unit
from .pipeline import Pipeline
from .steps import Step

_LEAST_NORM = 1e-30


class TransformModule(nn.Module):
    """A fitted pipeline for inputs of one modality, as a torch module.

    In training mode (`module.train()`) inputs are training inputs and get the pipeline's noise; in evaluation mode
    they never do. The fitted tensors are buffers: they move with the module and are saved with it.

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
        self.modality = modality = pipeline.choose_modality(modality, "training", "inference")
        self.seed = seed
        self._operations: list[tuple[Operation, Step]] = []
        for step in pipeline.steps:
            if step.applies(modality, training=True) or step.applies(modality, training=False):
                for operation in step.operations(modality):
                    for name, value in vars(operation).items():
                        if isinstance(value, np.ndarray):
                            kind = torch.int64 if name == "items" else torch.float32
                            self.register_buffer(f"{name}_{len(self._operations)}", torch.tensor(value, dtype=kind))
                    self._operations.append((operation, step))
        self.train(False)

    def forward(
        self, x: Tensor, keys: Sequence[str] | None = None, epoch: int = 0, items: Sequence[str] | None = None
    ) -> Tensor:
        """Return transformed embeddings, float32 (n, d), differentiable in ``x`` (n, d).

        Args:
            x: embeddings.
            keys: one per row: noise is then drawn from (seed, epoch, key), the same as in the numpy path; without
                keys it comes from torch's own generator.
            epoch: training epoch.
            items: of the rows; in training, captions of the same item are not retrieved.

        Raises:
            TransformError: if the dimension is another, or items are missing.
        """
        self.pipeline.check_dim(x.shape[-1])
        x = x.float()
        draws = 0
        for number, (operation, step) in enumerate(self._operations):
            if not step.applies(self.modality, self.training):
                continue
            hashes = step.own_items(items, len(x)) if self.training else None
            own = None if hashes is None else torch.from_numpy(hashes).to(x.device)
            noise = None
            if isinstance(operation, Noise | MixNoise):
                if keys is None:
                    noise = torch.randn_like(x)
                else:
                    drawn = self.pipeline.draw_noise(tuple(x.shape), keys, self.seed, epoch, draws)
                    noise = torch.from_numpy(drawn).to(x.device)
                draws += 1
            own_buffers = {
                name: self._buffers.get(f"{name}_{number}", value) for name, value in vars(operation).items()
            }
            x = _run(operation, SimpleNamespace(**own_buffers), x, noise, own)
        return x


def _run(operation: Operation, fitted: Any, x: Tensor, noise: Tensor | None, own: Tensor | None) -> Tensor:
    """Apply an operation, whose values are ``fitted``, arrays as tensors, to rows (n, d); see `operations.apply`."""
    match operation:
        case Unit():
            x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
        case Affine():
            x = x if fitted.centre is None else x - fitted.centre
            x = x if fitted.scale is None else x * fitted.scale
            x = x if fitted.matrix is None else x @ fitted.matrix
            x = x if fitted.offset is None else x + fitted.offset
        case Noise() if noise is not None:
            noise = noise * fitted.scale
            x = x + (noise if fitted.matrix is None else noise @ fitted.matrix)
        case MixNoise(mix) if noise is not None:
            size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            x = (1 - mix) * x + mix * size * noise / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
        case MemoryAttention():
            x = _mean_of_nearest(x @ fitted.memory.T, fitted)
        case MixMemory():
            scores = x @ fitted.memory.T  # (n, m)
            alone = torch.zeros_like(scores[:, :1], dtype=torch.bool)  # whose own rows are the whole memory
            if own is not None:
                left_out = own[:, None] == fitted.items
                alone = left_out.all(dim=1, keepdim=True)
                scores = scores.masked_fill(left_out & ~alone, float("-inf"))
            mean = _mean_of_nearest(scores, fitted)
            norm = torch.linalg.vector_norm(mean, dim=1, keepdim=True).clamp_min(_LEAST_NORM)
            x = x + (fitted.weight * mean / norm).masked_fill(alone, 0)
        case _:
            raise TypeError(f"{operation!r} cannot be applied")
    return x


def _mean_of_nearest(scores: Tensor, fitted: Any) -> Tensor:
    """Return the mean (n, d) of the memory rows with the highest ``scores`` (n, m)."""
    memory: Tensor = fitted.memory
    tau: float = fitted.tau
    if tau == 0:
        return memory[scores.argmax(dim=1)]
    if fitted.neighbours is not None and fitted.neighbours < len(memory):
        best = scores.topk(fitted.neighbours, dim=1)
        return torch.einsum("nk,nkd->nd", (best.values / tau).softmax(dim=1), memory[best.indices])
    weights = (scores / tau).softmax(dim=1)
    return weights @ memory


class EmbeddingDataset(Dataset[dict[str, Any]]):
    """Transformed embeddings with their keys and captions, for a DataLoader.

    Noise is drawn from (seed, epoch, key): the batches are the same with any number of workers. Call `set_epoch`
    before each epoch; workers that persist see it.

    Args:
        rows: n rows of one modality, as `c3tools.Store.load` and `Rows.of` give them.
        pipeline: fitted.
        training: whether they are training inputs, the only ones that get noise.
        seed: of the noise.
    """

    def __init__(self, rows: Rows, pipeline: Pipeline, *, training: bool = False, seed: int = 0) -> None:
        self.rows = rows
        self.pipeline = pipeline
        self.training = training
        self.seed = seed
        self._captions = rows.captions if "caption" in rows.table.column_names else None
        self._epoch: Tensor = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw the noise of this epoch from now on."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return ``key``, ``embedding`` (float32 tensor (d,)), and ``caption`` if there are captions."""
        return self.__getitems__([row])[0]

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return several rows at once, which DataLoader asks for."""
        keys = [self.rows.keys[number] for number in numbers]
        transformed = self.pipeline.transform(
            self.rows.embeddings[numbers],
            modality=self.rows.modality,
            training=self.training,
            keys=keys,
            items=[self.rows.items[number] for number in numbers],
            seed=self.seed,
            epoch=int(self._epoch[0]),
        )
        items = [{"key": key, "embedding": torch.from_numpy(row)} for key, row in zip(keys, transformed, strict=True)]
        if self._captions is not None:
            for item, number in zip(items, numbers, strict=True):
                item["caption"] = self._captions[number]
        return items
