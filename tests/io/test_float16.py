from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from c3tools.io.float16 import to_float16, to_float32


def test_every_code_is_decoded_as_numpy_does() -> None:
    codes = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).reshape(256, 256)
    assert (to_float32(codes).view(np.uint32) == codes.astype(np.float32).view(np.uint32)).all()
    # a view with strides, longer than one block, and an empty one
    assert (to_float32(codes[::2, ::-1]).view(np.uint32) == codes[::2, ::-1].astype(np.float32).view(np.uint32)).all()
    assert to_float32(codes[:0]).shape == (0, 256)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_other_types_are_copied(dtype: type) -> None:
    values: npt.NDArray[Any] = np.array([[1, 2], [3, 4]], dtype=dtype)
    out = to_float32(values)
    assert out.dtype == np.float32
    out[0, 0] = 9
    assert values[0, 0] == 1


def assert_encoded_as_numpy_does(values: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    got = to_float16(values)
    assert got.dtype == np.float16
    number = ~np.isnan(expected)
    assert (np.isnan(got) == ~number).all()
    assert (got.view(np.uint16)[number] == expected.view(np.uint16)[number]).all()


def test_every_code_and_every_tie_is_encoded_as_numpy_does() -> None:
    codes = to_float32(np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16))
    finite = np.sort(codes[np.isfinite(codes)])
    assert_encoded_as_numpy_does(codes)
    assert_encoded_as_numpy_does(finite)
    halfway = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    for values in (halfway, np.nextafter(halfway, np.float32(9)), np.nextafter(halfway, np.float32(-9))):
        assert_encoded_as_numpy_does(values)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-5, 0.04, 1.0, 3e4, 1e30])
def test_random_numbers_are_encoded_as_numpy_does(scale: float) -> None:
    rng = np.random.default_rng(0)
    assert_encoded_as_numpy_does((rng.standard_normal((50, 1000)) * scale).astype(np.float32)[:, ::-1])
    assert_encoded_as_numpy_does(rng.integers(0, 2**32, size=20_000, dtype=np.uint32).view(np.float32))


def test_encoding_other_types_and_shapes() -> None:
    assert (to_float16(np.array([0.1, 2.0])) == np.array([0.1, 2.0], dtype=np.float16)).all()
    assert to_float16(np.empty((0, 4), np.float32)).shape == (0, 4)
