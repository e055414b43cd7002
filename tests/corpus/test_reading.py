from __future__ import annotations

import codecs
import errno
import json
import os
import re
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from c3tools.corpus.image_reader import read_sound
from c3tools.corpus.items import Corpus
from c3tools.corpus.reading import assign_keys, read_corpus
from c3tools.corpus.splits import is_val_alone, split_order, splits_by_hash, splits_of
from c3tools.corpus.tables import TABLE_SUFFIXES
from c3tools.errors import UnusedOptionError
from tests.conftest import Counted, write_jsonl
from tests.corpus.packing import assert_refused, write_list, write_tar


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (200, 30, 30)).save(path, format="PNG")
    return path


def pairs(corpus: Corpus) -> list[tuple[str, str | None]]:
    return [(text.caption, text.image_key) for text in corpus.texts]


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (["a/b/x.jpg", "a/b/y.JPEG", "TIF.TIF", "z.jp2"], ["TIF", "a/b/x", "a/b/y", "z"]),
        (["x.jpg", "x.png", "y.png"], ["x.jpg", "x.png", "y"]),  # two files with one stem
        (["сон 夢.png", "two\nlines.png"], ["two\nlines", "сон 夢"]),
        (["x.jpg/inside.png", ".hidden.png"], ["x.jpg/inside"]),
    ],
)
def test_images_of_a_folder_and_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], keys: list[str]
) -> None:
    for folder, name in product("pq", files):
        image(tmp_path / folder / name)
    assert [item.key for item in read_corpus(tmp_path / "p").images] == keys
    monkeypatch.chdir(tmp_path / "p")
    assert [item.key for item in read_corpus(".").images] == keys
    both = read_corpus([tmp_path / "q", tmp_path / "p"])
    assert [item.key for item in both.images] == [
        f"{folder}/{key}" for folder in "pq" for key in keys
    ]


def test_captions_of_images_in_a_folder_and_in_text_files(tmp_path: Path) -> None:
    image(tmp_path / "a/images/one.png")
    write_jsonl(
        tmp_path / "a/captions.jsonl", {"image": "one.png", "captions": ["a", "b"], "split": "test"}
    )
    corpus = read_corpus(tmp_path / "a")
    assert [(i.key, i.split) for i in corpus.images] == [("one", "test")]
    assert [(t.key, t.caption) for t in corpus.texts] == [("one#0", "a"), ("one#1", "b")]
    image(tmp_path / "c/one.png").with_suffix(".txt").write_text("first\n\nsecond\n")
    image(tmp_path / "c/two.png")
    (tmp_path / "c/song.wav").touch()  # an encoder of sounds alone asks for it
    for path in (tmp_path / "c", tmp_path / "c/one.png"):
        assert pairs(read_corpus(path)) == [("first", "one"), ("second", "one")]
    assert read_corpus(tmp_path / "c").images_without_caption == ["two"]


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files would otherwise count as removed, and `c3 embed --prune` would remove their
    rows."""
    below, scandir, unreadable = image(tmp_path / "p/below/a.jpg").parent, os.scandir, list[Path]()

    def refuse(path: str | os.PathLike[str]) -> object:
        if Path(path) == unreadable[-1]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for folder in (below, below.parent):
        unreadable.append(folder)
        assert_refused(r"cannot be listed \(Permission denied\)", tmp_path / "p")


def test_symlinks_do_not_loop_and_do_not_lead_out(tmp_path: Path) -> None:
    folder = image(tmp_path / "corpus/in.png").parent
    for name, target in {
        "loop": folder,
        "out.png": image(tmp_path / "secret.png"),
        "gone.png": tmp_path / "no",
    }.items():
        (folder / name).symlink_to(target)
    corpus = read_corpus(folder)
    assert [item.key for item in corpus.images] == ["in"]
    assert {(s.key, s.error) for s in corpus.skipped} == {
        ("out.png", "SymlinkOutside"),
        ("gone.png", "BrokenLink"),
    }
    assert {item.key for item in read_corpus(folder, follow_symlinks=True).images} == {"in", "out"}
    assert len(read_corpus(folder / "out.png").images) == 1  # named by the user


@pytest.mark.parametrize("pattern", ["*", "**/*.png", "**"])
def test_a_file_that_several_paths_lead_to_is_one_image(tmp_path: Path, pattern: str) -> None:
    folder = image(tmp_path / "real/a.png").parent
    (tmp_path / "link").symlink_to(folder)
    for name in ("up", "up2"):  # the depth of ** would double at each step
        (folder / name).symlink_to(tmp_path)
    assert [item.key for item in read_corpus(f"{tmp_path}/{pattern}").images] == ["a"]
    assert [item.key for item in read_corpus([tmp_path, folder / "a.png"]).images] == ["real/a"]


def test_a_broken_link_that_a_pattern_finds_is_listed(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    for name in ("b.png", "c.csv"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    corpus = read_corpus(f"{tmp_path}/*")
    assert [item.key for item in corpus.images] == ["a"]
    assert [(s.key, s.error) for s in corpus.skipped] == [
        ("b.png", "BrokenLink"),
        ("c.csv", "BrokenLink"),
    ]
    assert_refused("(?s)nothing to embed.*target does not exist", tmp_path / "b.png")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.jsonl", '{"image": "in.png", "captions": ["secret"]}\n'),
        ("metadata.csv", "file_name,text\nin.png,secret\n"),
        ("in.txt", "secret\n"),
        (
            "dataset_coco.json",
            '{"images": [{"filename": "in.png", "sentences": [{"raw": "secret"}]}]}',
        ),
    ],
)
def test_captions_that_are_links_out_of_the_corpus_are_not_read(
    tmp_path: Path, name: str, content: str
) -> None:
    folder = image(tmp_path / "corpus/in.png").parent
    (tmp_path / name).write_text(content)
    (folder / name).symlink_to(tmp_path / name)
    corpus = read_corpus(folder)
    assert not corpus.texts
    assert {s.error for s in corpus.skipped} <= {"SymlinkOutside"}
    assert [text.caption for text in read_corpus(folder, follow_symlinks=True).texts] == ["secret"]


def test_texts_alone(tmp_path: Path) -> None:
    texts = ["a dog, running", 'a "cat"', "ein Hündchen"]
    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    # a header is a line
    for kind, first in {"txt": 1, "jsonl": 1, "csv": 2, "tsv": 2, "parquet": 1}.items():
        path = tmp_path / f"t.{kind}"
        if kind != "txt":
            write_list(path, [{"text": text} for text in texts])
        found = [(text.key, text.caption, text.image_key) for text in read_corpus(path).texts]
        assert found == [(f"t:{line}", text, None) for line, text in enumerate(texts, first)]


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_texts_and_captions_of_every_kind_of_table(tmp_path: Path, suffix: str) -> None:
    photos = image(tmp_path / "photos" / "x.png").parent
    table = write_list(tmp_path / f"t{suffix}", [{"image": "x.png", "text": "a dog"}])
    for corpus in (read_corpus(table), read_corpus(photos, captions=table)):
        assert pairs(corpus) == [("a dog", "x")]


FLICKR = {
    "Flickr8k.token.txt": "a.png#0\tA dog .\na.png#1\tA cat .\nb.png#0\tSnow, white .\n",
    "captions.txt": 'image,caption\na.png,A dog .\na.png,A cat .\nb.png,"Snow, white ."\n',
    "results.csv": (
        "image_name| comment_number| comment\na.png| 0| A dog .\na.png| 1| A cat "
        ".\nb.png|0|Snow, white .\n"
    ),
    "excel.csv": "sep=;\ncaption;image\nA dog .;a.png\nA cat .;a.png\nSnow, white .;b.png\n",
    "semicolons.csv": "caption;image\nA dog .;a.png\nA cat .;a.png\nSnow, white .;b.png\n",
    "flickr_annotations_30k.csv": (
        'raw,sentids,split,filename\n"[""A dog ."", ""A cat .""]",[0],train,a.png\n'
        '"[""Snow, white .""]",[2],test,b.png\n'
    ),
    "pandas.csv": "image,captions\na.png,\"['A dog .', 'A cat .']\"\nb.png,['Snow\\x2c white .']\n",
}


@pytest.mark.parametrize("name", FLICKR)
def test_captions_files_with_a_row_for_each_caption(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(FLICKR[name])
    alone = read_corpus(file)
    (note,) = alone.notes
    assert f"{file} names 2 images" in note and "--image-column" in note
    for key in "ab":
        image(tmp_path / f"{key}.png")
    expected = {"a#0": "A dog .", "a#1": "A cat .", "b#0": "Snow, white ."}
    for corpus in (alone, read_corpus(tmp_path, captions=file)):
        assert {text.key: text.caption for text in corpus.texts} == expected


@pytest.mark.parametrize(
    ("row", "caption", "image_key"),
    [
        ({"URL": "u", "TEXT": "a dog"}, "a dog", None),
        ({"Caption": "a", "caption": "b"}, "b", None),
        ({"Title": "a", "text": "b", "image": "x.png", "File_Name": "y.png"}, "b", "y"),
        *(
            ({"image": name, "text": "a"}, "a", key)
            for name, key in ((".", "."), ("..", ".."), ("./", "."), ("/", "/"))
        ),
    ],
)
def test_columns_by_the_first_of_their_usual_names_in_any_case(
    tmp_path: Path, row: dict[str, str], caption: str, image_key: str | None
) -> None:
    for name in ("laion.parquet", "c.jsonl"):
        assert pairs(read_corpus(write_list(tmp_path / name, [row]))) == [(caption, image_key)]


def test_empty_and_undecodable_captions_are_skipped_and_said(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"good\n\xff\xfe bad\nlast\n")
    corpus = read_corpus(
        [tmp_path / "t.txt", write_jsonl(tmp_path / "c.jsonl", {"text": ["  ", "x"]})]
    )
    assert [(t.key, t.caption) for t in corpus.texts] == [
        ("t:1", "good"),
        ("t:3", "last"),
        ("c:1#1", "x"),
    ]
    assert [(s.error, s.key) for s in corpus.skipped] == [
        ("UnicodeError", "t:2"),
        ("EmptyCaption", "c:1#0"),
    ]


def test_an_empty_cell_beside_an_image_is_no_caption(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (3, 3)).save(tmp_path / f"{name}.png")
    table = tmp_path / "products.csv"
    table.write_text("sku,image,title\nA,a.png,\nB,b.png,shoe\nC,,hat\n")
    corpus = read_corpus(table, image_column="image", key_column="sku")
    assert not corpus.skipped and corpus.images_without_caption == ["A"]
    assert [(text.caption, text.image_key) for text in corpus.texts] == [
        ("hat", None),
        ("shoe", "B"),
    ]


COCO = {"images": [{"id": 7, "file_name": "x.png"}], "annotations": [{"image_id": 7}]}


@pytest.mark.parametrize(
    ("name", "content", "options", "named"),
    [
        ("a.doc", "x", {}, "a.doc"),
        ("c.jsonl", '{"text": "a", "n": 3}', {"text_column": "n"}, "contains int"),
        ("c.jsonl", '{"text": "a"}\n[1]\n', {}, "line 2 is not a JSON object"),
        ("c.csv", "text,image\nA dog, running,a.png", {}, r"line 2 .*\nPut double quotes"),
        ("c.csv", 'image,text\na.png,"A\ndog",0.9, 1', {}, r"line 3 .*\nPut double quotes"),
        ("metadata.csv", "file_name,words\nx.png,hello\n", {}, "--text-column"),
        ("captions.jsonl", '{"image": "x.png", "text": "a"}\n{oops\n', {}, "line 2 is not JSON"),
        ("c.json", json.dumps(COCO), {"captions": "c.json"}, "nor a COCO captions file"),
        (
            "c.jsonl",
            '{"image": "y.png", "text": "a"}',
            {"captions": "c.jsonl"},
            "has no caption for any",
        ),
        ("c.jsonl", '{"text": "a"}', {"captions": "c.jsonl"}, "the image is missing"),
        ("c.jsonl", "", {"captions": "nofile"}, "captions file .*nofile does not exist"),
        (
            "l.csv",
            "image,text\nx,a",
            {"image_column": "img"},
            "no column 'img'; its columns are: image, text",
        ),
        ("t.parquet", "PAR1 not really", {}, "not a readable Parquet"),
        ("t.txt", "\n\n", {}, "There is nothing to embed"),
    ],
)
def test_errors_name_what_is_wrong(
    tmp_path: Path, name: str, content: str, options: dict[str, Any], named: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    if "captions" in options or name in ("metadata.csv", "captions.jsonl"):
        path = image(tmp_path / "x.png").parent
        options = {key: tmp_path / value for key, value in options.items()}
    assert_refused(named, path, **options)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (["a dog", "a cat"], ["a dog", "a cat"]),
        ([{"text": "a dog"}, {"text": "a cat"}], ["a dog", "a cat"]),
        ([{"text": "a dog"}, {"image": "x.png", "text": None}], ["a dog"]),
        ([], None),
    ],
)
def test_texts_of_a_json_list(tmp_path: Path, content: Any, texts: list[str] | None) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    if texts is None:
        assert_refused("There is nothing to embed", path)
    else:
        assert [item.caption for item in read_corpus(path).texts] == texts


@pytest.mark.parametrize("is_list_of_images", [True, False])
def test_the_answers_of_llava_are_captions_of_its_images(
    tmp_path: Path, is_list_of_images: bool
) -> None:
    image(tmp_path / "coco" / "x.png")
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "a dog"},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "on a bed"},
    ]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([{"id": "1", "image": "coco/x.png", "conversations": turns}]))
    if is_list_of_images:
        corpus = read_corpus(path, image_column="image")
    else:
        corpus = read_corpus(tmp_path / "coco", captions=path)
    assert [Path(item.path).name for item in corpus.images] == ["x.png"]
    assert [item.caption for item in corpus.texts] == ["a dog", "on a bed"]


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        ("t.txt", "a dog\n".encode("utf-16"), "iconv .* t.txt > new.txt"),
        ("t.csv", "text\na dog\n".encode("utf-16-be"), "iconv .* t.csv > new.csv"),
        ("t.jsonl", '{"text": "a dog"}'.encode("utf-16"), "iconv .* t.jsonl > new.jsonl"),
        ("t.jsonl", b'[{"image": "a.png", "text": "a dog"}]', r"Rename it to t.json\."),
    ],
)
def test_texts_in_another_form_are_refused_with_the_command_that_converts_them(
    tmp_path: Path, name: str, content: bytes, command: str
) -> None:
    mark = codecs.BOM_UTF16_BE if name == "t.csv" else b""
    (tmp_path / name).write_bytes(mark + content)
    assert_refused(f"{name} is (in UTF-16|one JSON list).*\n.*{command}", tmp_path / name)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_text_file_that_lists_paths_is_refused(tmp_path: Path, absolute: bool) -> None:
    paths = [image(tmp_path / f"{name}.png") for name in "abc"]
    lines = [str(path) if absolute else path.name for path in paths]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "a dog", ""]))
    assert_refused("3 of the first 4 lines of list.txt are paths of files", tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n".join([*lines, "a dog", "a cat", "a cow"]))
    assert len(read_corpus(tmp_path / "list.txt").texts) == 6


def test_thumbnails_of_network_drives_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/b.png"):
        image(tmp_path / name)
    assert [item.key for item in read_corpus(tmp_path).images] == ["a"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["x.CR2", "y.nef"], "2 files skipped (.cr2, .nef). RAW photos"),
        (["paper.pdf"], "1 file skipped (.pdf). PDFs are not supported: render"),
        (["song.wav"], "1 file skipped (.wav). Audio files need an audio model"),
        (["photos.zip"], "1 file skipped (.zip). Archives are not supported: unpack them."),
    ],
)
def test_files_of_other_kinds_are_named_with_what_makes_them_usable(
    tmp_path: Path, names: list[str], said: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert_refused(re.escape(f"{tmp_path}: {said}"), tmp_path)
    image(tmp_path / "a.png")
    (note,) = read_corpus(tmp_path).notes
    assert note.startswith(f"{tmp_path}: {said}")


def test_tars_and_tables_beside_photos_are_named_unless_they_are_given(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("b.png", b"x")])
    assert not read_corpus(tmp_path).notes
    image(tmp_path / "a.png")
    table = tmp_path / "labels.csv"
    table.write_text("file_name,text\na.png,A\n")
    tar_note, table_note = read_corpus(tmp_path).notes
    assert "1 file skipped (.tar). In a folder with images" in tar_note
    assert f"1 table is not read, such as {table}" in table_note and "--captions" in table_note
    both = read_corpus([tmp_path, tar], captions=table)
    assert ([item.key for item in both.images], both.notes) == (["a", "b"], [])


def test_listed_files_are_counted_for_the_reporter(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.png")
    reporter = Counted()
    read_corpus(tmp_path, reporter=reporter)
    assert reporter.counts == {"Listing files": 3, "Looking for captions": 3}


def test_texts_have_the_keys_of_their_column(tmp_path: Path) -> None:
    rows = [{"key": "doc-1", "text": "a"}, {"key": "doc-2", "text": ["b", "c"]}, {"text": "d"}]
    texts = read_corpus(write_jsonl(tmp_path / "t.jsonl", *rows)).texts
    assert [text.key for text in texts] == ["doc-1", "doc-2#0", "doc-2#1", "t:3"]


def test_texts_of_images_have_the_keys_of_the_column_that_is_asked_for(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("image,caption,name\na.png,one,n1\na.png,two,n2\n")
    assert [text.key for text in read_corpus(table).texts] == ["a#0", "a#1"]
    assert [text.key for text in read_corpus(table, key_column="name").texts] == ["n1#0", "n2#0"]


@pytest.mark.parametrize("option", ["text_column", "key_column"])
def test_a_file_of_coco_has_the_columns_of_its_images(tmp_path: Path, option: str) -> None:
    annotations = [{"image_id": 7, "caption": "a dog"}]
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({**COCO, "annotations": annotations}))
    columns = "image_id, file_name, captions, split"
    assert_refused(f"has no column 'alt'; its columns are: {columns}", file, **{option: "alt"})
    (text,) = read_corpus(file, text_column="captions", key_column="image_id").texts
    assert (text.key, text.caption) == ("7#0", "a dog")


@pytest.fixture
def one_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a photo, alone and with captions, and the photo in containers."""
    monkeypatch.chdir(tmp_path)
    content = image(Path("photos/a.png")).read_bytes()
    image(Path("captioned/a.png"))
    write_jsonl(Path("captioned/captions.jsonl"), {"image": "a.png", "text": "a", "id": "1"})
    write_tar(Path("x.tar"), [("b.png", content), ("b.json", b'{"alt": "b"}')])
    write_list(Path("cells.parquet"), [{"id": "c", "jpg": content}])
    write_list(Path("list.csv"), [{"id": "d", "where": "photos/a.png", "text": "d"}])
    Path("cut.parquet").write_bytes(b"PAR1")
    Path("notes.txt").write_text("a dog\n")
    Path("texts.csv").write_text("caption,id\na cat,1\n")
    # of another part of the data set
    image(Path("coco/e.png"))
    Path("coco/captions.json").write_text(json.dumps({"images": [], "annotations": []}))


@pytest.mark.parametrize(
    ("paths", "option"),
    [
        ("photos", {"text_column": "text"}),
        ("photos", {"key_column": "id"}),
        ("photos", {"image_column": "where"}),
        ("photos", {"images_root": "photos"}),
        ("photos", {"download": True}),
        ("texts.csv list.csv", {"download": True}),
        ("photos notes.txt x.tar", {"key_column": "id"}),
        ("captioned", {"image_column": "image"}),
        ("captioned", {"key_column": "id"}),
        ("photos", {"captions": "captioned/captions.jsonl", "key_column": "id"}),
        ("coco", {"text_column": "alt"}),
        ("x.tar", {"captions": "notes-of.token", "text_column": "alt"}),
        ("x.tar", {"images_root": "photos"}),
        ("cells.parquet", {"images_root": "photos"}),
        ("notes.txt", {"text_column": "text"}),
        ("notes.txt", {"captions": "captioned/captions.jsonl"}),
        ("texts.csv", {"captions": "captioned/captions.jsonl"}),
        ("texts.csv", {"images_root": "photos"}),
    ],
)
@pytest.mark.usefixtures("one_of_each")
def test_an_option_that_no_file_needs_is_refused(paths: str, option: dict[str, Any]) -> None:
    Path("notes-of.token").write_text("b.png#0\ta dog\n")
    name = list(option)[-1].replace("_", "-")
    with pytest.raises(UnusedOptionError, match=f"^--{name} has no effect because "):
        read_corpus(paths.split(), **option)


@pytest.mark.parametrize(
    ("paths", "option"),
    [
        ("photos texts.csv", {"text_column": "caption"}),
        ("photos notes.txt texts.csv", {"key_column": "id"}),
        ("captioned", {"text_column": "text"}),
        ("photos x.tar", {"text_column": "alt"}),
        ("photos cells.parquet", {"key_column": "id"}),
        ("photos cells.parquet", {"image_column": "jpg"}),
        ("photos notes.txt", {"captions": "captioned/captions.jsonl"}),
        ("photos list.csv", {"image_column": "where", "images_root": ".", "key_column": "id"}),
        ("photos cut.parquet", {"key_column": "id", "image_column": "jpg", "images_root": "."}),
    ],
)
@pytest.mark.usefixtures("one_of_each")
def test_one_file_that_needs_an_option_is_enough(paths: str, option: dict[str, str]) -> None:
    assert read_corpus(paths.split(), **option)  # type: ignore[arg-type]


U = "https://x.org/"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"url,title\n{U}a.jpg,A\n{U}b.jpg,B\n"),
        ("a.csv", f"image,caption\n{U}a.jpg,A\n{U}b.jpg,B\n"),
        ("a.csv", f"title,page url,image_url\nA,{U}1.html,{U}a.jpg\nB,{U}2.html,{U}b.jpg\n"),
        ("a.jsonl", f'{{"URL": "{U}a.jpg", "TEXT": "A"}}\n{{"URL": "{U}b.jpg", "TEXT": "B"}}\n'),
        # by a spreadsheet: a mark, semicolons, capitals, spaces, empty rows
        (
            "a.csv",
            f"\ufeffImage URL ;Title ;SPLIT\r\n {U}a.jpg ;A;test\r\n{U}b.jpg;B;\r\n;;\r\n\r\n",
        ),
    ],
)
def test_urls_of_images_are_found_by_the_name_of_their_column(
    tmp_path: Path, name: str, content: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    corpus = read_corpus(path, download=True)
    assert [image.path for image in corpus.images] == [f"{U}a.jpg", f"{U}b.jpg"]
    assert pairs(corpus) == [("A", "x.org/a"), ("B", "x.org/b")]
    assert corpus.images[0].split == ("test" if "SPLIT" in content else None)
    assert corpus.skipped == []
    (note,) = read_corpus(path).notes
    assert f"{path} has 2 URLs, but only its texts are used" in note and "--download" in note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"https://x.org/a.jpg\nhttps://x.org/b.jpg\n", "2 of the first 2 lines .* URLs"),
        ("url\ttitle\n".encode("utf-16"), r"utf-16 -t utf-8 t\.txt > new\.tsv"),
        ("text,id\nfür,1\n".encode("cp1252"), "windows-1252 -t utf-8"),
    ],
)
def test_what_spreadsheets_write_otherwise_is_refused_with_what_to_do(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / ("t.csv" if b"text" in content else "t.txt")
    path.write_bytes(content)
    assert_refused(said, path)


def test_two_text_files_with_one_name(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "t.txt" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text("x\n")
    assert_refused("have the key", paths)


def test_a_word_that_is_the_name_of_a_file_is_a_text(tmp_path: Path) -> None:
    for name in ("dog", "texts.txt"):
        (tmp_path / name).write_text("dog\n")
    (text,) = read_corpus(tmp_path / "texts.txt").texts
    assert text.caption == "dog"


def test_the_first_five_minutes_of_a_sound(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="the extra st is not installed")
    soundfile.write(tmp_path / "a.wav", np.ones(3100), 10)
    sound, length = read_sound(tmp_path / "a.wav", 5)
    assert (len(sound), length) == (1500, 310)


def test_the_names_and_the_order_of_splits() -> None:
    said = "train train2017 restval validation val2014 dev TEST unused".split()
    assert splits_of(said, said) == "train train train val val val test unused".split()
    assert sorted(["other", "test", "a", "val", "train"], key=split_order) == [
        "train",
        "val",
        "test",
        "a",
        "other",
    ]


def test_without_a_split_the_key_decides_and_always_the_same() -> None:
    # written down: a change here would move the rows of every store without splits
    assert splits_of([f"photo{i}" for i in (6, 7, 8)], ["", None, ""]) == ["train", "val", "train"]
    shares = splits_by_hash([*map(str, range(20_000))])
    assert [shares.count(name) for name in ("train", "val")] == pytest.approx(
        [16_000, 2000], abs=200
    )


@pytest.mark.parametrize(
    ("names", "is_alone"),
    [
        (["val2017", None, "validation"], True),
        (["val", "test"], False),
        (["val", "base"], False),
        ([None, ""], False),
    ],
)
def test_val_alone_is_no_split(names: list[str | None], is_alone: bool) -> None:
    assert is_val_alone(names) == is_alone


@given(st.lists(st.text("ab.", min_size=1, max_size=4), unique=True))
def test_keys_are_unique_for_any_unique_names(names: list[str]) -> None:
    assert len({*assign_keys(names)}) == len(names)


SOURCES = (
    *("captions.jsonl", "metadata.jsonl", "metadata.csv", "captions.csv", "captions_val.json"),
    "text",
)


def write_source(folder: Path, source: str, rows: list[tuple[str, list[str]]]) -> None:
    """Write captions by the name of the image as this source has them."""
    if source == "text":
        for name, captions in rows:
            (folder / name).with_suffix(".txt").write_text("\n".join(captions))
    elif source.endswith(".csv"):
        lines = [f"{name},{caption}\n" for name, captions in rows for caption in captions or [""]]
        (folder / source).write_text("file_name,text\n" + "".join(lines))
    elif source.endswith(".jsonl"):
        write_jsonl(
            folder / source, *({"file_name": name, "captions": captions} for name, captions in rows)
        )
    else:
        images = [{"id": number, "file_name": name} for number, (name, _) in enumerate(rows)]
        annotations = [
            {"image_id": n, "caption": text} for n, (_, texts) in enumerate(rows) for text in texts
        ]
        value = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        (folder / source).write_text(json.dumps(value))


KARPATHY = (
    '{"images": [{"filename": "000001.jpg", "split": "restval", "sentences": [{"raw": '
    '"a"}, {"raw": "b"}]}]}'
)


@pytest.mark.parametrize("kind", ["coco", "karpathy"])
def test_coco_and_karpathy_files_in_the_folder_or_given(tmp_path: Path, kind: str) -> None:
    image(tmp_path / "val2017/000001.jpg")
    folder, name = (
        tmp_path / "annotations",
        "captions_val.json" if kind == "coco" else "dataset_coco.json",
    )
    folder.mkdir()
    if kind == "coco":
        write_source(folder, name, [("000001.jpg", ["a", "b"])])
    else:
        (folder / name).write_text(KARPATHY)
    write_source(folder, "captions_train.json", [("000002.jpg", ["c"])])
    corpus = read_corpus(tmp_path)
    assert pairs(corpus) == [("a", "val2017/000001"), ("b", "val2017/000001")]
    assert corpus.captions_without_image == []
    assert corpus.notes == [
        f"{tmp_path}: annotations/captions_train.json is not used: it refers to none of the "
        "images.",
        f"{tmp_path}: 2 captions: 2 from annotations/{name}.",
    ]
    given_file = read_corpus(tmp_path / "val2017", captions=folder / name)
    assert [caption for caption, _ in pairs(given_file)] == ["a", "b"]
    assert given_file.images[0].split == ("val" if kind == "coco" else "restval")


def test_the_deeper_folder_and_the_path_count_first(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "a/y/c"):
        image(tmp_path / f"{name}.png")
    write_jsonl(
        tmp_path / "captions.jsonl",
        *({"image": f"train/{name}.png", "text": f"far {name}"} for name in "ab"),
    )
    (tmp_path / "train/metadata.csv").write_text("file_name,text\na.png,near a\n")
    (tmp_path / "metadata.csv").write_text("file_name,text,split\ntrain/a.png,not this,val\n")
    write_jsonl(tmp_path / "a/y/captions.jsonl", {"image": "b.png", "text": "by its name alone"})
    corpus = read_corpus(tmp_path)
    assert pairs(corpus) == [("near a", "train/a"), ("far b", "train/b")]
    # only the table names a split
    assert [image.split for image in corpus.images] == [None, "val", None]


def test_captions_of_a_corpus_that_was_moved(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"new/{name}.png")
    names = ["/old/x/a.png", "/old/x/b.png", "/old/y/b.png", "c.png", "/old/x/a.png"]
    file = write_jsonl(
        tmp_path / "c.jsonl", *({"image": name, "text": f"of {name}"} for name in names)
    )
    corpus = read_corpus(tmp_path / "new", captions=file)
    assert pairs(corpus) == [("of /old/x/a.png", "a"), ("of /old/x/a.png", "a"), ("of c.png", "c")]
    assert corpus.captions_without_image == ["/old/x/b.png", "/old/y/b.png"]


def test_a_damaged_second_source_is_said_and_the_first_still_counts(tmp_path: Path) -> None:
    for folder, text in (("", "first"), ("z", "deeper")):
        image(tmp_path / folder / "a.png")
        write_jsonl(tmp_path / folder / "captions.jsonl", {"image": "a.png", "captions": [text]})
    (tmp_path / "metadata.csv").write_text("file_name,width\na.png,640\n")
    corpus = read_corpus(tmp_path)
    assert pairs(corpus) == [("first", "a"), ("deeper", "z/a")]
    assert any(note.startswith(f"{tmp_path}: metadata.csv is not used: ") for note in corpus.notes)
    (tmp_path / "captions.jsonl").unlink()
    assert_refused("--text-column", tmp_path)


def test_a_captions_file_that_is_given_counts_alone_and_is_for_all_paths(tmp_path: Path) -> None:
    for name in ("a", "b", "one/x", "one/x-1", "two/x", "two/z"):
        image(tmp_path / f"{name}.png").with_suffix(".txt").write_text("text")
    write_jsonl(tmp_path / "two/captions.jsonl", {"image": "z.png", "text": "detected"})
    names = ["a", "b", "c", "x", "one/x", "one/x-1", "two/x"]
    file = write_jsonl(
        tmp_path / "c.jsonl", *({"image": f"{name}.png", "text": f"of {name}"} for name in names)
    )
    corpus = read_corpus(
        [tmp_path / name for name in ("a.png", "one", "b.png", "two")], captions=file
    )
    assert pairs(corpus) == [
        (f"of {name}", name) for name in ("a", "one/x", "one/x-1", "b", "two/x")
    ]
    assert corpus.captions_without_image == ["c.png", "x.png"]
    assert corpus.images_without_caption == ["two/z"]


# a source may name an image and have no caption of it
CAPTIONS = st.dictionaries(
    st.sampled_from(SOURCES), st.lists(st.sampled_from(["one", "two", "three"]), max_size=2)
)


@settings(max_examples=40)
@given(st.lists(CAPTIONS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_each_image_has_the_captions_of_the_first_source_that_has_some(
    assignment: list[dict[str, list[str]]], random: Random
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(len(assignment)):
            image(folder / f"{number}.png")
        for source in random.sample(SOURCES, len(SOURCES)):
            rows = [
                (f"{number}.png", row[source])
                for number, row in enumerate(assignment)
                if source in row
            ]
            if rows:
                write_source(folder, source, random.sample(rows, len(rows)))
        corpus = read_corpus(folder)
        for number, row in enumerate(assignment):
            expected = next((row[source] for source in SOURCES if row.get(source)), [])
            assert [
                text.caption for text in corpus.texts if text.image_key == str(number)
            ] == expected
        without = [str(number) for number, row in enumerate(assignment) if not any(row.values())]
        assert corpus.images_without_caption == without


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("kind", ["folder", "file name", "text", "tar", "table", "list"])
def test_names_in_two_unicode_forms_are_one(
    tmp_path: Path, kind: str, on_disk: Any, in_table: Any
) -> None:
    folder = tmp_path / normalize(on_disk, "S\u00fcd")
    photo = image(folder / normalize(on_disk, "\u00e91.png"))
    named = normalize(in_table, f"{folder.name}/{photo.name}")
    table = tmp_path / "captions.jsonl"
    paths, key = tmp_path, "S\u00fcd/\u00e91"
    options: dict[str, Any] = {}
    if kind == "folder":
        write_jsonl(table, {"image": named, "caption": "red"})
    elif kind == "file name":
        write_jsonl(table, {"image": f"elsewhere/{Path(named).name}", "caption": "red"})
    elif kind == "text":
        (folder / f"{Path(named).stem}.txt").write_text("red")
    elif kind == "list":
        write_jsonl(table, {"image": named, "caption": "red"})
        paths, options = table, {"image_column": "image"}
    else:
        write_jsonl(table, {"image": Path(named).name, "caption": "red"})
        paths, options, key = tmp_path / f"x.{kind}", {"captions": table}, "\u00e91"
        if kind == "tar":
            write_tar(paths, [(photo.name, photo.read_bytes())])
        else:
            paths = tmp_path / "x.parquet"
            cell = {"bytes": photo.read_bytes(), "path": photo.name}
            pq.write_table(pa.table({"image": [cell]}), paths)
    corpus = read_corpus(paths, **options)
    assert pairs(corpus) == [("red", key)]
    assert len(read_corpus(tmp_path / normalize(in_table, folder.name)).images) == 1
    assert (corpus.skipped, corpus.captions_without_image) == ([], [])
    # the file is read by its real name
    assert [Path(item.path.partition("#")[0]).exists() for item in corpus.images] == [True]


def test_two_files_whose_names_differ_in_their_unicode_form_alone_are_refused(
    tmp_path: Path,
) -> None:
    for form in ("NFC", "NFD"):
        image(tmp_path / normalize(form, "\u00e9.png"))
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes them for one file")
    assert_refused("Two images have the key '\u00e9.png'", tmp_path)


def test_the_second_captions_file_of_a_folder_becomes_a_note_beside_other_folders(
    tmp_path: Path,
) -> None:
    for name in "ab":
        image(tmp_path / f"{name}/{name}.png")
        write_jsonl(tmp_path / name / "captions.jsonl", {"image": f"{name}.png", "text": name})
        (tmp_path / name / "captions.csv").write_text("foo,bar\n1,2\n")
    corpus = read_corpus(tmp_path)
    assert pairs(corpus) == [("a", "a/a"), ("b", "b/b")]
    assert sum("captions.csv is not used" in note for note in corpus.notes) == 2


def test_captions_of_a_folder_and_a_tar_lack_an_image_if_neither_has_it(tmp_path: Path) -> None:
    image(tmp_path / "photos/f.png")
    photo = (tmp_path / "photos/f.png").read_bytes()
    tar = write_tar(tmp_path / "x.tar", [("t.png", photo)])
    file = write_jsonl(
        tmp_path / "c.jsonl", *({"image": f"{name}.png", "text": name} for name in "ftz")
    )
    corpus = read_corpus([tmp_path / "photos", tar], captions=file)
    assert pairs(corpus) == [("f", "f"), ("t", "t")]
    assert corpus.captions_without_image == ["z.png"]


def products(folder: Path, column: str, suffix: str = ".csv") -> Path:
    """Two photos in photos/, and a table with their file names in a column."""
    for name in ("a", "b"):
        (folder / "photos").mkdir(exist_ok=True)
        image(folder / f"photos/{name}.png")
    rows = [{column: f"{name}.png", "text": name.upper()} for name in ("a", "b")]
    return write_list(folder / f"products{suffix}", rows)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_image_column_of_a_captions_file_may_be_chosen(tmp_path: Path, suffix: str) -> None:
    table = products(tmp_path, "File", suffix)
    photos = tmp_path / "photos"
    message = f"--captions {table} --image-column File. To embed only the texts"
    assert_refused(re.escape(message), photos, captions=table)
    assert_refused("no column 'photo'; its", photos, captions=table, image_column="photo")
    of_folder = read_corpus(photos, captions=table, image_column="file")
    tar = write_tar(tmp_path / "x.tar", [(p.name, p.read_bytes()) for p in photos.iterdir()])
    of_tar = read_corpus(tar, captions=table, image_column="file")
    assert pairs(of_folder) == pairs(of_tar) == [("A", "a"), ("B", "b")]


def test_the_image_column_of_a_list_leaves_captions_with_usual_names_alone(tmp_path: Path) -> None:
    table = products(tmp_path, "photo")
    captions = write_list(tmp_path / "captions.jsonl", [{"image": "a.png", "text": "C"}])
    options: dict[str, Any] = {"image_column": "photo", "images_root": tmp_path / "photos"}
    assert pairs(read_corpus(table, captions=captions, **options)) == [("C", "a")]
    with pytest.raises(UnusedOptionError, match="no table or list with such a column"):
        read_corpus(tmp_path / "photos", captions=captions, image_column="photo")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_it_is_said_that_a_table_of_texts_names_images(tmp_path: Path, suffix: str) -> None:
    table = products(tmp_path, "photo", suffix)
    (note,) = read_corpus(table).notes
    assert note.endswith("read it as a list of images, use --image-column photo.")
    assert read_corpus(write_list(tmp_path / "t.csv", [{"a": "x.png y", "text": "b"}])).notes == []


def test_a_list_whose_images_are_elsewhere_names_the_option(tmp_path: Path) -> None:
    table = products(tmp_path, "photo")
    named = f"a.png: No such file .* in the folder {tmp_path}; --images-root FOLDER chooses"
    assert_refused(named, table, image_column="photo")


def test_a_pipe_of_captions_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "captions.jsonl"
    os.mkfifo(pipe)
    assert_refused("is a pipe or a device", image(tmp_path / "x.png"), captions=pipe)


@pytest.mark.parametrize("header", ["text,text", "image, text ,text"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, header: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"{header}\na,b,c\n")
    assert_refused("t.csv has 2 columns with the name 'text'", table)


def test_a_repeated_key_of_texts_is_refused_when_it_is_read(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    rows = [f'{{"text": "a", "id": {max(1, number)}}}\n' for number in range(100)]
    table.write_text("".join(rows) + "not read any more\n")
    assert_refused("Two texts have the key '1'", table, key_column="id")
