"""Executors: work in this process, in others of this machine, or on a Ray cluster, by one
interface.

with open_executor("ray", address="head:6379") as executor:
    embed_corpus(corpus, "s3://bucket/store", encoder, executor=executor)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ..errors import C3Error
from .local import Executor, Report, Work, cores, end_with_parent
from .starting import default_context, start_undisturbed

__all__ = [
    "Executor",
    "Report",
    "Work",
    "cores",
    "default_context",
    "end_with_parent",
    "open_executor",
    "start_undisturbed",
]


def open_executor(
    name: str | Executor = "local",
    *,
    devices: Sequence[str] = (),
    threads: int = 1,
    **of_cluster: Any,
) -> AbstractContextManager[Executor]:
    """Open an executor for the length of a block.

    Args:
        name: ``local`` or ``ray``; an executor that is open already is used as it is.
        devices, threads: of `Executor`.
        of_cluster: ``address``, ``processes``, ``cores`` and ``gpu`` of `RayExecutor`.

    Raises:
        MissingExtraError: if Ray is named and not installed.
        UnreachableError: if there is no cluster at the address.
        C3Error: if options are given that belong to the other executor.
    """
    if not isinstance(name, str):
        return nullcontext(name)
    if name == "ray":
        from .ray import RayExecutor

        return RayExecutor(**of_cluster)
    if of_cluster.get("address") is not None or of_cluster.get("processes") is not None:
        raise C3Error("--address and --processes are for a cluster.", remedy="Add --executor ray.")
    return nullcontext(Executor(devices, threads))
