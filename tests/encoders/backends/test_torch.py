from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from c3tools.encoders.backends.base import ON_CPU, largest_batch
from c3tools.encoders.backends.torch import TorchBackend
from hypothesis import given
from hypothesis import strategies as st

from c3tools.devices import Compute
from c3tools.encoders import Encoder


@given(st.integers(1, 2**34), st.integers(0, 2**40), st.integers(1, 4096))
def test_the_batch_is_the_largest_power_of_two_that_fits(per_input: int, available: int, largest: int) -> None:
    batch = largest_batch(per_input, available, largest)
    assert batch.bit_count() == 1
    assert batch <= largest
    assert batch == 1 or batch * per_input <= available
    assert 2 * batch > largest or 2 * batch * per_input > available


def test_a_cpu_is_not_probed(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(modality: str, n: int) -> None:
        raise AssertionError("probed")

    monkeypatch.setattr(encoder.backend, "run_probe", never)
    size = encoder.backend.batch_size
    assert size("image", 224 * 224) == ON_CPU["image"]
    assert size("text", 352 * 352) == ON_CPU["text"]
    assert size("image", 160 * 160) == 32
    assert size("image", 352 * 352) == 8
    assert size("image", 4000 * 4000) == 1


@pytest.mark.parametrize("device", ["cpu", "mps", "windows"])
def test_a_batch_that_does_not_fit_into_memory_is_run_in_halves(device: str) -> None:
    ran: list[int] = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        ran.append(len(batch))
        if len(batch) > 2 and device == "cpu":
            torch.empty(2**60, dtype=torch.uint8)
        elif len(batch) > 2:
            raise RuntimeError("MPS backend out of memory" if device == "mps" else "not enough memory: you tried to …")
        return batch

    backend = TorchBackend.__new__(TorchBackend)
    backend.compute = Compute("cpu", "fp32")
    backend._forward, backend._limits = {"image": forward}, {}
    batch = torch.arange(7)[:, None]
    assert backend.submit("image", batch).result().tolist() == batch.tolist()
    assert ran == [7, 3, *[1] * 7]


@pytest.mark.parametrize(("per_image", "expected"), [(2**20, 256), (2**26, 128), (2**34, 1)])
def test_on_a_gpu_memory_decides(monkeypatch: pytest.MonkeyPatch, per_image: int, expected: int) -> None:
    """The bookkeeping alone: a card of 16 GiB whose runs take ``per_image`` bytes an image and 1 GiB of weights."""
    ran: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: ran.clear())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30 + ran[0] * per_image)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))
    backend = TorchBackend.__new__(TorchBackend)
    backend.compute = Compute("cuda:0", "fp32")
    monkeypatch.setattr(backend, "run_probe", lambda modality, n: ran.append(n))
    assert backend.batch_size("image", 224 * 224) == expected
