"""The shadow itself refuses what a GPU refuses, and shows races."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from c3tools.errors import is_out_of_memory
from tests.fake_cuda import FakeCuda, ShadowTensor

pytestmark = pytest.mark.cuda


def test_tensors_of_two_devices_do_not_meet(gpu: str) -> None:
    on_gpu = torch.ones(3, device=gpu)
    assert (on_gpu.is_cuda, str(on_gpu.device)) == (True, gpu)
    row = torch.zeros(1, dtype=torch.int64, device=gpu)
    refused: list[Callable[[], object]] = [
        lambda: on_gpu + torch.ones(3),
        lambda: torch.ones(3)[row],
        lambda: on_gpu.to("cuda:9"),
        lambda: torch.randn(3, device=gpu, generator=torch.Generator()),
        lambda: nn.functional.linear(on_gpu, torch.ones(2, 3)),
        lambda: nn.Linear(3, 2)(on_gpu),
        lambda: nn.MultiheadAttention(4, 2).to(gpu)(*3 * [torch.ones(2, 4)]),
    ]
    for operation in refused:
        with pytest.raises(RuntimeError):
            operation()
    reads: list[Callable[[], object]] = [on_gpu.numpy, lambda: np.asarray(on_gpu)]
    for read in reads:
        with pytest.raises(TypeError, match="numpy"):
            read()
    assert (on_gpu + 1 * torch.tensor(2.0)).tolist() == [3, 3, 3]  # a number may be on the CPU
    assert on_gpu.cpu().numpy().sum() == float(on_gpu.sum()) == 3


def test_gpus_of_one_machine_do_not_meet(shadow: FakeCuda) -> None:
    with pytest.raises(RuntimeError, match="cuda:0 and cuda:1"):
        torch.ones(3, device="cuda") + torch.ones(3, device="cuda:1")


def test_a_module_is_trained_as_on_the_cpu(gpu: str) -> None:
    torch.manual_seed(0)
    on_cpu = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    on_gpu = copy.deepcopy(on_cpu).to(gpu)
    x = torch.randn(5, 4)
    for network, inputs in ((on_cpu, x), (on_gpu, x.to(gpu))):
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            loss: Any = network(inputs).square().sum()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    for expected, weight in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        torch.testing.assert_close(weight.detach().cpu(), expected.detach(), atol=1e-4, rtol=1e-4)


def test_waits_copies_and_memory_are_logged(shadow: FakeCuda) -> None:
    x = torch.arange(6.0).to("cuda")
    assert not shadow.waits()
    assert [entry.nbytes for entry in shadow.pageable_copies()] == [24]
    for read, what in (
        (x.tolist, "tolist"),
        (x.sum().item, "item"),
        (lambda: bool(x.any()), "bool"),
        (lambda: x[x > 2], "index by a mask"),
        (x.cpu, "copy to host"),
        (torch.cuda.synchronize, "synchronize"),
    ):
        shadow.log.clear()
        read()
        assert [entry.what for entry in shadow.waits()] == [what]
    with FakeCuda(largest=1000), pytest.raises(torch.OutOfMemoryError) as error:
        torch.zeros(300, device="cuda")
    assert is_out_of_memory(error.value)


def test_races_with_the_host_are_shown(shadow: FakeCuda) -> None:
    x = torch.ones(4).to("cuda")
    host = torch.empty(4, pin_memory=True)
    host.copy_(x, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    assert not (host == 1).any()  # nothing has waited yet
    done.synchronize()
    assert (host == 1).all()

    y = host.to("cuda", non_blocking=True)
    host.fill_(2)
    with pytest.raises(AssertionError, match="pinned memory was written to"):
        torch.cuda.synchronize()
    assert isinstance(y, ShadowTensor)
