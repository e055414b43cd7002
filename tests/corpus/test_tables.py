"""Tables of other programs: what is read from each format, and the columns that are picked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools.corpus.tables import (
    IMAGE_KEY,
    ITEM,
    ROLES,
    ROW_KEY,
    TEXT_KEY,
    Role,
    annotated_images,
    open_table,
    pick,
    pick_all,
    read_records,
    read_table,
    text_columns,
)
from c3tools.errors import CorpusError, StoreError

Write = Callable[[Path, pa.Table], None]
LLAVA = [
    {
        "id": "7",
        "image": "7.jpg",
        "conversations": [
            {"from": "human", "value": "Describe the photo.\n<image>"},
            {"from": "gpt", "value": "a dog"},
            {"from": "human", "value": "Where is it?"},
            {"from": "gpt", "value": "on a bed"},
        ],
    },
    {"id": "8", "conversations": [{"from": "gpt", "value": "no photo"}]},
]
KEYS = {"key": ["007", "8"], "split": ["val", "test"]}
COCO = {
    "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
    "annotations": [
        {"image_id": 8, "caption": "a cat"},
        {"image_id": 9, "caption": "a bird"},
        {"image_id": 7, "caption": "a dog"},
        {"image_id": 8, "caption": "two cats"},
    ],
}
KARPATHY = {
    "images": [
        {"imgid": 0, "filename": "7.jpg", "split": "restval", "sentences": [{"raw": "a dog"}]},
        {"imgid": 1, "filename": "8.jpg", "split": "test", "sentences": []},
    ]
}


def write_csv(path: Path, table: pa.Table) -> None:
    rows = [table.column_names, *zip(*table.to_pydict().values(), strict=True)]
    path.write_text("".join(",".join(row) + "\n" for row in rows))


def write_tsv(path: Path, table: pa.Table) -> None:
    write_csv(path, table)
    path.write_text(path.read_text().replace(",", "\t"))


def write_json_lines(path: Path, table: pa.Table) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def write_json_list(path: Path, table: pa.Table) -> None:
    path.write_text(json.dumps(table.to_pylist()))


def write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def write_arrow_file(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


def write_arrow_stream(path: Path, table: pa.Table) -> None:
    encoded = table.set_column(0, "key", table.column("key").dictionary_encode())
    with pa.ipc.new_stream(str(path), encoded.schema) as stream:
        stream.write_table(encoded)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", write_csv),
        ("t.tsv", write_tsv),
        ("t.jsonl", write_json_lines),
        ("t.ndjson", write_json_lines),
        ("t.json", write_json_list),
        ("t.parquet", write_parquet),
        ("t.arrow", write_arrow_file),
        ("t.arrow", write_arrow_stream),
    ],
)
def test_a_table_is_the_same_in_every_format(tmp_path: Path, name: str, write: Write) -> None:
    write(tmp_path / name, pa.table(KEYS))
    assert text_columns(read_table(tmp_path / name)) == KEYS
    columns, records, _ = open_table(tmp_path / name)
    rows = [record.values for record in records(columns)]
    assert [row[column] for column in columns for row in rows] == ["007", "8", "val", "test"]


@pytest.mark.parametrize("write", [write_parquet, write_arrow_file, write_arrow_stream])
def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path, write: Write) -> None:
    name = "t.parquet" if write is write_parquet else "t.arrow"
    write(tmp_path / name, pa.table(KEYS))
    table = open_table(tmp_path / name)
    assert list(table.records(["key", "gone"])) == [(1, {"key": "007"}), (2, {"key": "8"})]


def test_columns_of_images_and_vectors_name_no_row(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": b"", "path": "a"}], "vector": [[0.5]], "id": [7], "n": [7.0]}
    write_parquet(tmp_path / "t.parquet", pa.table({**columns, "names": [["a", "b"]]}))
    assert open_table(tmp_path / "t.parquet").plain_columns == ["id", "n", "names"]


def test_damage_in_later_rows_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"key": "a"}\n' * 100 + "{oops\n")
    table = open_table(tmp_path / "t.jsonl", StoreError)
    with pytest.raises(StoreError, match=r"t\.jsonl, line 101 is not JSON"):
        list(table.records(table.columns))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_table_without_rows_is_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    assert len(read_table(tmp_path / name)) == 0


def test_columns_of_a_later_block_of_json_lines_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.corpus.tables._BLOCK_ROWS", 1)
    path = tmp_path / "t.jsonl"
    path.write_text('{"vector": [1, 2]}\n{"vector": [0.5, 2], "id": 7}\n')
    assert read_table(path).to_pydict() == {"vector": [[1, 2], [0.5, 2]], "id": [None, "7"]}


def test_columns_of_csv_with_numbers_as_names_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,e0,e1\n007, 1 ,NA\n8,-2.5e1,3\n")
    columns = {"id": ["007", "8"], "e0": [1.0, -25.0], "e1": [None, 3.0]}
    assert read_table(path).to_pydict() == columns


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("id,e0\na,1\nb,x\n", "string: 'x'"),
        ("id,e0\na,1\nb\n", "line 3 has fewer cells"),
        ("id,e0\na,1,2\n", "line 2 has more cells"),
        ("a,1\n\xff", "'utf-8' codec"),
    ],
)
def test_a_damaged_csv_table_is_refused(tmp_path: Path, rows: str, problem: str) -> None:
    (tmp_path / "t.csv").write_text(rows, "latin-1")
    with pytest.raises(StoreError, match=rf"t\.csv.*{problem}"):
        read_table(tmp_path / "t.csv", StoreError)


def test_a_cell_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"id,text\na,{'x' * 200_000}\n")
    assert len(read_table(tmp_path / "t.csv").column("text")[0].as_py()) == 200_000


def test_the_dictionary_of_an_arrow_file_does_not_unpack_to_more_than_its_size_allows(
    tmp_path: Path,
) -> None:
    key = pa.DictionaryArray.from_arrays([0] * 1000, ["x" * 100_000])
    write_arrow_file(tmp_path / "t.arrow", pa.table({"key": key}))
    with pytest.raises(CorpusError, match="column 'key' unpacks to 100,000,000 bytes"):
        read_table(tmp_path / "t.arrow")


def test_a_table_in_another_format_is_refused_with_the_formats(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(CorpusError, match=r"t\.xlsx is not a table .*\.csv"):
        read_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (
            COCO,
            {
                "image_id": ["7", "8", "9"],
                "file_name": ["7.jpg", "8.jpg", None],
                "captions": ["a dog", "a cat", "a bird"],
            },
        ),
        (
            KARPATHY,
            {
                "image_id": ["0", "1"],
                "file_name": ["7.jpg", "8.jpg"],
                "captions": ["a dog", None],
                "split": ["restval", "test"],
            },
        ),
        (["a dog", "a cat"], {"text": ["a dog", "a cat"]}),
        (
            LLAVA,
            {"id": ["7", "8"], "image": ["7.jpg", None], "captions": ["a dog", "no photo"]},
        ),
        ([], {}),
    ],
    ids=["COCO", "Karpathy", "list of texts", "LLaVA", "empty list"],
)
def test_a_json_file_is_a_table(
    tmp_path: Path, content: Any, columns: dict[str, list[str | None]]
) -> None:
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert text_columns(read_table(tmp_path / "t.json")) == columns


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (["a dog", 7], "element 2 is neither a JSON object nor a text, but int"),
        ([{"conversations": [{"text": "a dog"}]}], "element 1: a turn of its conversations"),
        ([{"conversations": [{"from": "gpt", "value": None}]}], "a turn of its conversations"),
    ],
)
def test_a_json_list_of_something_else_is_refused(
    tmp_path: Path, content: Any, problem: str
) -> None:
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=problem):
        read_table(tmp_path / "t.json")


def test_the_captions_of_an_image_are_in_the_order_of_the_file() -> None:
    assert annotated_images(COCO)[1].captions == ["a cat", "two cats"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_row_has_the_number_of_the_line_where_it_ends(tmp_path: Path, suffix: str) -> None:
    rows = {".csv": 'key\n\n"7\n"\n8\n', ".jsonl": '\n\n\n{"key": "7"}\n{"key": "8"}\n'}
    path = tmp_path / f"t{suffix}"
    path.write_text(rows[suffix])
    assert [record.line for record in read_records(path)] == [4, 5]


@pytest.mark.parametrize(
    ("columns", "roles", "column"),
    [
        ("id image_id file_name key", IMAGE_KEY, "key"),
        ("id image_id file_name", IMAGE_KEY, "file_name"),
        ("id image_id", IMAGE_KEY, "image_id"),
        ("file_name id", ROW_KEY, "id"),
        ("image_key id caption_id", TEXT_KEY, "caption_id"),
        ("img_id filename image_key", ITEM, "image_key"),
        ("caption text", ("caption",), "text"),
        ("a b", ("caption",), None),
    ],
)
def test_the_first_usual_name_of_the_first_role_is_picked(
    columns: str, roles: tuple[Role, ...], column: str | None
) -> None:
    assert pick(columns.split(), *roles) == column


def test_a_column_that_is_wanted_comes_before_the_usual_ones() -> None:
    assert pick(["key", "name"], "key", wanted="name") == "name"


def test_a_wanted_column_that_is_not_there_leaves_the_usual_one() -> None:
    assert pick(["key", "name"], "key", wanted="other") == "key"


@pytest.mark.parametrize(
    ("columns", "column"),
    [("TEXT URL", "TEXT"), ("TEXT text", "text"), ("TEXT Text", "TEXT")],
)
def test_usual_names_may_differ_by_case(columns: str, column: str) -> None:
    assert pick(columns.split(), "caption") == column


def test_all_columns_come_in_the_order_of_roles_and_names() -> None:
    assert pick_all(["image_id", "note", "image", "pair_key"], *ITEM) == [
        "pair_key",
        "image",
        "image_id",
    ]


@pytest.mark.parametrize("roles", [IMAGE_KEY, ROW_KEY, TEXT_KEY, ITEM])
def test_a_name_is_of_one_role_alone(roles: tuple[Role, ...]) -> None:
    names = [name for role in roles for name in ROLES[role]]
    assert len(names) == len(set(names))
