"""Executors: work in this process, in others of this machine, or on a Ray cluster, by one interface.

with open_executor("ray", address="head:6379") as executor:
    embed_corpus(corpus, "s3://bucket/store", encoder, executor=executor)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import C3Error
from .base import Executor, Report, Tasks, Work, WorkerResources, cores, end_with_parent
from .local import LocalExecutor

__all__ = [
    "EXECUTORS",
    "Executor",
    "LocalExecutor",
    "Report",
    "Tasks",
    "Work",
    "WorkerResources",
    "cores",
    "end_with_parent",
    "open_executor",
]

EXECUTORS = ("local", "ray")


@contextmanager
def open_executor(
    name: str | Executor = "local",
    *,
    devices: Sequence[str] = (),
    threads: int = 1,
    address: str | None = None,
    processes: int | None = None,
    cores: int | None = None,
    gpu: bool = False,
) -> Iterator[Executor]:
    """Open an executor for the length of the block.

    Args:
        name: ``local`` or ``ray``; an executor that is open already is used as it is.
        devices, threads: of `LocalExecutor`.
        address, processes, cores, gpu: of `RayExecutor`.

    Raises:
        MissingExtraError: if Ray is named and not installed.
        UnreachableError: if there is no cluster at the address.
        C3Error: for an unknown name, or options that belong to the other executor.
    """
    if not isinstance(name, str):
        yield name
    elif name == "local":
        if address is not None or processes is not None:
            raise C3Error("--address and --processes are for a cluster.", remedy="Add --executor ray.")
        yield LocalExecutor(devices, threads)
    elif name == "ray":
        from .ray import RayExecutor

        with RayExecutor(address, processes=processes, cores=cores, gpu=gpu) as executor:
            yield executor
    else:
        raise C3Error(f"There is no executor {name!r}.", remedy=f"Use {' or '.join(EXECUTORS)}.")
