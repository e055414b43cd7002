from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c3tools.corpus import ImageItem, read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.store import Store
from tests.conftest import copy_photos
from tests.embedding.hostile import write_hostile_files


def test_everything_odd_is_embedded_and_everything_bad_is_listed(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 6)
    photo = sorted(folder.glob("0*.jpg"))[0]
    good, bad = write_hostile_files(folder, photo)
    corpus = read_corpus([folder])
    (folder / "vanishing.jpg").write_bytes(photo.read_bytes())
    corpus.images.append(ImageItem("vanishing", str(folder / "vanishing.jpg"), None, 5))
    (folder / "vanishing.jpg").unlink()
    bad["vanishing"] = ("read", "FileNotFoundError")
    summary = embed_corpus(corpus, tmp_path / "s", encoder, shard_size=7, workers=2)
    store = Store.open(tmp_path / "s")
    failures = {failure.key: (failure.stage, failure.error) for failure in store.recorded_failures()}
    assert failures == bad
    assert all(failure.message for failure in store.recorded_failures())
    rows = store.load("image")
    assert set(rows.keys) == good | {path.stem for path in folder.glob("0*.jpg")}
    assert summary.failures_in_store == len(bad)
    np.testing.assert_allclose(np.linalg.norm(rows.embeddings, axis=1), 1, atol=1e-3)
    size = dict(zip(rows.keys, zip(rows.column("width"), rows.column("height"), strict=True), strict=True))
    assert size["wide"] == (20_000, 10)
    assert size["turned"] == size["UPPER"][::-1]
    again = embed_corpus(read_corpus([folder]), tmp_path / "s", encoder, shard_size=7, workers=2)
    assert (again.modalities["image"].embedded, again.failures_in_store) == (0, len(bad))


def test_captions_of_every_kind(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 1)
    name = next(folder.glob("*.jpg")).name
    (folder / "captions.jsonl").unlink()
    lines = [b"a dog", b"", b"  ", b"caf\xe9", "犬が走る".encode(), b"word " * 2000, b"tab\tinside"]
    (folder / name).with_suffix(".txt").write_bytes(b"\n".join(lines))
    summary = embed_corpus(read_corpus([folder]), tmp_path / "s", encoder, workers=0)
    assert summary.modalities["image"].embedded == 1
    captions = Store.open(tmp_path / "s").load("text").column("caption")
    assert {"a dog", "犬が走る", "tab\tinside"} <= set(captions)
    assert summary.modalities["text"].truncated == 1
    errors = sorted(failure.error for failure in Store.open(tmp_path / "s").recorded_failures())
    assert "UnicodeError" in errors


def test_a_file_that_changed_since_it_was_listed_is_recorded_as_it_was_read(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 2)
    corpus = read_corpus([folder])
    path = Path(corpus.images[0].path)
    with Image.open(path) as image:
        image.convert("L").save(path)
    embed_corpus(corpus, tmp_path / "s", encoder, workers=0)
    assert Store.open(tmp_path / "s").load("image").column("size")[0] == path.stat().st_size
    assert embed_corpus(read_corpus([folder]), tmp_path / "s", encoder).modalities["image"].changed == []


@pytest.mark.parametrize("ahead", [-2e-4, 86_400])
def test_a_file_written_just_before_or_with_a_date_in_the_future_has_not_changed(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    folder = copy_photos(tmp_path / "p", 2)
    now = 1_700_000_000.0004  # would round to below the date of the file
    monkeypatch.setattr("c3tools.embedding.run.time.time", lambda: now)
    for path in folder.glob("*.jpg"):
        os.utime(path, (now + ahead, now + ahead))
    embed_corpus(read_corpus([folder]), tmp_path / "s", encoder, workers=0)
    monkeypatch.setattr("c3tools.embedding.run.time.time", lambda: now + 60)
    assert embed_corpus(read_corpus([folder]), tmp_path / "s", encoder).modalities["image"].changed == []


def test_a_link_that_was_mended_is_no_failure_any_more(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    (photos / "link.jpg").symlink_to(photos / "later.jpg")
    assert embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, workers=0).failures_in_store == 1
    (photos / "later.jpg").write_bytes(next(photos.glob("0*.jpg")).read_bytes())
    summary = embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, workers=0)
    assert (summary.modalities["image"].embedded, summary.failures_in_store) == (2, 0)
