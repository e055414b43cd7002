from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools.lists import as_list

IMAGE = Image.new("RGB", (2, 2))
PIXELS = np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize("one", ["a.jpg", Path("a.jpg"), IMAGE, PIXELS])
def test_one_is_a_list_of_one(one: Any) -> None:
    (only,) = as_list(one)
    assert only is one


@pytest.mark.parametrize("several", [["a", "b"], ("a", "b"), {"a": 1, "b": 2}.keys(), iter("ab")])
def test_several_are_a_list(several: Any) -> None:
    assert as_list(several) == ["a", "b"]


def test_none_and_arrays_of_images() -> None:
    assert as_list(None) is None
    assert len(as_list(np.stack([PIXELS] * 3))) == 3
