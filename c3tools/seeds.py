"""The one place that turns seeds into generators.

Noise is keyed by (seed, epoch, key): the same item gets the same noise in the same epoch of the same run,
whatever the order of the rows and however many workers draw it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_WORD = 2**64 - 1
_ZEROS = (0, 0, 0, 0)
_START = {"bit_generator": "Philox", "buffer": _ZEROS, "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}


def generator(seed: int, *scope: object) -> np.random.Generator:
    """A generator that depends on ``seed`` and on ``scope`` (any printable values) alone."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, *scope)))


def keyed_normal(
    seed: int, epoch: int, keys: Sequence[str], dim: int, dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[np.float32]:
    """Standard normal noise (len(keys), dim), each row drawn from (seed, epoch, its key)."""
    noise = np.empty((len(keys), dim), dtype=np.float32)
    # The numbers of `generator(seed, epoch, key)` for each key, from one generator that is set back to its start
    # with another key: what does not change between rows is done once.
    bits = np.random.Philox(key=0)
    draw = np.random.Generator(bits)
    state: Any = {**_START}
    prefix = _hash(seed, epoch, "")
    for row, key in enumerate(keys):
        hashed = prefix.copy()
        hashed.update(key.encode())
        digest = int.from_bytes(hashed.digest(), "little")
        state["state"] = {"counter": _ZEROS, "key": (digest & _WORD, digest >> 64)}
        bits.state = state
        draw.standard_normal(out=noise[row], dtype=np.float32)
    return noise.astype(dtype, copy=False)


def stable_fraction(key: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on ``key`` and ``salt`` alone, the same on every machine."""
    return _digest(salt, key) / 2**128


def _digest(*parts: object) -> int:
    return int.from_bytes(_hash(*parts).digest(), "little")


def _hash(*parts: object) -> hashlib.blake2b:
    return hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=16)
