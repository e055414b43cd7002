from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from c3tools.errors import OutputError
from c3tools.io.outputs import Output, previous_folder, replacing

KILLED = """
import os, sys
from pathlib import Path
from c3tools.io.outputs import replacing
real, calls = Path.rename, []

def rename(self, target):
    calls.append(self)
    if len(calls) == int(sys.argv[2]):
        os._exit(9)
    return real(self, target)

Path.rename = rename
with replacing(Path(sys.argv[1])) as new:
    (new / "a").write_text("new")
    (new / "b").write_text("new")
"""


def output(folder: Path, **changes: Any) -> Output:
    return Output(folder, "decoder", ("decoder.json",), **changes)


def result(folder: Path, text: str = "old") -> Path:
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(text)
    return folder


def whole(folder: Path) -> str | None:
    texts = {(folder / name).read_text() for name in ("a", "b") if (folder / name).exists()}
    return texts.pop() if len(texts) == 1 else None


def test_only_results_of_the_kind_are_in_question(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert not output(folder).holds_result()
    folder.mkdir()
    (folder / ".hidden").write_text("x")
    assert not output(folder).holds_result()
    (folder / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"contains other files \(notes.txt\), not a former decoder") as refused:
            output(folder, overwrite=overwrite).holds_result()
        assert ("--overwrite" in str(refused.value)) == overwrite
    (folder / "decoder.json").write_text("{}")
    assert output(folder).holds_result()
    with pytest.raises(OutputError, match="is a file, but a folder is needed"):
        output(folder / "notes.txt").holds_result()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_result_is_done_and_another_is_replaced_only_if_asked(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "decoder.json").write_text("{}")
    record = {"asked": {"seed": 0, "set": ["a=1"], "epochs": None}, "identity": "x"}
    read = lambda: (record, "c3, seed 0")  # noqa: E731
    same = output(folder, overwrite=overwrite)
    same.ask(record["asked"], read)  # type: ignore[arg-type]
    assert same.is_done("x")
    assert same.replaces
    other = output(folder, overwrite=overwrite, kept=previous_folder(folder))
    if overwrite:
        other.ask({"seed": 1, "set": [], "epochs": 3}, read)
        assert not other.is_done("x")
        same.ask(record["asked"], read)  # type: ignore[arg-type]
        assert not same.is_done("y")
        return
    with pytest.raises(OutputError) as refused:
        other.ask({"seed": 1, "set": [], "epochs": 3}, read)
    said = (
        "already contains a finished decoder: c3, seed 0. It was made with seed 0, not 1; set a=1, not none; epochs "
        "none, not 3."
    )
    assert said in refused.value.message
    assert f"--overwrite; it is then kept as {folder}.previous" in str(refused.value.remedy)
    same.ask(record["asked"], read)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="with the same settings, but from other data"):
        same.is_done("y")


def test_a_result_without_a_record_is_another_and_one_that_is_unfinished_is_none(tmp_path: Path) -> None:
    (tmp_path / "decoder.json").write_text("{}")
    with pytest.raises(OutputError, match="finished decoder: it is damaged"):
        output(tmp_path).ask({"seed": 0}, lambda: ({}, "it is damaged"))
    unfinished = output(tmp_path)
    unfinished.ask({"seed": 0}, lambda: None)
    assert not unfinished.is_done("x")
    assert not unfinished.replaces


def test_a_training_does_not_replace_its_own_start(tmp_path: Path) -> None:
    folder = result(tmp_path / "out")
    (tmp_path / "link").symlink_to(folder)
    target = output(folder, overwrite=True, kept=previous_folder(folder))
    for start in (folder, tmp_path / "link", tmp_path / "x" / ".." / "out", previous_folder(folder)):
        with pytest.raises(OutputError, match="would replace"):
            target.refuse_start(start)
    target.refuse_start(tmp_path / "other")


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_between_the_renames_leaves_the_old_result_whole(tmp_path: Path, at: int) -> None:
    folder = result(tmp_path / "out")
    result(previous_folder(folder), "older")
    run = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(at)], check=False)
    assert run.returncode == 9
    assert "old" in (whole(folder), whole(previous_folder(folder)))
    with replacing(folder) as new:
        result(new / "sub")
        for name in ("a", "b"):
            (new / name).write_text("new")
    assert whole(folder) == "new"


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_between_the_renames_leaves_the_old_result_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder, real, calls = result(tmp_path / "out"), Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), replacing(folder) as new:
        (new / "a").write_text("new")
    assert whole(folder) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("keep", [True, False])
def test_the_former_result_is_kept_or_removed(tmp_path: Path, keep: bool) -> None:
    folder = result(tmp_path / "out")
    with replacing(folder, keep=keep) as new:
        assert whole(folder) == "old"
        (new / "a").write_text("new")
    assert whole(folder) == "new"
    names = {"out", "out.previous"} if keep else {"out"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert whole(previous_folder(folder)) == ("old" if keep else None)
