"""Conversions between float16 and float32, exactly as numpy's casts and faster.

numpy converts half precision one element at a time in software, and reading and writing float16 shards is bound by
it. Decoding looks up each of the 65,536 codes; encoding rounds the bits of whole blocks (to nearest, ties to even).
Both go through blocks that stay in the cache.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 16384
_SIGN = np.uint32(0x80000000)
_LARGEST = np.uint32(0x477FEFFF)  # the largest float32 that rounds to a finite float16
_SMALLEST_NORMAL = np.uint32(113 << 23)  # 2^-14
_REBIAS = np.uint32((112 << 23) - 0xFFF)  # between the exponents' biases, less all but the last bit of one half
_ALIGNING = np.float32(0.5)  # added to a number below 2^-14, it moves the bits to keep to the end of the mantissa

Bits = npt.NDArray[np.uint32]


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


def to_float16(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float16]:
    """``values`` of any shape and float type as float16, always a new C-contiguous array."""
    if values.dtype != np.float32:
        return np.array(values, dtype=np.float16, order="C")
    source = np.ascontiguousarray(values).reshape(-1)
    out = np.empty(source.shape, np.uint16)
    scratch = [np.empty(min(_BLOCK, len(source)), np.uint32) for _ in range(3)]
    for start in range(0, len(source), _BLOCK):
        bits = source[start : start + _BLOCK].view(np.uint32)
        magnitude, work, rounding = (array[: len(bits)] for array in scratch)
        _encode(bits, out[start : start + _BLOCK], magnitude, work, rounding)
    return out.view(np.float16).reshape(values.shape)


def _encode(bits: Bits, out: npt.NDArray[np.uint16], magnitude: Bits, work: Bits, rounding: Bits) -> None:
    np.bitwise_and(bits, ~_SIGN, out=magnitude)
    if magnitude.max() > _LARGEST:  # infinity, NaN, or too large: rare, left to numpy
        with np.errstate(over="ignore", invalid="ignore"):
            out[:] = bits.view(np.float32).astype(np.float16).view(np.uint16)
        return
    np.right_shift(magnitude, np.uint32(13), out=rounding)
    np.bitwise_and(rounding, np.uint32(1), out=rounding)
    np.subtract(magnitude, _REBIAS, out=work)
    np.add(work, rounding, out=work)
    np.right_shift(work, np.uint32(13), out=work)
    small = np.flatnonzero(magnitude < _SMALLEST_NORMAL)
    if len(small):
        shifted = magnitude[small].view(np.float32) + _ALIGNING
        work[small] = shifted.view(np.uint32) - _ALIGNING.view(np.uint32)
    np.bitwise_and(bits, _SIGN, out=rounding)
    np.right_shift(rounding, np.uint32(16), out=rounding)
    np.bitwise_or(work, rounding, out=work)
    np.copyto(out, work, casting="unsafe")


@cache
def _decoded() -> npt.NDArray[np.float32]:
    return np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).astype(np.float32)
