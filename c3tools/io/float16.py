"""Conversions between float16 and float32: the same values as numpy's casts, but faster.

numpy converts half precision one element at a time in software, and reading and writing float16 shards is bound by
it. Decoding looks up each of the 65,536 codes. Encoding rounds the bits of whole blocks (to nearest, ties to even).
Both work on blocks that stay in the cache.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 65536
_HIGH_HALF = 1 if sys.byteorder == "little" else 0  # where the upper 16 bits of 32 stand
_SIGN, _MAGNITUDE = np.uint16(0x8000), np.uint16(0x7FFF)
_LARGE = np.uint16(0x477F)  # upper half of the first float32 that rounds to infinity
_SMALLEST_NORMAL = np.uint16(113 << 7)  # upper half of 2^-14
_REBIAS = np.uint32(2**32 + 0xFFF - (112 << 23))  # to the other exponent's bias, and all but the last bit of one half
_ALIGNING = np.float32(0.5)  # added to a number below 2^-14, it moves the bits to keep to the end of the mantissa

Bits = npt.NDArray[np.uint32]


def to_float32(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Return ``values`` of any shape and number type as float32, always a new C-contiguous array."""
    if values.dtype != np.float16:
        return np.array(values, dtype=np.float32, order="C")
    codes = np.ascontiguousarray(values).view(np.uint16).reshape(-1)
    table = _decoded()
    out = np.empty(codes.shape, np.float32)
    for start in range(0, len(codes), _BLOCK):
        # every code is a valid index; "wrap" spares the bounds check's temporary
        np.take(table, codes[start : start + _BLOCK], out=out[start : start + _BLOCK], mode="wrap")
    return out.reshape(values.shape)


def to_float16(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float16]:
    """Return ``values`` of any shape and float type as float16, always a new C-contiguous array."""
    if values.dtype != np.float32:
        return np.array(values, dtype=np.float16, order="C")
    source = np.ascontiguousarray(values).reshape(-1)
    out = np.empty(source.shape, np.uint16)
    scratch = np.empty(min(_BLOCK, len(source)), np.uint32)
    for start in range(0, len(source), _BLOCK):
        bits = source[start : start + _BLOCK].view(np.uint32)
        _encode(bits, out[start : start + _BLOCK], scratch[: len(bits)])
    return out.view(np.float16).reshape(values.shape)


def _encode(bits: Bits, out: npt.NDArray[np.uint16], work: Bits) -> None:
    """Write the float16 codes of float32 ``bits`` (n,) to ``out``.

    Signs and special cases are found in the upper halves, which are half the work.
    """
    upper = bits.view(np.uint16)[_HIGH_HALF::2]
    magnitude = upper & _MAGNITUDE
    if magnitude.max() >= _LARGE:  # infinity, NaN, or too large, or nearly so: rare, left to numpy
        with np.errstate(over="ignore", invalid="ignore"):
            out[:] = bits.view(np.float32).astype(np.float16).view(np.uint16)
        return
    np.right_shift(bits, np.uint32(13), out=work)
    np.bitwise_and(work, np.uint32(1), out=work)
    np.add(work, bits, out=work)
    np.add(work, _REBIAS, out=work)
    np.right_shift(work, np.uint32(13), out=work)
    np.copyto(out, work, casting="unsafe")
    small = np.flatnonzero(magnitude < _SMALLEST_NORMAL)
    if len(small):
        shifted = np.abs(bits.view(np.float32)[small]) + _ALIGNING
        out[small] = shifted.view(np.uint32) - _ALIGNING.view(np.uint32)
    np.bitwise_and(upper, _SIGN, out=magnitude)
    np.bitwise_and(out, _MAGNITUDE, out=out)
    np.bitwise_or(out, magnitude, out=out)


@cache
def _decoded() -> npt.NDArray[np.float32]:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)
