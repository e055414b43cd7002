"""GPUs for tests: one that exists on paper, and a real one where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.fake_cuda import FakeCuda

HAS_CARD = torch.cuda.is_available()


@pytest.fixture
def shadow() -> Iterator[FakeCuda]:
    """A machine with two GPUs that exist on paper, for tests of what these are asked to do."""
    with FakeCuda(gpus=2) as card:
        yield card


@pytest.fixture(params=["shadow", "card"] if HAS_CARD else ["shadow"])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device of a GPU, for tests of results: ``cuda:1`` of two on paper, or a real one."""
    if request.param == "card":
        yield "cuda:0"
    else:
        with FakeCuda(gpus=2):
            yield "cuda:1"
