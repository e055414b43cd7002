"""The pairs of `import_embeddings`, compared with a join that is written out here."""

from __future__ import annotations

import csv
import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from c3tools import Store, gap_report
from c3tools.errors import StoreError
from c3tools.store.import_embeddings import ImportReport, import_embeddings, read_rows
from c3tools.store.pairing import read_files

Ids = Sequence[Any]


def vectors(n: int, side: int = 0) -> np.ndarray:
    """Return n rows (n, 3) from which `row_of` reads their numbers again, whatever their norms."""
    return np.stack([np.ones(n), np.arange(n) + 1.0, np.full(n, side)], axis=1).astype(np.float32)


def row_of(embeddings: np.ndarray) -> list[int]:
    return [round(float(value)) - 1 for value in embeddings[:, 1] / embeddings[:, 0]]


def joined(images: Ids, texts: Ids) -> Counter[tuple[int, int]]:
    """Return the pairs of rows whose ids are written in the same way."""
    return Counter((i, j) for i, image in enumerate(images) for j, text in enumerate(texts) if str(image) == str(text))


def stored(store: Path | str) -> Counter[tuple[int, int]]:
    images, texts = Store.open(store).pairs().arrays()
    return Counter(zip(row_of(images), row_of(texts), strict=True))


def paired(images: Path, texts: Path) -> Counter[tuple[int, int]]:
    (image, text), _ = read_files(image=images, text=texts)
    places = {key: row for row, key in enumerate(image.keys)}
    found = [(places.get(key), row) for row, key in enumerate(text.column("image_key"))]
    return Counter((image, row) for image, row in found if image is not None)


def write(path: Path, rows: np.ndarray, columns: Mapping[str, Ids]) -> Path:
    """Write vectors and their columns in the format that the name of the file says."""
    match path.suffix:
        case ".csv":
            with path.open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow([*columns, *(f"e{i}" for i in range(rows.shape[1]))])
                table.writerows(zip(*columns.values(), *rows.T.tolist(), strict=True))
        case ".parquet":
            pq.write_table(pa.table({**columns, "embedding": pa.array(list(rows), pa.list_(pa.float32()))}), path)
        case ".npz":
            arrays: dict[str, Any] = {name: np.array(values) for name, values in columns.items()}
            np.savez(path, embedding=rows, **arrays)
        case ".safetensors":
            tensors = {name: torch.tensor(values) for name, values in columns.items()}
            save_file({"embedding": torch.from_numpy(rows), **tensors}, path)
        case ".pt":
            tensors = {name: torch.tensor(values) for name, values in columns.items()}
            torch.save({"embedding": torch.from_numpy(rows), **tensors}, path)
        case ".npy":
            np.save(path, rows)
            lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bring(
    folder: Path,
    images: Mapping[str, Ids],
    texts: Mapping[str, Ids],
    formats: tuple[str, str] = (".parquet", ".parquet"),
    **options: Any,
) -> ImportReport:
    """Import images and texts with these columns; those of .npy files stand in tables of their own."""
    sides = [("i", images, "image", "meta"), ("t", texts, "text", "text_meta")]
    for number, ((stem, columns, name, table), suffix) in enumerate(zip(sides, formats, strict=True)):
        n = len(next(iter(columns.values())))
        options[name] = path = write(folder / f"{stem}{suffix}", vectors(n, number), columns)
        if suffix == ".npy":
            options[table] = path.with_suffix(".jsonl")
    return import_embeddings(store=folder / "s", dtype="float32", **options)


FORMATS = [".csv", ".parquet", ".npz", ".safetensors", ".pt", ".npy"]


@pytest.mark.parametrize(("suffix", "column"), [*zip(FORMATS, ["image_key", "image_id"] * 3, strict=True)])
def test_many_texts_to_one_image(tmp_path: Path, suffix: str, column: str) -> None:
    named = [int(i) for i in np.random.default_rng(1).integers(100, 110, 40)]
    texts = {"id": range(100, 140), column: named}  # ids of texts, by chance alike
    report = bring(tmp_path, {"id": range(109, 99, -1)}, texts, (suffix, suffix))
    assert stored(tmp_path / "s") == joined(range(109, 99, -1), named)
    assert report.pairs == 40
    text = Store.open(tmp_path / "s").load("text")
    assert text.keys == [str(key) for key in range(100, 140)]
    assert text.column("image_key") == [str(key) for key in named]


def test_several_texts_have_the_id_of_their_image(tmp_path: Path) -> None:
    ids = ["b", "a", "b", "x", "b"]
    report = bring(tmp_path, {"id": ["a", "b", "c"], "split": ["val", "test", "train"]}, {"id": ids})
    assert stored(tmp_path / "s") == joined(["a", "b", "c"], ids)
    text = Store.open(tmp_path / "s").load("text")
    assert text.keys == ["b#0", "a#0", "b#1", "x#0", "b#2"]
    assert text.column("image_key") == ["b", "a", "b", None, "b"]
    assert [split for split, item in zip(text.column("split"), ids, strict=True) if item != "x"] == [
        "test", "val", "test", "test",
    ]  # fmt: skip
    assert report.pairs == 4


def test_partly_overlapping_ids_are_counted(tmp_path: Path) -> None:
    report = bring(tmp_path, {"id": range(30)}, {"id": range(20, 60)})
    assert stored(tmp_path / "s") == joined(range(30), range(20, 60))
    assert report.pairs == 10
    assert "10 of 40 text rows and 10 of 30 image rows are paired" in report.notes[0]
    assert gap_report(Store.open(tmp_path / "s")).to_dict()["pairs"]["n"] == 10


@pytest.mark.parametrize("texts", [{"id": ["x", "y", "z"]}, {"caption_id": [1, 2, 3]}, {"image_id": ["x", "y", "z"]}])
def test_ids_without_one_in_common_pair_nothing(tmp_path: Path, texts: dict[str, Ids]) -> None:
    report = bring(tmp_path, {"id": [1, 2, 3]}, texts)
    assert (report.pairs, report.rows) == (0, {"image": 3, "text": 3})
    assert report.notes[0].startswith("No rows are paired") and "--image-key-column" in report.notes[0]
    assert not len(Store.open(tmp_path / "s").pairs())


def test_row_order_only_where_one_side_has_no_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", vectors(4))
    text = write(tmp_path / "t.csv", vectors(4, 1), {"id": [3, 2, 1, 0]})
    report = import_embeddings(store=tmp_path / "a", image=tmp_path / "i.npy", text=text, dtype="float32")
    assert "The image rows have no ids: row i was paired with row i (4 pairs)" in report.notes[0]
    assert stored(tmp_path / "a") == joined(range(4), range(4))
    report = import_embeddings(store=tmp_path / "b", image=text, text=tmp_path / "i.npy", dtype="float32")
    assert "The text rows have no ids" in report.notes[0]
    assert Store.open(tmp_path / "b").load("text").column("image_key") == ["3", "2", "1", "0"]


def test_texts_that_name_images_without_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", vectors(4))
    named = write(tmp_path / "t.csv", vectors(4, 1), {"image_id": [7, 5, 8, 9]})
    with pytest.raises(StoreError, match=r"image rows without ids .* 'image_id'"):
        import_embeddings(store=tmp_path / "s", image=tmp_path / "i.npy", text=named)


@pytest.mark.parametrize(
    ("images", "texts", "pairs"),
    [
        ([7, 8, 9], ["9", "7", "7"], {(2, 0), (0, 1), (0, 2)}),
        (["007", "008"], [8, 7], {(1, 0), (0, 1)}),
        ([7.0, 8.0], ["8", "7"], {(1, 0), (0, 1)}),
        (["007", "7", "8"], ["7", "07", "8"], {(1, 0), (2, 2)}),  # 07 could be either
        (["000139.jpg", "a.b.png"], ["139", "a.b"], {(0, 0), (1, 1)}),
        (["v1.5", "v1.6"], ["v1.6", "v1.5"], {(1, 0), (0, 1)}),
        (["a", "b"], ["b", ""], {(1, 0)}),
        (["1", "2"], [None, 2.0], {(1, 1)}),
    ],
)
def test_ids_as_text_and_as_numbers(tmp_path: Path, images: Ids, texts: Ids, pairs: set[tuple[int, int]]) -> None:
    keys = {"key": [f"t{i}" for i in range(len(texts))], "image_id": texts}
    image = write(tmp_path / "i.parquet", vectors(len(images)), {"id": images})
    assert set(paired(image, write(tmp_path / "t.parquet", vectors(len(texts)), keys))) == pairs


def test_csv_ids_stay_as_they_are_written(tmp_path: Path) -> None:
    ids = ["007", "12345678901234567890", "12345678901234567891"]
    report = bring(tmp_path, {"id": ids}, {"id": ids[::-1]}, (".csv", ".csv"))
    assert report.pairs == 3
    assert Store.open(tmp_path / "s").load("image").keys == ids


def test_images_that_share_an_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Keys of image rows must be unique, but 'a' occurs 2 times"):
        bring(tmp_path, {"id": ["a", "b", "a"]}, {"id": ["a", "b", "c"]})


def test_image_column_that_fits_is_found(tmp_path: Path) -> None:
    images: dict[str, Ids] = {"id": [0, 1, 2], "image_id": [2, 0, 1], "file_name": ["x.jpg", "y.jpg", "z.jpg"]}
    bring(tmp_path, images, {"image_id": [1, 0, 2]})
    assert stored(tmp_path / "s") == joined(images["image_id"], [1, 0, 2])


class TestTableOfVectorsWithIds:
    """The vectors have ids, and so has their table."""

    def test_table_in_another_order(self, tmp_path: Path) -> None:
        image = write(tmp_path / "i.csv", vectors(3), {"id": ["a", "b", "c"]})
        rows = [{"id": "c", "split": "test"}, {"id": "x", "split": "val"}, {"id": "a", "split": "train"}]
        (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = import_embeddings(store=tmp_path / "s", image=image, meta=tmp_path / "m.jsonl")
        loaded = Store.open(tmp_path / "s").load("image")
        assert (loaded.keys, loaded.column("split")) == (["a", "b", "c"], ["train", None, "test"])
        assert report.notes[0] == "The table describes 2 of 3 image rows; 'b', for example, is missing."

    @pytest.mark.parametrize(
        ("listed", "keys"),
        [
            (["1", "2", "3"], ["1", "2", "3"]),
            (["3", "1", "2"], ["1", "2", "3"]),
            (["003", "2", "001"], ["001", "2", "003"]),
        ],
    )
    def test_key_column_of_the_table(self, tmp_path: Path, listed: list[str], keys: list[str]) -> None:
        image = write(tmp_path / "i.parquet", vectors(3), {"id": ["1", "2", "3"]})
        (tmp_path / "m.csv").write_text("photo,split\n" + "".join(f"{key},test\n" for key in listed))
        import_embeddings(store=tmp_path / "s", image=image, meta=tmp_path / "m.csv", key_column="photo")
        loaded = Store.open(tmp_path / "s").load("image")
        assert (loaded.keys, row_of(loaded.embeddings)) == (keys, [0, 1, 2])
        assert loaded.column("split") == ["test"] * 3

    def test_table_of_other_ids_is_refused(self, tmp_path: Path) -> None:
        image = write(tmp_path / "i.csv", vectors(3), {"id": ["a", "b", "c"]})
        (tmp_path / "m.csv").write_text("id,split\nx,test\ny,val\nz,train\n")
        with pytest.raises(StoreError, match=r"both have ids \('id'\), but the ids differ"):
            import_embeddings(store=tmp_path / "s", image=image, meta=tmp_path / "m.csv")


class TestOtherModalities:
    def test_joined_with_images_by_id(self, tmp_path: Path) -> None:
        image = write(tmp_path / "i.csv", vectors(4), {"id": [0, 1, 2, 3], "split": ["train", "val", "test", "x"]})
        audio = write(tmp_path / "a.csv", vectors(4, 1), {"id": [3, 9, 1, 0]})
        report = import_embeddings(store=tmp_path / "s", image=image, other={"audio": audio}, dtype="float32")
        first, second = Store.open(tmp_path / "s").pairs("image", "audio").arrays()
        assert Counter(zip(row_of(first), row_of(second), strict=True)) == joined([0, 1, 2, 3], [3, 9, 1, 0])
        assert report.pairs == 3 and "3 of 4 audio rows and 3 of 4 image rows are paired" in report.notes[0]
        assert Store.open(tmp_path / "s").load("audio").column("split") == ["x", None, "val", "train"]

    @pytest.mark.parametrize("ids", [True, False])
    def test_audio_and_its_captions(self, tmp_path: Path, ids: bool) -> None:
        named = ["c", "a", "b", "a"] if ids else [0, 1, 2, 3]
        text = write(tmp_path / "t.csv", vectors(4, 1), {"image_id": named} if ids else {"caption": list("wxyz")})
        keys = ["a", "b", "c"] if ids else [0, 1, 2, 3]
        audio = write(tmp_path / "a.csv", vectors(len(keys)), {"id": keys} if ids else {"note": keys})
        report = import_embeddings(store=tmp_path / "s", text=text, other={"audio": audio}, dtype="float32")
        first, second = Store.open(tmp_path / "s").pairs("audio", "text").arrays()
        assert Counter(zip(row_of(first), row_of(second), strict=True)) == joined(keys, named)
        assert report.pairs == (3 if ids else 4)  # audio rows whose texts are there

    @pytest.mark.parametrize(("added", "pairs"), [("text", 3), ("image", 3), ("audio", 2)])
    def test_pairs_with_rows_of_an_earlier_import(self, tmp_path: Path, added: str, pairs: int) -> None:
        items = {"image": ["a", "b", "c"], "text": ["a", "a", "b", "x"], "audio": ["a", "c", "y"]}
        files = {m: write(tmp_path / f"{m}.csv", vectors(len(ids)), {"image_key": ids}) for m, ids in items.items()}
        for modalities in (files.keys() - {added}, {added}):
            image, text, audio = (files[name] if name in modalities else None for name in items)
            report = import_embeddings(
                store=tmp_path / "s", image=image, text=text, other={"audio": audio} if audio else None
            )
        assert report.pairs == pairs


def test_column_that_no_file_has(tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", vectors(2))
    with pytest.raises(StoreError, match=r"There is no column 'uid'\. The columns are none"):
        import_embeddings(store=tmp_path / "s", image=tmp_path / "i.npy", key_column="uid")


def test_half_a_character_in_an_id_of_a_file_of_vectors(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text('{"id": "a", "embedding": [1, 0]}\n{"id": "\\ud83d", "embedding": [0, 1]}\n')
    with pytest.raises(StoreError, match=r"v\.jsonl cannot be read .*utf-8"):
        read_rows(tmp_path / "v.jsonl", "image")


words = st.text("abcxyz_", min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(
    images=st.lists(words | st.integers(0, 20).map(str), min_size=1, max_size=12, unique=True),
    texts=st.lists(words | st.integers(0, 20).map(str), min_size=1, max_size=12),
    formats=st.tuples(st.sampled_from([".csv", ".parquet", ".npz"]), st.sampled_from([".csv", ".parquet", ".npz"])),
    column=st.sampled_from(["id", "image_id"]),
)
def test_pairs_are_the_join(images: list[str], texts: list[str], formats: tuple[str, str], column: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        image, text = (
            write(Path(folder) / f"{name}{suffix}", vectors(len(ids)), {own: ids})
            for name, suffix, own, ids in (("i", formats[0], "id", images), ("t", formats[1], column, texts))
        )
        assert paired(image, text) == joined(images, texts)


C3_PICKLE = {
    "images": {i: {"embed": torch.ones(1, 3), "img_path": f"{i}.jpg"} for i in range(4)},
    "captions": {9: {"embed": np.ones(3, np.float32), "caption": "a", "img_id": 2}},
}


def saved(folder: Path, suffix: str) -> Path:
    if suffix == ".jsonl":
        lines = [json.dumps({"id": i, "embedding": row.tolist()}) for i, row in enumerate(vectors(40))]
        (folder / "x.jsonl").write_text("\n".join(lines))
    elif suffix == ".pkl":
        (folder / "x.pkl").write_bytes(pickle.dumps(C3_PICKLE))
    else:
        write(folder / f"x{suffix}", vectors(40), {"id": range(40)})
    return folder / f"x{suffix}"


@pytest.mark.parametrize("change", ["cut", "foreign", "empty", "gone"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors", ".parquet", ".csv", ".jsonl", ".pkl"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, suffix: str, change: str) -> None:
    path = saved(tmp_path, suffix)
    whole = path.read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "foreign": b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "empty": b""}
    path.unlink() if change == "gone" else path.write_bytes(contents[change])
    if (suffix, change) == (".csv", "cut"):
        return  # a table with fewer rows is a table
    source, image = (path, None) if suffix == ".pkl" else (None, path)
    with pytest.raises(StoreError, match=rf"x\{suffix}"):
        import_embeddings(source, tmp_path / "s", image=image)
    assert not (tmp_path / "s").exists()
