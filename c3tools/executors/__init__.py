"""Where work is done: in this process, in others of this machine, or on a Ray cluster; one interface.

with open_executor("ray", address="head:6379") as executor:
    embed(corpus, "s3://bucket/store", encoder, executor=executor)
"""

from __future__ import annotations

from .base import Executor, Report, Tasks, Work, WorkerResources, cores
from .choice import EXECUTORS, open_executor
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
    "open_executor",
]
