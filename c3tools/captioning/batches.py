"""Length-bucketed batches: captions of like length together, so that almost nothing is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..seeds import generator

_BATCHES_PER_BUCKET = 32


def length_bucketed(
    lengths: Sequence[int] | npt.NDArray[np.int64], batch_size: int, *, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Split rows into batches of like length, in an order that depends on (seed, epoch) alone.

    Rows are shuffled, sorted by length within buckets of 32 batches, cut, and the batches are shuffled: every
    epoch mixes rows anew, and each row occurs exactly once.

    Args:
        lengths: length of each row in tokens.
        batch_size: rows per batch; the last batch of a bucket may be smaller.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        int64 arrays of row numbers, one per batch.
    """
    rng = generator(seed, "batches", epoch)
    measured = np.asarray(lengths, dtype=np.int64)
    order = rng.permutation(len(measured))
    batches = []
    bucket = batch_size * _BATCHES_PER_BUCKET
    for start in range(0, len(order), bucket):
        rows = order[start : start + bucket]
        rows = rows[np.argsort(measured[rows], kind="stable")]
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
