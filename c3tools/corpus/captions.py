"""Captions and texts from files: JSON lines, CSV, TSV, Parquet, COCO JSON, token files of Flickr8k, and plain text."""

from __future__ import annotations

import ast
import csv
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ..errors import CorpusError
from ..io.files import delimiter_of, read_csv, read_json
from ..io.limits import TooLargeError, limited_lines
from ..io.locations import kind_of, open_binary, open_text
from ..io.parquet import open_parquet
from ..reporter import counted
from .items import ReadOptions

IMAGE_COLUMNS = ("file_name", "image", "filename", "image_path", "filepath", "image_name")
TEXT_COLUMNS = ("captions", "text", "caption", "sentences", "sentence", "description", "title", "comment", "raw")
KEY_COLUMNS = ("key", "__key__")
ID_COLUMNS = ("image_id", "img_id", "id")
SPLIT_COLUMN = "split"
_NUMBERED = re.compile(r"(captions?|texts?|sentences?)_?\d+")
_STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*"""
_LIST = re.compile(rf"\[\s*{_STRING}(?:,\s*{_STRING})*\]", re.DOTALL)  # of strings, as JSON or Python writes it
_TOKENS = re.compile(r"(\S.*\.\w+)#\d+\t(.+)")  # a line of Flickr8k.token.txt: image#number, tab, caption


class CaptionRow(NamedTuple):
    """One row of a captions file.

    Attributes:
        file_name: the image as the file names it, or None if the row is text alone.
        captions: its texts, in order.
        split: as the file names it, or None.
        line: the line of the row, for messages (1 = first).
        key: the key of the row, if a key column was requested or has a known name.
    """

    file_name: str | None
    captions: list[str]
    split: str | None
    line: int
    key: str | None = None


class Columns(NamedTuple):
    """The columns of one file; ``texts`` may be several (caption_0, caption_1, …)."""

    texts: tuple[str, ...]
    image: str | None
    key: str | None


PickColumns = Callable[[Iterable[str]], Columns]


def read_captions(path: Path, options: ReadOptions | None = None, *, images: bool = False) -> Iterator[CaptionRow]:
    """Yield the rows of a captions file, a text file or a list of images; the suffix names the format.

    Args:
        path: .jsonl (``{"image", "captions": [...], "split"}``, or `file_name` and `text` as in ImageFolder), .csv and
            .tsv with a header, .parquet, COCO captions or Karpathy splits in .json; .txt and .token with a text a
            line, with ``image#number`` and a tab before each as in Flickr8k.token.txt, or with the header of a .csv.
        options: ``text_column`` and ``key_column`` are used if the usual names do not fit.
        images: read it as a list of images: ``options.image_column`` names them, and texts may be missing.

    Raises:
        CorpusError: if the file is missing, of an unknown format, unreadable, or has no such column.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CorpusError(
            f"{path} is not a text file in a supported format.",
            remedy=f"Supported: {', '.join(_READERS)}, .tar, .arrow, and folders of these or of images.",
        )
    if kind_of(path) != "file":
        raise CorpusError(f"The file {path} does not exist.")
    try:
        yield from reader(path, partial(_pick_columns, path, options or ReadOptions(), images))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror or error}).") from error
    except TooLargeError as error:
        raise CorpusError(
            f"{path} is larger than such a file may be: {error}.",
            remedy="If it is not damaged, write its rows as JSON lines of at most 16 MiB, which are read one by one.",
        ) from error


def _read_jsonl(path: Path, pick: PickColumns) -> Iterator[CaptionRow]:
    """Yield one row per line; the columns are those of the first line."""
    columns: Columns | None = None
    with open_binary(path) as file:
        for line, raw in enumerate(limited_lines(file), start=1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise CorpusError(
                    f"{path}, line {line} is not JSON ({error}).", remedy="Each line needs to be a JSON object."
                ) from error
            if not isinstance(record, dict):
                raise CorpusError(f"{path}, line {line} is not a JSON object.")
            columns = columns or pick(record)
            yield _row(record, line, columns, path)


def _read_separated(path: Path, pick: PickColumns) -> Iterator[CaptionRow]:
    with open_text(path, newline="") as file:
        try:
            reader = read_csv((line := each for each in limited_lines(file)), path.suffix)
            names = list(reader.fieldnames or [])
            columns = pick(name for name in names if name)
            for record in reader:
                if any(rest := record.pop(None, [])):
                    delimiter = reader.reader.dialect.delimiter
                    whole = line.split(delimiter, len(names) - 1)[-1].strip()
                    if columns.texts != (names[-1],) or not whole.startswith(record[names[-1]]):
                        raise CorpusError(
                            f"{path}, line {reader.line_num} has {counted(len(names) + len(rest), 'cell')}, but the "
                            f"header names {counted(len(names), 'column')}.",
                            remedy=f"Put double quotes around each cell that contains {delimiter!r}.",
                        )
                    record[names[-1]] = whole
                record.update({name: _unlisted(record[name]) for name in columns.texts})
                yield _row(record, reader.line_num, columns, path)
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from error
        except csv.Error as error:
            raise CorpusError(f"{path} is not a readable CSV file ({error}).") from error


def _unlisted(cell: str | None) -> Any:
    """Return the strings in a cell that contains a list of them, as Hugging Face and pandas write it; else the cell."""
    if cell is None or not _LIST.fullmatch(cell):
        return cell
    try:
        return json.loads(cell)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return cell


def _read_parquet(path: Path, pick: PickColumns) -> Iterator[CaptionRow]:
    try:
        with open_parquet(path) as file:
            names = file.schema.names
            columns = pick(names)
            used = (*columns.texts, columns.image, columns.key, SPLIT_COLUMN)
            line = 0
            for batch in file.batches([name for name in used if name is not None and name in names]):
                for record in batch.to_pylist():
                    line += 1
                    yield _row(record, line, columns, path)
    except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:
        raise CorpusError(f"{path} is not a readable Parquet file ({error}).") from error


def _read_coco(path: Path, _: PickColumns) -> Iterator[CaptionRow]:
    """Yield one row per image of `captions_val2017.json` or `dataset_coco.json`, captions in the order of the file."""
    try:
        value = read_json(path)
    except TooLargeError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is not JSON ({error}).") from error
    try:
        images = value["images"]
        rows = list(_from_annotations(images, value["annotations"]) if "annotations" in value else _karpathy(images))
    except (KeyError, TypeError, AttributeError) as error:
        raise CorpusError(
            f"{path} is not a COCO captions file: something is missing ({error!r}).",
            remedy='Use {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.',
        ) from error
    yield from rows


def _from_annotations(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> Iterator[CaptionRow]:
    captions: dict[Any, list[str]] = {}
    for annotation in annotations:
        captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]))
    for number, image in enumerate(images, start=1):
        yield CaptionRow(str(image["file_name"]), captions.get(image["id"], []), None, number)


def _karpathy(images: list[dict[str, Any]]) -> Iterator[CaptionRow]:
    for number, image in enumerate(images, start=1):
        captions = [str(sentence["raw"]) for sentence in image["sentences"]]
        split = image.get("split")
        yield CaptionRow(str(image["filename"]), captions, None if split is None else str(split), number)


def _read_lines(path: Path, pick: PickColumns) -> Iterator[CaptionRow]:
    """Yield one row per line that is not blank; bytes that are not UTF-8 become surrogates, which callers refuse."""
    with open_text(path, errors="surrogateescape") as file:
        for line, text in enumerate(limited_lines(file), start=1):
            if line == 1 and _is_header(text):
                break
            if match := _TOKENS.fullmatch(text.strip()):
                yield CaptionRow(match[1], [match[2].strip()], None, line)
            elif text.strip():
                yield CaptionRow(None, [text.strip()], None, line)
        else:
            return
    yield from _read_separated(path, pick)


def _is_header(line: str) -> bool:
    """Return whether a line names a column of images and one of texts, as in captions.txt of Flickr8k on Kaggle."""
    names = {name.strip() for name in line.split(delimiter_of(line))}
    return not names.isdisjoint(IMAGE_COLUMNS) and not names.isdisjoint(TEXT_COLUMNS)


_READERS: dict[str, Callable[[Path, PickColumns], Iterator[CaptionRow]]] = {
    ".json": _read_coco,
    ".jsonl": _read_jsonl,
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
    ".token": _read_lines,
}


def _pick_columns(path: Path, options: ReadOptions, images: bool, names: Iterable[str]) -> Columns:
    """Choose the columns of a captions file, or of a list of images.

    Raises:
        CorpusError: if a requested column is missing, or the file has neither texts nor images.
    """
    present = list(names)
    image = require_column(present, options.image_column if images else None, "--image-column", path)
    texts = pick_text_columns(present, options.text_column, path)
    if not texts and image is None:
        raise CorpusError(
            f"{path} has no text column with a known name ({', '.join(TEXT_COLUMNS)}); its columns are: "
            f"{', '.join(present) or 'none'}.",
            remedy="Choose the column of the texts with --text-column, or the column of the images with "
            "--image-column.",
        )
    key = require_column(present, options.key_column, "--key-column", path)
    return Columns(texts, image or first_column(IMAGE_COLUMNS, present), key or first_column(KEY_COLUMNS, present))


def require_column(present: list[str], wanted: str | None, option: str, path: Path) -> str | None:
    """Return ``wanted``, which is one of the columns or None.

    Raises:
        CorpusError: if it is missing; names the columns that are.
    """
    if wanted is None or wanted in present:
        return wanted
    raise CorpusError(
        f"{path} has no column {wanted!r}; its columns are: {', '.join(present) or 'none'}.",
        remedy=f"Choose one of them with {option}.",
    )


def pick_text_columns(present: list[str], wanted: str | None, path: Path) -> tuple[str, ...]:
    """Return the columns with texts: ``wanted``, else the first of the usual names, else caption_0, caption_1, ….

    Raises:
        CorpusError: if ``wanted`` is missing.
    """
    if wanted is not None:
        require_column(present, wanted, "--text-column", path)
        return (wanted,)
    usual = first_column(TEXT_COLUMNS, present)
    return (usual,) if usual else tuple(name for name in present if _NUMBERED.fullmatch(name))


def first_column(usual: Iterable[str], present: Sequence[str]) -> str | None:
    """Return the column with the first of the usual names; if there is none, one that differs by case (TEXT)."""
    alike = {name.lower(): name for name in reversed(present)}
    names = list(usual)
    return next((name for name in names if name in present), None) or next(filter(None, map(alike.get, names)), None)


def _row(record: Mapping[str, Any], line: int, columns: Columns, path: Path) -> CaptionRow:
    """Return the caption row of one record.

    Raises:
        CorpusError: if the text or the file name is of another type.
    """
    captions = captions_of(record, columns.texts, f"{path}, line {line}")
    name = record.get(columns.image) if columns.image else None
    if name is not None and not isinstance(name, str):
        raise CorpusError(
            f"{path}, line {line}: the column {columns.image!r} contains {name!r} instead of a file name."
        )
    split, key = record.get(SPLIT_COLUMN), record.get(columns.key) if columns.key else None
    return CaptionRow(name or None, captions, str(split) if split else None, line, None if key is None else str(key))


def captions_of(record: Mapping[str, Any], texts: Iterable[str], where: str) -> list[str]:
    """Return the captions of a record: a text may be a string or a list of strings, null counts as no caption.

    Raises:
        CorpusError: if it is of another type.
    """
    captions: list[str] = []
    for column in texts:
        value = record.get(column)
        more = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(more, list) or not all(isinstance(caption, str) for caption in more):
            raise CorpusError(
                f"{where}: the column {column!r} contains {type(value).__name__} instead of text.",
                remedy="Choose the column of the texts with --text-column.",
            )
        captions += more
    return captions
