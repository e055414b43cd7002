"""Pipelines inside torch: a module for use in a model, and a data set of transformed embeddings.

The only file of this package that imports torch; import it by its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..store import Rows
from .operations import Affine, MemoryAttention, MixMemory, MixNoise, Noise, Unit
from .pipeline import Pipeline
from .steps import Step

_BUFFERS = ("centre", "scale", "matrix", "offset", "memory", "items")
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
        self._operations: list[tuple[Any, Step]] = []
        for step in pipeline.steps:
            if not (step.applies(modality, training=True) or step.applies(modality, training=False)):
                continue
            for operation in step.operations(modality):
                for name in _BUFFERS:
                    value = getattr(operation, name, None)
                    if value is not None and not isinstance(value, float):
                        dtype = torch.int64 if name == "items" else torch.float32
                        self.register_buffer(
                            f"{name}_{len(self._operations)}", torch.tensor(np.asarray(value), dtype=dtype)
                        )
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
            x = self._run(number, operation, x, noise, own)
        return x

    def _run(self, number: int, operation: Any, x: Tensor, noise: Tensor | None, own: Tensor | None) -> Tensor:
        buffers: list[Tensor | None] = [getattr(self, f"{name}_{number}", None) for name in _BUFFERS]
        centre, scale, matrix, offset, memory, items = buffers
        match operation:
            case Unit():
                unit: Tensor = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
                return unit
            case Affine():
                x = x if centre is None else x - centre
                factor: Any = operation.scale if scale is None else scale
                x = x if factor is None else x * factor
                x = x if matrix is None else x @ matrix
                return x if offset is None else x + offset
            case Noise() if noise is not None:
                noise = noise * operation.scale
                return x + (noise if matrix is None else noise @ matrix)
            case MixNoise() if noise is not None:
                size = torch.linalg.vector_norm(x, dim=1, keepdim=True)
                direction = noise / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
                mixed: Tensor = (1 - operation.mix) * x + operation.mix * size * direction
                return mixed
            case MemoryAttention() if memory is not None:
                return _mean_of_nearest(x @ memory.T, memory, operation.tau, operation.neighbours)
            case MixMemory() if memory is not None:
                scores = x @ memory.T  # (n, m)
                alone = torch.zeros_like(scores[:, :1], dtype=torch.bool)  # whose own rows are the whole memory
                if own is not None and items is not None:
                    left_out = own[:, None] == items
                    alone = left_out.all(dim=1, keepdim=True)
                    scores = scores.masked_fill(left_out & ~alone, float("-inf"))
                mean = _mean_of_nearest(scores, memory, operation.tau, operation.neighbours)
                norm = torch.linalg.vector_norm(mean, dim=1, keepdim=True).clamp_min(_LEAST_NORM)
                retrieved: Tensor = (operation.weight * mean / norm).masked_fill(alone, 0)
                return x + retrieved
        raise TypeError(f"unknown operation {operation!r}")


def _mean_of_nearest(scores: Tensor, memory: Tensor, tau: float, neighbours: int | None) -> Tensor:
    """Return the mean (n, d) of the memory rows with the highest ``scores`` (n, m)."""
    if tau == 0:
        return memory[scores.argmax(dim=1)]
    if neighbours is not None and neighbours < len(memory):
        best = scores.topk(neighbours, dim=1)
        return torch.einsum("nk,nkd->nd", (best.values / tau).softmax(dim=1), memory[best.indices])
    return (scores / tau).softmax(dim=1) @ memory


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
