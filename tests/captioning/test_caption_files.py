from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from c3tools.captioning import caption_files
from c3tools.captioning.caption_files import CaptionWriter
from c3tools.corpus.items import Failure
from c3tools.errors import OutputError

BY = "tiny decoder of toy, greedy (0123456789ab)"
CAPTIONS = {
    "a/dog": "a dog",
    "a/cat": 'a "cat", ö 夢 & <it>',
    "b/dog": "two\nlines; one runs,\r\none doesn't",
    "x": "a\rboat",
    "y": "",
}


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    """Files that are there, but hold nothing: no writer reads a photo unless a page is asked for."""
    found = {key: tmp_path / "photos" / f"{key}.jpg" for key in CAPTIONS}
    for path in found.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return found


def write_pending(photos: dict[str, Path], by: str = BY, **files: Any) -> dict[str, str]:
    """Write what no file has yet, and return the captions that the files have then."""
    with CaptionWriter(photos, by, **files) as writer:
        for key in writer.pending:
            writer.write(key, CAPTIONS[key])
        return writer.finish([Failure("no", "no.jpg", "decode", "OSError", "cut short")])


def rows_of(path: Path) -> list[dict[str, str]]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_every_format_holds_every_caption(photos: dict[str, Path], tmp_path: Path) -> None:
    path, page = tmp_path / "c.json", tmp_path / "c.html"
    assert write_pending(photos, json=path, txt=True, xmp=True, html=page) == CAPTIONS
    expected = [{"key": key, "path": str(photos[key]), "caption": CAPTIONS[key], "captioner": BY} for key in CAPTIONS]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in expected)
    assert path.read_text(encoding="utf-8") == f"[\n{lines}\n]\n"
    for key, caption in CAPTIONS.items():
        assert photos[key].with_suffix(".txt").read_bytes() == f"{caption}\n".encode()
        found = ElementTree.parse(photos[key].with_suffix(".xmp")).findall(
            ".//{http://purl.org/dc/elements/1.1/}description//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
        )
        assert [element.text or "" for element in found] == [caption.replace("\r", "").replace("\n", "")]
    html = page.read_text(encoding="utf-8")
    assert "a &#34;cat&#34;, ö 夢 &amp; &lt;it&gt;" in html
    assert html.count("could not be read") == len(photos)  # no photo here is one
    assert ("no.jpg" in html, "are shown" in html) == (True, False)
    many = {str(row): tmp_path / "none.jpg" for row in range(1001)}
    with CaptionWriter(many, BY, html=page) as writer:
        for key in many:
            writer.write(key, "a dog")
        writer.finish([])
    html = page.read_text(encoding="utf-8")
    assert (html.count("could not be read"), "1,001 captions" in html, "are shown" in html) == (1000, True, True)


@pytest.mark.parametrize("every_row", [True, False])
def test_a_run_that_is_killed_anywhere_is_continued_to_the_same_bytes(
    photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_row: bool
) -> None:
    if every_row:
        monkeypatch.setattr(caption_files, "SAVE_SECONDS", -1e9)
    (tmp_path / "there").write_text("")  # a link is followed, and an empty file is none
    path = tmp_path / "c.json"
    path.symlink_to("there")
    files: dict[str, Any] = {"json": path, "txt": True}
    for kill in range(len(CAPTIONS)):
        child = os.fork()
        if child == 0:
            with CaptionWriter(photos, BY, **files) as writer:
                writer.write(key := writer.pending[0], CAPTIONS[key])
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        if every_row:
            assert len(rows_of(path)) == kill + 1
            list(photos.values())[kill].with_suffix(".txt").unlink()  # as if killed between the two
    left, other = (photos["x"].with_name(f".{own}.txt.0123456789abcdef.tmp") for own in ("x", "other"))
    for leftover in (left, other):
        leftover.write_text("a bo")
    write_pending(photos, **files)
    assert (left.exists(), other.exists()) == (False, True)  # the other may be of another program
    assert all(photo.with_suffix(".txt").exists() for photo in photos.values())
    whole = tmp_path / "whole.json"
    write_pending(photos, json=whole)
    assert path.is_symlink()
    assert path.read_bytes() == whole.read_bytes()


def test_files_beside_photos_are_kept_unless_overwritten(photos: dict[str, Path], tmp_path: Path) -> None:
    own = photos["x"].with_suffix(".txt")
    own.write_text("my own words")
    with CaptionWriter(photos, BY, txt=True) as writer:
        assert "x" not in writer.pending
        assert writer.captions == {"x": "my own words"}
    with CaptionWriter(photos, BY, txt=True, json=tmp_path / "c.json") as writer:
        assert writer.pending == list(photos)  # the JSON wants a caption by this captioner
    write_pending(photos, txt=True, json=tmp_path / "c.json")
    assert own.read_text() == "my own words"
    photos["x"].with_suffix(".xmp").write_text("")
    for page, waiting in ((None, False), (tmp_path / "c.html", True)):  # a page needs to know the caption
        with CaptionWriter(photos, BY, xmp=True, html=page) as writer:
            assert ("x" in writer.pending, writer.captions) == (waiting, {})
    write_pending(photos, txt=True, overwrite=True)
    assert own.read_bytes() == b"a\rboat\n"


def test_captions_of_other_settings_or_photos_are_refused(photos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_pending(photos, json=path)
    before = path.read_bytes()
    elsewhere = {key: tmp_path / "elsewhere" / value.name for key, value in photos.items()}
    for own, by, named in ((photos, "another", "another"), (elsewhere, BY, "'a/dog'")):
        with pytest.raises(OutputError, match=named):
            write_pending(own, by, json=path)
    assert path.read_bytes() == before
    with CaptionWriter({"new": tmp_path / "new.jpg"}, BY, json=path) as writer:
        assert writer.pending == ["new"]
        writer.write("new", "a new one")
    assert [row["key"] for row in rows_of(path)] == [*photos, "new"]
    write_pending(photos, "another", json=path, overwrite=True)
    assert {row["captioner"] for row in rows_of(path)} == {"another"}


@pytest.mark.parametrize(
    "content",
    [
        '{"a": 1}',
        '[{"image_id": 3, "caption": "a dog"}]',
        "[1, 2]",
        "not JSON at all",
        '[{"key": "a", "path": "a.jpg", "caption": "\\ud800", "captioner": "a test"}]',
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_something_else_is_left_alone(
    photos: dict[str, Path], tmp_path: Path, content: str, overwrite: bool
) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(OutputError, match=path.name):
        write_pending(photos, json=path, overwrite=overwrite)
    assert path.read_text() == content


def test_a_second_run_is_refused(photos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with CaptionWriter(photos, BY, json=path) as first:
        first.write("x", "a boat")
        with pytest.raises(OutputError, match=str(os.getpid())):
            write_pending(photos, json=path)
    assert [row["key"] for row in rows_of(path)] == ["x"]


def test_a_full_disk_loses_no_row(photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"), CaptionWriter(photos, BY, json=path) as writer:
        writer.write("x", "a boat")
        writer.save()
        writer.write("y", "")
        monkeypatch.setattr(os, "fsync", full)
    monkeypatch.undo()
    with CaptionWriter(photos, BY, json=path) as writer:
        assert writer.captions == {"x": "a boat"}


def test_two_photos_cannot_share_a_file(photos: dict[str, Path]) -> None:
    twin = {**photos, "x.png": photos["x"].with_suffix(".png")}
    with pytest.raises(OutputError, match=r"x\.png .*x\.jpg"):
        CaptionWriter(twin, BY, txt=True)
    CaptionWriter({**photos, "again": photos["x"]}, BY, txt=True)  # one photo under two keys is no collision
