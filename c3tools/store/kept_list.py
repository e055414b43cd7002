"""A list of the rows of a store that are not left out, which `c3 embed` takes again.

    key, path, caption, split, and the columns of --keep-columns

A photo has a row for each of its captions, or one row without a caption; a text without a photo has
no path. Paths start from the folder of the list if all photos are below it, else they are absolute.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..corpus.containers import container_of
from ..corpus.splits import ALL
from ..errors import StoreError
from ..io.locations import is_url
from ..io.outputs import write_output
from ..reporter import counted
from .reader import Store
from .rows import row_splits
from .shards import CARRIED_TYPES

_FORMATS = (".csv", ".jsonl", ".parquet")
_COLUMNS = ("key", "path", "caption", "split")
_NAMED_BY = {"image": "path", "text": "caption"}  # the column without which a row cannot be listed


def list_suffix(path: Path) -> str:
    """Return the suffix of a list of rows, which names its format.

    Raises:
        StoreError: if it is of another format.
    """
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise StoreError(
            f"{path} is not the name of a table that can be written.",
            remedy=f"Choose a name that ends in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}.",
        )
    return suffix


def require_listable(store: Store) -> None:
    """Refuse a store with rows that a list cannot name.

    Raises:
        StoreError: if it has videos or sounds, photos in tars or tables or without a path, or rows
            without their text.
    """
    for modality in store.modalities:
        column = _NAMED_BY.get(modality)
        if column is None:
            unnamed = store.count(modality)
        else:
            unnamed = 0
            for batch in store.batches(modality, [column], split=ALL):
                for value in batch.column(column).to_pylist():
                    is_inside = column == "path" and value and container_of(value)
                    unnamed += not value or bool(is_inside)
        if unnamed:
            raise StoreError(
                f"{store.path} has {counted(unnamed, f'{modality} row')} that a list cannot name: "
                f"it names photos that are files of their own, and texts.",
                remedy="Leave --kept out. No command uses the rows that are left out of the store.",
            )


def write_list(store: Store, path: Path) -> str:
    """Write the rows that are not left out, and return what was written and the command that embeds
    it, in sentences.

    Args:
        store: of photos and texts.
        path: .csv, .jsonl or .parquet.

    Raises:
        StoreError: if the format is unknown, or the store has rows that a list cannot name.
        OutputError: if there is a file that may not be replaced.
    """
    suffix = list_suffix(path)
    require_listable(store)
    columns = sorted(store.info.columns)
    names = [*_COLUMNS, *columns]
    command = ["c3", "embed", str(path), "--text-column", "caption"]

    # Paths from the folder of the list, or from the root of the file system
    photos = _rows_of(store, "image", ["path", *columns])
    files = {row["path"]: _absolute(row["path"], store) for row in photos}
    if files:
        command += ["--image-column", "path"]
    local = {name: file for name, file in files.items() if not is_url(file)}
    if len(local) < len(files):
        command += ["--download"]
    if local:
        folder = str(path.parent.resolve())
        common = os.path.commonpath([str(Path(file).parent) for file in local.values()])
        if Path(common).is_relative_to(folder):
            files |= {name: os.path.relpath(file, folder) for name, file in local.items()}
        else:
            command += ["--images-root", common]
    for photo in photos:
        photo["path"] = files[photo["path"]]
    if columns:
        command += ["--keep-columns", ",".join(columns)]

    # A row for each caption of a photo, then the other texts
    captions = defaultdict[str, list[str]](list)
    photo_keys = {row["key"] for row in photos}
    others = []
    for row in _rows_of(store, "text", ["caption", *columns]):
        if row["image_key"] in photo_keys:
            captions[row["image_key"]].append(row["caption"])
        else:
            others.append(row)
    rows = [
        {**photo, "caption": caption}
        for photo in photos
        for caption in captions.get(photo["key"], [None])
    ]
    rows += others
    write_output(path, suffix, lambda file: _write(file, suffix, names, rows, store))
    store_again = f"{store.path}-clean"
    return (
        f"Wrote {path} with {counted(len(rows), 'row')}. To embed it: "
        f"{shlex.join([*command, '--store', store_again])}"
    )


def _rows_of(store: Store, modality: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the key, the split and some columns of the rows that are not left out."""
    if modality not in store.modalities:
        return []
    rows = []
    read_columns = ["key", "split", "image_key", *columns]
    for batch in store.batches(modality, read_columns, split=ALL):
        for row, split in zip(batch.to_pylist(), row_splits(batch), strict=True):
            rows.append({**row, "split": split})
    return rows


def _absolute(path: str, store: Store) -> str:
    """Return the absolute path of a photo, links to folders followed; a relative one starts from
    the current folder, else from the folder that the store is in.
    """
    if is_url(path):
        return path
    file = Path(path)
    if not file.exists() and (store.path.parent / path).exists():
        file = store.path.parent / path
    return str(file.parent.resolve() / file.name)


def _write(
    file: Path, suffix: str, names: Sequence[str], rows: Sequence[dict[str, Any]], store: Store
) -> None:
    if suffix == ".parquet":
        types = {name: CARRIED_TYPES[kind] for name, kind in store.info.columns.items()}
        schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
        pq.write_table(pa.Table.from_pylist(list(rows), schema), file)
        return
    with file.open("w", encoding="utf-8", newline="") as out:
        if suffix == ".csv":
            table = csv.DictWriter(out, names, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
            return
        for row in rows:
            out.write(json.dumps({name: row.get(name) for name in names}, ensure_ascii=False))
            out.write("\n")
