from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from c3tools.corpus.splits import hashed_split
from c3tools.errors import StoreError
from c3tools.moments import Moments
from c3tools.store import Store
from c3tools.store.rows import row_splits
from c3tools.store.split import split_store
from c3tools.store.verify import verify_store
from tests.conftest import C3, store_files
from tests.stores import whole_store


def splits_by_key(store: Store, modality: str) -> dict[str, str]:
    rows = store.load(modality)
    return dict(zip(rows.keys, row_splits(rows.table), strict=True))


def check(store: Store, source: Store) -> None:
    """What holds for every split: rows as before, texts with their image, moments of the new splits, whole."""
    images = splits_by_key(store, "image")
    texts = store.load("text")
    for key, split in splits_by_key(store, "text").items():
        assert split == images[key.split("#")[0]]
    np.testing.assert_array_equal(texts.embeddings, source.load("text").embeddings)
    for modality in ("image", "text"):
        groups = {name: store.moments(modality, name) for name in set(splits_by_key(store, modality).values())}
        assert {name: m.n for name, m in groups.items()} == Counter(splits_by_key(store, modality).values())
        for name, moments in groups.items():
            own = Moments.from_rows(store.load(modality, name).embeddings)
            np.testing.assert_allclose(moments.mean, own.mean, atol=1e-12)
            np.testing.assert_allclose(moments.scatter, own.scatter, atol=1e-11)
    assert verify_store(store.path).findings == []


def test_by_hash_as_stores_without_splits_are_read(tmp_path: Path) -> None:
    source = whole_store(tmp_path / "s", images=60)
    before = {file: file.read_bytes() for file in store_files(source.path)}
    report = split_store(tmp_path / "new", source.path)
    new = Store.open(tmp_path / "new")
    assert splits_by_key(new, "image") == {key: hashed_split(key) for key in source.load("image").keys}
    assert report.rows["image"] == Counter(splits_by_key(new, "image").values())
    assert {name: 2 * n for name, n in report.rows["image"].items()} == report.rows["text"]
    assert new.recorded_failures() == source.recorded_failures() != []
    check(new, source)
    assert {file: file.read_bytes() for file in store_files(source.path)} == before


def test_fractions_and_seed(tmp_path: Path) -> None:
    source = whole_store(tmp_path / "s", images=400, part_rows=150)
    halves = (0.5, 0.0, 0.5)
    one = split_store(tmp_path / "a", source.path, fractions=halves, seed=1)
    assert set(one.rows["image"]) == {"train", "test"}
    # 400 draws of a half: 5 standard deviations are 50
    assert abs(one.rows["image"]["train"] - 200) < 50
    split_store(tmp_path / "b", source.path, fractions=halves, seed=1)
    split_store(tmp_path / "c", source.path, fractions=halves, seed=2)
    assert splits_by_key(Store.open(tmp_path / "a"), "image") == splits_by_key(Store.open(tmp_path / "b"), "image")
    assert splits_by_key(Store.open(tmp_path / "a"), "image") != splits_by_key(Store.open(tmp_path / "c"), "image")
    for file in store_files(tmp_path / "a"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    check(Store.open(tmp_path / "a"), source)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_by_a_file_of_file_names(tmp_path: Path, suffix: str) -> None:
    source = whole_store(tmp_path / "s")
    wanted = {f"img{i:03d}": "test" if i % 3 == 0 else "val" for i in range(0, 30, 2)}
    file = tmp_path / f"splits.{suffix}"
    if suffix == "jsonl":
        lines = [json.dumps({"file_name": f"{key}.jpg", "split": name}) for key, name in wanted.items()]
    else:
        lines = ["file_name,split", *(f"{key}.jpg,{name}" for key, name in wanted.items())]
    file.write_text("\n".join(lines) + "\n")
    report = split_store(tmp_path / "new", source.path, file=file)
    new = Store.open(tmp_path / "new")
    old = splits_by_key(source, "image")
    assert splits_by_key(new, "image") == {key: wanted.get(key, old[key]) for key in old}
    assert report.unnamed == 15 + 0  # the texts of those images go with them
    check(new, source)


def test_by_a_column_of_the_images(tmp_path: Path) -> None:
    source = whole_store(tmp_path / "s")
    split_store(tmp_path / "new", source.path, column="width")
    new = Store.open(tmp_path / "new")
    assert splits_by_key(new, "image") == {f"img{i:03d}": str(640 + i) for i in range(30)}
    check(new, source)


def test_texts_alone_are_split_by_their_own_key(tmp_path: Path) -> None:
    import shutil

    source = whole_store(tmp_path / "s")
    shutil.rmtree(source.path / "image")
    (source.path / "manifest.json").unlink()  # as if images had never been there
    split_store(tmp_path / "new", source.path)
    # by the image that they name, though it is not there
    expected = {key: hashed_split(key.split("#")[0]) for key in source.load("text").keys}
    assert splits_by_key(Store.open(tmp_path / "new"), "text") == expected


class TestErrors:
    def test_a_file_that_names_none_of_the_keys(self, tmp_path: Path) -> None:
        source = whole_store(tmp_path / "s")
        (tmp_path / "x.csv").write_text("key,split\nother,train\n")
        with pytest.raises(StoreError, match="contains none of the keys"):
            split_store(tmp_path / "new", source.path, file=tmp_path / "x.csv")
        (tmp_path / "x.csv").write_text("key,part\nother,train\n")
        with pytest.raises(StoreError, match="no column of splits; it has key, part"):
            split_store(tmp_path / "new", source.path, file=tmp_path / "x.csv")
        assert not (tmp_path / "new").exists()

    def test_an_unknown_column(self, tmp_path: Path) -> None:
        source = whole_store(tmp_path / "s")
        with pytest.raises(StoreError, match="has a value in a column 'colour'"):
            split_store(tmp_path / "new", source.path, column="colour")

    def test_fractions(self, c3: C3, tmp_path: Path) -> None:
        whole_store(tmp_path / "c3-store")
        assert "add up to 1" in c3("split", "new", "--fractions", "0.5,0.1,0.1").stderr
        assert "is not three numbers" in c3("split", "new", "--fractions", "0.5,0.5").stderr
        assert "must be at least 0 and add up to 1, not nan, 0.5, 0.5" in " ".join(
            c3("split", "new", "--fractions", "nan,0.5,0.5").stderr.split()
        )
        for wrong in ((0.5, 0.5), (1.5, -0.5, 0), (float("inf"), 0, 0)):
            with pytest.raises(StoreError, match="add up to 1"):
                split_store(tmp_path / "new", tmp_path / "c3-store", fractions=wrong)
        assert "not from both" in c3("split", "new", "--column", "split", "--file", "x.csv").stderr

    def test_damage_is_not_copied_on(self, tmp_path: Path) -> None:
        source = whole_store(tmp_path / "s")
        path = source.path / "text" / "part-00001.parquet"
        content = path.read_bytes()
        path.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
        with pytest.raises(StoreError, match="does not match its done marker"):
            split_store(tmp_path / "new", source.path)
        assert not (tmp_path / "new").exists()
        assert not (tmp_path / ".new.unfinished").exists()


def test_the_command(c3: C3, tmp_path: Path) -> None:
    whole_store(tmp_path / "c3-store")
    result = c3("split", "new", "--json", "report.json")
    assert result.exit_code == 0, result.stderr
    assert "train" in result.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(report["rows"]["image"].values()) == 30
    assert "new already exists" in c3("split", "new").stderr
