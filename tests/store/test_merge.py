from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.errors import StoreError
from c3tools.moments import Moments
from c3tools.store import Failure, Rows, Store, finish_store, rewrite_failures, write_failures
from c3tools.store.merge import merge_stores
from c3tools.store.shards import MOMENTS, ROWS, part_path
from c3tools.store.verify import verify_store
from tests.conftest import C3, MODEL, build_store, unit_rows

DIM = 8


def store_of(
    path: Path, keys: list[str], seed: int, *, model: Mapping[str, Any] = MODEL, failed: str | None = None
) -> Store:
    """Images with these keys in shards of three, and a text for each."""
    train = ["train"] * len(keys)
    images = Rows.of("image", keys, unit_rows(len(keys), DIM, seed), split=train)
    texts = [f"{key}#0" for key in keys]
    captions = Rows.of("text", texts, unit_rows(len(keys), DIM, seed + 100), image_key=keys, split=train)
    store = build_store(path, images, captions, model=model, part_rows=3)
    failures = [Failure(failed, f"{failed}.jpg", "decode", "OSError", "cut")] if failed else []
    rewrite_failures(path, "image", 0, failures)
    write_failures(path, failures)
    finish_store(path)
    return store


def test_two_stores_become_one_with_the_same_bytes_in_its_shards(tmp_path: Path) -> None:
    one = store_of(tmp_path / "one", list("abcde"), 1, failed="x")
    two = store_of(tmp_path / "two", list("fgh"), 2, failed="a")
    report = merge_stores(tmp_path / "both", [one.path, two.path])
    both = Store.open(tmp_path / "both")
    assert report.rows == {"image": 8, "text": 8}
    assert both.load("image").keys == list("abcdefgh")
    expected = np.concatenate([one.load("image").embeddings, two.load("image").embeddings])
    np.testing.assert_array_equal(both.load("image").embeddings, expected)
    assert both.parts("image") == [0, 1, 2]
    for source, part, target in ((one, 0, 0), (one, 1, 1), (two, 0, 2)):
        for suffix in (ROWS, MOMENTS):
            before = part_path(source.path, "image", part, suffix).read_bytes()
            assert part_path(both.path, "image", target, suffix).read_bytes() == before
    moments = Moments.from_rows(expected)
    np.testing.assert_allclose(both.moments("image").covariance, moments.covariance, atol=1e-14)
    # what failed in one and was embedded in the other is no failure
    assert [failure.key for failure in both.recorded_failures()] == ["x"]
    assert verify_store(both.path).findings == []
    assert not list(tmp_path.glob(".*"))


def test_a_text_with_the_key_of_an_image_that_failed_does_not_hide_the_failure(tmp_path: Path) -> None:
    one = store_of(tmp_path / "one", list("abc"), 1, failed="x")
    two = build_store(tmp_path / "two", Rows.of("text", ["x"], unit_rows(1, DIM, 2), split=["train"]))
    merge_stores(tmp_path / "both", [one.path, two.path])
    assert [failure.key for failure in Store.open(tmp_path / "both").recorded_failures()] == ["x"]
    assert verify_store(tmp_path / "both").findings == []


def test_keys_that_repeat_are_refused_or_the_first_is_kept(tmp_path: Path) -> None:
    one = store_of(tmp_path / "one", list("abcd"), 1)
    two = store_of(tmp_path / "two", list("cdefgh"), 2)
    with pytest.raises(StoreError, match=r"2 keys of image rows .* 'c' in .*one and .*two") as error:
        merge_stores(tmp_path / "both", [one.path, two.path])
    assert "--keep first" in (error.value.remedy or "")
    assert not (tmp_path / "both").exists()
    report = merge_stores(tmp_path / "both", [one.path, two.path], keep="first")
    both = Store.open(tmp_path / "both")
    assert report.dropped == 4
    assert both.load("image").keys == list("abcdefgh")
    expected = np.concatenate([one.load("text").embeddings, two.load("text").embeddings[2:]])
    np.testing.assert_array_equal(both.load("text").embeddings, expected)
    np.testing.assert_allclose(both.moments("text").mean, expected.astype(np.float64).mean(0), atol=1e-15)
    # its first shard was rewritten, its second copied
    assert (both.path / "image" / "part-00003.parquet").read_bytes() == (
        two.path / "image" / "part-00001.parquet"
    ).read_bytes()
    assert verify_store(both.path).findings == []


def test_a_prefix_tells_keys_and_pairs_apart(tmp_path: Path) -> None:
    one = store_of(tmp_path / "one", list("ab"), 1, failed="x")
    two = store_of(tmp_path / "two", list("abc"), 2)
    merge_stores(tmp_path / "both", [one.path, two.path], prefix=True)
    both = Store.open(tmp_path / "both")
    assert both.load("image").keys == ["one/a", "one/b", "two/a", "two/b", "two/c"]
    texts = both.load("text")
    assert texts.keys[2] == "two/a#0"
    assert texts.column("image_key")[2] == "two/a"
    assert [failure.key for failure in both.recorded_failures()] == ["one/x"]
    assert verify_store(both.path).findings == []


def test_stores_of_other_models_are_refused_and_both_are_named(tmp_path: Path) -> None:
    store_of(tmp_path / "one", ["a"], 1)
    store_of(tmp_path / "two", ["b"], 2, model={"name": "other", "weights_sha256": "1" * 64})
    with pytest.raises(StoreError, match=r"one is of the model test-model .*but the store .*two of other"):
        merge_stores(tmp_path / "both", [tmp_path / "one", tmp_path / "two"])
    build_store(tmp_path / "three", Rows.of("image", ["c"], unit_rows(1, DIM)), dtype="float32")
    with pytest.raises(StoreError, match=r"one and .*three differ in dtype: float16 and float32"):
        merge_stores(tmp_path / "both", [tmp_path / "one", tmp_path / "three"])


def test_damage_is_not_copied_on_and_nothing_is_left_behind(tmp_path: Path) -> None:
    one = store_of(tmp_path / "one", list("ab"), 1)
    two = store_of(tmp_path / "two", list("bc"), 2)
    path = two.path / "image" / "part-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    for options in ({"prefix": True}, {"keep": "first"}):
        with pytest.raises(StoreError, match=r"part-00000.parquet"):
            merge_stores(tmp_path / "both", [one.path, two.path], **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


class TestErrors:
    def test_one_store(self, tmp_path: Path) -> None:
        store_of(tmp_path / "one", ["a"], 1)
        with pytest.raises(StoreError, match="at least two stores"):
            merge_stores(tmp_path / "both", [tmp_path / "one"])

    def test_the_same_twice(self, tmp_path: Path) -> None:
        store_of(tmp_path / "one", ["a"], 1)
        with pytest.raises(StoreError, match="given twice"):
            merge_stores(tmp_path / "both", [tmp_path / "one", tmp_path / "one"])

    def test_something_is_there(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            store_of(tmp_path / name, [name], 1)
        (tmp_path / "both").write_text("mine")
        with pytest.raises(StoreError, match="already exists"):
            merge_stores(tmp_path / "both", [tmp_path / "one", tmp_path / "two"])
        assert (tmp_path / "both").read_text() == "mine"

    def test_options_that_contradict(self, c3: C3, tmp_path: Path) -> None:
        assert "There is no --keep last" in c3("merge", "o", "a", "b", "--keep", "last").stderr
        assert (
            "--keep and --prefix exclude each other" in c3("merge", "o", "a", "b", "--keep", "first", "--prefix").stderr
        )


def test_the_command(c3: C3, tmp_path: Path) -> None:
    store_of(tmp_path / "one", list("ab"), 1)
    store_of(tmp_path / "two", list("bc"), 2)
    refused = c3("merge", "both", "one", "two")
    assert refused.exit_code == 1
    assert "--prefix" in refused.stderr
    done = c3("merge", "both", "one", "two", "--keep", "first", "--json", "report.json")
    assert done.exit_code == 0
    assert "3 image, 3 text rows; 2 duplicates were left out." in done.stderr
    assert '"dropped": 2' in (tmp_path / "report.json").read_text()
