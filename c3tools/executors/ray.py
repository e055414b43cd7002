"""A Ray cluster: each task is a Ray task, which Ray runs where there is room, and again if its
machine or its process is lost.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..errors import C3Error, UnreachableError, optional_module, reason_of
from .local import Executor, Report, Result, Task, Work

_ATTEMPTS = 3  # at one task, if its process is lost or it crashes
_ANSWER_TIMEOUT = 5.0  # seconds for the machine of a cluster to answer
_PLACE_TIMEOUT = 600.0  # seconds without a place: clusters that grow on demand take minutes
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # else what Ray says of lost workers goes to standard output
}
# the processes of tasks are not shared with other work of a program that uses Ray itself; all GPUs
# are visible, because a process that has used one keeps it when Ray assigns another
_OF_PROCESSES = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)/?")


class RayExecutor(Executor):
    """Tasks on a Ray cluster; a context manager that joins the cluster and leaves it.

    Inputs and outputs have to be where all its machines see them: in shared folders of the same
    path, or at URLs.

    Args:
        address: ``host:port``, ``ray://host:port``, ``auto`` or ``local``; None for that in
            RAY_ADDRESS, else the cluster that runs on this machine, else a new one of this machine
            alone.
        processes: number of tasks done at a time; None for as many as fit.
        cores: CPU cores of each; None for a machine's, shared among its GPUs where each task has
            one.
        gpu: whether each task has a GPU of its own.
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
        self._wanted_processes = processes
        self._wanted_cores = cores
        self._gpu = gpu
        self._joined = False

    def __enter__(self) -> RayExecutor:
        """Join the cluster."""
        ray = _ray()
        if not ray.is_initialized():
            # Without dashboard, usage statistics, worker logs or warnings
            address = self._address
            host_and_port = _HOST_AND_PORT.fullmatch(address or "")
            options = {} if address not in (None, "local") else {"include_dashboard": False}
            try:
                if host_and_port is not None:  # Ray itself would try for minutes
                    place = host_and_port["host"], int(host_and_port["port"])
                    socket.create_connection(place, _ANSWER_TIMEOUT).close()
                ray.init(
                    address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options
                )
            except (OSError, RuntimeError, ValueError) as error:
                raise UnreachableError(
                    f"There is no Ray cluster at {address or 'this machine'}, or it requires a "
                    f"token ({reason_of(error)}).",
                    remedy="Start one with `ray start --head`, add this machine with `ray start "
                    "--address=HEAD:6379`, and use --address HEAD:6379. If it requires a token, "
                    "copy its ~/.ray/auth_token to this machine and set RAY_AUTH_MODE=token.",
                ) from error
            self._joined = True
        try:
            machines = _machines(ray.nodes(), self._wanted_cores or 1, gpu=self._gpu)
            self._most, self._cores = _allocate(
                machines, self._wanted_processes, self._wanted_cores, gpu=self._gpu
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster, or end it if it was started here."""
        if self._joined:
            _ray().shutdown()
            self._joined = False

    def run(
        self, work: Work[Task, Result], tasks: Sequence[Task], report: Report
    ) -> Iterator[Result]:
        """Do all tasks; see `Executor.run`. Ray gives a process one task after another, so that
        what it has loaded is used again.

        Raises:
            C3Error: if a task raised one, or its process was lost or crashed each time.
        """
        ray = _ray()
        remote = ray.remote(
            num_cpus=self._cores,
            num_gpus=int(self._gpu),
            max_retries=_ATTEMPTS - 1,
            retry_exceptions=True,
            max_calls=0,  # else a process with a GPU would end after one task
            runtime_env={"env_vars": _OF_PROCESSES},
        )
        do_task = remote(_do_task)
        folder = os.getcwd()  # noqa: PTH109 - as text, for other machines
        shared = ray.put(work), folder, max(1, int(self._cores)), __version__
        running: dict[Any, int] = {}  # the position of the task of each call
        submitted = 0
        ready = [remote(_assigned_device).remote()] if len(tasks) else []
        if ready and not ray.wait(ready, timeout=_PLACE_TIMEOUT)[0]:
            raise C3Error(
                f"The cluster could not start a worker within {_PLACE_TIMEOUT:g} s.",
                remedy="Check `ray status`: other jobs may use its cores, or --processes may be "
                "too large.",
            )
        try:
            while running or submitted < len(tasks):
                while submitted < len(tasks) and len(running) < self._most:
                    running[do_task.remote(tasks[submitted], *shared)] = submitted
                    submitted += 1
                ended, _ = ray.wait(list(running), timeout=_PLACE_TIMEOUT)
                if not ended:
                    _machines(ray.nodes(), self._cores, gpu=self._gpu)  # raises if none is left
                    continue
                (call,) = ended
                finished = running.pop(call)
                name = work.name(tasks[finished])
                try:
                    outcome: _Outcome | C3Error = ray.get(call)
                except ray.exceptions.RayError as error:
                    raise C3Error(
                        f"{name} failed {_ATTEMPTS} times, most recently because its worker "
                        f"was lost or crashed ({error}).",
                        remedy="Finished work is kept; run the same command again to continue. "
                        "The worker may have run out of memory: see `ray status` and Ray's "
                        "logs.",
                    ) from None
                if isinstance(outcome, C3Error):
                    raise C3Error(f"{name}: {outcome.message}", remedy=outcome.remedy)
                report(outcome.done, outcome.failed)
                yield outcome.result
        finally:
            # Leaving a cluster that was joined here ends its tasks, and Ray may crash if it is told
            # to cancel those that are just ending
            if not self._joined:
                for call in running:
                    ray.cancel(call, force=True)


def _machines(
    nodes: Sequence[Mapping[str, Any]], cores: float, *, gpu: bool
) -> list[tuple[int, int]]:
    """Return the CPU cores and the GPUs of each machine that has enough for a task.

    Args:
        nodes: as `ray.nodes` returns them.
        cores, gpu: what a task takes.

    Raises:
        C3Error: if there is no such machine.
    """
    machines = []
    for node in nodes:
        if not node["Alive"]:
            continue
        cpus = int(node["Resources"].get("CPU", 0))
        gpus = int(node["Resources"].get("GPU", 0))
        if cpus >= cores and gpus >= gpu:
            machines.append((cpus, gpus))
    if not machines:
        raise C3Error(
            f"The cluster has no machine with {cores:g} CPU{' and 1 GPU' * gpu} for a worker.",
            remedy="Add machines with: ray start --address=HEAD:6379",
        )
    return machines


def _allocate(
    machines: Sequence[tuple[int, int]], processes: int | None, cores: int | None, *, gpu: bool
) -> tuple[int, float]:
    """Return how many tasks fit on these machines, and of how many cores, a fraction if they
    share one.

    Args:
        machines: as `_machines` returns them.
        processes, cores, gpu: see `RayExecutor`.
    """
    if gpu:
        share = cores or min(max(1, cpus // gpus) for cpus, gpus in machines)
        return processes or sum(gpus for _, gpus in machines), share
    if processes is None or cores is not None:
        share = cores or min(cpus for cpus, _ in machines)
        return processes or sum(cpus // share for cpus, _ in machines), share

    # The most cores of a task with which so many fit; Ray counts fractions in ten-thousandths
    most_cpus = max(cpus for cpus, _ in machines)
    fractions = [10_000 // workers / 10_000 for workers in range(2, processes + 1)]
    for fraction in (*range(most_cpus, 0, -1), *fractions):
        if sum(cpus // fraction for cpus, _ in machines) >= processes:
            return processes, fraction
    raise AssertionError("they fit if all processes share a core")


@dataclass(frozen=True)
class _Outcome:
    """The outcome of a task: its result, the inputs done, and those of them that failed."""

    result: Any
    done: int
    failed: int


def _do_task(
    task: Any, work: Work[Any, Any], folder: str, threads: int, version: str
) -> _Outcome | C3Error:
    """Do one task in a process of the cluster; return an error that another attempt would repeat.

    Args:
        task: the task.
        work: what is done.
        folder: where relative paths start.
        threads: number of cores reserved for the process.
        version: of c3tools in the process that asks for it.
    """
    counts: list[tuple[int, int]] = []
    try:
        machine = f"The machine {socket.gethostname()} has"
        if version != __version__:
            raise C3Error(
                f"{machine} c3tools {__version__}, but this one has {version}.",
                remedy="Install the same version on all machines.",
            )
        if not os.path.isdir(folder):  # noqa: PTH112 - as text, of another machine
            raise C3Error(
                f"{machine} no folder {folder}.",
                remedy="Run c3 in a folder that all machines of the cluster share, because inputs "
                "and outputs are shared; or run it in / and use URLs.",
            )
        os.chdir(folder)
        work.load(_assigned_device(), threads)
        (result,) = work.run([task], lambda finished, failed: counts.append((finished, failed)))
    except C3Error as error:
        return C3Error(error.message, remedy=error.remedy)  # not all its classes can be pickled
    return _Outcome(
        result,
        done=sum(finished for finished, _ in counts),
        failed=sum(failed for _, failed in counts),
    )


def _assigned_device() -> str:
    """Return the device that Ray assigned to the task of this process."""
    gpus = _ray().get_gpu_ids()
    if not gpus:
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return f"cuda:{gpus[0]}"
    return f"cuda:{visible.split(',').index(gpus[0])}"


def _ray() -> Any:
    if "ray" not in sys.modules:
        for name, value in _QUIET.items():  # read when Ray is imported
            os.environ.setdefault(name, value)
    return optional_module("ray", "ray", extra="ray", purpose="The executor ray")
