from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools.corpus import read_corpus
from tests.corpus.packing import photos_of


def write_list(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_list_is_what_its_folder_is(photos: Path, suffix: str) -> None:
    rows = [{"where": p.name, "caption": c, "split": p.split} for p in photos_of(photos) for c in p.captions]
    path = write_list(photos / f"list.{suffix}", rows)
    folder, listed = read_corpus([photos]), read_corpus([path], image_column="where")
    assert list(listed.images) == list(folder.images)
    assert list(listed.texts) == list(folder.texts)
    assert listed.skipped == []


def test_what_cannot_be_used_is_listed(photos: Path, tmp_path: Path) -> None:
    name = photos_of(photos)[0].name
    (tmp_path / "out.jpg").write_bytes(b"x")
    (photos / "link.jpg").symlink_to(tmp_path / "out.jpg")
    names = [name, "gone.jpg", "../out.jpg", "link.jpg", str(tmp_path / "out.jpg"), "https://x.org/a.jpg", ""]
    path = write_list(photos / "l.csv", [{"image": n, "text": "t"} for n in names])
    corpus = read_corpus([path], image_column="image")
    assert [i.path for i in corpus.images] == [str(photos / name)]
    assert [(s.key, s.error) for s in corpus.skipped] == [
        ("l.csv#3", "FileNotFoundError"),
        ("l.csv#4", "PermissionError"),
        ("l.csv#5", "PermissionError"),
        ("l.csv#6", "PermissionError"),
        ("l.csv#7", "PermissionError"),
        ("l.csv#8", "NullImage"),
    ]
    followed = read_corpus([path], image_column="image", follow_symlinks=True)
    assert [i.key for i in followed.images[1:]] == ["../out", "link", "out"]
    urls = read_corpus([path], image_column="image", download=True)
    assert urls.images[1].key == "x.org/a"


def test_absolute_paths_below_the_root_that_is_given(photos: Path, tmp_path: Path) -> None:
    rows = [{"image": str(photos / photo.name), "text": "t"} for photo in photos_of(photos)]
    path = write_list(tmp_path / "list.csv", rows)
    corpus = read_corpus([path], image_column="image", images_root=tmp_path)
    assert [i.key for i in corpus.images] == [f"photos/{photo.key}" for photo in photos_of(photos)]


def test_two_files_with_one_key(photos: Path) -> None:
    name = photos_of(photos)[0].name
    (photos / name).with_suffix(".png").write_bytes(b"x")
    rows = [{"image": name, "text": "a"}, {"image": name.replace(".jpg", ".png"), "text": "b"}]
    corpus = read_corpus([write_list(photos / "l.csv", rows)], image_column="image")
    assert [(s.key, s.error) for s in corpus.skipped] == [("l.csv#3", "DuplicateKey")]
    assert [t.caption for t in corpus.texts] == ["a"]


def test_halves_of_characters_are_told_and_do_not_end_the_run(photos: Path) -> None:
    name = photos_of(photos)[0].name
    path = photos / "l.jsonl"
    rows = [{"image": name, "text": "a", "key": "\ud800"}, {"image": name, "text": "b", "key": "good"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = read_corpus([path], image_column="image")
    assert [i.key for i in corpus.images] == ["good"]
    assert [s.error for s in corpus.skipped] == ["UnicodeError"]
