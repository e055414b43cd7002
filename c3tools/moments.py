"""Exact first and second moments of embeddings, and rows at unit length.

The statistics behind Collapse and most of the geometry: count, mean and covariance. A stored value
is float16, and so an integer times 2**-24; a product of two is an integer times 2**-48. The sums of
both are kept as integers, so that adding, subtracting and merging are exact: any order, any
partition and any history give the same bits. This is reproducible summation (Demmel and Nguyen
2015, ReproBLAS) with a superaccumulator (Kulisch 2013).

The products of a block of rows are summed by one matrix product in float64. It is exact, whatever
the order and the BLAS, if for each column the sum of x**2 is below 32:

1. Each product x_i x_j is an integer times 2**-48.
2. The sum of |x_i x_j| over any of the rows is at most the root of (sum x_i**2)(sum x_j**2)
   (Cauchy and Schwarz), and so below 32.
3. So each partial sum is an integer below 32 * 2**48 = 2**53, in units of 2**-48.
4. float64 holds every such integer, so no addition rounds, with or without FMA.
5. A shift of the rows by a multiple of 2**-11 near their mean leaves them multiples of 2**-24.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save

from .arrays import Array
from .errors import StoreError
from .io.locations import read_all

Float = TypeVar("Float", bound=np.floating[Any])
Integers = npt.NDArray[np.int64]
_BLOCK_ROWS = 8192
_FEW_ROWS = 1024  # to halve such a block costs more than to split its values
_MOST_SQUARES = 31.0  # of a column of a block; the proof needs 32, and this sum is rounded
_TOO_LARGE = 2**16  # float16 ends below


def unit_rows(rows: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Return the rows (n, d), float32 or float64, divided by their L2 norms; rows of norm 0 stay
    0.
    """
    norms = np.empty((len(rows), 1), rows.dtype)
    for start in range(0, len(rows), _BLOCK_ROWS):  # NumPy copies the rows for it
        block = slice(start, start + _BLOCK_ROWS)
        norms[block] = np.linalg.norm(rows[block], axis=1, keepdims=True)
    norms[norms == 0] = 1
    return np.asarray(rows / norms)


@dataclass(frozen=True, eq=False, repr=False)
class Moments:
    """Count, sum and sum of outer products of a set of d-dimensional rows, as integers.

    Moments of disjoint sets of rows are added, and those of a part subtracted, without rounding.
    Rows of float32 and float64 are rounded to multiples of 2**-24 first: by at most 3e-8 a value.

    Attributes:
        n: number of rows.
        sums: int64 (d,), the sum of the rows in units of 2**-24.
        high: int64 (d, d), see ``low``.
        low: int64 (d, d), from 0 to 2**32 - 1. The sum of ``x x^T`` is ``high * 2**32 + low``, in
            units of 2**-48.
    """

    n: int
    sums: Integers
    high: Integers
    low: Integers

    def __repr__(self) -> str:
        norm = float(np.linalg.norm(self.mean))
        return f"Moments(n={self.n}, dim={self.dim}, norm of the mean {norm:.4g})"

    @classmethod
    def empty(cls, dim: int) -> Moments:
        """Return the moments of no rows, the neutral element of ``+``."""
        matrix = np.zeros((dim, dim), np.int64)
        return cls(0, np.zeros(dim, np.int64), matrix, matrix)

    @classmethod
    def from_rows(cls, rows: npt.ArrayLike) -> Moments:
        """Compute the moments of ``rows`` (n, d), of any float dtype, in blocks of bounded
        memory.

        Raises:
            StoreError: if a value is not finite, or 65,536 or more.
        """
        x = np.asarray(rows)
        total = cls.empty(x.shape[1])
        for start in range(0, len(x), _BLOCK_ROWS):
            block = x[start : start + _BLOCK_ROWS].astype(np.float64)
            if not max(-block.min(initial=0), block.max(initial=0)) < _TOO_LARGE:  # NaN too
                raise StoreError(
                    f"Moments are kept for finite values below {_TOO_LARGE:,}, and one of these "
                    "rows has another.",
                    remedy="Normalise the rows to norm 1.",
                )
            if x.dtype != np.float16:
                block = np.rint(block * 2.0**24) / 2**24
            total += cls._of_block(block)
        return total

    @classmethod
    def _of_block(cls, x: Array) -> Moments:
        """Return the moments of a few rows, float64 multiples of 2**-24."""
        n, dim = x.shape
        shift = np.rint(x.mean(axis=0) * 2.0**11)
        y = x - shift / 2**11
        largest = float(np.einsum("nd,nd->d", y, y).max(initial=0))
        is_slow = n > _FEW_ROWS and _MOST_SQUARES < largest < 8 * _MOST_SQUARES
        is_too_large = largest > 2**36 or n * float(np.abs(shift).max(initial=0)) ** 2 > 2**61
        if is_slow or is_too_large:
            return cls._of_block(x[: n // 2]) + cls._of_block(x[n // 2 :])

        high, low = np.zeros((2, dim, dim), np.int64)
        if largest <= _MOST_SQUARES:
            _add(high, low, _integers(y.T @ y, 48), 0)
        else:
            # Of a multiple of 2**-8 and a rest below 2**-8, the three products are exact
            coarse = np.rint(y * 2**8) / 2**8
            fine = y - coarse
            crossed = _integers(coarse.T @ fine, 32)
            _add(high, low, _integers(coarse.T @ coarse, 16), 32)
            _add(high, low, crossed + crossed.T, 16)
            _add(high, low, _integers(fine.T @ fine, 48), 0)
        sums = _integers(y.sum(axis=0), 24)
        _shift(high, low, n, shift.astype(np.int64), sums)
        return cls(n, sums + n * (shift.astype(np.int64) << 13), *_carried(high, low))

    @classmethod
    def of(cls, n: int, mean: Array, scatter: Array) -> Moments:
        """Return the moments that are nearest to these of ``n`` rows: their mean (d,), and the
        centred sum of their outer products (d, d), both float64.
        """
        sums = np.rint(n * mean * 2.0**24).astype(np.int64)
        shift, rest = _mean_and_rest(n, sums)
        of_rest = rest / 2**24
        units = np.rint((scatter + np.outer(of_rest, of_rest / max(n, 1))) * 2.0**48)
        high = np.floor(units / 2**32)
        low = (units - high * 2**32).astype(np.int64)
        high = high.astype(np.int64)
        _shift(high, low, n, shift, rest)
        return cls(n, sums, *_carried(high, low))

    @classmethod
    def total(cls, parts: Iterable[Moments], dim: int) -> Moments:
        """Return the moments of any number of disjoint sets of rows together."""
        return sum(parts, cls.empty(dim))

    @staticmethod
    def add_groups(groups: dict[str, Moments], more: Mapping[str, Moments]) -> None:
        """Add named moments (of splits, or of modalities) to those of the same name in
        ``groups``.
        """
        for name, moments in more.items():
            groups[name] = groups[name] + moments if name in groups else moments

    @staticmethod
    def subtract_groups(groups: dict[str, Moments], parts: Mapping[str, Moments]) -> None:
        """Subtract named moments from those of the same name in ``groups``, and remove those of no
        rows.
        """
        for name, moments in parts.items():
            groups[name] -= moments
            if groups[name].n == 0:
                del groups[name]

    @property
    def dim(self) -> int:
        """The dimension d of the rows."""
        return len(self.sums)

    @cached_property
    def mean(self) -> Array:
        """The mean of the rows, float64 (d,); zeros when ``n == 0``."""
        return np.asarray(self.sums / 2**24 / max(self.n, 1))

    @cached_property
    def scatter(self) -> Array:
        """``sum_i (x_i - mean)(x_i - mean)^T``, float64 (d, d)."""
        # About a point near the mean the sum is exact, and nothing is lost when it is rounded
        shift, rest = _mean_and_rest(self.n, self.sums)
        high, low = self.high.copy(), self.low.copy()
        _shift(high, low, -self.n, shift, -rest)
        of_rest = rest / 2**24
        centred = (high * 2.0**32 + low) / 2**48
        return np.asarray(centred - np.outer(of_rest, of_rest / max(self.n, 1)))

    @cached_property
    def covariance(self) -> Array:
        """The population covariance, float64 (d, d): ``scatter / n``."""
        return self.scatter / max(self.n, 1)

    @property
    def mean_squared_norm(self) -> float:
        """The mean of ``|x_i|^2``: the trace of the population covariance and ``|mean|^2``."""
        return float(np.trace(self.covariance) + self.mean @ self.mean)

    @property
    def of_unit_rows(self) -> bool:
        """Return True if the mean squared norm is within 0.01 of 1; rows of float16 and bfloat16
        are within 0.004.
        """
        return self.n == 0 or abs(self.mean_squared_norm - 1) <= 0.01

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows.

        Raises:
            ValueError: if the dimensions differ.
        """
        self._check_dim(other)
        matrices = _carried(self.high + other.high, self.low + other.low)
        return Moments(self.n + other.n, self.sums + other.sums, *matrices)

    def __sub__(self, part: Moments) -> Moments:
        """Return the moments of the rows without a part of them.

        Raises:
            ValueError: if the dimensions differ.
        """
        self._check_dim(part)
        matrices = _carried(self.high - part.high, self.low - part.low)
        return Moments(self.n - part.n, self.sums - part.sums, *matrices)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Moments)
            and self.n == other.n
            and np.array_equal(self.sums, other.sums)
            and np.array_equal(self.high, other.high)
            and np.array_equal(self.low, other.low)
        )

    __hash__ = None  # type: ignore[assignment]

    def _check_dim(self, other: Moments) -> None:
        if self.dim != other.dim:
            raise ValueError(f"cannot merge moments of dimensions {self.dim} and {other.dim}")


def _integers(values: Array, bits: int) -> Integers:
    """Return values that are integers times ``2**-bits``, below ``2**53`` of them."""
    return np.asarray(values * 2.0**bits).astype(np.int64)


def _add(high: Integers, low: Integers, values: Integers, bits: int) -> None:
    """Add ``values * 2**bits`` to ``high * 2**32 + low``, in place; at most 32 bits."""
    low_bits = 32 - bits
    high += values >> low_bits
    low += (values & ((1 << low_bits) - 1)) << bits


def _carried(high: Integers, low: Integers) -> tuple[Integers, Integers]:
    """Return the same integers with ``low`` from 0 to 2**32 - 1."""
    return high + (low >> 32), low & (2**32 - 1)


def _mean_and_rest(n: int, sums: Integers) -> tuple[Integers, Integers]:
    """Return the mean in units of 2**-11, and the rest of the sums in units of 2**-24."""
    mean = np.rint(sums / (max(n, 1) * 2**13)).astype(np.int64)
    if n * int(np.abs(mean).max(initial=0)) ** 2 >= 2**62:
        raise StoreError(
            f"The moments of {n:,} rows with a mean of such length leave the range that is kept.",
            remedy="Normalise the rows to norm 1.",
        )
    return mean, sums - n * (mean << 13)


def _shift(high: Integers, low: Integers, n: int, shift: Integers, sums: Integers) -> None:
    """Add the shift (d,), in units of 2**-11, to ``n`` rows: to their outer products, in place.

    Args:
        sums: of the rows before, in units of 2**-24.
    """
    crossed = np.outer(shift, sums)
    _add(high, low, crossed + crossed.T, 13)
    _add(high, low, n * np.outer(shift, shift), 26)


def save_moments(path: Path, groups: Mapping[str, Moments], metadata: Mapping[str, object]) -> None:
    """Write named moments (of splits, or of modalities) to one safetensors file."""
    path.write_bytes(moments_content(groups, metadata))


def moments_content(groups: Mapping[str, Moments], metadata: Mapping[str, object]) -> bytes:
    """Return the content of a file of `save_moments`.

    Only the upper triangle of each matrix is stored. ``metadata`` is kept as JSON in the header.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, moments in sorted(groups.items()):
        upper = np.triu_indices(moments.dim)
        tensors[f"{name}/sums"] = moments.sums
        tensors[f"{name}/high"] = moments.high[upper]
        tensors[f"{name}/low"] = moments.low[upper].astype(np.uint32)
    header = {"groups": {name: m.n for name, m in sorted(groups.items())}, **metadata}
    return bytes(save(tensors, metadata={"c3": json.dumps(header, sort_keys=True)}))


def _symmetric(upper: npt.NDArray[Any], dim: int) -> npt.NDArray[Any]:
    """Return the symmetric matrix (d, d) of an upper triangle."""
    matrix = np.zeros((dim, dim), upper.dtype)
    matrix[np.triu_indices(dim)] = upper
    return matrix + np.triu(matrix, 1).T


def load_moments(path: Path) -> tuple[dict[str, Moments], dict[str, Any]]:
    """Read a file of `save_moments`: the named moments and the metadata.

    Raises:
        StoreError: if the file is missing, damaged, or not a moments file.
    """
    try:
        content = read_all(path)
        tensors = load_tensors(content)
        # The header of a safetensors file: its length in 8 bytes, then JSON
        header_end = 8 + int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8:header_end])["__metadata__"]
        header = json.loads(metadata["c3"])
        groups = {}
        for name, n in header.pop("groups").items():
            if f"{name}/sums" in tensors:
                sums = tensors[f"{name}/sums"]
                high = _symmetric(tensors[f"{name}/high"], len(sums))
                low = _symmetric(tensors[f"{name}/low"].astype(np.int64), len(sums))
                groups[name] = Moments(int(n), sums, high, low)
            else:  # of an older version, in float64
                mean = tensors[f"{name}/mean"]
                scatter = _symmetric(tensors[f"{name}/scatter"], len(mean))
                groups[name] = Moments.of(int(n), mean, scatter)
        return groups, header
    except FileNotFoundError:
        raise StoreError(f"The moments file {path} does not exist.") from None
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is not a readable moments file ({error}).",
            remedy="Copy it again, or rerun the command that made it, such as `c3 embed`, `c3 "
            "export` or `c3 means save`.",
        ) from error
