from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from c3tools.errors import remedy_of
from c3tools.io.artifact import replacing
from c3tools.io.files import (
    json_text,
    recorded_file,
    remove_leftovers,
    sha256_of,
    write_atomically,
    write_json_atomically,
)
from tests.crashes import at_operation


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    # the second has begun no file
    for writer, error in ((fail, "disk full"), (Path.read_text, "No such file")):
        with pytest.raises(OSError, match=error):
            write_atomically(target, writer)
        assert target.read_text() == "old" and [*tmp_path.iterdir()] == [target]


@pytest.mark.parametrize(("content", "is_touched"), [("same", False), ("some", True), ("", True)])
def test_a_file_with_the_same_content_is_not_touched(
    tmp_path: Path, content: str, is_touched: bool
) -> None:
    target = tmp_path / "x"
    target.write_text("same")
    os.utime(target, ns=(1, 1))
    before = target.stat()

    write_atomically(target, lambda path: path.write_text(content))

    after = target.stat()
    assert target.read_text() == content and [*tmp_path.iterdir()] == [target]
    assert (after.st_mtime_ns != 1) == is_touched
    assert (after.st_ino != before.st_ino) == is_touched


def test_a_former_file_that_cannot_be_read_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    target.write_text("same")

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("c3tools.io.files.sha256_of", fail)
    os.utime(target, ns=(1, 1))
    write_atomically(target, lambda path: path.write_text("same"))
    assert target.stat().st_mtime_ns != 1


def test_files_and_their_names_outlast_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors = Path("/proc/self/fd")
    before = len([*descriptors.iterdir()])

    def sync(descriptor: int) -> None:
        done.append(f"sync {(descriptors / str(descriptor)).readlink().relative_to(tmp_path)}")

    monkeypatch.setattr(os, "fsync", sync)
    with at_operation(tmp_path, -1, lambda path: None) as done:
        write_atomically(tmp_path / "a" / "b" / "x", lambda path: path.write_text("x"))
        with replacing(tmp_path / "out") as new:
            (new / "in").mkdir()
            (new / "in" / "y").write_text("y")
    steps = " ".join(
        re.sub(r"[0-9a-f]{16}", "*", step)
        for step in done
        if step.startswith(("sync", "os.rename"))
    )
    assert steps == (
        "sync a sync . sync a/b/.x.*.tmp os.rename a/b/.x.*.tmp sync a/b "
        "sync . sync .out.new.tmp sync .out.new.tmp/in/y sync .out.new.tmp/in os.rename "
        ".out.new.tmp sync ."
    )
    assert len([*descriptors.iterdir()]) == before


def test_files_have_the_rights_that_the_user_chose(tmp_path: Path) -> None:
    before = os.umask(0o026)
    try:
        write_atomically(tmp_path / "x", lambda path: path.touch(0o600))
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    finally:
        assert os.umask(before) == 0o026


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "x.json", {"b": "ü", "a": 1})
    (tmp_path / ".x.json.0123456789abcdef.tmp").write_text("half")
    (tmp_path / ".of.the.user.tmp").write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".of.the.user.tmp", "x.json"]
    content = (tmp_path / "x.json").read_bytes()
    assert content == '{\n "a": 1,\n "b": "ü"\n}\n'.encode()
    assert sha256_of(tmp_path / "x.json") == hashlib.sha256(content).hexdigest()


def test_a_number_that_json_has_not_is_null() -> None:
    text = json_text({"x": [math.nan, math.inf, -math.inf, 1e-5]})
    assert json.loads(text, parse_constant=pytest.fail) == {"x": [None, None, None, 1e-5]}


def test_a_record_names_no_file_out_of_its_folder(tmp_path: Path) -> None:
    paths = "../x|a/../../x|/etc/x||.|..|C:\\x|a\\..\\..\\x|C:x".split("|")
    for name in [*paths, "ü" * 128, 7, None, ["x"]]:
        with pytest.raises(ValueError, match="not in its folder"):
            recorded_file(tmp_path, name)
    for inside in ("x", "image/part-00000.parquet", "..x", "x" + "ü" * 127):
        assert recorded_file(tmp_path, inside) == tmp_path / inside


@pytest.mark.parametrize("name", ["a" * 251 + ".txt", "ü" * 125 + ".txt"])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    left: list[str] = []

    def write(path: Path) -> None:
        path.write_text("half")
        left.append(path.name)

    write_atomically(tmp_path / name, write)
    (tmp_path / left[0]).write_text("left by a killed writer")
    remove_leftovers(tmp_path, [name])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def _full(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _short(path: Path) -> None:
    raise OSError("1024 requested and 0 written")  # as numpy says it


@pytest.mark.parametrize("fail", [_full, _short])
def test_a_full_disk_is_named_with_the_file(tmp_path: Path, fail: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match=re.escape(repr(str(tmp_path / "x")))):
        write_atomically(tmp_path / "x", fail)
    with (
        pytest.raises(OSError, match=re.escape(repr(str(tmp_path / "folder")))),
        replacing(tmp_path / "folder"),
    ):
        fail(tmp_path)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "Free some disk space"),
        (errno.EROFS, "Make the path writable"),
        (errno.EACCES, "Make the path writable"),
        (errno.EIO, "Check the path"),
    ],
)
def test_what_to_do_depends_on_the_error(number: int, said: str) -> None:
    assert remedy_of(OSError(number, "x")).startswith(said)
