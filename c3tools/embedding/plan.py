"""The plan of an embedding run: a join by key of the corpus with the rows of the store.

A shard takes a fixed number of inputs, in the order of the corpus, and gets the lowest number that is free. Finished
shards take whole such blocks out of the order, so a run that was interrupted plans the same shards again.

A text has changed if its words have. An image has changed if its size in bytes has or, for a file on this machine, if
its time of modification is not the recorded one; no image is read for this. Only inputs from the given paths can be
removed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..corpus import Corpus, ImageItem
from ..corpus.items import ItemTable
from ..io.files import write_atomically
from ..io.locations import is_url, name_or_file
from ..store import Failure, Store
from ..store.manifest import ShardRecord
from ..store.rows import own_items
from ..store.shards import ShardName
from .summary import ModalitySummary

INPUTS_FILE = "inputs.parquet"  # in the store: keys, and times of modification
_INPUTS = pa.schema({"key": pa.large_string(), "mtime": pa.int64()})  # type: ignore[arg-type]
_FILE_COLUMNS = ["key", "path", "size"]
_COLUMNS = {"image": _FILE_COLUMNS, "video": _FILE_COLUMNS, "text": ["key", "caption", "image_key"]}
_LINE = r":\d+(#\d+)?$"  # in the key of a text without an image, after the stem of its file

_Positions = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]
ShardTask = tuple[int, list[Any]]  # the shard's number and its inputs, `ImageItem` or `TextItem`


class ShardTasks:
    """The inputs of shards, which become objects when a shard is made.

    Args:
        items: images or texts.
        shards: the number of each shard, and the positions of its inputs.
        splits: of all items: that of the item in the store, or else of the corpus.
    """

    def __init__(self, items: ItemTable[Any], shards: Sequence[tuple[int, _Positions]], splits: Any = None) -> None:
        self.items, self.shards, self._splits = items, shards, splits

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self.shards)

    def __getitem__(self, position: int) -> ShardTask:
        """Return number and inputs of a shard."""
        number, positions = self.shards[position]
        inputs = self.items.take(positions)
        if self._splits is None:
            return number, inputs
        splits = self._splits.take(pa.array(positions)).to_pylist()
        return number, [item._replace(split=split or None) for item, split in zip(inputs, splits, strict=True)]

    @property
    def positions(self) -> _Positions:
        """The positions of the inputs of all shards."""
        return np.concatenate([np.zeros(0, np.int64), *(positions for _, positions in self.shards)])


@dataclass
class Plan:
    """The plan of one modality.

    Attributes:
        shards: the inputs to embed, by new shards.
        changed: the inputs that changed, by the shards that have them.
        gone: keys of rows and of failures whose source has gone, by the number of their shard.
        made_up_for: numbers of missing shards whose inputs this run embeds again.
        summary: counts the other inputs, and lists changed and removed ones.
    """

    shards: ShardTasks
    changed: ShardTasks
    gone: dict[int, list[str]]
    made_up_for: Sequence[int]
    summary: ModalitySummary


def plan_corpus(
    store: Store,
    corpus: Corpus,
    shard_size: int = 4096,
    *,
    retry_failed: bool = False,
    update: bool = False,
    lost: Mapping[ShardName, ShardRecord] | None = None,
) -> dict[str, Plan]:
    """Return the plan of each modality that the corpus or the store has.

    The numbers of ``lost`` shards are free only if enough items are to be embedded to bring their rows back.

    Args:
        store: the store.
        corpus: images, videos and texts.
        shard_size: inputs per new shard.
        retry_failed: plan what failed before, too.
        update: plan what failed before and was modified since, too.
        lost: recorded shards that do not exist.
    """
    sources, times = Sources(corpus), read_times(store.path)
    plans: dict[str, Plan] = {}
    for modality, items in (("image", corpus.images), ("video", corpus.videos), ("text", corpus.texts)):
        parts, table = store.parts(modality), items.table
        if not items and not parts:
            continue
        compared = _Compared(np.zeros(len(items), bool), np.zeros(len(items), bool))
        if "mtime" in table.column_names:  # null where it is not recorded
            known = times["mtime"].take(pc.index_in(table["key"], times["key"]))
            compared.modified = _true(pc.not_equal(table["mtime"], known))
        for part, rows, at in _join(store, modality, table):
            _compare(part, rows, at, items, compared, sources)
        changed_keys = _texts(items.table.take(ShardTasks(items, compared.changed).positions)["key"])
        summary = ModalitySummary(already=int(compared.known.sum()), changed=changed_keys)
        summary.gone = gone = [*chain(*compared.gone.values())]
        if modality == "text" and len(sources.foreign):
            skip = _true(pc.is_in(table["image_key"], sources.foreign))
            compared.known |= skip
            compared.foreign = _texts(table["key"].filter(pa.array(skip)))
        summary.from_elsewhere = sorted(compared.foreign)
        failures = {part: store.shard_failures(modality, part) for part in parts}
        for part, failed in failures.items():
            if lost_failures := [failure.key for failure in failed if sources.has_lost_failure(failure)]:
                gone = [*gone, *lost_failures]
                compared.gone[part] = sorted({*compared.gone.get(part, ()), *lost_failures})
        if not retry_failed:
            keys = _text_array(failure.key for failed in failures.values() for failure in failed)
            failed_before = _true(pc.is_in(table["key"], keys)) & ~compared.known
            failed_before &= ~compared.modified if update else True
            compared.known |= failed_before
            summary.failed_before = int(failed_before.sum())
        pending = np.flatnonzero(~compared.known)
        missing = {part: record.rows for (name, part), record in (lost or {}).items() if name == modality}
        made_up_for = sorted(missing) if len(pending) >= sum(missing.values()) else []
        numbers = chain(made_up_for, (number for number in count() if number not in parts and number not in missing))
        new = [(next(numbers), pending[start : start + shard_size]) for start in range(0, len(pending), shard_size)]
        splits = _joined_splits(store, table) if (new or compared.changed) and store.modalities else None
        shards, changed = ShardTasks(items, new, splits), ShardTasks(items, compared.changed, splits)
        plans[modality] = Plan(shards, changed, compared.gone, made_up_for, summary)
        sources.foreign = _text_array([*sources.foreign.to_pylist(), *summary.from_elsewhere])
        sources.gone_images = _text_array([*sources.gone_images.to_pylist(), *gone])
    return plans


@dataclass
class _Compared:
    """The items of one modality as the rows of the store show them.

    Attributes:
        known: which have a row, or are left out.
        modified: which are files whose time of modification is not the recorded one.
        changed: shards with changed items, and the positions of these.
        foreign: keys of items that the store has from other files.
        gone: keys of rows whose source has gone, by shard.
    """

    known: _Mask
    modified: _Mask
    changed: list[tuple[int, _Positions]] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    gone: dict[int, list[str]] = field(default_factory=dict)


def _compare(
    part: int, rows: pa.Table, at: _Positions, items: ItemTable[Any], compared: _Compared, sources: Sources
) -> None:
    """Compare the rows of one shard with the items of their keys, which are ``at`` these positions; -1: none."""
    found = np.flatnonzero(at >= 0)
    positions = at[found]
    compared.known[positions] = True
    theirs, own = rows.take(found), items.table.take(positions)
    if "caption" in rows.column_names:
        differs = _true(pc.not_equal(_text(theirs["caption"]), own["caption"]))
        foreign = _true(pc.is_in(own["image_key"], sources.foreign))
    else:
        differs = _true(pc.not_equal(theirs["size"], own["size"])) | compared.modified[positions]
        foreign = np.zeros(len(found), bool)
        for row in np.flatnonzero(~_true(pc.equal(_text(theirs["path"]), own["path"]))):
            foreign[row] = sources.is_other(theirs["path"][int(row)].as_py(), items[int(positions[row])])
    compared.foreign += _texts(own["key"].filter(pa.array(foreign)))
    if (differs & ~foreign).any():
        compared.changed.append((part, np.sort(positions[differs & ~foreign])))
    others = rows.filter(pa.array(at < 0))
    if (lost := sources.lost_rows(others)).any():
        compared.gone[part] = sorted(_texts(others["key"].filter(pa.array(lost))))


def _join(store: Store, modality: str, items: pa.Table) -> Iterator[tuple[int, pa.Table, _Positions]]:
    """Yield number and rows of each shard, and the position of the item with the key of each row, -1 without one."""
    parts = store.parts(modality)
    keys = [[_text(batch.column("key")) for batch in store.batches(modality, ["key"], parts=[part])] for part in parts]
    found = pc.index_in(pa.chunked_array([*chain(*keys)], pa.large_string()), items["key"])
    positions: _Positions = found.fill_null(-1).to_numpy().astype(np.int64)
    ends = np.cumsum([sum(map(len, own)) for own in keys])
    for part, own in zip(parts, np.split(positions, ends[:-1]) if parts else [], strict=True):
        if len(own):
            yield part, pa.Table.from_batches(list(store.batches(modality, _COLUMNS[modality], parts=[part]))), own


def _joined_splits(store: Store, items: pa.Table) -> Any:
    """Return the split of each item: that which its item has in the store, or else that of the corpus."""
    known = store.item_splits()
    found = pc.index_in(_text(own_items(items)), _text(known["item"]))
    return pc.coalesce(_text(known["split"]).fill_null("").take(found), _text(items["split"])).combine_chunks()


def _text(column: Any) -> Any:
    return column.cast(pa.large_string())


def _text_array(texts: Iterable[str]) -> Any:
    return pa.array(list(texts), pa.large_string())


def _texts(keys: Any) -> list[str]:
    found: list[str] = keys.to_pylist()
    return found


def _true(mask: Any) -> _Mask:
    """Return a mask of Arrow, null as false."""
    return np.array(mask.fill_null(False).to_numpy(zero_copy_only=False), bool)


def read_times(store: Path) -> pa.Table:
    """Return keys and recorded times of a store's inputs; none without inputs.parquet, or if it is damaged."""
    try:
        with name_or_file(store / INPUTS_FILE) as source:
            return pq.read_table(source, schema=_INPUTS)
    except (OSError, KeyError, pa.ArrowException):
        return _INPUTS.empty_table()


def write_times(store: Path, tasks: Collection[ShardTasks], *, replace: bool = True) -> None:
    """Record the times of the inputs of shards in inputs.parquet; without ``replace``, only those of new inputs."""
    tables = (task.items.table.take(task.positions) for task in tasks)
    found = [table.select(["key", "mtime"]) for table in tables if "mtime" in table.column_names]
    new = pa.concat_tables([_INPUTS.empty_table(), *found]).drop_null()
    if len(new):
        before = read_times(store)
        one, other = (before, new) if replace else (new, before)
        kept = one.filter(pc.invert(pc.is_in(one["key"], other["key"])))
        write_atomically(store / INPUTS_FILE, lambda path: pq.write_table(pa.concat_tables([kept, other]), path))


class Sources:
    """The paths of a corpus, which separate rows whose source no longer exists from rows of other paths.

    An image was removed if it was below one of the paths. A caption was removed with its image, or if the image now has
    other captions, or none while captions were detected. A text without an image was removed if its file has others.

    Attributes:
        foreign: keys of images that the store has from files that are not of this corpus.
        gone_images: keys of images whose source no longer exists.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._roots = [_absolute(source).rstrip("/") for source in corpus.sources]
        self._containers = set(map(_absolute, corpus.containers))
        self._unusable = {_absolute(skipped.path) for skipped in corpus.skipped}
        self._media = [corpus.images.table["key"], corpus.videos.table["key"]]
        self._texts = corpus.texts.table
        self._captioned = self._texts["image_key"].drop_null()
        self._detected = corpus.captions is None and len(self._captioned) > 0
        self.foreign, self.gone_images = _text_array(()), _text_array(())

    def lost_rows(self, rows: pa.Table) -> _Mask:
        """Return which rows, whose keys are not in the corpus, have a source that no longer exists: bool (n,)."""
        if "path" in rows.column_names:
            return np.array([self._was_below(path) for path in rows["path"].to_pylist()], bool)
        images = _text(rows["image_key"])
        known = [self.gone_images, self._captioned, *(self._media if self._detected else [])]
        lost: _Mask = np.any([_true(pc.is_in(images, keys)) for keys in known], axis=0)
        lost &= ~_true(pc.is_in(images, self.foreign))
        if images.null_count:
            lost |= _true(pc.is_in(_files_of_lines(rows["key"]), self._text_files)) & _true(pc.is_null(images))
        return lost

    @cached_property
    def _text_files(self) -> Any:
        """The stems of the files of texts without an image."""
        alone = self._texts["key"].filter(pc.is_null(self._texts["image_key"]))
        return _files_of_lines(alone).drop_null().unique()

    def has_lost_failure(self, failure: Failure) -> bool:
        """Return True if the source of an input that failed no longer exists."""
        key = pa.scalar(failure.key, pa.large_string())
        return self._was_below(failure.path) and all(pc.index(keys, key).as_py() < 0 for keys in self._media)

    def is_other(self, before: str | None, image: ImageItem) -> bool:
        """Return True if a row is of another file than the image of its key.

        It is not if the file that it was embedded from is gone, or is a tar or table that was read now and has its key
        no more.
        """
        if before is None or is_url(before):
            return False
        files = _possible_files(before)
        own = _absolute(getattr(image.source, "file", image.path)) in files
        moved = bool(files & self._containers) and not files & self._unusable
        return not own and not moved and any(Path(file).is_file() for file in files)

    def has_below(self, path: str) -> bool:
        """Return whether a file is one of the given paths, or below one."""
        absolute = _absolute(path)
        return any(absolute == root or absolute.startswith((f"{root}/", f"{root}#")) for root in self._roots)

    def _was_below(self, path: str | None) -> bool:
        return path is not None and self.has_below(path) and self._unusable.isdisjoint(_possible_files(path))


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100 - links are not followed


def _possible_files(path: str) -> set[str]:
    """Return the path of an input, and each file that may be meant if it is ``file#…``, of a tar, table or list."""
    absolute = _absolute(path)
    return {absolute, *(absolute[:i] for i, letter in enumerate(absolute) if letter == "#")}


def _files_of_lines(keys: Any) -> Any:
    """Return the stem of the file of each text by its key, null if it is not a key of a line."""
    stems = pc.replace_substring_regex(_text(keys), pattern=_LINE, replacement="")
    return pc.if_else(pc.match_substring_regex(_text(keys), _LINE), stems, None)
