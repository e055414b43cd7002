"""The processes of a run: this one, or several that `torchrun` starts and that train together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ..devices import Compute, pick
from ..reporter import SILENT, Reporter


@dataclass(frozen=True)
class RunContext:
    """Device, precision and reporter of a run; of several processes, only the main one reports and writes."""

    compute: Compute
    reporter: Reporter
    is_main_process: bool


def is_main_process() -> bool:
    """Return whether this process reports and writes for all of them; this is known before they are joined."""
    return int(os.environ.get("RANK", "0")) == 0


def rank() -> int:
    """Return the number of this process, 0 if it is the only one."""
    return distributed.get_rank() if _joined() else 0


def world() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if _joined() else 1


@contextmanager
def join_processes(
    device: str | None = None, precision: str = "auto", reporter: Reporter = SILENT
) -> Iterator[RunContext]:
    """Join the processes that `torchrun` (or another launcher that sets WORLD_SIZE) started, if there are several.

    Args:
        device, precision: see `c3tools.devices.pick`; one of several processes takes the GPU of its LOCAL_RANK.
        reporter: used by the main process.

    Raises:
        C3Error: if there is no such device, or it cannot compute in this precision.
    """
    compute = pick(device, precision)
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield RunContext(compute, reporter, is_main_process=True)
        return
    gpus = torch.cuda.is_available()
    if gpus:
        compute = Compute(f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}", compute.precision)
        torch.cuda.set_device(compute.device)
    distributed.init_process_group("nccl" if gpus else "gloo")
    try:
        main = rank() == 0
        yield RunContext(compute, reporter if main else SILENT, main)
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
