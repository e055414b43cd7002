"""The processes of a run: this one, or several that `torchrun` starts and that train together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from ..devices import Compute, pick


def world() -> int:
    """Return the number of processes, as `torchrun` (or another launcher) says it in WORLD_SIZE."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1")))


def rank() -> int:
    """Return the number of this process; 0 reports and writes for all of them."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


@contextmanager
def joined(device: str | None, precision: str) -> Iterator[Compute]:
    """Join the other processes, if there are any, and yield device and precision.

    Args:
        device, precision: see `c3tools.devices.pick`; one of several processes takes the GPU of its LOCAL_RANK.
    """
    compute = pick(device, precision)
    if world() == 1:
        yield compute
        return
    gpus = torch.cuda.is_available()
    if gpus:
        compute = Compute(f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}", compute.precision)
        torch.cuda.set_device(compute.device)
    distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        yield compute
    finally:
        distributed.destroy_process_group()


def from_main(value: bool) -> bool:
    """Return what the main process passes, in every process."""
    shared = [value]
    if world() > 1:
        distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (k, d) of every process in the order of the processes: (k * world, d), without gradient."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def add_gradients(parameters: Iterable[Tensor], *, mean: bool = False) -> None:
    """Replace each gradient by its sum, or mean, over the processes."""
    for parameter in parameters if world() > 1 else ():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        if mean:
            parameter.grad /= world()
