"""Captions and texts from files: tables, token files of Flickr8k, and plain text."""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from posixpath import splitext
from typing import Any, NamedTuple

from ..errors import CorpusError
from ..io.files import reading
from ..io.limits import limited_lines
from ..io.locations import is_url, open_binary
from ..reporter import counted
from .items import IMAGE_SUFFIXES, ReadOptions, as_key
from .kept_columns import KeptColumns
from .tables import (
    CSV_SUFFIXES,
    ROLES,
    TABLE_SUFFIXES,
    OpenTable,
    Record,
    delimiter_of,
    open_table,
    pick,
    pick_all,
    plain_name,
    read_records,
    table_of_records,
)

SPLIT_COLUMN = "split"
LINES = (".txt", ".token")  # texts without annotations: test.txt may be just that
_LOOKED_AT = 100  # rows
_NUMBERED = re.compile(r"(captions?|texts?|sentences?)_?\d+")
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*"""
# of strings, as JSON or Python writes it
_LIST = re.compile(rf"\[\s*{_STRING}(?:,\s*{_STRING})*\]", re.DOTALL)
# a line of Flickr8k.token.txt: image#number, tab, caption
_TOKENS = re.compile(r"(\S.*\.\w+)#\d+\t(.+)")


class CaptionRow(NamedTuple):
    """One row of a captions file."""

    file_name: str | None  # of the image, as the file names it; None if the row is text alone
    captions: list[str]
    split: str | None  # as the file names it
    line: int  # for messages (1 = first)
    key: str | None = None  # if a key column was requested, or has a known name
    columns: dict[str, Any] | None = None  # see `KeptColumns.values_of`
    url: str | None = None  # in a column with a usual name


class _Columns(NamedTuple):
    """The columns of one file; ``texts`` may be several (caption_0, caption_1, …), and so may
    ``urls``, of which a row's first URL counts.
    """

    texts: tuple[str, ...]
    image: str | None
    key: str | None = None
    split: str = SPLIT_COLUMN
    urls: Sequence[str] = ()
    kept: KeptColumns = KeptColumns()


# chooses the columns to use among those of the file
_Pick = Callable[[Iterable[str]], _Columns]
_Rows = Iterator[tuple[Record, _Columns]]


def read_captions(
    path: Path, options: ReadOptions | None = None, *, images: bool = False
) -> Iterator[CaptionRow]:
    """Yield the rows of a captions file, a text file or a list of images; the suffix names the
    format.

    Args:
        path: a table (``{"image", "captions": [...], "split"}`` in JSON lines, or `file_name` and
            `text` as in ImageFolder), see `open_table`; .txt and .token with a text a line, with
            ``image#number`` and a tab before each as in Flickr8k.token.txt, or with the header of a
            .csv.
        options: ``text_column`` and ``key_column`` are used if the usual names do not fit.
        images: read it as a list of images: ``options.image_column`` names them, or a column has
            their URLs, and texts may be missing. It names those of ``options.captions`` too.

    Raises:
        CorpusError: if the file is missing, of an unknown format, unreadable, or has no such
            column.
    """
    suffix = path.suffix.lower()
    if suffix not in (*TABLE_SUFFIXES, *LINES):
        raise CorpusError(
            f"{path} is not a text file in a supported format.",
            remedy=f"Supported: {', '.join((*TABLE_SUFFIXES, *LINES))}, .tar, and folders of these "
            "or of images. Unpack a zip and decompress a compressed tar first (unzip, gunzip, "
            "unxz, zstd -d), and save a spreadsheet as CSV UTF-8.",
        )

    def pick_columns(names: Iterable[str]) -> _Columns:
        return _pick_columns(path, options or ReadOptions(), images, names)

    file = str(path)  # once, not for each of millions of rows
    with reading(path, CorpusError):
        if suffix in LINES:
            rows = _read_lines(path, pick_columns)
        else:
            rows = _rows_of(open_table(path), pick_columns, is_csv=suffix in CSV_SUFFIXES)
        for record, columns in rows:
            values = record.values
            place = f"{file}, line {record.line}"
            captions = captions_of(values, columns.texts, place)
            file_name = values.get(columns.image) if columns.image else None
            if file_name is not None and not isinstance(file_name, str):
                raise CorpusError(
                    f"{place}: the column {columns.image!r} contains {file_name!r} instead of "
                    f"a file name."
                )
            split = values.get(columns.split)
            key = values.get(columns.key) if columns.key else None
            url = None
            if columns.urls:
                cells = [str(values.get(name)).strip() for name in columns.urls]
                url = next(filter(is_url, cells), None)
            yield CaptionRow(
                file_name=(file_name or "").strip() or None,
                captions=captions,
                split=str(split) if split else None,
                line=record.line,
                key=None if key is None else as_key(str(key)),
                columns=columns.kept.values_of(values),
                url=url,
            )


def _rows_of(table: OpenTable, pick_columns: _Pick, *, is_csv: bool) -> _Rows:
    """Yield the rows of a table, with the values of the columns to use."""
    if not table.columns:
        return
    # The last column of a CSV file has no name if the lines end in a delimiter
    columns = pick_columns(filter(None, table.columns))
    names = {*columns.texts, columns.image, columns.key, columns.split}
    names |= {*columns.urls, *columns.kept.names}
    for record in table.records(names):
        if is_csv:
            # Spreadsheets may write rows of empty cells at the end
            if not any(cell and cell.strip() for cell in record.values.values()):
                continue
            for name in columns.texts:
                record.values[name] = _unlisted(record.values[name])
        yield record, columns


def _unlisted(cell: str | None) -> Any:
    """Return the strings in a cell that contains a list of them, as Hugging Face and pandas write
    it; else the cell.
    """
    if cell and _LIST.fullmatch(cell):
        with suppress(ValueError):
            return json.loads(cell)
        # unknown escapes
        with suppress(ValueError, SyntaxError), warnings.catch_warnings(action="ignore"):
            return ast.literal_eval(cell)
    return cell


def _read_lines(path: Path, pick_columns: _Pick) -> _Rows:
    """Yield one record per line that is not blank; bytes that are not UTF-8 become surrogates,
    which callers refuse.
    """
    columns = _Columns(("text",), "image")
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", "surrogateescape") as file:
        for line, text in enumerate(limited_lines(file), start=1):
            if line == 1:
                names = [name.strip() for name in text.split(delimiter_of(text))]
                if pick(names, "image", "url") and pick(names, "caption"):
                    # captions.txt, of Flickr8k on Kaggle
                    table = table_of_records(read_records(path))
                    yield from _rows_of(table, pick_columns, is_csv=True)
                    return
            match = _TOKENS.fullmatch(text.strip())
            image, caption = match.groups() if match else (None, text)
            if caption.strip():
                yield Record(line, {"image": image, "text": caption.strip()}), columns


def _pick_columns(path: Path, options: ReadOptions, images: bool, names: Iterable[str]) -> _Columns:
    """Choose the columns of a captions file, or of a list of images.

    Raises:
        CorpusError: if a requested column is missing, or the file has neither texts nor images.
    """
    present = list(names)
    is_captions = path == options.captions
    image_column = None
    if images:
        image_column = require_column(present, options.image_column, "--image-column", path)
    elif is_captions and options.image_column is not None:
        # The column of a list may be meant, beside a captions file with usual names
        usual = pick(present, "image", "key")
        with suppress(CorpusError) if usual else nullcontext():
            image_column = require_column(present, options.image_column, "--image-column", path)
    texts = pick_text_columns(present, options.text_column, path)
    urls = pick_all(present, "url", "image")
    if not texts and image_column is None and not (images and urls):
        usual = ", ".join(ROLES["caption"])
        raise CorpusError(
            f"{path} has no text column with a known name ({usual}); its columns are: "
            f"{', '.join(present) or 'none'}.",
            remedy="Choose the text column with --text-column, or the image column with "
            "--image-column.",
        )
    key_column = require_column(present, options.key_column, "--key-column", path)
    options.note_use("text_column", "key_column")
    if images or image_column is not None:
        options.note_use("image_column")
    return _Columns(
        texts,
        image=pick(present, "image", wanted=image_column),
        key=pick(present, "key", wanted=key_column),
        split=pick(present, "split") or SPLIT_COLUMN,  # later JSON lines may have one
        urls=urls,
        kept=options.kept_columns,
    )


def require_column(present: list[str], wanted: str | None, option: str, path: Path) -> str | None:
    """Return the column ``wanted``, or the one that differs from it only in upper and lower case,
    spaces and underscores; None for None.

    Raises:
        CorpusError: if it is missing; names the columns that are.
    """
    if wanted is None or wanted in present:
        return wanted
    for column in present:
        if plain_name(column) == plain_name(wanted):
            return column
    raise CorpusError(
        f"{path} has no column {wanted!r}; its columns are: {', '.join(present) or 'none'}.",
        remedy=f"Choose one of them with {option}.",
    )


def pick_text_columns(present: list[str], wanted: str | None, path: Path) -> tuple[str, ...]:
    """Return the columns with texts: ``wanted``, else the first of the usual names, else caption_0,
    caption_1, ….

    Raises:
        CorpusError: if ``wanted`` is missing.
    """
    column = pick(present, "caption", wanted=require_column(present, wanted, "--text-column", path))
    if column:
        return (column,)
    return tuple(name for name in present if _NUMBERED.fullmatch(name))


def columns_of_images(path: Path) -> list[str]:
    """Return the columns of a table whose first values are file names of images."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return []
    table = open_table(path)
    names = table.plain_columns
    records = [record.values for record in islice(table.records(names), _LOOKED_AT)]
    found = []
    for name in names:
        cells = [record.get(name) for record in records]
        values = [cell for cell in cells if cell]
        if values and all(
            isinstance(value, str) and splitext(value)[1].lower() in IMAGE_SUFFIXES
            for value in values
        ):
            found.append(name)
    return found


def captions_of(record: Mapping[str, Any], columns: Iterable[str], where: str) -> list[str]:
    """Return the captions of a record: a text may be a string or a list of strings, null counts as
    no caption.

    Raises:
        CorpusError: if it is of another type.
    """
    captions: list[str] = []
    for column in columns:
        value = record.get(column)
        if value is None:
            continue
        if isinstance(value, str):
            captions.append(value)
            continue
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise CorpusError(
                f"{where}: the column {column!r} contains {type(value).__name__} instead of text.",
                remedy="Choose the column with the texts with --text-column.",
            )
        captions += value
    return captions


def key_of_text(row: CaptionRow, number: int, stem: str) -> str:
    """Return the key of a text of a row that names no image.

    Args:
        row: of the text.
        number: of the text among those of the row.
        stem: of the file, as keys are written (`as_key`).
    """
    key = row.key or f"{stem}:{row.line}"
    return key if len(row.captions) == 1 else f"{key}#{number}"


def note_of_ambiguous(keys: Collection[str]) -> str:
    """Return the sentence about items of which several rows have different values of the columns
    to keep.
    """
    return (
        f"The rows of {counted(len(keys), 'item')}, for example {min(keys)}, have different values "
        f"in the columns to keep: each item keeps those of its first row."
    )
