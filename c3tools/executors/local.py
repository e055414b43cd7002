"""Work on this machine: in this process, in threads of it, or in a process for each device."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any

from ..errors import C3Error
from .base import Report, Result, Task, Tasks, Work, WorkerResources, cores, end_with_parent


class LocalExecutor:
    """An executor on this machine.

    Args:
        devices: with two or more, each has a process, and tasks are dealt out in turn.
        threads: number of tasks done at a time in this process, with fewer than two devices.
    """

    def __init__(self, devices: Sequence[str] = (), threads: int = 1) -> None:
        self._devices = tuple(devices)
        self._threads = threads

    def run(self, work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
        """Do all tasks; see `Executor.run`."""
        if len(self._devices) > 1 and len(tasks):
            return _in_processes(self._devices[: len(tasks)], work, tasks, report)
        if self._threads < 2:
            return list(work.run((tasks[position] for position in range(len(tasks))), report))
        with ThreadPoolExecutor(self._threads) as pool:
            futures = [pool.submit(lambda at: list(work.run([tasks[at]], report)), n) for n in range(len(tasks))]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [result for future in futures for result in future.result()]


def _in_processes(devices: Sequence[str], work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
    context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    running: dict[Connection, str] = {}
    processes = []
    results: dict[int, Result] = {}
    try:
        for number, device in enumerate(devices):
            own, other = context.Pipe(duplex=False)
            resources = WorkerResources(device, max(1, cores() // len(devices)))
            positions = range(number, len(tasks), len(devices))
            processes.append(context.Process(target=_serve, args=(resources, work, tasks, positions, other)))
            processes[-1].start()
            other.close()
            running[own] = device
        while running:
            for end in wait_for_any(list(running)):
                assert isinstance(end, Connection)
                try:
                    kind, value = end.recv()
                except (EOFError, ConnectionError):
                    raise C3Error(
                        f"The process for {running[end]} was killed.",
                        remedy="Finished work is kept. Run the same command again to continue.",
                    ) from None
                if kind == "progress":
                    report(*value)
                elif kind == "failed":
                    raise C3Error(f"{running[end]}: {value[0]}", remedy=value[1])
                elif kind == "result":
                    results[value[0]] = value[1]
                else:
                    del running[end]
        return [results[position] for position in range(len(tasks))]
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()


def _serve(
    resources: WorkerResources, work: Work[Any, Any], tasks: Tasks[Any], positions: range, end: Connection
) -> None:
    """Do the tasks at these positions in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        work.load(resources)
        results = work.run((tasks[at] for at in positions), lambda *counts: end.send(("progress", counts)))
        for at, result in zip(positions, results, strict=True):
            end.send(("result", (at, result)))
        end.send(("end", None))
    except C3Error as error:
        end.send(("failed", (error.message, error.remedy)))
    except Exception as error:
        end.send(("failed", ("".join(traceback.format_exception(error)), None)))
