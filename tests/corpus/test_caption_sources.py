"""Which source has the captions of an image, where there are several."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.corpus.reading import read_corpus
from tests.conftest import write_jsonl

from .packing import assert_refused
from .test_reading import image, pairs

SOURCES = ("captions.jsonl", "metadata.jsonl", "metadata.csv", "captions_val.json", "text")


def write_source(folder: Path, source: str, rows: list[tuple[str, list[str]]]) -> None:
    """Write captions by the name of the image as this source has them."""
    if source == "text":
        for name, captions in rows:
            (folder / name).with_suffix(".txt").write_text("\n".join(captions))
    elif source.endswith(".csv"):
        lines = [f"{name},{caption}\n" for name, captions in rows for caption in captions or [""]]
        (folder / source).write_text("file_name,text\n" + "".join(lines))
    elif source.endswith(".jsonl"):
        write_jsonl(folder / source, *({"file_name": name, "captions": captions} for name, captions in rows))
    else:
        images = [{"id": number, "file_name": name} for number, (name, _) in enumerate(rows)]
        annotations = [{"image_id": n, "caption": text} for n, (_, texts) in enumerate(rows) for text in texts]
        value = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        (folder / source).write_text(json.dumps(value))


KARPATHY = '{"images": [{"filename": "000001.jpg", "split": "restval", "sentences": [{"raw": "a"}, {"raw": "b"}]}]}'


@pytest.mark.parametrize("kind", ["coco", "karpathy"])
def test_coco_and_karpathy_files_in_the_folder_or_given(tmp_path: Path, kind: str) -> None:
    image(tmp_path / "val2017/000001.jpg")
    folder, name = tmp_path / "annotations", "captions_val.json" if kind == "coco" else "dataset_coco.json"
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
        f"{tmp_path}: annotations/captions_train.json is not used: it names none of the images.",
        f"{tmp_path}: 2 captions: 2 from annotations/{name}.",
    ]
    given_file = read_corpus(tmp_path / "val2017", captions=folder / name)
    assert [caption for caption, _ in pairs(given_file)] == ["a", "b"]
    assert given_file.images[0].split == (None if kind == "coco" else "restval")


def test_the_deeper_folder_and_the_path_count_first(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "a/y/c"):
        image(tmp_path / f"{name}.png")
    write_jsonl(tmp_path / "captions.jsonl", *({"image": f"train/{name}.png", "text": f"far {name}"} for name in "ab"))
    (tmp_path / "train/metadata.csv").write_text("file_name,text\na.png,near a\n")
    (tmp_path / "metadata.csv").write_text("file_name,text,split\ntrain/a.png,not this,val\n")
    write_jsonl(tmp_path / "a/y/captions.jsonl", {"image": "b.png", "text": "by its name alone"})
    corpus = read_corpus(tmp_path)
    assert pairs(corpus) == [("near a", "train/a"), ("far b", "train/b")]
    assert [image.split for image in corpus.images] == [None, "val", None]  # only the table names a split


def test_captions_of_a_corpus_that_was_moved(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"new/{name}.png")
    names = ["/old/x/a.png", "/old/x/b.png", "/old/y/b.png", "c.png", "/old/x/a.png"]
    file = write_jsonl(tmp_path / "c.jsonl", *({"image": name, "text": f"of {name}"} for name in names))
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
    file = write_jsonl(tmp_path / "c.jsonl", *({"image": f"{name}.png", "text": f"of {name}"} for name in names))
    corpus = read_corpus([tmp_path / name for name in ("a.png", "one", "b.png", "two")], captions=file)
    assert pairs(corpus) == [(f"of {name}", name) for name in ("a", "one/x", "one/x-1", "b", "two/x")]
    assert corpus.captions_without_image == ["c.png", "x.png"]
    assert corpus.images_without_caption == ["two/z"]


# a source may name an image and have no caption of it
CAPTIONS = st.dictionaries(st.sampled_from(SOURCES), st.lists(st.sampled_from(["one", "two", "three"]), max_size=2))


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
            rows = [(f"{number}.png", row[source]) for number, row in enumerate(assignment) if source in row]
            if rows:
                write_source(folder, source, random.sample(rows, len(rows)))
        corpus = read_corpus(folder)
        for number, row in enumerate(assignment):
            expected = next((row[source] for source in SOURCES if row.get(source)), [])
            assert [text.caption for text in corpus.texts if text.image_key == str(number)] == expected
        without = [str(number) for number, row in enumerate(assignment) if not any(row.values())]
        assert corpus.images_without_caption == without
