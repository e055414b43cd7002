from __future__ import annotations

import numpy as np
import pytest

from c3tools.float16 import to_float32


def test_every_code_is_decoded_as_numpy_does() -> None:
    codes = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16).reshape(256, 256)
    assert (to_float32(codes).view(np.uint32) == codes.astype(np.float32).view(np.uint32)).all()
    # a view with strides, longer than one block, and an empty one
    assert (to_float32(codes[::2, ::-1]).view(np.uint32) == codes[::2, ::-1].astype(np.float32).view(np.uint32)).all()
    assert to_float32(codes[:0]).shape == (0, 256)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_other_types_are_copied(dtype: type) -> None:
    values = np.array([[1, 2], [3, 4]], dtype=dtype)
    out = to_float32(values)
    assert out.dtype == np.float32
    out[0, 0] = 9
    assert values[0, 0] == 1
