"""Tables written by other programs: how to read them, and the roles of their columns.

`ROLES` has the usual names of columns, and only `pick` and `pick_all` guess by them. What names a
row depends on what the row is: see `IMAGE_KEY`, `ROW_KEY`, `TEXT_KEY` and `ITEM`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import C3Error, CorpusError
from ..io.files import MALFORMED, read_json, reading
from ..io.limits import LARGEST_TEXT, limited_lines
from ..io.locations import open_binary
from ..io.parquet import arrow_batches, open_parquet, read_arrow, read_parquet

_JSON_LINES = (".jsonl", ".ndjson")
CSV_SUFFIXES = (".csv", ".tsv")
TABLE_SUFFIXES = (*_JSON_LINES, *CSV_SUFFIXES, ".json", ".parquet", ".arrow")

# names of columns that hold one number of a vector each: e0, e1, … or 0, 1, …
NUMBERED_COLUMN = re.compile(
    r"(?:emb|embedding|dim|feature|feat|vector|e|d|f|v|x)?[_.-]?(\d{1,9})", re.IGNORECASE
)
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?\s*")
# how other programs write that a number is missing
_EMPTY_NUMBERS = ("", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None")
_CELLS_TOO_MANY = "\0"  # no column of a file has this name
_BLOCK_ROWS = 4096
_FIRST_ROWS = 100  # of JSON lines, which name the columns

Role = Literal[
    "key",
    "item",
    "text_id",
    "id",
    "image",
    "image_id",
    "path",
    "url",
    "image_bytes",
    "caption",
    "split",
    "reason",
    "embedding",
]
# the usual names of columns, the first of them before the others
ROLES: Mapping[Role, tuple[str, ...]] = {
    "key": ("key", "__key__", "keys"),
    "item": ("pair_key", "image_key", "image_keys"),  # the key of the row's item
    "text_id": ("text_key", "caption_id"),
    "id": ("id", "ids", "names"),
    "image": ("file_name", "image", "filename", "image_path", "filepath", "image_name"),
    "image_id": ("image_id", "image_ids", "img_id", "img_ids"),
    "path": ("path", "img_path"),
    "url": ("image_url", "img_url", "photo_url", "imageurl", "url"),
    # used only if they hold bytes; those of Hugging Face and img2dataset are among them
    "image_bytes": (
        *("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "pixels"),
    ),
    "caption": (
        *("captions", "text", "caption", "sentences", "sentence"),
        *("description", "title", "comment", "raw"),
    ),
    "split": ("split",),
    "reason": ("reason",),  # why a row is left out
    "embedding": (
        *("embedding", "embeddings", "clip_embedding", "vector", "vectors", "emb", "features"),
        *("arr_0", "image_embedding", "text_embedding"),
    ),
}
# What names the image that a row is about; several rows may be about one image
IMAGE_KEY: tuple[Role, ...] = ("key", "item", "image", "image_id", "id")
# What names a row itself: its own id comes before the names of its image
ROW_KEY: tuple[Role, ...] = ("key", "id", "item", "image", "image_id", "path", "url")
# What names a text, of which an image may have several
TEXT_KEY: tuple[Role, ...] = ("key", "text_id", "id")
# What names the item that a text, or a row of another modality, belongs to
ITEM: tuple[Role, ...] = ("item", "image", "image_id")

# columns of ids, captions and the like by name; None where a row has nothing. Columns to keep have
# texts, numbers or booleans.
TextColumns = dict[str, list[str | None]]


class Record(NamedTuple):
    """A row of a table: the line in its file where it ends (1 = first), and values by column. In
    JSON lists, Parquet and Arrow, the line is the number of the row.
    """

    line: int
    values: dict[str, Any]


class OpenTable(NamedTuple):
    """A table that is read row by row.

    Attributes:
        columns: their names; of JSON lines those of the first 100 rows. CSV and JSON without rows
            have none.
        records: yields the rows, once. Of Parquet and Arrow, only the columns that are passed are
            read; rows of other formats may lack some of them, and have others.
        schema: of Parquet and Arrow.
    """

    columns: list[str]
    records: Callable[[Collection[str | None]], Iterator[Record]]
    schema: pa.Schema | None = None

    @property
    def plain_columns(self) -> list[str]:
        """The columns of texts, numbers and booleans, and of lists of texts and whole numbers:
        others, such as those of images and vectors, name no row.
        """
        if self.schema is None:
            return self.columns
        return [column.name for column in self.schema if _is_plain(column.type)]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image in a file of COCO's captions or Karpathy's splits.

    Attributes:
        image_id: that of the file; None without one.
        file_name: None if the file only has captions for its id.
        captions: in the order of the file.
        split: as the file names it; None if it names none.
        fields: all that the file says of it, such as license and coco_url.
    """

    image_id: Any
    file_name: str | None
    captions: list[str]
    split: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """The image as a row of a table: in columns of the usual names, then its other fields."""
        columns = {
            "image_id": self.image_id,
            "file_name": self.file_name,
            "captions": self.captions,
            "split": self.split,
        }
        return columns | {**self.fields, **columns}


def pick(columns: Iterable[str], *roles: Role, wanted: str | None = None) -> str | None:
    """Return the column ``wanted`` if it is there, else the first with a usual name of the roles.

    Upper and lower case of usual names are the same (``TEXT``), and so are spaces and underscores
    (``Image URL``). None if there is no such column.
    """
    present = list(columns)
    if wanted in present:
        return wanted
    return next(iter(pick_all(present, *roles)), None)


def pick_all(columns: Iterable[str], *roles: Role) -> list[str]:
    """Return all columns with a usual name of the roles, in the order of roles and names."""
    present = list(columns)
    # Of TEXT and Text the first one is used, and text before both
    spelling: dict[str, str] = {}
    for column in present:
        spelling.setdefault(plain_name(column), column)
    spelling.update({column: column for column in present})
    usual = [name for role in roles for name in ROLES[role]]
    return list(dict.fromkeys(spelling[name] for name in usual if name in spelling))


def plain_name(column: str) -> str:
    """Return the name of a column in lower case with underscores, as usual names are written."""
    return column.lower().replace(" ", "_")


def open_table(path: Path, error: type[C3Error] = CorpusError) -> OpenTable:
    """Open a table to read it row by row; the suffix names the format.

    In CSV all values are texts. Files of COCO and Karpathy have a row for each image, with the
    columns of an `AnnotatedImage`; for JSON lists see `records_in_list`.

    Args:
        path: one of the `TABLE_SUFFIXES`.
        error: the class of the error.

    Raises:
        C3Error: of the class ``error``, if the file is missing, of another kind, or damaged; also
            while its rows are read, with the line.
    """
    suffix = path.suffix.lower()
    with reading(path, error):
        if suffix == ".parquet":
            with open_parquet(path) as file:
                schema = file.schema

            def read_batches(names: list[str]) -> Iterator[pa.RecordBatch]:
                with open_parquet(path) as file:
                    yield from file.batches(names)

            table = _table_of_batches(schema, read_batches)
        elif suffix == ".arrow":
            batches = arrow_batches(path)
            first_batch = next(batches, None)
            schema = pa.schema([]) if first_batch is None else first_batch.schema

            def select_columns(names: list[str]) -> Iterator[pa.RecordBatch]:
                for batch in chain([first_batch] if first_batch else [], batches):
                    yield batch.select(names)

            table = _table_of_batches(schema, select_columns)
        elif suffix == ".json":
            table = table_in_json(path, read_json(path), error)
        elif suffix in (*_JSON_LINES, *CSV_SUFFIXES):
            table = table_of_records(read_records(path, error))
        else:
            raise _unknown_format(path, error)

    def records(names: Collection[str | None]) -> Iterator[Record]:
        with reading(path, error):
            yield from table.records(names)

    return table._replace(records=records)


def _table_of_batches(
    schema: pa.Schema, read_batches: Callable[[list[str]], Iterator[pa.RecordBatch]]
) -> OpenTable:
    def records(names: Collection[str | None]) -> Iterator[Record]:
        row = 0
        for batch in read_batches([name for name in schema.names if name in names]):
            for values in batch.to_pylist():
                row += 1
                yield Record(row, values)

    return OpenTable(schema.names, records, schema)


def table_of_records(records: Iterator[Record], first_rows: int | None = _FIRST_ROWS) -> OpenTable:
    """Return a table of rows, with the columns of the first of them; of all with None."""
    first = list(islice(records, first_rows))
    columns = dict.fromkeys(name for record in first for name in record.values)
    return OpenTable(list(columns), lambda names: chain(first, records))


def table_in_json(path: Path, content: Any, error: type[C3Error] = CorpusError) -> OpenTable:
    """Return the table in the content of a JSON file: a list, see `records_in_list`, or a file of
    COCO or Karpathy.

    Captions of images that such a file does not list are left out, unless it lists none: it is
    often a part of a larger one.

    Raises:
        C3Error: of the class ``error``, if it has another layout.
    """
    if isinstance(content, list):
        records = records_in_list(path, content, error)
    else:
        try:
            images = annotated_images(content)
            is_list = bool(content.get("images"))
        except MALFORMED as problem:
            raise error(
                f"{path} is neither a JSON list nor a COCO captions file: a field is missing "
                f"({problem!r}).",
                remedy='Use {"images": [{"id", "file_name"}], "annotations": [{"image_id", '
                '"caption"}]}. A file with one object per line needs the suffix .jsonl.',
            ) from problem
        records = [
            Record(number, image.values)
            for number, image in enumerate(images, start=1)
            if image.file_name is not None or not is_list
        ]
    return table_of_records(iter(records), first_rows=None)


def read_records(path: Path, error: type[C3Error] = CorpusError) -> Iterator[Record]:
    """Yield the rows of JSON lines, or of a CSV or TSV file, one after the other.

    In CSV all values are texts, because 007 is an id and not 7. A row may have fewer cells than
    the header (None). A matrix without a header has the columns f0, f1, ….

    Args:
        path: .jsonl, .ndjson, .csv or .tsv, in UTF-8.
        error: the class of the error for a row that is malformed.

    Raises:
        C3Error: of the class ``error``, if a line is no JSON object, or a row has more cells than
            the header, or two columns have one name.
        OSError, ValueError, csv.Error: if the file cannot be read.
    """
    if path.suffix.lower() in _JSON_LINES:
        return _read_json_lines(path, error)
    return _read_csv(path, error)


def records_in_list(
    path: Path, content: list[Any], error: type[C3Error] = CorpusError
) -> list[Record]:
    """Return the elements of a JSON list as rows, with their numbers (1 = first) in place of lines.

    A text is a row with the column text. Of a conversation as LLaVA has them, the answers are the
    captions of its image.

    Args:
        path: of the file, for errors.
        content: of objects or texts.
        error: the class of the error.

    Raises:
        C3Error: of the class ``error``, if an element is neither, or a conversation has another
            layout.
    """
    records = []
    for number, element in enumerate(content, start=1):
        values: dict[str, Any]
        if isinstance(element, str):
            values = {"text": element}
        elif isinstance(element, dict):
            values = dict(element)
            if isinstance(values.get("conversations"), list):
                # The turns of a conversation as LLaVA has them
                values["captions"] = []
                for turn in values.pop("conversations"):
                    is_turn = isinstance(turn, dict) and isinstance(turn.get("value"), str)
                    if not is_turn or "from" not in turn:
                        raise error(
                            f"{path}, element {number}: a turn of its conversations is not in "
                            f"LLaVA's format.",
                            remedy='Use {"from": "human" or "gpt", "value": TEXT}.',
                        )
                    if turn["from"] == "gpt":
                        values["captions"].append(turn["value"])
        else:
            raise error(
                f"{path}, element {number} is neither a JSON object nor a text, but "
                f"{type(element).__name__}.",
                remedy="Each element of the list needs to be one of these.",
            )
        records.append(Record(number, values))
    return records


def annotated_images(content: Any) -> list[AnnotatedImage]:
    """Return the images that COCO's captions or Karpathy's splits describe, in their order.

    Captions of images that ``images`` does not list come last, without a file name.

    Args:
        content: the value of the JSON file.

    Raises:
        KeyError, TypeError, AttributeError: if it has another layout, see `MALFORMED`.
    """
    images = []
    # Karpathy's splits
    if "annotations" not in content:
        for image in content["images"]:
            captions = [str(sentence["raw"]) for sentence in image["sentences"]]
            file_name = str(image["filename"])
            split = image.get("split")
            images.append(AnnotatedImage(image.get("imgid"), file_name, captions, split, image))
        return images

    captions_by_id: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        captions = captions_by_id.setdefault(annotation["image_id"], [])
        captions.append(str(annotation["caption"]))
    for image in content.get("images", ()):
        captions = captions_by_id.pop(image["id"], [])
        file_name = str(image.get("file_name", image["id"]))
        images.append(AnnotatedImage(image["id"], file_name, captions, fields=image))
    for image_id, captions in captions_by_id.items():
        images.append(AnnotatedImage(image_id, None, captions))
    return images


def read_table(
    path: Path, error: type[C3Error] = CorpusError, keep: Collection[str] = ()
) -> pa.Table:
    """Return the table in a file; the suffix names the format.

    Numbers in JSON lines become texts unless they are in lists, or in a column to ``keep``. In CSV,
    columns with numbers as names are numbers; all others stay text. Files of COCO and Karpathy have
    a row for each image, with the columns image_id, file_name, captions and split; JSON lists see
    `records_in_list`.

    Args:
        path: one of the `TABLE_SUFFIXES`.
        error: the class of the error.
        keep: columns whose values are to be kept as they are.

    Raises:
        C3Error: of the class ``error``, if the file is missing, of another kind, or damaged.
    """
    suffix = path.suffix.lower()
    with reading(path, error):
        if suffix == ".parquet":
            return read_parquet(path)
        if suffix == ".arrow":
            return read_arrow(path)
        if suffix == ".json":
            content = read_json(path)
            if isinstance(content, list):
                return _table_of_json_lines(records_in_list(path, content, error), keep)
            images = annotated_images(content)
            columns = {
                "image_id": [_json_cell(image.image_id) for image in images],
                "file_name": [image.file_name for image in images],
                "captions": [image.captions for image in images],
                "split": [image.split for image in images],
            }
            for name in keep:
                if any(name in image.fields for image in images):
                    columns[name] = [image.fields.get(name) for image in images]
            return pa.table(columns)
        if suffix in _JSON_LINES:
            return _table_of_json_lines(read_records(path, error), keep)
        if suffix in CSV_SUFFIXES:
            blocks = []
            for block in _blocks_of(read_records(path, error)):
                for record in block:
                    if None in record.values.values():
                        raise ValueError(
                            f"line {record.line} has fewer cells than the header has columns"
                        )
                blocks.append(pa.Table.from_pylist([record.values for record in block]))
            table = pa.concat_tables(blocks) if blocks else pa.table({})
            for position, name in enumerate(table.column_names):
                if not NUMBERED_COLUMN.fullmatch(name):
                    continue
                # Numbers are float64, with nulls for empty cells; texts stay if the first is no
                # number
                trimmed: Any = pc.utf8_trim_whitespace(table.column(name))
                is_empty = pc.is_in(trimmed, pa.array(_EMPTY_NUMBERS))
                numbers = pc.if_else(is_empty, None, trimmed)
                try:
                    numbers.slice(0, 1).cast(pa.float64())
                except pa.ArrowInvalid:
                    continue
                table = table.set_column(position, name, numbers.cast(pa.float64()))
            return table
    raise _unknown_format(path, error)


def _unknown_format(path: Path, error: type[C3Error]) -> C3Error:
    return error(f"{path} is not a table in a supported format ({', '.join(TABLE_SUFFIXES)}).")


def text_columns(table: pa.Table, keep: Collection[str] = ()) -> TextColumns:
    """Return the columns of texts, numbers and booleans as texts, see `text_of`.

    Other columns, such as those of vectors and images, are left out. The values of columns to
    ``keep`` stay as they are.
    """
    columns: TextColumns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in keep:
            columns[name] = column.to_pylist()
        elif _is_plain(column.type):
            columns[name] = [text_of(value) for value in column.to_pylist()]
    return columns


def text_of(value: Any) -> str | None:
    """Return a value of a table as text: of a list its first element, and None for an empty one.

    Integers with a gap were read as 7.0, and the gap as NaN: these become 7 and None.
    """
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = int(value) if value.is_integer() else value
    return None if value in (None, "") else str(value)


def _is_plain(kind: pa.DataType) -> bool:
    element = getattr(kind, "value_type", kind)
    return (
        pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(element)
        or pa.types.is_large_string(element)
        or pa.types.is_integer(element)
    )


def delimiter_of(header: str, suffix: str = "") -> str:
    """Return the character between the columns of a table: a tab in .tsv, else the most frequent
    of , ; | and tab in its first line.
    """
    return "\t" if suffix.lower() == ".tsv" else max(",;|\t", key=header.count)


def _read_json_lines(path: Path, error: type[C3Error]) -> Iterator[Record]:
    with open_binary(path) as file:
        for line, content in enumerate(limited_lines(file), start=1):
            if not content.strip():
                continue
            remedy = "Each line needs to be a JSON object."
            try:
                values = json.loads(content)
            except MALFORMED as problem:
                raise error(
                    f"{path}, line {line} is not JSON ({problem}).", remedy=remedy
                ) from problem
            if not isinstance(values, dict):
                kind = type(values).__name__
                raise error(
                    f"{path}, line {line} is not a JSON object, but a {kind}.", remedy=remedy
                )
            yield Record(line, values)


def _read_csv(path: Path, error: type[C3Error]) -> Iterator[Record]:
    # Lines are limited, and a line may be one cell: a vector as a JSON list
    csv.field_size_limit(LARGEST_TEXT)
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", newline="") as text:
        lines = limited_lines(text)
        header = next(lines, "")
        lines_above = 0
        if header.strip().lower().startswith("sep="):  # what Excel writes above the names
            header = next(lines, "")
            lines_above = 1
        delimiter = delimiter_of(header, path.suffix)
        # A file that begins with numbers, some of them fractions, has no names of columns
        names = None
        cells = header.strip().split(delimiter)
        if "." in header and all(map(_NUMBER.fullmatch, cells)):
            names = [f"f{number}" for number in range(len(cells))]
        rows = csv.DictReader(
            chain([header], lines),
            names,
            restkey=_CELLS_TOO_MANY,
            delimiter=delimiter,
            skipinitialspace=True,
        )
        rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        for name, times in Counter(rows.fieldnames).items():
            if name and times > 1:
                raise error(
                    f"{path} has {times} columns with the name {name!r}.",
                    remedy="Rename or remove all of them but one.",
                )
        for values in rows:
            line = rows.line_num + lines_above
            if any(values.pop(_CELLS_TOO_MANY, [])):
                raise error(
                    f"{path}, line {line} has more cells than the header has columns.",
                    remedy=f"Put double quotes around each cell that contains {delimiter!r}.",
                )
            yield Record(line, values)


def _table_of_json_lines(records: Iterable[Record], keep: Collection[str]) -> pa.Table:
    blocks = []
    for block in _blocks_of(records):
        names = dict.fromkeys(name for record in block for name in record.values)
        columns = {}
        for name in names:
            values = [record.values.get(name) for record in block]
            columns[name] = values if name in keep else [_json_cell(value) for value in values]
        blocks.append(pa.table(columns))
    # Blocks may differ: in columns, and as lists of integers and of fractions
    return pa.concat_tables(blocks, promote_options="permissive") if blocks else pa.table({})


def _blocks_of(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield rows in blocks: all of a large file as Python objects would need much memory."""
    remaining = iter(records)
    while block := list(islice(remaining, _BLOCK_ROWS)):
        yield block


def _json_cell(value: Any) -> Any:
    """Return a value of JSON as it is in a table: texts and lists as they are, others as texts."""
    # Of exactly these types: lists of vectors have to stay fast to convert
    return value if type(value) in (str, list, type(None)) else str(value)
