"""Several processes that train together, as `torchrun` starts them; one process is the plain case of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


def launched() -> bool:
    """Whether this process was started by `torchrun` (or another launcher that sets WORLD_SIZE), with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this process is the one that speaks for all; known without joining them."""
    return int(os.environ.get("RANK", "0")) == 0


def rank() -> int:
    """The number of this process, 0 where there is one."""
    return distributed.get_rank() if _joined() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _joined() else 1


@contextmanager
def joined() -> Iterator[torch.device | None]:
    """Join the other processes, if there are any, while the block runs; gives this process' GPU, or None."""
    if not launched():
        yield None
        return
    gpus = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpus else None
    if device is not None:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def gathered(rows: Tensor) -> Tensor:
    """The rows (k, d) of every process, in the order of the processes: (k * world, d), without gradient."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def add_gradients(parameters: Iterable[Tensor], *, mean: bool = False) -> None:
    """Replace each gradient by its sum, or mean, over the processes."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        if mean:
            parameter.grad /= world()


def _joined() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized())
