"""Exports in which each item stands once: as a row of both, else as its image or its text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools import Calibration, Pipeline, Store, build_index, cluster, leave_out, verify_store
from c3tools.errors import C3Error, StoreError, TransformError
from c3tools.export import FORMATS, ExportReport, export_store
from c3tools.index import contact_sheet
from c3tools.index.items import Items
from c3tools.moments import Moments
from c3tools.store import Failure, Rows
from c3tools.transforms.presets import TrainingPipeline
from tests.conftest import build_store, contents, unit_rows
from tests.crashes import kill_at
from tests.stores import assert_close, make_vectors, unit

EXPORT = Path("c3-export")
FIT = ("store.json", "transform.json", "transform.safetensors", "calibration.safetensors")
KINDS = ("fused", "image", "text")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with a store of items that have an image, texts, or both."""
    monkeypatch.chdir(tmp_path)
    write_store()


def write_store(count: int = 90, *, edited: bool = False, last_text: bool = True) -> None:
    """Write items of which a third has an image and two texts, a third an image, and a third texts;
    the image of the last cannot be read.
    """
    shutil.rmtree("c3-store", ignore_errors=True)
    images, texts = make_vectors(200)
    keys = [f"item{number:03d}" for number in range(count)]
    splits = ["test" if number // 3 % 2 else "train" for number in range(count)]
    with_image = np.array([number % 3 != 2 for number in range(count)])
    image_rows = Rows.of(
        "image",
        keys,
        images[:count],
        path=[f"photos/{key}.jpg" for key in keys],
        split=splits,
    )
    numbers = [number for number in range(count) for _ in range(2) if number % 3 != 1]
    alone = [number % 3 == 2 and number != count - 1 for number in numbers]
    text_rows = Rows.of(
        "text",
        [f"{keys[number]}#{row}" for row, number in enumerate(numbers)],
        unit(texts[numbers] + unit_rows(len(numbers), texts.shape[1])),
        caption=[f"text {row} of {keys[number]}" for row, number in enumerate(numbers)],
        image_key=[
            None if own else keys[number] for own, number in zip(alone, numbers, strict=True)
        ],
        split=[splits[number] for number in numbers],
    )
    if edited:
        text_rows.embeddings[0] = images[-1]
    if not last_text:
        text_rows = text_rows.select(np.arange(len(text_rows) - 1))
    parts = {"image": 20, "text": 25}
    failures = [(0, Failure(keys[-1], f"photos/{keys[-1]}.jpg", "decode", "OSError", "truncated"))]
    build_store(
        Path("c3-store"),
        image_rows.select(with_image),
        text_rows,
        part_rows=parts,
        failures=failures,
    )


def ok(**options: Any) -> ExportReport:
    return export_store("c3-store", fuse=True, **{"preset": "gr-clip", **options})


def expected_rows() -> dict[str, tuple[list[str], np.ndarray]]:
    """The keys and rows of each kind, in float64 and item by item."""
    store = Store.open("c3-store")
    rows = {name: store.load(name) for name in ("image", "text")}
    centred = {}
    for name, own in rows.items():
        mean = store.moments(name, "train").mean
        centred[name] = unit(unit(own.embeddings.astype(np.float64)) - mean)
    first_texts: dict[str, int] = {}
    for row, (key, item) in enumerate(
        zip(rows["text"].keys, rows["text"].column("image_key"), strict=True)
    ):
        first_texts.setdefault(item or key, row)
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
    for key, vector in zip(rows["image"].keys, centred["image"], strict=True):
        if key in first_texts:
            total = vector + centred["text"][first_texts.pop(key)]
            found["fused"][key] = total / np.linalg.norm(total)
        else:
            found["image"][key] = vector
    for row in first_texts.values():
        found["text"][rows["text"].keys[row]] = centred["text"][row]
    return {kind: ([*of], np.array([*of.values()])) for kind, of in found.items()}


def test_each_item_stands_once() -> None:
    report = ok(dtype="float32")
    counts = {kind: sum(of.values()) for kind, of in report.rows.items()}
    # 29 items have two texts without an image, which are items of their own
    assert counts == {"fused": 30, "image": 30, "text": 59}
    export = Store.open(EXPORT)
    for kind, (keys, vectors) in expected_rows().items():
        own = export.load(kind)
        assert own.keys == keys
        assert_close(own.embeddings, vectors, 1e-3)
    fused = export.load("fused")
    assert fused.column("caption")[:2] == ["text 0 of item000", "text 4 of item003"]
    assert fused.column("path")[0] == "photos/item000.jpg"
    assert {*fused.column("role")} == {"inference"}
    assert fused.splits == ["test" if number % 2 else "train" for number in range(30)]
    assert verify_store(EXPORT).whole


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_the_moments_of_fused_rows_are_those_of_the_rows(format: str) -> None:
    ok(format=format, dtype="float32")
    calibration = Calibration.load("c3-export")
    plain = Calibration.fit("c3-store", pipeline=Pipeline.load("c3-export"))
    for name, moments in plain.moments.items():
        assert (calibration.moments[name].scatter == moments.scatter).all()
    keys, rows = expected_rows()["fused"]
    # Of 15 train rows, too few
    expected = Moments.from_rows(rows)
    assert calibration.moments["fused"].n == len(keys)
    assert_close(calibration.moments["fused"].mean, expected.mean, 1e-3)
    assert_close(calibration.moments["fused"].covariance, expected.covariance, 1e-3)


def test_moments_are_those_of_the_train_split_if_it_has_enough() -> None:
    write_store(150)
    ok(dtype="float32")
    train = Store.open(EXPORT).load("fused", "train").embeddings
    moments = Calibration.load("c3-export").moments["fused"]
    assert moments.n == len(train) == 25
    assert_close(moments.mean, train.mean(0), 1e-6)


def test_rows_are_not_fused_with_noise() -> None:
    ok(preset="c3")
    assert_close(Store.open(EXPORT).load("fused").embeddings, expected_rows()["fused"][1], 2e-3)


def leave_out_first_text() -> None:
    leave_out("c3-store", modality="text", keys=["item000#0"])


def leave_out_texts() -> None:
    leave_out("c3-store", modality="text", keys=["item000#0", "item000#1"])


def leave_out_image() -> None:
    leave_out("c3-store", modality="image", keys=["item000"])


@pytest.mark.parametrize(
    ("act", "key", "kind"),
    [
        (lambda: write_store(120), "item117", "fused"),
        (lambda: write_store(edited=True), "item000", "fused"),
        (lambda: write_store(last_text=False), "item000", "fused"),
        (leave_out_first_text, "item000", "fused"),
        (leave_out_texts, "item000", "image"),
        (leave_out_image, "item000", None),
    ],
)
@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_the_export_follows_its_store(
    format: str, act: Callable[[], None], key: str, kind: str | None
) -> None:
    ok(format=format)
    before = contents(EXPORT)
    act()
    report = ok(format=format)
    after = contents(EXPORT)
    assert before != after and report.kept > 2
    assert {name: after[name] for name in FIT} == {name: before[name] for name in FIT}
    assert verify_store(EXPORT).whole
    Path("fresh").mkdir()
    for name in FIT:
        Path("fresh", name).write_bytes(before[name])
    ok(format=format, output="fresh")
    assert contents(Path("fresh")) == after
    if format == "parquet":
        export = Store.open(EXPORT)
        for name in KINDS:
            assert (key in export.load(name).keys) == (name == kind)
        for name, (keys, _) in expected_rows().items():
            assert export.load(name).keys == keys


@pytest.mark.parametrize("format", sorted(FORMATS))
@pytest.mark.parametrize("operation", [3, 9, 14, 20])
def test_a_killed_export_is_continued_to_the_same_bytes(format: str, operation: int) -> None:
    ok(format=format, output="whole", workers=1)
    assert kill_at(EXPORT.absolute(), operation, lambda: ok(format=format, workers=1))
    ok(format=format, workers=1)
    assert contents(EXPORT) == contents(Path("whole"))


def test_an_exchanged_part_is_found_and_made_again() -> None:
    ok()
    whole = contents(EXPORT)
    first, second = (EXPORT / "fused" / f"part-0000{number}.parquet" for number in (0, 1))
    first.rename("moved")
    second.rename(first)
    Path("moved").rename(second)
    assert {found.file for found in verify_store(EXPORT).findings} == {
        "fused/part-00000.parquet",
        "fused/part-00001.parquet",
    }
    assert ok().parts == 2
    assert contents(EXPORT) == whole


def test_keys_are_unique_in_one_table() -> None:
    ok(one_table=True)
    table = pq.read_table(EXPORT / "rows").to_pydict()
    expected = {f"{kind}/{key}" for kind, (keys, _) in expected_rows().items() for key in keys}
    assert {*table["key"]} == expected and len(table["key"]) == len(expected)
    fused = table["modality"].index("fused")
    assert table["path"][fused] == "photos/item000.jpg"
    assert table["caption"][fused] == "text 0 of item000"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"before_noise": True, "preset": "c3"}, "--before-noise and --fuse exclude each other"),
        ({"sigma": 0.1, "preset": "c3"}, "--sigma and --fuse exclude"),
        ({"role": "training"}, "--role training and --fuse exclude"),
        ({"metric": "l2"}, "--metric l2 and --fuse exclude"),
        ({"modality": ["image"]}, "(?s)needs images and texts, not image.*--modality image"),
        ({"preset": "fair"}, "(?s)rows of fair do not have norm 1.*--preset"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TransformError, match=words):
        ok(**options)
    assert not EXPORT.exists()


def test_too_few_items_are_refused() -> None:
    write_store(57)
    with pytest.raises(TransformError, match=r"(?s)19 items have an image and a text, .* needs 20"):
        ok()


def test_an_export_of_items_is_not_replaced_by_one_of_rows() -> None:
    ok()
    with pytest.raises(C3Error, match=r"(?s)its fuse is True, not False.*--overwrite"):
        export_store("c3-store", preset="gr-clip")
    export_store("c3-store", preset="gr-clip", overwrite=True)
    assert Store.open(EXPORT).modalities == ["image", "text"]
    assert verify_store(EXPORT).whole


def numpy_hits(export: Path, query: np.ndarray, k: int) -> list[tuple[str, str]]:
    """Return the keys and kinds of the best rows, from the files of an export of arrays alone."""
    calibration = Calibration.load(export)
    found = {}
    for kind in KINDS:
        keys = pq.read_table(export / kind / "metadata").column("key").to_pylist()
        arrays = [np.load(path) for path in sorted((export / kind / "embeddings").iterdir())]
        found[kind] = (keys, np.concatenate(arrays) @ query)
    return [(key, kind) for key, kind, _ in calibration.merge(query, found, k)]


def test_an_index_finds_what_numpy_finds_in_the_files() -> None:
    pytest.importorskip("faiss", reason="faiss is not there")
    ok(dtype="float32")
    ok(dtype="float32", format="npy", output="arrays")
    index = build_index(EXPORT)
    assert (index.calibration.moments["fused"].mean != 0).any()
    raw = Store.open("c3-store").load("text").embeddings[[5, 40]]
    found = index.search(vector=raw, modality="text", k=20)
    queries = Calibration.load("arrays").pipeline.transform(raw, modality="text")
    for result, query in zip(found, queries, strict=True):
        hits = [(hit.key, hit.modality) for hit in result.hits]
        assert hits == numpy_hits(Path("arrays"), query, 20)
        assert {kind for _, kind in hits} == {*KINDS}


def test_a_fused_hit_has_its_photo_and_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss", reason="faiss is not there")
    ok()
    index = build_index(EXPORT)
    (result,) = index.search(key="item003", k=3)
    hit = result.hits[0]
    values = json.loads(json.dumps(hit.to_dict()))
    expected = {
        "key": "item003",
        "modality": "fused",
        "path": "photos/item003.jpg",
        "caption": "text 4 of item003",
    }
    assert {name: values[name] for name in expected} == expected
    assert hit.line().endswith("fused  item003  text 4 of item003  photos/item003.jpg")
    page = contact_sheet([result], EXPORT)
    assert "<p>text 4 of item003</p>" in page and "photos/item003.jpg" in page


def test_fused_rows_of_one_photo_with_other_texts_are_no_copies() -> None:
    names = ["a", "b", "c"]
    captions = ["red", "blue", "red"]
    digests = ["0" * 64] * 3
    rows = pa.table(
        {
            "modality": ["fused"] * 3,
            "key": names,
            "caption": captions,
            "image_key": pa.nulls(3, pa.string()),
            "sha256": digests,
        }
    )
    assert Items.of(rows).numbers.tolist() == [0, 1, 0]


def test_clusters_are_of_kinds_that_are_chosen() -> None:
    pytest.importorskip("faiss", reason="faiss is not there")
    ok()
    with pytest.raises(StoreError, match=r"(?s)each item is stored once.*--modalities fused"):
        cluster(EXPORT)
    assert cluster(EXPORT, modalities=["fused"], k=3).table().columns[:2] == ["cluster", "fused"]


def test_nothing_is_trained_on_items() -> None:
    ok()
    store = Store.open(EXPORT)
    with pytest.raises(TransformError, match="fused rows are sums of an image and a text"):
        TrainingPipeline.choose(store, None, None, None)
