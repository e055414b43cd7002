"""A store as a data set on the Hugging Face hub, for `datasets.load_dataset`, and a store again from it.

    README.md                                 the card: one configuration per modality, encoder, preprocessing, norm
    store.json                                what the embeddings are, as in the store
    data/image/train-00000-of-00002.parquet   the rows of one split, as all commands see it; a shard of a store
    moments.safetensors                       count, mean and scatter by modality and split

Images are not among it. A path of an image that is absolute is cut to the name of the file. Inputs that could not be
embedded are named in the metadata of the files, without messages, which may name folders too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from ..corpus.splits import split_order
from ..errors import OutputError, StoreError
from ..io.artifact import CARD_FILE, CONFIG_FILE, Card, replacing
from ..io.files import write_atomically, write_json_atomically
from ..io.locations import names_in
from ..io.parquet import read_parquet
from ..moments import Moments, load_moments, save_moments
from .manifest import MOMENTS_FILE, finish_store, new_store
from .metadata import INFO_FILE, StoreInfo
from .rows import row_splits
from .shards import check_schema, part_name, read_header, write_rows

_DATA = "data"
_FILES = {INFO_FILE, _DATA, MOMENTS_FILE}
_FILE_BYTES = 2**28  # of embeddings, before they are packed; a file is read whole
_DATA_FILE = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.parquet")


def card_of(store: Any) -> Card:
    """Return the facts of the card of a `Store`."""
    info, counts = store.info, dict[str, Counter[str]]()
    for name in (name for name in store.modalities if store.count(name)):
        moments = store.moments_by_split(name)
        counts[name] = Counter[str]()
        for split in sorted(moments, key=split_order):
            counts[name][_hub_name(split)] += moments[split].n
    facts = {
        "encoder": info.model,
        "dimensions": info.dim,
        "dtype": info.dtype,
        "normalised": "yes: every embedding has length 1" if info.normalised else "no",
        "preprocessing": json.dumps(info.preprocessing) if info.preprocessing else "unknown",
        **{
            f"{name} rows": ", ".join(f"{split} {n:,}" for split, n in by_split.items())
            for name, by_split in counts.items()
        },
    }
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{_DATA}/{name}/{split}-*.parquet"} for split in by_split],
        }
        for name, by_split in counts.items()
    ]
    first, splits = next(iter(counts.items()))
    return Card(
        f"Embeddings of `{info.model.name}` without the images themselves. Beside the rows are their moments by split "
        f"(`{MOMENTS_FILE}`).",
        f'import c3tools, datasets\n\nrows = datasets.load_dataset("{{name}}", "{first}", '
        f'split="{next(iter(splits))}")\nstore = c3tools.Store.from_pretrained("{{name}}", output="c3-store")',
        facts,
        tags=("embeddings", "CLIP", "modality-gap"),
        metadata={"configs": configs},
    )


def save_data_set(store: Any, folder: Path) -> None:
    """Write the data set of a `Store` to a folder, whole or not at all; a former one is replaced.

    Raises:
        OutputError: if the folder contains anything else.
        StoreError: if the store has no rows, or cannot be read.
    """
    names = [name for name in store.modalities if store.count(name)]
    if not names:
        raise StoreError(f"The store {store.path} has no rows to share.", remedy="Run `c3 embed` first.")
    there = set().union(*names_in(folder))
    if folder.is_file() or there - _FILES - {CONFIG_FILE, CARD_FILE} or (there and not there >= _FILES):
        raise OutputError(
            f"{folder} is there, and not a data set that c3tools wrote.", remedy="Choose a new or empty folder."
        )
    info = store.info
    file_rows = max(1, _FILE_BYTES // (info.dim * (2 if info.dtype == "float16" else 4)))
    failures = {
        name: [
            replace(failure, path=_without_folder(failure.path), message="")
            for part in store.parts(name)
            for failure in store.shard_failures(name, part)
        ]
        for name in store.modalities
    }
    # each modality's are in its first file, those of a modality without rows in the first of all
    own = [failure for name in failures.keys() - names for failure in failures[name]]
    with replacing(folder, keep=False) as new:
        write_json_atomically(new / INFO_FILE, info.to_dict())
        moments: dict[str, Moments] = {}
        for name in names:
            own += failures[name]
            table = pa.Table.from_batches(list(store.batches(name)))
            if "path" in table.column_names:
                paths = [path and _without_folder(path) for path in table.column("path").to_pylist()]
                place = table.schema.get_field_index("path")
                table = table.set_column(place, table.schema.field(place), pa.array(paths, pa.string()))
            splits = [_hub_name(split) for split in row_splits(table, store.kept_splits)]
            for split in sorted(set(splits), key=split_order):
                rows = table.filter(pa.array([own_split == split for own_split in splits]))
                count = -(-len(rows) // file_rows)
                for number in range(count):
                    path = new / _DATA / name / f"{split}-{number:05d}-of-{count:05d}.parquet"
                    write_rows(path, info, rows.slice(number * file_rows, file_rows), own, split_bytes=False)
                    own = []
            moments |= {f"{name}/{split}": found for split, found in store.moments_by_split(name).items()}
        write_atomically(new / MOMENTS_FILE, lambda path: save_moments(path, moments, {}))


def load_data_set(folder: Path, output: str | Path = "c3-store") -> Path:
    """Make a store of a data set that `save_data_set` wrote, and return its path: its files become the shards.

    Raises:
        StoreError: if there is something at ``output``, or the data set is not of c3tools, or damaged.
    """
    info, remedy = StoreInfo.load(folder), "Fetch the data set again."
    expected = Counter[str]()
    for group, moments in load_moments(folder / MOMENTS_FILE)[0].items():
        expected[group.partition("/")[0]] += moments.n
    with new_store(output, info) as new:
        for modality, wanted in expected.items():
            rows, matches = 0, [_DATA_FILE.fullmatch(name) for name in names_in(folder / _DATA / modality)[1]]
            for part, match in enumerate(sorted(filter(None, matches), key=lambda m: (split_order(m[1]), int(m[2])))):
                path = folder / _DATA / modality / match[0]
                try:
                    table = read_parquet(path)  # declared sizes are checked: it may be of a stranger
                    check_schema(table.schema, modality, info)
                except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                    raise StoreError(f"{path} cannot be read ({error}).", remedy=remedy) from error
                rows += len(table)
                write_rows(new / part_name(modality, part), info, table, read_header(path).failures)
            if rows != wanted:
                raise StoreError(f"{folder} has {rows:,} {modality} rows, not {wanted:,}.", remedy=remedy)
        finish_store(new)
    return Path(output)


def _hub_name(split: str) -> str:
    """Return the name of a split as the hub accepts it: letters, digits and underscores."""
    return re.sub(r"\W", "_", split)


def _without_folder(path: str) -> str:
    """Return a path, cut to the file name if it is absolute, because it reveals folders of the user."""
    plain = PurePath(path.strip("'\""))  # a path that is not UTF-8 is recorded in quotes
    return plain.name if plain.is_absolute() else path
