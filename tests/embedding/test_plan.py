"""`c3 embed --update` and `--prune`: what changed and what has gone, found without reading images."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from c3tools.corpus import Corpus, TextItem
from c3tools.embedding import embed
from c3tools.embedding.plan import plan_corpus
from c3tools.encoders import Encoder
from c3tools.errors import StoreError
from c3tools.store import Failure, Shard, Store, StoreInfo, create_store, write_shard
from c3tools.store import manifest as manifest_module
from c3tools.store.verify import verify_store
from tests.conftest import C3, MODEL, copy_photos, put_store, unit_rows
from tests.corpus.packing import damage_column, photos_of, webdataset, write_hf_parquet, write_tar
from tests.embedding.test_embed import files, run
from tests.servers import Faults


def edit_captions(folder: Path, change: dict[str, list[str] | None]) -> None:
    """Replace the captions of some images in captions.jsonl; None removes the line."""
    path = folder / "captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edited = [{**row, "captions": change.get(row["image"], row["captions"])} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in edited if row["captions"] is not None))


def recolour(path: Path, *, seed: int = 0) -> None:
    """Write another image to the path."""
    noise = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def rows(store: Path, modality: str) -> dict[str, tuple[Any, ...]]:
    """The rows of a store by key: embedding and columns."""
    loaded = Store.open(store, incomplete=True).load(modality)
    columns = [loaded.column(name) for name in loaded.table.column_names]
    return {
        key: (embedding.tobytes(), *values)
        for key, embedding, *values in zip(loaded.keys, loaded.embeddings, *columns, strict=True)
    }


def assert_alike(one: dict[str, tuple[Any, ...]], other: dict[str, tuple[Any, ...]]) -> None:
    """Rows are the same, but for roundings of embeddings that were encoded in other batches."""
    assert {key: row[1:] for key, row in one.items()} == {key: row[1:] for key, row in other.items()}
    for key, row in one.items():
        np.testing.assert_allclose(np.frombuffer(row[0], "f4"), np.frombuffer(other[key][0], "f4"), atol=2e-3)


def edited(encoder: Encoder, tmp_path: Path) -> tuple[Path, list[str]]:
    """A store of 7 photos whose folder was then edited; the folder, and the names of its photos."""
    folder = copy_photos(tmp_path / "p", 7)
    run(encoder, folder, tmp_path / "s")
    names = sorted(path.name for path in folder.glob("*.jpg"))
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    own = {line["image"]: line["captions"] for line in lines}
    recolour(folder / names[1])
    (folder / names[2]).unlink()
    (folder / names[4]).rename(folder / "renamed.jpg")
    changed = ["another caption", *own[names[0]][1:]]
    edit_captions(folder, {names[0]: changed, names[2]: None, names[5]: own[names[5]][:3]})
    return folder, names


def test_updated_and_pruned_it_has_the_rows_of_a_fresh_store(encoder: Encoder, tmp_path: Path) -> None:
    folder, _ = edited(encoder, tmp_path)
    summary = run(encoder, folder, tmp_path / "s", update=True, prune=True)
    image, text = summary.modalities["image"], summary.modalities["text"]
    assert (image.embedded, image.updated, image.removed) == (1, 1, 2)
    assert (text.embedded, text.updated, text.removed) == (0, 1, 12)
    run(encoder, folder, tmp_path / "fresh")
    for modality in ("image", "text"):
        assert_alike(rows(tmp_path / "s", modality), rows(tmp_path / "fresh", modality))
    assert verify_store(tmp_path / "s").findings == []
    before = files(tmp_path / "s")
    again = run(encoder, folder, tmp_path / "s", update=True, prune=True)
    nothing = [(m.embedded, m.updated, m.removed, m.changed, m.gone) for m in again.modalities.values()]
    assert nothing == [(0, 0, 0, [], [])] * 2
    assert files(tmp_path / "s") == before


def test_an_update_alone_has_the_bytes_of_a_fresh_store(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 4)
    run(encoder, folder, tmp_path / "s")
    names = sorted(path.name for path in folder.glob("*.jpg"))
    recolour(folder / names[2])
    edit_captions(folder, {names[0]: ["another", "and another", "a third", "a fourth", "the last"]})
    summary = run(encoder, folder, tmp_path / "s", update=True)
    assert [m.updated for m in summary.modalities.values()] == [1, 5]
    run(encoder, folder, tmp_path / "fresh")
    assert files(tmp_path / "s") == files(tmp_path / "fresh")


def test_other_bytes_of_the_same_size_are_told_by_the_time_of_writing(encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for name, seed in (("a.bmp", 0), ("b.bmp", 1)):
        recolour(folder / name, seed=seed)
    run(encoder, folder, tmp_path / "s")
    assert run(encoder, folder, tmp_path / "s").modalities["image"].changed == []
    before = rows(tmp_path / "s", "image")
    recolour(folder / "a.bmp", seed=2)  # as long as before
    assert run(encoder, folder, tmp_path / "s").modalities["image"].changed == ["a"]
    run(encoder, folder, tmp_path / "s", update=True)
    after = rows(tmp_path / "s", "image")
    assert after["b"] == before["b"]
    assert after["a"] != before["a"]
    assert run(encoder, folder, tmp_path / "s").modalities["image"].changed == []


def test_a_dry_run_writes_nothing_and_loads_no_model(
    encoder: Encoder, tmp_path: Path, c3: C3, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = edited(encoder, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    monkeypatch.setattr("c3tools.embedding.run.resolve_encoder", None)
    result = c3("embed", folder, "--store", "s", "--update", "--prune", "--dry-run")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "dry run: nothing was written" in said
    assert f"1 image input changed after embedding (--update embeds them again): {Path(names[1]).stem}" in said
    assert "2 image inputs no longer in the source (--prune removes their rows)" in said
    value = json.loads(c3("embed", folder, "--store", "s", "--update", "--prune", "--dry-run", "--json").stdout)
    planned = {name: (m["to_embed"], m["to_update"], m["to_remove"]) for name, m in value["modalities"].items()}
    assert planned == {"image": (1, 1, 2), "text": (0, 1, 12)}
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    new = embed(folder, tmp_path / "none", dry_run=True).summary
    assert {name: m.to_embed for name, m in new.modalities.items()} == {"image": 6, "text": 23}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_interrupted_update_loses_nothing_and_is_continued(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    folder, _ = edited(encoder, tmp_path)
    shutil.copytree(tmp_path / "s", tmp_path / "whole")
    run(encoder, folder, tmp_path / "whole", update=True, prune=True)
    calls: list[Path] = []
    move = manifest_module.move  # type: ignore[attr-defined]

    def cutting(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) > place:
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(manifest_module, "move", cutting)
        run(encoder, folder, tmp_path / "s", update=True, prune=True)
    with pytest.raises(StoreError):
        Store.open(tmp_path / "s")  # neither the store before nor the one after
    run(encoder, folder, tmp_path / "s", update=True, prune=True)
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_rows_of_other_paths_are_left_alone(encoder: Encoder, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    photos = copy_photos(tmp_path / "p", 4)
    names = sorted(path.name for path in photos.glob("*.jpg"))
    for folder, chosen in ((one, names[:2]), (two, names[2:])):
        shutil.copytree(photos, folder)
        for path in folder.glob("*.jpg"):
            if path.name not in chosen:
                path.unlink()
        edit_captions(folder, {name: None for name in names if name not in chosen})
    run(encoder, one, tmp_path / "s")
    before = rows(tmp_path / "s", "text")
    summary = run(encoder, two, tmp_path / "s", update=True, prune=True)
    assert [[*m.gone, *m.changed] for m in summary.modalities.values()] == [[], []]
    assert before.items() <= rows(tmp_path / "s", "text").items()
    # a file of another folder with a key that is taken is neither a change nor embedded
    recolour(two / names[0])
    edit_captions(two, {names[2]: ["one", "two", "three", "four", "five"]})
    with (two / "captions.jsonl").open("a") as file:
        file.write(json.dumps({"image": names[0], "captions": ["of another image"]}) + "\n")
    summary = run(encoder, two, tmp_path / "s", update=True, prune=True)
    assert summary.modalities["image"].from_elsewhere == [Path(names[0]).stem]
    assert summary.modalities["text"].updated == 5
    text = rows(tmp_path / "s", "text")
    assert all(text[key] == row for key, row in before.items())
    assert any("not embedded: the store has their keys from other files" in note for note in summary.notes())


def test_failures_whose_file_has_gone_or_was_mended(encoder: Encoder, tmp_path: Path) -> None:
    folder = copy_photos(tmp_path / "p", 2)
    for name in ("gone.jpg", "mended.jpg"):
        (folder / name).write_text("no image")
    assert run(encoder, folder, tmp_path / "s").failures_in_store == 2
    (folder / "gone.jpg").unlink()
    recolour(folder / "mended.jpg")
    assert run(encoder, folder, tmp_path / "s").failures_in_store == 2
    later = time.time() + 1  # other file systems tell seconds alone
    os.utime(folder / "mended.jpg", (later, later))
    summary = run(encoder, folder, tmp_path / "s", update=True, prune=True)
    assert (summary.modalities["image"].embedded, summary.failures_in_store) == (1, 0)
    assert verify_store(tmp_path / "s").findings == []


@pytest.mark.parametrize("shard_size", [1, 9])
def test_a_lost_shard_is_made_again_where_another_number_is_free(
    encoder: Encoder, tmp_path: Path, shard_size: int
) -> None:
    folder = copy_photos(tmp_path / "p", 3)
    run(encoder, folder, tmp_path / "s", shard_size=1)
    min(folder.glob("*.jpg")).unlink()
    run(encoder, folder, tmp_path / "s", shard_size=1, prune=True)  # shard 0 is no more
    before = rows(tmp_path / "s", "image")
    for number in (1, 2):
        (tmp_path / "s" / "image" / f"part-0000{number}.parquet").unlink()
    assert run(encoder, folder, tmp_path / "s", shard_size=shard_size).lost == []
    assert rows(tmp_path / "s", "image").keys() == before.keys()  # the last bits depend on what is batched together
    assert verify_store(tmp_path / "s").findings == []


def test_texts_that_stand_alone(encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("a dog\na cat\na bird\n")
    (tmp_path / "other.txt").write_text("a tree\n")
    run(encoder, [file, tmp_path / "other.txt"], tmp_path / "s")
    file.write_text("a dog\na fish\n")
    summary = run(encoder, file, tmp_path / "s", update=True, prune=True)
    assert (summary.modalities["text"].updated, summary.modalities["text"].removed) == (1, 1)
    texts = Store.open(tmp_path / "s").load("text")
    assert sorted(texts.captions) == ["a dog", "a fish", "a tree"]


def test_members_of_tars(encoder: Encoder, tmp_path: Path) -> None:
    chosen = photos_of(copy_photos(tmp_path / "p", 3))
    (tmp_path / "t").mkdir()
    write_tar(tmp_path / "t" / "0.tar", webdataset(chosen[:2]))
    write_tar(tmp_path / "t" / "1.tar", webdataset(chosen[2:]))
    run(encoder, tmp_path / "t", tmp_path / "s")
    write_tar(tmp_path / "t" / "0.tar", webdataset(chosen[:1]))
    summary = run(encoder, tmp_path / "t" / "0.tar", tmp_path / "s", prune=True)
    assert summary.modalities["image"].gone == [chosen[1].key]  # the other tar was not given
    (tmp_path / "t" / "1.tar").unlink()
    summary = run(encoder, tmp_path / "t", tmp_path / "s", prune=True)
    assert summary.modalities["image"].gone == [chosen[2].key]
    assert Store.open(tmp_path / "s").count("text") == Store.open(tmp_path / "s").count("image") * 5
    assert verify_store(tmp_path / "s").findings == []


def test_rows_of_damaged_row_groups_are_kept(encoder: Encoder, tmp_path: Path) -> None:
    chosen = photos_of(copy_photos(tmp_path / "p", 4))
    path, columns = tmp_path / "x.parquet", {"image": [p.content for p in chosen], "key": [p.key for p in chosen]}
    pq.write_table(pa.table(columns), path, row_group_size=1, use_dictionary=False)
    run(encoder, path, tmp_path / "s")
    for group in (1, 2):
        damage_column(path, group, 1)
    summary = run(encoder, path, tmp_path / "s", prune=True)
    assert (summary.modalities["image"].gone, Store.open(tmp_path / "s").count("image")) == ([], 4)
    assert summary.failures_in_store == 2
    pq.write_table(pa.table(columns).slice(1), path)
    summary = run(encoder, path, tmp_path / "s", prune=True)
    assert (summary.modalities["image"].gone, summary.failures_in_store) == ([chosen[0].key], 0)


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_another_tar_or_table_with_the_same_keys_is_not_the_same_images(
    encoder: Encoder, tmp_path: Path, form: str
) -> None:
    chosen = photos_of(copy_photos(tmp_path / "p", 4))
    renamed = [photo._replace(name=first.name) for photo, first in zip(chosen[2:], chosen[:2], strict=True)]
    files = [tmp_path / f"{number}.{form}" for number in range(2)]
    for file, photos in zip(files, (chosen[:2], renamed), strict=True):
        if form == "tar":
            write_tar(file, webdataset(photos))
        else:
            write_hf_parquet(file, photos)
    run(encoder, files[0], tmp_path / "s")
    before = rows(tmp_path / "s", "text")
    summary = run(encoder, files[1], tmp_path / "s", update=True)
    keys = [photo.key for photo in chosen[:2]]
    assert summary.modalities["image"].from_elsewhere == keys
    assert summary.modalities["text"].changed == []
    assert rows(tmp_path / "s", "text") == before
    files[0].rename(tmp_path / f"moved.{form}")
    summary = run(encoder, tmp_path / f"moved.{form}", tmp_path / "s")
    assert [(m.already, m.from_elsewhere, m.changed) for m in summary.modalities.values()] == [
        (2, [], []),
        (10, [], []),
    ]


def test_a_store_by_url_is_updated_and_pruned(encoder: Encoder, tmp_path: Path, s3: Faults) -> None:
    folder, _ = edited(encoder, tmp_path)
    place = put_store(tmp_path / "s", "s3://bucket/s")
    s3.every = 7
    for store in (place, tmp_path / "s"):
        run(encoder, folder, store, update=True, prune=True)
    for modality in ("image", "text"):
        assert rows(place, modality) == rows(tmp_path / "s", modality)
    assert verify_store(place).findings == []


def test_a_full_disk_in_an_update_loses_nothing(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = edited(encoder, tmp_path)
    before = rows(tmp_path / "s", "text")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("c3tools.embedding.shards.write_rows", full)
    with pytest.raises(StoreError, match="No space left"):
        run(encoder, folder, tmp_path / "s", update=True, prune=True)
    assert rows(tmp_path / "s", "text") == before


KEYS = st.lists(st.sampled_from("abcdefghij"), unique=True)
CAPTIONS = st.sampled_from(["one", "two"])


@settings(max_examples=15, deadline=None)
@given(st.data(), KEYS.filter(len), KEYS, st.integers(1, 4))
def test_the_plan_is_that_of_plain_dicts(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    stored: list[str],
    given_now: list[str],
    size: int,
) -> None:
    """Texts ``x#0`` of the images x; some failed before, and files tell nothing of images that are not given."""
    folder = tmp_path_factory.mktemp("plan") / "s"
    before = {f"{key}#{n}": data.draw(CAPTIONS) for key in stored for n in range(2)}
    texts = [TextItem(f"{key}#0", data.draw(CAPTIONS), key, None) for key in given_now]
    failed = data.draw(st.sets(st.sampled_from([text.key for text in texts]))) if texts else set()
    failures = [Failure(key, "", "encode", "ValueError", "no") for key in sorted(failed - before.keys())]
    info, vectors, keys = StoreInfo(MODEL, 4), unit_rows(len(before), 4), list(before)
    create_store(folder, info)
    for part, start in enumerate(range(0, len(keys), 3)):
        own = keys[start : start + 3]
        columns = {
            "key": own,
            "caption": [before[key] for key in own],
            "image_key": [key.partition("#")[0] for key in own],
            "split": ["val"] * len(own),
        }
        write_shard(folder, info, Shard("text", part, vectors[start : start + 3], columns, [] if part else failures))
    plan = plan_corpus(Store.open(folder), Corpus(texts=texts), shard_size=size)["text"]
    changed = [text for text in texts if text.key in before and text.caption != before[text.key]]
    part_of = {key: number // 3 for number, key in enumerate(keys)}
    found = [(number, text) for number, part in plan.changed for text in part]
    assert sorted(found) == sorted((part_of[text.key], text._replace(split="val")) for text in changed)
    assert sorted(plan.summary.changed) == sorted(text.key for text in changed)
    gone = [key for key in before if key.endswith("#1") and key.partition("#")[0] in given_now]
    assert sorted(plan.summary.gone) == sorted(gone)
    assert plan.gone == {part: sorted(k for k in gone if part_of[k] == part) for part in {part_of[k] for k in gone}}
    pending = [text for text in texts if text.key not in before and text.key not in failed]
    expected = [pending[start : start + size] for start in range(0, len(pending), size)]
    assert list(plan.shards) == list(enumerate(expected, start=-(-len(keys) // 3)))
    assert plan.summary.already == sum(text.key in before for text in texts)
    assert plan.summary.failed_before == len(failures)
