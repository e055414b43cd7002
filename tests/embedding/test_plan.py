"""`c3 embed --update` and `--prune`: what changed and what has gone, found without reading
images."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from c3tools.corpus.reading import read_corpus
from c3tools.corpus.splits import splits_by_hash
from c3tools.embedding.embed import embed
from c3tools.embedding.summary import EmbedSummary
from c3tools.errors import StoreError
from c3tools.store import Store, StoreWriter
from c3tools.store.verify import verify_store
from tests.conftest import C3, Messages, as_json, contents, done, write_jsonl
from tests.corpus.packing import damage_column, photos_of, webdataset, write_tar
from tests.stores import colour_corpus, colour_encoder, embed_colours

RAINBOW = {"a": "red", "b": "lime", "c": "blue", "d": "gold", "e": "navy"}


def recolour(path: Path, colour: str) -> None:
    """Write another image to the path, at another time, though file systems may tell seconds
    alone."""
    Image.new("RGB", (3, 3), colour).save(path)
    later = time.time() + 2
    os.utime(path, (later, later))


def write_captions(folder: Path, captions: dict[str, list[str]], **more: str) -> None:
    rows = ({"image": f"{name}.png", "captions": texts, **more} for name, texts in captions.items())
    write_jsonl(folder / "captions.jsonl", *rows)


def rows(store: Path, modality: str = "image") -> dict[str, tuple[bytes, Any]]:
    """The rows of a store by key: embedding and columns."""
    loaded = Store.open(store, incomplete=True).load(modality)
    both = zip(loaded.embeddings, loaded.table.to_pylist(), strict=True)
    return {row["key"]: (embedding.tobytes(), row) for embedding, row in both}


def counts(summary: EmbedSummary) -> dict[str, tuple[int, int, int]]:
    return {name: (m.embedded, m.updated, m.removed) for name, m in summary.modalities.items()}


def test_updated_and_pruned_it_has_the_rows_of_a_fresh_store(tmp_path: Path, c3: C3) -> None:
    folder, store = colour_corpus(tmp_path / "p", RAINBOW), tmp_path / "s"
    embed_colours(folder, store)
    recolour(folder / "b.png", "tan")
    (folder / "c.png").unlink()
    (folder / "d.png").rename(folder / "f.png")
    write_captions(
        folder, {"a": ["another", "a 1"], "b": ["b 0", "b 1"], "f": ["f 0", "f 1"], "e": ["e 0"]}
    )
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    dry = ("embed", folder, "--store", "s", "--update", "--prune", "--dry-run", "--json")
    planned = as_json(c3(*dry))["modalities"]
    expected = {"image": (1, 1, 2), "text": (2, 1, 5)}
    assert {
        name: (m["to_embed"], m["to_update"], m["to_remove"]) for name, m in planned.items()
    } == expected
    said = " ".join(c3(*dry[:-1]).stdout.split())
    assert (
        "nothing was written" in said
        and "1 image input changed after embedding" in said
        and "c, d" in said
    )
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert counts(embed_colours(folder, store, update=True, prune=True)) == expected
    embed_colours(folder, tmp_path / "fresh")
    for modality in ("image", "text"):
        assert rows(store, modality) == rows(tmp_path / "fresh", modality)
    assert verify_store(store).findings == []
    whole = contents(store)
    again = embed_colours(folder, store, update=True, prune=True)
    assert [
        (*counts(again)[name], *m.changed, *m.gone) for name, m in again.modalities.items()
    ] == [(0, 0, 0)] * 2
    assert contents(store) == whole


def test_an_update_alone_has_the_bytes_of_a_fresh_store(tmp_path: Path) -> None:
    folder, store = colour_corpus(tmp_path / "p", RAINBOW), tmp_path / "s"
    planned = embed(folder, store, dry_run=True).summary
    counted = [(m.to_embed, m.to_update, m.to_remove) for m in planned.modalities.values()]
    assert (counted, store.exists()) == ([(5, 0, 0), (10, 0, 0)], False)
    embed_colours(folder, store)
    recolour(folder / "b.png", "tan")  # of the same size
    write_captions(folder, {name: ["another", f"{name} 1"] for name in RAINBOW})
    assert embed_colours(folder, store).modalities["image"].changed == ["b"]
    assert counts(embed_colours(folder, store, update=True)) == {
        "image": (0, 1, 0),
        "text": (0, 5, 0),
    }
    embed_colours(folder, tmp_path / "fresh")
    assert contents(store) == contents(tmp_path / "fresh")


def test_rows_that_the_corpus_names_another_split_of_are_listed_and_keep_theirs(
    tmp_path: Path, c3: C3
) -> None:
    folder, store = colour_corpus(tmp_path / "p", {"a": "red", "d": "lime"}), tmp_path / "s"
    write_captions(folder, {"a": ["a 0"], "d": ["d 0"]}, split="train2017")
    embed_colours(folder, store)
    write_jsonl(
        folder / "captions.jsonl",
        {"image": "a.png", "captions": ["a 0"], "split": "test"},
        {"image": "d.png", "captions": ["d 0"], "split": "train"},  # by another name
    )
    whole = contents(store)
    summary = embed_colours(folder, store, update=True)
    assert {name: m.other_split for name, m in summary.modalities.items()} == {
        "image": ["a"],
        "text": ["a#0"],
    }
    assert "1 image input with another split in the corpus" in summary.notes()[0]
    assert (
        "c3 split --file TABLE -o NEW_STORE`, a table of keys and splits, changes"
        in (summary.notes()[0])
    )
    assert (
        "`c3 split --file t.csv -o NEW_STORE` changes"
        in (replace(summary, captions="t.csv").notes()[0])
    )
    assert contents(store) == whole
    said = c3("embed", folder, "--store", "s", "--dry-run").stderr
    assert "Splits of new inputs come from the field split" in said

    # where a hash decided, a name counts if it is another split
    write_captions(folder, {"a": ["a 0"], "d": ["d 0"]})
    embed_colours(folder, tmp_path / "hashed")
    write_captions(folder, {"a": ["a 0"], "d": ["d 0"]}, split="train")
    again = embed_colours(folder, tmp_path / "hashed").modalities["image"]
    assert (splits_by_hash(["a", "d"]), again.other_split) == (["train", "test"], ["d"])


def test_a_corpus_of_val_alone_is_split_by_hash_as_it_grows(tmp_path: Path) -> None:
    folder, store = tmp_path / "p", tmp_path / "s"
    colours = {"a": "red", "d": "lime"}
    said = Messages()
    for _ in range(2):
        colour_corpus(folder, colours)
        write_captions(folder, {name: [f"{name} 0"] for name in colours}, split="val2017")
        embed_colours(folder, store, reporter=said)
        rows = Store.open(store).load("image")
        assert rows.column("corpus_split") == ["val2017"] * len(colours)
        assert rows.column("split") == splits_by_hash([*colours])
        colours |= {"e": "blue", "f": "tan"}
    assert [text.partition(",")[0] for text in said.texts] == ["All rows belong to val"] * 2
    assert Store.open(store).load("image").splits == splits_by_hash(["a", "d", "e", "f"])

    # train arrives: names are written from now on, and it is said that rows in the store differ
    write_jsonl(
        folder / "captions.jsonl",
        *({"image": f"{name}.png", "captions": ["x"], "split": "val"} for name in "adef"),
        {"image": "g.png", "captions": ["g 0"], "split": "train"},
    )
    Image.new("RGB", (3, 3), "gold").save(folder / "g.png")
    summary = embed_colours(folder, store)
    assert summary.modalities["image"].other_split == ["a", "d", "e"]
    rows = Store.open(store).load("image")
    assert rows.column("split") == [*splits_by_hash(["a", "d", "e", "f"]), "train"]
    assert rows.column("corpus_split") == [*["val2017"] * 4, "train"]


def test_the_split_is_settled_and_the_name_of_the_corpus_stands_beside_it(tmp_path: Path) -> None:
    folder, store = colour_corpus(tmp_path / "p", RAINBOW), tmp_path / "s"
    splits = {"a": "train2017", "b": "restval", "c": "Base", "d": "", "e": None}
    write_jsonl(
        folder / "captions.jsonl",
        *({"image": f"{name}.png", "text": name, "split": word} for name, word in splits.items()),
    )
    embed_colours(folder, store)
    expected = ["train", "train", "base", *splits_by_hash(["d", "e"])]
    for modality in ("image", "text"):
        table = pq.read_table(store / modality)  # as another program reads it
        assert table["split"].to_pylist() == expected
        assert table["corpus_split"].to_pylist() == ["train2017", "restval", "Base", None, None]


def as_of_an_older_version(store: Path) -> None:
    """Write the splits as the corpus names them, in one column, as older versions did."""
    for shard in sorted(store.rglob("part-*.parquet")):
        table = pq.read_table(shard)
        place = table.column_names.index("split")
        table = table.set_column(place, "split", table["corpus_split"])
        pq.write_table(table.drop_columns(["corpus_split"]), shard)
    (store / "manifest.json").unlink()
    assert verify_store(store, repair=True).whole


@pytest.mark.parametrize("word", [None, "val", "train2017"])
def test_a_store_of_an_older_version_is_read_continued_and_left_as_it_is(
    tmp_path: Path, word: str | None
) -> None:
    folder, store = colour_corpus(tmp_path / "p", RAINBOW), tmp_path / "s"
    write_captions(folder, {name: [f"{name} 0"] for name in RAINBOW}, split=word or "")
    embed_colours(folder, store)
    new = Store.open(store).load("image").splits
    as_of_an_older_version(store)
    former = Store.open(store)
    if word != "val":  # older versions wrote no name then
        assert former.load("image").splits == new
        assert former.split_counts("image") == Counter(new)
    shards = {path: path.read_bytes() for path in store.rglob("part-*")}
    summary = embed_colours(folder, store, update=True, prune=True)
    assert counts(summary) == {"image": (0, 0, 0), "text": (0, 0, 0)}
    assert all(not modality.other_split for modality in summary.modalities.values())
    assert {path: path.read_bytes() for path in store.rglob("part-*")} == shards

    # A shard that is written again has both columns
    recolour(folder / "a.png", "tan")
    embed_colours(folder, store, update=True)
    first = pq.read_table(store / "image/part-00000.parquet")
    assert None not in first["split"].to_pylist()
    assert first["corpus_split"].to_pylist() == [word, word]
    assert verify_store(store).whole


def test_other_names_of_splits_are_written_as_they_are(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "p", {"a": "red", "d": "lime"})
    write_captions(folder, {"a": ["a 0"], "d": ["d 0"]}, split="base")
    embed_colours(folder, tmp_path / "s")
    store = Store.open(tmp_path / "s")
    assert store.load("image").splits == ["base", "base"]
    with pytest.raises(StoreError, match="no image rows in the split 'train'") as refusal:
        store.moments("image", "train")
    assert "base (2). `c3 split` assigns new ones." in str(refusal.value.remedy)


def test_rows_of_other_paths_are_left_alone(tmp_path: Path) -> None:
    one, two, s = (
        colour_corpus(tmp_path / "one", {"a": "red", "b": "lime"}),
        tmp_path / "two",
        tmp_path / "s",
    )
    colour_corpus(two, {"c": "blue", "d": "gold"})
    embed_colours(one, s)
    before = rows(s, "text")
    summary = embed_colours(two, s, update=True, prune=True)
    assert [[*m.gone, *m.changed] for m in summary.modalities.values()] == [[], []]
    write_captions(two, {"c": ["another", "c 1"], "d": ["d 0", "d 1"]})
    summary = embed_colours(two, s, update=True, prune=True)
    assert summary.modalities["text"].updated == 1
    assert before.items() <= rows(s, "text").items()


def test_an_image_that_changes_while_a_run_is_interrupted_is_embedded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = colour_corpus(tmp_path / "p", RAINBOW)
    for colour in ("tan", "pink"):  # files of the same size
        recolour(folder / "c.png", colour)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(StoreWriter, "finish", Mock(side_effect=KeyboardInterrupt))
            embed_colours(folder, tmp_path / "s", update=True)
    assert embed_colours(folder, tmp_path / "s", update=True).modalities["image"].updated == 1


@pytest.mark.parametrize(
    ("options", "left"), [({"update": True, "prune": True}, 0), ({"retry_failed": True}, 1)]
)
def test_failures_whose_file_has_gone_or_was_mended(
    tmp_path: Path, options: dict[str, Any], left: int
) -> None:
    folder, s = (
        colour_corpus(tmp_path / "p", {"a": "red", "gone": None, "mended": None}),
        tmp_path / "s",
    )
    for again, expected in ((False, (2, 0)), (False, (0, 2)), (True, (2, 0))):
        summary = embed_colours(folder, s, retry_failed=again)
        images = summary.modalities["image"]
        assert (images.failed, images.failed_before, summary.failures_in_store) == (*expected, 2)
    (folder / "gone.png").unlink()
    recolour(folder / "mended.png", "tan")
    assert embed_colours(folder, s).failures_in_store == 2  # it is not tried again
    summary = embed_colours(folder, s, **options)
    assert (summary.modalities["image"].embedded, summary.failures_in_store) == (1, left)
    assert verify_store(s).findings == []


def test_a_changed_image_that_cannot_be_read_keeps_its_row_and_is_tried_again(
    tmp_path: Path, c3: C3
) -> None:
    folder = colour_corpus(tmp_path / "p", {"a": "red", "b": "lime"})
    done(c3("embed", folder, "--workers", 0))
    before = rows(tmp_path / "c3-store")
    later = time.time() + 2
    (folder / "b.png").write_bytes(bytes((folder / "b.png").stat().st_size))
    os.utime(folder / "b.png", (later, later))
    done(c3("embed", folder, "--update", "--workers", 0))
    for options in (("--strict",), ("--strict", "--json")):
        result = c3("embed", folder, "--update", "--workers", 0, *options)
        assert result.exit_code == 1
    assert json.loads(result.stdout)["modalities"]["image"]["not_updated"] == ["b"]
    assert rows(tmp_path / "c3-store") == before


@pytest.mark.parametrize(("size", "parts"), [(1, [0, 1, 2]), (9, [1])])
def test_a_lost_shard_is_made_again_where_another_number_is_free(
    tmp_path: Path, size: int, parts: list[int]
) -> None:
    folder, s = colour_corpus(tmp_path / "p", RAINBOW), tmp_path / "s"
    embed_colours(folder, s)
    for name in "ab":
        (folder / f"{name}.png").unlink()
    embed_colours(folder, s, prune=True)  # shard 0 is no more
    before = rows(s)
    for number in (1, 2):
        (tmp_path / f"s/image/part-0000{number}.parquet").unlink()
    summary = embed_colours(folder, s, shard_size=size)
    assert (summary.lost, Store.open(s).parts("image")) == ([], parts)
    assert rows(s) == before
    assert verify_store(s).findings == []


def test_new_captions_have_the_split_of_their_image_in_the_store(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "p", {"a": "red"})
    write_captions(folder, {"a": ["a 0"]}, split="test")
    embed_colours(folder, tmp_path / "s")
    write_captions(folder, {"a": ["a 0", "a 1"]})
    embed_colours(folder, tmp_path / "s")
    assert Store.open(tmp_path / "s").load("text").column("split") == ["test", "test"]


def test_texts_that_stand_alone(tmp_path: Path) -> None:
    file, other = tmp_path / "lines.txt", tmp_path / "other.txt"
    file.write_text("a dog\na cat\na bird\n")
    other.write_text("a tree\n")
    embed_colours([file, other], tmp_path / "s")
    file.write_text("a dog\na fish\n")
    assert counts(embed_colours(file, tmp_path / "s", update=True, prune=True)) == {
        "text": (0, 1, 1)
    }
    assert sorted(Store.open(tmp_path / "s").load("text").captions) == ["a dog", "a fish", "a tree"]


def test_members_of_tars(tmp_path: Path) -> None:
    """They have the rows of their folder, too where one was cut at first."""
    folder, s = (
        colour_corpus(tmp_path / "p", {"a": "red", "b": "lime", "c": "blue"}),
        tmp_path / "s",
    )
    embed_colours(folder, tmp_path / "folder")
    chosen, zero = photos_of(folder), tmp_path / "t/0.tar"
    write_tar(tmp_path / "t/1.tar", webdataset(chosen[2:]))
    whole = write_tar(zero, webdataset(chosen[:2])).read_bytes()
    for content, failures in ((whole[:700], 1), (whole, 0)):
        zero.write_bytes(content)
        assert embed_colours(tmp_path / "t", s, workers=2).failures_in_store == failures
    expected, found = (rows(tmp_path / name) for name in ("folder", "s"))
    assert [row[0] for row in found.values()] == [expected[key][0] for key in found]
    assert found.keys() == expected.keys()
    write_tar(zero, webdataset(chosen[:1]))
    summary = embed_colours(zero, s, prune=True)
    assert summary.modalities["image"].gone == ["b"]  # the other tar was not given
    (tmp_path / "t/1.tar").unlink()
    assert embed_colours(tmp_path / "t", s, prune=True).modalities["image"].gone == ["c"]
    assert rows(s, "text").keys() == {"a#0", "a#1"}


def test_rows_of_damaged_row_groups_are_kept(tmp_path: Path) -> None:
    chosen, s = photos_of(colour_corpus(tmp_path / "p", RAINBOW)), tmp_path / "s"
    path, columns = (
        tmp_path / "x.parquet",
        {"image": [p.content for p in chosen], "key": [p.key for p in chosen]},
    )
    pq.write_table(pa.table(columns), path, row_group_size=1, use_dictionary=False)
    embed_colours(path, s, workers=2)
    for group in (1, 2):
        damage_column(path, group, 1)
    corpus = read_corpus(path)
    assert [item.path for item in corpus.images] == [f"{path}#{row}" for row in (0, 3, 4)]
    for group, skipped in enumerate(corpus.skipped, start=1):
        assert skipped.error == "DamagedTable" and f"row group {group} (1 row)" in skipped.message
    summary = embed_colours(path, s, prune=True)
    assert (summary.modalities["image"].gone, Store.open(s).count("image")) == ([], 5)
    assert summary.failures_in_store == 2
    pq.write_table(pa.table(columns).slice(1), path)
    summary = embed_colours(path, s, prune=True)
    assert (summary.modalities["image"].gone, summary.failures_in_store) == (["a"], 0)


def test_another_tar_with_the_same_keys_is_not_the_same_images(tmp_path: Path) -> None:
    chosen, s = photos_of(colour_corpus(tmp_path / "p", RAINBOW)), tmp_path / "s"
    renamed = [
        photo._replace(name=first.name)
        for photo, first in zip(chosen[2:4], chosen[:2], strict=True)
    ]
    paths = [
        write_tar(tmp_path / f"{n}.tar", webdataset(some))
        for n, some in enumerate((chosen[:2], renamed))
    ]
    embed_colours(paths[0], s)
    before = rows(s, "text")
    assert counts(embed_colours(paths[1], s, update=True)) == {}
    failures = Store.open(s).recorded_failures()
    assert [(f.key, f.error) for f in failures] == [
        ("1.tar#a.png", "DuplicateKey"),
        ("1.tar#b.png", "DuplicateKey"),
    ]
    assert rows(s, "text") == before


def test_a_tar_that_was_moved_has_the_same_images(tmp_path: Path) -> None:
    chosen, s = photos_of(colour_corpus(tmp_path / "p", RAINBOW)), tmp_path / "s"
    tar = write_tar(tmp_path / "0.tar", webdataset(chosen[:2]))
    embed_colours(tar, s)
    moved = tar.rename(tmp_path / "moved.tar")
    images = embed_colours(moved, s).modalities["image"]
    assert (images.already, images.moved, images.changed) == (2, ["a", "b"], [])
    embed_colours(moved, s, update=True)
    embed_colours(moved, tmp_path / "fresh")
    assert contents(s) == contents(tmp_path / "fresh")


def test_rows_of_lines_that_a_list_has_no_more_are_removed(tmp_path: Path) -> None:
    folder = colour_corpus(tmp_path / "p", RAINBOW)
    images, texts = tmp_path / "images.csv", tmp_path / "texts.csv"
    of_folder = colour_corpus(tmp_path / "other", {"z": "tan"})

    def run(names: str) -> None:
        lines = [f"p/{name}.png,title {name},id-{name}" for name in names]
        images.write_text("\n".join(["photo,title,sku", *lines]))
        texts.write_text("\n".join(["text,sku", *(f"{name},text-{name}" for name in names)]))
        options: dict[str, Any] = {"update": True, "prune": True, "workers": 0}
        options["encoder"] = colour_encoder()
        columns: dict[str, Any] = {
            "image_column": "photo",
            "text_column": "title",
            "key_column": "sku",
        }
        embed(images, tmp_path / "s", **columns, **options)
        embed(texts, tmp_path / "s", key_column="sku", **options)

    embed_colours(of_folder, tmp_path / "s")
    run("abcde")
    (folder / "b.png").unlink()  # its line stays, and so does its row
    run("abc")
    assert [*rows(tmp_path / "s")] == ["z", "id-a", "id-b", "id-c"]
    assert [*rows(tmp_path / "s", "text")] == [
        *("z#0", "z#1", "id-a#0", "id-b#0", "id-c#0"),
        *("text-a", "text-b", "text-c"),
    ]


def test_rows_of_lines_that_the_list_of_a_checkout_has_no_more_are_removed(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").mkdir()
    colour_corpus(tmp_path / "one/p", RAINBOW)
    write_jsonl(tmp_path / "one/texts.jsonl", *({"key": f"t{name}", "text": name} for name in "ab"))

    def run(checkout: Path, names: str, store: str) -> None:
        write_jsonl(checkout / "images.jsonl", *({"image": f"p/{name}.png"} for name in names))
        options: dict[str, Any] = {"encoder": colour_encoder(), "workers": 0, "prune": True}
        embed(checkout / "images.jsonl", checkout / store, image_column="image", **options)
        embed(checkout / "texts.jsonl", checkout / "t", **options)

    run(tmp_path / "one", "abc", "s")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    write_jsonl(tmp_path / "two/texts.jsonl", {"key": "ta", "text": "a"})
    run(tmp_path / "two", "ab", "s")
    assert [*rows(tmp_path / "two/s")] == ["p/a", "p/b"]
    assert [*rows(tmp_path / "two/t", "text")] == ["ta"]


def test_a_file_of_another_time_with_the_same_bytes_keeps_its_row(tmp_path: Path) -> None:
    folder, store = colour_corpus(tmp_path / "p", RAINBOW), tmp_path / "s"
    embed_colours(folder, store)
    shards = {path: path.stat().st_mtime_ns for path in store.rglob("part-*")}
    later = time.time() + 2
    os.utime(folder / "b.png", (later, later))
    assert embed_colours(folder, store).modalities["image"].changed == ["b"]  # as far as it knows
    assert embed_colours(folder, store, update=True).modalities["image"].changed == []
    assert embed_colours(folder, store).modalities["image"].changed == []
    assert {path: path.stat().st_mtime_ns for path in store.rglob("part-*")} == shards


def test_lines_whose_image_cannot_be_read_are_known_by_their_keys(tmp_path: Path) -> None:
    colour_corpus(tmp_path, {"a": "red"})
    listed = tmp_path / "images.csv"
    listed.write_text("photo\na.png\nb.png\nhttp://host.invalid/c.png\n")
    corpus = read_corpus(listed, image_column="photo")
    assert corpus.unread_keys == {"b", "host.invalid/c"}


def test_a_store_of_an_older_version_learns_its_lists(tmp_path: Path) -> None:
    colour_corpus(tmp_path / "p", RAINBOW)
    listed, inputs = tmp_path / "images.jsonl", tmp_path / "s/inputs.parquet"

    def run(names: str) -> None:
        write_jsonl(listed, *({"image": f"p/{name}.png"} for name in names))
        options: dict[str, Any] = {"image_column": "image", "workers": 0}
        options["encoder"] = colour_encoder()
        embed(listed, tmp_path / "s", prune=True, **options)

    run("abc")
    columns = ["key", "root", "size", "mtime", "sha256"]
    pq.write_table(pq.read_table(inputs).select(columns), inputs)
    run("abc")
    run("ab")
    assert [*rows(tmp_path / "s")] == ["p/a", "p/b"]
