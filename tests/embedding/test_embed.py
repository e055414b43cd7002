from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools.corpus import Corpus, ImageItem, ItemList, TextItem, read_corpus
from c3tools.embedding import embed, embed_corpus
from c3tools.embedding import run as run_module
from c3tools.embedding import shards as shards_module
from c3tools.embedding.plan import plan_shards
from c3tools.encoders import Encoder
from c3tools.encoders.backends import CONVERTED
from c3tools.errors import MissingExtraError, OutputError, StoreError
from c3tools.io.lock import locked
from c3tools.reporter import Progress, Reporter
from c3tools.store import Shard, Store, StoreInfo, write_shard
from c3tools.store.verify import verify_store
from tests.conftest import copy_photos, make_store, unit_rows
from tests.encoders.test_loading import local_model

SMALL: dict[str, Any] = {"shard_size": 3, "workers": 0, "batch_size": 2}


def files(store: Path) -> dict[str, bytes]:
    """All bytes of a store; timings, which differ from run to run, are left out of the markers."""
    found = {}
    for path in sorted(store.rglob("*")):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            if path.name.startswith("_part-") and path.suffix == ".json":
                marker = json.loads(content)
                marker.pop("timings")
                content = json.dumps(marker, sort_keys=True).encode()
            found[path.relative_to(store).as_posix()] = content
    return found


def test_photos_and_captions_end_up_in_the_store(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    summary = embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    assert summary.modalities["image"].embedded == 4
    assert summary.modalities["text"].embedded == 20
    store = Store.open(tmp_path / "s")
    assert store.parts("image") == [0, 1]
    images = store.load("image")
    assert len(images) == 4
    paths = [photos / f"{key}.jpg" for key in images.keys]
    np.testing.assert_allclose(images.embeddings, encoder.encode_images(paths), atol=1e-3)
    for path, width, height in zip(paths, images.column("width"), images.column("height"), strict=True):
        with Image.open(path) as image:
            assert image.size == (width, height)
    texts = store.load("text")
    np.testing.assert_allclose(texts.embeddings, encoder.encode_texts(texts.column("caption")), atol=1e-3)
    assert set(texts.column("image_key")) == set(images.keys)
    assert store.moments("image", "val").n == 1
    assert store.recorded_failures() == []
    np.testing.assert_allclose(np.linalg.norm(images.embeddings, axis=1), 1, atol=1e-3)


def test_running_again_changes_nothing(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    before = files(tmp_path / "s")
    summary = embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    assert summary.modalities["image"].already == 4
    assert summary.modalities["image"].embedded == 0
    assert files(tmp_path / "s") == before


def test_worker_processes_give_the_same_bytes(each_encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        embed_corpus(
            read_corpus([photos]), tmp_path / str(workers), each_encoder, shard_size=3, workers=workers, batch_size=2
        )
    assert files(tmp_path / "0") == files(tmp_path / "2")


@pytest.mark.parametrize("stop_at", [1, 2, 4, 6])
def test_an_interrupted_run_continues_to_the_same_bytes(
    each_encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    (photos / "broken.jpg").write_text("no image")
    corpus = read_corpus([photos])
    embed_corpus(corpus, tmp_path / "whole", each_encoder, **SMALL)
    calls = 0

    def stopping(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        write_shard(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "write_shard", stopping)
        with pytest.raises(KeyboardInterrupt):
            embed_corpus(corpus, tmp_path / "parts", each_encoder, **SMALL)
    embed_corpus(corpus, tmp_path / "parts", each_encoder, **SMALL)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_new_files_are_added_and_changed_ones_told(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 3)
    embed_corpus(read_corpus([folder]), tmp_path / "s", encoder, **SMALL)
    before = files(tmp_path / "s")
    first = sorted(folder.glob("*.jpg"))[0]
    shutil.copyfile(first, folder / "new.jpg")
    with Image.open(first) as image:
        grey = image.convert("L")
    grey.save(first)
    text = (folder / "captions.jsonl").read_text().replace("A big burly grizzly bear", "A tiny grizzly bear")
    (folder / "captions.jsonl").write_text(text)
    summary = embed_corpus(read_corpus([folder]), tmp_path / "s", encoder, **SMALL)
    assert summary.modalities["image"].embedded == 1
    assert summary.modalities["image"].changed == [first.stem]
    assert summary.modalities["text"].changed == [f"{first.stem}#0"]
    assert summary.images_without_caption == ["new"]
    after = files(tmp_path / "s")
    assert all(after[name] == content for name, content in before.items() if name != "manifest.json")
    assert Store.open(tmp_path / "s").count("image") == 4


def test_bad_files_stop_nobody_and_are_listed(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("hello")
    good = next(iter(sorted(photos.glob("0*.jpg"))))
    (photos / "cut.jpg").write_bytes(good.read_bytes()[:5000])
    Image.new("1", (20_000, 20_000)).save(photos / "bomb.png")
    Image.new("RGB", (1, 1)).save(photos / "one.png")
    corpus = read_corpus([photos])
    (photos / "vanished.jpg").touch()
    corpus.images.append(ImageItem("vanished", str(photos / "vanished.jpg"), None, 0))
    (photos / "vanished.jpg").unlink()
    summary = embed_corpus(corpus, tmp_path / "s", encoder, **SMALL)
    assert summary.modalities["image"].embedded == 5
    assert summary.modalities["image"].failed == 5
    failures = {f.key: f for f in Store.open(tmp_path / "s").recorded_failures()}
    assert {key: (f.stage, f.error) for key, f in failures.items()} == {
        "bomb": ("decode", "DecompressionBombError"),
        "cut": ("decode", "OSError"),
        "empty": ("decode", "UnidentifiedImageError"),
        "text": ("decode", "UnidentifiedImageError"),
        "vanished": ("read", "FileNotFoundError"),
    }
    assert "truncated" in failures["cut"].message
    assert failures["empty"].message == "empty file"


def test_failures_are_tried_again_when_asked(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    broken = photos / "broken.jpg"
    broken.write_text("no image")
    embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    source = next(iter(sorted(photos.glob("0*.jpg"))))
    shutil.copyfile(source, broken)
    left = embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    assert (left.modalities["image"].failed_before, left.failures_in_store) == (1, 1)
    retried = embed_corpus(
        read_corpus([photos]), tmp_path / "s", encoder, shard_size=3, workers=0, batch_size=2, retry_failed=True
    )
    assert (retried.modalities["image"].embedded, retried.failures_in_store) == (1, 0)
    store = Store.open(tmp_path / "s")
    assert store.failures() == [] == store.recorded_failures()
    assert "broken" in store.load("image").keys


def test_no_failure_hides_another_of_the_same_name(encoder: Encoder, tmp_path: Path) -> None:
    folders = [copy_photos(tmp_path / name, 2) for name in ("a", "b")]
    for folder in folders:
        (folder / "captions.jsonl").unlink()
        (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "0001.jpg").write_text("no image")
    (tmp_path / "ids.csv").write_text("id,text\n0001,a dog\n")
    corpus = read_corpus([*folders, tmp_path / "0001.jpg", tmp_path / "ids.csv"], key_column="id")
    assert "0001" in [text.key for text in corpus.texts]
    for _ in range(2):
        summary = embed_corpus(corpus, tmp_path / "s", encoder, **SMALL)
        failures = [(f.stage, f.path) for f in Store.open(tmp_path / "s").recorded_failures()]
        links = [("list", str(folder / "gone.jpg")) for folder in folders]
        assert failures == [("decode", str(tmp_path / "0001.jpg")), *links]
        assert summary.failures_in_store == 3
    assert verify_store(tmp_path / "s").findings == []


def test_an_image_that_fails_again_in_another_folder_is_one_failure(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 2)
    (folder / "broken.jpg").write_text("no image")
    embed_corpus(read_corpus([folder]), tmp_path / "s", encoder, **SMALL)
    moved = folder.rename(tmp_path / "moved")
    summary = embed_corpus(read_corpus([moved]), tmp_path / "s", encoder, **SMALL, retry_failed=True)
    (failure,) = Store.open(tmp_path / "s").recorded_failures()
    assert (failure.path, summary.failures_in_store) == (str(moved / "broken.jpg"), 1)


def test_captions_that_cannot_be_used_are_failures_too(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": ["a dog", ""]}\n')
    summary = embed_corpus(read_corpus([tmp_path / "t.jsonl"]), tmp_path / "s", encoder, **SMALL)
    assert summary.failures_in_store == 1
    (failure,) = Store.open(tmp_path / "s").recorded_failures()
    assert (failure.stage, failure.error) == ("list", "EmptyCaption")


def test_long_texts_are_cut_and_counted(encoder: Encoder, tmp_path: Path) -> None:
    corpus = Corpus(texts=[TextItem("a", "long " * 2000, None, None), TextItem("b", "short", None, None)])
    assert embed_corpus(corpus, tmp_path / "s", encoder, **SMALL).modalities["text"].truncated == 1


def test_finished_shards_out_of_order_are_planned_around(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", unit_rows(9, 4), unit_rows(9, 4), part_rows=3)
    items = ItemList(TextItem, (TextItem(f"text{i}", f"caption {i}", f"image{i}", "train") for i in range(9)))
    plan = plan_shards(store, "text", items, shard_size=3, retry_failed=False)
    assert (list(plan.shards), plan.summary.already, plan.summary.changed) == ([], 9, [])
    (tmp_path / "s" / "text" / "_part-00001.json").unlink()
    shards = plan_shards(store, "text", items, shard_size=3, retry_failed=False).shards
    assert {number: [item.key for item in part] for number, part in shards} == {1: ["text3", "text4", "text5"]}


def test_a_store_of_another_model_is_refused(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "s", unit_rows(2, 256), unit_rows(2, 256))
    before = files(tmp_path / "s")
    with pytest.raises(StoreError, match=r"is of the model test-model .* the new embeddings of c3-mini"):
        embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    assert files(tmp_path / "s") == before


def test_two_runs_on_one_store_do_not_meet(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    corpus = read_corpus([photos])
    embed_corpus(corpus, tmp_path / "s", encoder, **SMALL)
    with locked(tmp_path / "s"), pytest.raises(OutputError, match="Another run is writing"):
        embed_corpus(corpus, tmp_path / "s", encoder, **SMALL)


def test_a_full_disk_keeps_what_was_finished(
    encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(store: Path, info: StoreInfo, shard: Shard) -> None:
        if shard.modality == "text":
            raise OSError(28, "No space left on device")
        write_shard(store, info, shard)

    corpus = read_corpus([photos])
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "write_shard", full)
        with pytest.raises(StoreError, match=r"(?s)No space left on device.*run the same command again"):
            embed_corpus(corpus, tmp_path / "s", encoder, **SMALL)
    assert Store.open(tmp_path / "s").count("image") == 4
    embed_corpus(corpus, tmp_path / "s", encoder, **SMALL)
    assert Store.open(tmp_path / "s").count("text") == 20


def test_the_summary_says_what_held_it_up(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    summary = embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    took = time.perf_counter() - start
    assert 0 < sum(m.elapsed for m in summary.modalities.values()) <= took
    assert "of the time" in (summary.bottleneck() or "")
    value = json.loads(json.dumps(summary.to_dict()))
    assert value["modalities"]["image"]["rate"] > 0
    again = embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    assert again.bottleneck() is None


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
    found = [f"{photos}: 20 captions: 20 from captions.jsonl."]
    assert recorder.messages == ["Found 4 images and 20 texts.", *found]
    assert recorder.labels == ["Images", "Texts"]
    assert store.summary.to_dict()["modalities"]["text"]["embedded"] == 20
    assert Store.open(tmp_path / "s").summary is None
    recorder.labels.clear()
    again = embed([photos], tmp_path / "s", encoder=encoder, workers=0, reporter=recorder)
    assert again.summary.modalities["image"].already == 4
    assert recorder.labels == []  # nothing is left to do
    with pytest.raises(StoreError, match="There is no dtype"):
        embed(photos, tmp_path / "s", encoder=encoder, dtype="int8")


def test_the_model_and_the_precision_of_the_store_are_used_again(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a dog\n")
    name = local_model(tmp_path / "m")
    embed(tmp_path / "t.txt", tmp_path / "s", model=name, random_init=4, backend="torch", precision="bf16")
    (tmp_path / "t.txt").write_text("a dog\na cat\n")
    recorder = Recorder()
    store = embed(tmp_path / "t.txt", tmp_path / "s", reporter=recorder)
    assert (store.info.model["random_init"], store.summary.precision, store.count("text")) == (4, "bf16", 2)
    assert recorder.messages == ["Found 0 images and 2 texts."]


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_the_backend_of_the_store_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    (tmp_path / "t.txt").write_text("a dog\n")
    name = local_model(tmp_path / "m")
    embed(tmp_path / "t.txt", tmp_path / "s", model=name, backend=backend, precision="fp32")
    assert json.loads((tmp_path / "s" / "store.json").read_text())["backend"] == backend
    (tmp_path / "t.txt").write_text("a dog\na cat\n")
    again = embed(tmp_path / "t.txt", tmp_path / "s").summary
    assert (again.backend, again.precision, again.modalities["text"].embedded) == (backend, "fp32", 1)
    assert backend in str(again.table().title)
    (tmp_path / "t.txt").write_text("a dog\na cat\na bird\n")
    monkeypatch.setattr(CONVERTED[backend], "packages", ("a_package_that_nobody_has",))
    with pytest.raises(MissingExtraError, match=rf"(?s)--backend {backend} needs.*c3tools\[{backend}\]"):
        embed(tmp_path / "t.txt", tmp_path / "s")
    assert embed(tmp_path / "t.txt", tmp_path / "s", backend="torch").summary.backend == "torch"


def test_a_store_from_before_there_were_backends_is_continued_by_torch(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a dog\n")
    name = local_model(tmp_path / "m")
    embed(tmp_path / "t.txt", tmp_path / "s", model=name, backend="torch", precision="fp32")
    description = json.loads((tmp_path / "s" / "store.json").read_text())
    del description["backend"]
    (tmp_path / "s" / "store.json").write_text(json.dumps(description))
    (tmp_path / "t.txt").write_text("a dog\na cat\n")
    assert embed(tmp_path / "t.txt", tmp_path / "s").summary.backend == "torch"
    assert "backend" not in Store.open(tmp_path / "s").info.to_dict()


def test_nothing_to_do_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text("a dog\n")
    name = local_model(tmp_path / "m")
    first = embed(tmp_path / "t.txt", tmp_path / "s", model=name, backend="torch", precision="fp32")

    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(run_module, "resolve_encoder", load)
    for model in (None, name):
        again = embed(tmp_path / "t.txt", tmp_path / "s", model=model).summary
        assert again.modalities["text"].already == 1
        assert (again.model, again.precision) == (first.info.model, "fp32")
    with pytest.raises(StoreError, match=r"dtype = float16, but float32 was requested"):
        embed(tmp_path / "t.txt", tmp_path / "s", dtype="float32")
    monkeypatch.undo()
    with pytest.raises(StoreError, match="Embeddings of different models cannot be mixed"):
        embed(tmp_path / "t.txt", tmp_path / "s", model=name, random_init=1, backend="torch")


def test_the_summary_shows_itself_in_a_notebook(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    (photos / "<b>.jpg").write_text("no")
    summary = embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **SMALL)
    page = summary._repr_html_()
    assert "<tr><td>image</td><td>4</td><td>0</td><td>1</td>" in page
    assert "1 image has no caption: &lt;b&gt;" in page
