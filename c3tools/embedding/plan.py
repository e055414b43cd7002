"""The plan of an embedding run: a join by key of the corpus with the rows of the store.

The corpus has the keys of the store (`keys.with_stored_keys`), so that a key means the same file on
both sides.

A shard takes a fixed number of inputs, in the order of the corpus, and gets the lowest number that
is free. Finished shards take whole such blocks out of the order, so a run that was interrupted
plans the same shards again.

A text has changed if its words have. An image has changed if its size in bytes has or, for a file
on this machine, if its time of modification is not the recorded one: with --update such a file is
read, and has changed if its bytes have. It has moved if its path is another. Other values of the
columns that a row keeps are written without the encoder. Only inputs from the given paths can be
removed. Rows keep their splits: those that the corpus names otherwise are only listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..arrays import Indices
from ..corpus.items import Corpus, ItemTable
from ..corpus.splits import splits_of
from ..io.files import sha256_of
from ..io.locations import location
from ..reporter import SILENT, Reporter
from ..store import Store
from ..store.dataset import with_column
from ..store.rows import own_items
from ..store.shards import ShardName, ShardRecord
from .inputs import MEDIA, StoredInputs, absolute_paths
from .shard_work import EmbedOptions, PlannedShard, ShardEdit
from .sources import Sources
from .summary import ModalitySummary


@dataclass
class Plan:
    """The plan of one modality."""

    items: ItemTable[Any]  # its inputs in the corpus, with the splits that they have in the store
    new: list[PlannedShard]  # inputs to embed
    changed: list[PlannedShard]  # inputs to embed again, by the shards that have them
    moved: Indices  # positions of inputs whose new paths are written
    same: Indices  # positions of files with the bytes of their rows, of another time
    edits: dict[int, ShardEdit]  # by number of shard: rows to remove, new paths and columns
    replacing_lost: Sequence[int]  # numbers of missing shards whose inputs this run embeds again
    summary: ModalitySummary  # counts the other inputs, and lists those that changed or have gone


@dataclass(frozen=True)
class _Join:
    """Rows and failures of a modality in the store, joined with its inputs in the corpus.

    Attributes:
        inputs: those whose key is in the corpus: key, part, is_failure, position in the corpus,
            what is compared (stored_size, corpus_size, …), item, is_moved, is_changed and
            has_other_columns; columns, as the corpus has them; of images new_path, likewise.
        gone: those whose source no longer exists: key, part, is_failure.
        same: see `Plan`.
    """

    inputs: Any
    gone: Any
    same: Indices


def plan_corpus(
    store: Store,
    stored: StoredInputs,
    corpus: Corpus,
    options: EmbedOptions,
    lost: Mapping[ShardName, ShardRecord] = MappingProxyType({}),
    reporter: Reporter = SILENT,
) -> dict[str, Plan]:
    """Return the plan of each modality that the corpus or the store has.

    The numbers of ``lost`` shards, which are recorded and do not exist, are free only if enough
    items are to be embedded to bring their rows back.

    Args:
        store: the store.
        stored: its inputs.
        corpus: the inputs, with the keys of the store.
        options: of the run.
        lost: shards that the manifest lists and that are missing.
        reporter: shows the files that are compared.
    """
    sources = Sources(corpus)
    items = corpus.by_modality()
    joins: dict[str, _Join] = {}
    # Images come before texts, because the captions of an image go with it
    gone_images: list[str] = []
    for modality in MEDIA:
        joins[modality] = _join_images(
            stored.tables[modality],
            items[modality],
            sources,
            corpus.unread_keys,
            reporter if options.update else None,
        )
        gone_images += joins[modality].gone["key"].to_pylist()
    joins["text"] = _join_texts(stored.tables["text"], items["text"], sources, gone_images)

    plans: dict[str, Plan] = {}
    for modality, join in joins.items():
        parts = store.parts(modality)
        if items[modality] or parts:
            missing = {
                part: record.rows for (name, part), record in lost.items() if name == modality
            }
            plans[modality] = _plan_of(join, items[modality], options, parts, missing)
    with_tasks = {name: plan for name, plan in plans.items() if plan.new or plan.changed}
    if with_tasks:
        splits = store.item_splits()
        if splits:
            # The splits that items have in the store come before those in the corpus
            for plan in with_tasks.values():
                table: Any = plan.items.table
                of_items = zip(
                    own_items(table).to_pylist(), table["settled"].to_pylist(), strict=True
                )
                settled = [splits.get(item_key, split) for item_key, split in of_items]
                column = pa.array(settled, table.schema.field("settled").type)
                plan.items = ItemTable(plan.items.kind, with_column(table, "settled", column))
    return plans


def _join_images(
    stored: Any,
    items: ItemTable[Any],
    sources: Sources,
    unread_keys: Collection[str],
    comparing: Reporter | None,
) -> _Join:
    """Join rows and failures of images, videos or sounds with those in the corpus; those whose file
    a list names and that cannot be read are not gone. Files of another time are compared with what
    was embedded, which a reporter shows; None to take them for changed.
    """
    in_both, in_store_only = _join_by_key(stored, items)
    in_corpus: Any = items.table.take(in_both["position"])
    inputs: Any = pa.table(
        {
            **_shared_columns(in_both, in_corpus),
            "stored_path": in_both["written_path"],
            "corpus_path": absolute_paths(in_corpus["path"]),
            "stored_size": in_both["size"],
            "corpus_size": in_corpus["size"],
            "stored_mtime": in_both["mtime"],
            "corpus_mtime": in_corpus["mtime"],
            "new_path": in_corpus["path"],
        }
    )
    is_moved = _differ(inputs, "path")
    is_other_size = _differ(inputs, "size")
    is_other_time = _differ(inputs, "mtime")
    is_same = pa.repeat(False, len(inputs))
    if comparing is None:
        # A row that was moved has the bytes of its file, however old the copy is
        is_other_time = pc.and_not(is_other_time, pc.and_not(is_moved, inputs["is_failure"]))
    else:
        is_to_compare = pc.and_not(is_other_time, is_other_size)
        is_same = _have_bytes(in_both["sha256"], in_corpus["path"], is_to_compare, comparing)
        is_other_time = pc.and_not(is_other_time, is_same)
    is_changed = pc.or_(is_other_size, is_other_time)
    inputs = inputs.append_column("is_moved", is_moved).append_column("is_changed", is_changed)
    was_below = [sources.was_below(path) for path in in_store_only["stored_path"].to_pylist()]
    is_gone = np.array(was_below, bool) | sources.were_listed(in_store_only)
    is_unread = pc.is_in(in_store_only["key"], pa.array(sorted(unread_keys), pa.large_string()))
    gone = in_store_only.filter(pc.and_not(pa.array(is_gone), is_unread))
    return _Join(inputs, gone, inputs["position"].filter(is_same).to_numpy())


def _have_bytes(digests: Any, paths: Any, is_to_compare: Any, reporter: Reporter) -> Any:
    """Return which files have a SHA-256, among those to compare that can be read."""
    is_same = np.zeros(len(paths), bool)
    places = np.flatnonzero(is_to_compare)
    if not len(places):
        return pa.array(is_same)
    with reporter.progress("Comparing files", len(places)) as progress:
        for place in map(int, places):
            with suppress(OSError):
                is_same[place] = sha256_of(location(paths[place].as_py())) == digests[place].as_py()
            progress.advance()
    return pa.array(is_same)


def _join_texts(
    stored: Any, items: ItemTable[Any], sources: Sources, gone_images: Sequence[str]
) -> _Join:
    """Join rows of texts with those in the corpus."""
    in_both, in_store_only = _join_by_key(stored, items)
    in_corpus: Any = items.table.take(in_both["position"])
    inputs: Any = pa.table(
        {
            **_shared_columns(in_both, in_corpus),
            "stored_caption": in_both["caption"],
            "corpus_caption": in_corpus["caption"],
            "is_moved": pa.repeat(False, len(in_both)),
        }
    )
    inputs = inputs.append_column("is_changed", _differ(inputs, "caption"))
    is_gone = sources.lost_texts(in_store_only, gone_images)
    return _Join(inputs, in_store_only.filter(pa.array(is_gone)), np.zeros(0, np.int64))


def _join_by_key(stored: Any, items: ItemTable[Any]) -> tuple[Any, Any]:
    """Return the stored rows whose key is in the corpus, with their position there, and the
    others.
    """
    positions = pc.index_in(stored["key"], items.table["key"])
    stored = stored.append_column("position", pc.cast(positions, pa.int64()))
    is_in_corpus = pc.is_valid(stored["position"])
    return stored.filter(is_in_corpus), stored.filter(pc.invert(is_in_corpus))


def _shared_columns(in_both: Any, in_corpus: Any) -> dict[str, Any]:
    columns = {name: in_both[name] for name in ("key", "part", "is_failure", "position")}
    columns["stored_split"] = in_both["split"]
    named = pc.cast(in_corpus["split"], pa.large_string())
    # Where val is the only name, rows are not to be in the split of that name
    is_hashed = pc.is_valid(in_corpus["settled"])
    columns["named_split"] = pc.if_else(is_hashed, pa.scalar(None, pa.large_string()), named)
    columns["item"] = own_items(in_corpus)
    columns["columns"] = in_corpus["columns"]
    columns["has_other_columns"] = _columns_differ(in_both, in_corpus)
    return columns


def _differ(both: Any, name: str) -> Any:
    """Return which values of the store and of the corpus differ; not where one is unknown."""
    return pc.fill_null(pc.not_equal(both[f"stored_{name}"], both[f"corpus_{name}"]), False)


def _columns_differ(stored: Any, in_corpus: Any) -> Any:
    """Return which inputs have other values in the columns that they keep than their rows; not
    where one side has none.
    """
    pairs = zip(stored["columns"].to_pylist(), in_corpus["columns"].to_pylist(), strict=True)
    return pa.array([None not in pair and pair[0] != pair[1] for pair in pairs], pa.bool_())


def _plan_of(
    join: _Join,
    items: ItemTable[Any],
    options: EmbedOptions,
    parts: Sequence[int],
    missing: Mapping[int, int],
) -> Plan:
    """Return the plan of a modality.

    Args:
        join: of its inputs.
        items: its inputs in the corpus.
        options: of the run.
        parts: numbers of the shards that exist.
        missing: numbers of the shards that are missing, with their numbers of rows.
    """
    rows = join.inputs.filter(pc.invert(join.inputs["is_failure"]))
    failures = join.inputs.filter(join.inputs["is_failure"])
    summary = ModalitySummary(already=len(rows))

    # Inputs to embed: those without a row that are not known to fail
    is_pending = np.ones(len(items), bool)
    is_pending[rows["position"].to_numpy()] = False
    if not options.retry_failed:
        before = is_pending.sum()
        is_mended = failures["is_changed"]
        if not options.update:  # other bytes at another path are those of another file
            is_mended = pc.and_(is_mended, failures["is_moved"])
        is_pending[failures.filter(pc.invert(is_mended))["position"].to_numpy()] = False
        summary.failed_before = int(before - is_pending.sum())
    pending = np.flatnonzero(is_pending)
    replacing_lost = sorted(missing) if len(pending) >= sum(missing.values()) else []
    used = {*parts, *missing}
    numbers = chain(replacing_lost, (number for number in count() if number not in used))
    new = [
        (next(numbers), pending[start : start + options.shard_size])
        for start in range(0, len(pending), options.shard_size)
    ]

    # Rows to embed again, in the order of the corpus
    changed_rows = rows.filter(rows["is_changed"]).sort_by(
        [("part", "ascending"), ("position", "ascending")]
    )
    summary.changed = changed_rows["key"].to_pylist()
    changed: list[PlannedShard] = []
    for part in pc.unique(changed_rows["part"]).to_pylist():
        of_part = changed_rows.filter(pc.equal(changed_rows["part"], part))
        changed.append((part, of_part["position"].to_numpy()))

    # Rows of unchanged inputs that keep other values
    is_renewed = pc.and_not(rows["has_other_columns"], rows["is_changed"])
    renewed = rows.filter(is_renewed)
    summary.other_columns = renewed["key"].to_pylist()

    # Rows that the corpus names another split of
    is_same_name = pc.fill_null(pc.equal(rows["stored_split"], rows["named_split"]), False)
    renamed = rows.filter(pc.and_not(pc.is_valid(rows["named_split"]), is_same_name))
    items_of_rows = renamed["item"].to_pylist()
    stored_splits = splits_of(items_of_rows, renamed["stored_split"].to_pylist())
    corpus_splits = splits_of(items_of_rows, renamed["named_split"].to_pylist())
    for key, stored, named in zip(
        renamed["key"].to_pylist(), stored_splits, corpus_splits, strict=True
    ):
        if stored != named:
            summary.other_split.append(key)

    # Rows and failures to change without the encoder
    gone = join.gone.sort_by([("part", "ascending"), ("key", "ascending")])
    summary.gone = gone.filter(pc.invert(gone["is_failure"]))["key"].to_pylist()
    summary.moved = rows.filter(rows["is_moved"])["key"].to_pylist()
    edits: dict[int, ShardEdit] = defaultdict(ShardEdit)
    if options.prune:
        for row in gone.to_pylist():
            edits[row["part"]].removed.add(row["key"])
    moved = join.inputs.filter(join.inputs["is_moved"])
    if not options.update:
        moved = moved.slice(0, 0)
        renewed = renewed.slice(0, 0)
    for row in renewed.select(["key", "part", "columns"]).to_pylist():
        edits[row["part"]].columns[row["key"]] = row["columns"]
    for row in moved.to_pylist():
        edits[row["part"]].paths[row["key"]] = row["new_path"]
    return Plan(
        items,
        new,
        changed if options.update else [],
        moved["position"].to_numpy(),
        join.same,
        dict(edits),
        replacing_lost,
        summary,
    )
