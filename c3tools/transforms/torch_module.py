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
from .operations import Affine, MemoryAttention, MixNoise, Noise, Unit
from .pipeline import Pipeline

_BUFFERS = ("centre", "scale", "matrix", "offset", "memory")


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
        self._steps: list[tuple[Any, bool, bool]] = []
        for training in (True, False):
            for step in pipeline.active_steps(modality, training):
                for operation in step.operations(modality):
                    for name in _BUFFERS:
                        value = getattr(operation, name, None)
                        if value is not None and not isinstance(value, float):
                            tensor = torch.tensor(np.asarray(value), dtype=torch.float32)
                            self.register_buffer(f"{name}_{len(self._steps)}", tensor)
                    self._steps.append((operation, training, not training))
        self.train(False)

    def forward(self, x: Tensor, keys: Sequence[str] | None = None, epoch: int = 0) -> Tensor:
        """Return transformed embeddings, float32 (n, d), differentiable in ``x`` (n, d).

        Args:
            x: embeddings.
            keys: one per row: noise is then drawn from (seed, epoch, key), the same as in the numpy path; without
                keys it comes from torch's own generator.
            epoch: training epoch.

        Raises:
            TransformError: if the dimension is another.
        """
        self.pipeline.check_dim(x.shape[-1])
        x = x.float()
        draws = 0
        for number, (operation, in_training, in_inference) in enumerate(self._steps):
            if not (in_training if self.training else in_inference):
                continue
            noise = None
            if isinstance(operation, Noise | MixNoise):
                if keys is None:
                    noise = torch.randn_like(x)
                else:
                    drawn = self.pipeline.draw_noise(tuple(x.shape), keys, self.seed, epoch, draws)
                    noise = torch.from_numpy(drawn).to(x.device)
                draws += 1
            x = self._run(number, operation, x, noise)
        return x

    def _run(self, number: int, operation: Any, x: Tensor, noise: Tensor | None) -> Tensor:
        buffers: list[Tensor | None] = [getattr(self, f"{name}_{number}", None) for name in _BUFFERS]
        centre, scale, matrix, offset, memory = buffers
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
                scores = x @ memory.T  # (n, m)
                if operation.tau == 0:
                    return memory[scores.argmax(dim=1)]
                if operation.neighbours is not None and operation.neighbours < len(memory):
                    best = scores.topk(operation.neighbours, dim=1)
                    weights = (best.values / operation.tau).softmax(dim=1)  # (n, k)
                    return torch.einsum("nk,nkd->nd", weights, memory[best.indices])
                return (scores / operation.tau).softmax(dim=1) @ memory
        raise TypeError(f"unknown operation {operation!r}")


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
            seed=self.seed,
            epoch=int(self._epoch[0]),
        )
        items = [{"key": key, "embedding": torch.from_numpy(row)} for key, row in zip(keys, transformed, strict=True)]
        if self._captions is not None:
            for item, number in zip(items, numbers, strict=True):
                item["caption"] = self._captions[number]
        return items
