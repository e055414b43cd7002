"""The same photos from a folder, from tars and from tables; servers that fail; a process for each device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c3tools.corpus import read_corpus
from c3tools.embedding import EmbedSummary, embed_corpus
from c3tools.encoders import Encoder
from c3tools.errors import UnreachableError
from c3tools.executors import Executor
from c3tools.io import locations
from c3tools.store import Store
from tests.conftest import Messages
from tests.corpus.packing import damage_column, photos_of, webdataset, write_hf_parquet, write_tar
from tests.embedding.test_embed import files
from tests.servers import Faults, web_server
from tests.stores import colour_corpus, colour_encoder

RAINBOW = {"a": "red", "b": "lime", "c": "blue", "d": "gold", "e": "navy", "f": "tan", "g": "pink"}


def run(paths: Path | str, store: Path, **reading: Any) -> EmbedSummary:
    return embed_corpus(read_corpus(paths, **reading), store, colour_encoder(), shard_size=5, workers=2, batch_size=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "FIRST_PAUSE", 0.001)


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_tars_and_tables_give_the_embeddings_of_the_folder_once_they_are_whole(tmp_path: Path, form: str) -> None:
    folder = colour_corpus(tmp_path / "p", RAINBOW)
    run(folder, tmp_path / "folder")
    expected = Store.open(tmp_path / "folder").load("image")
    packed, chosen = tmp_path / f"x.{form}", photos_of(folder)
    if form == "tar":
        whole = write_tar(packed, webdataset(chosen)).read_bytes()
        packed.write_bytes(whole[: len(whole) // 2])
    else:
        whole = write_hf_parquet(packed, chosen, rows_per_group=2).read_bytes()
        damage_column(packed, 1, 2)
    cut = run(packed, tmp_path / "s").modalities["image"].embedded
    assert 0 < cut < 7
    assert Store.open(tmp_path / "s").recorded_failures()[-1].error == f"Damaged{'Tar' if form == 'tar' else 'Table'}"
    packed.write_bytes(whole)
    mended = run(packed, tmp_path / "s")
    assert (mended.modalities["image"].embedded, mended.failures_in_store) == (7 - cut, 0)
    rows = Store.open(tmp_path / "s").load("image")
    assert dict(zip(rows.keys, map(bytes, rows.embeddings), strict=True)) == dict(
        zip(expected.keys, map(bytes, expected.embeddings), strict=True)
    )
    before = files(tmp_path / "s")
    again = run(packed, tmp_path / "s").modalities["image"]
    assert (again.already, again.embedded, again.changed) == (7, 0, [])
    assert files(tmp_path / "s") == before


@pytest.mark.parametrize("form", ["x.tar", "x.parquet", "list.csv"])
def test_a_server_that_goes_away_ends_the_run_and_leaves_no_failure(tmp_path: Path, form: str) -> None:
    pytest.importorskip("upath", reason="the extra url is not installed")
    folder, faults = colour_corpus(tmp_path / "p", {"a": "red", "b": "lime"}), Faults()
    chosen = photos_of(folder)
    write_tar(folder / "x.tar", webdataset(chosen))
    write_hf_parquet(folder / "x.parquet", chosen)
    (folder / "list.csv").write_text("image,text\n" + "".join(f"{p.name},{p.key}\n" for p in chosen))
    with web_server(folder, faults) as base:
        corpus = read_corpus([f"{base}/{form}"], image_column="image" if form == "list.csv" else None)
        faults.last = faults.requests
        with pytest.raises(UnreachableError, match=rf"{base}/.* could not be reached in 6 attempts"):
            embed_corpus(corpus, tmp_path / "s", colour_encoder(), workers=2)
        faults.heal()
        summary = embed_corpus(corpus, tmp_path / "s", colour_encoder(), workers=0)
    assert (summary.modalities["image"].embedded, summary.failures_in_store) == (2, 0)


def test_one_dead_address_of_a_list_stops_nobody(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "p", {"a": "red"})
    with web_server(folder, Faults()) as base:
        urls = [f"{base}/a.png", "http://127.0.0.1:9/x.jpg"]
        (tmp_path / "list.csv").write_text("url,text\n" + "".join(f"{url},t\n" for url in urls))
        summary = run(tmp_path / "list.csv", tmp_path / "s", image_column="url", download=True)
    assert (summary.modalities["image"].embedded, summary.modalities["image"].failed) == (1, 1)
    (failure,) = Store.open(tmp_path / "s").recorded_failures()
    assert "127.0.0.1:9/x.jpg could not be reached" in failure.message


def test_two_processes_write_the_same_bytes_as_one(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_text("no image")
    corpus = read_corpus([photos])
    options: dict[str, Any] = {"shard_size": 3, "workers": 0}
    executor = Executor(["cpu", "cpu"])
    embed_corpus(corpus, tmp_path / "one", encoder, **options)
    summary = embed_corpus(corpus, tmp_path / "two", encoder, executor=executor, reporter=Messages(), **options)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert [(m.embedded, m.failed) for m in summary.modalities.values()] == [(4, 1), (20, 0)]
