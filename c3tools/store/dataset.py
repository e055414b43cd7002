"""A store as a data set on the Hugging Face hub, for `datasets.load_dataset`, and a store again from it.

The data set is a copy of the store with a card, one configuration per modality. Images are not in it. A path of an
image that is absolute is cut to the name of the file, and failures have no messages, which may name folders too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePath

import pyarrow as pa

from ..corpus.splits import split_order
from ..errors import StoreError
from ..io.artifact import Card
from ..io.files import sha256_of
from ..io.parquet import read_parquet
from ..reporter import SILENT
from .copies import with_column, write_copy
from .manifest import finish_store, new_store
from .metadata import Failure
from .reader import Store
from .shards import check_schema, part_name, read_header, write_rows


def card_of(store: Store) -> Card:
    """Return the facts of the card of a store."""
    info, names = store.info, [name for name in store.modalities if store.count(name)]
    counts = {name: sorted(store.split_counts(name).items(), key=lambda item: split_order(item[0])) for name in names}
    facts = {
        "encoder": info.model,
        "dimensions": info.dim,
        "dtype": info.dtype,
        "normalised": "yes: every embedding has length 1" if info.normalised else "no",
        "preprocessing": json.dumps(info.preprocessing) if info.preprocessing else "unknown",
        **{f"{name} rows": ", ".join(f"{split} {n:,}" for split, n in own) for name, own in counts.items()},
    }
    configs = [{"config_name": name, "data_files": f"{name}/part-*.parquet"} for name in names]
    return Card(
        f"Embeddings of `{info.model.name}` without the images themselves.",
        f'import c3tools, datasets\n\nrows = datasets.load_dataset("{{name}}", "{names[0]}", split="train")  # all\n'
        'store = c3tools.Store.from_pretrained("{name}", output="c3-store")',
        facts,
        tags=("embeddings", "CLIP", "modality-gap"),
        metadata={"configs": configs},
    )


def save_data_set(store: Store, folder: Path) -> None:
    """Write the data set of a store to a new folder, whole or not at all.

    Raises:
        StoreError: if the folder is there, the store has no rows, or cannot be read.
    """
    if not any(map(store.count, store.modalities)):
        raise StoreError(f"The store {store.path} has no rows to share.", remedy="Run `c3 embed` first.")

    def change(_: Store, modality: str, table: pa.Table) -> pa.Table:
        if "path" not in table.column_names:
            return table
        paths = [path and _without_folder(path) for path in table.column("path").to_pylist()]
        return with_column(table, "path", pa.array(paths, pa.string()))

    def shared(_: Store, failure: Failure) -> Failure:
        return replace(failure, path=_without_folder(failure.path), message="")

    write_copy(folder, store.info, [store], change, shared, "Copying shards", SILENT, split_bytes=False)


def load_data_set(folder: Path, output: str | Path = "c3-store") -> Path:
    """Make a store of a data set that `save_data_set` wrote, and return its path.

    Raises:
        StoreError: if there is something at ``output``, or the data set is not of c3tools, or damaged.
    """
    source = Store.open(folder)
    with new_store(output, source.info) as new:
        for modality, part in source.shards:
            path = source.file(modality, part)
            try:
                table = read_parquet(path)  # declared sizes are checked: it may be of a stranger
                check_schema(table.schema, modality, source.info)
                if sha256_of(path) != source.shard_digest(modality, part):
                    raise ValueError("its sha256 is another one")
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                raise StoreError(f"{path} cannot be read ({error}).", remedy="Fetch the data set again.") from error
            write_rows(new / part_name(modality, part), source.info, table, read_header(path).failures)
        finish_store(new, [failure for failure in source.recorded_failures() if failure.stage == "list"])
    return Path(output)


def _without_folder(path: str) -> str:
    """Return a path, cut to the file name if it is absolute, because it reveals folders of the user."""
    plain = PurePath(path.strip("'\""))  # a path that is not UTF-8 is recorded in quotes
    return plain.name if plain.is_absolute() else path
