"""Mergeable first and second moments of embeddings, and rows at unit length.

The statistics behind Collapse and most of the geometry: count, mean and scatter (the centred sum of
outer products), kept in float64 whatever the dtype of the rows, and merged exactly by the pairwise
update of Chan, Golub and LeVeque (1983). A float16 sum of 200,000 ones is inf; these sums are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
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
_BLOCK_ROWS = 8192


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
    """Count, mean and scatter of a set of d-dimensional rows.

    Attributes:
        n: number of rows.
        mean: float64 (d,), the mean of the rows; zeros when ``n == 0``.
        scatter: float64 (d, d), ``sum_i (x_i - mean)(x_i - mean)^T``.
    """

    n: int
    mean: Array
    scatter: Array

    def __repr__(self) -> str:
        norm = float(np.linalg.norm(self.mean))
        return f"Moments(n={self.n}, dim={self.dim}, norm of the mean {norm:.4g})"

    @classmethod
    def empty(cls, dim: int) -> Moments:
        """Return the moments of no rows, the neutral element of ``merge``."""
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def from_rows(cls, rows: npt.ArrayLike) -> Moments:
        """Compute the moments of ``rows`` (n, d), of any float dtype, in blocks of bounded
        memory.
        """
        x = np.asarray(rows)
        total = cls.empty(x.shape[1])
        for start in range(0, len(x), _BLOCK_ROWS):
            block = x[start : start + _BLOCK_ROWS].astype(np.float64)
            mean = block.mean(axis=0)
            block -= mean
            total = total.merge(cls(len(block), mean, block.T @ block))
        return total

    @classmethod
    def merge_all(cls, parts: Iterable[Moments], dim: int) -> Moments:
        """Merge any number of moments."""
        return reduce(cls.merge, parts, cls.empty(dim))

    @staticmethod
    def merge_groups(groups: dict[str, Moments], more: Mapping[str, Moments]) -> None:
        """Merge named moments (of splits, or of modalities) into the moments of the same name in
        ``groups``.
        """
        for name, moments in more.items():
            groups[name] = groups[name].merge(moments) if name in groups else moments

    @property
    def dim(self) -> int:
        """The dimension d of the rows."""
        return len(self.mean)

    @property
    def covariance(self) -> Array:
        """The population covariance (d, d): ``scatter / n``."""
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

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of rows (Chan et al., 1983).

        Raises:
            ValueError: if the dimensions differ.
        """
        if self.dim != other.dim:
            raise ValueError(f"cannot merge moments of dimensions {self.dim} and {other.dim}")
        if other.n == 0:
            return self
        if self.n == 0:
            return other
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        scatter = np.outer(delta, delta * (self.n * other.n / n))
        scatter += self.scatter
        scatter += other.scatter
        return Moments(n, mean, scatter)


def save_moments(path: Path, groups: Mapping[str, Moments], metadata: Mapping[str, object]) -> None:
    """Write named moments (of splits, or of modalities) to one safetensors file."""
    path.write_bytes(moments_content(groups, metadata))


def moments_content(groups: Mapping[str, Moments], metadata: Mapping[str, object]) -> bytes:
    """Return the content of a file of `save_moments`.

    Only the upper triangle of each scatter matrix is stored. ``metadata`` is kept as JSON in the
    header.
    """
    tensors: dict[str, Array] = {}
    for name, moments in sorted(groups.items()):
        tensors[f"{name}/mean"] = np.ascontiguousarray(moments.mean)
        tensors[f"{name}/scatter"] = moments.scatter[np.triu_indices(moments.dim)]
    header = {"groups": {name: m.n for name, m in sorted(groups.items())}, **metadata}
    return bytes(save(tensors, metadata={"c3": json.dumps(header, sort_keys=True)}))


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
            mean = tensors[f"{name}/mean"].astype(np.float64)
            upper = np.zeros((len(mean), len(mean)))
            upper[np.triu_indices(len(mean))] = tensors[f"{name}/scatter"]
            groups[name] = Moments(int(n), mean, upper + np.triu(upper, 1).T)
        return groups, header
    except FileNotFoundError:
        raise StoreError(f"The moments file {path} does not exist.") from None
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is not a readable moments file ({error}).",
            remedy="Copy it again, or rerun the command that made it, such as `c3 embed`, `c3 "
            "export` or `c3 means save`.",
        ) from error
