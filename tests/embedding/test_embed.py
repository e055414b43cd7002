"""An embedding run: the same bytes whatever happens on the way, and failures that stop nobody."""

from __future__ import annotations

import inspect
import os
import pickle
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from c3tools.corpus.items import ImageItem, ReadOptions
from c3tools.corpus.reading import read_corpus
from c3tools.embedding.embed import embed, embed_corpus
from c3tools.embedding.shard_work import EmbedOptions, EmbedWork
from c3tools.embedding.summary import EmbedSummary, ModalitySummary
from c3tools.encoders import Encoder, load_encoder
from c3tools.encoders.openvino_backend import OpenVINOBackend
from c3tools.errors import C3Error, StoreError, UnreachableError
from c3tools.executors import Executor, Report, Work
from c3tools.executors.local import Result, Task
from c3tools.store import Rows, Store, StoreWriter, write_rows
from c3tools.store.verify import verify_store
from tests.conftest import Counted, Messages, build_store, copy_photos, unit_rows
from tests.connect.photos import save_tiny_clip
from tests.corpus.packing import photos_of, webdataset, write_hf_parquet, write_list, write_tar
from tests.golden import recorded
from tests.servers import Faults, web_server
from tests.stores import colour_corpus, colour_encoder, embed_colours


def write_odd_images(folder: Path) -> None:
    """Write odd images, made from the first photo, that are to be embedded."""
    with Image.open(min(folder.glob("0*.jpg"))) as opened:
        image = opened.convert("RGB")
    for mode, name in {
        "CMYK": "cmyk.jpg",
        "P": "palette.png",
        "RGBA": "alpha.png",
        "LA": "grey-alpha.png",
    }.items():
        image.convert(mode).save(folder / name)
    deep = np.asarray(image.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(deep).save(folder / "sixteen-bit.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    image.save(folder / "turned.jpg", exif=exif)
    small = image.resize((64, 64))
    small.save(folder / "animated.gif", save_all=True, append_images=[small.rotate(90)])
    image.resize((1, 1)).save(folder / "one.png")
    image.resize((20_000, 10)).save(folder / "wide.jpg")
    (folder / "a folder named x.jpg").mkdir()
    for name in ("twin.png", "twin.jpg", "фото 写真 صورة.jpg", "two\nlines.jpg", "UPPER.JPG"):
        image.save(folder / name)
    image.save(folder / "a folder named x.jpg/inside.png")
    (folder / "link-inside.jpg").symlink_to(folder / "turned.jpg")


def write_bad_files(folder: Path) -> None:
    """Write files that are to be listed as failures."""
    whole = min(folder.glob("0*.jpg")).read_bytes()
    bad = {"empty.jpg": b"", "cut.jpg": whole[: len(whole) // 2], "head-only.jpg": whole[:100]}
    bad |= {"text.jpg": b"not an image\n", "page.png": b"<!doctype html><title>404</title>"}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    links = {
        "loop.jpg": "loop.jpg",
        "loop-folder": ".",
        "dangling.jpg": "nothing.jpg",
        "outside.jpg": "/etc/hostname",
    }
    for name, target in links.items():
        (folder / name).symlink_to(folder / target)
    os.mkfifo(folder / "pipe.jpg")
    Path(os.fsdecode(os.fsencode(folder) + b"/not-utf8-\xff.jpg")).write_bytes(whole)


def test_photos_and_captions_end_up_in_the_store(
    encoder: Encoder, photos: Path, tmp_path: Path
) -> None:
    options = EmbedOptions(shard_size=3, workers=0, batch_size=2)
    summary = embed_corpus(read_corpus(photos), tmp_path / "s", encoder, options)
    done = [(m.embedded, m.seconds["waiting"] > 0) for m in summary.modalities.values()]
    assert (done, summary.notes()) == ([(4, True), (20, False)], [])
    store = Store.open(tmp_path / "s")
    assert store.parts("image") == [0, 1]
    images, texts = store.load("image"), store.load("text")
    paths = [photos / f"{key}.jpg" for key in images.keys]
    np.testing.assert_allclose(images.embeddings, encoder.encode_images(paths), atol=1e-3)
    np.testing.assert_allclose(
        texts.embeddings, encoder.encode_texts(texts.column("caption")), atol=1e-3
    )
    for path, *size in zip(paths, images.column("width"), images.column("height"), strict=True):
        with Image.open(path) as image:
            assert [*image.size] == size
    assert set(texts.column("image_key")) == set(images.keys)
    assert store.moments("image", "val").n == 1
    assert summary.to_dict()["modalities"]["image"]["rate"] > 0


def test_a_shard_is_written_while_others_are_encoded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(backend="torch", precision="fp32")
    third_shard = threading.Event()  # the second one is read before it is known that the first ends
    tokenise = encoder.tokenise
    batches: list[Any] = []

    def counting(texts: Any) -> Any:
        batches.append(texts)
        if len(batches) == 3:
            third_shard.set()
        return tokenise(texts)

    def write(*arguments: Any, **options: Any) -> Any:
        assert third_shard.wait(60), "nothing was encoded beside writing"
        return write_rows(*arguments, **options)

    monkeypatch.setattr(encoder, "tokenise", counting)
    monkeypatch.setattr("c3tools.embedding.shard_work.write_rows", write)
    options = EmbedOptions(shard_size=5, workers=0)
    embed_corpus(read_corpus(photos / "captions.jsonl"), tmp_path / "s", encoder, options)
    assert len(Store.open(tmp_path / "s").load("text")) == 20


def test_everything_odd_is_embedded_and_everything_bad_is_listed(
    encoder: Encoder, tmp_path: Path
) -> None:
    folder = copy_photos(tmp_path / "p", 6)
    write_odd_images(folder)
    write_bad_files(folder)
    corpus = read_corpus(folder)
    corpus.images.append(ImageItem("vanishing", str(folder / "vanishing.jpg"), None, 5))
    reporter = Counted()
    options = EmbedOptions(shard_size=7, workers=2)
    summary = embed_corpus(corpus, tmp_path / "s", encoder, options, reporter=reporter)
    assert reporter.counts == {"Images": len(corpus.images), "Texts": len(corpus.texts)}
    assert reporter.notes == {"Images": f"{summary.modalities['image'].failed} failed"}
    store = Store.open(tmp_path / "s")
    failures, images = store.recorded_failures(), store.load("image")
    assert all(failure.message for failure in failures)
    bad = sorted([failure.key, failure.stage, failure.error] for failure in failures)
    recorded(
        Path(__file__).parent / "golden/hostile.json", {"bad": bad, "embedded": sorted(images.keys)}
    )
    np.testing.assert_allclose(np.linalg.norm(images.embeddings, axis=1), 1, atol=1e-3)
    size = dict(
        zip(
            images.keys,
            zip(images.column("width"), images.column("height"), strict=True),
            strict=True,
        )
    )
    assert (size["wide"], size["turned"]) == ((20_000, 10), size["UPPER"][::-1])


def test_no_failure_hides_another_of_the_same_name(tmp_path: Path) -> None:
    folders, s = (
        [colour_corpus(tmp_path / name, {"x": "red"}, texts=0) for name in ("a", "b")],
        tmp_path / "s",
    )
    for folder in folders:
        (folder / "captions.jsonl").unlink()
        (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "0001.jpg").write_text("no image")
    (tmp_path / "ids.csv").write_text("id,text\n0001,a dog\n")
    corpus = read_corpus([*folders, tmp_path / "0001.jpg", tmp_path / "ids.csv"], key_column="id")
    for _ in range(2):
        embed_colours(corpus, s)
        failures = {(f.path, f.stage) for f in Store.open(s).recorded_failures()}
        links = {(str(folder / "gone.jpg"), "list") for folder in folders}
        assert failures == {(str(tmp_path / "0001.jpg"), "decode"), *links}
    assert verify_store(s).findings == []
    shutil.copyfile(folders[0] / "x.png", tmp_path / "nowhere.jpg")
    mended = read_corpus(folders, follow_symlinks=True)
    assert embed_colours(mended, s).modalities["image"].embedded == 2
    assert [f.stage for f in Store.open(s).recorded_failures()] == ["decode"]


def test_the_options_are_those_of_a_run_in_every_place() -> None:
    given = {name: each.default for name, each in inspect.signature(embed).parameters.items()}
    own = asdict(EmbedOptions()) | asdict(ReadOptions())
    own |= {
        "fps": None,
        "dry_run": False,
    }  # by default as the store says
    assert given == {name: own.get(name, default) for name, default in given.items()}


def test_a_store_keeps_how_photos_are_decoded(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        noise = Image.effect_noise((1600, 1500), 60).convert("RGB")
        noise.save(photos / f"{name}.jpg", quality=80)
    scaled = embed(photos, tmp_path / "scaled")
    exact = embed(photos / "a.jpg", tmp_path / "exact", exact_decoding=True)
    assert exact.info.preprocessing["exact_decoding"] is True
    assert "exact_decoding" not in scaled.info.preprocessing

    exact = embed(photos, tmp_path / "exact")

    assert exact.summary is not None and exact.summary.modalities["image"].embedded == 1
    differences = exact.load("image").embeddings - scaled.load("image").embeddings
    assert (abs(differences).max(axis=1) > 0).all()
    with pytest.raises(StoreError, match="scaled was made without --exact-decoding"):
        embed(photos, tmp_path / "scaled", exact_decoding=True)


@pytest.mark.parametrize("other", [{"random_init": 3}, {"dtype": "float32"}])
def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path: Path, other: dict[str, Any]) -> None:
    (tmp_path / "t.txt").write_text("a dog\n")
    embed(tmp_path / "t.txt", tmp_path / "s")
    for dry_run in (True, False):
        with pytest.raises(StoreError, match="but the new embeddings"):
            embed(tmp_path / "t.txt", tmp_path / "s", dry_run=dry_run, **other)


def test_the_model_of_the_store_is_said_before_another_one_is_loaded(tmp_path: Path) -> None:
    texts = tmp_path / "t.txt"
    texts.write_text("a dog\n")
    embed(texts, tmp_path / "s")
    messages = Messages()
    with pytest.raises(C3Error):  # there is no such folder
        embed(texts, tmp_path / "s", model="local-dir:none", dry_run=True, reporter=messages)
    assert f"The store {tmp_path / 's'} has embeddings of c3-mini." in messages.texts[-1]


def test_a_store_of_divided_texts_is_read_but_not_continued(tmp_path: Path) -> None:
    texts = tmp_path / "t.txt"
    texts.write_text("a dog\n")
    rows = Rows.of("text", ["t:1~0", "t:1~1"], unit_rows(2, 8), image_key=["t:1", "t:1"])
    store = build_store(tmp_path / "s", rows, preprocessing={"long_texts": "chunk"})
    with pytest.raises(StoreError, match=r"made with --long-texts chunk.*\n.*longer context"):
        embed(texts, tmp_path / "s")
    assert verify_store(store.path).whole and store.load("text").items == ["t:1", "t:1"]


def test_a_dry_run_shows_the_model_of_a_loaded_encoder(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "photos", {"red": "red"})
    planned = embed(folder, tmp_path / "s", encoder=colour_encoder(), dry_run=True)
    assert planned.summary is not None
    assert planned.summary.table().title.split() == [
        f"{tmp_path}/s",
        "colours,",
        *"dry run: nothing was written".split(),
    ]


def test_a_summary_in_numbers_and_words() -> None:
    own: dict[str, Any] = {
        "changed": [*"ab"],
        "gone": [*"cdefgh"],
        "to_embed": 7,
        "to_update": 8,
        "to_remove": 9,
    }
    images = ModalitySummary(490, 1003, 2, 1, elapsed=3500.0, **own)
    seconds = {"waiting": 0.3, "encoding": 0.1, "writing": 0.05}
    images.add(ModalitySummary(embedded=9, failed=3, updated=1, not_updated=["b"], seconds=seconds))
    texts = ModalitySummary(embedded=1, moved=["t"])
    texts.add(ModalitySummary(truncated=2))
    modalities, alone = {"image": images, "text": texts}, (["x"], [*"vwxyz"])
    summary = EmbedSummary(
        "s", {"name": "m"}, "fp32", "openvino", modalities, *alone, 4, 2, ["image shard 1"]
    )
    tables = [vars(one.table()) for one in (summary, replace(summary, dry_run=True))]
    value = {"object": summary.to_dict(), "tables": tables, "page": summary._repr_html_()}
    recorded(Path(__file__).parent / "golden/summary.json", value)
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
        patch.setattr(
            "c3tools.embedding.embed.resolve_encoder", None
        )  # nothing to do loads no model
        for again in (
            embed(texts, store).summary,
            embed(texts, store, model=name, random_init=4).summary,
        ):
            assert (again.modalities["text"].already, again.model, again.precision) == (
                2,
                first.info.model,
                "bf16",
            )
        with pytest.raises(StoreError, match="float32"):
            embed(texts, store, dtype="float32")
    with pytest.raises(StoreError, match="different models"):
        embed(texts, store, model=name, random_init=1, backend="torch")
    texts.write_text(texts.read_text() + "a cat\n")
    summary = embed(texts, store).summary
    assert (summary.backend, summary.precision, summary.modalities["text"].embedded) == (
        "torch",
        "bf16",
        1,
    )


def test_a_run_by_torch_on_a_cpu_says_what_openvino_would_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, model = tmp_path / "t.txt", save_tiny_clip(tmp_path / "m")
    texts.write_text("a dog\n")

    def notes(store: str) -> str:
        store = str(tmp_path / store)
        return " ".join(embed(texts, store, model=model, backend="torch").summary.notes())

    monkeypatch.setattr(OpenVINOBackend, "is_installed", lambda: False)
    assert 'sooner: pip install "openvino>=' in notes("without")
    monkeypatch.setattr(OpenVINOBackend, "is_installed", lambda: True)
    assert "OpenVINO" not in notes("with")


@pytest.mark.parametrize("form", ["x.tar", "x.parquet", "list.csv"])
def test_a_server_that_goes_away_ends_the_run_and_leaves_no_failure(
    tmp_path: Path, form: str
) -> None:
    pytest.importorskip("upath", reason="the extra url is not installed")
    folder, faults = colour_corpus(tmp_path / "p", {"a": "red", "b": "lime"}), Faults()
    chosen = photos_of(folder)
    write_tar(folder / "x.tar", webdataset(chosen))
    write_hf_parquet(folder / "x.parquet", chosen)
    write_list(folder / "list.csv", [{"image": photo.name, "text": photo.key} for photo in chosen])
    with web_server(folder, faults) as base:
        corpus = read_corpus(f"{base}/{form}", image_column="image" if form == "list.csv" else None)
        faults.last = faults.requests
        with pytest.raises(
            UnreachableError, match=rf"{base}/.* could not be reached in 6 attempts"
        ):
            embed_colours(corpus, tmp_path / "s", workers=2)
        faults.last = None
        summary = embed_colours(corpus, tmp_path / "s", workers=2)
    assert (summary.modalities["image"].embedded, summary.failures_in_store) == (2, 0)


def test_one_dead_address_of_a_list_stops_nobody(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "p", {"a": "red"})
    with web_server(folder, Faults()) as base:
        urls = [f"{base}/a.png", "http://127.0.0.1:9/x.jpg"]
        path = write_list(tmp_path / "list.csv", [{"url": url, "text": "t"} for url in urls])
        corpus = read_corpus(path, image_column="url", download=True)
        images = embed_colours(corpus, tmp_path / "s", workers=2).modalities["image"]
    assert (images.embedded, images.failed) == (1, 1)
    (failure,) = Store.open(tmp_path / "s").recorded_failures()
    assert "127.0.0.1:9/x.jpg could not be reached" in failure.message


def test_a_missing_shard_that_a_run_does_not_make_again_is_told(
    tmp_path: Path, encoder: Encoder
) -> None:
    store = tmp_path / "store"
    three, other = tmp_path / "three.txt", tmp_path / "other.txt"
    three.write_text("one\ntwo\nthree\n", encoding="utf-8")
    other.write_text("another\n", encoding="utf-8")
    embed(three, store, encoder=encoder)
    (store / "text" / "part-00000.parquet").unlink()
    summary = embed_corpus(read_corpus([other]), store, encoder, EmbedOptions())
    assert summary.lost == ["text shard 0 (3 rows)"]
    assert "1 shard missing and not made from these inputs: text shard 0 (3 rows)" in "".join(
        summary.notes()
    )
    summary = embed_corpus(read_corpus([three]), store, encoder, EmbedOptions())
    assert summary.lost == []


def test_an_interrupted_run_says_whether_a_shard_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = colour_corpus(tmp_path / "p", {"a": "red"}), tmp_path / "s"

    def interrupted() -> str:
        with pytest.raises(KeyboardInterrupt) as interrupt:
            embed_colours(folder, store)
        (note,) = interrupt.value.__notes__
        return str(note)

    with monkeypatch.context() as patch:
        patch.setattr(EmbedWork, "run", Mock(side_effect=KeyboardInterrupt))
        assert interrupted().startswith("No shard was finished; run the same command again")
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finish", Mock(side_effect=KeyboardInterrupt))
        assert interrupted().startswith(f"Finished shards are kept in {store};")


class Sending(Executor):
    """What another machine would get, and in this process the work itself."""

    def run(
        self, work: Work[Task, Result], tasks: Sequence[Task], report: Report
    ) -> Iterator[Result]:
        self.works = pickle.dumps(work)
        self.tasks = [pickle.dumps(tasks[position]) for position in range(len(tasks))]
        return super().run(work, tasks, report)


def test_a_machine_gets_the_inputs_of_its_own_shards_alone(tmp_path: Path) -> None:
    texts = [f"text of line {number}" for number in range(8)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    executor = Sending()
    options = EmbedOptions(shard_size=2, workers=0)
    corpus = read_corpus(tmp_path / "texts.txt")
    embed_corpus(corpus, tmp_path / "store", colour_encoder(), options, executor=executor)
    held = [[text for text in texts if text.encode() in task] for task in executor.tasks]
    assert held == [texts[:2], texts[2:4], texts[4:6], texts[6:]]
    assert b"text of line" not in executor.works
