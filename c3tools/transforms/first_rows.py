"""A help against centring rows twice: the mean of the first rows that a pipeline centres."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..arrays import Array

# Rows whose mean tells, rows after which none are looked at, and the least norm of a mean that may
# not be subtracted twice: below it, that of 100 rows is noise
_FEWEST, _MOST, _LEAST_CENTRE = 100, 2_000, 0.3


class FirstRows:
    """The mean of the first rows of a modality that a pipeline centres, over all calls.

    It is short if the rows were centred before, as those of an export are. This is a help and no
    check: after 2,000 rows, or a warning, no rows are looked at.

    Args:
        name: of the pipeline.
        modality: of the rows.
        centre: what is subtracted, (d,).

    Attributes:
        wanted: number of rows that are still looked at.
    """

    def __init__(self, name: str, modality: str, centre: Array) -> None:
        self.name = name
        self.modality = modality
        self.centre_norm = float(np.linalg.norm(centre))
        self.wanted = _MOST if self.centre_norm > _LEAST_CENTRE else 0
        self._count = 0
        self._total = np.zeros(len(centre))

    def add(self, rows: npt.ArrayLike) -> str | None:
        """Add rows (n, d), as they are before centring; only the first ``wanted`` are used. Return
        a warning if the mean of 100 rows or more is shorter than a fifth of the centre.
        """
        first = np.asarray(rows)[: self.wanted]
        self._total += first.sum(axis=0)
        self._count += len(first)
        self.wanted -= len(first)
        mean_norm = float(np.linalg.norm(self._total)) / max(self._count, 1)
        if self._count < _FEWEST or mean_norm >= self.centre_norm / 5:
            return None
        self.wanted = 0
        return (
            f"The first {self._count:,} {self.modality} rows seem to be centred already: their "
            f"mean has norm {mean_norm:.2f}, and {self.name} subtracts a mean of norm "
            f"{self.centre_norm:.2f}. The rows of an export need only what "
            "Pipeline.for_rows(EXPORT) or TransformModule.for_rows(EXPORT, MODALITY) has."
        )


def seem_centred(mean: Array, n: int) -> bool:
    """Return whether n rows of length 1 with this mean were probably centred before; the mean of
    fewer than 100 rows may be short by chance.
    """
    # The mean of n centred rows of length 1 has a squared length of about 1/n
    return n >= _FEWEST and float(mean @ mean) < 0.05**2 + 2 / n
