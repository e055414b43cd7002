from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from c3tools.corpus import Corpus, read_corpus
from c3tools.errors import CorpusError
from tests.corpus.packing import contents, photos_of, webdataset, write_tar


def errors(corpus: Corpus) -> dict[str, str]:
    return {skipped.key: skipped.error for skipped in corpus.skipped}


def pairs(corpus: Corpus) -> list[tuple[str, str]]:
    return [(text.key, text.caption) for text in corpus.texts]


def test_a_tar_is_what_its_folder_is(photos: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", webdataset(photos_of(photos)))
    folder, packed = read_corpus([photos]), read_corpus([tmp_path / "x.tar"])
    assert [(i.key, i.split, i.size) for i in packed.images] == [(i.key, i.split, i.size) for i in folder.images]
    assert list(packed.texts) == list(folder.texts)
    assert contents(packed) == contents(folder)
    assert packed.skipped == []
    first = packed.images[0]
    assert first.path == f"{tmp_path / 'x.tar'}#{first.key}.jpg"


def test_patterns(tmp_path: Path) -> None:
    for number in range(8, 13):
        write_tar(tmp_path / f"{number:03d}.tar", [(f"k{number}.jpg", b"x")])
    keys = [f"k{number}" for number in range(8, 13)]
    for pattern in ("{008..012}.tar", "{008,009,01{0,1,2}}.tar", "*.tar", "**/*.tar", "0[01]?.tar", "."):
        assert [item.key for item in read_corpus([f"{tmp_path}/{pattern}"]).images] == keys
    twice = read_corpus([f"{tmp_path}/*.tar", tmp_path / "009.tar"])
    assert ([item.key for item in twice.images], twice.skipped) == (keys, [])
    with pytest.raises(CorpusError, match=r"013\.tar does not exist \(nor do 1 more\)"):
        read_corpus([f"{tmp_path}/{{010..014}}.tar"])
    with pytest.raises(CorpusError, match="Nothing matches"):
        read_corpus([f"{tmp_path}/z*.tar"])


def test_captions_from_json_txt_and_a_file_that_is_given(tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"1"),
        ("a.json", json.dumps({"caption": "from json", "alt": "other", "split": "val"}).encode()),
        ("b.jpg", b"2"),
        ("b.txt", b"from txt\nsecond\n"),
        ("b.json", json.dumps({"caption": "not this", "alt": "other b"}).encode()),
    ]
    tar = write_tar(tmp_path / "00000.tar", members)
    pq.write_table(pa.table({"key": ["a"], "caption": ["of img2dataset"]}), tmp_path / "00000.parquet")
    corpus = read_corpus([tmp_path])
    assert pairs(corpus) == [("a#0", "from json"), ("b#0", "from txt"), ("b#1", "second")]
    assert [i.split for i in corpus.images] == ["val", None]
    assert pairs(read_corpus([tar], text_column="alt")) == [("a#0", "other"), ("b#0", "other b")]
    with pytest.raises(CorpusError, match=r"has 'title'\. Their fields: alt, caption, split"):
        read_corpus([tar], text_column="title")
    (tmp_path / "c.csv").write_text("key,caption\nb,given\n")
    assert pairs(read_corpus([tar], captions=tmp_path / "c.csv")) == [("b#0", "given")]


def test_unsafe_members_are_refused_and_told(tmp_path: Path) -> None:
    unsafe = ("/etc/passwd.jpg", "../up.jpg", "a/../../up.jpg", "c:\\x\\..\\..\\y.jpg")
    kinds = {"s.jpg": tarfile.SYMTYPE, "h.jpg": tarfile.LNKTYPE, "d.jpg": tarfile.CHRTYPE}
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("good.jpg", ".hidden.jpg", *unsafe):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    corpus = read_corpus([tmp_path / "x.tar"])
    assert [item.key for item in corpus.images] == ["good"]
    expected = dict.fromkeys(unsafe, "UnsafePath") | dict.fromkeys(kinds, "NotAFile")
    assert errors(corpus) == {f"x.tar#{name}": error for name, error in expected.items()}


def test_second_images_bad_json_and_samples_without_image(tmp_path: Path) -> None:
    members = {"a.seg.png": b"1", "a.jpg": b"22", "a.png": b"3", "b.txt": b"alone", "a.json": b"{", "a.cls": b"7"}
    corpus = read_corpus([write_tar(tmp_path / "x.tar", members.items())])
    assert contents(corpus) == {"a": b"22"}
    assert errors(corpus) == {"x.tar#a.png": "SecondImage", "x.tar#b": "NoImage", "x.tar#a.json": "JSONDecodeError"}


def test_keys_that_repeat_across_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", b"first"), ("0.txt", b"one")])
    write_tar(tmp_path / "b.tar", [("0.jpg", b"second"), ("0.txt", b"two"), ("1.jpg", b"x")])
    for paths in ([tmp_path], [tmp_path / "b.tar", tmp_path / "a.tar"]):
        corpus = read_corpus(paths)
        assert contents(corpus) == {"0": b"first", "1": b"x"}
        assert [t.caption for t in corpus.texts] == ["one"]
        assert errors(corpus) == {"b.tar#0.jpg": "DuplicateKey"}


def test_every_cut_is_told_and_what_is_whole_is_read(photos: Path, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t" / "x.tar", webdataset(photos_of(photos)))
    write_tar(tmp_path / "t" / "other.tar", [("other.jpg", b"x")])  # a tar that is damaged is not the only input
    content = whole.read_bytes()
    # the two zero blocks that end the members, and the padding of the last record
    with tarfile.open(whole) as archive:
        end = max(item.offset_data + (item.size + 511) // 512 * 512 for item in archive)
    sources: dict[str, Any] = {i.key: i.source for i in read_corpus([whole]).images}
    for cut in [0, 1, 511, 513, 2000, *range(4000, end + 1, 40_009), end - 1, end, end + 100]:
        whole.write_bytes(content[:cut])
        corpus = read_corpus([tmp_path / "t"])
        expected = {key for key, source in sources.items() if source.start + source.place <= cut}
        assert {item.key for item in corpus.images} == {*expected, "other"}
        assert (errors(corpus).get("x.tar") == "DamagedTar") == (cut <= end), cut
    key, source = list(sources.items())[2]
    whole.write_bytes(content[: source.start + source.place // 2])
    (skipped,) = read_corpus([whole]).skipped
    assert f"cut short in the middle of {key}.jpg" in skipped.message and "run the same command" in skipped.message
    damaged = bytearray(content)
    damaged[list(sources.values())[1].start - 512 + 148] ^= 0xFF  # in the header's checksum
    whole.write_bytes(bytes(damaged))
    corpus = read_corpus([whole])
    assert (len(corpus.images), errors(corpus)) == (1, {"x.tar": "DamagedTar"})
    whole.write_bytes(b"hello" * 1000)
    with pytest.raises(CorpusError, match=r"nothing to embed.*damaged or cut"):
        read_corpus([whole])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_never_raise_and_never_read_past_the_end(tmp_path: Path, data: st.DataObject) -> None:
    write_tar(tmp_path / "y.tar", [("other.jpg", b"x")])
    members = {"a.jpg": b"1" * 700, "a.txt": b"one", "b.png": b"2" * 10, "b.json": b"{}"}
    path = write_tar(tmp_path / "x.tar", members.items())
    content = bytearray(path.read_bytes()[:4608])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    corpus = read_corpus([tmp_path])
    assert {key: len(content) for key, content in contents(corpus).items()} == {i.key: i.size for i in corpus.images}
