"""What contrastive training draws from: the inputs of two sides, and which rows of them are pairs.

A batch is drawn from a permutation of all pairs that depends on (seed, epoch) alone, so that a run that was killed
continues exactly, and every process of several draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ConnectError
from ..seeds import generator

Indices = npt.NDArray[np.int64]


class Inputs(Protocol):
    """The rows of one side: features, photos, or texts."""

    def __len__(self) -> int:
        """Number of rows."""

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """What the tower takes for these rows; with an epoch, as augmented in it."""


class FeatureInputs:
    """Frozen features as inputs.

    Args:
        values: (n, e), any float dtype; may be a memory map.
    """

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.values)

    def rows(self, numbers: Indices, epoch: int | None = None) -> Tensor:
        """Features, float32 (n, e); the same in every epoch."""
        return torch.from_numpy(self.values[numbers].astype(np.float32))


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows of two sides.

    Attributes:
        first: inputs with one row per item (images).
        second: inputs with any number of rows per item (captions).
        first_rows: int64 (p,), the row of ``first`` in each pair.
        second_rows: int64 (p,), the row of ``second``.
        first_ids: int64 (rows of first,), equal where the content is.
        second_ids: int64 (rows of second,).
    """

    first: Inputs
    second: Inputs
    first_rows: Indices
    second_rows: Indices
    first_ids: Indices
    second_ids: Indices

    def __post_init__(self) -> None:
        if len(self.first_rows) != len(self.second_rows):
            raise ConnectError("Every pair has a row on either side.")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.first_rows)

    @property
    def distinct(self) -> tuple[int, int]:
        """How many contents there are on either side of the pairs."""
        return (
            len(np.unique(self.first_ids[self.first_rows])),
            len(np.unique(self.second_ids[self.second_rows])),
        )

    @cached_property
    def items(self) -> Indices:
        """Rows of ``first`` that are in a pair, ascending."""
        return np.unique(self.first_rows)

    def ids(self, numbers: Indices) -> tuple[Tensor, Tensor]:
        """The contents of the pairs ``numbers`` on either side."""
        return (
            torch.from_numpy(self.first_ids[self.first_rows[numbers]]),
            torch.from_numpy(self.second_ids[self.second_rows[numbers]]),
        )

    def batches(self, size: int, seed: int, epoch: int) -> list[Indices]:
        """Numbers of pairs, in full batches; what is left over of an epoch's order is not used in it."""
        order = generator(seed, "pairs", epoch).permutation(len(self)).astype(np.int64)
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]


def ids_of_rows(rows: npt.NDArray[Any]) -> Indices:
    """A number per row (n, e), the same for rows of the same bytes."""
    return ids_of([hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest() for row in rows])


def ids_of(values: Sequence[object]) -> Indices:
    """A number per value, the same for equal values."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
