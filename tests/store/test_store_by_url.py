"""Stores in an object store whose every seventh request fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.errors import UnreachableError
from c3tools.io.locations import location, names_in, read_all, remove, upload
from c3tools.store import Store
from c3tools.store.verify import verify_store
from tests.conftest import put_store
from tests.servers import Faults
from tests.stores import colour_corpus, colour_encoder, whole_store

from .test_store import contents
from .test_writing import COLOURS


def at_url(place: Path) -> dict[str, bytes]:
    folders, files = names_in(place)
    names = [*files, *(f"{folder}/{name}" for folder in folders for name in names_in(place / folder)[1])]
    return {name: read_all(place / name) for name in names if name != "inputs.parquet"}


def test_an_interrupted_run_continues_to_the_bytes_of_a_store_on_disk(
    tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = read_corpus(colour_corpus(tmp_path / "c", COLOURS))

    def embed(to: Path, **options: Any) -> None:
        embed_corpus(corpus, to, colour_encoder(), shard_size=2, workers=0, **options)

    embed(tmp_path / "s")
    s3.every = 7
    place = location("s3://bucket/s")
    uploads: list[Any] = []

    def interrupted(source: Path, target: Path) -> None:
        uploads.append(target)
        if len(uploads) == 4:
            raise KeyboardInterrupt
        upload(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("c3tools.io.files.upload", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed(place)
    embed(place)
    assert at_url(place) == contents(tmp_path / "s")
    (tmp_path / "c" / "a.png").unlink()
    corpus = read_corpus(tmp_path / "c")
    embed(place, update=True, prune=True)
    assert verify_store(place).whole and Store.open(place).count("image") == 4
    remove(place / "moments.safetensors")
    assert not verify_store(place).whole and verify_store(place, repair=True).whole


@pytest.mark.parametrize("answer", ["500 Internal Server Error", "403 Forbidden"])
def test_what_cannot_be_reached_is_no_damage(
    tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("c3tools.io.locations.ATTEMPTS", 1)
    place = put_store(whole_store(tmp_path / "s", images=4, part_rows=2).path, "s3://bucket/s")
    s3.answer, before = answer, s3.requests
    assert verify_store(place).whole
    needed = s3.requests - before
    for last in range(0, needed, max(1, needed // 5)):
        s3.last = s3.requests + last
        with pytest.raises(UnreachableError, match="s3://bucket/s"):
            verify_store(place)
