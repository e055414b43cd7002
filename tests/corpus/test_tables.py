from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools.corpus import ImageReader, read_corpus
from c3tools.errors import CorpusError
from tests.corpus.packing import IMAGE_STRUCT, contents, damage_column, photos_of, write_hf_parquet


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("rows_per_group", [1, 3, 100])
def test_a_hugging_face_table_is_what_its_folder_is(photos: Path, tmp_path: Path, rows_per_group: int) -> None:
    path = write_hf_parquet(tmp_path / "x.parquet", photos_of(photos), rows_per_group=rows_per_group)
    folder, table = read_corpus([photos]), read_corpus([path])
    assert [(i.key, i.split) for i in table.images] == [(i.key, i.split) for i in folder.images]
    assert list(table.texts) == list(folder.texts)
    assert contents(table) == contents(folder)
    assert [item.path for item in table.images] == [f"{path}#{row}" for row in range(4)]
    with ImageReader() as reader:  # against the order of the rows
        backwards = [reader.read(item) for item in reversed(table.images)]
    assert backwards == [photo.content for photo in reversed(photos_of(photos))]


def test_no_row_has_the_image_of_another_after_a_damaged_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.io.parquet._BATCH_BYTES", 20_000)
    images = [bytes([number]) * 1000 for number in range(100)]
    path, names = tmp_path / "x.parquet", [f"{number:03d}" for number in range(100)]
    layout: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_batch_size": 1}
    pq.write_table(pa.table({"jpg": images, "key": names}), path, data_page_size=5000, **layout)
    whole = path.read_bytes()
    start = whole.index(images[50])
    path.write_bytes(whole[: start - 4] + b"\xff\xff\xff\x7f" + whole[start:])  # its length
    read = 0
    with ImageReader() as reader:
        for number, item in enumerate(read_corpus([path]).images):
            try:
                assert reader.read(item) == images[number]
                read += 1
            except (OSError, ValueError):
                assert number >= read
    assert 0 < read <= 50
    pq.write_table(pa.table({"jpg": images[:3], "key": names[:3]}), path)
    item = read_corpus([path]).images[2]
    pq.write_table(pa.table({"jpg": images[:2], "key": names[:2]}), path)
    with ImageReader() as reader, pytest.raises(OSError, match="no longer in the table"):
        reader.read(item)


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        ({"key": ["b", "a"], "file_name": ["x.jpg", "y.jpg"]}, ["b", "a"]),
        ({"file_name": ["d/x.v2.jpg", "/abs/y.png"], "id": [7, 8]}, ["d/x.v2", "y"]),
        ({"image_id": [7, 8]}, ["7", "8"]),
        ({"id": [0.5, 1.5]}, ["train-00000-of-00001:0", "train-00000-of-00001:1"]),
    ],
)
def test_where_keys_come_from(tmp_path: Path, columns: dict[str, list[Any]], keys: list[str]) -> None:
    path = write(tmp_path / "train-00000-of-00001.parquet", image=[b"1", b"2"], text=["a", "b"], **columns)
    corpus = read_corpus([path])
    assert [(item.key, item.split) for item in corpus.images] == [(key, "train") for key in keys]
    assert [item.image_key for item in corpus.texts] == keys
    named = write(tmp_path / "y.parquet", image=[b"1", b"2"], name=["p", "q"], **columns)
    assert [item.key for item in read_corpus([named], key_column="name").images] == ["p", "q"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_images_of_one_file_name_are_not_merged(tmp_path: Path, kind: str) -> None:
    """`push_to_hub` and `save_to_disk` keep the last part of a path."""
    images = {"a cat": b"cat", "the cat": b"cat", "a dog": b"dog", "a bird": b"bird", "the dog": b"dog"}
    cells = pa.array([{"bytes": content, "path": "001.jpg"} for content in images.values()], type=IMAGE_STRUCT)
    table, path = pa.table({"image": cells, "text": list(images)}), tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    corpus = read_corpus([path])
    keys = ["001", *(f"001-{hashlib.sha256(content).hexdigest()[:12]}" for content in (b"dog", b"bird"))]
    assert contents(corpus) == dict(zip(keys, (b"cat", b"dog", b"bird"), strict=True))
    owner = dict(zip((b"cat", b"dog", b"bird"), keys, strict=True))
    assert {text.caption: text.image_key for text in corpus.texts} == {c: owner[i] for c, i in images.items()}
    (note,) = corpus.notes
    assert str(path) in note and "2 images" in note and keys[1] in note
    assert [item.key for item in read_corpus([path], key_column="text").images] == list(images)


def test_captions_in_columns_lists_and_rows_and_a_row_without_image(tmp_path: Path) -> None:
    columns = write(tmp_path / "a.parquet", image=[b"1"], key=["a"], caption_0=["x"], caption_1=["y"], caption_2=[None])
    lists = write(tmp_path / "b.parquet", image=[b"1"], key=["b"], text=[["x", "y"]])
    rows = write(tmp_path / "c.parquet", image=[b"1", b"1", None], key=["c", "c", "d"], text=["x", "y", None])
    corpus = read_corpus([columns, lists, rows])
    assert [item.key for item in corpus.images] == ["a", "b", "c", "d"]
    assert [(t.key, t.caption) for t in corpus.texts] == [(f"{k}#{n}", c) for k in "abc" for n, c in enumerate("xy")]
    with ImageReader() as reader, pytest.raises(ValueError, match="'image' is null in this row"):
        reader.read(corpus.images[3])


def test_paths_in_cells_stay_in_the_folder(photos: Path, tmp_path: Path) -> None:
    photo = photos_of(photos)[0]
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    names = [photo.name, "../secret.jpg", "link.jpg", str(tmp_path / "secret.jpg"), "http://127.0.0.1:9/x.jpg", None]
    cells = pa.array([{"bytes": None, "path": name} for name in names], type=IMAGE_STRUCT)
    path = write(photos / "x.parquet", image=cells, id=list(range(6)))
    corpus = read_corpus([path])
    with ImageReader() as reader:
        assert reader.read(corpus.images[0]) == photo.content
        for row, said in ((1, "--images-root"), (2, "--images-root"), (3, "--images-root"), (4, "--download")):
            with pytest.raises(PermissionError, match=said):
                reader.read(corpus.images[row])
        with pytest.raises(ValueError, match="null in this row"):
            reader.read(corpus.images[5])
        followed = read_corpus([path], follow_symlinks=True)
        assert [reader.read(followed.images[row]) for row in (1, 2, 3)] == [b"secret"] * 3
        assert reader.read(read_corpus([path], images_root=tmp_path).images[3]) == b"secret"


def test_tables_that_cannot_be_used_stop_nobody(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", image=[b"1"], key=["a"])
    path = write(tmp_path / "b.parquet", picture=["a"], words=["b"])
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    corpus = read_corpus([tmp_path])
    assert [item.key for item in corpus.images] == ["a"]
    skipped = {s.key: (s.error, s.message) for s in corpus.skipped}
    assert {error for error, _ in skipped.values()} == {"UnreadableContainer"}
    assert "picture, words" in skipped["b.parquet"][1] and "Copy it again" in skipped["c.parquet"][1]
    with pytest.raises(CorpusError, match="not a readable Parquet file"):
        read_corpus([tmp_path / "c.parquet"])
    for options in ({}, {"image_column": "img"}):
        with pytest.raises(CorpusError, match=r"(?s)picture, words.*--(image|text)-column"):
            read_corpus([path], **options)


def test_a_damaged_row_group_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"image": [b"1"] * 6, "key": list("abcdef"), "text": [f"caption {n}" for n in range(6)]})
    pq.write_table(table, path, row_group_size=2, compression="zstd", use_dictionary=False)
    damage_column(path, 1, 2)
    corpus = read_corpus([path])
    assert [s.error for s in corpus.skipped] == ["DamagedTable"]
    assert "row group 1 (2 rows)" in corpus.skipped[0].message
    assert [t.caption for t in corpus.texts] == [f"caption {n}" for n in (0, 1, 4, 5)]
    assert [item.path for item in corpus.images] == [f"{path}#{row}" for row in (0, 1, 4, 5)]


def test_a_dataset_that_was_saved_to_disk(photos: Path, tmp_path: Path) -> None:
    """What `DatasetDict.save_to_disk` writes, two splits."""
    saved, chosen = tmp_path / "saved", photos_of(photos)
    for split, part in (("train", chosen[:3]), ("validation", chosen[3:])):
        (saved / split).mkdir(parents=True)
        cells = pa.array([{"bytes": p.content, "path": p.name} for p in part], type=IMAGE_STRUCT)
        table = pa.table({"image": cells, "captions": [p.captions for p in part]})
        with pa.ipc.new_stream(str(saved / split / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        (saved / split / "cache-123.arrow").write_bytes(b"")
    (saved / "dataset_dict.json").write_text("{}")
    folder, read = read_corpus([photos]), read_corpus([saved])
    assert contents(read) == contents(folder)
    validation = {i.key for i in folder.images if i.split == "val"}
    assert {i.key: i.split for i in read.images} == {
        i.key: "validation" if i.key in validation else "train" for i in folder.images
    }
    assert [(t.key, t.caption) for t in read.texts] == [(t.key, t.caption) for t in folder.texts]
    path = saved / "train" / "data-00000-of-00001.arrow"
    keys = [item.key for item in read_corpus([path]).images]
    path.write_bytes(path.read_bytes()[:-2000])  # what is before the cut is used
    corpus = read_corpus([path])
    assert list(contents(corpus)) == keys[:2]
    assert [s.error for s in corpus.skipped] == ["DamagedTable"]
    path.write_bytes(b"no arrow at all")
    with pytest.raises(CorpusError, match="Arrow"):
        read_corpus([path])


def test_damaged_lengths_of_an_arrow_file_are_noticed(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 10**9, 2)))
    cells = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"12")])
    path = tmp_path / "x.arrow"
    with pa.ipc.new_stream(str(path), pa.schema([("image", pa.binary())])) as writer:
        writer.write_batch(pa.record_batch([pa.array([b"1"], pa.binary())], ["image"]))
        writer.write_batch(pa.RecordBatch.from_arrays([cells], ["image"]))
    corpus = read_corpus([path])
    assert list(contents(corpus).values()) == [b"1"]
    assert [s.error for s in corpus.skipped] == ["DamagedTable"]
