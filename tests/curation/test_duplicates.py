"""Copies within and across the splits of a store."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageOps

import c3tools
from c3tools import moments
from c3tools.assets.paths import PHOTOS
from c3tools.curation.duplicates import Duplicates, find_duplicates
from c3tools.curation.groups import DuplicateGroup
from c3tools.curation.near_copies import _ITERATIONS, _NeighbourSearch
from c3tools.encoders import Encoder
from c3tools.errors import C3Error
from c3tools.reporter import SILENT
from c3tools.store import Rows, Store
from tests.conftest import build_store, unit_rows, write_jsonl

FILES = sorted((PHOTOS / "images").glob("*.jpg"))
DIM = 16


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of train and test, some of which are there twice."""
    folder = tmp_path_factory.mktemp("copies")
    for number, file in enumerate(FILES[:10]):
        split = "test" if number >= 8 else "train"
        target = folder / split / f"{number}.jpg"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    shutil.copyfile(FILES[0], folder / "train" / "same-file.jpg")
    second = Image.open(FILES[1]).convert("RGB")
    save(second.crop((20, 10, second.width - 10, second.height - 20)), folder / "train/cropped.jpg")
    ninth = Image.open(FILES[8]).convert("RGB")
    save(ImageOps.mirror(ninth), folder / "train" / "mirrored-test-photo.jpg")
    captions = [{"image": f"train/{n}.jpg", "captions": [f"photo {n}"]} for n in range(8)]
    captions += [{"image": f"test/{n}.jpg", "captions": ["photo 3"]} for n in (8, 9)]
    write_jsonl(folder / "captions.jsonl", *captions)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path, encoder: Encoder) -> Store:
    return c3tools.embed(folder, folder.parent / "store", encoder=encoder, workers=0)


@pytest.fixture(scope="module")
def found(store: Store) -> Duplicates:
    return find_duplicates(store, workers=0)


def group_of(found: Duplicates, key: str) -> DuplicateGroup:
    """The group that a row is in, as the one that is kept or another."""
    for group in found.groups:
        if key in (group.kept, *(copy.key for copy in group.copies)):
            return group
    raise AssertionError(f"{key} is in no group")


def test_an_equal_file_is_an_exact_copy(found: Duplicates) -> None:
    group = group_of(found, "train/same-file")
    assert group.tier == "exact"
    assert group.kept == "train/0"
    assert [copy.leave_out for copy in group.copies] == [True]


def test_a_cropped_photo_is_a_copy_of_the_larger_one(found: Duplicates) -> None:
    group = group_of(found, "train/cropped")
    assert group.tier == "copy"
    assert group.kept == "train/1"
    assert group.copies[0].agreement is not None
    assert group.copies[0].agreement >= 0.7


def test_the_train_row_of_a_leak_is_left_out(found: Duplicates) -> None:
    group = group_of(found, "train/mirrored-test-photo")
    assert group.is_leak
    assert group.kept == "test/8"
    assert [copy.leave_out for copy in group.copies] == [True]


def test_leaks_come_first(found: Duplicates) -> None:
    leaks = [group.is_leak for group in found.groups]
    assert leaks == sorted(leaks, reverse=True)


def test_equal_texts_are_listed_and_not_marked(found: Duplicates) -> None:
    group = next(group for group in found.groups if group.modality == "text")
    assert group.is_leak
    assert len(group.copies) == 2
    assert {copy.split for copy in group.copies} == {"train", "test"}


def test_other_photos_are_in_no_group(found: Duplicates) -> None:
    keys = {group.kept for group in found.groups if group.modality == "image"}
    assert keys == {"train/0", "train/1", "test/8"}


def test_the_table_says_which_rows_are_left_out(found: Duplicates, tmp_path: Path) -> None:
    table = pq.read_table(found.save_table(tmp_path / "duplicates.parquet")).to_pylist()
    left_out = {row["key"] for row in table if row["leave_out"]}
    assert left_out == {"train/same-file", "train/cropped", "train/mirrored-test-photo"}
    assert sum(row["kept"] for row in table) == len(found.groups)


def test_the_table_says_why_rows_are_left_out(found: Duplicates, tmp_path: Path) -> None:
    table = pq.read_table(found.save_table(tmp_path / "duplicates.parquet")).to_pylist()
    reasons = {row["key"]: row["reason"] for row in table if row["reason"]}
    assert set(reasons) == {"train/same-file", "train/cropped", "train/mirrored-test-photo"}
    assert reasons["train/mirrored-test-photo"] == "copy of test/8 (test)"


def test_the_page_shows_groups_side_by_side(found: Duplicates, tmp_path: Path) -> None:
    page = found.save(tmp_path / "duplicates.html").read_text(encoding="utf-8")
    assert "Leaks between splits" in page
    assert page.count("<img") == 6


def test_the_result_is_the_same_with_decoding_processes(store: Store, found: Duplicates) -> None:
    assert find_duplicates(store, workers=2).to_dict() == found.to_dict()


def image_store(folder: Path, embeddings: Any, **columns: Sequence[Any]) -> Store:
    keys = [f"image{number}" for number in range(len(embeddings))]
    return build_store(folder, Rows.of("image", keys, embeddings, **columns), dtype="float32")


def test_rows_of_equal_embeddings_are_exact_copies_without_files(tmp_path: Path) -> None:
    rows = unit_rows(30, DIM)
    rows[[4, 9]] = rows[2]
    found = find_duplicates(image_store(tmp_path / "s", rows, split=["train"] * 30))
    assert [group.to_dict() for group in found.groups] == [
        {
            "modality": "image",
            "kept": "image2",
            "tier": "exact",
            "splits": ["train"],
            "copies": [
                {"key": "image4", "cosine": 1.0, "agreement": None},
                {"key": "image9", "cosine": 1.0, "agreement": None},
            ],
        }
    ]


def test_each_copy_has_its_own_cosine(tmp_path: Path) -> None:
    """Row 6 has the file of row 5, which has the embedding of row 0."""
    rows = unit_rows(30, DIM)
    rows[5] = rows[0]
    digests: list[str | None] = [None] * 30
    digests[5] = digests[6] = "ab"
    (group,) = find_duplicates(image_store(tmp_path / "s", rows, sha256=digests)).groups
    assert group.kept == "image0"
    cosines = {copy.key: copy.cosine for copy in group.copies}
    assert cosines == {"image5": 1.0, "image6": pytest.approx(float(rows[6] @ rows[0]), abs=1e-4)}


def test_the_photo_with_the_most_pixels_is_kept(tmp_path: Path) -> None:
    rows = unit_rows(30, DIM)
    rows[[4, 9]] = rows[2]
    sides = [100] * 30
    sides[9] = 200
    store = image_store(tmp_path / "s", rows, split=["train"] * 30, width=sides, height=sides)
    assert find_duplicates(store).groups[0].kept == "image9"


def test_copies_of_all_splits_are_marked_on_demand(tmp_path: Path) -> None:
    embeddings = unit_rows(6, DIM)
    embeddings[3:] = embeddings[:3]
    store = image_store(tmp_path / "s", embeddings, split=["test", "val", "train"] * 2)
    found = find_duplicates(store)
    assert found.left_out == 1
    assert found.notes[-1].startswith("2 copies are not in train and not marked")
    command = f"c3 split --store {tmp_path}/s --fractions 1,0,0 -o {tmp_path}/s-all"
    assert found.notes[-1].endswith(command)

    found = find_duplicates(store, mark_splits="all")
    assert found.left_out == 3
    assert not any("--mark-splits" in note for note in found.notes)


def captioned(image: str, *captions: str) -> Rows:
    keys = [f"{image}#{number}" for number in range(len(captions))]
    embeddings = unit_rows(len(captions), DIM, seed=3)
    columns = {"image_key": [image] * len(captions), "split": ["train"] * len(captions)}
    return Rows.of("text", keys, embeddings, caption=captions, **columns)


def test_of_exact_copies_the_one_with_captions_is_kept(tmp_path: Path) -> None:
    rows = unit_rows(30, DIM)
    rows[4] = rows[2]
    keys = [f"image{number}" for number in range(30)]
    images = Rows.of("image", keys, rows, split=["train"] * 30)
    store = build_store(tmp_path / "s", images, captioned("image4", "a dog"), dtype="float32")
    found = find_duplicates(store, modality=["image"])
    assert found.groups[0].kept == "image4"
    assert not any("captions" in note for note in found.notes)


def test_captions_that_only_the_left_out_copy_has_are_counted_and_in_the_table(
    tmp_path: Path,
) -> None:
    rows = unit_rows(30, DIM)
    rows[4] = rows[2]
    keys = [f"image{number}" for number in range(30)]
    images = Rows.of("image", keys, rows, split=["test" if n == 2 else "train" for n in range(30)])
    texts = captioned("image4", "a dog", "a cat")
    store = build_store(tmp_path / "s", images, texts, dtype="float32")
    found = find_duplicates(store, modality=["image"])
    assert found.groups[0].kept == "image2"
    assert found.notes[-1] == (
        "2 captions of marked rows are not among those of the kept rows: see the column "
        "lost_captions of the table."
    )
    table = pq.read_table(found.save_table(tmp_path / "t.parquet")).to_pylist()
    assert [row["lost_captions"] for row in table] == [[], ["a dog", "a cat"]]


def test_a_photo_with_a_border_is_left_out(tmp_path: Path) -> None:
    photo = Image.open(FILES[0]).convert("RGB")
    images = [ImageOps.expand(photo, photo.width // 14, "white"), photo]
    paths = [tmp_path / f"{number}.jpg" for number in range(2)]
    for image, path in zip(images, paths, strict=True):
        save(image, path)
    store = image_store(
        tmp_path / "s",
        unit_rows(2, DIM),
        path=[str(path) for path in paths],
        split=["train"] * 2,
        width=[image.width for image in images],
        height=[image.height for image in images],
    )
    (group,) = find_duplicates(store, workers=0).groups
    assert group.kept == "image1"


def test_more_copies_than_nearest_rows_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight crops of a photo, one of them in test, each compared with its two nearest at a time."""
    monkeypatch.setattr("c3tools.curation.near_copies._NEAREST", 2)
    photo = Image.open(FILES[0]).convert("RGB")
    paths = [tmp_path / f"{number}.jpg" for number in range(8)]
    for number, path in enumerate(paths):
        save(photo.crop((0, 0, photo.width - 4 * number, photo.height - 3 * number)), path)
    rows = unit_rows(1, DIM) + 0.05 * unit_rows(8, DIM, seed=1)
    splits = ["train"] * 7 + ["test"]
    store = image_store(tmp_path / "s", rows, path=[str(path) for path in paths], split=splits)
    (group,) = find_duplicates(store, workers=0).groups
    assert group.kept == "image7"
    assert [copy.leave_out for copy in group.copies] == [True] * 7


def test_a_train_photo_is_left_out_that_copies_a_test_photo_which_is_not_kept(
    tmp_path: Path,
) -> None:
    """The left and the right part of a photo are copies of the whole, but not of each other."""
    photo = Image.open(FILES[0]).convert("RGB")
    width, height = photo.size
    paths = [tmp_path / f"{name}.jpg" for name in ("left", "whole", "right")]
    save(photo.crop((0, 0, int(0.65 * width), height)), paths[0])
    save(photo, paths[1])
    save(photo.crop((int(0.35 * width), 0, width, height)), paths[2])
    splits = ["test", "test", "train"]
    store = image_store(
        tmp_path / "s", unit_rows(3, DIM), path=[str(path) for path in paths], split=splits
    )
    (group,) = find_duplicates(store, workers=0).groups
    assert group.kept == "image0"
    assert {copy.key: copy.leave_out for copy in group.copies} == {"image1": False, "image2": True}


def test_products_of_other_colours_are_listed_and_not_left_out(tmp_path: Path) -> None:
    paths = [tmp_path / f"{colour}.png" for colour in ("red", "black")]
    for path in paths:
        product = Image.new("RGB", (120, 160), "white")
        ImageDraw.Draw(product).polygon([(50, 10), (70, 10), (80, 140), (40, 140)], fill=path.stem)
        product.save(path)
    store = image_store(
        tmp_path / "s", unit_rows(2, DIM), path=[str(path) for path in paths], split=["train"] * 2
    )
    (group,) = find_duplicates(store, workers=0).groups
    assert group.tier == "same scene"
    assert [copy.split for copy in group.copies] == ["train"]


def test_files_that_are_gone_are_named(tmp_path: Path) -> None:
    paths = [f"gone/{number}.jpg" for number in range(30)]
    found = find_duplicates(image_store(tmp_path / "s", unit_rows(30, DIM), path=paths))
    assert found.groups == []
    assert "30 photos of 30 cannot be read" in found.notes[0]
    assert "image0: " in found.notes[0]


def test_rows_are_alike_by_embedding_only_where_a_cosine_is_given(tmp_path: Path) -> None:
    rows = unit_rows(30, DIM)
    near = rows[0] + 0.02 * unit_rows(1, DIM, seed=1)[0]
    rows[1] = near / np.linalg.norm(near)
    store = image_store(tmp_path / "s", rows, split=["train"] * 30)
    assert find_duplicates(store).groups == []
    groups = find_duplicates(store, cosine=0.99).groups
    assert [group.tier for group in groups] == ["alike"]
    assert [copy.split for copy in groups[0].copies] == ["train"]


def test_rows_are_alike_in_a_store_too_large_for_exact_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = unit_rows(2000, DIM)
    rows[1500] = rows[7] + 0.001 * rows[8]
    store = image_store(tmp_path / "s", rows)
    monkeypatch.setattr("c3tools.curation.near_copies._EXACT_SEARCH", 1000)
    monkeypatch.setattr(
        "c3tools.curation.near_copies.choose_factory", lambda n, dim: "IVF16,SQfp16"
    )
    (group,) = find_duplicates(store, cosine=0.99).groups
    assert (group.kept, [copy.key for copy in group.copies]) == ("image1500", ["image7"])


@pytest.mark.parametrize("limit", [1000, 30_000])
def test_nearest_rows_are_found_without_a_copy_of_all_rows(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = unit_rows(30_000, 32).astype(np.float16)
    monkeypatch.setattr("c3tools.curation.near_copies._EXACT_SEARCH", limit)
    monkeypatch.setattr("c3tools.curation.near_copies.choose_factory", lambda n, dim: "IVF8,Flat")
    tracemalloc.start()
    search = _NeighbourSearch(rows, np.arange(30_000), SILENT)
    found = search.pairs(np.arange(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.nbytes
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None]
    cosines = np.einsum("nd,nd->n", unit[found.first], unit[found.second])
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-6)


def test_cells_are_those_that_faiss_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is an extra")
    rows = unit_rows(2000, DIM)
    monkeypatch.setattr("c3tools.curation.near_copies._EXACT_SEARCH", 1000)
    monkeypatch.setattr(
        "c3tools.curation.near_copies.choose_factory", lambda n, dim: "IVF16,SQfp16"
    )
    found = _NeighbourSearch(rows, np.arange(2000), SILENT)._index
    expected = faiss.index_factory(DIM, "IVF16,SQfp16", faiss.METRIC_INNER_PRODUCT)
    expected.cp.niter = _ITERATIONS
    expected.nprobe = found.nprobe
    unit = moments.unit_rows(rows)
    expected.train(unit)
    expected.add(unit)
    assert np.array_equal(faiss.serialize_index(found), faiss.serialize_index(expected))


def test_a_copy_of_a_copy_is_in_no_chain(tmp_path: Path) -> None:
    """Rows on an arc, each near the next one alone."""
    angles = np.arange(5) * np.arccos(0.95)
    rows = np.zeros((5, DIM), np.float32)
    rows[:, 0] = np.cos(angles)
    rows[:, 1] = np.sin(angles)
    groups = find_duplicates(image_store(tmp_path / "s", rows), cosine=0.94).groups
    assert all(len(group.copies) == 1 for group in groups)
    assert len(groups) == 2


def test_many_equal_captions_are_one_group(tmp_path: Path) -> None:
    rows = np.repeat(unit_rows(1, DIM), 20_000, axis=0)
    keys = [f"text{number}" for number in range(20_000)]
    texts = Rows.of("text", keys, rows, caption=["photo"] * 20_000)
    found = find_duplicates(build_store(tmp_path / "s", texts, part_rows=20_000), cosine=0.9)
    assert [len(group.copies) for group in found.groups] == [19_999]


@pytest.mark.parametrize(
    ("first", "second", "are_equal"),
    [
        ("A dog runs .", "a dog  runs", True),
        ("Ein Hund läuft!", "ein hund LÄUFT", True),
        ("一只狗在跑。", "一只狗在跑", True),
        ("a dog runs", "a dogs run", False),
        ("!!!", "???", False),
    ],
)
def test_texts_of_the_same_words_are_equal(
    tmp_path: Path, first: str, second: str, are_equal: bool
) -> None:
    texts = Rows.of("text", ["a", "b"], unit_rows(2, DIM), caption=[first, second])
    assert bool(find_duplicates(build_store(tmp_path / "s", texts)).groups) == are_equal


@pytest.mark.parametrize("cosine", [0.0, -1, 1.5])
def test_a_cosine_that_tells_nothing_is_refused(tmp_path: Path, cosine: float) -> None:
    said = "does not distinguish similar rows|cosine must be between 0 and 1"
    with pytest.raises(C3Error, match=said):
        find_duplicates(image_store(tmp_path / "s", unit_rows(5, DIM)), cosine=cosine)
