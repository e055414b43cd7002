from __future__ import annotations

import errno
import json
import os
import signal
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock
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
JSON, PAGE = Path("c.json"), Path("c.html")
PHOTOS = {key: Path("photos", f"{key}.jpg") for key in CAPTIONS}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with files that are there, but hold nothing: no writer reads a photo unless a page
    is asked for."""
    monkeypatch.chdir(tmp_path)
    for path in PHOTOS.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def write_pending(by: str = BY, photos: Any = PHOTOS, **files: Any) -> Any:
    """Write what no file has yet, and return the captions that the files have then."""
    with CaptionWriter(photos, by, **files) as writer:
        for key in writer.pending:
            writer.write(key, CAPTIONS.get(key, "a dog"))
        return writer.finish([Failure("no", "no.jpg", "decode", "OSError", "cut short")])


def rows_of(path: Path = JSON) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_format_holds_every_caption() -> None:
    assert write_pending(json=JSON, txt=True, xmp=True, html=PAGE) == CAPTIONS
    expected = [
        {"key": key, "path": str(PHOTOS[key]), "caption": CAPTIONS[key], "captioner": BY}
        for key in CAPTIONS
    ]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in expected)
    assert JSON.read_text(encoding="utf-8") == f"[\n{lines}\n]\n"
    for key, caption in CAPTIONS.items():
        assert PHOTOS[key].with_suffix(".txt").read_bytes() == f"{caption}\n".encode()
        found = ElementTree.parse(PHOTOS[key].with_suffix(".xmp")).findall(
            ".//{http://purl.org/dc/elements/1.1/}description//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
        )
        assert [element.text or "" for element in found] == [
            caption.replace("\r", "").replace("\n", "")
        ]
    html = PAGE.read_text(encoding="utf-8")
    assert "a &#34;cat&#34;, ö 夢 &amp; &lt;it&gt;" in html
    # no photo here is one
    assert (html.count("could not be read"), "no.jpg" in html, "are shown" in html) == (
        5,
        True,
        False,
    )
    write_pending(photos={str(row): Path("none.jpg") for row in range(1001)}, html=PAGE)
    html = PAGE.read_text(encoding="utf-8")
    assert (html.count("could not be read"), "1,001 captions" in html, "are shown" in html) == (
        1000,
        True,
        True,
    )


@pytest.mark.parametrize("every_row", [True, False])
def test_a_run_that_is_killed_anywhere_is_continued_to_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, every_row: bool
) -> None:
    if every_row:
        monkeypatch.setattr(caption_files, "SAVE_SECONDS", -1e9)
    Path("there").write_text("")  # a link is followed, and an empty file is none
    JSON.symlink_to("there")
    for kill, photo in enumerate(PHOTOS.values()):
        child = os.fork()
        if child == 0:
            with CaptionWriter(PHOTOS, BY, json=JSON, txt=True) as writer:
                writer.write(key := writer.pending[0], CAPTIONS[key])
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        if every_row:
            assert len(rows_of()) == kill + 1
            photo.with_suffix(".txt").unlink()  # as if killed between the two
    left, other = (Path("photos", f".{own}.txt.0123456789abcdef.tmp") for own in ("x", "other"))
    for leftover in (left, other):
        leftover.write_text("a bo")
    write_pending(json=JSON, txt=True)
    assert (left.exists(), other.exists()) == (False, True)  # the other may be of another program
    assert all(photo.with_suffix(".txt").exists() for photo in PHOTOS.values())
    write_pending(json=Path("whole.json"))
    assert JSON.is_symlink()
    assert JSON.read_bytes() == Path("whole.json").read_bytes()


def test_files_beside_photos_are_kept_unless_overwritten() -> None:
    own = PHOTOS["x"].with_suffix(".txt")
    own.write_text("my own words")
    with CaptionWriter(PHOTOS, BY, txt=True) as writer:
        assert ("x" in writer.pending, writer.captions) == (False, {"x": "my own words"})
    with CaptionWriter(PHOTOS, BY, txt=True, json=JSON) as writer:
        assert writer.pending == list(PHOTOS)  # the JSON wants a caption by this captioner
    write_pending(txt=True, json=JSON)
    assert own.read_text() == "my own words"
    PHOTOS["x"].with_suffix(".xmp").write_text("")
    for page in (None, PAGE):  # a page needs to know the caption
        with CaptionWriter(PHOTOS, BY, xmp=True, html=page) as writer:
            assert ("x" in writer.pending, writer.captions) == (page == PAGE, {})
    write_pending(txt=True, overwrite=True)
    assert own.read_bytes() == b"a\rboat\n"


def test_captions_of_other_settings_or_photos_are_refused() -> None:
    write_pending(json=JSON)
    before = JSON.read_bytes()
    elsewhere = {key: Path("elsewhere", path.name) for key, path in PHOTOS.items()}
    for by, photos, named in (("another", PHOTOS, "another"), (BY, elsewhere, "'a/dog'")):
        with pytest.raises(OutputError, match=named):
            write_pending(by, photos, json=JSON)
    assert JSON.read_bytes() == before
    write_pending(photos={"new": Path("new.jpg")}, json=JSON)
    assert [row["key"] for row in rows_of()] == [*PHOTOS, "new"]
    write_pending("another", json=JSON, overwrite=True)
    assert {row["captioner"] for row in rows_of()} == {"another"}


def test_a_file_of_something_else_is_left_alone() -> None:
    # half of a surrogate pair
    lone = '[{"key": "a", "path": "a.jpg", "caption": "\\ud800", "captioner": "a test"}]'
    others = (
        '{"a": 1}',
        '[{"image_id": 3, "caption": "a dog"}]',
        "[1, 2]",
        "not JSON at all",
        lone,
    )
    for content, overwrite in product(others, (False, True)):
        JSON.write_text(content)
        with pytest.raises(OutputError, match=JSON.name):
            write_pending(json=JSON, overwrite=overwrite)
        assert JSON.read_text() == content


def test_a_second_run_is_refused_and_a_full_disk_loses_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with (
        pytest.raises(OSError, match="No space left"),
        CaptionWriter(PHOTOS, BY, json=JSON) as writer,
    ):
        writer.write("x", "a boat")
        with pytest.raises(OutputError, match=str(os.getpid())):
            write_pending(json=JSON)
        writer.save()
        writer.write("y", "")
        monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "fsync", Mock())
    with CaptionWriter(PHOTOS, BY, json=JSON) as writer:
        assert writer.captions == {"x": "a boat"}


def test_two_photos_cannot_share_a_file() -> None:
    with pytest.raises(OutputError, match=r"x\.png .*x\.jpg"):
        CaptionWriter({**PHOTOS, "x.png": PHOTOS["x"].with_suffix(".png")}, BY, txt=True)
    # one photo under two keys is no collision
    CaptionWriter({**PHOTOS, "again": PHOTOS["x"]}, BY, txt=True)
