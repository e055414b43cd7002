"""The layout of clip-retrieval, both ways: row i of each file is one image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools import Rows, Store
from c3tools.errors import C3Error
from c3tools.export import ExportReport, export_store
from c3tools.inputs.import_embeddings import import_embeddings
from c3tools.store.verify import verify_store
from tests.conftest import Messages, build_store, contents, unit_rows
from tests.stores import assert_close


def photos(count: int, without_text: int | None = None, shift: int = 0) -> Store:
    """A store of images with two texts each in another order, three rows a shard."""
    keys = [f"p{number}" for number in range(count)]
    owners = [*reversed(keys), *keys]
    if without_text is not None:
        owners = [owner for owner in owners if owner != keys[without_text]]
    texts = Rows.of(
        "text",
        [f"t{number}" for number in range(len(owners))],
        unit_rows(len(owners), 8, seed=1 + shift),
        image_key=owners,
        caption=[f"text {number} of {owner}" for number, owner in enumerate(owners)],
    )
    paths = [f"photos/{key}.jpg" for key in keys]
    images = Rows.of("image", keys, unit_rows(count, 8), path=paths)
    return build_store(Path("s"), images, texts, part_rows=3, dtype="float32")


def ok(**options: Any) -> ExportReport:
    options = {"preset": "c1", "role": "inference", "dtype": "float32", **options}
    return export_store("s", output="e", format="clip-retrieval", **options)


def read(name: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(Path("e", name).iterdir())])


def metadata() -> pa.Table:
    tables = [pq.read_table(path) for path in sorted(Path("e/metadata").iterdir())]
    return pa.concat_tables([table.replace_schema_metadata() for table in tables])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_row_i_of_each_file_is_one_image() -> None:
    store = photos(7)
    messages = Messages()
    report = ok(reporter=messages)
    assert messages.texts[0] == "text_emb/ has the first text of each image: 7 of 14 texts."
    assert (report.rows, report.parts) == ({"image": {"training": 0, "inference": 7}}, 3)
    names = [f"{name}/{name}_0000{number}" for name in ("img_emb", "text_emb") for number in (0, 2)]
    assert all(Path("e", f"{name}.npy").exists() for name in names)
    images, texts, rows = store.load("image"), store.load("text"), metadata()
    assert rows["key"].to_pylist() == images.keys
    assert rows["image_path"].to_pylist() == [f"photos/{key}.jpg" for key in images.keys]
    assert_close(read("img_emb"), images.embeddings)
    # the first texts are those of the images in reverse order
    assert_close(read("text_emb"), texts.embeddings[:7][::-1])
    assert rows["caption"].to_pylist() == texts.captions[:7][::-1]
    assert verify_store("e").whole


def test_texts_are_left_out_unless_every_image_has_one() -> None:
    photos(4, without_text=2)
    messages = Messages()
    ok(reporter=messages)
    assert messages.texts[0] == (
        "The texts are left out: 1 of 4 images have none, but in the clip-retrieval layout row i "
        "of text_emb/ belongs to image i."
    )
    assert not Path("e/text_emb").exists() and "caption" not in metadata().column_names


def test_texts_are_left_out_if_only_images_are_asked_for() -> None:
    photos(4)
    ok(modality=["image"])
    assert not Path("e/text_emb").exists()
    with pytest.raises(C3Error, match="no images are exported"):
        ok(modality=["text"], overwrite=True)


def test_the_export_follows_its_store() -> None:
    photos(4, without_text=2)
    ok()
    shutil.rmtree("s")
    photos(7)
    assert ok().parts == 3
    after = contents(Path("e"))
    shutil.rmtree("e")
    ok()
    assert contents(Path("e")).keys() == after.keys()
    # The record of the fit, which c1 does not have, is the former one
    differ = {name for name, content in contents(Path("e")).items() if content != after[name]}
    assert differ <= {"store.json", "transform.json", "manifest.json"}
    shutil.rmtree("s")
    photos(7, shift=5)
    assert ok().parts == 3
    assert_close(read("text_emb"), Store.open("s").load("text").embeddings[:7][::-1])


def test_an_export_is_imported_again() -> None:
    store = photos(7)
    ok()
    report = import_embeddings("e", "back", dtype="float32")
    images, texts = Store.open("back").load("image"), Store.open("back").load("text")
    assert (report.pairs, images.keys) == (7, store.load("image").keys)
    assert images.column("path") == [f"photos/{key}.jpg" for key in images.keys]
    assert_close(images.embeddings, store.load("image").embeddings)
    assert texts.captions == store.load("text").captions[:7][::-1]


def write_parts(suffix: str, *counts: int) -> None:
    """Parts as clip-retrieval writes them: float16 arrays, and a table of names and captions."""
    start = 0
    for number, count in enumerate(counts):
        rows = range(start, start + count)
        for name in ("img_emb", "text_emb"):
            Path("c", name).mkdir(parents=True, exist_ok=True)
            vectors = unit_rows(20, 8, seed=len(name))[rows].astype(np.float16)
            np.save(Path("c", name, f"{name}_{number:{suffix}}.npy"), vectors)
        table = pa.table(
            {
                "image_path": [f"/data/{row}.jpg" for row in rows],
                "caption": [f"caption {row}" for row in rows],
                "url": [f"http://a/{row}" for row in rows],
                "NSFW": [row / 2 for row in rows],
            }
        )
        Path("c/metadata").mkdir(exist_ok=True)
        pq.write_table(table, Path("c", "metadata", f"metadata_{number:{suffix}}.parquet"))
        start += count


@pytest.mark.parametrize("suffix", ["d", "04d"])
@pytest.mark.parametrize("counts", [(20,), (3, 8, 9), (2,) * 10])
def test_parts_of_clip_retrieval_are_joined(suffix: str, counts: tuple[int, ...]) -> None:
    write_parts(suffix, *counts)
    import_embeddings("c", "s", dtype="float32", keep_columns=["NSFW", "url"])
    images, texts = Store.open("s").load("image"), Store.open("s").load("text")
    assert images.keys == texts.column("image_key") == [f"/data/{row}" for row in range(20)]
    assert_close(images.embeddings, unit_rows(20, 8, seed=len("img_emb")), 1e-3)
    assert texts.captions == [f"caption {row}" for row in range(20)]
    assert texts.column("NSFW") == [row / 2 for row in range(20)]


@pytest.mark.parametrize("image", ["c/img_emb", "c/img_emb/*.npy", "c/img_emb/img_emb_{0..2}.npy"])
def test_folders_and_patterns_of_parts_are_joined(image: str) -> None:
    write_parts("d", 3, 8, 9)
    import_embeddings(image=image, meta="c/metadata/*.parquet", store="s", dtype="float32")
    assert len(Store.open("s").load("image")) == 20


def test_a_folder_of_tables_with_vectors_is_joined() -> None:
    Path("t").mkdir()
    for number in range(2):
        vectors = list(unit_rows(2, 4, seed=number))
        columns = {"id": [f"{number}{row}" for row in "ab"], "embedding": vectors}
        pq.write_table(pa.table(columns), Path("t", f"{number}.parquet"))
    import_embeddings(image="t", store="s")
    assert Store.open("s").load("image").keys == ["0a", "0b", "1a", "1b"]


@pytest.mark.parametrize(
    ("make", "options", "problem"),
    [
        ("c/other", {"source": "c"}, "or one .pkl file or clip-retrieval folder"),
        ("c/img_emb", {"source": "c"}, "has no files in a supported format"),
        ("c", {"image": "c/*.npy"}, "c/\\*.npy"),
    ],
)
def test_folders_without_vectors_are_refused(
    make: str, options: dict[str, Any], problem: str
) -> None:
    Path(make).mkdir(parents=True)
    with pytest.raises(C3Error, match=problem):
        import_embeddings(**options)


def test_a_folder_and_other_files_are_refused() -> None:
    write_parts("d", 3)
    with pytest.raises(C3Error, match="Pass either files of vectors"):
        import_embeddings("c", image=unit_rows(3, 8))
