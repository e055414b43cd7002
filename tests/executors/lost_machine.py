"""Compute squares on two raylets of one core each, the second of which is killed.

    python -m tests.executors.lost_machine FOLDER DONE    # prints the squares of 0 to 5

The second raylet is killed with its processes when so many other tasks are done, while it is busy
with one. This is a program of its own because a process can be in one cluster only.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from c3tools.executors import Report, Work
from c3tools.executors.ray import RayExecutor

_SECOND = "C3_TEST_SECOND_RAYLET"


@dataclass
class SquaresToBeLost(Work[int, int]):
    """Squares of numbers; the second raylet waits until ``done`` others are there, then for its
    end."""

    folder: Path
    done: int

    def run(self, tasks: Iterable[int], report: Report) -> Iterator[int]:
        for task in tasks:
            if _SECOND in os.environ:
                (self.folder / "busy").touch()
                wait_until(lambda: len(list(self.folder.glob("done-*"))) >= self.done)
                (self.folder / "kill").touch()
                wait_until(lambda: False)
            wait_until((self.folder / "busy").exists)
            if (self.folder / "kill").exists():
                time.sleep(1)  # so that this raylet is busy when the loss is noticed
            (self.folder / f"done-{task}").touch()
            report(1, 0)
            yield task * task

    def name(self, task: int) -> str:
        return f"square {task}"


def wait_until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def add_second(cluster: Any) -> Any:
    """Add a raylet of one core to a cluster."""
    return cluster.add_node(num_cpus=1, env_vars={_SECOND: "1"})


def kill_raylet(node: Any) -> None:
    """Kill a raylet and its processes, as the loss of its machine does, if it still runs."""
    psutil = import_module("psutil")  # Ray brings it along
    process = node.all_processes["raylet"][0].process
    if process.poll() is not None:
        return
    raylet = psutil.Process(process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()


def main(folder: Path, done: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = add_second(cluster)

    def kill() -> None:
        wait_until((folder / "kill").exists)
        kill_raylet(second)

    threading.Thread(target=kill, daemon=True).start()
    work = SquaresToBeLost(folder, done)
    with RayExecutor(cluster.address) as executor:
        print(*sorted(executor.run(work, range(6), lambda done, failed: None)))  # noqa: T201
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
