from __future__ import annotations

import csv
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3tools.captioning.caption_files import CaptionWriter, _Table
from c3tools.errors import CorpusError, OutputError
from c3tools.io.locations import location
from c3tools.io.lock import lock_file

BY = "tiny decoder of toy, greedy (0123456789ab)"
CAPTIONS = {
    "a/dog": "a dog",
    "a/cat": 'a "cat", ö 夢 & <it>',
    "b/dog": "two dogs; one runs, one doesn't",
    "x": "a boat",
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


def write_pending(writer: CaptionWriter) -> dict[str, str]:
    with writer:
        for key in writer.pending:
            writer.write(key, CAPTIONS[key])
        return writer.finish([])


def rows_of(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_format_holds_every_caption(photos: dict[str, Path], tmp_path: Path) -> None:
    files = [tmp_path / "c.json", tmp_path / "c.csv"]
    page = tmp_path / "c.html"
    with CaptionWriter(photos, BY, json=files[0], csv=files[1], txt=True, xmp=True, html=page) as writer:
        assert writer.pending == list(photos)
        for number, (key, caption) in enumerate(CAPTIONS.items(), start=1):
            writer.write(key, caption)
            for path in files:  # whole after every row
                assert [row["caption"] for row in rows_of(path)] == list(CAPTIONS.values())[:number]
        assert writer.finish([(Path("no.jpg"), "cut short")]) == CAPTIONS
    expected = [{"key": key, "path": str(photos[key]), "caption": CAPTIONS[key], "captioner": BY} for key in CAPTIONS]
    assert rows_of(files[0]) == rows_of(files[1]) == expected
    for key, path in photos.items():
        assert path.with_suffix(".txt").read_text(encoding="utf-8") == CAPTIONS[key] + "\n"
        found = ElementTree.parse(path.with_suffix(".xmp")).findall(
            ".//{http://purl.org/dc/elements/1.1/}description//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
        )
        assert [element.text or "" for element in found] == [CAPTIONS[key]]
    html = page.read_text(encoding="utf-8")
    assert "a &#34;cat&#34;, ö 夢 &amp; &lt;it&gt;" in html
    assert html.count("could not be read") == len(photos)  # no photo here is one
    assert "no.jpg" in html
    assert not list(tmp_path.rglob("*.tmp"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_cut_at_any_byte_is_continued(photos: dict[str, Path], tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["json", "csv"]))
    path = tmp_path / f"c.{name}"
    path.unlink(missing_ok=True)
    write_pending(CaptionWriter(photos, BY, **{name: path}))  # type: ignore[arg-type]
    whole = path.read_bytes()
    header = whole.index(b"\n")
    cut = data.draw(st.one_of(st.just(0), st.integers(header + 1, len(whole))))
    path.write_bytes(whole[:cut])
    with CaptionWriter(photos, BY, **{name: path}) as writer:  # type: ignore[arg-type]
        # the rows before the cut are kept, and only what was cut off is asked for
        assert len(writer.pending) <= whole.count(b"\n") - whole[:cut].count(b"\n")
        for key in writer.pending:
            writer.write(key, CAPTIONS[key])
    assert path.read_bytes() == whole


def test_killed_between_two_files_five_times(photos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for kill in range(len(CAPTIONS)):
        child = os.fork()
        if child == 0:
            with CaptionWriter(photos, BY, json=path, txt=True) as writer:
                key = writer.pending[0]
                writer._tables[0].append(
                    {"key": key, "path": str(photos[key]), "caption": CAPTIONS[key], "captioner": BY}
                )
                os.kill(os.getpid(), signal.SIGKILL)  # the .txt is not written yet
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert len(rows_of(path)) == kill + 1
        assert sum(photo.with_suffix(".txt").exists() for photo in photos.values()) == kill
    left = photos["x"].with_name(".x.txt.0123456789abcdef.tmp")
    other = photos["x"].with_name(".other.txt.0123456789abcdef.tmp")
    for leftover in (left, other):
        leftover.write_text("a bo")
    with CaptionWriter(photos, BY, json=path, txt=True) as writer:
        assert writer.pending == []
    assert not left.exists()
    assert other.exists()  # of another program's file, or another photo's
    assert [row["key"] for row in rows_of(path)] == list(photos)
    for key, photo in photos.items():
        assert photo.with_suffix(".txt").read_text(encoding="utf-8") == CAPTIONS[key] + "\n"


def test_files_beside_photos_are_kept_unless_overwritten(photos: dict[str, Path], tmp_path: Path) -> None:
    own = photos["x"].with_suffix(".txt")
    own.write_text("my own words")
    with CaptionWriter(photos, BY, txt=True) as writer:
        assert "x" not in writer.pending
        assert writer.captions == {"x": "my own words"}
    with CaptionWriter(photos, BY, txt=True, json=tmp_path / "c.json") as writer:
        assert writer.pending == list(photos)  # the JSON wants a caption by this captioner
    write_pending(CaptionWriter(photos, BY, txt=True, json=tmp_path / "c.json"))
    assert own.read_text() == "my own words"
    write_pending(CaptionWriter(photos, BY, txt=True, overwrite=True))
    assert own.read_text() == "a boat\n"


def test_captions_of_other_settings_or_photos_are_refused(photos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    write_pending(CaptionWriter(photos, BY, csv=path))
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"contains captions by tiny .* not by another"):
        write_pending(CaptionWriter(photos, "another", csv=path))
    elsewhere = {key: tmp_path / "elsewhere" / value.name for key, value in photos.items()}
    with pytest.raises(
        OutputError, match=r"a caption of .*photos/a/dog.jpg with the key 'a/dog', but this key now belongs to"
    ):
        write_pending(CaptionWriter(elsewhere, BY, csv=path))
    assert path.read_bytes() == before
    more = {"new": tmp_path / "photos" / "new.jpg"}
    with CaptionWriter(more, BY, csv=path) as writer:
        assert writer.pending == ["new"]
        writer.write("new", "a new one")
    assert [row["key"] for row in rows_of(path)] == [*photos, "new"]
    write_pending(CaptionWriter(photos, "another", csv=path, overwrite=True))
    assert {row["captioner"] for row in rows_of(path)} == {"another"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("json", '{"a": 1}'),
        ("json", '[{"image_id": 3, "caption": "a dog"}]'),
        ("json", "[1, 2]"),
        ("json", "not JSON at all"),
        ("csv", "a,b\n1,2\n"),
        ("csv", "a novel"),
        ("csv", "a" * 200_000 + "\n"),
        ("json", '[{"key": "a", "path": "a.jpg", "caption": "\\ud800", "captioner": "a test"}]'),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_something_else_is_left_alone(
    photos: dict[str, Path], tmp_path: Path, name: str, content: str, overwrite: bool
) -> None:
    path = tmp_path / f"c.{name}"
    path.write_text(content)
    with pytest.raises(OutputError, match="was not written by c3 caption"):
        write_pending(CaptionWriter(photos, BY, **{name: path}, overwrite=overwrite))  # type: ignore[arg-type]
    assert path.read_text() == content


def test_captions_without_their_captioner_are_replaced_only_when_asked(photos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('[{"key": "x", "caption": "old"}]')
    with pytest.raises(OutputError, match="captions by an unknown captioner"):
        write_pending(CaptionWriter(photos, BY, json=path))
    assert write_pending(CaptionWriter(photos, BY, json=path, overwrite=True)) == CAPTIONS


def test_a_second_run_is_refused(photos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with CaptionWriter(photos, BY, json=path) as first:
        first.write("x", "a boat")
        with pytest.raises(OutputError, match="Another run is writing"), CaptionWriter(photos, BY, json=path):
            pass
        first.write("y", "")
    assert [row["key"] for row in rows_of(path)] == ["x", "y"]


def test_a_file_stays_locked_while_it_is_replaced(
    photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run comes just before a new file is written, or has opened the file that it replaces."""
    path = tmp_path / "c.csv"
    write_all = _Table._write_all

    def with_a_second_run(table: _Table) -> None:
        monkeypatch.undo()
        with pytest.raises(OutputError, match="Another run is writing"), CaptionWriter(photos, BY, csv=path):
            pass
        write_all(table)

    monkeypatch.setattr(_Table, "_write_all", with_a_second_run)
    with CaptionWriter(photos, BY, csv=path) as writer:
        writer.write("x", "a boat")

    def after_it_was_replaced(descriptor: int, locked: Path) -> None:
        monkeypatch.undo()
        replacement = tmp_path / "new"
        replacement.write_bytes(path.read_bytes())
        replacement.replace(path)
        lock_file(descriptor, locked)

    monkeypatch.setattr("c3tools.captioning.caption_files.lock_file", after_it_was_replaced)
    assert write_pending(CaptionWriter(photos, BY, csv=path)) == CAPTIONS
    assert {row["key"]: row["caption"] for row in rows_of(path)} == CAPTIONS


def test_a_link_is_followed(photos: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("key,path,caption,captioner\n")
    (tmp_path / "c.csv").symlink_to("there.csv")
    write_pending(CaptionWriter(photos, BY, csv=tmp_path / "c.csv"))
    assert len(rows_of(tmp_path / "there.csv")) == len(CAPTIONS)


def test_files_of_a_run_that_fails_are_not_kept_locked(
    photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        if table.exists() and os.path.samestat(os.fstat(descriptor), table.stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rows, table = tmp_path / "c.json", tmp_path / "c.csv"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as failed:
        patch.setattr(os, "fsync", full)
        write_pending(CaptionWriter(photos, BY, json=rows, csv=table))
    assert write_pending(CaptionWriter(photos, BY, json=rows, csv=table)) == CAPTIONS
    assert failed.traceback is not None  # holds the writer that failed, so that nothing else has closed its files


@pytest.mark.parametrize("name", ["json", "csv"])
def test_captions_and_paths_may_have_line_breaks(tmp_path: Path, name: str) -> None:
    texts = {"a\nb": "two\nlines", "c\rd": "old\rlines", "e": "both\r\n", "f": 'a "dog"\n,'}
    photos = {key: tmp_path / f"{key}.jpg" for key in texts}
    path = tmp_path / f"c.{name}"
    files: dict[str, Any] = {name: path}
    with CaptionWriter(photos, BY, **files) as writer:
        for key, text in texts.items():
            writer.write(key, text)
            assert [row["caption"] for row in rows_of(path)] == list(texts.values())[: len(writer.captions)]
    whole = path.read_bytes()
    breaks = [cut for cut, byte in enumerate(whole, start=1) if byte in b"\r\n"]
    for cut in breaks[1:]:
        path.write_bytes(whole[:cut])
        with CaptionWriter(photos, BY, **files) as writer:
            for key in writer.pending:
                writer.write(key, texts[key])
        assert path.read_bytes() == whole


def test_rows_of_embeddings_at_a_url_are_continued(tmp_path: Path) -> None:
    place = location("memory://bucket/c3-store")
    write_pending(CaptionWriter(dict.fromkeys(CAPTIONS, place), BY, csv=tmp_path / "c.csv"))
    with CaptionWriter(dict.fromkeys(CAPTIONS, place), BY, csv=tmp_path / "c.csv") as writer:
        assert (writer.pending, writer.captions) == ([], CAPTIONS)
    other = dict.fromkeys(CAPTIONS, location("memory://bucket/other"))
    with pytest.raises(OutputError, match="belongs to memory://bucket/other"):
        write_pending(CaptionWriter(other, BY, csv=tmp_path / "c.csv"))


def test_two_photos_cannot_share_a_file(photos: dict[str, Path]) -> None:
    twin = {**photos, "x.png": photos["x"].with_suffix(".png")}
    with pytest.raises(CorpusError, match=r"x.jpg and .*x.png would have the same caption file .*x.txt"):
        CaptionWriter(twin, BY, txt=True)
    CaptionWriter({**photos, "again": photos["x"]}, BY, txt=True)  # one photo under two keys is no collision


def test_a_full_disk_loses_no_row(photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(OSError, match="No space left"), CaptionWriter(photos, BY, json=path) as writer:
        writer.write("x", "a boat")
        table = writer._tables[0]

        def half(text: str) -> None:
            table._file.write(text.encode()[: len(text) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(table, "_put", half)
        writer.write("y", "a dog")
    with CaptionWriter(photos, BY, json=path) as writer:
        assert writer.captions == {"x": "a boat"}
        assert rows_of(path)[0]["caption"] == "a boat"
