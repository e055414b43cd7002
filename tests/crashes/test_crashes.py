"""A sample of the crashes and faults that `benchmarks/crash_points.py` tries in full."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from c3tools.encoders import Encoder
from c3tools.errors import C3Error
from c3tools.io.files import write_atomically
from tests.crashes.harness import Scenario, crash_everywhere, cut_everywhere, fail_everywhere
from tests.crashes.object_store import fail_requests, remote_scenarios
from tests.crashes.recorder import Recorder, State, recording
from tests.crashes.scenarios import NAMES, all_scenarios
from tests.servers import Faults

T = TypeVar("T")
SLOW = ("train-decoder --overwrite", "train-generator", "connect heads", "connect")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE, errno.EINTR)


@pytest.fixture(scope="module")
def scenarios(encoder: Encoder) -> dict[str, Scenario]:
    return all_scenarios(encoder)


def sample(count: int) -> Callable[[list[T]], list[T]]:
    """Return what takes the last one and others by chance, the same in each run."""
    draw = random.Random(0)
    return lambda items: [*draw.sample(items[:-1], min(count, len(items) - 1)), items[-1]]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_command_ends_as_if_there_had_been_no_crash(
    scenarios: dict[str, Scenario], tmp_path: Path, name: str
) -> None:
    found = crash_everywhere(scenarios[name], tmp_path / "work", sample(1 if name in SLOW else 4))
    assert found.problems == []
    assert found.points > 5


def test_texts_that_were_removed_do_not_come_back_without_their_image(
    scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    def lost(states: list[State]) -> list[State]:
        return [state for state in states if state.variant == "lost"]

    found = crash_everywhere(scenarios["embed --update --prune"], tmp_path / "work", lost)
    assert found.problems == []
    assert found.tried


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_is_one_error_and_nothing_is_lost(scenarios: dict[str, Scenario], tmp_path: Path, name: str) -> None:
    error = ERRORS[NAMES.index(name) % len(ERRORS)]
    some = sample(1 if name in SLOW else 3)
    assert fail_everywhere(scenarios[name], tmp_path / "work", error, (C3Error, OSError), some).problems == []
    if name not in SLOW:
        assert cut_everywhere(scenarios[name], tmp_path / "cut", (C3Error, OSError), sample(1)).problems == []


@pytest.mark.parametrize(("name", "kind"), [("embed", "torn"), ("import", "500"), ("verify --repair", "cut off")])
def test_a_request_that_fails_is_one_error_and_nothing_is_lost(
    encoder: Encoder, s3: Faults, tmp_path: Path, name: str, kind: str
) -> None:
    found = fail_requests(remote_scenarios(encoder)[name], tmp_path / "work", s3, kind, sample(3))
    assert found.problems == []
    assert found.points > 20


def writer(write: Callable[[Path], object]) -> Scenario:
    def once(folder: Path) -> None:
        if not (folder / "out").is_file():
            write(folder / "out")

    return Scenario(
        "writer",
        lambda folder: folder.mkdir(parents=True, exist_ok=True),
        once,
        lambda folder: {"out": (folder / "out").read_bytes()} if (folder / "out").is_file() else {},
    )


def plain(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"the whole content")
        path.with_name("other").write_bytes(b"x")


def renamed_without_fsync(path: Path) -> None:
    path.with_name("new").write_bytes(b"the whole content")
    path.with_name("new").replace(path)
    path.with_name("other").write_bytes(b"x")


@pytest.mark.parametrize("write", [plain, renamed_without_fsync])
def test_the_harness_finds_writers_that_do_not_survive(tmp_path: Path, write: Callable[[Path], None]) -> None:
    assert any("out differ" in problem for problem in crash_everywhere(writer(write), tmp_path / "work").problems)


def test_the_harness_passes_what_is_atomic(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        for left in path.parent.glob(".*.tmp"):
            left.unlink()
        write_atomically(path, lambda temporary: temporary.write_bytes(b"the whole content"))
        path.with_name("other").write_bytes(b"x")

    found = crash_everywhere(writer(write), tmp_path / "work")
    assert found.problems == []
    assert found.tried > 4


def test_a_file_of_an_earlier_run_is_whole_under_a_new_name(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"of an earlier run")
    with recording(Recorder(tmp_path)) as recorder:
        (tmp_path / "old").rename(tmp_path / "new")
    recorder.end()
    trees = [state.tree for state in recorder.states]
    assert {"old": b"of an earlier run"} in trees
    assert {"new": b"of an earlier run"} in trees
    assert {content for tree in trees for content in tree.values()} == {b"of an earlier run"}


def test_the_harness_finds_a_result_that_a_power_cut_takes(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        for name in (".new", "out"):
            with path.with_name(name).open("wb") as file:
                file.write(b"the whole content")
                os.fsync(file.fileno())
        path.with_name(".new").replace(path)  # the folder is not synced

    found = crash_everywhere(writer(write), tmp_path / "work")
    assert any("out differ although the command had ended" in problem for problem in found.problems)


def test_the_harness_finds_what_is_left(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        left = path.with_name(f"{len(list(path.parent.iterdir()))}.part")
        left.write_bytes(b"x")
        write_atomically(path, lambda temporary: temporary.write_bytes(b"the whole content"))
        left.unlink()

    found = fail_everywhere(writer(write), tmp_path / "work", errno.EIO, (OSError,))
    assert any("0.part is left" in problem for problem in found.problems)


def test_the_harness_cuts_writes(tmp_path: Path) -> None:
    found = cut_everywhere(writer(lambda path: path.write_bytes(b"the whole content")), tmp_path / "work", (OSError,))
    assert found.tried == 2
    assert all("out differ" in problem for problem in found.problems)


def test_the_harness_finds_a_fault_that_is_swallowed(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        try:
            path.write_bytes(b"the whole content")
        except OSError:
            path.with_name("out").touch()

    found = fail_everywhere(writer(write), tmp_path / "work", errno.ENOSPC, (OSError,))
    assert any("out differ" in problem for problem in found.problems)
    assert os.strerror(errno.ENOSPC) in found.problems[0]
