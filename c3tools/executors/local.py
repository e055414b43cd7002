"""Work on this machine: in this process, in threads of it, or in a process for each device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.context import SpawnProcess
from typing import Any

from ..errors import C3Error
from .base import Message, Report, Result, Task, Tasks, Work, WorkerResources, cores, failure


class LocalExecutor:
    """Work on this machine.

    Args:
        devices: with two or more, a process for each, which tasks are dealt out to in turn.
        threads: tasks done at the same time in this process, where there are fewer than two devices.
    """

    def __init__(self, devices: Sequence[str] = (), threads: int = 1) -> None:
        self._devices = tuple(devices)
        self._threads = threads

    def run(self, work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
        """See `Executor.run`."""
        if len(self._devices) > 1 and len(tasks):
            return _in_processes(self._devices[: len(tasks)], work, tasks, report)
        if self._threads > 1:
            return _in_threads(self._threads, work, tasks, report)
        return list(work.run((tasks[position] for position in range(len(tasks))), report))


class _StoppedError(Exception):
    """Another task failed, or the user interrupted: this one is given up."""


def _in_threads(count: int, work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
    """The first failure stops the others at their next report."""
    stop = threading.Event()

    def report_unless_stopped(done: int, failed: int) -> None:
        if stop.is_set():
            raise _StoppedError
        report(done, failed)

    def run(position: int) -> Result:
        report_unless_stopped(0, 0)
        try:
            (result,) = work.run([tasks[position]], report_unless_stopped)
        except BaseException:
            stop.set()
            raise
        return result

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, position) for position in range(len(tasks))]
        try:
            wait(futures)
        except BaseException:
            stop.set()
            raise
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, _StoppedError)), errors[0])
    return [future.result() for future in futures]


@dataclass(frozen=True)
class _Request:
    """What a process is started with."""

    place: WorkerResources
    work: Work[Any, Any]
    tasks: dict[int, Any]


def _in_processes(devices: Sequence[str], work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
    context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    processes: list[SpawnProcess] = []
    ends: dict[Connection, str] = {}
    try:
        for number, device in enumerate(devices):
            dealt = {position: tasks[position] for position in range(number, len(tasks), len(devices))}
            request = _Request(WorkerResources(device, max(1, cores() // len(devices))), work, dealt)
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(request, sending))
            process.start()
            sending.close()
            processes.append(process)
            ends[receiving] = device
        results = _listen(ends, report)
        return [results[position] for position in range(len(tasks))]
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()


def _listen(ends: dict[Connection, str], report: Report) -> dict[int, Any]:
    results: dict[int, Any] = {}
    speaking = set(ends)
    while speaking:
        for end in wait_for_any(speaking):
            assert isinstance(end, Connection)
            try:
                message: Message = end.recv()
            except EOFError:
                raise C3Error(
                    f"The process for {ends[end]} was killed.",
                    remedy="What was finished is kept. Run the same command again: it continues there.",
                ) from None
            if message.kind == "progress":
                report(message.count, message.failed)
            elif message.kind == "result":
                results[message.position] = message.result
            elif message.kind == "end":
                speaking.discard(end)
            else:
                raise C3Error(f"{ends[end]}: {message.text}", remedy=message.remedy)
    return results


def _serve(request: _Request, connection: Connection) -> None:
    """Body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        request.work.load(request.place)
        results = request.work.run(
            request.tasks.values(), lambda count, failed: connection.send(Message("progress", -1, count, failed))
        )
        for position, result in zip(request.tasks, results, strict=True):
            connection.send(Message("result", position, result=result))
        connection.send(Message("end"))
    except Exception as error:
        connection.send(failure(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
