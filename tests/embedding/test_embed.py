"""An embedding run: the same bytes whatever happens on the way, and failures that stop nobody."""

from __future__ import annotations

import inspect
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools.corpus.items import ImageItem, ReadOptions
from c3tools.corpus.reading import read_corpus
from c3tools.embedding import EmbedSummary, embed, embed_corpus
from c3tools.embedding import run as run_module
from c3tools.embedding.shards import EmbedOptions
from c3tools.embedding.summary import ModalitySummary
from c3tools.encoders import Encoder
from c3tools.errors import StoreError
from c3tools.store import Store
from c3tools.store.verify import verify_store
from tests.conftest import Counted, contents, copy_photos
from tests.connect.photos import save_tiny_clip
from tests.embedding.hostile import write_bad_files, write_odd_images
from tests.golden import recorded
from tests.stores import colour_corpus, embed_colours


def test_photos_and_captions_end_up_in_the_store(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    corpus = read_corpus(photos)
    summary = embed_corpus(corpus, tmp_path / "s", encoder, shard_size=3, workers=0, batch_size=2)
    done = [(m.embedded, m.seconds["waiting"] > 0) for m in summary.modalities.values()]
    assert (done, summary.notes()) == ([(4, True), (20, False)], [])
    store = Store.open(tmp_path / "s")
    assert store.parts("image") == [0, 1]
    images, texts = store.load("image"), store.load("text")
    paths = [photos / f"{key}.jpg" for key in images.keys]
    np.testing.assert_allclose(images.embeddings, encoder.encode_images(paths), atol=1e-3)
    np.testing.assert_allclose(texts.embeddings, encoder.encode_texts(texts.column("caption")), atol=1e-3)
    for path, *size in zip(paths, images.column("width"), images.column("height"), strict=True):
        with Image.open(path) as image:
            assert [*image.size] == size
    assert set(texts.column("image_key")) == set(images.keys)
    assert store.moments("image", "val").n == 1
    assert summary.to_dict()["modalities"]["image"]["rate"] > 0
    before = contents(tmp_path / "s")
    again = embed_corpus(corpus, tmp_path / "s", encoder, shard_size=3, workers=0)
    assert [(m.embedded, m.already) for m in again.modalities.values()] == [(0, 4), (0, 20)]
    assert (again.notes(), contents(tmp_path / "s")) == ([], before)


def test_everything_odd_is_embedded_and_everything_bad_is_listed(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 6)
    photo = min(folder.glob("0*.jpg"))
    write_odd_images(folder, photo)
    write_bad_files(folder, photo)
    corpus = read_corpus(folder)
    corpus.images.append(ImageItem("vanishing", str(folder / "vanishing.jpg"), None, 5))
    reporter = Counted()
    summary = embed_corpus(corpus, tmp_path / "s", encoder, shard_size=7, workers=2, reporter=reporter)
    assert reporter.counts == {"Images": len(corpus.images), "Texts": len(corpus.texts)}
    assert reporter.notes == {"Images": f"{summary.modalities['image'].failed} failed"}
    store = Store.open(tmp_path / "s")
    failures, rows = store.recorded_failures(), store.load("image")
    assert all(failure.message for failure in failures)
    bad = sorted([failure.key, failure.stage, failure.error] for failure in failures)
    recorded(Path(__file__).parent / "golden" / "hostile.json", {"bad": bad, "embedded": sorted(rows.keys)})
    np.testing.assert_allclose(np.linalg.norm(rows.embeddings, axis=1), 1, atol=1e-3)
    size = dict(zip(rows.keys, zip(rows.column("width"), rows.column("height"), strict=True), strict=True))
    assert (size["wide"], size["turned"]) == ((20_000, 10), size["UPPER"][::-1])


def test_no_failure_hides_another_of_the_same_name(tmp_path: Path) -> None:
    folders = [colour_corpus(tmp_path / name, {"x": "red"}, texts=0) for name in ("a", "b")]
    for folder in folders:
        (folder / "captions.jsonl").unlink()
        (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "0001.jpg").write_text("no image")
    (tmp_path / "ids.csv").write_text("id,text\n0001,a dog\n")
    corpus = read_corpus([*folders, tmp_path / "0001.jpg", tmp_path / "ids.csv"], key_column="id")
    for _ in range(2):
        embed_colours(corpus, tmp_path / "s")
        failures = {(f.path, f.stage) for f in Store.open(tmp_path / "s").recorded_failures()}
        links = {(str(folder / "gone.jpg"), "list") for folder in folders}
        assert failures == {(str(tmp_path / "0001.jpg"), "decode"), *links}
    assert verify_store(tmp_path / "s").findings == []
    shutil.copyfile(folders[0] / "x.png", tmp_path / "nowhere.jpg")
    mended = read_corpus(folders, follow_symlinks=True)
    assert embed_colours(mended, tmp_path / "s").modalities["image"].embedded == 2
    assert [f.stage for f in Store.open(tmp_path / "s").recorded_failures()] == ["decode"]


def test_the_options_are_those_of_a_run_in_every_place() -> None:
    given = {name: each.default for name, each in inspect.signature(embed).parameters.items()}
    own = EmbedOptions._field_defaults | ReadOptions._field_defaults
    own |= {"long_texts": None, "dry_run": False}  # by default as the store says
    assert given == {name: own.get(name, default) for name, default in given.items()}


def test_a_summary_in_numbers_and_words() -> None:
    own: dict[str, Any] = {"changed": [*"ab"], "gone": [*"cdefgh"], "to_embed": 7, "to_update": 8, "to_remove": 9}
    images = ModalitySummary(490, 1003, 2, 1, elapsed=3500.0, **own)
    seconds = {"waiting": 0.3, "encoding": 0.1, "writing": 0.05}
    images.add(ModalitySummary(embedded=9, failed=3, updated=1, not_updated=1, seconds=seconds))
    texts = ModalitySummary(embedded=1, from_elsewhere=["t"])
    texts.add(ModalitySummary(truncated=2))
    modalities, alone = {"image": images, "text": texts}, (["x"], [*"vwxyz"])
    summary = EmbedSummary("s", {"name": "m"}, "fp32", "openvino", modalities, *alone, 4, 2, ["image shard 1"])
    tables = [vars(one.table()) for one in (summary, replace(summary, dry_run=True))]
    value = {"object": summary.to_dict(), "tables": tables, "page": summary._repr_html_()}
    recorded(Path(__file__).parent / "golden" / "summary.json", value)
    advice, images.embedded = summary.notes()[-1], 498
    assert advice not in summary.notes()  # too few


def test_model_backend_and_precision_of_the_store_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, store, name = tmp_path / "t.txt", tmp_path / "s", save_tiny_clip(tmp_path / "m")
    texts.write_text("a dog\n" + "word " * 2000 + "\n")
    first = embed(texts, store, model=name, random_init=4, backend="torch", precision="bf16")
    assert first.summary.modalities["text"].truncated == 1
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "resolve_encoder", None)  # nothing to do loads no model
        for again in (embed(texts, store).summary, embed(texts, store, model=name, random_init=4).summary):
            assert (again.modalities["text"].already, again.model, again.precision) == (2, first.info.model, "bf16")
        with pytest.raises(StoreError, match="float32"):
            embed(texts, store, dtype="float32")
    with pytest.raises(StoreError, match="different models"):
        embed(texts, store, model=name, random_init=1, backend="torch")
    texts.write_text(texts.read_text() + "a cat\n")
    summary = embed(texts, store).summary
    assert (summary.backend, summary.precision, summary.modalities["text"].embedded) == ("torch", "bf16", 1)
