from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import StoreError
from c3tools.identity import ModelIdentity
from c3tools.store import Failure, Rows, Shard, Store, StoreInfo, create_store, write_failures, write_shard
from tests.conftest import MODEL, build_store, make_store, unit_rows
from tests.stores import whole_store


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    image, text = unit_rows(7, 16), unit_rows(12, 16, 1)
    store = make_store(tmp_path / "s", image, text, owners=[i % 7 for i in range(12)], part_rows=5)
    assert store.modalities == ["image", "text"]
    assert store.parts("text") == [0, 1, 2]
    assert store.count("text") == 12
    rows = store.load("text")
    np.testing.assert_array_equal(rows.embeddings, text)
    assert rows.column("image_key")[7:9] == ["image0", "image1"]
    assert rows.keys[3] == "text3"


def test_moments_are_those_of_the_stored_rows(tmp_path: Path) -> None:
    rows = unit_rows(500, 24)
    store = make_store(tmp_path / "s", rows, rows, dtype="float16", part_rows=130)
    stored = store.load("image").embeddings.astype(np.float64)
    moments = store.moments("image")
    np.testing.assert_allclose(moments.mean, stored.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(stored.T, bias=True), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 60), dim=st.integers(1, 9), part=st.integers(1, 25), dtype=st.sampled_from(["float16", "float32"])
)
def test_any_shape_survives(tmp_path_factory: pytest.TempPathFactory, n: int, dim: int, part: int, dtype: str) -> None:
    rows = unit_rows(n, dim, n)
    store = make_store(tmp_path_factory.mktemp("s") / "s", rows, rows, dtype=dtype, part_rows=part)
    loaded = store.load("image")
    np.testing.assert_array_equal(loaded.embeddings, rows.astype(dtype).astype(np.float32))
    assert store.moments("image").n == n


@pytest.mark.parametrize("name", ["key", "path", "split"])
def test_a_column_of_texts_with_another_type_is_refused(tmp_path: Path, name: str) -> None:
    store = build_store(tmp_path / "s", Rows.of("image", list("ab"), unit_rows(2, 8), split=["train", "val"]))
    path = store.file("image", 0, ".parquet")
    table = pq.read_table(path)
    position = table.schema.get_field_index(name)
    pq.write_table(table.set_column(position, name, table.column(name).cast(pa.binary())), path)
    with pytest.raises(StoreError, match=f"column '{name}' is binary, not text"):
        Store.open(tmp_path / "s").load("image")


def test_splits_select_rows_and_moments(tmp_path: Path) -> None:
    splits = ["train", "restval", "val", "test", "test", None]
    store = build_store(tmp_path / "s", Rows.of("image", list("abcdef"), unit_rows(6, 8), split=splits))
    assert store.load("image", "test").keys[:2] == ["d", "e"]
    assert store.moments("image", "train").n >= 2
    groups = store.moments_by_split("image")
    assert sum(m.n for m in groups.values()) == 6
    for name, moments in groups.items():
        own = store.load("image", name).embeddings
        np.testing.assert_allclose(moments.mean, own.mean(axis=0), atol=1e-7)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = unit_rows(50, 8)
    for name in ("a", "b"):
        make_store(tmp_path / name, rows, rows)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_shard_explains_itself(tmp_path: Path) -> None:
    make_store(tmp_path / "s", unit_rows(5, 8), unit_rows(5, 8))
    schema = pq.read_schema(tmp_path / "s" / "image" / "part-00000.parquet")
    assert json.loads(schema.metadata[b"c3"]) == json.loads((tmp_path / "s" / "store.json").read_text())
    columns = pq.ParquetFile(tmp_path / "s" / "image" / "part-00000.parquet").metadata.row_group(0)
    by_name = {columns.column(i).path_in_schema: columns.column(i) for i in range(columns.num_columns)}
    assert "BYTE_STREAM_SPLIT" in by_name["embedding.list.element"].encodings
    assert by_name["embedding.list.element"].statistics is None
    assert by_name["key"].compression == "ZSTD"


def test_a_shard_without_its_marker_does_not_exist(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", unit_rows(10, 8), unit_rows(10, 8), part_rows=5)
    (tmp_path / "s" / "image" / "_part-00001.json").unlink()
    assert store.count("image") == 5
    assert len(store.load("image")) == 5


def test_failures_are_rows(tmp_path: Path) -> None:
    info = StoreInfo(MODEL, 4)
    create_store(tmp_path / "s", info)
    failure = Failure("k", "p.jpg", "decode", "OSError", "truncated")
    write_shard(tmp_path / "s", info, Shard("image", 0, np.zeros((0, 4)), {"key": []}, [failure]))
    store = Store.open(tmp_path / "s")
    assert store.failures() == [failure]
    assert store.moments("image").n == 0
    write_failures(tmp_path / "s", store.failures())
    assert store.recorded_failures() == [failure]
    write_failures(tmp_path / "s", [])
    assert store.recorded_failures() == []


class TestErrors:
    def test_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="no store at"):
            Store.open(tmp_path)

    def test_damaged_description(self, tmp_path: Path) -> None:
        (tmp_path / "store.json").write_text("{")
        with pytest.raises(StoreError, match="damaged"):
            Store.open(tmp_path)
        (tmp_path / "store.json").write_text('{"format_version": 1}')
        with pytest.raises(StoreError, match="does not describe a store"):
            Store.open(tmp_path)

    def test_newer_format(self, tmp_path: Path) -> None:
        (tmp_path / "store.json").write_text('{"format_version": 99}')
        with pytest.raises(StoreError, match="format version 99"):
            Store.open(tmp_path)

    def test_another_model(self, tmp_path: Path) -> None:
        make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4))
        other = StoreInfo(ModelIdentity(name="other", weights_sha256="1" * 64), 4, dtype="float32")
        with pytest.raises(StoreError, match=r"test-model \(000000000000\).*other \(111111111111\)"):
            create_store(tmp_path / "s", other)

    def test_another_dtype(self, tmp_path: Path) -> None:
        make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4))
        with pytest.raises(StoreError, match="dtype = float32"):
            create_store(tmp_path / "s", StoreInfo(MODEL, 4))

    def test_missing_modality(self, tmp_path: Path) -> None:
        store = make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4))
        with pytest.raises(StoreError, match=r"no modality 'audio'\. Its modalities: image, text"):
            store.load("audio")

    def test_damaged_shard_is_named_with_the_remedy(self, tmp_path: Path) -> None:
        store = make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4))
        path = tmp_path / "s" / "image" / "part-00000.parquet"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(StoreError, match=r"part-00000.parquet cannot be read"):
            store.load("image")

    def test_damaged_marker(self, tmp_path: Path) -> None:
        store = make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4))
        (tmp_path / "s" / "image" / "_part-00000.json").write_text("[]")
        with pytest.raises(StoreError, match="done marker"):
            store.count("image")


def test_a_store_shows_itself(tmp_path: Path) -> None:
    info = dict(MODEL, name="<b>")
    rows = Rows.of("image", list("abc"), unit_rows(3, 4), split=["train", "val", "train"])
    store = build_store(tmp_path / "s", rows, model=info, part_rows=2)
    assert store.summary is None
    assert store.split_counts("image") == {"train": 2, "val": 1}
    assert repr(store) == f"Store({str(tmp_path / 's')!r}, model='<b>', dim=4, float16)"
    html = store._repr_html_()
    assert "<th>modality</th><th>train</th><th>val</th><th>all</th>" in html
    assert "<td>image</td><td>2</td><td>1</td><td>3</td>" in html
    assert "&lt;b&gt;" in html


def test_a_description_that_could_not_be_written_again_is_damaged(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s", images=3).path / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "preprocessing": {"mode": "\ud800"}}))
    with pytest.raises(StoreError, match="does not describe a store"):
        Store.open(path.parent)
