"""The list of what is left of a store, which `c3 embed` takes again."""

from __future__ import annotations

import csv
import io
import json
import shlex
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

import c3tools
from c3tools.errors import OutputError, StoreError
from c3tools.store import Store
from tests.conftest import contents
from tests.stores import colour_corpus, colour_encoder, embed_colours

COLOURS = ("red", "green", "blue", "black", "white", "grey")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six products of a CSV, the last without a title, and a text without a photo."""
    (tmp_path / "photos").mkdir()
    rows = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (3, 3), colour).save(tmp_path / "photos" / f"{colour}.png")
        title = "" if colour == "grey" else f"The {colour}, and\n more"
        split = "test" if number % 3 == 2 else "train"
        rows.append((f"photos/{colour}.png", title, f"{number}.50", split))
    rows.append(("", "A voucher", "20", "train"))
    with (tmp_path / "products.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("photo", "title", "price", "split"), *rows])
    return embed_list(tmp_path / "products.csv", tmp_path / "store", "photo", "title")


def embed_list(table: Path, store: Path, image: str, text: str, **options: Any) -> Store:
    return c3tools.embed(
        table,
        store,
        image_column=image,
        text_column=text,
        keep_columns=["price"],
        encoder=colour_encoder(),
        workers=0,
        **options,
    )


def embed_as_said(note: str, store: Path) -> Store:
    """Embed a list by the command that a note prints."""
    words = shlex.split(note.partition("To embed it: ")[2])
    assert words[:2] == ["c3", "embed"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options.pop("--keep-columns") == "price"
    del options["--store"]
    image, text = options.pop("--image-column"), options.pop("--text-column")
    named = {name.removeprefix("--").replace("-", "_"): value for name, value in options.items()}
    return embed_list(Path(words[2]), store, image, text, **named)


def rows_of(store: Store) -> list[tuple[str, ...]]:
    """What makes up a row but its text's key, which counts the captions that are left."""
    rows: list[tuple[str, ...]] = []
    for modality, name in (("image", "path"), ("text", "caption")):
        table = store.load(modality)
        items = table.keys if modality == "image" else table.column("image_key")
        names = [Path(value).name for value in table.column(name)]
        rows += list(zip(items, names, table.splits, table.column("price"), strict=True))
    return rows


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("folder", ["", "lists"])
def test_what_is_left_is_embedded_again(
    store: Store, tmp_path: Path, folder: str, suffix: str
) -> None:
    """From a list beside the photos, and from one in another folder."""
    (tmp_path / folder).mkdir(exist_ok=True)
    file = tmp_path / folder / f"clean{suffix}"
    result = c3tools.leave_out(store, keys=["photos/red", "photos/blue#0"], kept=file)
    (note,) = result.notes
    assert "with 6 rows" in note and ("--images-root" in note) == bool(folder)
    again = embed_as_said(note, tmp_path / "again")
    left = Store.open(store.path)
    assert rows_of(again) == rows_of(left)
    assert ("photos/blue", "blue.png", "test", "2.50") in rows_of(left)
    assert (left.load("image").embeddings == again.load("image").embeddings).all()
    assert again.load("text").keys == left.load("text").keys


def test_the_list_has_a_row_for_each_caption(tmp_path: Path) -> None:
    colour_corpus(tmp_path, {"a": "red", "b": "blue"})
    embed_colours(tmp_path, tmp_path / "store")
    c3tools.leave_out(tmp_path / "store", keys=["a#0", "b#0", "b#1"], yes=True)
    c3tools.leave_out(tmp_path / "store", kept=tmp_path / "clean.csv")
    c3tools.leave_out(tmp_path / "store", undo=True, kept=tmp_path / "all.jsonl")
    with (tmp_path / "clean.csv").open(newline="") as file:
        rows = [(row["key"], row["path"], row["caption"]) for row in csv.DictReader(file)]
    assert rows == [("a", "a.png", "a 1"), ("b", "b.png", "")]
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(line["key"], line["caption"]) for line in lines] == [
        ("a", "a 0"),
        ("a", "a 1"),
        ("b", "b 0"),
        ("b", "b 1"),
    ]


def test_numbers_stay_numbers_in_parquet(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3), "red").save(tmp_path / "red.png")
    lines = [{"image": "red.png", "text": f"red {number}", "price": 5} for number in range(2)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    embed_list(tmp_path / "list.jsonl", tmp_path / "store", "image", "text")
    c3tools.leave_out(tmp_path / "store", kept=tmp_path / "clean.parquet")
    assert pq.read_table(tmp_path / "clean.parquet").column("price").to_pylist() == [5, 5]


def test_photos_in_a_tar_are_refused_before_rows_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for colour in COLOURS:
            content = io.BytesIO()
            Image.new("RGB", (3, 3), colour).save(content, "png")
            member = tarfile.TarInfo(f"{colour}.png")
            member.size = content.tell()
            content.seek(0)
            tar.addfile(member, content)
    embed_colours(tmp_path / "photos.tar", tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(StoreError, match="has 6 image rows that a list cannot name"):
        c3tools.leave_out(tmp_path / "store", keys=["red"], kept=tmp_path / "clean.csv")
    assert contents(tmp_path / "store") == before


def test_the_catalogue_itself_is_not_replaced(store: Store, tmp_path: Path) -> None:
    before = contents(store.path)
    with pytest.raises(OutputError, match="not a list that c3 leave-out wrote"):
        c3tools.leave_out(store, keys=["photos/red"], kept=tmp_path / "products.csv")
    with pytest.raises(StoreError, match=r"ends in \.csv, \.jsonl or \.parquet"):
        c3tools.leave_out(store, keys=["photos/red"], kept=tmp_path / "clean.txt")
    assert contents(store.path) == before
    for suffix in (".csv", ".jsonl", ".parquet"):  # its own lists are
        for key in ("photos/red", "photos/blue"):
            c3tools.leave_out(store.path, keys=[key], kept=tmp_path / f"clean{suffix}")
