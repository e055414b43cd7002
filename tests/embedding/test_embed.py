"""An embedding run: the same bytes whatever happens on the way, and failures that stop nobody."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools.corpus import Corpus, ImageItem, TextItem, read_corpus
from c3tools.embedding import EmbedSummary, embed, embed_corpus
from c3tools.embedding import run as run_module
from c3tools.encoders import Encoder
from c3tools.errors import OutputError, StoreError
from c3tools.io.lock import locked
from c3tools.reporter import Progress, Reporter
from c3tools.store import Shard, Store, StoreWriter
from c3tools.store.verify import verify_store
from tests.conftest import copy_photos, make_store, store_files, unit_rows
from tests.embedding.hostile import write_hostile_files
from tests.encoders.test_loading import local_model

SMALL: dict[str, Any] = {"shard_size": 3, "workers": 0, "batch_size": 2}


def files(store: Path) -> dict[str, bytes]:
    """All bytes of a store but inputs.parquet, which tells times."""
    found = {path.relative_to(store).as_posix(): path.read_bytes() for path in store_files(store)}
    return {name: content for name, content in found.items() if not name.startswith(("inputs", ".inputs"))}


def run(encoder: Encoder, paths: Path | list[Path], store: Path, **options: Any) -> EmbedSummary:
    return embed_corpus(read_corpus(paths), store, encoder, **{**SMALL, **options})


def test_photos_and_captions_end_up_in_the_store(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    summary = run(encoder, photos, tmp_path / "s")
    assert [m.embedded for m in summary.modalities.values()] == [4, 20]
    store = Store.open(tmp_path / "s")
    assert store.parts("image") == [0, 1]
    images, texts = store.load("image"), store.load("text")
    paths = [photos / f"{key}.jpg" for key in images.keys]
    np.testing.assert_allclose(images.embeddings, encoder.encode_images(paths), atol=1e-3)
    np.testing.assert_allclose(texts.embeddings, encoder.encode_texts(texts.column("caption")), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(images.embeddings, axis=1), 1, atol=1e-3)
    for path, *size in zip(paths, images.column("width"), images.column("height"), strict=True):
        with Image.open(path) as image:
            assert list(image.size) == size
    assert set(texts.column("image_key")) == set(images.keys)
    assert store.moments("image", "val").n == 1
    assert any("of the time" in note for note in summary.notes())
    assert json.loads(json.dumps(summary.to_dict()))["modalities"]["image"]["rate"] > 0
    before = files(tmp_path / "s")
    again = run(encoder, photos, tmp_path / "s")
    assert [(m.embedded, m.already) for m in again.modalities.values()] == [(0, 4), (0, 20)]
    assert again.notes() == []
    assert files(tmp_path / "s") == before
    run(encoder, photos, tmp_path / "by-workers", workers=2)
    assert files(tmp_path / "by-workers") == before


@pytest.mark.parametrize("stop_at", [1, 2, 4, 6])
def test_an_interrupted_run_continues_to_the_same_bytes(
    encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    (photos / "broken.jpg").write_text("no image")
    run(encoder, photos, tmp_path / "whole")
    calls = 0

    def stopping(writer: StoreWriter, shard: Shard) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        write(writer, shard)

    write = StoreWriter.write_shard
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "write_shard", stopping)
        run(encoder, photos, tmp_path / "parts")
    run(encoder, photos, tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_everything_odd_is_embedded_and_everything_bad_is_listed(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 6)
    photo = sorted(folder.glob("0*.jpg"))[0]
    good, bad = write_hostile_files(folder, photo)
    corpus = read_corpus([folder])
    corpus.images.append(ImageItem("vanishing", str(folder / "vanishing.jpg"), None, 5))
    bad["vanishing"] = ("read", "FileNotFoundError")
    options: dict[str, Any] = {"shard_size": 7, "workers": 2}
    summary = embed_corpus(corpus, tmp_path / "s", encoder, **options)
    store = Store.open(tmp_path / "s")
    assert {f.key: (f.stage, f.error) for f in store.recorded_failures()} == bad
    assert all(failure.message for failure in store.recorded_failures())
    rows = store.load("image")
    assert set(rows.keys) == good | {path.stem for path in folder.glob("0*.jpg")}
    assert summary.failures_in_store == len(bad)
    np.testing.assert_allclose(np.linalg.norm(rows.embeddings, axis=1), 1, atol=1e-3)
    size = dict(zip(rows.keys, zip(rows.column("width"), rows.column("height"), strict=True), strict=True))
    assert size["wide"] == (20_000, 10)
    assert size["turned"] == size["UPPER"][::-1]
    again = run(encoder, folder, tmp_path / "s", **options)
    assert (again.modalities["image"].embedded, again.failures_in_store) == (0, len(bad))
    page = summary._repr_html_()
    assert f"<td>{len(rows)}</td>" in page


def test_failures_are_tried_again_when_asked(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    broken, link = photos / "broken.jpg", photos / "link.jpg"
    broken.write_text("no image")
    link.symlink_to(photos / "later.jpg")
    assert run(encoder, photos, tmp_path / "s").failures_in_store == 2
    for path in (broken, photos / "later.jpg"):
        shutil.copyfile(min(photos.glob("0*.jpg")), path)
    left = run(encoder, photos, tmp_path / "s")
    assert (left.modalities["image"].failed_before, left.failures_in_store) == (1, 1)
    retried = run(encoder, photos, tmp_path / "s", retry_failed=True)
    assert (retried.modalities["image"].embedded, retried.failures_in_store) == (1, 0)
    store = Store.open(tmp_path / "s")
    assert store.recorded_failures() == []
    assert {"broken", "link", "later"} <= set(store.load("image").keys)


def test_no_failure_hides_another_of_the_same_name(encoder: Encoder, tmp_path: Path) -> None:
    folders = [copy_photos(tmp_path / name, 2) for name in ("a", "b")]
    for folder in folders:
        (folder / "captions.jsonl").unlink()
        (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "0001.jpg").write_text("no image")
    (tmp_path / "ids.csv").write_text("id,text\n0001,a dog\n")
    corpus = read_corpus([*folders, tmp_path / "0001.jpg", tmp_path / "ids.csv"], key_column="id")
    for _ in range(2):
        embed_corpus(corpus, tmp_path / "s", encoder, **SMALL)
        failures = {(f.stage, f.path) for f in Store.open(tmp_path / "s").recorded_failures()}
        links = {("list", str(folder / "gone.jpg")) for folder in folders}
        assert failures == {("decode", str(tmp_path / "0001.jpg")), *links}
    assert verify_store(tmp_path / "s").findings == []


def test_captions_of_every_kind(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 1)
    (folder / "captions.jsonl").unlink()
    lines = [b"a dog", b"", b"  ", b"caf\xe9", "犬が走る".encode(), b"word " * 2000, b"tab\tinside"]
    next(folder.glob("*.jpg")).with_suffix(".txt").write_bytes(b"\n".join(lines))
    (tmp_path / "t.jsonl").write_text('{"text": ["a cat", ""]}\n')
    summary = run(encoder, [folder, tmp_path / "t.jsonl"], tmp_path / "s")
    assert {"a dog", "犬が走る", "tab\tinside", "a cat"} <= set(Store.open(tmp_path / "s").load("text").captions)
    assert summary.modalities["text"].truncated == 1
    errors = {(failure.stage, failure.error) for failure in Store.open(tmp_path / "s").recorded_failures()}
    assert errors == {("list", "UnicodeError"), ("list", "EmptyCaption")}


def test_a_store_that_may_not_be_written_to(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "other", unit_rows(2, 256), unit_rows(2, 256))
    before = files(tmp_path / "other")
    with pytest.raises(StoreError, match="test-model"):
        run(encoder, photos, tmp_path / "other")
    assert files(tmp_path / "other") == before
    run(encoder, photos, tmp_path / "s")
    with locked(tmp_path / "s"), pytest.raises(OutputError):
        run(encoder, photos, tmp_path / "s")
    with pytest.raises(StoreError, match="int8"):
        embed(photos, tmp_path / "s", encoder=encoder, dtype="int8")


def test_a_full_disk_keeps_what_was_finished(
    encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: StoreWriter, shard: Shard) -> None:
        if shard.modality == "text":
            raise OSError(28, "No space left on device")
        write(writer, shard)

    write = StoreWriter.write_shard

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left on device") as error:
        patch.setattr(StoreWriter, "write_shard", full)
        run(encoder, photos, tmp_path / "s")
    assert error.value.remedy
    assert Store.open(tmp_path / "s").count("image") == 4
    run(encoder, photos, tmp_path / "s")
    assert Store.open(tmp_path / "s").count("text") == 20


class Recorder(Reporter):
    """Remembers messages and the labels of progress."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.labels: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        self.labels.append(label)
        yield Progress()


def test_one_call_does_what_the_command_does(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    store = embed(str(photos), tmp_path / "s", encoder=encoder, workers=0, reporter=recorder)
    assert (store.count("image"), store.count("text")) == (4, 20)
    assert recorder.messages[0] == "Found 4 images and 20 texts."
    assert recorder.labels == ["Images", "Texts"]
    assert store.summary.to_dict()["modalities"]["text"]["embedded"] == 20
    assert Store.open(tmp_path / "s").summary is None
    recorder.labels.clear()
    again = embed([photos], tmp_path / "s", encoder=encoder, workers=0, reporter=recorder)
    assert again.summary.modalities["image"].already == 4
    assert recorder.labels == []  # nothing is left to do


def test_model_backend_and_precision_of_the_store_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, store, name = tmp_path / "t.txt", tmp_path / "s", local_model(tmp_path / "m")
    texts.write_text("a dog\n")
    first = embed(texts, store, model=name, random_init=4, backend="torch", precision="bf16")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "resolve_encoder", None)  # nothing to do loads no model
        for again in (embed(texts, store).summary, embed(texts, store, model=name, random_init=4).summary):
            assert (again.modalities["text"].already, again.model, again.precision) == (1, first.info.model, "bf16")
        with pytest.raises(StoreError, match="float32"):
            embed(texts, store, dtype="float32")
    with pytest.raises(StoreError, match="different models"):
        embed(texts, store, model=name, random_init=1, backend="torch")
    texts.write_text("a dog\na cat\n")
    summary = embed(texts, store).summary
    assert (summary.backend, summary.precision, summary.modalities["text"].embedded) == ("torch", "bf16", 1)


def test_long_texts_are_cut_and_counted(encoder: Encoder, tmp_path: Path) -> None:
    corpus = Corpus(texts=[TextItem("a", "long " * 2000, None, None), TextItem("b", "short", None, None)])
    assert embed_corpus(corpus, tmp_path / "s", encoder, **SMALL).modalities["text"].truncated == 1
