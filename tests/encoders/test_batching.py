from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c3tools.encoders.batching import ON_CPU, find_batch_size, fitting_batch


@given(st.integers(1, 2**34), st.integers(0, 2**40), st.integers(1, 4096))
def test_the_batch_is_the_largest_power_of_two_that_fits(per_input: int, room: int, largest: int) -> None:
    batch = fitting_batch(per_input, room, largest)
    assert batch.bit_count() == 1
    assert batch <= largest
    assert batch == 1 or batch * per_input <= room
    assert 2 * batch > largest or 2 * batch * per_input > room


def test_a_cpu_is_not_probed() -> None:
    def never(modality: str, n: int) -> None:
        raise AssertionError("probed")

    assert find_batch_size("image", torch.device("cpu"), never) == ON_CPU["image"]
    assert find_batch_size("text", torch.device("cpu"), never, 352 * 352) == ON_CPU["text"]
    assert find_batch_size("image", torch.device("cpu"), never, 160 * 160) == 32
    assert find_batch_size("image", torch.device("cpu"), never, 352 * 352) == 8
    assert find_batch_size("image", torch.device("cpu"), never, 4000 * 4000) == 1


@pytest.mark.parametrize(("per_image", "expected"), [(2**20, 256), (2**26, 128), (2**34, 1)])
def test_on_a_gpu_memory_decides(monkeypatch: pytest.MonkeyPatch, per_image: int, expected: int) -> None:
    """The bookkeeping alone: a card of 16 GiB whose runs take ``per_image`` bytes an image and 1 GiB of weights."""
    ran: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: ran.clear())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30 + ran[0] * per_image)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))
    size = find_batch_size("image", torch.device("cuda:0"), lambda modality, n: ran.append(n))
    assert size == expected
