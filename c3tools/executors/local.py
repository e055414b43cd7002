"""Work on this machine: in this process, in threads of it, or in a process for each device."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.context import SpawnProcess
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
        if self._threads > 1:
            return _in_threads(self._threads, work, tasks, report)
        return list(work.run((tasks[position] for position in range(len(tasks))), report))


class _StoppedError(Exception):
    """Another task failed or the user interrupted, so this task is stopped."""


def _in_threads(count: int, work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
    """Run tasks in threads; the first failure stops the others at their next report."""
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


def _in_processes(devices: Sequence[str], work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
    """Give each process the next of its tasks when it asks for one."""
    context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    processes: dict[Connection, tuple[str, SpawnProcess, Iterator[int]]] = {}  # device, process, its tasks
    results: dict[int, Result] = {}
    try:
        for number, device in enumerate(devices):
            resources = WorkerResources(device, max(1, cores() // len(devices)))
            own, other = context.Pipe()
            process = context.Process(target=_serve, args=(resources, work, other))
            process.start()
            other.close()
            processes[own] = device, process, iter(range(number, len(tasks), len(devices)))
        running = set(processes)
        while running:
            for end in wait_for_any(running):
                assert isinstance(end, Connection)
                device, _, positions = processes[end]
                try:
                    kind, value, remedy = end.recv()
                    if kind == "free":
                        position = next(positions, None)
                        end.send(None if position is None else (position, tasks[position]))
                except (EOFError, ConnectionError):
                    raise C3Error(
                        f"The process for {device} was killed.",
                        remedy="Finished work is kept. Run the same command again to continue.",
                    ) from None
                if kind == "progress":
                    report(*value)
                elif kind == "result":
                    results[value[0]] = value[1]
                elif kind == "end":
                    running.discard(end)
                elif kind == "failed":
                    raise C3Error(f"{device}: {value}", remedy=remedy)
        return [results[position] for position in range(len(tasks))]
    except BaseException:
        for _, process, _ in processes.values():
            process.terminate()
        raise
    finally:
        for _, process, _ in processes.values():
            process.join()


def _serve(resources: WorkerResources, work: Work[Any, Any], connection: Connection) -> None:
    """Do tasks in a separate process, which asks for each task when it is ready for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    threading.Thread(target=end_with_parent, daemon=True).start()
    positions: deque[int] = deque()

    def send(kind: str, value: object = None, remedy: str | None = None) -> None:
        connection.send((kind, value, remedy))

    def tasks() -> Iterator[Any]:
        while True:
            send("free")
            given = connection.recv()
            if given is None:
                return
            positions.append(given[0])
            yield given[1]

    try:
        work.load(resources)
        for result in work.run(tasks(), lambda done, failed: send("progress", (done, failed))):
            send("result", (positions.popleft(), result))
        send("end")
    except C3Error as error:
        send("failed", error.message, error.remedy)
    except Exception as error:
        send("failed", "".join(traceback.format_exception(error)))
