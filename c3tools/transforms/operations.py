"""Primitive operations that every step is made of, in numpy.

A fitted step describes itself as a short tuple of these, so that one interpreter per array library is enough:
this module applies them to numpy arrays, `torch_module` to torch tensors. All work in float32, row by row:
no row depends on another, so a block may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import Array, Indices, Matrix
from ..errors import TransformError
from ..moments import Moments

Search = Callable[[Matrix, int], tuple[Matrix, Indices]]  # queries (n, d), k -> scores and row numbers, both (n, k)
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
        mean, scatter = moments.mean, moments.scatter
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
        return Moments(moments.n, mean, scatter)


@dataclass(frozen=True, eq=False)
class Noise:
    """x + z * scale @ matrix, z standard normal; ``matrix`` float64 (d, d) or None."""

    scale: float
    matrix: Array | None = None


@dataclass(frozen=True, eq=False)
class MixNoise:
    """(1 - mix) x + mix |x| z / |z|, z standard normal."""

    mix: float


@dataclass(frozen=True, eq=False)
class MemoryAttention:
    """Mean of the memory rows m_i, weighted by softmax(x . m_i / tau); tau = 0 takes the nearest one.

    Attributes:
        memory: float32 (m, d), unit rows.
        tau: temperature.
        neighbours: weigh only this many nearest rows; None weighs all.
        search: finds them; None compares with every row.
    """

    memory: Matrix
    tau: float
    neighbours: int | None = None
    search: Search | None = None


@dataclass(frozen=True, eq=False)
class MixMemory:
    """x + weight m / |m|, m the mean of the nearest memory rows m_i, weighted by softmax(x . m_i / tau).

    Rows of the memory that are of x's own item are left out; if there are no others, x stays as it is.

    Attributes:
        memory: float32 (m, d), unit rows.
        tau: temperature; 0 takes the nearest row.
        neighbours: how many of the nearest rows are weighed.
        weight: length of what is added.
        items: int64 (m,), a hash of each memory row's item; None if these are not known.
    """

    memory: Matrix
    tau: float
    neighbours: int
    weight: float
    items: Indices | None = None


Operation = Unit | Affine | Noise | MixNoise | MemoryAttention | MixMemory


def apply(operation: Operation, x: Matrix, noise: Matrix | None = None, own: Indices | None = None) -> Matrix:
    """Apply one operation to ``x`` (n, d) float32, which may be overwritten.

    Args:
        operation: what to do.
        x: float32 (n, d), owned by the caller; the result may be the same array.
        noise: float32 (n, d) standard normal, for the two noise operations; may be overwritten.
        own: int64 (n,), a hash of each row's item, for `MixMemory`; None leaves out no rows of the memory.

    Raises:
        TransformError: if a row of norm 0 is to be normalised.
    """
    match operation:
        case Unit():
            return _unit(x)
        case Affine():
            return _affine(operation, x)
        case Noise() if noise is not None:
            noise *= np.float32(operation.scale)
            x += noise if operation.matrix is None else noise @ operation.matrix.astype(np.float32)
            return x
        case MixNoise() if noise is not None:
            noise *= (operation.mix * row_norms(x) / row_norms(noise))[:, None]
            x *= np.float32(1 - operation.mix)
            x += noise
            return x
        case MemoryAttention():
            return _attend(operation, x)
        case MixMemory():
            return _mix(operation, x, own)
        case _:
            raise ValueError(f"{type(operation).__name__} needs noise")


def row_norms(x: Matrix) -> Matrix:
    """Return the Euclidean norms (n,) of the rows of ``x`` (n, d)."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", x, x)))


def _unit(x: Matrix) -> Matrix:
    norms = row_norms(x)
    # Squares of numbers below 1e-19 are lost in float32: measure such rows again after scaling them.
    for row in np.flatnonzero((norms < 1e-15) | ~np.isfinite(norms)):
        peak = np.abs(x[row]).max()
        if peak == 0:
            raise TransformError(
                f"Row {row} has norm 0 and cannot be normalised.",
                remedy="Leave out zero vectors, or fit the means on more rows.",
            )
        x[row] /= peak
        norms[row] = row_norms(x[row : row + 1])[0]
    x /= norms[:, None]
    return x


def _affine(operation: Affine, x: Matrix) -> Matrix:
    if operation.centre is not None:
        x -= operation.centre.astype(np.float32)
    if operation.scale is not None:
        x *= np.asarray(operation.scale, dtype=np.float32)
    if operation.matrix is not None:
        x = x @ operation.matrix.astype(np.float32)
    if operation.offset is not None:
        x += operation.offset.astype(np.float32)
    return x


def _attend(operation: MemoryAttention, x: Matrix) -> Matrix:
    memory = operation.memory
    if operation.search is not None:
        count = 1 if operation.tau == 0 else min(operation.neighbours or 1, len(memory))
        scores, nearest = operation.search(x, count)
        return _weighted_mean(scores, memory[nearest], operation.tau) if operation.tau else memory[nearest[:, 0]]
    for rows in _blocks(len(x), len(memory)):
        x[rows] = _mean_of_nearest(x[rows] @ memory.T, memory, operation.tau, operation.neighbours)
    return x


def _mix(operation: MixMemory, x: Matrix, own: Indices | None) -> Matrix:
    memory = operation.memory
    for rows in _blocks(len(x), len(memory)):
        scores = x[rows] @ memory.T  # (b, m)
        alone = np.zeros(len(scores), bool)  # whose own rows are the whole memory
        if own is not None:
            left_out = own[rows, None] == operation.items
            alone = left_out.all(axis=1)
            scores[left_out] = -np.inf
            scores[alone] = 0
        mean = _mean_of_nearest(scores, memory, operation.tau, operation.neighbours)
        mean[alone] = 0
        mean *= (operation.weight / np.maximum(row_norms(mean), _LEAST_NORM))[:, None]
        x[rows] += mean
    return x


def _blocks(n: int, m: int) -> list[slice]:
    """Return slices of n rows whose scores with m rows of a memory take little room."""
    step = max(1, _SCORE_CELLS // m)
    return [slice(start, start + step) for start in range(0, n, step)]


def _mean_of_nearest(scores: Matrix, memory: Matrix, tau: float, neighbours: int | None) -> Matrix:
    """Return the mean (b, d) of the memory rows with the highest ``scores`` (b, m), which may be overwritten."""
    if tau == 0:
        return np.asarray(memory[scores.argmax(axis=1)])
    if neighbours is None or neighbours >= len(memory):
        return np.asarray(_softmax(scores, tau) @ memory)
    nearest = np.argpartition(scores, -neighbours, axis=1)[:, -neighbours:]
    return _weighted_mean(np.take_along_axis(scores, nearest, axis=1), memory[nearest], tau)


def _weighted_mean(scores: Matrix, rows: Matrix, tau: float) -> Matrix:
    """Return the mean (b, d) of ``rows`` (b, k, d), weighted by the softmax of ``scores`` (b, k) over tau."""
    return np.asarray(np.einsum("bk,bkd->bd", _softmax(scores, tau), rows))


def _softmax(scores: Matrix, tau: float) -> Matrix:
    scores -= scores.max(axis=1, keepdims=True)
    scores /= np.float32(tau)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def check_finite(x: Matrix) -> None:
    """Refuse NaN and infinity, and name the first row that has one.

    Raises:
        TransformError: if any element is not finite.
    """
    # One pass without a temporary: a NaN or an infinity survives every sum.
    with np.errstate(all="ignore"):
        if np.isfinite(x.sum()):
            return
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise TransformError(
            f"{len(bad)} of {len(x)} rows contain NaN or infinity; the first is row {bad[0]}.",
            remedy="Leave these rows out, or embed them again.",
        )


def as_rows(x: npt.ArrayLike, name: str = "embeddings") -> Matrix:
    """Return a new float32 (n, d) array of ``x``: an array, a list of lists, or a torch tensor on any device.

    Raises:
        TransformError: if ``x`` does not have two dimensions, or is not of numbers.
    """
    if hasattr(x, "detach"):  # a tensor: it may need a gradient, or be of bfloat16, which numpy has not
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
    with np.errstate(over="ignore"):  # what becomes infinite here is reported by check_finite
        return np.array(source, np.float32, order="C")
