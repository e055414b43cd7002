"""Lists in temporary databases do what lists and dicts do, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.corpus import Corpus, ImageItem, ItemList, TextItem, item_lists, read_corpus
from c3tools.corpus.images import ByteRange, Download, TableCell
from c3tools.corpus.items import CaptionedKeys, Skipped
from c3tools.errors import C3Error
from c3tools.io import temporary

TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
NUMBER = st.integers(0, 2**62)
SOURCE = st.one_of(
    st.none(),
    st.builds(ByteRange, TEXT, NUMBER, NUMBER),
    st.builds(Download, TEXT),
    st.builds(TableCell, TEXT, TEXT, NUMBER, NUMBER, TEXT, st.booleans(), st.booleans()),
)
IMAGE = st.builds(ImageItem, TEXT, TEXT, st.one_of(st.none(), TEXT), st.one_of(st.none(), NUMBER), SOURCE)


@settings(max_examples=60, deadline=None)
@given(st.lists(IMAGE, max_size=12), st.integers(1, 5), st.lists(TEXT, max_size=4), st.slices(12))
def test_it_does_what_a_list_does(images: list[ImageItem], block: int, others: list[str], chosen: slice) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_lists, "_BLOCK", block)
        stored = ItemList(ImageItem)
        for image in images:
            stored.append(image)
            assert stored[-1] == image
        assert stored == images
        assert len(stored) == len(images)
        assert stored[chosen] == images[chosen]
        assert [type(image.source) for image in stored] == [type(image.source) for image in images]
        keys = [image.key for image in images]
        assert stored.repeated_key() == next((key for key in keys if keys.count(key) > 1), None)
        unique = {image.key: image for image in images}
        table = ItemList(ImageItem, unique.values())
        asked = [*others, *keys, *reversed(keys)]
        positions = {key: position for position, key in enumerate(unique)}
        expected = [(positions[key], unique[key]) if key in unique else None for key in asked]
        assert list(table.find(asked)) == expected
        more = ImageItem("longer than the others", "", None, 0)
        table.append(more)  # after it was looked into
        assert list(table.find([*asked, more.key, "another"])) == [*expected, (len(unique), more), None]
        paths = {image.path for image in images}
        assert [stored.has(path, "path") for path in others] == [path in paths for path in others]
        stored.extend(images)
        stored.sort()
        assert stored == sorted([*images, *images], key=lambda image: image.key)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.lists(st.text(max_size=3), max_size=2))), st.integers(1, 4))
def test_captions_of_keys_are_joined_as_in_a_dict(rows: list[tuple[str, list[str]]], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_lists, "_BLOCK", block)
        stored, expected = CaptionedKeys(), dict[str, list[str]]()
        for key, captions in rows:
            if stored.get(key) is None:
                stored.add(key, captions, image=ImageItem(key, f"{key}.jpg", None, 1))
            else:
                stored.add_captions(key, captions)
            expected.setdefault(key, []).extend(captions)
            assert stored.get(key) == (expected[key], None)
        assert list(stored) == list(expected)
        assert {image.key: captions for image, captions in stored.images()} == expected


def test_what_cannot_be_stored_is_skipped_or_written_so_that_it_can_be_read() -> None:
    corpus = Corpus()
    corpus.add_image(ImageItem("a\udc80", "a\udc80.jpg", None, 1), ["a caption"])
    corpus.skipped += [Skipped("\udc80", "", "", "")]
    assert corpus.images == corpus.texts == []
    assert [skipped.key for skipped in corpus.skipped] == ["'a\\udc80'", "\\udc80"]


def test_a_corpus_is_the_same_whatever_fits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["path,caption", *(f"{n % 7}.jpg,caption {n}" for n in range(20)), "7.jpg,", "x/0.jpg,other"]
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("\n".join(lines))
    paths = [tmp_path / "one.csv", tmp_path / "two.csv"]
    whole = read_corpus(paths, image_column="path")
    assert len(whole.images) == 8
    assert [text.caption for text in whole.texts if text.image_key == "3"] == ["caption 3", "caption 10", "caption 17"]
    assert [skipped.error for skipped in whole.skipped].count("DuplicateKey") == 8
    monkeypatch.setattr(item_lists, "_BLOCK", 3)
    monkeypatch.setattr(temporary, "CACHE_MIB", 0)
    small = read_corpus(paths, image_column="path")
    for name in ("images", "texts", "skipped", "images_without_caption"):
        assert getattr(small, name) == getattr(whole, name)


def test_a_full_disk_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = temporary.open_database

    def small() -> object:
        database = opened()
        database.execute("pragma max_page_count=4")
        return database

    monkeypatch.setattr(item_lists, "open_database", small)
    with pytest.raises(C3Error, match="database or disk is full") as error:
        ItemList(TextItem, (TextItem(str(n), "a caption of some words", None, None) for n in range(10_000)))
    assert "TMPDIR" in (error.value.remedy or "")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_nothing_is_left_behind_by_a_killed_process(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from c3tools.io import temporary\n"
        "temporary.CACHE_MIB = 0\n"
        "from c3tools.corpus import ItemList\n"
        "kept = ItemList(str, map(str, range(50_000)))\n"
        "files = [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')]\n"
        f"assert any({str(tmp_path)!r} in file for file in files)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.iterdir()) == []
