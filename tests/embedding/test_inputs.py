"""What a store records of its inputs: size, time and digest of each file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest

from c3tools.store import Store, StoreWriter
from tests.corpus.packing import photos_of, webdataset, write_hf_parquet, write_tar
from tests.stores import colour_corpus, embed_colours, whole_store

COLOURS = {"a": "red", "b": "lime", "c": "blue"}


def digests(folder: Path) -> dict[str, str]:
    return {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")
    }


def test_size_time_and_digest_of_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = colour_corpus(tmp_path / "p", COLOURS)
    monkeypatch.chdir(tmp_path)
    embed_colours(Path("p"), tmp_path / "s")
    expected = {
        name: (str(tmp_path), path.stat().st_size, path.stat().st_mtime_ns, digests(folder)[name])
        for name, path in ((path.stem, path) for path in folder.glob("*.png"))
    }
    found = {
        row["key"]: (row["root"], row["size"], row["mtime"], row["sha256"])
        for row in pq.read_table("s/inputs.parquet").to_pylist()
    }
    assert found == expected


@pytest.mark.parametrize("pack", ["folder", "tar", "table"])
def test_digests_by_key(tmp_path: Path, pack: str) -> None:
    folder = colour_corpus(tmp_path / "p", COLOURS)
    source = folder
    if pack == "tar":
        source = write_tar(tmp_path / "x.tar", webdataset(photos_of(folder)))
    elif pack == "table":
        source = tmp_path / "x.parquet"
        write_hf_parquet(source, photos_of(folder))
    embed_colours(source, tmp_path / "s")
    assert Store.open(tmp_path / "s").input_digests() == digests(folder)
    recorded = pq.read_table(tmp_path / "s/inputs.parquet")
    assert dict(zip(*recorded.select(["key", "sha256"]).to_pydict().values(), strict=True)) == (
        digests(folder)
    )


def test_an_interrupted_run_is_completed_with_the_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = colour_corpus(tmp_path / "p", COLOURS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "finish", Mock(side_effect=KeyboardInterrupt))
        embed_colours(folder, tmp_path / "s")
    embed_colours(folder, tmp_path / "s")
    recorded = pq.read_table(tmp_path / "s/inputs.parquet")
    assert set(recorded["sha256"].to_pylist()) == {*digests(folder).values()}


def test_a_file_that_cannot_be_embedded_has_a_size_and_no_digest(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "p", {"broken": None})
    embed_colours(folder, tmp_path / "s")
    (row,) = pq.read_table(tmp_path / "s/inputs.parquet").to_pylist()
    assert (row["key"], row["size"], row["sha256"]) == ("broken", 6, None)


def test_rows_without_digests(tmp_path: Path) -> None:
    assert whole_store(tmp_path / "s").input_digests() == {}
