"""Primitive operations that every step is made of, in numpy.

A fitted step describes itself as a short tuple of these, so that one interpreter per array library
is enough: this module applies them to numpy arrays, `torch_module` to torch tensors. All work in
float32, row by row: no row depends on another, so a block may be cut anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import Array, Indices, Matrix
from ..errors import TransformError
from ..moments import Moments

_SCORE_CELLS = 1 << 24
_LEAST_NORM = np.float32(1e-30)


@dataclass(frozen=True, eq=False)
class Unit:
    """x / |x|."""


@dataclass(frozen=True, eq=False)
class Affine:
    """(x - centre) * scale @ matrix + offset; what is None is left out.

    Attributes:
        centre: float64 (d,).
        scale: a number, or float64 (d,).
        matrix: float64 (d, d), applied from the right.
        offset: float64 (d,).
    """

    centre: Array | None = None
    scale: float | Array | None = None
    matrix: Array | None = None
    offset: Array | None = None

    def moments_after(self, moments: Moments) -> Moments:
        """Return the exact moments of the mapped rows, from the moments of the rows."""
        mean = moments.mean
        scatter = moments.scatter
        if self.centre is not None:
            mean = mean - self.centre
        if self.scale is not None:
            factor = np.broadcast_to(self.scale, mean.shape)
            mean = mean * factor
            scatter = scatter * np.outer(factor, factor)
        if self.matrix is not None:
            mean = mean @ self.matrix
            scatter = self.matrix.T @ scatter @ self.matrix
        if self.offset is not None:
            mean = mean + self.offset
        return Moments.of(moments.n, mean, scatter)


@dataclass(frozen=True, eq=False)
class Noise:
    """x + scale z @ matrix, z standard normal; if ``relative``, (1 - scale) x + scale |x| z / |z|.

    Attributes:
        scale: a number.
        matrix: float64 (d, d), or None for the identity.
        relative: mix with a random direction instead, in proportion to the vector.
    """

    scale: float
    matrix: Array | None = None
    relative: bool = False


@dataclass(frozen=True, eq=False)
class MemoryAttention:
    """The mean m of the memory rows m_i, weighted by softmax(x . m_i / tau); with a weight x +
    weight m / |m|.

    Rows of the memory that are of x's own item are left out; if there are no others, x stays as it
    is.

    Attributes:
        memory: float32 (m, d), unit rows.
        tau: temperature; 0 takes the nearest row.
        neighbours: weigh only this many nearest rows; None weighs all.
        weight: length of what is added to x; None replaces x.
        items: int64 (m,), a hash of each memory row's item; None if these are not known.
    """

    memory: Matrix
    tau: float
    neighbours: int | None = None
    weight: float | None = None
    items: Indices | None = None


Operation = Unit | Affine | Noise | MemoryAttention


def apply(
    operation: Operation,
    x: Matrix,
    noise: Matrix | None = None,
    item_hashes: Indices | None = None,
) -> Matrix:
    """Apply one operation to ``x`` (n, d) float32, which may be overwritten.

    Args:
        operation: what to do.
        x: float32 (n, d), owned by the caller; the result may be the same array.
        noise: float32 (n, d) standard normal, for `Noise`; may be overwritten.
        item_hashes: int64 (n,), a hash of each row's item; None leaves out no rows of a memory.

    Raises:
        TransformError: if a row of norm 0 is to be normalised.
    """
    match operation:
        case Unit():
            return _unit(x)
        case Affine(centre, scale, matrix, offset):
            if centre is not None:
                x -= centre.astype(np.float32)
            if scale is not None:
                x *= np.asarray(scale, dtype=np.float32)
            if matrix is not None:
                x = x @ matrix.astype(np.float32)
            if offset is not None:
                x += offset.astype(np.float32)
        case Noise(scale, matrix, relative) if noise is not None:
            if relative:
                noise *= (scale * _row_norms(x) / _row_norms(noise))[:, None]
                x *= np.float32(1 - scale)
            else:
                noise *= np.float32(scale)
            x += noise if matrix is None else noise @ matrix.astype(np.float32)
        case MemoryAttention(memory):
            # In blocks, as scores with all rows of the memory take room
            block_rows = max(1, _SCORE_CELLS // len(memory))
            for start in range(0, len(x), block_rows):
                block = slice(start, start + block_rows)
                block_hashes = None if item_hashes is None else item_hashes[block]
                _attend(operation, x[block], block_hashes)
        case _:
            raise ValueError(f"{type(operation).__name__} needs noise")
    return x


def _row_norms(x: Matrix) -> Matrix:
    """Return the Euclidean norms (n,) of the rows of ``x`` (n, d)."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", x, x)))


def _unit(x: Matrix) -> Matrix:
    norms = _row_norms(x)
    is_lost = (norms < 1e-15) | ~np.isfinite(norms)  # their squares are lost in float32
    norms[is_lost] = np.linalg.norm(x[is_lost].astype(np.float64), axis=1)
    if not norms.all():
        raise TransformError(
            f"Row {norms.argmin()} has norm 0 and cannot be normalised.",
            remedy="Remove zero vectors, or fit the means on more rows.",
        )
    x /= norms[:, None]
    return x


def _attend(operation: MemoryAttention, x: Matrix, item_hashes: Indices | None) -> None:
    """Change the rows x (b, d) in place; ``item_hashes`` (b,) are of their items."""
    memory = operation.memory
    scores = x @ memory.T  # (b, m)
    # A row of whose item all rows of the memory are
    is_alone = np.zeros(len(x), bool)
    if item_hashes is not None:
        is_left_out = item_hashes[:, None] == operation.items
        is_alone = is_left_out.all(axis=1)
        scores[is_left_out] = -np.inf
        scores[is_alone] = 0
    mean = _weighted_mean(scores, operation)
    if operation.weight is None:
        x[:] = mean
        return
    mean[is_alone] = 0
    mean *= (operation.weight / np.maximum(_row_norms(mean), _LEAST_NORM))[:, None]
    x += mean


def _weighted_mean(scores: Matrix, operation: MemoryAttention) -> Matrix:
    """Return the means (b, d) of the memory's rows, weighted by the softmax of ``scores / tau``.

    Args:
        scores: float32 (b, m), which may be overwritten.
        operation: has the memory (m, d).
    """
    memory = operation.memory
    if operation.tau == 0:
        return np.asarray(memory[scores.argmax(axis=1)])
    nearest = None
    count = operation.neighbours
    if count is not None and count < len(memory):
        nearest = np.argpartition(scores, -count, axis=1)[:, -count:]
        scores = np.take_along_axis(scores, nearest, axis=1)
    scores -= scores.max(axis=1, keepdims=True)
    scores /= np.float32(operation.tau)
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(axis=1, keepdims=True)
    if nearest is None:
        return np.asarray(weights @ memory)
    return np.asarray(np.einsum("bk,bkd->bd", weights, memory[nearest]))


def as_rows(x: npt.ArrayLike, name: str = "embeddings") -> Matrix:
    """Return a new float32 (n, d) array of ``x``: an array, a list of lists, or a torch tensor on
    any device.

    Raises:
        TransformError: if ``x`` does not have two dimensions, is not of numbers, or one of them is
            not finite.
    """
    # A tensor: it may need a gradient, or be of bfloat16, which numpy has not
    if hasattr(x, "detach"):
        x = x.detach().cpu().float().numpy()
    try:
        source = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise TransformError(f"{name} must be numbers of shape (n, d) ({error}).") from error
    if source.ndim != 2 or source.dtype.kind not in "fiu":
        raise TransformError(
            f"{name} must be numbers of shape (n, d), not {source.dtype} of shape {source.shape}.",
            remedy="Pass a single vector v as v[None, :].",
        )
    with np.errstate(all="ignore"):
        rows = np.array(source, np.float32, order="C")
        # One pass without a temporary: a NaN or an infinity survives every sum
        if np.isfinite(rows.sum()):
            return rows
    bad_rows = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad_rows):
        raise TransformError(
            f"{len(bad_rows)} of {len(rows)} rows contain NaN or infinity; the first is row "
            f"{bad_rows[0]}.",
            remedy="Remove these rows, or embed them again.",
        )
    return rows
