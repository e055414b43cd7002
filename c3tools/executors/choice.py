"""An executor by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import C3Error
from .base import Executor
from .local import LocalExecutor

EXECUTORS = ("local", "ray")


@contextmanager
def open_executor(
    name: str = "local",
    *,
    devices: Sequence[str] = (),
    threads: int = 1,
    address: str | None = None,
    processes: int | None = None,
    cores: int | None = None,
    gpu: bool = False,
) -> Iterator[Executor]:
    """An executor that lives as long as the block.

    Args:
        name: ``local`` or ``ray``.
        devices, threads: of `LocalExecutor`.
        address, processes, cores, gpu: of `RayExecutor`.

    Raises:
        MissingExtraError: if Ray is asked for and not installed.
        UnreachableError: if there is no cluster at the address.
        C3Error: for an unknown name, or settings of the one given to the other.
    """
    if name == "local":
        if address is not None or processes is not None:
            raise C3Error("An address and a number of processes belong to a cluster.", remedy="Add --executor ray.")
        yield LocalExecutor(devices, threads)
    elif name == "ray":
        from .ray import RayExecutor

        with RayExecutor(address, processes=processes, cores=cores, gpu=gpu) as executor:
            yield executor
    else:
        raise C3Error(f"Unknown executor {name!r}.", remedy=f"Choose {' or '.join(EXECUTORS)}.")
