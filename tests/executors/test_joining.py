"""Clusters that are not there, and settings that make no sense."""

from __future__ import annotations

import re
import socket
import sys
import time
from pathlib import Path

import pytest

from c3tools.errors import C3Error, MissingExtraError, UnreachableError
from c3tools.executors import WorkerResources, open_executor
from c3tools.executors import ray as on_ray
from c3tools.executors.ray import RayExecutor
from tests.executors.works import Squares
from tests.servers import Faults, web_server


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no cluster had been joined, whatever tests before did."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def test_nobody_there(outside: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # nobody listens
        start = time.monotonic()
        with pytest.raises(UnreachableError, match=rf"(?s)no Ray cluster at {address} .*ray start --head"):
            RayExecutor(address).__enter__()
        assert time.monotonic() - start < 10


def test_somebody_who_says_nothing(outside: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "ANSWER_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UnreachableError, match="timed out"):
            RayExecutor().__enter__()


def test_another_kind_of_server(outside: None, tmp_path: Path) -> None:
    with web_server(tmp_path, Faults()) as address, pytest.raises(UnreachableError, match="not Ray"):
        RayExecutor(address.removeprefix("http://")).__enter__()


def test_a_machine_without_the_folder_says_so(tmp_path: Path) -> None:
    work = Squares(tmp_path)
    said = on_ray._Process(WorkerResources("cpu", 1)).run(work, 2, False, str(tmp_path / "nowhere"))
    assert said.kind == "refused"
    assert re.search(rf"The machine .* has no folder {tmp_path}/nowhere \(No such file", said.text)
    assert "all machines of the cluster share" in str(said.remedy)
    assert not list(tmp_path.iterdir())


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r'pip install "c3tools\[ray\]"'),
        open_executor("ray", address="local"),
    ):
        pass


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(C3Error, match="--executor ray"), open_executor("local", address="head:6379"):
        pass
    with pytest.raises(C3Error, match=r"(?s)There is no executor 'slurm'.*local or ray"), open_executor("slurm"):
        pass
