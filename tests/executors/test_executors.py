"""Processes of this machine and a Ray cluster of it with two workers, against the same work done
here."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from itertools import zip_longest
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from c3tools.corpus.reading import read_corpus
from c3tools.embedding.embed import embed_corpus
from c3tools.embedding.shard_work import EmbedOptions
from c3tools.encoders import load_encoder
from c3tools.errors import C3Error, MissingExtraError, UnreachableError
from c3tools.executors import Executor, open_executor
from c3tools.executors.ray import RayExecutor, _allocate, _assigned_device, _machines
from c3tools.store import Store
from tests.conftest import contents, copy_photos, slice_of
from tests.executors.works import Squares

ROOT = Path(__file__).parents[2]
SQUARES = [0, 1, 4, 9, 16, 25]


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayExecutor]:
    """A cluster of this machine alone, with two workers that stay for all tests."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # where workers find this package of tests
        with RayExecutor("local", processes=2) as executor:
            yield executor


@pytest.fixture(params=["processes", "ray"])
def executor(request: pytest.FixtureRequest) -> Any:
    return (
        Executor(["cpu", "cpu"])
        if request.param == "processes"
        else request.getfixturevalue("cluster")
    )


def squares(executor: Executor, work: Squares) -> tuple[list[int], list[int]]:
    told: list[tuple[int, int]] = []
    results = sorted(executor.run(work, range(6), lambda *counts: told.append(counts)))
    return results, [sum(each) for each in zip(*told, strict=True)]


def test_each_task_has_its_result_from_two_processes(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Squares(tmp_path)
    monkeypatch.setattr("c3tools.executors.local.cores", lambda: 7)
    assert squares(executor, work) == (SQUARES, [60, 6])
    assert len(work.processes() - {str(os.getpid())}) == 2
    if not isinstance(executor, RayExecutor):
        assert [path.name for path in tmp_path.glob("cpu-*")] == ["cpu-3"]  # cores of each


@pytest.mark.parametrize("trouble", ["crash", "kill", "refuse"])
def test_a_task_that_always_fails_is_an_error(
    executor: Executor, tmp_path: Path, trouble: str
) -> None:
    with pytest.raises(
        C3Error, match={"crash": "ZeroDivisionError", "refuse": "the disk is full"}.get(trouble)
    ) as error:
        squares(executor, Squares(tmp_path, trouble))
    if isinstance(executor, RayExecutor):
        assert "square 3" in error.value.message
        assert len(list(tmp_path.glob("3-*"))) == (1 if trouble == "refuse" else 3)


@pytest.mark.parametrize("done", slice_of([2, 0, 5]), ids="{} others done".format)
def test_on_ray_a_lost_machine_costs_time_only(tmp_path: Path, done: int) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    program = [sys.executable, "-m", "tests.executors.lost_machine", str(tmp_path), str(done)]
    run = subprocess.run(
        program, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=200
    )
    assert run.stdout.splitlines()[-1] == "0 1 4 9 16 25"
    assert (tmp_path / "kill").exists()


def test_on_ray_tasks_that_have_no_machine_left_are_an_error(
    cluster: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", list)
    # a worker has started, then nothing ends for ten minutes
    monkeypatch.setattr(ray, "wait", Mock(side_effect=[(["ready"], []), ([], ["running"])]))
    with pytest.raises(C3Error, match="no machine with 1 CPU for a worker"):
        squares(cluster, Squares(tmp_path))


@pytest.mark.parametrize("trouble", ["crash", "kill"])
def test_on_ray_a_task_whose_worker_is_lost_is_tried_again(
    cluster: RayExecutor, tmp_path: Path, trouble: str
) -> None:
    assert squares(cluster, Squares(tmp_path, trouble, times=2)) == (SQUARES, [60, 6])
    assert len(list(tmp_path.glob("3-*"))) == 3


# is imported by each process that starts, before anything else
DIES = """
import os, sys
if "--multiprocessing-fork" in sys.orig_argv:
    os._exit(9)
"""
WORK_OF_SCRIPT = """
from pathlib import Path
from c3tools.executors import Executor
from tests.executors.works import Squares
class Work(Squares):
    pass
work = Work(Path("."))
"""
RUN_WORK = 'print(*sorted(Executor(["cpu", "cpu"]).run(work, range(6), lambda *_: None)))\n'
EMBED = """
import multiprocessing, sys
multiprocessing.set_start_method("{}")
import c3tools
c3tools.embed("photos", device="cpu,cpu", workers=1, shard_size=2)
"""


def run_script(
    folder: Path, script: str, *, piped: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a script from a file, or from standard input."""
    (folder / "script.py").write_text(script)
    return subprocess.run(
        [sys.executable, "-" if piped else "script.py"],
        input=script if piped else "",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_a_process_that_dies_while_it_starts_is_an_error_however_large_the_work(
    tmp_path: Path,
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DIES)
    script = WORK_OF_SCRIPT.replace("Work(Path", "Squares(Path") + 'work.trouble = "x" * 2**20\n'
    said = run_script(tmp_path, script + RUN_WORK)
    assert "C3Error: The process for cpu was killed." in said.stderr


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_script_that_embeds_is_not_run_again_by_its_processes(
    tmp_path: Path, photos: Path, method: str
) -> None:
    said = run_script(tmp_path, EMBED.format(method), piped=method == "forkserver")
    assert (said.returncode, said.stderr) == (0, "")
    assert Store.open(tmp_path / "c3-store").count("image") == 4


def test_work_that_is_defined_in_a_script_needs_the_guard_of_main(tmp_path: Path) -> None:
    said = run_script(tmp_path, WORK_OF_SCRIPT + RUN_WORK)
    assert "ended while it started.\n" in said.stderr
    assert 'below `if __name__ == "__main__":`' in said.stderr
    said = run_script(tmp_path, f'{WORK_OF_SCRIPT}if __name__ == "__main__":\n    {RUN_WORK}')
    assert (said.returncode, said.stdout) == (0, "0 1 4 9 16 25\n")


@pytest.mark.parametrize("where", ["thread", "process"])
def test_ctrl_c_while_processes_start_ends_them(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    interrupted: list[str] = []
    start_process = SpawnProcess._Popen
    start_thread = Thread.start

    def interrupt(here: str) -> None:
        if where == here and not interrupted:
            interrupted.append(here)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    def start_and_interrupt(process: Any) -> Any:
        popen = start_process(process)
        interrupt("process")
        started.append(popen.pid)
        return popen

    def start_thread_and_interrupt(thread: Thread) -> None:
        start_thread(thread)
        interrupt("thread")

    monkeypatch.setattr(SpawnProcess, "_Popen", staticmethod(start_and_interrupt))
    monkeypatch.setattr(Thread, "start", start_thread_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        squares(Executor(["cpu", "cpu"]), Squares(tmp_path))
    (process,) = started
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_processes_go_on_to_the_same_bytes_where_one_process_was_interrupted(
    executor: Executor, tmp_path: Path
) -> None:
    # processes need not import torch for it
    encoder = load_encoder(backend="openvino", precision="fp32")
    folder = copy_photos(tmp_path / "photos", 4)
    (folder / "broken.jpg").write_text("no image")
    corpus = read_corpus(folder)
    options = EmbedOptions(shard_size=3, workers=0)
    embed_corpus(corpus, tmp_path / "here", encoder, options)
    there = shutil.copytree(tmp_path / "here", tmp_path / "there")
    for path in [
        "manifest.json",
        "image/part-00001.parquet",
        *(f"text/part-0000{n}.parquet" for n in range(1, 7)),
    ]:
        (there / path).unlink()
    summary = embed_corpus(corpus, there, encoder, options, executor=executor)
    assert [(m.embedded, m.already) for m in summary.modalities.values()] == [(1, 3), (17, 3)]
    assert contents(there) == contents(tmp_path / "here")


def test_nothing_is_said_of_semaphores_that_an_ended_process_leaves() -> None:
    script = """
from multiprocessing import resource_tracker
from c3tools.executors.starting import spawn_context
process = spawn_context(memoryview(b"")).Process(target=print)
process.start()
process.join()
resource_tracker.register("/c3-left", "semaphore")  # as the pool of decoders in a process does
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""


def test_an_interrupted_command_ends_its_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    psutil = import_module("psutil")  # Ray brings it along
    (tmp_path / "texts.txt").write_text("".join(f"a photo of {n} dogs\n" for n in range(3000)))
    arguments = "embed texts.txt --shard-size 20 --executor ray --processes 2".split()
    command = [sys.executable, "-c", "from c3tools.cli import main; main()", *arguments]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("c3-store/text/part-*.parquet")) and running.poll() is None:
        time.sleep(0.1)
    assert running.poll() is None, running.communicate()[1]
    started = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=300)
    assert running.returncode == 130, stderr
    assert "Finished shards are kept" in stderr and "Traceback" not in stderr
    kept = Store.open(tmp_path / "c3-store").parts("text")
    assert 0 < len(kept) < 150
    _, alive = psutil.wait_procs(started, timeout=300)
    assert not alive
    assert Store.open(tmp_path / "c3-store").parts("text") == kept


def test_a_cluster_that_is_not_there_or_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"address": "head:6379"}, {"processes": 2}):
        with pytest.raises(C3Error, match="--executor ray"), open_executor("local", **options):
            pass
    with pytest.raises(C3Error, match="no machine with 1 CPU and 1 GPU"):
        _machines([machine(8)], 1, gpu=True)
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # nobody listens
        with pytest.raises(UnreachableError, match=address):
            RayExecutor(address).__enter__()
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r'install "ray>='),
        open_executor("ray", address="local"),
    ):
        pass


def machine(cpus: int, gpus: int = 0) -> dict[str, Any]:
    return {
        "Alive": True,
        "Resources": {name: n for name, n in (("CPU", cpus), ("GPU", gpus)) if n},
    }


@pytest.mark.parametrize(
    ("assigned", "visible", "expected"),
    [([], None, "cpu"), ([2], None, "cuda:2"), (["5"], "3,5", "cuda:1")],
)
def test_a_task_uses_the_gpu_that_ray_assigned(
    monkeypatch: pytest.MonkeyPatch, assigned: list[Any], visible: str | None, expected: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_gpu_ids=lambda: assigned))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _assigned_device() == expected


def test_a_cluster_is_left_as_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    ray = SimpleNamespace(init=lambda **named: told.append(named), nodes=lambda: [machine(8)])
    ray.shutdown = lambda: told.append("left")
    monkeypatch.setitem(sys.modules, "ray", ray)
    joined = {
        "address": "local",
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": 50,
    }
    for there in (False, True):
        ray.is_initialized = lambda there=there: there
        with RayExecutor("local") as executor:
            pass
        executor.__exit__()
        assert told == ([] if there else [joined, "left"])
        told.clear()
    ray.is_initialized, ray.nodes = lambda: False, lambda: []
    with pytest.raises(C3Error, match="no machine"):
        RayExecutor("auto").__enter__()
    assert told == [{"address": "auto", "log_to_driver": False, "logging_level": 50}, "left"]


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "expected"),
    [
        ([8, 4, 0], [], (None, None), (3, 4)),
        ([9], [], (2, None), (2, 4)),
        ([2], [], (2, None), (2, 1)),
        ([2], [], (4, None), (4, 0.5)),
        ([2], [], (5, None), (5, 0.3333)),
        ([9, 2], [], (None, 4), (2, 4)),
        ([96, 32, 64], [8, 4], (None, None), (12, 8)),
        ([96], [8], (2, None), (2, 12)),
        ([2], [4], (None, None), (4, 1)),
    ],
)
def test_workers_that_fit(
    cpus: list[int], gpus: list[int], asked: tuple[Any, Any], expected: tuple[int, float]
) -> None:
    nodes = [machine(*of) for of in zip_longest(cpus, gpus, fillvalue=0)]
    dead = machine(99, 9) | {"Alive": False}
    machines = _machines([*nodes, dead], 1, gpu=bool(gpus))
    assert _allocate(machines, *asked, gpu=bool(gpus)) == expected
