"""Columns of the user's tables that rows keep: from every kind of table, through later runs,
copies, exports and indexes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools import Store
from c3tools.corpus.kept_columns import KeptColumns
from c3tools.corpus.reading import read_corpus
from c3tools.embedding.embed import embed, embed_corpus
from c3tools.embedding.shard_work import EmbedOptions
from c3tools.embedding.summary import EmbedSummary
from c3tools.errors import C3Error
from c3tools.export import FORMATS, export_store
from c3tools.index import Index, build_index
from c3tools.store.dataset import load_data_set, save_data_set
from c3tools.store.merge_split import merge_stores, split_store
from c3tools.store.verify import verify_store
from tests.conftest import Messages, contents, write_jsonl
from tests.corpus.packing import photos_of, webdataset, write_hf_parquet, write_list, write_tar
from tests.stores import colour_corpus, colour_encoder

NAMES = ("label", "nsfw", "url")
KEPT: dict[str, dict[str, Any]] = {
    "blue": {"label": 1, "nsfw": False, "url": "http://a/1"},
    "green": {"label": 2.5, "nsfw": None, "url": "http://a/2"},
    "red": {"label": 3, "nsfw": True, "url": None},
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with three images in photos and their columns in captions.jsonl."""
    monkeypatch.chdir(tmp_path)
    colour_corpus(Path("photos"), {name: name for name in KEPT})
    write_captions(KEPT)


def write_captions(columns: dict[str, dict[str, Any]]) -> None:
    rows = [
        {"image": f"{name}.png", "captions": [f"{name} 0", f"{name} 1"], **values}
        for name, values in columns.items()
    ]
    write_jsonl(Path("photos/captions.jsonl"), *rows)


def run(paths: Any = "photos", store: str = "s", **options: Any) -> Store:
    options = {"keep_columns": NAMES, "workers": 0, "shard_size": 2, **options}
    return embed(paths, store, encoder=colour_encoder(), **options)


def kept(store: Store | str, modality: str = "image") -> dict[str, dict[str, Any]]:
    """The columns of each row of a store."""
    table = Store.open(store).load(modality).table
    return {row.pop("key"): row for row in table.select(["key", *NAMES]).to_pylist()}


def of_captions(columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {f"{name}#{n}": values for name, values in columns.items() for n in (0, 1)}


def packed(kind: str) -> tuple[Path, dict[str, Any]]:
    """The photos as a corpus of one kind, and the options that it is read with."""
    photos = photos_of(Path("photos"))
    match kind:
        case "captions":
            return Path("photos"), {}
        case "captions apart":
            path = Path("photos/captions.jsonl").rename("mine.jsonl")
            return Path("photos"), {"captions": path}
        case "tar":
            extra = [(f"{name}.json", json.dumps(values).encode()) for name, values in KEPT.items()]
            members = [member for member in webdataset(photos) if not member[0].endswith("json")]
            return write_tar(Path("a.tar"), [*members, *extra]), {}
        case "table":
            columns: dict[str, Any] = {
                name: [values[name] for values in KEPT.values()] for name in NAMES
            }
            return write_hf_parquet(Path("a.parquet"), photos, **columns), {}
        case _:
            rows = [
                {"image": f"{name}.png", "text": f"{name} 0", **values}
                for name, values in KEPT.items()
            ]
            return write_list(Path(kind), rows), {
                "image_column": "image",
                "images_root": "photos",
            }


@pytest.mark.parametrize(
    "kind", ["captions", "captions apart", "tar", "table", "list.jsonl", "list.parquet"]
)
def test_images_and_their_texts_keep_the_columns_of_their_table(kind: str) -> None:
    path, options = packed(kind)
    store = run(path, **options)
    assert store.info.columns == {"label": "double", "nsfw": "bool", "url": "string"}
    assert kept(store) == KEPT
    texts = of_captions(KEPT)
    assert {key: texts[key] for key in kept(store, "text")} == kept(store, "text")


@pytest.mark.parametrize("kind", ["captions", "captions apart", "list", "table"])
def test_a_line_names_the_images_of_which_rows_differ(kind: str) -> None:
    rows = [
        {"image": "red.png", "text": "a", "label": 1},
        {"image": "red.png", "text": "b", "label": 2},
        {"image": "red.png", "text": "c", "label": 3},
        {"image": "blue.png", "text": "d", "label": 4},
        {"image": "blue.png", "text": "e", "label": 4},
    ]
    photos = photos_of(Path("photos"))
    write_jsonl(Path("photos/captions.jsonl"), *rows)
    path = "photos"
    options: dict[str, Any] = {}
    match kind:
        case "captions apart":
            path = str(write_tar(Path("a.tar"), webdataset(photos)))
            options = {"captions": "photos/captions.jsonl"}
        case "list":
            path = "photos/captions.jsonl"
            options = {"image_column": "image"}
        case "table":
            of_name = {photo.name: photo for photo in photos}
            repeated = [of_name[str(row["image"])] for row in rows]
            labels = [row["label"] for row in rows]
            path = str(write_hf_parquet(Path("a.parquet"), repeated, label=labels))
    messages = Messages()
    store = run(path, keep_columns=["label"], reporter=messages, **options)
    (note,) = [text for text in messages.texts if "different values in the columns to keep" in text]
    assert note.startswith("The rows of 1 item, for example red, have different values")
    labels_of_red = set()
    for row in store.load("text").table.select(["key", "label"]).to_pylist():
        if row["key"].startswith("red"):
            labels_of_red.add(row["label"])
    assert labels_of_red == {1}


FIELDS = {"license": 4, "coco_url": "http://c/red"}


@pytest.mark.parametrize(
    "content",
    [
        {
            "images": [{"id": 7, "file_name": "red.png", **FIELDS}],
            "annotations": [{"image_id": 7, "caption": "a red square"}],
        },
        {"images": [{"filename": "red.png", "sentences": [{"raw": "a red square"}], **FIELDS}]},
    ],
    ids=["coco", "karpathy"],
)
def test_fields_of_images_in_files_of_coco_and_karpathy_are_kept(content: Any) -> None:
    Path("photos/captions.jsonl").unlink()
    Path("photos/captions.json").write_text(json.dumps(content))
    rows = run(keep_columns=list(FIELDS)).load("text")
    assert {name: rows.column(name) for name in FIELDS} == {
        "license": [4],
        "coco_url": ["http://c/red"],
    }


def test_texts_without_images_keep_the_columns_of_their_rows() -> None:
    write_jsonl(Path("t.jsonl"), *({"text": name, **values} for name, values in KEPT.items()))
    assert list(kept(run("t.jsonl"), "text").values()) == list(KEPT.values())


def test_whole_numbers_become_double_where_a_later_block_has_fractions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("c3tools.corpus.items._BLOCK", 1)
    labels = [None, 1, 2.5, 3]
    write_jsonl(Path("t.jsonl"), *({"text": str(label), "label": label} for label in labels))
    store = run("t.jsonl", keep_columns=["label"])
    assert store.info.columns == {"label": "double"}
    assert store.load("text").column("label") == labels


def test_values_of_csv_are_texts() -> None:
    Path("t.csv").write_text("text,label,nsfw,url\na,007,true,\n")
    assert kept(run("t.csv"), "text") == {"t:2": {"label": "007", "nsfw": "true", "url": ""}}


def test_a_later_run_keeps_the_same_columns() -> None:
    run()
    colour_corpus(Path("more"), {"white": "white"})
    assert kept(run("more", keep_columns=None))["white"] == dict.fromkeys(NAMES)
    with pytest.raises(C3Error, match="keeps the columns label, nsfw, url, not label"):
        run(keep_columns=["label"])


def test_a_store_without_columns_gets_none_later() -> None:
    run(keep_columns=None)
    with pytest.raises(C3Error, match=r"keeps the columns \(none\), not label"):
        run()


def without_encoder(**options: Any) -> EmbedSummary:
    """Update the store where nothing is left to encode."""

    def refuse() -> NoReturn:
        raise AssertionError("the encoder is loaded")

    corpus = read_corpus("photos", kept_columns=KeptColumns(NAMES))
    settings = {"workers": 0, "shard_size": 2, "columns": corpus.kept_columns.types, **options}
    return embed_corpus(corpus, "s", refuse, EmbedOptions(**settings))


def test_a_changed_value_is_recorded_without_embedding_its_row_again() -> None:
    run()
    now = KEPT | {"red": KEPT["red"] | {"url": "http://a/3"}}
    write_captions(now)
    counts = run().summary.modalities
    assert (counts["image"].other_columns, counts["image"].changed) == (["red"], [])
    assert counts["text"].other_columns == ["red#0", "red#1"]
    assert run(update=True, dry_run=True).summary.modalities["image"].to_renew == 1
    summary = without_encoder(update=True)
    counts = summary.modalities
    assert [counts[name].renewed for name in ("image", "text")] == [1, 2]
    assert "columns renewed" in summary.table().columns
    assert "1 unchanged image input with other values in the kept columns (recorded): red" in (
        summary.notes()
    )
    assert [kept("s"), kept("s", "text")] == [now, of_captions(now)]
    run(store="anew")
    assert contents(Path("s")) == contents(Path("anew"))
    again = run().summary
    assert again.modalities["image"].other_columns == []
    assert "columns renewed" not in again.table().columns


def test_a_changed_caption_and_its_changed_values_are_embedded_together() -> None:
    run()
    rows = [
        {
            "image": f"{name}.png",
            "captions": [f"{name} new", f"{name} 1"],
            **KEPT[name],
            "label": 9.5,
        }
        for name in KEPT
    ]
    write_jsonl(Path("photos/captions.jsonl"), *rows)
    counts = run(update=True).summary.modalities
    assert (counts["image"].updated, counts["image"].renewed) == (0, 3)
    assert (counts["text"].updated, counts["text"].renewed) == (3, 3)
    assert counts["text"].rate > 0
    run(store="anew")
    assert contents(Path("s")) == contents(Path("anew"))


def test_a_row_is_unchanged_where_no_table_has_its_columns() -> None:
    run()
    Path("photos/captions.jsonl").unlink()
    run(update=True)
    assert kept("s") == KEPT


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([1], r"'label' of red contains '\[1\]' \(list\), which cannot be kept"),
        ("three", r"of red contains 'three' \(str\), while earlier rows are double"),
        (True, r"of red contains 'True' \(bool\), while earlier rows are double"),
        (2**70, r"of red contains '\d+' \(int\), which cannot be kept"),
    ],
)
def test_values_of_another_kind_are_refused(value: Any, problem: str) -> None:
    write_captions(KEPT | {"red": KEPT["red"] | {"label": value}})
    with pytest.raises(C3Error, match=problem):
        run()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ulr", "No row has a value in the column 'ulr'"),
        ("caption", "already use the column names caption"),
        ("corpus_split", "already use the column names corpus_split"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(name: str, problem: str) -> None:
    with pytest.raises(C3Error, match=problem):
        run(keep_columns=[name])


def test_a_later_run_with_values_of_another_type_is_refused() -> None:
    write_captions({"red": {"label": 1}})
    run(keep_columns=["label"])
    write_captions({"red": {"label": 1.5}})
    problem = r"'label' of red contains '1.5' \(float\), but the store keeps it as int64"
    with pytest.raises(C3Error, match=problem):
        run(keep_columns=None)


def test_copies_of_a_store_keep_them() -> None:
    store = run()
    white = KEPT["red"] | {"label": 1.5, "url": "http://a/4"}
    write_captions({"white": white})
    colour_corpus(Path("more"), {"white": "white"})
    Path("photos/captions.jsonl").rename("more/captions.jsonl")
    merge_stores(["s", run("more", "t").path], output="merged")
    assert kept("merged") == KEPT | {"white": white}
    split_store("merged", output="split", seed=1)
    save_data_set(Store.open("split"), Path("pushed"))
    pulled = load_data_set(Store.open("pushed"), "pulled")
    assert kept(str(pulled)) == kept("merged")
    assert kept(str(pulled), "text") == kept("merged", "text")
    assert verify_store(pulled).whole
    with pytest.raises(C3Error, match="columns"):
        merge_stores([store.path, run(store="without", keep_columns=None).path], output="no")


def test_pruning_keeps_them_in_the_other_rows() -> None:
    run()
    Path("photos/red.png").unlink()
    assert kept(run(prune=True)) == {name: KEPT[name] for name in ("blue", "green")}


def test_a_shard_that_was_removed_is_made_again_with_them() -> None:
    run()
    before = contents(Path("s"))
    shard = Path("s/image/part-00000.parquet")
    shard.write_bytes(b"damaged")
    verify_store("s", repair=True)
    run(keep_columns=None)
    assert contents(Path("s")) == before


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_exports_have_them(format: Any) -> None:
    run()
    export_store("s", output="e", format=format, preset="c1", modality=["image"])
    tables = [pq.read_table(path) for path in sorted(Path("e").glob("image/**/*.parquet"))]
    rows = pa.concat_tables(tables).select(["key", *NAMES]).to_pylist()
    assert {row.pop("key"): row for row in rows} == KEPT


@pytest.mark.parametrize("modality", ["image", "text"])
def test_hits_have_them(modality: str) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    store = run()
    build_index("s", output="i", preset="c1")
    key = "green" if modality == "image" else "green#1"
    (result,) = Index.open("i").search(key=key, only=modality, k=1)
    (hit,) = result.hits
    assert (hit.key, hit.columns) == (key, KEPT["green"])
    assert hit.to_dict()["columns"] == KEPT["green"]
    assert store.info.columns == Store.open("i", codes=True).info.columns
