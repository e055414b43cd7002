"""A store as a data set on the Hugging Face hub, for `datasets.load_dataset`, and a store again
from it.

The data set is a copy of the store with a card, one configuration per modality. Images are not in
it. A path of an image that is absolute is cut to the name of the file, and failures have no
messages, which may name folders too.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa

from ..corpus.splits import split_order
from ..errors import StoreError
from ..io.hub import Card
from ..io.parquet import read_parquet
from ..moments import Moments, load_moments
from ..reporter import SILENT, Reporter
from .left_out import LeftOut, RowName
from .manifest import MOMENTS_FILE, StoreWriter, new_store
from .rows import row_splits
from .shards import (
    COPY_FILE,
    Failure,
    ShardName,
    ShardRecord,
    SplitMoments,
    StoreInfo,
    moments_of,
    part_name,
    write_rows,
)


def card_of(store: Any) -> Card:
    """Return the card of a store."""
    info, names = store.info, store.modalities
    counts = {
        name: sorted(store.split_counts(name).items(), key=lambda item: split_order(item[0]))
        for name in names
    }
    facts = {
        "encoder": info.model,
        "dimensions": info.dim,
        "dtype": info.dtype,
        "normalised": "yes: every embedding has length 1" if info.normalised else "no",
        "preprocessing": json.dumps(info.preprocessing) if info.preprocessing else "unknown",
        **{
            f"{name} rows": ", ".join(f"{split} {n:,}" for split, n in own)
            for name, own in counts.items()
        },
    }
    configs = [{"config_name": name, "data_files": f"{name}/part-*.parquet"} for name in names]
    return Card(
        summary=f"Embeddings of `{info.model.name}` without the images themselves.",
        code=f'import c3tools, datasets\n\nrows = datasets.load_dataset("{{name}}", "{names[0]}", '
        f'split="train")  # all\n'
        'store = c3tools.Store.from_pretrained("{name}", output="c3-store")',
        facts=facts,
        metadata={"tags": ["c3tools", "embeddings", "CLIP", "modality-gap"], "configs": configs},
    )


def save_data_set(store: Any, folder: Path) -> None:
    """Write the data set of a store to a new folder, whole or not at all."""
    if not store.modalities:
        raise StoreError(
            f"The store {store.path} has no rows to share.", remedy="Run `c3 embed` first."
        )
    store.info.require_raw(
        store.path,
        "Push the store that was exported, and the pipeline by itself (Pipeline.push_to_hub); or "
        "upload the export's folder unchanged.",
    )

    def change(_: Any, modality: str, table: pa.Table) -> pa.Table:
        if "path" not in table.column_names:
            return table
        paths = [path and _without_folder(path) for path in table.column("path").to_pylist()]
        return with_column(table, "path", pa.array(paths, pa.string()))

    def shared(_: Any, failure: Failure) -> Failure:
        return replace(failure, path=_without_folder(failure.path), message="")

    copy_store(folder, store.info, [store], change, shared, split_bytes=False)


def load_data_set(source: Any, output: str | Path = "c3-store") -> Path:
    """Make a store of a data set that `save_data_set` wrote, opened as one, and return its path."""
    for modality, part in source.shards:
        path = source.file(modality, part)
        try:
            read_parquet(path)  # declared sizes may be of a stranger
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise StoreError(
                f"{path} cannot be read ({error}).", remedy="Download the data set again."
            ) from error
    copy_store(output, source.info, [source], adds_stored=False)
    return Path(output)


def copy_store(
    destination: str | Path,
    info: StoreInfo,
    sources: Sequence[Any],
    change: Callable[[Any, str, pa.Table], pa.Table] = lambda store, modality, table: table,
    rename: Callable[[Any, Failure], Failure] = lambda store, failure: failure,
    *,
    left_out: Callable[[Any], Mapping[RowName, str]] = lambda store: store.left_out.reasons,
    record: Callable[[Path], None] = lambda folder: None,
    reporter: Reporter = SILENT,
    split_bytes: bool = True,
    adds_stored: bool = True,
) -> dict[str, dict[str, int]]:
    """Write a new store of the shards of others. Its moments are the stored ones of the others;
    only rows that are not copied, or are in another split, are summed.

    Args:
        destination: its folder.
        info: of the new store.
        sources: the stores.
        change: from a store, a modality and the rows of a shard to the new rows.
        rename: from a store and a failure to the new one.
        left_out: from a store to the rows that are left out of the new one, and why; called after
            all shards are copied.
        record: called with the folder when all shards are copied, to write copied.json.
        reporter: shows the progress.
        split_bytes: see `write_rows`.
        adds_stored: False for sources whose moments may be wrong; all rows are summed then.

    Returns:
        the numbers of rows by modality and split, without those that are left out.
    """
    numbers = Counter[str]()  # of the next shard, by modality
    records: dict[ShardName, ShardRecord] = {}
    stored_moments = {}
    moments: SplitMoments = {}  # of all rows, those that are left out too
    for store in sources:
        stored_moments[store] = store.exact_moments if adds_stored else None
        Moments.add_groups(moments, stored_moments[store] or {})
    with new_store(destination, info) as building:
        with reporter.progress(
            "Copying shards", sum(len(store.shards) for store in sources)
        ) as progress:
            for store, (modality, part) in [
                (source, shard) for source in sources for shard in source.shards
            ]:
                table, failures = store.read_shard(modality, part)
                failed = [rename(store, failure) for failure in failures]
                shard = modality, numbers[modality]
                rows = change(store, modality, table)
                records[shard] = write_rows(
                    building / part_name(*shard),
                    info,
                    modality,
                    rows,
                    failed,
                    split_bytes=split_bytes,
                )
                if stored_moments[store] is None:
                    Moments.add_groups(moments, moments_of(modality, rows))
                else:
                    _, left_out_rows = store.left_out.divide(modality, table)
                    Moments.add_groups(moments, moments_of(modality, left_out_rows))
                    former_rows, new_rows = _moved_rows(table, rows)
                    Moments.add_groups(moments, moments_of(modality, new_rows))
                    Moments.subtract_groups(moments, moments_of(modality, former_rows))
                numbers[modality] += 1
                progress.advance()
        # of several failures of one input the last is listed: that of the first store
        listed = [
            rename(store, f)
            for store in reversed(sources)
            for f in store.recorded_failures()
            if f.stage == "list"
        ]
        reasons: dict[RowName, str] = {}
        for store in sources:
            reasons |= left_out(store)
        record(building)
        writer = StoreWriter(building, files=[COPY_FILE], left_out=LeftOut(reasons))
        writer.added.update(records)
        Moments.add_groups(writer.groups, moments)
        writer.finish(listed)
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for name, group in sorted(load_moments(building / MOMENTS_FILE)[0].items()):
            modality, _, split = name.partition("/")
            counts[modality][split] = group.n
        return dict(counts)


def _moved_rows(former: pa.Table, new: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows of a shard that are in another split than their copies, and these copies; all
    rows if some are not copied.
    """
    if len(new) < len(former):
        return former, new
    has_moved = np.array(row_splits(former)) != np.array(row_splits(new))
    return former.filter(pa.array(has_moved)), new.filter(pa.array(has_moved))


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return a table with other values in one column."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), values)


def _without_folder(path: str) -> str:
    """Return a path, cut to the file name if it is absolute, because it reveals folders of the
    user.
    """
    plain = PurePath(path.strip("'\""))  # a path that is not UTF-8 is recorded in quotes
    return plain.name if plain.is_absolute() else path
