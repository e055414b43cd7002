"""What a store has is recorded: every loss is found, by `c3 verify` and by whatever reads the store."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.connect import read_features
from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.errors import IncompleteStoreError, StoreError
from c3tools.export import export_store
from c3tools.geometry.report import gap_report
from c3tools.io.locations import remove
from c3tools.store import Rows, Shard, Store, write_shard
from c3tools.store.manifest import Manifest
from c3tools.store.means import compute_means, load_means, unload_means
from c3tools.store.merge import merge_stores
from c3tools.store.split import split_store
from c3tools.store.verify import repair_store, verify_store
from tests.conftest import C3, build_store, copy_photos, put_store, store_files, unit_rows
from tests.embedding.test_embed import SMALL, Recorder, files
from tests.servers import Faults
from tests.stores import corruptions, make_early, one_byte_changed, whole_store

Put = Callable[[Path], Path]


def found(place: Path) -> list[tuple[str, str]]:
    return [(finding.check, finding.where) for finding in verify_store(place).defects]


def test_every_proper_subset_of_the_files_is_told_by_the_exit_code(c3: C3, tmp_path: Path) -> None:
    whole = whole_store(tmp_path / "whole", images=4, part_rows=2).path
    everything = [file.relative_to(whole) for file in store_files(whole)]
    assert len(everything) == 16  # 2 shards of images and 2 of texts, store.json, manifest, failures, loaded moments
    assert c3("verify", whole).exit_code == 0
    draw = random.Random(16)
    subsets = [set(everything) - {file} for file in everything]
    while len(subsets) < 220:
        subsets.append(set(draw.sample(everything, draw.randrange(len(everything)))))
    codes: dict[int, int] = {}
    for subset in subsets:
        part = tmp_path / "part"
        part.mkdir()
        for file in subset:
            (part / file).parent.mkdir(exist_ok=True)
            (part / file).hardlink_to(whole / file)
        code = c3("verify", part).exit_code
        codes[code] = codes.get(code, 0) + 1
        assert code in ((1, 3) if Path("store.json") not in subset else (3,)), sorted(map(str, subset))
        shutil.rmtree(part)
    assert codes[3] > 120  # the others have neither store.json nor a whole shard that repeats it: no store at all


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (["image"], ("files", "image")),
        (["text"], ("files", "text")),
        (["text/_part-00002.json", "text/_part-00002.moments.safetensors", "text/part-00002.parquet"], "text"),
        (["image/_part-00001.json", "image/_part-00001.moments.safetensors", "image/part-00001.parquet"], "image"),
        (["image/part-00001.parquet"], ("files", "image/part-00001.parquet")),
        (["image/_part-00001.moments.safetensors"], ("files", "image/_part-00001.moments.safetensors")),
        (["failures.parquet"], ("files", "failures.parquet")),
        (["borrowed-moments.safetensors"], ("files", "borrowed-moments.safetensors")),
        (["manifest.json"], ("manifest", "manifest.json")),
    ],
)
def test_a_loss_is_named_and_readers_refuse(tmp_path: Path, lost: list[str], expected: Any) -> None:
    path = whole_store(tmp_path / "s").path
    for name in lost:
        shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()
    result = verify_store(path)
    assert not result.whole
    if isinstance(expected, str):
        part = lost[0].split("-")[1][:5]
        expected = ("files", f"{expected}/part-{part}.parquet")
    assert expected in [(finding.check, finding.where) for finding in result.defects]
    if lost != ["manifest.json"]:
        with pytest.raises(IncompleteStoreError, match=r"is incomplete: .* is missing") as error:
            Store.open(path)
        assert "c3 embed" in str(error.value.remedy)
        assert "c3 verify" in str(error.value.remedy)


def test_a_loss_by_url(tmp_path: Path, s3: Faults) -> None:
    path = whole_store(tmp_path / "s").path
    shutil.rmtree(path / "image")
    place = put_store(path, "s3://bucket/s")
    s3.every = 7
    assert ("files", "image") in found(place)
    before = s3.requests
    with pytest.raises(IncompleteStoreError, match=r"image/_part-00000\.json is missing, and 8 more"):
        Store.open("s3://bucket/s")
    assert s3.requests - before < 25  # two manifests and listings, store.json, and what fails


def test_every_reader_refuses(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    shutil.rmtree(path / "image")
    readers: list[Callable[[], object]] = [
        lambda: compute_means(path),
        lambda: gap_report(path),
        lambda: export_store(path, tmp_path / "export"),
        lambda: read_features(store=path),
        lambda: merge_stores(tmp_path / "merged", [path, path]),
        lambda: split_store(tmp_path / "split", path),
    ]
    for reader in readers:
        with pytest.raises(IncompleteStoreError):
            reader()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["elsewhere.safetensors", "s"]


def test_commands_say_what_is_lost(c3: C3, tmp_path: Path) -> None:
    path = whole_store(tmp_path / "c3-store").path
    shutil.rmtree(path / "image")
    for command in ("means", "gap-report", "export", "train-decoder", "ablate", "index"):
        options = ("--sigma", "0.1") if command in ("train-decoder", "ablate") else ()
        result = c3(command, *options)
        assert result.exit_code == 1, command
        assert "is incomplete: image/_part-00000.json is missing, and 8 more" in result.stderr, command


def test_a_store_in_the_making_is_read_and_this_is_said(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    recorder = Recorder()
    store = Store.open(path, reporter=recorder)
    assert recorder.messages == []
    rows = unit_rows(3, store.info.dim)
    write_shard(path, store.info, Shard("text", 3, rows, {"key": list("abc")}))
    assert Store.open(path, reporter=recorder).count("text") == 63
    assert "is unfinished: `c3 embed` is writing to it" in recorder.messages[0]
    assert found(path) == [("unfinished", "text")]
    (path / "manifest.json").unlink()
    assert Store.open(path, reporter=recorder).count("text") == 63
    assert "has no manifest.json" in recorder.messages[1]


def test_a_shard_of_another_copy_is_told(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    other = build_store(tmp_path / "t", Rows.of("image", [f"x{i}" for i in range(10)], unit_rows(10, 12, 9)))
    for file in (other.path / "image").iterdir():
        shutil.copyfile(file, path / "image" / file.name)
    assert ("manifest", "image/_part-00000.json") in found(path)


def test_every_byte_of_the_manifest_is_guarded_and_it_is_written_anew(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s", images=4, part_rows=2).path
    content = (path / "manifest.json").read_bytes()
    for position in range(0, len(content), 5):
        with one_byte_changed(path / "manifest.json", position, 0x20 if position % 2 else 1), pytest.raises(StoreError):
            Manifest.load(path)
    (path / "manifest.json").write_bytes(content[:-9])
    result = verify_store(path)
    assert [(finding.check, finding.where) for finding in result.findings] == [("manifest", "manifest.json")]
    repair_store(result)
    assert result.whole
    assert (path / "manifest.json").read_bytes() == content
    with pytest.raises(StoreError, match="no store"):
        verify_store(tmp_path / "none")


def test_an_empty_store_and_one_of_failures_alone_are_not_whole(c3: C3, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "broken.jpg").write_text("no image")
    embed_corpus(read_corpus([tmp_path / "p"]), tmp_path / "s", encoder, **SMALL)
    assert found(tmp_path / "s") == [("empty", "store.json")]
    result = c3("verify", "s")
    assert result.exit_code == 3
    assert "every input failed" in result.stderr


def test_texts_of_an_image_that_failed_are_no_loss_and_those_of_a_lost_one_are(
    encoder: Encoder, tmp_path: Path
) -> None:
    folder = copy_photos(tmp_path / "p", 3)
    (folder / "broken.jpg").write_text("no image")
    with (folder / "captions.jsonl").open("a") as file:
        file.write(json.dumps({"image": "broken.jpg", "captions": ["what it would show"]}) + "\n")
    embed_corpus(read_corpus([folder]), tmp_path / "s", encoder, **SMALL)
    assert verify_store(tmp_path / "s").findings == []
    # an early store says by its failures alone which images are lost
    make_early(tmp_path / "s")
    for lost in (tmp_path / "s" / "image").iterdir():
        lost.unlink()
    result = verify_store(tmp_path / "s")
    assert [f.check for f in result.defects] == ["manifest"]
    assert any("its texts name images" in f.what for f in result.findings)


def test_texts_alone_are_whole(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("file_name,caption\na.jpg,a dog\nb.jpg,a cat\n")
    embed_corpus(read_corpus([tmp_path / "c.csv"]), tmp_path / "s", encoder, **SMALL)
    assert Store.open(tmp_path / "s").load("text").items == ["a", "b"]
    assert verify_store(tmp_path / "s").findings == []


def test_lost_shards_are_made_again_to_the_same_bytes(encoder: Encoder, tmp_path: Path) -> None:
    corpus = read_corpus([copy_photos(tmp_path / "p", 4)])
    embed_corpus(corpus, tmp_path / "s", encoder, **SMALL)
    before = files(tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "image")
    for file in (tmp_path / "s" / "text").glob("*part-00001*"):
        file.unlink()
    recorder = Recorder()
    summary = embed_corpus(corpus, tmp_path / "s", encoder, **SMALL, reporter=recorder)
    assert "9 files that" in recorder.messages[0]
    assert summary.lost == []
    assert files(tmp_path / "s") == before


def test_what_other_inputs_cannot_bring_back_stays_lost(encoder: Encoder, tmp_path: Path) -> None:
    embed_corpus(read_corpus([copy_photos(tmp_path / "p", 4)]), tmp_path / "s", encoder, **SMALL)
    shutil.rmtree(tmp_path / "s" / "image")
    (tmp_path / "more.txt").write_text("a dog\na cat\n")
    summary = embed_corpus(read_corpus([tmp_path / "more.txt"]), tmp_path / "s", encoder, **SMALL)
    assert summary.lost == ["image shard 0 (3 rows)", "image shard 1 (1 row)"]
    assert any("are missing and were not made" in note for note in summary.notes())
    assert found(tmp_path / "s") == [("files", "image")]
    # one photo of the four takes the place of a lost shard, and is not taken for it
    summary = embed_corpus(read_corpus([copy_photos(tmp_path / "q", 1)]), tmp_path / "s", encoder, **SMALL)
    assert summary.lost == ["image shard 0 (3 rows)", "image shard 1 (1 row)"]


@pytest.mark.parametrize(("put", "cut"), [("disk", None), ("disk", 1), ("disk", 3), ("s3", None)], indirect=["put"])
def test_an_early_store_is_read_renamed_when_written_to_and_mixed_never(
    encoder: Encoder, tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch, cut: int | None
) -> None:
    corpus = read_corpus([copy_photos(tmp_path / "p", 2)])
    first = read_corpus([copy_photos(tmp_path / "q", 1)])
    for name in ("s", "t"):
        embed_corpus(first, tmp_path / name, encoder, **SMALL)
    make_early(tmp_path / "s")
    place = put(tmp_path / "s")
    assert found(place) == [("manifest", "manifest.json")]
    early, fresh = Store.open(place), Store.open(tmp_path / "t")
    np.testing.assert_array_equal(early.moments("text").mean, fresh.moments("text").mean)
    assert early.split_counts("image") == fresh.split_counts("image")
    merge_stores(tmp_path / "merged", [tmp_path / "t", place], keep="first")
    if cut is not None:  # the run that renames is killed at this removal
        calls = []

        def cutting(path: Path) -> None:
            calls.append(path)
            if len(calls) == cut:
                raise KeyboardInterrupt
            remove(path)

        with monkeypatch.context() as patch:
            patch.setattr("c3tools.store.shards.remove", cutting)
            with pytest.raises(KeyboardInterrupt):
                embed_corpus(corpus, place, encoder, **SMALL)
        assert Store.open(place).count("text") == 5
    for store in (place, tmp_path / "t"):
        embed_corpus(corpus, store, encoder, **SMALL)
    if place == tmp_path / "s":
        assert files(tmp_path / "s") == files(tmp_path / "t")
    assert verify_store(place).findings == []


def test_repair_records_an_early_store(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s", images=20).path
    before = {file.relative_to(path): file.read_bytes() for file in store_files(path)}
    make_early(path)
    (path / "image" / "part-00001.moments.safetensors").write_bytes(b"x")
    place = put(path)
    result = verify_store(place, repair=True)
    assert result.whole, result.findings
    assert verify_store(place).findings == []
    if place == path:
        assert {file.relative_to(path): file.read_bytes() for file in store_files(path)} == before


def test_loaded_moments_are_recorded_without_the_shards_of_an_unfinished_run(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    write_shard(path, Store.open(path).info, Shard("text", 3, unit_rows(3, 12), {"key": list("abc")}))
    unload_means(path)
    assert not (path / "borrowed-moments.safetensors").exists()
    assert found(path) == [("unfinished", "text")]
    load_means(path, tmp_path / "elsewhere.safetensors")
    assert found(path) == [("unfinished", "text")]
    (path / "borrowed-moments.safetensors").unlink()
    unload_means(path)  # forgets what is lost
    assert found(path) == [("unfinished", "text")]


def test_corruptions_of_a_recorded_store_are_not_told_twice(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    for file, position, flip in corruptions(path, 20, seed=3):
        if file.name not in ("store.json", "manifest.json"):
            with one_byte_changed(file, position, flip):
                places = [finding.where for finding in verify_store(path).defects if finding.check != "pairing"]
                assert len(places) == len(set(places)), places


def test_a_number_that_is_none_is_damage(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s", images=3).path / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"]["image"]["part-00000"]["rows"] = float("inf")
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        Manifest.load(path.parent)
