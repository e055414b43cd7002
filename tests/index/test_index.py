"""Indexes against brute force: built, grown, built anew; queries, hits and the page of them."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from dataclasses import FrozenInstanceError
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools import Store, export_store
from c3tools.errors import C3Error, StoreError, TransformError, UnusedOptionError
from c3tools.index import Hit, Index, SearchResult, build_index, contact_sheet, find_index
from c3tools.index import index as module
from c3tools.index.coder import choose_factory
from c3tools.index.codes import CodeFormat, set_nprobe
from c3tools.store import Rows
from c3tools.store.manifest import StoreWriter
from c3tools.store.means import load_means, save_means, unload_means
from tests.conftest import Messages, add_shard, build_store, unit_rows
from tests.corpus.packing import write_tar
from tests.golden import recorded
from tests.stores import assert_close, gap_store, make_vectors, unit

faiss = pytest.importorskip("faiss", reason="faiss is an extra")
SEARCHES = """
import sys
import numpy as np
from c3tools import Index
index = Index.open(sys.argv[1])
index.search(vector=np.ones(index.record["dim"]), by="row")
index.search(key="a", split="train", where=["price>2", "colour=red"])
print("pandas" in sys.modules)
"""


@pytest.fixture(scope="module")
def index(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index(store, output=tmp_path_factory.mktemp("index") / "index")


@pytest.fixture
def own(tmp_path: Path, store: Store) -> Store:
    """A store that may change."""
    shutil.copytree(store.path, tmp_path / "c3-store")
    return Store.open(tmp_path / "c3-store")


def centred(store: Store, modality: str) -> np.ndarray:
    x = unit(store.load(modality).embeddings.astype(np.float64))
    return unit(x - store.moments(modality, "train").mean)


def grow(store: Store, first: int, count: int, part: int, seed: int = 5) -> None:
    """Add a shard of ``count`` images, and one of their texts."""
    images, texts = make_vectors(count, seed)
    keys, splits = [f"new{number:03d}" for number in range(first, first + count)], ["train"] * count
    add_shard(store.path, store.info, "image", part, images, {"key": keys, "split": splits})
    columns = {"key": [f"{key}#0" for key in keys], "image_key": keys, "split": splits}
    add_shard(store.path, store.info, "text", part, texts[::2], columns)
    if part < 3:  # in the place of others
        (store.path / "manifest.json").unlink()
    StoreWriter(store.path).finish()


def test_the_reports_of_small_indexes_on_record(store: Store, index: Index, tmp_path: Path) -> None:
    assert repr(index) == f"Index({str(index.path)!r}: 270 rows, Flat)"
    assert index.rows.column("modality").to_pylist() == ["image"] * 90 + ["text"] * 180
    images = build_index(store.path, output=tmp_path / "index", split="test", modality=["image"])
    assert images.rows.column("key").to_pylist() == [f"img{i:03d}" for i in range(0, 90, 3)]
    reports = [{**one.to_dict(), "output": one.path.name} for one in (index, images)]
    # of images: texts ask for them
    recorded(Path(__file__).parent / "golden" / "reports.json", reports)


def test_every_kind_of_index_in_parts(store: Store, tmp_path: Path) -> None:
    exact = np.argsort(-centred(store, "image") @ centred(store, "text").T, axis=1)[:, :10] + 90
    for factory in ("Flat", "IVF4,SQfp16", "IVF4,Flat", "OPQ4_16,IVF4,SQ8"):
        index = build_index(store, output=tmp_path / factory, factory=factory)
        report = index.to_dict()
        assert len(report["shards"]) == 6 and report["recall@10"] >= (
            0.9 if "OPQ" in factory else 0.98
        )
        assert (report["nprobe"] in (1, 2, 4)) == ("IVF" in factory)
        lists = [
            {hit.row for hit in hits}
            for hits in index.rank(store.load("image").embeddings, "image", only="text", by="row")
        ]
        recall = np.mean(
            [len(rows & {*best}) / 10 for rows, best in zip(lists, exact, strict=True)]
        )
        assert recall >= (1 if factory == "Flat" else 0.85) and {*map(len, lists)} == {10}


def test_the_search_is_tuned_until_more_lists_do_not_help(store: Store, tmp_path: Path) -> None:
    # so many lists, far apart
    rows = unit(np.repeat(unit_rows(128, 8), 39, axis=0) + 0.01 * unit_rows(128 * 39, 8, 1))
    far = build_store(
        tmp_path / "far",
        Rows.of("image", [f"{row}" for row in range(len(rows))], rows),
        part_rows=9999,
    )
    for place, factory, recall, expected in (
        (store, "IVF4,Flat", 0.1, 1),
        (store, "IVF4,Flat", 1.1, 4),
        (store, "IVF5,Flat", 1.1, 5),
        (far, "IVF120,SQ8", 1.1, 64),  # the rest is lost by quantisation
        (far, "IVF120,Flat", 1.1, 120),
    ):
        options = {"factory": factory, "recall": recall}
        # A recall of more than 1, which is refused, is never reached
        unchecked: Any = inspect.unwrap(build_index)
        record = unchecked(place, output=tmp_path / f"{factory} {recall}", **options).record
        assert (record["nprobe"], record["recall_queries"]) == (
            expected,
            200 if place is far else 90,
        )


def test_the_factory_follows_the_number_of_rows() -> None:
    # FAISS wants 39 rows for each cell
    sizes = {20_000: "Flat", 20_001: "IVF512,SQfp16", 39_935: "IVF512,SQfp16"}
    sizes |= {
        39_936: "IVF1024,SQfp16",
        2_000_000: "IVF4096,SQfp16",
        2_000_001: "OPQ64_256,IVF4096,PQ64",
    }
    assert {rows: choose_factory(rows, 512) for rows in sizes} == sizes
    dims = {4 * n - 1: f"OPQ{n // 2}_{2 * n},IVF8192,PQ{n // 2}" for n in (64, 32, 16, 8)}
    dims |= {16: "OPQ4_16,IVF8192,PQ4", 15: "OPQ1_4,IVF8192,PQ1"}
    assert {dim: choose_factory(3_000_000, dim) for dim in dims} == dims


def test_what_cannot_be_built(store: Store, tmp_path: Path) -> None:
    for options, words in (
        ({"factory": "Nonsense"}, "'Nonsense' from 270 rows"),
        ({"factory": "IVF4000,Flat"}, "'IVF4000,Flat' from 270 rows"),
        ({"factory": "NSG8"}, "'NSG8'"),
        ({"factory": "IVF0,Flat"}, "'IVF0,Flat' has a size of 0"),
        ({"factory": "RR0,Flat"}, "'RR0,Flat' has a size of 0"),
        ({"split": "val"}, r"'val'.* train \(180\), test \(90\)"),
    ):
        with pytest.raises(StoreError, match=words):
            build_index(store, output=tmp_path / "index", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "index").exists()


def test_a_poor_index_is_reported_once(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    messages = Messages()
    build_index(store, output=tmp_path / "index", factory="IVF16,PQ4x4", reporter=messages)
    warnings = [text for text in messages.texts if text.startswith("FAISS: WARNING clustering")]
    assert len(warnings) == 1 and capfd.readouterr().err == ""
    assert re.search(r"recall@10 is 0\.\d+, below the 0.98", " ".join(messages.texts))


def test_a_faiss_index_that_faiss_refuses() -> None:
    with pytest.raises(StoreError, match=r"(?s)FAISS cannot read trained.faiss.*--rebuild"):
        CodeFormat(b"IxFI damaged").trained  # noqa: B018


def test_vectors_of_another_model_are_refused(store: Store, index: Index, tmp_path: Path) -> None:
    other = gap_store(tmp_path / "other", model={"name": "another", "weights_sha256": "b" * 64})
    words = r"other to another \(bbbbbbbbbbbb\)"
    for searched, query, said in (
        (index, {"vector": other.path}, words),
        (index, {"key": "img001", "store": other}, r"another \(bbbbbbbbbbbb\) and test-model"),
        (index, {"key": "img001", "k": 0}, "k must be at least 1, not 0"),
        (index, {"text": np.eye(8)}, r"type ndarray[\s\S]*vector="),
        (
            build_index(store, output=tmp_path / "c1", preset="c1"),
            {"vector": np.eye(8)},
            r"16 dimensions.* 8",
        ),
    ):
        with pytest.raises(C3Error, match=said):
            searched.search(**query)


def test_images_and_texts_are_in_one_list_or_in_one_each(store: Store, index: Index) -> None:
    for modality in ("image", "text"):
        rows, query = store.load(modality).embeddings[7:8], centred(store, modality)[7]
        (apart,) = index.rank(rows, modality, 4, separate=True, by="row")
        for name, hits in (("image", apart[:4]), ("text", apart[4:])):
            cosines = centred(store, name) @ query
            best = np.argsort(-cosines)[:4]
            keys = store.load(name).select(best).keys
            assert [(hit.modality, hit.key) for hit in hits] == [(name, key) for key in keys]
            assert_close([hit.cosine for hit in hits], cosines[best], 1e-3)
            spread = store.moments(name, "train").covariance
            z = cosines[best] / np.sqrt(query @ spread @ query / np.trace(spread))
            np.testing.assert_allclose([hit.score for hit in hits], z, rtol=2e-3)
        assert all(hit.path == f"{hit.image_key}.jpg" for hit in apart[4:])
        assert all(value == round(value, 6) for hit in apart for value in (hit.score, hit.cosine))
        for each in (index, Index.open(index.path)):
            assert each.rank(rows, modality, 4, by="row") == [
                sorted(apart, key=lambda hit: -hit.score)[:4]
            ]
        (everything,) = index.rank(rows, modality, 300, split="all", by="row")
        assert len(everything) == 270
        (whole,) = index.rank(rows, modality, 300, split="test", by="row")
        assert whole == [hit for hit in everything if hit.split == "test"]
        assert index.rank(rows, modality, 3, split="test", by="row") == [whole[:3]]
        with pytest.raises(StoreError, match=r"'nowhere'\. Its splits are test, train\."):
            index.rank(rows, modality, 3, split="nowhere")


def test_queries_by_number_and_by_key(store: Store, index: Index) -> None:
    vectors = store.load("image").embeddings[:3]
    several = index.search(
        vector=vectors, modality="image", only="text", split="test", by="row", k=2
    )
    found = [
        (result.query, [(hit.modality, hit.split) for hit in result.hits]) for result in several
    ]
    assert found == [(f"vector row {row}", [("text", "test")] * 2) for row in range(3)]
    (one,) = index.search(key="img080#1", only="text", k=1)
    assert (one.query, one.hits[0].key, one.hits[0].caption) == (
        "img080#1",
        "img080#1",
        "caption 1 of image 80",
    )
    (one,) = index.search(key="img004", only="image", by="row", k=1)
    (hit,) = one.hits
    assert hit == Hit(hit.score, hit.cosine, 4, "img004", "image", path="img004.jpg", split="train")
    assert "<td>img004</td>" in one._repr_html_()
    for fixed in (one, hit):
        with pytest.raises(FrozenInstanceError):
            fixed.query = ""  # type: ignore[misc, union-attr]


def test_scores_of_other_pipelines_can_be_compared_too(store: Store, tmp_path: Path) -> None:
    for name in ("fair", "clipre"):
        build_index(store, output=tmp_path / name, preset=name)
        (found,) = Index.open(tmp_path / name).search(
            vector=store.load("text").embeddings[3], k=270, by="row"
        )
        assert len(found.hits) == 270
        for modality in ("image", "text"):
            scores = [hit.score for hit in found.hits if hit.modality == modality]
            assert abs(np.mean(scores)) < 0.5 < np.std(scores) < 1.5


def test_a_contact_sheet_shows_what_can_be_read_and_says_what_cannot(tmp_path: Path) -> None:
    Image.new("RGB", (960, 720), (200, 10, 10)).save(tmp_path / "red.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    write_tar(tmp_path / "x.tar", [("in.png", (tmp_path / "red.png").read_bytes())])
    paths = ["red.png", "broken.jpg", "gone.jpg", "x.tar#in.png", "x.tar#none.png"]
    places = [*(str(tmp_path / path) for path in paths), "https://example.org/a.jpg"]
    hits = [Hit(2.5, 0.5, 0, "u", "image", path=place) for place in places]
    hits.append(Hit(2.3, 0.3, 0, "<b>", "text", caption="<i>a & b</i>"))
    page = contact_sheet([SearchResult("<script>dog", hits)])
    thumbnails = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", page)
    assert [Image.open(BytesIO(b64decode(one))).size for one in thumbnails] == [(480, 360)] * 2
    assert "<title>2 queries" in contact_sheet(
        [SearchResult("a dog", []), SearchResult("a cat", [])]
    )
    escaped = ("&lt;script&gt;dog", "&lt;i&gt;a &amp; b&lt;/i&gt;")
    for text in ("not an image in a format", "no such file", "not fetched", *escaped):
        assert text in page
    assert "<script>dog" not in page


def test_a_contact_sheet_shows_the_columns_that_rows_carry() -> None:
    columns = {"url": "http://a/<1>", "label": 0, "nsfw": None, "gender": ""}
    hit = Hit(2.3, 0.3, 0, "a", "text", caption="a dog", columns=columns)
    page = contact_sheet([SearchResult("a dog", [hit])])
    assert "<span>url: http://a/&lt;1&gt;</span><span>label: 0</span></figcaption>" in page
    assert "nsfw" not in page and "gender" not in page


def test_a_contact_sheet_finds_photos_and_sounds_beside_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.wav").write_bytes(b"sound")
    monkeypatch.chdir(tmp_path / "elsewhere")
    paths = ["photos/a.png", "photos/b.wav"]
    result = SearchResult("a dog", [Hit(1.0, 0.1, 0, path, "image", path=path) for path in paths])
    page = contact_sheet([result], tmp_path / "c3-store")
    assert page.count("data:image/jpeg;base64,") == 1
    assert (tmp_path / "photos" / "b.wav").as_uri() in page


@pytest.mark.parametrize("factory", ["auto", "IVF4,SQfp16"])
def test_new_shards_are_added(own: Store, tmp_path: Path, factory: str) -> None:
    path = tmp_path / "index"
    first = build_index(own, output=path, factory=factory)
    query = own.load("text").embeddings[0]
    for part, start, added in ((0, 0, 0), (3, 0, 24), (4, 12, 24)):
        messages = Messages()
        if part:
            grow(own, start, 12, part, seed=part)
            Index.open(path).search(vector=query, reporter=messages)
            assert "`c3 index`" in messages.texts.pop()
        grown = build_index(own.path, output=path, reporter=messages, factory=factory)
        assert grown.to_dict()["added"] == added
        assert not any("Rebuilding" in text for text in messages.texts)
        opened = Index.open(path)
        messages.texts.clear()
        opened.search(vector=query, reporter=messages)
        assert messages.texts == []
    assert opened.pipeline.record() == first.pipeline.record()
    assert opened.rows.num_rows == sum(one.ntotal for one in opened.indexes.values()) == 318
    # the result is what an index of the same vectors, filled at once, finds
    whole = build_index(
        own.path, output=tmp_path / "whole", pipeline=first.pipeline, factory="Flat"
    )
    queries = Store.open(own.path).load("image").embeddings[-30:]
    for name in ("image", "text"):
        all_lists = None if factory == "auto" else 4
        nearest = opened.rank(queries, "image", 1, only=name, nprobe=all_lists)
        expected = whole.rank(queries, "image", 1, only=name)
        assert [hits[0].key for hits in nearest] == [hits[0].key for hits in expected]


def test_after_any_other_change_it_is_made_again(own: Store, tmp_path: Path) -> None:
    path, messages = tmp_path / "index", Messages()
    build_index(own, output=path)

    def rebuilt(**options: Any) -> str:
        messages.texts.clear()
        index = build_index(own.path, output=path, reporter=messages, **options)
        assert index.to_dict()["added"] == index.rows.num_rows == Index.open(path).rows.num_rows
        return " ".join(messages.texts)

    def add_audio() -> None:
        add_shard(
            own.path,
            own.info,
            "audio",
            0,
            np.repeat(np.eye(16), 2, axis=0),
            {"key": [*map(str, range(32))], "split": ["train"] * 32},
        )
        StoreWriter(own.path).finish()

    assert "Rebuilding" not in rebuilt(rebuild=True)
    for change, options, words in (
        (None, {"factory": "Flat"}, "factory was auto and is now Flat"),
        (None, {"split": "test"}, "factory"),
        (None, {"split": "test", "preset": "c1"}, "pipeline"),
        (None, {"modality": ["image"]}, "modality"),
        (None, {}, "modality was .*image.* and is now None"),
        (lambda: grow(own, 100, 200, 7), {}, "more than twice"),
        (add_audio, {}, "its moments changed"),
        (lambda: (path / "trained.faiss").write_bytes(b"x"), {}, "trained.faiss is damaged"),
        ((path / "calibration.safetensors").unlink, {}, "calibration.safetensors is missing"),
    ):
        if change:
            change()
        assert re.search(words, rebuilt(**options)), words
    (found,) = Index.open(path).search(vector=np.eye(16)[0], separate=True, k=1)
    assert [hit.modality for hit in found.hits] == ["image", "audio", "text"]


def test_loaded_moments_are_those_of_the_index(own: Store, tmp_path: Path) -> None:
    other = gap_store(tmp_path / "other", 60)
    save_means(other, tmp_path / "moments")
    steps = (
        (own, str),
        (other, lambda: load_means(own, tmp_path / "moments")),
        (own, lambda: unload_means(own)),
    )
    for expected, change in steps:
        change()
        pipeline = build_index(own.path, output=tmp_path / "index").pipeline
        assert_close(
            pipeline.steps[1].state["centre/image"], expected.moments("image", "train").mean
        )
        assert (pipeline.provenance["moments"]["image"] == "loaded") == (expected is other)


def test_images_alone_are_found_by_texts_too(store: Store, tmp_path: Path) -> None:
    images, query, messages = store.load("image"), store.load("text").embeddings[0], Messages()
    alone = build_store(
        tmp_path / "alone", Rows.of("image", images.keys, images.embeddings), model=store.info.model
    )
    found = build_index(alone, output=tmp_path / "index", reporter=messages).search(
        vector=query, modality="text", k=5
    )
    best = np.argsort(-unit(images.embeddings) @ query)[:5]
    assert [hit.key for hit in found[0].hits] == [images.keys[row] for row in best]
    assert "only image rows" in messages.texts[0] and "means load FILE" in messages.texts[0]
    save_means(store, tmp_path / "moments")
    load_means(alone, tmp_path / "moments")
    again = build_index(alone, output=tmp_path / "index", reporter=messages)
    assert again.pipeline.name == "gr-clip" and messages.texts[1].endswith("its pipeline changed.")


def test_an_index_moves_with_its_store_and_needs_none(own: Store, tmp_path: Path) -> None:
    build_index(own, output=tmp_path / "index")
    query, moved, messages = own.load("text").embeddings[0], tmp_path / "elsewhere", Messages()
    for name in ("index", "c3-store"):
        os.renames(tmp_path / name, moved / name)
    index = Index.open(moved / "index")
    index.search(key="img001", reporter=messages)
    shutil.rmtree(moved / "c3-store")
    assert len(index.search(vector=query, reporter=messages)[0].hits) == 10 and messages.texts == []


@pytest.mark.parametrize("preset", ["c3", "fair"])
def test_queries_of_an_exports_index_go_through_its_pipeline(
    own: Store, tmp_path: Path, preset: str
) -> None:
    export_store(own, output=tmp_path / "e", preset=preset, role="inference", dtype="float32")
    rows = Store.open(tmp_path / "e")
    index = build_index(rows, output=tmp_path / "i")
    raw = build_index(own, output=tmp_path / "raw", preset=preset)
    query = own.load("image").embeddings[4:5]
    for modality in ("image", "text"):
        (hits,) = index.rank(query, "image", only=modality)
        (expected,) = raw.rank(query, "image", only=modality)
        # A row of the export has gone through the pipeline already
        (result,) = index.search(key="img004", only=modality)
        for found in (hits, result.hits):
            assert [hit.key for hit in found] == [hit.key for hit in expected]
            assert_close([hit.cosine for hit in found], [hit.cosine for hit in expected], 1e-5)
        mean = index.calibration.moments[modality].mean
        assert_close(mean, rows.moments(modality, "train" if preset == "c3" else None).mean)
    with pytest.raises(TransformError, match=r"the index .*: the steps differ"):
        build_index(own, output=tmp_path / "other", preset="c1").search(key="img004", store=rows)


def test_what_an_exports_index_refuses(own: Store, tmp_path: Path) -> None:
    export = export_store(own, output=tmp_path / "e", before_noise=True)
    for options in ({"preset": "c1"}, {"pipeline": export.pipeline}):
        with pytest.raises(UnusedOptionError, match=f"--{next(iter(options))} has no effect"):
            build_index(export.output, output=tmp_path / "i", **options)


def test_an_export_before_its_noise_gives_the_index_of_its_store(
    own: Store, tmp_path: Path
) -> None:
    export_store(own, output=tmp_path / "e", preset="c3", sigma=0.3, before_noise=True)
    index = build_index(tmp_path / "e", output=tmp_path / "i", factory="Flat")
    raw = build_index(own, output=tmp_path / "raw", preset="c3", factory="Flat")
    query = own.load("image").embeddings[4:5]
    for modality in ("image", "text"):
        (expected,) = raw.rank(query, "image", only=modality)
        (by_vector,) = index.rank(query, "image", only=modality)
        (by_key,) = index.search(key="img004", only=modality)
        for found in (by_vector, by_key.hits):
            assert [hit.key for hit in found] == [hit.key for hit in expected]
            assert_close([hit.cosine for hit in found], [hit.cosine for hit in expected], 1e-5)
    assert build_index(tmp_path / "e", output=tmp_path / "i", factory="Flat").record["added"] == 0


@pytest.mark.parametrize("query", [{"text": []}, {"image": []}, {"text": ()}])
def test_no_query_is_no_search(index: Index, query: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match="that is not empty"):
        index.search(**query)


def test_an_empty_text_is_no_query(index: Index) -> None:
    with pytest.raises(StoreError, match="A text to search for is empty"):
        index.search(["a dog", " "])


def test_a_search_names_the_command_that_made_the_index(own: Store) -> None:
    index = build_index(own, output=f"{own.path}-index")
    grow(own, 0, 12, 3)
    messages = Messages()
    index.search(vector=own.load("text").embeddings[0], reporter=messages)
    assert "`c3 embed --faiss` brings the index up to date" in messages.texts[0]


def few_texts(path: Path, count: int) -> Store:
    """A store of 60 train photos and a few captions, of a model without known moments."""
    keys = [f"photo{i}" for i in range(60)]
    photos = Rows.of("image", keys, make_vectors(60)[0], split=["train"] * 60)
    captions = [f"caption {i}" for i in range(count)]
    texts = Rows.of(
        "text", captions, make_vectors(60)[1][:count], split=["train"] * count, caption=captions
    )
    return build_store(path, photos, texts)


def test_one_caption_beside_many_photos_is_found(tmp_path: Path) -> None:
    store, messages = few_texts(tmp_path / "store", 1), Messages()
    index = build_index(store, output=tmp_path / "index", reporter=messages)
    assert "Nothing is centred" in " ".join(messages.texts)
    query = store.load("text").embeddings[0]
    for found in (index, Index.open(tmp_path / "index")):
        best = found.search(vector=query, modality="text")[0].hits[0]
        assert best.key == "caption 0" and best.score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("modality", "missing"), [("audio", "texts"), ("image", "texts"), ("text", "images")]
)
def test_what_is_missing_to_centre_an_index_is_said(
    tmp_path: Path, modality: str, missing: str
) -> None:
    vectors, _ = make_vectors(60)
    keys = [f"{row}" for row in range(60)]
    rows = Rows.of(modality, keys, vectors, split=["train"] * 60, caption=keys)
    messages = Messages()
    build_index(build_store(tmp_path / "store", rows), output=tmp_path / "index", reporter=messages)
    said = f"has only {modality} rows. That is fine unless you search with {missing}"
    assert said in " ".join(messages.texts)


def test_an_index_is_centred_as_soon_as_there_are_rows_enough(tmp_path: Path) -> None:
    build_index(few_texts(tmp_path / "store", 19), output=tmp_path / "index")
    shutil.rmtree(tmp_path / "store")
    store, messages = few_texts(tmp_path / "store", 20), Messages()
    index = build_index(store, output=tmp_path / "index", reporter=messages)
    assert "its moments changed" in " ".join(messages.texts)
    assert index.calibration.moments.keys() == {"image", "text"}


def test_the_index_beside_a_store_is_searched_if_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_index() == Path("c3-index")
    gap_store(tmp_path / "c3-store", 30)
    build_index("c3-store", output="c3-store-index", factory="SQfp16", preset="c1")
    assert find_index().name == "c3-store-index"
    build_index("c3-store")
    assert find_index() == Path("c3-index")


def test_a_store_is_no_index(tmp_path: Path) -> None:
    gap_store(tmp_path / "c3-store", 30)
    with pytest.raises(StoreError, match=r"is a store, not an index\.\s+Build an index of it"):
        Index.open(tmp_path / "c3-store")


def test_a_search_does_not_see_the_nprobe_of_another_thread(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(store, output=tmp_path / "index", factory="IVF8,Flat")
    rows = store.load("text").embeddings[:20]

    def search(nprobe: int) -> list[list[int]]:
        hits = index.rank(rows, "text", 200, by="row", nprobe=nprobe)
        return [[hit.row for hit in of_query] for of_query in hits]

    expected = search(8)
    threads = []

    def set_while_another_searches(faiss_index: Any, nprobe: int | None) -> None:
        set_nprobe(faiss_index, nprobe)
        if nprobe == 8:
            threads.append(Thread(target=search, args=(1,)))
            threads[-1].start()
            threads[-1].join(0.3)

    monkeypatch.setattr(module, "set_nprobe", set_while_another_searches)
    found = search(8)
    for thread in threads:
        thread.join()
    assert found == expected


def test_the_recall_of_few_rows_is_that_of_all_of_them(tmp_path: Path) -> None:
    texts = Rows.of("text", ["a", "b", "c"], unit_rows(3, 16))
    store = build_store(tmp_path / "store", texts)
    index = build_index(store, output=tmp_path / "index", factory="Flat")
    assert index.record["recall@3"] == 1


def test_opening_and_searching_do_not_import_pandas(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pyarrow imports pandas only if it is installed")
    columns: Any = {"price": ["1", "", "3.5", "4"], "colour": ["red", None, "red", "blue"]}
    images = Rows.of("image", [*"abcd"], unit_rows(4, 8), split=["train"] * 4, **columns)
    texts = Rows.of("text", ["e"], unit_rows(1, 8), image_key=["a"], split=["val"])
    build_store(tmp_path / "store", images, texts, columns=dict.fromkeys(columns, "string"))
    index = build_index(tmp_path / "store", output=tmp_path / "index")
    command = [sys.executable, "-c", SEARCHES, str(index.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
