"""Captions and texts from files: JSON lines, CSV, TSV, Parquet, COCO JSON, token files of Flickr8k,
and plain text.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CorpusError, reason_of
from ..io.files import MALFORMED, delimiter_of, read_csv, read_json, require_lines
from ..io.limits import limited_lines, refusing_excess
from ..io.locations import open_binary
from ..io.parquet import UNREADABLE, open_parquet
from .items import ReadOptions
from .tables import ROLES, pick

SPLIT_COLUMN = "split"
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


class _Columns(NamedTuple):
    """The columns of one file; ``texts`` may be several (caption_0, caption_1, …)."""

    texts: tuple[str, ...]
    image: str | None
    key: str | None = None


_Pick = Callable[[Iterable[str]], _Columns]
_Record = tuple[int, Mapping[str, Any], _Columns]  # line, values by column, and the columns to use


def read_captions(
    path: Path, options: ReadOptions | None = None, *, images: bool = False
) -> Iterator[CaptionRow]:
    """Yield the rows of a captions file, a text file or a list of images; the suffix names the
    format.

    Args:
        path: .jsonl (``{"image", "captions": [...], "split"}``, or `file_name` and `text` as in
            ImageFolder), .csv and .tsv with a header, .parquet, COCO captions or Karpathy splits in
            .json; .txt and .token with a text a line, with ``image#number`` and a tab before each
            as in Flickr8k.token.txt, or with the header of a .csv.
        options: ``text_column`` and ``key_column`` are used if the usual names do not fit.
        images: read it as a list of images: ``options.image_column`` names them, and texts may be
            missing.

    Raises:
        CorpusError: if the file is missing, of an unknown format, unreadable, or has no such
            column.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise CorpusError(
            f"{path} is not a text file in a supported format.",
            remedy=f"Supported: {', '.join(_READERS)}, .tar, .arrow, and folders of these or of "
            f"images. Decompress a "
            "compressed tar first (gunzip, unxz, zstd -d).",
        )
    chosen = options or ReadOptions()
    try:
        with refusing_excess(path):
            require_lines(path, CorpusError)
            for line, record, columns in read(
                path, lambda names: _pick_columns(path, chosen, images, names)
            ):
                captions = captions_of(record, columns.texts, f"{path}, line {line}")
                name = record.get(columns.image) if columns.image else None
                if name is not None and not isinstance(name, str):
                    raise CorpusError(
                        f"{path}, line {line}: the column {columns.image!r} contains {name!r} "
                        f"instead of a file name."
                    )
                split, key = (
                    record.get(SPLIT_COLUMN),
                    record.get(columns.key) if columns.key else None,
                )
                key = None if key is None else str(key)
                yield CaptionRow(name or None, captions, str(split) if split else None, line, key)
    except (*UNREADABLE, csv.Error) as error:
        raise CorpusError(f"{path} cannot be read ({reason_of(error)}).") from error


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and values of each row of JSON lines, or of a table with a header as CSV
    has it.

    Raises:
        CorpusError: if a line is no JSON object, or a row has more cells than the header.
        OSError, ValueError, csv.Error: if it cannot be read.
    """
    if path.suffix.lower() == ".jsonl":
        with open_binary(path) as file:
            for line, raw in enumerate(limited_lines(file), start=1):
                if raw.strip():
                    try:
                        yield line, dict(json.loads(raw).items())
                    except MALFORMED as error:
                        raise CorpusError(
                            f"{path}, line {line} is not JSON ({error}).",
                            remedy="Each line needs to be a JSON object.",
                        ) from error
        return
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", newline="") as text:
        reader = read_csv(limited_lines(text), path.suffix)
        for record in reader:
            if any(record.pop(None, [])):
                raise CorpusError(
                    f"{path}, line {reader.line_num} has more cells than the header has columns.",
                    remedy=f"Put double quotes around each cell that contains "
                    f"{reader.reader.dialect.delimiter!r}.",
                )
            yield reader.line_num, record


def _read_rows(path: Path, pick: _Pick) -> Iterator[_Record]:
    """Yield the rows; the columns are those of the first one."""
    columns: _Columns | None = None
    for line, record in read_records(path):
        columns = columns or pick(filter(None, record))
        if path.suffix.lower() != ".jsonl":
            record |= {name: _unlisted(record[name]) for name in columns.texts}
        yield line, record, columns


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


def _read_parquet(path: Path, pick: _Pick) -> Iterator[_Record]:
    with open_parquet(path) as file:
        columns = pick(file.schema.names)
        used = {*columns.texts, columns.image, columns.key, SPLIT_COLUMN}
        batches = file.batches([name for name in file.schema.names if name in used])
        for line, record in enumerate(
            (record for batch in batches for record in batch.to_pylist()), start=1
        ):
            yield line, record, columns


def _read_coco(path: Path, _: _Pick) -> Iterator[_Record]:
    """Yield a record per image of `captions_val2017.json` or `dataset_coco.json`, captions in the
    order of the file.
    """
    captions: dict[Any, list[str]] = defaultdict(list)
    try:
        value = read_json(path)
        for annotation in value.get("annotations", ()):
            captions[annotation["image_id"]].append(str(annotation["caption"]))
        if "annotations" in value:
            rows = [(image["file_name"], captions[image["id"]], None) for image in value["images"]]
        else:  # Karpathy's splits
            rows = [
                (i["filename"], [str(s["raw"]) for s in i["sentences"]], i.get("split"))
                for i in value["images"]
            ]
    except MALFORMED as error:
        raise CorpusError(
            f"{path} is not a COCO captions file: it is not JSON, or something is missing "
            f"({error!r}).",
            remedy='Use {"images": [{"id", "file_name"}], "annotations": [{"image_id", '
            '"caption"}]}.',
        ) from error
    for line, (name, texts, split) in enumerate(rows, start=1):
        yield (
            line,
            {"file_name": str(name), "captions": texts, "split": split},
            _Columns(("captions",), "file_name"),
        )


def _read_lines(path: Path, pick: _Pick) -> Iterator[_Record]:
    """Yield one record per line that is not blank; bytes that are not UTF-8 become surrogates,
    which callers refuse.
    """
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", "surrogateescape") as file:
        for line, text in enumerate(limited_lines(file), start=1):
            names = (
                {name.strip() for name in text.split(delimiter_of(text))} if line == 1 else set()
            )
            if names.intersection(ROLES["image"]) and names.intersection(ROLES["caption"]):
                yield from _read_rows(path, pick)  # captions.txt, of Flickr8k on Kaggle
                return
            match = _TOKENS.fullmatch(text.strip())
            image, caption = match.groups() if match else (None, text)
            if caption.strip():
                yield line, {"image": image, "text": caption.strip()}, _Columns(("text",), "image")


_READERS: dict[str, Callable[[Path, _Pick], Iterator[_Record]]] = {
    ".json": _read_coco,
    ".jsonl": _read_rows,
    ".csv": _read_rows,
    ".tsv": _read_rows,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
    ".token": _read_lines,
}


def _pick_columns(path: Path, options: ReadOptions, images: bool, names: Iterable[str]) -> _Columns:
    """Choose the columns of a captions file, or of a list of images.

    Raises:
        CorpusError: if a requested column is missing, or the file has neither texts nor images.
    """
    present = list(names)
    image = require_column(
        present, options.image_column if images else None, "--image-column", path
    )
    texts = pick_text_columns(present, options.text_column, path)
    if not texts and image is None:
        usual = ", ".join(ROLES["caption"])
        raise CorpusError(
            f"{path} has no text column with a known name ({usual}); its columns are: "
            f"{', '.join(present) or 'none'}.",
            remedy="Choose the column of the texts with --text-column, or that of the images with "
            "--image-column.",
        )
    key = require_column(present, options.key_column, "--key-column", path)
    return _Columns(
        texts,
        pick(present, "image", wanted=image),
        pick(present, "key", wanted=key),
    )


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
    """Return the columns with texts: ``wanted``, else the first of the usual names, else caption_0,
    caption_1, ….

    Raises:
        CorpusError: if ``wanted`` is missing.
    """
    require_column(present, wanted, "--text-column", path)
    column = pick(present, "caption", wanted=wanted)
    return (column,) if column else tuple(filter(_NUMBERED.fullmatch, present))


def captions_of(record: Mapping[str, Any], texts: Iterable[str], where: str) -> list[str]:
    """Return the captions of a record: a text may be a string or a list of strings, null counts as
    no caption.

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
