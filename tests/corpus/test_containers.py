"""Images in tars, tables and lists: the same corpus as their folder, and what cannot be used is
listed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3tools.corpus.containers import split_of_container
from c3tools.corpus.image_reader import ImageReader
from c3tools.corpus.items import Corpus
from c3tools.corpus.reading import read_corpus
from c3tools.corpus.tables import TABLE_SUFFIXES
from c3tools.corpus.tars import _members
from c3tools.photos.finder import PhotoFinder
from tests.corpus.packing import (
    IMAGE_STRUCT,
    Photo,
    assert_refused,
    contents,
    photos_of,
    webdataset,
    write_hf_parquet,
    write_list,
    write_tar,
)
from tests.golden import recorded
from tests.stores import one_byte_changed


def errors(corpus: Corpus) -> dict[str, str]:
    return {skipped.key: skipped.error for skipped in corpus.skipped}


def pairs(corpus: Corpus) -> list[tuple[str, str]]:
    return [(text.key, text.caption) for text in corpus.texts]


def keys(corpus: Corpus) -> list[str]:
    return [image.key for image in corpus.images]


def write(path: Path, layout: dict[str, Any] | None = None, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, **layout or {})
    return path


def pack(folder: Path, name: str, photos: list[Photo]) -> Path:
    """The photos of a folder in the form that a name says."""
    path = folder / name
    if name.startswith("list"):
        return write_list(
            path,
            [{"where": p.name, "caption": c, "split": p.split} for p in photos for c in p.captions],
        )
    if path.suffix == ".tar":
        return write_tar(path, webdataset(photos))
    if path.suffix == ".parquet":
        return write_hf_parquet(path, photos, rows_per_group=int(path.stem[-1]))
    table = pq.read_table(write_hf_parquet(path.with_suffix(".p"), photos))
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize(
    "name",
    ["x.tar", "x1.parquet", "x3.parquet", "x.arrow", *(f"list{each}" for each in TABLE_SUFFIXES)],
)
def test_every_form_is_what_its_folder_is(
    photos: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = pack(photos, name, photos_of(photos))
    folder, read = (
        read_corpus(photos),
        read_corpus(path, image_column="where" if "list" in name else None),
    )
    assert [(i.key, i.split) for i in read.images] == [(i.key, i.split) for i in folder.images]
    assert list(read.texts) == list(folder.texts)
    assert contents(read) == contents(folder)
    assert read.skipped == []
    # found again by their paths, in another order, from beside their store too
    monkeypatch.chdir(photos.parent)
    with PhotoFinder(photos / "c3-store") as finder:
        for image in reversed(read.images):
            for where in (image.path, str(Path(image.path).relative_to(photos))):
                assert finder.read_again(where) == contents(folder)[image.key]
    monkeypatch.setattr("c3tools.corpus.image_reader.LARGEST_IMAGE_FILE", 9)
    with pytest.raises(OSError, match="are too many for an image"):
        contents(read)


def test_photos_that_are_gone_are_errors_that_say_so(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", b"0")])
    # the keys may have been others
    write(tmp_path / "b.parquet", image=[b"0", b"1", b"2", b"3"], key=["k"] * 4)
    (tmp_path / "c.tar").write_bytes(b"no tar")
    finder = PhotoFinder()
    for path, message in {
        f"{tmp_path}/none.jpg": "no such file",
        f"{tmp_path}/a.tar#none.png": "the image is missing from it",
        f"{tmp_path}/none.tar#0.png": "No such file",
        f"{tmp_path}/b.parquet#4": "the image is missing from it",
        f"{tmp_path}/none.parquet#0": "No such file",
        f"{tmp_path}/c.tar#0.png": "the image is missing from it",
        "https://example.org/a.jpg": "--download downloads it",
    }.items():
        with pytest.raises(OSError, match=message) as caught:
            finder.read_again(path)
        assert caught.value.strerror
    with pytest.raises(ValueError, match="has no path"):
        finder.read_again(None)
    odd = tmp_path / "a.tar#b.png"  # a file
    odd.write_bytes(b"7")
    with finder:
        assert [finder.read_again(where) for where in (str(odd), f"{tmp_path}/b.parquet#3")] == [
            b"7",
            b"3",
        ]


def test_patterns(tmp_path: Path) -> None:
    for number in range(8, 13):
        write_tar(tmp_path / f"{number:03d}.tar", [(f"k{number}.jpg", b"x")])
    expected = [f"k{number}" for number in range(8, 13)]
    for pattern in (
        "{008..012}.tar",
        "{008,009,01{0,1,2}}.tar",
        "*.tar",
        "**/*.tar",
        "0[01]?.tar",
        ".",
    ):
        assert keys(read_corpus(f"{tmp_path}/{pattern}")) == expected
    twice = read_corpus([f"{tmp_path}/*.tar", tmp_path / "009.tar"])
    assert (keys(twice), twice.skipped) == (expected, [])
    assert_refused(r"013\.tar does not exist \(nor do 1 more\)", f"{tmp_path}/{{010..014}}.tar")
    assert_refused("Nothing matches", f"{tmp_path}/z*.tar")


def test_captions_from_json_txt_and_a_file_that_is_given(tmp_path: Path) -> None:
    members = {
        "a.jpg": b"1",
        "a.json": b'{"caption": "from json", "alt": "other", "split": "val"}',
        "b.jpg": b"2",
    }
    members |= {
        "b.txt": b"from txt\nsecond\n",
        "b.json": b'{"caption": "not this", "alt": "other b"}',
    }
    tar = write_tar(tmp_path / "00000.tar", members.items())
    write(tmp_path / "00000.parquet", key=["a"], caption=["of img2dataset"])
    corpus = read_corpus(tmp_path)
    assert pairs(corpus) == [("a#0", "from json"), ("b#0", "from txt"), ("b#1", "second")]
    assert [i.split for i in corpus.images] == ["val", None]
    assert pairs(read_corpus(tar, text_column="alt")) == [("a#0", "other"), ("b#0", "other b")]
    assert_refused(r"has 'title'\. Their fields: alt, caption, split", tar, text_column="title")
    (tmp_path / "c.csv").write_text("KEY,caption\nb,given\n")
    (tmp_path / "b.jpg").touch()
    listed = write_list(tmp_path / "l.csv", [{"where": "b.jpg"}])
    for path, column in ((tar, None), (listed, "where")):
        chosen = read_corpus(path, captions=tmp_path / "c.csv", image_column=column)
        assert pairs(chosen) == [("b#0", "given")]


def test_members_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    unsafe = ("/etc/passwd.jpg", "../up.jpg", "a/../../up.jpg", "c:\\x\\..\\..\\y.jpg")
    members = {
        "a.seg.png": b"1",
        "a.jpg": b"22",
        "a.png": b"3",
        "b.txt": b"alone",
        "a.json": b"{",
        "a.txt": b"",
    }
    members |= {"a.cls": b"7", "n.jpg": b"4", "n.json": b'{"caption": 4}'}
    write_tar(
        tmp_path / "x.tar",
        [*members.items(), (".hidden.jpg", b"x"), *((name, b"x") for name in unsafe)],
    )
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        for name, kind in {
            "s.jpg": tarfile.SYMTYPE,
            "h.jpg": tarfile.LNKTYPE,
            "d.jpg": tarfile.CHRTYPE,
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    corpus = read_corpus(tmp_path / "x.tar")
    assert contents(corpus) == {"a": b"22", "n": b"4"}
    recorded(Path(__file__).parent / "golden/members.json", errors(corpus))


def test_hidden_members_are_left_out_of_whatever_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.corpus.tars.LARGEST_TEXT", 999)
    hidden = ["._a.txt", ".DS_Store", "__MACOSX/._a.jpg", "__MACOSX/a.txt", ".h/b.jpg", "x.bin"]
    members = [("./a.jpg", b"1"), ("a.txt", b"a"), *((name, b"x" * 1000) for name in hidden)]
    corpus = read_corpus(write_tar(tmp_path / "x.tar", [*members, ("b.mp4", b"x" * 1000)]))
    assert (keys(corpus), pairs(corpus), corpus.skipped) == (["a"], [("a#0", "a")], [])
    (note,) = corpus.notes
    assert "1 member skipped (.mp4)" in note


def test_keys_that_repeat_across_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", b"first"), ("0.txt", b"one")])
    write_tar(tmp_path / "b.tar", [("0.jpg", b"second"), ("0.txt", b"two"), ("1.jpg", b"x")])
    for paths in ([tmp_path], [tmp_path / "b.tar", tmp_path / "a.tar"]):
        corpus = read_corpus(paths)
        assert contents(corpus) == {"0": b"first", "1": b"x"}
        assert [t.caption for t in corpus.texts] == ["one"]
        assert errors(corpus) == {"b.tar#0.jpg": "DuplicateKey"}


def test_every_cut_is_told_and_what_is_whole_is_read(photos: Path, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t/x.tar", webdataset(photos_of(photos)))
    # a tar that is damaged is not the only input
    write_tar(tmp_path / "t/other.tar", [("other.jpg", b"x")])
    content = whole.read_bytes()
    # the two zero blocks that end the members, and the padding of the last record
    with tarfile.open(whole) as archive:
        end = max(item.offset_data + (item.size + 511) // 512 * 512 for item in archive)
    sources: dict[str, Any] = {i.key: i.source for i in read_corpus(whole).images}
    short = [source.start + source.place - 1 for source in sources.values()]
    for cut in [
        0,
        1,
        511,
        513,
        2000,
        *range(4000, end + 1, 40_009),
        *short,
        end - 1,
        end,
        end + 100,
    ]:
        whole.write_bytes(content[:cut])
        corpus = read_corpus(tmp_path / "t")
        expected = {key for key, source in sources.items() if source.start + source.place <= cut}
        assert {*keys(corpus)} == {*expected, "other"}
        assert (errors(corpus).get("x.tar") == "DamagedTar") == (cut <= end), cut
    (_, second, *_), key = sources.values(), list(sources)[2]
    whole.write_bytes(content[: sources[key].start + sources[key].place // 2])
    (skipped,) = read_corpus(whole).skipped
    assert (
        f"truncated in the middle of {key}.jpg" in skipped.message
        and "run the same command" in skipped.message
    )
    whole.write_bytes(content)
    with one_byte_changed(whole, second.start - 512 + 148, 0xFF):  # in the header's checksum
        corpus = read_corpus(whole)
    assert (len(corpus.images), errors(corpus)) == (1, {"x.tar": "DamagedTar"})
    whole.write_bytes(b"hello" * 1000)
    assert_refused(r"nothing to embed.*damaged or truncated", whole)


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar_of_all_kinds(path: Path, tar_format: int) -> None:
    """A tar with plain members and what other headers there are; ustar has no long names."""
    names = ["a.jpg", "a.txt", "empty.txt", "a folder/b.jpg", "z.JPG", "t.jpg/", "z.txt"]
    names += [f"{'x' * 90}/long.jpg", f"{'x' * 90}/long.txt"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += [f"{'n' * 150}.jpg", "café.jpg", f"{'é' * 70}.txt", "last.jpg"]
    with tarfile.open(path, "w", format=tar_format) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 0 if name.startswith("empty") else 100 * number + 512
            info.mtime = 1_700_000_000 + number * (0.5 if tar_format == tarfile.PAX_FORMAT else 1)
            info.uname = "someone"
            archive.addfile(info, io.BytesIO(b"%d" % number * info.size))
        for name, kind in (("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)


@pytest.mark.parametrize("name", FORMATS)
def test_plain_headers_are_where_tarfile_finds_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    tar_of_all_kinds(path, FORMATS[name])
    with tarfile.open(path) as archive:
        files = [info for info in archive if info.isreg()]
    images = {info.name: info for info in files if info.name.lower().endswith(".jpg")}
    corpus = read_corpus(path)
    assert len(images) == len(corpus.images) >= 4
    for image in corpus.images:
        info = images[image.path.removeprefix(f"{path}#")]
        assert image.source is not None
        assert (image.source.start, image.source.place) == (info.offset_data, info.size)


@pytest.mark.parametrize("name", FORMATS)
def test_plain_headers_are_read_as_tarfile_reads_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tar"
    tar_of_all_kinds(path, FORMATS[name])
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        starts = [info.offset_data - 512 for info in archive.getmembers()]
    # whole, cut near each header, and bytes of two headers changed, with a right checksum and
    # without
    cases = [content]
    for start in starts:
        cases += [content[: start + cut] for cut in (-512, -1, 0, 1, 400, 511, 512, 513)]
    for start in (starts[0], starts[-3]):
        for place in (*range(0, 512, 17), 99, 107, *range(124, 158, 3), 328, 344, 345):
            for changed in (0, ord("8")):
                block = bytearray(content[start : start + 512])
                block[place] = changed
                cases.append(content[:start] + block + content[start + 512 :])
                if not 148 <= place < 156:
                    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
                    block[148:156] = b"%06o\0 " % total
                    cases.append(content[:start] + block + content[start + 512 :])

    def read_members() -> list[Any]:
        found: list[Any] = []
        for case in cases:
            path.write_bytes(case)
            corpus = Corpus()
            found.append((list(_members(path, corpus)), corpus.skipped))
        return found

    read = read_members()
    monkeypatch.setattr("c3tools.corpus.tars._plain_header", lambda _: None)
    assert read == read_members()


def test_a_global_header_applies_to_plain_members(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    headers = {"size": "7"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as archive:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"bytes"))
    assert [image.size for image in read_corpus(path).images] == [7, 7]


def test_plain_members_are_read_without_tarfile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{i}.jpg", b"%d" % i) for i in range(9)])
    read_by_tarfile = []
    original = tarfile.TarInfo.fromtarfile

    def fromtarfile(archive: tarfile.TarFile) -> tarfile.TarInfo:
        read_by_tarfile.append(archive.offset)
        return original(archive)

    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", fromtarfile)
    assert len(read_corpus(path).images) == 9
    # the first header, when the tar is opened, and the end mark
    assert read_by_tarfile == [0, 9 * 1024]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_never_raise_and_never_read_past_the_end(
    tmp_path: Path, data: st.DataObject
) -> None:
    write_tar(tmp_path / "y.tar", [("other.jpg", b"x")])
    members = {"a.jpg": b"1" * 700, "a.txt": b"one", "b.png": b"2" * 10, "b.json": b"{}"}
    path = write_tar(tmp_path / "x.tar", members.items())
    content = bytearray(path.read_bytes()[:4608])
    for place, value in data.draw(
        st.dictionaries(st.integers(0, 4607), st.integers(0, 255), min_size=1, max_size=8)
    ).items():
        content[place] = value
    path.write_bytes(content)
    corpus = read_corpus(tmp_path)
    assert {key: len(content) for key, content in contents(corpus).items()} == {
        i.key: i.size for i in corpus.images
    }


def test_no_row_has_the_image_of_another_after_a_damaged_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.io.parquet._BATCH_BYTES", 20_000)
    images = [bytes([number]) * 1000 for number in range(100)]
    path, names = tmp_path / "x.parquet", [f"{number:03d}" for number in range(100)]
    layout = {
        "compression": "none",
        "use_dictionary": False,
        "write_batch_size": 1,
        "data_page_size": 5000,
    }
    write(path, layout, jpg=images, key=names)
    whole = path.read_bytes()
    start = whole.index(images[50])
    path.write_bytes(whole[: start - 4] + b"\xff\xff\xff\x7f" + whole[start:])  # its length
    read = 0
    with ImageReader() as reader:
        for number, item in enumerate(read_corpus(path).images):
            try:
                assert reader.read(item) == images[number]
                read += 1
            except (OSError, ValueError):
                assert number >= read
    assert 0 < read <= 50
    item = read_corpus([write(path, jpg=images[:3])]).images[2]
    write(path, {"row_group_size": 2}, jpg=images[:3])
    with ImageReader() as reader, pytest.raises(OSError, match="no longer in the table"):
        reader.read(item)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"key": ["b", "a"], "file_name": ["x.jpg", "y.jpg"]}, ["b", "a"]),
        ({"file_name": ["d/x.v2.jpg", "/abs/y.png"], "id": [7, 8]}, ["d/x.v2", "y"]),
        ({"image_id": [7, 8]}, ["7", "8"]),
        ({"id": [0.5, 1.5]}, ["train-00000-of-00001:0", "train-00000-of-00001:1"]),
    ],
)
def test_where_keys_come_from(tmp_path: Path, columns: dict[str, Any], expected: list[str]) -> None:
    path = write(
        tmp_path / "train-00000-of-00001.parquet", image=[b"1", b"2"], text=["a", "b"], **columns
    )
    corpus = read_corpus(path)
    assert [(item.key, item.split) for item in corpus.images] == [
        (key, "train") for key in expected
    ]
    assert [item.image_key for item in corpus.texts] == expected
    named = write(tmp_path / "y.parquet", image=[b"1", b"2"], name=["p", "q"], **columns)
    assert keys(read_corpus(named, key_column="name")) == ["p", "q"]


def test_images_of_one_file_name_are_not_merged(tmp_path: Path) -> None:
    """`push_to_hub` and `save_to_disk` keep the last part of a path."""
    images = {
        "a cat": b"cat",
        "the cat": b"cat",
        "a dog": b"dog",
        "a bird": b"bird",
        "the dog": b"dog",
    }
    cells = pa.array(
        [{"bytes": content, "path": "001.jpg"} for content in images.values()], IMAGE_STRUCT
    )
    path = write(tmp_path / "x.parquet", {"row_group_size": 2}, image=cells, text=[*images])
    corpus = read_corpus(path)
    named = [
        "001",
        *(f"001-{hashlib.sha256(content).hexdigest()[:12]}" for content in (b"dog", b"bird")),
    ]
    assert contents(corpus) == dict(zip(named, (b"cat", b"dog", b"bird"), strict=True))
    assert {text.caption: contents(corpus)[text.image_key or ""] for text in corpus.texts} == images
    (note,) = corpus.notes
    assert str(path) in note and "2 images" in note and named[1] in note
    assert keys(read_corpus(path, key_column="text")) == list(images)


def test_captions_in_columns_lists_and_rows_and_a_row_without_image(tmp_path: Path) -> None:
    columns = write(
        tmp_path / "a.parquet",
        image=[b"1"],
        key=["a"],
        caption_0=["x"],
        caption_1=["y"],
        caption_2=[None],
    )
    lists = write(tmp_path / "b.parquet", image=[b"1"], key=["b"], text=[["x", "y"]])
    rows = write(
        tmp_path / "c.parquet", image=[b"1", b"1", None], key=["c", "c", "d"], text=["x", "y", None]
    )
    corpus = read_corpus([columns, lists, rows])
    assert keys(corpus) == ["a", "b", "c", "d"]
    assert pairs(corpus) == [(f"{k}#{n}", c) for k in "abc" for n, c in enumerate("xy")]


def test_paths_in_cells_stay_in_the_folder(photos: Path, tmp_path: Path) -> None:
    photo = photos_of(photos)[0]
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    names = [photo.name, str(tmp_path / "secret.jpg"), "http://127.0.0.1:9/x.jpg", None]
    cells = pa.array([{"bytes": None, "path": name} for name in names], IMAGE_STRUCT)
    path = write(photos / "x.parquet", image=cells, id=range(4))
    corpus = read_corpus(path)
    with ImageReader() as reader:
        assert reader.read(corpus.images[0]) == photo.content
        for row, said in ((1, "--images-root"), (2, "--download")):
            with pytest.raises(PermissionError, match=said):
                reader.read(corpus.images[row])
        with pytest.raises(ValueError, match="null in this row"):
            reader.read(corpus.images[3])
        for options in ({"follow_symlinks": True}, {"images_root": tmp_path}):
            assert reader.read(read_corpus(path, **options).images[1]) == b"secret"


def test_tables_that_cannot_be_used_stop_nobody(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=[b"1"], key=["a"])
    path = write(tmp_path / "b.parquet", picture=["a"], words=["b"])
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    corpus = read_corpus(tmp_path)
    assert keys(corpus) == ["a"]
    skipped = {s.key: (s.error, s.message) for s in corpus.skipped}
    assert [skipped[name][0] for name in ("b.parquet", "c.parquet")] == ["UnreadableContainer"] * 2
    assert (
        "picture, words" in skipped["b.parquet"][1] and "Copy it again" in skipped["c.parquet"][1]
    )
    assert_refused("not a readable Parquet file", tmp_path / "c.parquet")
    for column in (None, "img"):
        assert_refused(r"(?s)picture, words.*--(image|text)-column", path, image_column=column)


def test_a_dataset_that_was_saved_to_disk(photos: Path, tmp_path: Path) -> None:
    """What `DatasetDict.save_to_disk` writes, two splits; then with a damaged file."""
    saved, chosen = tmp_path / "saved", photos_of(photos)
    for split, part in (("train", chosen[:3]), ("validation", chosen[3:])):
        pack(
            saved / split,
            "data-00000-of-00001.arrow",
            [photo._replace(split=None) for photo in part],
        )
        (saved / split / "cache-123.arrow").write_bytes(b"")
    (saved / "dataset_dict.json").write_text("{}")
    folder, read = read_corpus(photos), read_corpus(saved)
    assert contents(read) == contents(folder)
    assert pairs(read) == pairs(folder)
    path = saved / "train/data-00000-of-00001.arrow"
    assert [image.split for image in read.images] == ["train"] * 3 + ["validation"]
    path.write_bytes(path.read_bytes()[:-2000])  # what is before the cut is used
    corpus = read_corpus(path)
    assert ([*contents(corpus)], [s.error for s in corpus.skipped]) == (
        keys(read)[:2],
        ["DamagedTable"],
    )
    path.write_bytes(b"no arrow at all")
    assert_refused("Arrow", path)


def test_damaged_lengths_of_an_arrow_file_are_noticed(tmp_path: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 10**9, 2], "<i4").tobytes())
    cells = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"12")])
    with pa.ipc.new_stream(str(tmp_path / "x.arrow"), pa.schema({"image": pa.binary()})) as writer:
        for column in (pa.array([b"1"]), cells):
            writer.write_batch(pa.record_batch([column], ["image"]))
    path = tmp_path / "x.arrow"
    corpus = read_corpus(path)
    assert [*contents(corpus).values()] == [b"1"]
    (damaged,) = corpus.skipped
    assert (damaged.error, damaged.key, damaged.path) == ("DamagedTable", "x.arrow", str(path))


def test_what_cannot_be_used_of_a_list_is_listed(photos: Path, tmp_path: Path) -> None:
    name = photos_of(photos)[0].name
    (tmp_path / "out.jpg").write_bytes(b"x")
    (photos / "link.jpg").symlink_to(tmp_path / "out.jpg")
    (photos / name).with_suffix(".png").write_bytes(b"x")
    names = [
        name,
        "gone.jpg",
        "../out.jpg",
        "link.jpg",
        str(tmp_path / "out.jpg"),
        "https://x.org/a.jpg",
        "",
    ]
    rows = [{"image": n, "text": "t", "key": None} for n in [*names, name.replace(".jpg", ".png")]]
    rows.append({"image": None, "text": None, "key": None})
    path = write_list(photos / "l.jsonl", [*rows, {"image": name, "text": "t", "key": "\ud800"}])
    corpus = read_corpus(path, image_column="image")
    assert [i.path for i in corpus.images] == [str(photos / name)]
    expected = [
        "FileNotFoundError",
        *["PermissionError"] * 4,
        "DuplicateKey",
        "NullImage",
        "UnicodeError",
    ]
    assert [s.error for s in corpus.skipped] == expected
    assert corpus.skipped[0].key == "l.jsonl#2"
    duplicate = corpus.skipped[5]
    assert (duplicate.key, duplicate.path) == ("l.jsonl#8", f"{path}#8")
    followed = read_corpus(path, image_column="image", follow_symlinks=True)
    assert keys(followed)[1:] == ["../out", "link", "out"]
    assert keys(read_corpus(path, image_column="image", download=True))[1] == "x.org/a"


def test_rows_of_a_list_without_an_image_are_texts(photos: Path, tmp_path: Path) -> None:
    name = photos_of(photos)[0].name
    rows: list[dict[str, Any]] = [
        {"key": None, "image": name, "captions": ["a dog"]},
        {"captions": ["red", "blue"], "split": "val"},
        {"key": "k", "captions": ["green"]},
    ]
    path = write_list(photos / "l.jsonl", rows)
    corpus = read_corpus(path, image_column="image")
    texts = [(text.key, text.caption, text.image_key, text.split) for text in corpus.texts]
    assert ("l:2#1", "blue", None, "val") in texts
    assert ("k", "green", None, None) in texts
    assert f"2 rows of {path} without an image; only their texts are embedded." in corpus.notes
    assert not corpus.skipped


def test_absolute_paths_below_the_root_that_is_given(photos: Path, tmp_path: Path) -> None:
    chosen = photos_of(photos)
    path = write_list(
        tmp_path / "list.csv",
        [{"image": str(photos / photo.name), "text": "t"} for photo in chosen],
    )
    corpus = read_corpus(path, image_column="image", images_root=tmp_path)
    assert keys(corpus) == [f"photos/{photo.key}" for photo in chosen]


def test_the_split_of_a_file_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train-0.tar", "val-0.tar"):
        write_tar(tmp_path / name, [(f"{name[:5]}{i}.jpg", b"%d" % i) for i in range(5)])
    looked_up = []

    def look_up(path: Path) -> str | None:
        looked_up.append(path.name)
        return split_of_container(path)

    monkeypatch.setattr("c3tools.corpus.reading.split_of_container", look_up)
    splits = [image.split for image in read_corpus(tmp_path).images]
    assert splits == ["train"] * 5 + ["val"] * 5
    assert looked_up == ["train-0.tar", "val-0.tar"]
