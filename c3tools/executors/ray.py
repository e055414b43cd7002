"""A Ray cluster: worker processes get one task after another, and are replaced if they are lost."""

from __future__ import annotations

import logging
import os
import re
import socket
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple

from .. import __version__
from ..errors import C3Error, MissingExtraError, UnreachableError
from .base import Message, Report, Result, Task, Tasks, Work, WorkerResources, failure_message

ATTEMPTS = 3  # at one task, or at starting workers
ANSWER_TIMEOUT = 5.0  # seconds for a cluster to answer
WORKER_TIMEOUT = 600.0  # seconds without any worker: clusters that grow on demand take minutes
STRAGGLER_FACTOR = 3.0  # a task that takes so many times as long as the others is done by an idle worker too,
STRAGGLER_SECONDS = 30.0  # but not before so many seconds
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # else what Ray says of lost workers goes to standard output
}
_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)/?")
# The beginning of HTTP/2, and its empty settings: a gRPC server, such as Ray's, answers with its own
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4


class RayExecutor:
    """Workers on a Ray cluster; a context manager that joins the cluster and leaves it.

    Inputs and outputs have to be where all its machines see them: in shared folders of the same path, or at URLs.

    Args:
        address: ``host:port``, ``ray://host:port``, ``auto`` or ``local``; None for that in RAY_ADDRESS, else the
            cluster that runs on this machine, else a new one of this machine alone.
        processes: number of workers; None for as many as fit.
        cores: CPU cores of each; None for a machine's, shared among its GPUs where each worker has one.
        gpu: whether each worker has a GPU of its own.
    """

    def __init__(
        self, address: str | None = None, *, processes: int | None = None, cores: int | None = None, gpu: bool = False
    ) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._wanted = (processes, cores)
        self._gpu = gpu
        self._joined = False
        self._workers: list[_Worker] = []

    def __enter__(self) -> RayExecutor:
        """Join the cluster.

        Raises:
            MissingExtraError: if Ray is not installed.
            UnreachableError: if there is no cluster at the address.
            C3Error: if the cluster has not what workers need.
        """
        ray = _ray()
        if not ray.is_initialized():
            _join(self._address)
            self._joined = True
        try:
            self._allocation = allocate(ray.nodes(), *self._wanted, gpu=self._gpu)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, and the cluster if it was started here."""
        self._leave()

    def run(self, work: Work[Task, Result], tasks: Tasks[Task], report: Report) -> list[Result]:
        """Do all tasks; see `Executor.run`. Workers stay for the next call, with what they have loaded."""
        run = _Run(self._workers, self._allocation.processes, self._start_worker, work, tasks, report)
        try:
            return run.complete()
        finally:
            for worker in [worker for worker in self._workers if worker.position is not None]:
                worker.end()
                self._workers.remove(worker)

    def _start_worker(self) -> _Worker:
        ray = _ray()
        options = {
            "num_cpus": self._allocation.cores,
            "num_gpus": int(self._gpu),
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        resources = WorkerResources("cuda" if self._gpu else "cpu", max(1, int(self._allocation.cores)))
        process = ray.remote(_Process).options(**options).remote(resources)
        return _Worker(process, process.start.remote())

    def _leave(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        if self._joined:
            _ray().shutdown()
            self._joined = False


class WorkerAllocation(NamedTuple):
    """Workers that a cluster has room for.

    Attributes:
        processes: how many.
        cores: CPU cores of each; a fraction if there are more workers than cores.
    """

    processes: int
    cores: float


def allocate(
    nodes: Sequence[Mapping[str, Any]], processes: int | None, cores: int | None, *, gpu: bool
) -> WorkerAllocation:
    """Return how many workers of how many cores fit on these machines.

    Args:
        nodes: as `ray.nodes` returns them.
        processes, cores, gpu: see `RayExecutor`.

    Raises:
        C3Error: if there are no GPUs, or no CPU cores, to give to workers.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [(int(m.get("CPU", 0)), int(m.get("GPU", 0))) for m in machines]
    machines = [(cpus, gpus) for cpus, gpus in machines if cpus and (gpus or not gpu)]
    if not machines:
        what = "GPUs" if gpu else "CPU cores"
        raise C3Error(f"The cluster has no {what}.", remedy="Add machines with: ray start --address=HEAD:6379")
    if processes is not None and cores is None and not gpu:
        for whole in range(max(machines)[0], 0, -1):
            if sum(cpus // whole for cpus, _ in machines) >= processes:
                return WorkerAllocation(processes, whole)
        per_core = -(-processes // sum(cpus for cpus, _ in machines))
        return WorkerAllocation(processes, 10_000 // per_core / 10_000)  # Ray counts in ten-thousandths
    share = float(cores) if cores is not None else min(max(1, cpus // gpus) if gpu else cpus for cpus, gpus in machines)
    fitting = sum(gpus if gpu else int(cpus // share) for cpus, gpus in machines)
    return WorkerAllocation(processes or max(1, fitting), share)


class _Process:
    """The body of a worker process."""

    def __init__(self, resources: WorkerResources) -> None:
        self._resources = resources

    def start(self) -> str:
        """Return the version of c3tools, and the machine."""
        return f"{__version__} on {socket.gethostname()}"

    def run(self, work: Work[Any, Any], task: Any, again: bool, folder: str) -> Message:
        """Do one task.

        Args:
            again: an earlier attempt may have finished it.
            folder: where relative paths start.
        """
        counts = [0, 0]

        def report(done: int, failed: int) -> None:
            counts[0] += done
            counts[1] += failed

        try:
            _change_folder(folder)
            work.load(self._resources)
            result = work.finished(task, report) if again else None
            if result is None:
                (result,) = work.run([task], report)
        except Exception as error:
            return failure_message(error)
        return Message("result", count=counts[0], failed=counts[1], result=result)


def _change_folder(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise C3Error(
            f"The machine {socket.gethostname()} has no folder {folder} ({error.strerror}).",
            remedy="Run c3 in a folder that all machines of the cluster share, because they share inputs and outputs; "
            "or run it in / and use URLs.",
        ) from error


@dataclass
class _Worker:
    """A worker process, as seen from here.

    Attributes:
        process: Ray's handle of the `_Process`.
        pending: Ray's reference to its start, or to the message about its task; None while it is idle.
        position: that of its task.
        since: the time when it was given the task.
    """

    process: Any
    pending: Any
    position: int | None = None
    since: float = 0.0

    def end(self) -> None:
        _ray().kill(self.process)


class _Run(Generic[Task, Result]):
    """One call of `RayExecutor.run`: tasks given to workers until each has a result."""

    def __init__(
        self,
        workers: list[_Worker],
        most: int,
        start_worker: Callable[[], _Worker],
        work: Work[Task, Result],
        tasks: Tasks[Task],
        report: Report,
    ) -> None:
        self._workers = workers
        self._most = most
        self._start_worker = start_worker
        self._work = work
        self._tasks = tasks
        self._report = report
        self._waiting = deque(range(len(tasks)))
        self._results: dict[int, Result] = {}
        self._attempts: Counter[int] = Counter()
        self._not_started = 0
        self._durations: list[float] = []

    def complete(self) -> list[Result]:
        ray = _ray()
        shared = ray.put(self._work)
        last_worker = time.monotonic()
        while len(self._results) < len(self._tasks):
            for _ in range(min(self._most, len(self._tasks) - len(self._results)) - len(self._workers)):
                self._workers.append(self._start_worker())
            self._give_tasks(shared)
            pending = {worker.pending: worker for worker in self._workers if worker.pending is not None}
            ready, _ = ray.wait(list(pending), timeout=1.0)
            for reference in ready:
                self._receive(pending[reference])
            if any(worker.pending is None or worker.position is not None for worker in self._workers):
                last_worker = time.monotonic()
            elif time.monotonic() - last_worker > WORKER_TIMEOUT:
                raise C3Error(
                    f"The cluster could not start a worker within {WORKER_TIMEOUT:g} s.",
                    remedy="Check `ray status`: other jobs may use its cores, or --processes may be too large.",
                )
        return [self._results[position] for position in range(len(self._tasks))]

    def _give_tasks(self, shared: Any) -> None:
        for worker in self._workers:
            if worker.pending is not None:
                continue
            position = self._waiting.popleft() if self._waiting else self._straggler()
            if position is None:
                return
            again = self._attempts[position] > 0
            self._attempts[position] += 1
            worker.position, worker.since = position, time.monotonic()
            worker.pending = worker.process.run.remote(shared, self._tasks[position], again, str(Path.cwd()))

    def _straggler(self) -> int | None:
        """Return a task that takes far longer than the others, to be given to another worker as well."""
        if not self._durations:
            return None
        limit = max(STRAGGLER_SECONDS, STRAGGLER_FACTOR * statistics.median(self._durations))
        now = time.monotonic()
        slow = [
            worker.position
            for worker in self._workers
            if worker.position is not None
            and now - worker.since > limit
            and sum(other.position == worker.position for other in self._workers) == 1
            and self._attempts[worker.position] < ATTEMPTS
        ]
        return slow[0] if slow else None

    def _receive(self, worker: _Worker) -> None:
        """Take the answer of a worker: it has started, has a result, has failed, or is lost."""
        ray = _ray()
        position = worker.position
        try:
            answer: Message | str = ray.get(worker.pending)
        except ray.exceptions.RayError as error:
            self._workers.remove(worker)
            worker.end()
            reason = f"its worker was lost ({' '.join(str(error).split())[:300]})"
            self._try_again(position, reason, "It may have run out of memory: see `ray status` and the logs of Ray.")
            return
        worker.pending = worker.position = None
        if position is None or isinstance(answer, str):
            if str(answer).split(" on ")[0] != __version__:
                raise C3Error(
                    f"The worker has c3tools {answer}, but this machine has {__version__}.",
                    remedy="Install the same version on all machines.",
                )
        elif position in self._results:
            pass  # another worker was faster
        elif answer.kind == "result":
            self._durations.append(time.monotonic() - worker.since)
            self._results[position] = answer.result
            self._report(answer.count, answer.failed)
        elif answer.kind == "refused":
            raise C3Error(f"{self._work.name(self._tasks[position])}: {answer.text}", remedy=answer.remedy)
        else:
            self._try_again(position, answer.text, None)

    def _try_again(self, position: int | None, reason: str, remedy: str | None) -> None:
        if position is None:
            self._not_started += 1
            if self._not_started >= ATTEMPTS:
                raise C3Error(f"A worker could not be started: {reason}.", remedy=remedy)
        elif position not in self._results and all(other.position != position for other in self._workers):
            if self._attempts[position] >= ATTEMPTS:
                raise C3Error(
                    f"{self._work.name(self._tasks[position])} failed {ATTEMPTS} times, the last time since {reason}",
                    remedy=" ".join(
                        filter(None, ["Finished work is kept; run the same command again to continue.", remedy])
                    ),
                )
            self._waiting.appendleft(position)


def _ray() -> Any:
    if "ray" not in sys.modules:
        for name, value in _QUIET.items():  # read when Ray is imported
            os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", extra="ray", purpose="The executor ray") from error
    return ray


def _join(address: str | None) -> None:
    """Join or start a cluster, without dashboard, usage statistics, worker logs or warnings.

    Raises:
        UnreachableError: if there is none, or it does not answer.
    """
    host_and_port = _HOST_AND_PORT.fullmatch(address or "")
    try:
        if host_and_port is not None:
            _require_grpc(host_and_port["host"], int(host_and_port["port"]))
        options = {} if address not in (None, "local") else {"include_dashboard": False}
        _ray().init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, RuntimeError, ValueError) as error:
        if _asks_for_token(error):
            # Ray sends its token to a given address only with RAY_AUTH_MODE=token, which the user has to set
            raise UnreachableError(
                f"The Ray cluster at {address} asks for a token.",
                remedy="Set RAY_AUTH_MODE=token if you trust this cluster. All machines need the same token, see "
                "docs/guides/cluster.md.",
            ) from error
        raise UnreachableError(
            f"There is no Ray cluster at {address or 'this machine'} ({' '.join(str(error).split())[:300]}).",
            remedy="Start one with `ray start --head`, add this machine with `ray start --address=HEAD:6379`, and use "
            "--address HEAD:6379.",
        ) from error


def _asks_for_token(error: BaseException | None) -> bool:
    while error is not None and "AuthenticationError" not in f"{type(error).__name__} {error}":
        error = error.__cause__ or error.__context__
    return error is not None


def _require_grpc(host: str, port: int) -> None:
    """Raise an OSError unless a gRPC server answers: Ray itself would try for minutes."""
    with socket.create_connection((host, port), ANSWER_TIMEOUT) as connection:
        if os.environ.get("RAY_USE_TLS") == "1":
            return
        connection.settimeout(ANSWER_TIMEOUT)
        connection.sendall(_GREETING)
        answer = connection.recv(4)
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise ConnectionError("the server there is not Ray")
