"""Decoding float16, exactly as numpy's cast and several times as fast.

numpy converts half precision one element at a time in software, and reading float16 shards is bound by it. Each
of the 65,536 codes is looked up instead, in blocks that stay in the cache.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

_BLOCK = 16384


def to_float32(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """``values`` of any shape and number type as float32, always a new C-contiguous array."""
    if values.dtype != np.float16:
        return np.array(values, dtype=np.float32, order="C")
    codes = np.ascontiguousarray(values).view(np.uint16).reshape(-1)
    table = _decoded()
    out = np.empty(codes.shape, np.float32)
    for start in range(0, len(codes), _BLOCK):
        # every code is a valid index; "wrap" spares the bounds check's temporary
        np.take(table, codes[start : start + _BLOCK], out=out[start : start + _BLOCK], mode="wrap")
    return out.reshape(values.shape)


@cache
def _decoded() -> npt.NDArray[np.float32]:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)
