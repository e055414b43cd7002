from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from c3tools.io.files import recorded_file, remove_leftovers, sha256_of, write_atomically, write_json_atomically


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "x.json", {"b": "ü", "a": 1})
    (tmp_path / ".x.json.0123456789abcdef.tmp").write_text("half")
    (tmp_path / ".of.the.user.tmp").write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".of.the.user.tmp", "x.json"]
    content = (tmp_path / "x.json").read_bytes()
    assert content == '{\n "a": 1,\n "b": "ü"\n}\n'.encode()
    assert sha256_of(tmp_path / "x.json") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "", ".", "..", "C:\\x", "a\\..\\..\\x", "C:x", "ü" * 200, 7, None, ["x"]]
)
def test_a_record_names_no_file_out_of_its_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(ValueError, match="not in its folder"):
        recorded_file(tmp_path, name)
    for inside in ("x", "image/part-00000.parquet", "..x", "ü 1.json"):
        assert recorded_file(tmp_path, inside) == tmp_path / inside
