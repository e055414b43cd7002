"""Stores in an object store whose every seventh request fails."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest

from c3tools.errors import UnreachableError
from c3tools.io.locations import location, remove, upload
from c3tools.store import Store
from c3tools.store.verify import verify_store
from tests.conftest import contents, contents_at_url, put_store
from tests.servers import Faults
from tests.stores import colour_corpus, embed_colours, whole_store

from .test_writing import COLOURS


def test_an_interrupted_run_continues_to_the_bytes_of_a_store_on_disk(
    tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = colour_corpus(tmp_path / "c", COLOURS)
    embed_colours(folder, tmp_path / "s")
    s3.every = 7
    place = location("s3://bucket/s")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted = Mock(wraps=upload, side_effect=[DEFAULT, DEFAULT, DEFAULT, KeyboardInterrupt])
        patch.setattr("c3tools.io.files.upload", interrupted)
        embed_colours(folder, place)
    embed_colours(folder, place)
    assert contents_at_url(place) == contents(tmp_path / "s")
    (folder / "a.png").unlink()
    for to in (place, tmp_path / "s"):
        embed_colours(folder, to, update=True, prune=True)
    assert verify_store(place).whole and Store.open(place).count("image") == 4
    assert contents_at_url(place) == contents(tmp_path / "s")
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
