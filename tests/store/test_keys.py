"""Keys compared outside memory: sorted runs of hashes against plain sets, and `c3 verify` that uses them."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import C3Error
from c3tools.store import Rows, finish_store, key_checks, keys, rewrite_failures, write_failures
from c3tools.store.keys import SortedHashes, key_hashes
from c3tools.store.metadata import Failure
from c3tools.store.verify import verify_store
from tests.conftest import build_store, unit_rows

KEYS = st.lists(st.lists(st.integers(0, 40).map(str), max_size=9), max_size=9)


def collected(blocks: list[list[str]]) -> SortedHashes:
    hashes = SortedHashes()
    for block in blocks:
        hashes.add(block)
    return hashes


@settings(max_examples=60, deadline=None)
@given(KEYS, KEYS, KEYS, st.integers(1, 12))
def test_sorted_runs_find_what_sets_find(
    one: list[list[str]], two: list[list[str]], three: list[list[str]], run: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_RUN", run)
        first, second, third = map(collected, (one, two, three))
        flat = [key for block in one for key in block]
        rest = {key for block in [*two, *three] for key in block}
        assert len(first) == len(flat)
        assert np.concatenate(list(first.ranges())).tolist() == sorted(key_hashes(flat).tolist())
        twice = [key for key, count in Counter(flat).items() if count > 1]
        assert first.repeated().tolist() == sorted(key_hashes(twice).tolist())
        assert first.missing_from(second, third).tolist() == sorted(key_hashes(list(set(flat) - rest)).tolist())
        first.add(["more"])  # after it was read
        assert first.missing_from(second, third, collected(one)).tolist() == [hash("more")]


def test_repeated_keys_and_missing_items_are_the_same_whatever_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Rows.of("image", ["a", "b", "c", "a", "d", "b", "b", "e"], unit_rows(8, 4), split=["train"] * 8)
    names = ["a", "gone", "b", "failed", "lost", "gone"]
    texts = Rows.of("text", [f"t{i}" for i in range(6)], unit_rows(6, 4), image_key=names, split=["train"] * 6)
    build_store(tmp_path / "s", images, texts, part_rows=2)
    failures = [Failure("failed", "failed.jpg", "decode", "OSError", "cut")]
    rewrite_failures(tmp_path / "s", "image", 0, failures)
    write_failures(tmp_path / "s", [])
    finish_store(tmp_path / "s")

    def findings() -> list[tuple[str, str, str]]:
        return [(finding.check, finding.where, finding.what) for finding in verify_store(tmp_path / "s").findings]

    expected = [
        ("keys", "image/part-00001.parquet", "it repeats the key 'a' of shard 0"),
        ("keys", "image/part-00002.parquet", "it repeats the key 'b' of shard 0"),
        ("keys", "image/part-00003.parquet", "it repeats the key 'b' of shard 0"),
    ]
    missing = "belong{} to items that are neither in the store nor listed as failed, for example {!r}"
    expected += [
        ("pairing", "text/part-00000.parquet", f"1 row {missing.format('s', 'gone')}"),
        ("pairing", "text/part-00002.parquet", f"2 rows {missing.format('', 'lost')}"),
        ("unfinished", "failures.parquet", "it does not list 1 failures of the shards, for example that of 'failed'"),
    ]
    assert findings() == expected
    monkeypatch.setattr(keys, "_RUN", 2)
    monkeypatch.setattr(key_checks, "_MOST_COMPARED", 1)
    assert findings() == expected


def test_a_full_disk_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def seek(self, *_: int) -> int:
            return 0

        def write(self, _: bytes) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    def full(**_: Any) -> Full:
        return Full()

    monkeypatch.setattr(keys, "_RUN", 2)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(C3Error, match="No space left on device") as error:
        collected([["a", "b", "c"]])
    assert "TMPDIR" in (error.value.remedy or "")
