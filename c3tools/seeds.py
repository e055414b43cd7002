"""The one place that turns seeds into generators.

Noise is keyed by (seed, epoch, key): the same item gets the same noise in the same epoch of the same run,
whatever the order of the rows and however many workers draw it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_WORD = 2**64 - 1


def generator(seed: int, *scope: object) -> np.random.Generator:
    """A generator that depends on ``seed`` and on ``scope`` (any printable values) alone."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, *scope)))


def keyed_normal(
    seed: int, epoch: int, keys: Sequence[str], dim: int, dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[np.float32]:
    """Standard normal noise (len(keys), dim), each row drawn from (seed, epoch, its key)."""
    noise = np.empty((len(keys), dim), dtype=np.float32)
    # One generator whose key is set for each row: the numbers of `generator(seed, epoch, key)` at half the cost.
    bits = np.random.Philox(key=0)
    draw = np.random.Generator(bits)
    state = bits.state
    for row, key in enumerate(keys):
        digest = _digest(seed, epoch, key)
        state["state"]["key"] = np.array([digest & _WORD, digest >> 64], dtype=np.uint64)
        bits.state = state
        draw.standard_normal(out=noise[row], dtype=np.float32)
    return noise.astype(dtype, copy=False)


def stable_fraction(key: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on ``key`` and ``salt`` alone, the same on every machine."""
    return _digest(salt, key) / 2**128


def _digest(*parts: object) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
