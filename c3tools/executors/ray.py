"""A Ray cluster: worker processes get one task after another, and are replaced if they are lost."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import __version__
from ..errors import C3Error, UnreachableError, optional_module, reason_of
from .local import Executor, Report, Result, Task, Work

_ATTEMPTS = 3  # at one task, if its worker is lost or it crashes
_ANSWER_TIMEOUT = 5.0  # seconds for the machine of a cluster to answer
_WORKER_TIMEOUT = 600.0  # seconds for the first worker: clusters that grow on demand take minutes
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # else what Ray says of lost workers goes to standard output
}
_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)/?")


class RayExecutor(Executor):
    """Workers on a Ray cluster; a context manager that joins the cluster and leaves it.

    Inputs and outputs have to be where all its machines see them: in shared folders of the same
    path, or at URLs.

    Args:
        address: ``host:port``, ``ray://host:port``, ``auto`` or ``local``; None for that in
            RAY_ADDRESS, else the cluster that runs on this machine, else a new one of this machine
            alone.
        processes: number of workers; None for as many as fit.
        cores: CPU cores of each; None for a machine's, shared among its GPUs where each worker has
            one.
        gpu: whether each worker has a GPU of its own.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        processes: int | None = None,
        cores: int | None = None,
        gpu: bool = False,
    ) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._wanted = (processes, cores)
        self._gpu = gpu
        self._joined = False
        self._idle: list[Any] = []  # actors, with what they have loaded

    def __enter__(self) -> RayExecutor:
        """Join the cluster."""
        ray = _ray()
        if not ray.is_initialized():
            _join(self._address)
            self._joined = True
        try:
            self._most, self._cores = _allocate(ray.nodes(), *self._wanted, gpu=self._gpu)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers, and the cluster if it was started here."""
        for actor in self._idle:
            _ray().kill(actor)
        self._idle.clear()
        if self._joined:
            _ray().shutdown()
            self._joined = False

    def run(
        self, work: Work[Task, Result], tasks: Sequence[Task], report: Report
    ) -> Iterator[Result]:
        """Do all tasks; see `Executor.run`. Workers stay for the next call, with what they have
        loaded.
        """
        ray = _ray()
        shared, folder = ray.put(work), os.getcwd()  # noqa: PTH109 - as text, for other machines
        waiting, attempts = deque(range(len(tasks))), Counter[int]()
        # those that came before their turn, and whose turn it is
        results, next_one = dict[int, Result](), 0
        running: dict[Any, tuple[Any, int]] = {}  # actor and task of each call
        if waiting and not self._idle:
            self._idle.append(self._start_actor())
            if not ray.wait([self._idle[0].version.remote()], timeout=_WORKER_TIMEOUT)[0]:
                raise C3Error(
                    f"The cluster could not start a worker within {_WORKER_TIMEOUT:g} s.",
                    remedy="Check `ray status`: other jobs may use its cores, or --processes may "
                    "be too large.",
                )
        try:
            while waiting or running:
                while waiting and (self._idle or len(running) < self._most):
                    actor, position = (
                        self._idle.pop() if self._idle else self._start_actor(),
                        waiting.popleft(),
                    )
                    attempts[position] += 1
                    running[actor.run.remote(shared, tasks[position], folder)] = actor, position
                for call in ray.wait(list(running), timeout=1.0)[0]:
                    actor, position = running.pop(call)
                    try:
                        result, done, failed, refused = ray.get(call)
                    except ray.exceptions.RayError as error:
                        # the worker is lost, or the task crashed
                        ray.kill(actor)
                        if attempts[position] >= _ATTEMPTS:
                            raise C3Error(
                                f"{work.name(tasks[position])} failed {_ATTEMPTS} times, the last "
                                f"time since its "
                                f"worker was lost or crashed ({error}).",
                                remedy="Finished work is kept; run the same command again to "
                                "continue. The worker may "
                                "have run out of memory: see `ray status` and the logs of Ray.",
                            ) from None
                        waiting.appendleft(position)
                        continue
                    self._idle.append(actor)
                    if refused is not None:
                        raise C3Error(
                            f"{work.name(tasks[position])}: {refused[0]}", remedy=refused[1]
                        )
                    results[position] = result
                    report(done, failed)
                    while next_one in results:
                        yield results.pop(next_one)
                        next_one += 1
        finally:
            for actor, _ in running.values():
                ray.kill(actor)

    def _start_actor(self) -> Any:
        resources = "cuda" if self._gpu else "cpu", max(1, int(self._cores))
        worker = (
            _ray()
            .remote(_Worker)
            .options(
                num_cpus=self._cores, num_gpus=int(self._gpu), max_restarts=0, max_task_retries=0
            )
        )
        return worker.remote(__version__, *resources)


def _allocate(
    nodes: Sequence[Mapping[str, Any]], processes: int | None, cores: int | None, *, gpu: bool
) -> tuple[int, float]:
    """Return how many workers fit on these machines, and of how many cores, a fraction if they
    share one.

    Args:
        nodes: as `ray.nodes` returns them.
        processes, cores, gpu: see `RayExecutor`.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in resources]
    machines = [(cpus, gpus) for cpus, gpus in machines if cpus and (gpus or not gpu)]
    if not machines:
        what = "GPUs" if gpu else "CPU cores"
        raise C3Error(
            f"The cluster has no {what}.", remedy="Add machines with: ray start --address=HEAD:6379"
        )
    if processes is not None and cores is None and not gpu:
        # Ray counts in ten-thousandths
        parts = (10_000 // workers / 10_000 for workers in range(2, processes + 1))
        shares = (*range(max(machines)[0], 0, -1), *parts)
        return processes, next(
            share for share in shares if sum(cpus // share for cpus, _ in machines) >= processes
        )
    share = cores or min(max(1, cpus // gpus) if gpu else cpus for cpus, gpus in machines)
    fitting = sum(gpus if gpu else cpus // share for cpus, gpus in machines)
    return processes or max(1, fitting), share


class _Worker:
    """The body of a worker process."""

    def __init__(self, version: str, *resources: Any) -> None:
        self._version, self._resources = version, resources

    def version(self) -> str:
        """Return the version of c3tools here."""
        return __version__

    def run(
        self, work: Work[Any, Any], task: Any, folder: str
    ) -> tuple[Any, int, int, tuple[str, str | None] | None]:
        """Do one task; return its result, the inputs done, those that failed, and an error that
        another try repeats.

        Args:
            work: what is done.
            task: the task.
            folder: where relative paths start.
        """
        counts: list[tuple[int, int]] = [(0, 0)]
        result = refused = None
        try:
            machine = f"The machine {socket.gethostname()} has"
            if self._version != __version__:
                raise C3Error(
                    f"{machine} c3tools {__version__}, but this one has {self._version}.",
                    remedy="Install the same version on all machines.",
                )
            if not os.path.isdir(folder):  # noqa: PTH112 - as text, of another machine
                raise C3Error(
                    f"{machine} no folder {folder}.",
                    remedy="Run c3 in a folder that all machines of the cluster share, because "
                    "they share inputs and "
                    "outputs; or run it in / and use URLs.",
                )
            os.chdir(folder)
            work.load(*self._resources)
            (result,) = work.run([task], lambda *more: counts.append(more))
        except C3Error as error:
            refused = error.message, error.remedy
        done, failed = map(sum, zip(*counts, strict=True))
        return result, done, failed, refused


def _ray() -> Any:
    if "ray" not in sys.modules:
        for name, value in _QUIET.items():  # read when Ray is imported
            os.environ.setdefault(name, value)
    return optional_module("ray", "ray", extra="ray", purpose="The executor ray")


def _join(address: str | None) -> None:
    """Join or start a cluster, without dashboard, usage statistics, worker logs or warnings."""
    host_and_port = _HOST_AND_PORT.fullmatch(address or "")
    try:
        if host_and_port is not None:  # Ray itself would try for minutes
            place = host_and_port["host"], int(host_and_port["port"])
            socket.create_connection(place, _ANSWER_TIMEOUT).close()
        options = {} if address not in (None, "local") else {"include_dashboard": False}
        _ray().init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UnreachableError(
            f"There is no Ray cluster at {address or 'this machine'}, or it asks for a token "
            f"({reason_of(error)}).",
            remedy="Start one with `ray start --head`, add this machine with `ray start "
            "--address=HEAD:6379`, and use "
            "--address HEAD:6379. If it asks for a token, see docs/guides/cluster.md.",
        ) from error
