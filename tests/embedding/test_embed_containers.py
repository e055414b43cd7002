"""The same photos from a folder, from tars and from tables; images that take too long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.errors import UnreachableError
from c3tools.io import locations
from c3tools.store import Store
from tests.conftest import copy_photos
from tests.corpus.packing import IMAGE_STRUCT, photos_of, webdataset, write_hf_parquet, write_tar
from tests.embedding.test_embed import files
from tests.servers import Faults, web_server

OPTIONS: dict[str, Any] = {"shard_size": 5, "workers": 2, "batch_size": 2}


def by_key(store: Path, modality: str) -> dict[str, np.ndarray]:
    rows = Store.open(store).load(modality)
    return dict(zip(rows.keys, rows.embeddings, strict=True))


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_tars_and_tables_give_the_embeddings_of_the_folder(encoder: Encoder, tmp_path: Path, form: str) -> None:
    folder = copy_photos(tmp_path / "p", 12)
    chosen = photos_of(folder)
    for part, start in enumerate(range(0, 12, 5)):
        some = chosen[start : start + 5]
        if form == "tars":
            write_tar(tmp_path / "packed" / f"{part:05d}.tar", webdataset(some))
        else:
            write_hf_parquet(tmp_path / "packed" / f"data-{part:05d}-of-00003.parquet", some, rows_per_group=2)
    embed_corpus(read_corpus([folder]), tmp_path / "folder", encoder, **OPTIONS)
    embed_corpus(read_corpus([tmp_path / "packed"]), tmp_path / "s", encoder, **OPTIONS)
    for modality, count in (("image", 12), ("text", 60)):
        expected, found = by_key(tmp_path / "folder", modality), by_key(tmp_path / "s", modality)
        assert expected.keys() == found.keys()
        assert len(found) == count
        for key, embedding in expected.items():
            np.testing.assert_array_equal(found[key], embedding)
    assert Store.open(tmp_path / "s").moments("image", "val").n == 3
    assert (tmp_path / "s" / "text" / "part-00000.parquet").read_bytes() == (
        tmp_path / "folder" / "text" / "part-00000.parquet"
    ).read_bytes()
    before = files(tmp_path / "s")
    again = embed_corpus(read_corpus([tmp_path / "packed"]), tmp_path / "s", encoder, **OPTIONS)
    assert (again.modalities["image"].already, again.modalities["image"].embedded) == (12, 0)
    assert again.modalities["image"].changed == []
    assert files(tmp_path / "s") == before


def test_a_cut_tar_that_is_mended_leaves_no_failure(encoder: Encoder, tmp_path: Path) -> None:
    chosen = photos_of(copy_photos(tmp_path / "p", 4))
    tar = write_tar(tmp_path / "x.tar", webdataset(chosen))
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    cut = embed_corpus(read_corpus([tar]), tmp_path / "s", encoder, **OPTIONS)
    assert 0 < cut.modalities["image"].embedded < 4
    assert "DamagedTar" in [f.error for f in Store.open(tmp_path / "s").recorded_failures()]
    tar.write_bytes(whole)
    mended = embed_corpus(read_corpus([tar]), tmp_path / "s", encoder, **OPTIONS)
    assert mended.modalities["image"].embedded + cut.modalities["image"].embedded == 4
    assert mended.failures_in_store == 0
    assert Store.open(tmp_path / "s").count("text") == 20


def test_the_commands_own_options(c3: Callable[..., Result], photos: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "t-000.tar", webdataset(photos_of(photos)[:2]))
    write_tar(tmp_path / "t-001.tar", webdataset(photos_of(photos)[2:]))
    result = c3("embed", f"{tmp_path}/t-{{000..001}}.tar", "--workers", 0, "--image-timeout", 5)
    assert result.exit_code == 0, result.output
    assert "Found 4 images and 20 texts" in result.stderr
    result = c3("embed", photos / "captions.jsonl", "--store", "texts")
    assert "With --image-column it is read as a list of images" in result.stderr
    result = c3("embed", photos / "captions.jsonl", "--image-column", "image", "--store", "list", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert Store.open(tmp_path / "list").count("image") == 4


@pytest.mark.parametrize(("form", "workers"), [("x.tar", 0), ("x.parquet", 2), ("list.csv", 0)])
def test_a_server_that_goes_away_ends_the_run_and_leaves_no_failure(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, workers: int
) -> None:
    pytest.importorskip("upath", reason="the extra url is not installed")
    monkeypatch.setattr(locations, "FIRST_PAUSE", 0.001)
    chosen = photos_of(copy_photos(tmp_path / "p", 4))
    write_tar(tmp_path / "p" / "x.tar", webdataset(chosen))
    write_hf_parquet(tmp_path / "p" / "x.parquet", chosen)
    (tmp_path / "p" / "list.csv").write_text("image,text\n" + "".join(f"{p.name},{p.key}\n" for p in chosen))
    faults, options = Faults(), {**OPTIONS, "workers": workers}
    with web_server(tmp_path / "p", faults) as base:
        corpus = read_corpus([f"{base}/{form}"], image_column="image" if form == "list.csv" else None)
        faults.last = faults.requests
        with pytest.raises(UnreachableError, match=rf"{base}/.* could not be reached in 6 attempts"):
            embed_corpus(corpus, tmp_path / "s", encoder, **options)
        faults.heal()
        summary = embed_corpus(corpus, tmp_path / "s", encoder, **options)
    assert (summary.modalities["image"].embedded, summary.failures_in_store) == (4, 0)


def test_one_dead_address_of_a_list_stops_nobody(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "FIRST_PAUSE", 0.001)
    (photo,) = photos_of(copy_photos(tmp_path / "p", 1))
    with web_server(tmp_path / "p", Faults()) as base:
        urls = [f"{base}/{photo.name}", "http://127.0.0.1:9/x.jpg"]
        (tmp_path / "list.csv").write_text("url,text\n" + "".join(f"{url},t\n" for url in urls))
        pq.write_table(
            pa.table({"image": pa.array([{"bytes": None, "path": url} for url in urls], IMAGE_STRUCT)}),
            tmp_path / "x.parquet",
        )
        for name, column in (("list.csv", "url"), ("x.parquet", "image")):
            corpus = read_corpus([tmp_path / name], image_column=column, download=True)
            summary = embed_corpus(corpus, tmp_path / f"of-{name}", encoder, **OPTIONS)
            assert (summary.modalities["image"].embedded, summary.modalities["image"].failed) == (1, 1)
            (failure,) = Store.open(tmp_path / f"of-{name}").recorded_failures()
            assert "127.0.0.1:9/x.jpg could not be reached" in failure.message
