"""The one place that turns seeds into generators.

Noise is keyed by (seed, epoch, key): the same item gets the same noise in the same epoch of the same run,
whatever the order of the rows and however many workers draw it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def generator(seed: int, *scope: object) -> np.random.Generator:
    """A generator that depends on ``seed`` and on ``scope`` (any printable values) alone."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, *scope)))


def keyed_normal(
    seed: int, epoch: int, keys: Sequence[str], dim: int, dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[np.float32]:
    """Standard normal noise (len(keys), dim), each row drawn from (seed, epoch, its key)."""
    noise = np.empty((len(keys), dim), dtype=dtype)
    for row, key in enumerate(keys):
        noise[row] = generator(seed, epoch, key).standard_normal(dim, dtype=np.float32)
    return noise


def stable_fraction(key: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on ``key`` and ``salt`` alone, the same on every machine."""
    return _digest(salt, key) / 2**128


def _digest(*parts: object) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
