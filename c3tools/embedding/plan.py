"""The plan of an embedding run: a join by key of the corpus with the rows of the store.

A shard takes a fixed number of inputs, in the order of the corpus, and gets the lowest number that
is free. Finished shards take whole such blocks out of the order, so a run that was interrupted
plans the same shards again.

A text has changed if its words have. An image has changed if its size in bytes has or, for a file
on this machine, if its time of modification is not the recorded one; no image is read for this.
Only inputs from the given paths can be removed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..arrays import Mask
from ..corpus.items import PART_SUFFIX, Corpus, ImageItem, ItemTable
from ..io.files import write_atomically
from ..io.locations import is_url, name_or_file
from ..store import Store
from ..store.rows import own_items
from ..store.shards import ShardName, ShardRecord
from .shards import EmbedOptions, ShardTask
from .summary import ModalitySummary

INPUTS_FILE = "inputs.parquet"  # in the store: keys, and times of modification
_INPUTS = pa.schema({"key": pa.large_string(), "mtime": pa.int64()})  # type: ignore[arg-type]
# what rows, and failures, say of their inputs
_FILE = pa.schema({"key": pa.large_string(), "path": pa.large_string(), "size": pa.int64()})  # type: ignore[arg-type]
_TEXT = pa.schema([(name, pa.large_string()) for name in ("key", "caption", "image_key")])
# of these: the position in the corpus, and whether it is a failure
_AT, _FAILED = pc.field("at"), pc.field("failed")
# the key of a text without an image: the stem of its file, its line; of a long text that was
# divided, its part
_LINE = rf"(?s)^(?P<file>.*):\d+(?:#\d+)?(?:{PART_SUFFIX})?$"


@dataclass
class Plan:
    """The plan of one modality."""

    items: ItemTable[Any]  # its inputs in the corpus, with the splits that they have in the store
    new: list[ShardTask]  # inputs to embed
    changed: list[ShardTask]  # inputs to embed again, by the shards that have them
    # keys of rows and of failures to remove, by the number of their shard
    gone: dict[int, list[str]]
    made_up_for: Sequence[int]  # numbers of missing shards whose inputs this run embeds again
    summary: ModalitySummary  # counts the other inputs, and lists those that changed or have gone


def plan_corpus(
    store: Store,
    corpus: Corpus,
    options: EmbedOptions,
    lost: Mapping[ShardName, ShardRecord] = MappingProxyType({}),
) -> dict[str, Plan]:
    """Return the plan of each modality that the corpus or the store has.

    The numbers of ``lost`` shards, which are recorded and do not exist, are free only if enough
    items are to be embedded to bring their rows back.
    """
    sources, times = Sources(corpus), _read_times(store.path)
    plans: dict[str, Plan] = {}
    for modality, items in corpus.by_modality().items():
        table: Any = items.table
        parts = store.parts(modality)
        if not items and not parts:
            continue
        rows = _stored_inputs(store, modality)
        rows = rows.append_column("at", pc.index_in(rows["key"], table["key"]))
        before, away = rows.filter(~_FAILED & _AT.is_valid()), rows.filter(_AT.is_null())
        positions, own = before["at"].to_numpy().astype(np.int64), table.take(before["at"])
        every, modified = np.arange(len(items)), np.zeros(len(items), bool)
        known = np.isin(every, positions)
        summary = ModalitySummary(already=len(positions))
        if modality == "text":
            differs = pc.not_equal(before["caption"], own["caption"])
            of_others = _is_in(table["image_key"], sources.foreign)
            foreign, elsewhere = of_others[positions], table["key"].filter(pa.array(of_others))
            known |= of_others
        else:
            recorded = times["mtime"].take(pc.index_in(table["key"], times["key"]))
            modified = _true(pc.not_equal(table["mtime"], recorded))  # not where either is null
            differs = pc.or_kleene(
                pc.not_equal(before["size"], own["size"]), pa.array(modified[positions])
            )
            foreign = ~_true(pc.equal(before["path"], own["path"]))
            images: Any = items.take(positions[foreign])
            foreign[foreign] = list(
                map(sources.is_other, before["path"].filter(pa.array(foreign)).to_pylist(), images)
            )
            elsewhere = own["key"].filter(pa.array(foreign))
        summary.from_elsewhere = sorted(elsewhere.to_pylist())
        again, of_part = _true(differs) & ~foreign, before["part"].to_numpy()
        changed = [
            (int(part), np.sort(positions[again & (of_part == part)]))
            for part in np.unique(of_part[again])
        ]
        gone: dict[int, list[str]] = defaultdict(list)
        for row in (
            away.filter(pa.array(sources.lost_rows(away)))
            .sort_by([("part", "ascending"), ("key", "ascending")])
            .to_pylist()
        ):
            gone[row["part"]].append(row["key"])
            summary.gone += [] if row["failed"] else [row["key"]]
        if not options.retry_failed:
            tried = np.isin(every, rows.filter(_FAILED & _AT.is_valid())["at"])
            tried &= ~known & ~(modified & options.update)
            known |= tried
            summary.failed_before = int(tried.sum())
        pending, size = np.flatnonzero(~known), options.shard_size
        missing = {part: record.rows for (name, part), record in lost.items() if name == modality}
        made_up_for = sorted(missing) if len(pending) >= sum(missing.values()) else []
        numbers = chain(
            made_up_for, (number for number in count() if number not in {*parts, *missing})
        )
        new = [
            (next(numbers), pending[start : start + size]) for start in range(0, len(pending), size)
        ]
        summary.changed = [
            key for _, found in changed for key in table["key"].take(pa.array(found)).to_pylist()
        ]
        plans[modality] = Plan(
            _with_known_splits(items, store) if (new or changed) and store.modalities else items,
            new,
            changed if options.update else [],
            gone if options.prune else {},
            made_up_for,
            summary,
        )
        sources.foreign += summary.from_elsewhere
        sources.gone_images += chain(*gone.values())
    return plans


def _stored_inputs(store: Store, modality: str) -> Any:
    """Return what the rows and the failures of a modality say of their inputs, with the numbers of
    their shards.
    """
    schema, parts = _TEXT if modality == "text" else _FILE, store.parts(modality)
    batches = [
        batch.select(schema.names).cast(schema)
        for batch in store.batches(modality, schema.names, parts=parts)
    ]
    counts = [store.shards[modality, part].rows for part in parts]
    failures = [
        {"key": failure.key, "path": failure.path, "part": part, "failed": True}
        for part in parts
        for failure in store.shard_failures(modality, part)
    ]
    rows = pa.Table.from_batches(batches, schema)
    rows = rows.append_column("part", pa.array(np.repeat(np.array(parts, np.int64), counts)))
    rows = rows.append_column("failed", pa.repeat(False, len(rows)))
    return pa.concat_tables([rows, pa.Table.from_pylist(failures, rows.schema)])


def _with_known_splits(items: ItemTable[Any], store: Store) -> ItemTable[Any]:
    """Return the items with the splits that they have in the store, or else in the corpus."""
    table, known = items.table, store.item_splits()
    own = zip(own_items(table).to_pylist(), table["split"].to_pylist(), strict=True)
    splits = pa.array(
        [known.get(item, split) for item, split in own], table.schema.field("split").type
    )
    return ItemTable(
        items.kind, table.set_column(table.column_names.index("split"), "split", splits)
    )


def _true(mask: Any) -> Mask:
    """Return a mask of Arrow, null as false."""
    return np.array(mask.fill_null(False).to_numpy(zero_copy_only=False), bool)


def _is_in(column: Any, keys: Any) -> Mask:
    """Return which texts of a column are among some keys."""
    return _true(
        pc.is_in(column, pa.array(keys, pa.large_string()) if isinstance(keys, list) else keys)
    )


def _read_times(store: Path) -> pa.Table:
    """Return keys and recorded times of a store's inputs; none without inputs.parquet, or if it is
    damaged.
    """
    try:
        with name_or_file(store / INPUTS_FILE) as source:
            return pq.read_table(source, schema=_INPUTS)
    except (OSError, KeyError, pa.ArrowException):
        return _INPUTS.empty_table()


def write_times(store: Path, plans: Mapping[str, Plan], *, replace: bool) -> None:
    """Record the times of new inputs in inputs.parquet; with ``replace`` also of changed ones, and
    of keys there.
    """
    found = [_INPUTS.empty_table()]
    for plan in plans.values():
        if "mtime" in plan.items.table.column_names:
            positions = [positions for _, positions in plan.new + (plan.changed if replace else [])]
            times: Any = plan.items.table.select(_INPUTS.names)
            found += [times.take(pa.array(some)) for some in positions]
    new = pa.concat_tables(found).drop_null()
    if len(new):
        before = _read_times(store)
        one, other = (before, new) if replace else (new, before)
        kept = one.filter(pc.invert(pc.is_in(one["key"], other["key"])))
        write_atomically(
            store / INPUTS_FILE, lambda path: pq.write_table(pa.concat_tables([kept, other]), path)
        )


class Sources:
    """The paths of a corpus, which separate rows whose source no longer exists from rows of other
    paths.

    An image was removed if it was below one of the paths. A caption was removed with its image, or
    if the image now has other captions, or none while captions were detected. A text without an
    image was removed if its file has others.

    Attributes:
        foreign: keys of images that the store has from files that are not of this corpus.
        gone_images: keys of images whose source no longer exists.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._roots = [_absolute(source).rstrip("/") for source in corpus.sources]
        self._containers = set(map(_absolute, corpus.containers))
        self._unusable = {_absolute(skipped.path) for skipped in corpus.skipped}
        self._texts = corpus.texts.table
        self._captioned = self._texts["image_key"].drop_null()
        media = (corpus.images, corpus.videos, corpus.audio)
        detected = corpus.captions is None and len(self._captioned)
        self._media = [items.table["key"] for items in media] if detected else []
        self.foreign: list[str] = []
        self.gone_images: list[str] = []

    def lost_rows(self, rows: Any) -> Mask:
        """Return which rows, whose keys are not in the corpus, have a source that no longer exists:
        bool (n,).
        """
        if "path" in rows.column_names:
            return np.array([self.was_below(path) for path in rows["path"].to_pylist()], bool)
        images = rows["image_key"]
        known = [_is_in(images, keys) for keys in (self.gone_images, self._captioned, *self._media)]
        files = _files_of_lines(self._texts["key"].filter(_stands_alone(self._texts)))
        of_file = _is_in(_files_of_lines(rows["key"]), files.drop_null()) & _true(
            _stands_alone(rows)
        )
        lost: Mask = (np.any(known, axis=0) & ~_is_in(images, self.foreign)) | of_file
        return lost

    def is_other(self, before: str | None, image: ImageItem) -> bool:
        """Return True if a row is of another file than the image of its key.

        It is not if the file that it was embedded from is gone, or is a tar or table that was read
        now and has its key no more.
        """
        if before is None or is_url(before):
            return False
        files = _possible_files(before)
        own = _absolute(image.source.file if image.source else image.path) in files
        moved = files & self._containers and not files & self._unusable
        return not own and not moved and any(Path(file).is_file() for file in files)

    def has_below(self, path: str) -> bool:
        """Return whether a file is one of the given paths, or below one."""
        absolute = _absolute(path)
        return any(
            absolute == root or absolute.startswith((f"{root}/", f"{root}#"))
            for root in self._roots
        )

    def was_below(self, path: str | None) -> bool:
        """Return whether a file was one of the given paths, or below one, and can be told to have
        gone.
        """
        return (
            path is not None
            and self.has_below(path)
            and self._unusable.isdisjoint(_possible_files(path))
        )


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100 - links are not followed


def _possible_files(path: str) -> set[str]:
    """Return the path of an input, and each file that may be meant if it is ``file#…``, of a tar,
    table or list.
    """
    absolute = _absolute(path)
    return {absolute, *(absolute[:i] for i, letter in enumerate(absolute) if letter == "#")}


def _stands_alone(texts: Any) -> Any:
    """Return which texts belong to no image: they have no item, or are parts of a long text, which
    is their item.
    """
    whole = pc.replace_substring_regex(texts["key"], pattern=f"{PART_SUFFIX}$", replacement="")
    return pc.fill_null(pc.equal(whole, texts["image_key"]), True)


def _files_of_lines(keys: Any) -> Any:
    """Return the stem of the file of each text by its key, null if it is not a key of a line."""
    return pc.struct_field(pc.extract_regex(keys, pattern=_LINE), "file")
