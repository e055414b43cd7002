from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from c3tools.encoders.backends import ModelCache
from c3tools.encoders.backends import cache as cache_module

from c3tools.errors import EncoderError
from tests.encoders.backends.test_converted import Listener

KEY = {"model": "m", "weights_sha256": "0" * 64, "backend": "openvino"}


def write(folder: Path) -> None:
    (folder / "image.bin").write_bytes(b"weights")


def test_a_model_is_made_once(tmp_path: Path) -> None:
    cache, made = ModelCache(tmp_path), []

    def convert(folder: Path) -> None:
        made.append(folder)
        write(folder)

    first, second = (cache.converted(KEY, convert) for _ in range(2))
    assert first == second
    assert len(made) == 1
    assert cache.converted({**KEY, "backend": "onnx"}, convert) != first
    assert [model.made_from["backend"] for model in cache.models()] in (["openvino", "onnx"], ["onnx", "openvino"])
    assert cache.models()[0].size > 7


def test_two_at_once_leave_one_whole_model(tmp_path: Path) -> None:
    barrier, found = threading.Barrier(2), []

    def convert(folder: Path) -> None:
        write(folder)
        barrier.wait(10)  # both have written before either renames

    def run() -> None:
        found.append(ModelCache(tmp_path).converted(KEY, convert))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert (found[0] / "image.bin").read_bytes() == b"weights"
    assert list((tmp_path / "converted").iterdir()) == [found[0]]


@pytest.mark.parametrize("damage", ["changed", "cut", "file gone", "record gone", "record of another"])
def test_damage_is_seen_and_repaired(tmp_path: Path, damage: str) -> None:
    cache, listener = ModelCache(tmp_path), Listener()
    path = cache.converted(KEY, write)
    if damage == "changed":
        (path / "image.bin").write_bytes(b"Weights")
    elif damage == "cut":
        (path / "image.bin").write_bytes(b"wei")
    elif damage == "file gone":
        (path / "image.bin").unlink()
    elif damage == "record gone":
        (path / "model.json").unlink()
    else:
        (path / "model.json").write_text((path / "model.json").read_text().replace("openvino", "onnx"))
    assert cache.converted(KEY, write, listener) == path
    assert (path / "image.bin").read_bytes() == b"weights"
    assert len(listener.said) == 1
    cache.converted(KEY, write, listener)
    assert len(listener.said) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache, listener = ModelCache(tmp_path / "file" / "cache"), Listener()
    path = cache.converted(KEY, write, listener)
    assert (path / "image.bin").read_bytes() == b"weights"
    assert len(listener.said) == 1
    assert "set C3_CACHE to another folder" in listener.said[0]
    cache.note_choice(KEY, {"backend": "torch"})
    assert cache.choice(KEY) is None
    assert cache.models() == []


def test_a_full_disk_is_done_without_and_full_everywhere_is_an_error(tmp_path: Path) -> None:
    cache, listener = ModelCache(tmp_path), Listener()

    def full(folder: Path) -> None:
        write(folder)
        if everywhere or folder.is_relative_to(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")

    everywhere = False
    path = cache.converted(KEY, full, listener)
    assert not path.is_relative_to(tmp_path)
    assert "No space left on device" in listener.said[0]
    assert list((tmp_path / "converted").iterdir()) == []
    everywhere = True
    with pytest.raises(EncoderError, match=r"(?s)cannot be written.*--backend torch"):
        cache.converted(KEY, full)


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ModelCache(tmp_path).converted(KEY, interrupted)
    assert list((tmp_path / "converted").iterdir()) == []


def test_choices_are_noted_and_damaged_ones_forgotten(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    assert cache.choice(KEY) is None
    cache.note_choice(KEY, {"backend": "onnx"})
    assert cache.choice(KEY) == {"backend": "onnx"}
    assert cache.choice({**KEY, "model": "n"}) is None
    (file,) = (tmp_path / "choices").iterdir()
    file.write_text("{")
    assert cache.choice(KEY) is None


def test_clearing_removes_what_the_cache_made_and_nothing_else(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    cache.converted(KEY, write)
    cache.note_choice(KEY, {})
    (tmp_path / "mine.txt").touch()
    cache.clear()
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    cache.clear()


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("C3_CACHE", str(tmp_path))
    assert ModelCache().folder == tmp_path
    monkeypatch.delenv("C3_CACHE")
    monkeypatch.setattr(cache_module, "user_cache_path", lambda name, **options: tmp_path / name)
    assert ModelCache().folder == tmp_path / "c3tools"


@pytest.mark.parametrize("place", ["", "converted", "model"])
def test_a_cache_that_others_can_write_to_is_not_used(tmp_path: Path, place: str) -> None:
    cache, listener = ModelCache(tmp_path / "cache"), Listener()
    path = cache.converted(KEY, write)
    folder = path if place == "model" else tmp_path / "cache" / place
    folder.chmod(0o777)
    (path / "image.bin").write_bytes(b"of somebody else")
    elsewhere = cache.converted(KEY, write, listener)
    assert not elsewhere.is_relative_to(tmp_path)
    assert (elsewhere / "image.bin").read_bytes() == b"weights"
    assert f"other users can write to {folder}" in listener.said[0]
    folder.chmod(0o755)


def test_a_cache_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, listener = ModelCache(tmp_path), Listener()
    cache.converted(KEY, write)
    owner = os.getuid()
    if owner == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert not cache.converted(KEY, write, listener).is_relative_to(tmp_path)
    assert "other users can write" in listener.said[0]


def test_files_of_a_model_are_in_its_folder(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path / "cache")
    path = cache.converted(KEY, write)
    (tmp_path / "secret").write_bytes(b"1")
    record = json.loads((path / "model.json").read_text())
    record["sha256"] = {"../../../secret": record["sha256"]["image.bin"]}
    (path / "model.json").write_text(json.dumps(record))
    with pytest.raises(EncoderError, match="not in its folder"):
        cache.copied(path)
