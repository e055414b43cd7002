"""The tables of c3 pairs, duplicates and clusters, which nobody has to join with others."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

import c3tools
from c3tools.encoders import Encoder
from c3tools.store import Store
from tests.conftest import copy_photos


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Store:
    """24 products with photo, title and price; the last has the photo of the first."""
    folder = tmp_path_factory.mktemp("products")
    copy_photos(folder / "photos", 24)
    files = sorted((folder / "photos").glob("*.jpg"))
    files[-1].write_bytes(files[0].read_bytes())
    lines = ["photo,title,price,split"]
    lines += [
        f"photos/{file.name},product {number},{number}.50,train"
        for number, file in enumerate(files)
    ]
    table = folder / "products.csv"
    table.write_text("\n".join(lines))
    return c3tools.embed(
        table,
        folder / "store",
        image_column="photo",
        text_column="title",
        keep_columns=["price"],
        encoder=encoder,
        workers=0,
    )


def test_the_table_of_pairs_has_path_caption_and_kept_columns(store: Store, tmp_path: Path) -> None:
    table = pq.read_table(c3tools.check_pairs(store).save_table(tmp_path / "t.parquet"))
    row = next(row for row in table.to_pylist() if row["caption"] == "product 3")
    assert row["price"] == "3.50"
    assert row["path"].endswith(".jpg")


def test_the_table_of_copies_has_path_and_kept_columns(store: Store, tmp_path: Path) -> None:
    found = c3tools.find_duplicates(store, modality=["image"], workers=0)
    rows = pq.read_table(found.save_table(tmp_path / "t.parquet")).to_pylist()
    assert {row["price"] for row in rows} == {"0.50", "23.50"}
    assert all(row["path"].endswith(".jpg") for row in rows)


def test_the_table_of_clusters_has_path_caption_and_kept_columns(
    store: Store, tmp_path: Path
) -> None:
    c3tools.cluster(store, output=tmp_path / "clusters", k=2)
    rows = pq.read_table(tmp_path / "clusters" / "clusters.parquet").to_pylist()
    assert {row["price"] for row in rows if row["caption"] == "product 3"} == {"3.50"}
    assert all(row["path"] for row in rows if row["modality"] == "image")
