"""What is imported beside plain files: published pickles, arrays of many kinds; and rows left out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from c3tools.errors import StoreError
from c3tools.store import Rows, Store, write_rows
from c3tools.store import import_embeddings as importing
from c3tools.store.import_embeddings import import_embeddings, read_rows
from c3tools.store.verify import verify_store
from tests.conftest import store_files
from tests.stores import make_vectors


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with five images in i.npy and their texts in t.npy."""
    monkeypatch.chdir(tmp_path)
    images, texts = make_vectors(5)
    np.save("i.npy", images * 2)
    np.save("t.npy", texts[::2])
    return tmp_path


def loaded(modality: str) -> Rows:
    return Store.open("c3-store").load(modality)


def lines(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("protocol", [2, 5])
def test_published_pickles(here: Path, protocol: int) -> None:
    images, texts = make_vectors(4)
    c3 = {
        "images": {i: {"img_path": f"{i}.jpg", "embed": torch.from_numpy(row[None])} for i, row in enumerate(images)},
        "captions": {
            1000 + j: {"caption": f"text {j}", "img_id": j // 2, "embed": row * np.float32(7)}
            for j, row in enumerate(texts)
        },
    }
    Path("oscar_split_ViT-B_32_train.pkl").write_bytes(pickle.dumps(c3, protocol))
    assert import_embeddings("oscar_split_ViT-B_32_train.pkl").pairs == 8
    text = loaded("text")
    assert (text.keys[5], text.column("image_key")[5], text.column("split")[5]) == ("1005", "2", "train")
    np.testing.assert_allclose(text.embeddings, texts, atol=1e-3)
    captions = [{"caption": f"t{i}", "image_id": f"{i}", "clip_embedding": 7 - i} for i in range(8)]
    Path("coco.pkl").write_bytes(pickle.dumps({"clip_embedding": texts, "captions": captions}, protocol))
    import_embeddings("coco.pkl", "clipcap")
    np.testing.assert_allclose(Store.open("clipcap").load("text").embeddings, texts[::-1], atol=1e-3)
    Path("other.pkl").write_bytes(pickle.dumps([1, 2], protocol))
    with pytest.raises(StoreError, match=r"other\.pkl"):
        import_embeddings("other.pkl", "s")


def test_rows_that_cannot_be_kept_are_listed(here: Path) -> None:
    images, texts = make_vectors(8)
    images[2, 5], images[4], texts[5] = np.nan, 0, 0
    images[1] *= 65_504 / np.abs(images[1]).max()
    images[3] *= 65_536 / np.abs(images[3]).max()
    np.save("i.npy", images)
    np.save("t.npy", texts[:8])
    report = import_embeddings(image="i.npy", text="t.npy", normalise=False)
    assert (report.rows, report.pairs) == ({"image": 5, "text": 7}, 4)
    assert any("kept as they are" in note for note in report.notes)
    store = Store.open("c3-store")
    assert not store.info.normalised and np.abs(store.load("image").embeddings).max() == 65_504
    failures = {failure.key: failure.message for failure in store.shard_failures("image", 0)}
    assert failures.keys() == {"00000002", "00000003", "00000004"} and "--dtype float32" in failures["00000003"]
    assert store.recorded_failures() == sorted(report.failures, key=lambda failure: failure.key)
    import_embeddings(image="i.npy", store="scaled")  # where the length does not matter
    assert len(Store.open("scaled").load("image")) == 6
    assert verify_store("c3-store").whole


def test_an_interrupted_import_is_continued(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "SHARD_ROWS", 2)
    import_embeddings(image="i.npy", text="t.npy", store="whole")
    calls: list[Any] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return write_rows(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as interrupt:
        patch.setattr(importing, "write_rows", interrupted)
        import_embeddings(image="i.npy", text="t.npy")
    assert "are kept" in interrupt.value.__notes__[0]
    import_embeddings(image="i.npy", text="t.npy")
    found = [
        {p.relative_to(here / name): p.read_bytes() for p in store_files(here / name)} for name in ("c3-store", "whole")
    ]
    assert found[0] == found[1]
    np.save("i.npy", make_vectors(5, 9)[0])
    with pytest.raises(StoreError, match="already has image and text rows"):
        import_embeddings(image="i.npy", text="t.npy")
    import_embeddings(other={"audio": "i.npy"}, model="ImageBind", store="whole2", image="i.npy")
    assert Store.open("whole2").load("audio").column("pair_key") == Store.open("whole2").load("image").keys


def test_arrays_tables_and_columns_of_many_kinds(here: Path) -> None:
    images, texts = make_vectors(5)
    np.savez("both.npz", a=images, b=texts[::2], ids=np.array([f"k{i}" for i in range(5)]))
    with pytest.raises(StoreError, match="'a', 'b'"):
        import_embeddings(image="both.npz")
    import_embeddings(image="both.npz", text="both.npz", image_array="a", text_array="b")
    assert list(loaded("image").keys) == ["k0", "k1", "k2", "k3", "k4"]
    np.testing.assert_allclose(loaded("text").embeddings, texts[::2], atol=1e-3)
    torch.save(
        {"features": torch.from_numpy(images).bfloat16(), "ids": ["a", "b", "c", "d", "e"], "note": ["x"]}, "l.pt"
    )
    assert list(read_rows("l.pt", "image")[0].keys) == ["a", "b", "c", "d", "e"]
    Path("m.csv").write_text("image_id;split\n" + "".join(f"{i};test\n" for i in range(5)))
    Path("t.csv").write_text("IMAGE_ID;Caption\n" + "".join(f'{4 - i};"one; {i}"\n' for i in range(5)))
    import_embeddings(store="s", image="i.npy", text="t.npy", meta="m.csv", text_meta="t.csv")
    text = Store.open("s").load("text")
    assert (text.column("image_key"), list(text.captions)[:2]) == ([*"43210"], ["one; 0", "one; 1"])
    lists = pa.array([[1, 2, 3], [4, 5, 6, 7, 8]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": [1, 2], "embedding": lists}), "v.parquet")
    lines("w.jsonl", [{"id": 1, "text": ["a dog"]}])
    for name, words in (("v.parquet", "3, 5"), ("w.jsonl", "'id', 'text'"), ("none.npy", "none.npy")):
        with pytest.raises(StoreError, match=words):
            read_rows(name, "image")
    Path("spaces.csv").write_text('id,vector \n1,"0.5 1 2"\n')
    for name, words in (("vector ", "JSON list"), ("vector", "'vector '")):
        with pytest.raises(StoreError) as error:
            read_rows("spaces.csv", "image", name)
        assert words in str(error.value)
    for last in ("[1, 2]", "null", '["a", "b", "c"]', f"[1, 2, 1{'0' * 400}]", "[[1], 2, 3]", "[]"):
        Path("x.jsonl").write_text(f'{{"id": 1, "vector": [1, 0, 0.5]}}\n{{"id": 2, "vector": {last}}}\n')
        with pytest.raises(StoreError, match=r"x\.jsonl"):
            read_rows("x.jsonl", "image")
