"""The step works where only numpy, safetensors and msgspec can be imported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

HEAVY = ("torch", "pyarrow", "open_clip", "bracex", "filelock")


@pytest.fixture(autouse=True, scope="module")
def torch_is_blocked() -> None:
    """None in sys.modules makes every later import of these raise ImportError."""
    for name in HEAVY:
        assert name not in sys.modules, (
            f"{name} is loaded already, so this test would prove nothing"
        )
        sys.modules[name] = None  # type: ignore[assignment]


def test_nearest_captions_without_torch(tmp_path: Path) -> None:
    """Fit, save, load, apply: every image finds its own caption."""
    from nearest_caption import nearest_captions

    from c3tools import preset

    rng = np.random.default_rng(0)
    shared, gap = rng.normal(size=(40, 16)), 3 * rng.normal(size=16)
    images = shared + gap + 0.1 * rng.normal(size=shared.shape)
    texts = shared - gap
    preset("c2-collapse").fit({"image": images, "text": texts}).save(tmp_path)
    captions = [f"caption {i}" for i in range(40)]
    assert nearest_captions(tmp_path, images, texts, captions) == captions


def test_the_block_works() -> None:
    """The test above would fail if anything imported torch."""
    with pytest.raises(ImportError):
        import torch  # noqa: F401
