"""The same photos from a folder, from tars and from tables; servers that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c3tools.corpus.reading import read_corpus
from c3tools.embedding import EmbedSummary
from c3tools.errors import UnreachableError
from c3tools.store import Store
from tests.conftest import contents
from tests.corpus.packing import damage_column, photos_of, webdataset, write_hf_parquet, write_list, write_tar
from tests.servers import Faults, web_server
from tests.stores import colour_corpus, embed_colours

from .test_plan import rows

RAINBOW = {"a": "red", "b": "lime", "c": "blue", "d": "gold", "e": "navy", "f": "tan", "g": "pink"}


def run(paths: Path | str, store: Path, **reading: Any) -> EmbedSummary:
    return embed_colours(read_corpus(paths, **reading), store, workers=2)


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_tars_and_tables_give_the_embeddings_of_the_folder_once_they_are_whole(tmp_path: Path, form: str) -> None:
    folder = colour_corpus(tmp_path / "p", RAINBOW)
    run(folder, tmp_path / "folder")
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
    found, expected = (rows(tmp_path / name, "image") for name in ("s", "folder"))
    assert {key: row[0] for key, row in found.items()} == {key: row[0] for key, row in expected.items()}
    before = contents(tmp_path / "s")
    again = run(packed, tmp_path / "s").modalities["image"]
    assert (again.already, again.embedded, again.changed) == (7, 0, [])
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize("form", ["x.tar", "x.parquet", "list.csv"])
def test_a_server_that_goes_away_ends_the_run_and_leaves_no_failure(tmp_path: Path, form: str) -> None:
    pytest.importorskip("upath", reason="the extra url is not installed")
    folder, faults = colour_corpus(tmp_path / "p", {"a": "red", "b": "lime"}), Faults()
    chosen = photos_of(folder)
    write_tar(folder / "x.tar", webdataset(chosen))
    write_hf_parquet(folder / "x.parquet", chosen)
    write_list(folder / "list.csv", [{"image": photo.name, "text": photo.key} for photo in chosen])
    with web_server(folder, faults) as base:
        corpus = read_corpus(f"{base}/{form}", image_column="image" if form == "list.csv" else None)
        faults.last = faults.requests
        with pytest.raises(UnreachableError, match=rf"{base}/.* could not be reached in 6 attempts"):
            embed_colours(corpus, tmp_path / "s", workers=2)
        faults.last = None
        summary = embed_colours(corpus, tmp_path / "s")
    assert (summary.modalities["image"].embedded, summary.failures_in_store) == (2, 0)


def test_one_dead_address_of_a_list_stops_nobody(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "p", {"a": "red"})
    with web_server(folder, Faults()) as base:
        urls = [f"{base}/a.png", "http://127.0.0.1:9/x.jpg"]
        path = write_list(tmp_path / "list.csv", [{"url": url, "text": "t"} for url in urls])
        images = run(path, tmp_path / "s", image_column="url", download=True).modalities["image"]
    assert (images.embedded, images.failed) == (1, 1)
    (failure,) = Store.open(tmp_path / "s").recorded_failures()
    assert "127.0.0.1:9/x.jpg could not be reached" in failure.message
