"""A Ray cluster for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from c3tools.executors.ray import RayExecutor


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayExecutor]:
    """A cluster of this machine alone, with two workers that stay for all tests."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with RayExecutor("local", processes=2) as executor:
        yield executor
