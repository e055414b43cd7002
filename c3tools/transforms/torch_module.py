"""Pipelines inside torch: a module for use in a model.

The only file of this package that imports torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import Array
from ..errors import TransformError
from .first_rows import FirstRows
from .operations import Affine, MemoryAttention, Noise, Operation, Unit
from .pipeline import Pipeline
from .steps import Step

if TYPE_CHECKING:
    from ..store import Store

_LEAST_NORM = 1e-30
# of torch 2.7 and later; earlier versions export training inputs without a word
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


class TransformModule(nn.Module):
    """A fitted pipeline for inputs of one modality, as a torch module.

    Like every module, it starts in training mode: inputs are training inputs and get the pipeline's
    noise. For inference, call `module.eval()`: inputs never get noise then.

    The fitted tensors are buffers: they move with the module and are saved with it. They stay
    float32 after `module.half()` or `module.bfloat16()`, and all steps compute in float32, also
    under autocast.

    ``torch.compile`` supports it, but breaks the graph where noise is drawn from keys; so
    ``fullgraph=True`` works in evaluation mode, and in training mode without keys. ``torch.export``
    and ``torch.onnx.export`` support it in evaluation mode, with any number of rows.

    For the rows of an export, which have gone through a pipeline already, use `for_rows`.

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
        operations = [operation for operation, _ in self._operations]
        self._first_rows: FirstRows | None = None
        self._has_memory = any(isinstance(one, MemoryAttention) for one in operations)

    @classmethod
    def for_rows(
        cls, export: Store | str | Path, modality: str | None = None, *, seed: int = 0
    ) -> TransformModule:
        """Return a module of the steps that the rows of an export have not gone through; see
        `Pipeline.for_rows`.

        Args:
            export: its folder or URL, of any format; or opened.
            modality: of the rows; needed if these steps are fitted for several modalities.
            seed: of noise that is drawn from keys.

        Raises:
            TransformError: if these rows did not go through a pipeline, or it is damaged.
            StoreError: if there is no export.

        Example:
            >>> report = c3tools.export_store("c3-store", output="noiseless", before_noise=True)
            >>> module = c3tools.TransformModule.for_rows("noiseless", "text")
            >>> module.pipeline
            Pipeline('c3': gaussian-noise > normalize)
        """
        return cls(Pipeline.for_rows(export), modality, seed=seed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers to another device, as `to` and `half` ask for, but keep their dtypes."""

        def moved(buffer: Tensor) -> Tensor:
            changed = fn(buffer)
            return changed if changed.dtype == buffer.dtype else buffer.to(changed.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(
        self,
        x: Tensor,
        keys: Sequence[str] | None = None,
        epoch: int = 0,
        items: Sequence[str] | None = None,
    ) -> Tensor:
        """Return transformed embeddings, float32 (n, d), differentiable in ``x`` (n, d).

        A row of zeros, which the numpy path refuses, becomes NaN.

        In evaluation mode, ``keys``, ``epoch`` and ``items`` are ignored, so that one step of a
        training loop can pass them for training and for validation.

        Args:
            x: embeddings, of any float dtype.
            keys: one per row: noise is then drawn from (seed, epoch, key), the same as in the numpy
                path; without keys it comes from torch's own generator.
            epoch: training epoch.
            items: of the rows; in training, captions of the same item are not retrieved.

        Raises:
            TransformError: if the shape or dimension is another, items are missing, or
                ``torch.export`` is used in training mode.
        """
        if x.dim() != 2:
            raise TransformError(
                f"The embeddings have shape {tuple(x.shape)}, not (n, d).",
                remedy="Pass x.flatten(0, -2), and unflatten the result.",
            )
        if self.training and _is_exporting():
            raise TransformError(
                "torch.export was called in training mode, in which inputs get noise.",
                remedy="Call module.eval() first.",
            )
        self.pipeline.check_dim(x.shape[-1])
        x = x.float()
        computed: list[Tensor | None] = [None] * len(self._operations)
        if self.training and (keys is not None or self._has_memory):
            computed = self._compute_in_numpy(x, keys, epoch, items)
        # Tensors without values have no autocast
        on_meta = x.device.type == "meta"
        with nullcontext() if on_meta else torch.autocast(x.device.type, enabled=False):
            return self._transform(x, computed)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _compute_in_numpy(
        self, x: Tensor, keys: Sequence[str] | None, epoch: int, items: Sequence[str] | None
    ) -> list[Tensor | None]:
        """Return for each operation what training needs of the keys and items of the rows x (n, d):
        noise, float32 (n, d), or the rows of a memory to leave out, bool (n, m). `torch.compile`
        cannot trace it.
        """
        computed: list[Tensor | None] = []
        draws = 0
        for number, (operation, step) in enumerate(self._operations):
            tensor = None
            if not step.applies(self.modality, training=True):
                pass
            elif isinstance(operation, Noise):
                if keys is not None:
                    shape = tuple(x.shape)
                    noise = self.pipeline.draw_noise(shape, keys, self.seed, epoch, draws)
                    tensor = torch.from_numpy(noise).to(x.device)
                draws += 1
            else:
                item_hashes = step.own_items(items, len(x))
                if item_hashes is not None:
                    row_items = torch.from_numpy(item_hashes).to(x.device)
                    tensor = row_items[:, None] == self._array("items", number)
            computed.append(tensor)
        return computed

    def _transform(self, x: Tensor, computed: Sequence[Tensor | None]) -> Tensor:
        """Return the rows x, float32 (n, d), after the operations, as `operations.apply` does it,
        but with tensors, and never in place.

        Args:
            x: the rows.
            computed: see `_compute_in_numpy`.
        """
        for number, (operation, step) in enumerate(self._operations):
            if not step.applies(self.modality, self.training):
                continue
            match operation:
                case Unit():
                    x = x / _norms(x)
                case Affine():
                    centre = self._array("centre", number)
                    scale = self._array("scale", number)
                    matrix = self._array("matrix", number)
                    offset = self._array("offset", number)
                    if step.centres and operation.centre is not None:
                        self._look_at(x, operation.centre)
                    x = x if centre is None else x - centre
                    x = x if scale is None else x * scale
                    x = x if matrix is None else x @ matrix
                    x = x if offset is None else x + offset
                case Noise():
                    noise = computed[number]
                    if noise is None:
                        noise = torch.randn_like(x)
                    matrix = self._array("matrix", number)
                    noise = noise if matrix is None else noise @ matrix
                    scale = operation.scale
                    if operation.relative:
                        x = (1 - scale) * x + _norms(x) / _norms(noise) * scale * noise
                    else:
                        x = x + scale * noise
                case MemoryAttention():
                    x = _attend(operation, self._array("memory", number), x, computed[number])
        return nn.functional.pad(x, (0, 1)) if self.pipeline.metric == "l2" else x

    def _look_at(self, x: Tensor, centre: Array) -> None:
        """Warn if the first rows are centred already; rows of a compiled graph are not looked
        at.
        """
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if is_traced or x.is_meta:
            return
        if self._first_rows is None:
            self._first_rows = FirstRows(self.pipeline.name, self.modality, centre)
        if self._first_rows.wanted:
            # The transforms of torch.func hide the values of rows
            with suppress(RuntimeError):
                rows = x.detach()[: self._first_rows.wanted].cpu().numpy()
                warning = self._first_rows.add(rows)
                if warning:
                    warnings.warn(warning, stacklevel=2)

    def _array(self, name: str, number: int) -> Any:
        """Return an array or number of an operation: an array as its buffer."""
        operation, _ = self._operations[number]
        return self._buffers.get(f"{name}_{number}", getattr(operation, name))


def _attend(
    operation: MemoryAttention, memory: Tensor, x: Tensor, left_out: Tensor | None
) -> Tensor:
    """Return the rows x (n, d) after a `MemoryAttention`, differentiable.

    Args:
        operation: its settings.
        memory: float32 (m, d).
        x: float32 (n, d).
        left_out: bool (n, m), the rows of the memory that are left out; None for none.
    """
    scores = x @ memory.T  # (n, m)
    # A row of whose item all rows of the memory are
    is_alone = torch.zeros_like(scores[:, :1], dtype=torch.bool)
    if left_out is not None:
        is_alone = left_out.all(dim=1, keepdim=True)
        scores = scores.masked_fill(left_out & ~is_alone, float("-inf"))
    if operation.tau == 0:
        mean = memory[scores.argmax(dim=1)]
    elif operation.neighbours is None or operation.neighbours >= len(memory):
        mean = (scores / operation.tau).softmax(dim=1) @ memory
    else:
        best = scores.topk(operation.neighbours, dim=1)
        weights = (best.values / operation.tau).softmax(dim=1)
        mean = torch.einsum("nk,nkd->nd", weights, memory[best.indices])
    if operation.weight is None:
        return mean
    added = (mean / _norms(mean).clamp_min(_LEAST_NORM)).masked_fill(is_alone, 0)
    return x + operation.weight * added


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return norms
