"""Folders of clip-retrieval: row i of each file is one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools import Store
from c3tools.errors import C3Error
from c3tools.inputs.import_embeddings import import_embeddings
from tests.conftest import unit_rows
from tests.stores import assert_close


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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
