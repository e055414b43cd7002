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
from dataclasses import dataclass
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
from ..corpus.items import ItemTable, possible_files
from ..io.files import write_atomically
from ..io.locations import is_url, name_or_file
from ..store import Failure, Store
from ..store.manifest import ShardRecord
from ..store.shards import ShardName
from .summary import ModalitySummary

INPUTS_FILE = "inputs.parquet"  # in the store: keys, and times of modification
_INPUTS = pa.schema({"key": pa.large_string(), "mtime": pa.int64()})  # type: ignore[arg-type]
_FILE_COLUMNS = ["key", "path", "size"]
_COLUMNS = {"image": _FILE_COLUMNS, "video": _FILE_COLUMNS, "text": ["key", "caption", "image_key"]}
_LINE = r":\d+(#\d+)?$"  # in the key of a text without an image, after the stem of its file

Positions = npt.NDArray[np.int64]
ShardTask = tuple[int, list[Any]]  # the shard's number and its inputs, `ImageItem` or `TextItem`


class ShardTasks:
    """The inputs of shards, which become objects when a shard is made.

    Args:
        items: images or texts.
        shards: the number of each shard, and the positions of its inputs.
        splits: of all items: that of the item in the store, or else of the corpus.
    """

    def __init__(self, items: ItemTable[Any], shards: Sequence[tuple[int, Positions]], splits: Any = None) -> None:
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

    def __iter__(self) -> Iterator[ShardTask]:
        """Yield number and inputs of each shard."""
        return (self[position] for position in range(len(self)))

    @property
    def positions(self) -> Positions:
        """The positions of the inputs of all shards."""
        return np.concatenate([positions for _, positions in self.shards] or [np.zeros(0, np.int64)])


@dataclass
class Plan:
    """The plan of one modality.

    Attributes:
        inputs: how many the corpus has.
        shards: the inputs to embed, by new shards.
        changed: the inputs that changed, by the shards that have them.
        gone: keys of rows and of failures whose source has gone, by the number of their shard.
        made_up_for: numbers of missing shards whose inputs this run embeds again.
        summary: counts the other inputs, and lists changed and removed ones.
        gone_items: keys of images or videos, embedded or failed, whose source has gone.
    """

    inputs: int
    shards: ShardTasks
    changed: ShardTasks
    gone: dict[int, list[str]]
    made_up_for: Sequence[int]
    summary: ModalitySummary
    gone_items: list[str]


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
        parts = store.parts(modality)
        if not items and not parts:
            continue
        modified = _modified(items.table, times)
        foreign_images = _text_array(chain.from_iterable(plan.summary.from_elsewhere for plan in plans.values()))
        gone_images = _text_array(chain.from_iterable(plan.gone_items for plan in plans.values()))
        foreign = foreign_images if modality == "text" else None
        left_out, changed, gone, summary = _compare(store, modality, items, modified, foreign, gone_images, sources)
        failures = {part: store.shard_failures(modality, part) for part in parts}
        gone_items = list(summary.gone)
        for part, failed in failures.items():
            lost_failures = [failure.key for failure in failed if sources.has_lost_failure(failure)]
            if lost_failures:
                gone_items += lost_failures
                gone[part] = sorted({*gone.get(part, ()), *lost_failures})
        if not retry_failed:
            keys = _text_array(failure.key for failed in failures.values() for failure in failed)
            failed_before = _true(pc.is_in(items.table["key"], keys)) & ~left_out
            failed_before &= ~modified if update else True
            left_out |= failed_before
            summary.failed_before = int(failed_before.sum())
        pending = np.flatnonzero(~left_out)
        missing = {part: record.rows for (name, part), record in (lost or {}).items() if name == modality}
        made_up_for = sorted(missing) if len(pending) >= sum(missing.values()) else []
        numbers = chain(made_up_for, (number for number in count() if number not in parts and number not in missing))
        new = [(next(numbers), pending[start : start + shard_size]) for start in range(0, len(pending), shard_size)]
        splits = _joined_splits(store, items.table) if (new or changed) and store.modalities else None
        shards, again = ShardTasks(items, new, splits), ShardTasks(items, changed, splits)
        plans[modality] = Plan(len(items), shards, again, gone, made_up_for, summary, gone_items)
    return plans


def _modified(items: pa.Table, times: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which items are files whose time of modification is not the recorded one."""
    if "mtime" not in items.column_names:
        return np.zeros(len(items), bool)
    known = times["mtime"].take(pc.index_in(items["key"], times["key"]))  # null: not recorded
    return _true(pc.not_equal(items["mtime"], known))


def _compare(
    store: Store,
    modality: str,
    items: ItemTable[Any],
    modified: npt.NDArray[np.bool_],
    foreign_images: Any,
    gone_images: Any,
    sources: Sources,
) -> tuple[npt.NDArray[np.bool_], list[tuple[int, Positions]], dict[int, list[str]], ModalitySummary]:
    """Compare the items of one modality with the rows of the store.

    Args:
        modified: which items are files that were modified.
        foreign_images: of texts, keys of images that the store has from other files; else None.
        gone_images: keys of images whose source no longer exists.

    Returns:
        Which items are not to be embedded (n,); the shards with changed items, and the positions of these; the keys of
        rows whose source has gone, by shard; and the counts.
    """
    table = items.table
    left_out = np.zeros(len(items), bool)
    changed: list[tuple[int, Positions]] = []
    foreign: list[str] = []
    gone: dict[int, list[str]] = {}
    for part, rows, at in _join(store, modality, table):
        found = np.flatnonzero(at >= 0)
        positions = at[found]
        left_out[positions] = True
        theirs, own = rows.take(found), items.rows(positions)
        skip = np.zeros(len(found), bool)
        if foreign_images is not None:
            differs = _true(pc.not_equal(theirs["caption"].cast(pa.large_string()), own["caption"]))
            skip |= _true(pc.is_in(own["image_key"], foreign_images))
        else:
            differs = _true(pc.not_equal(theirs["size"], own["size"])) | modified[positions]
            for row in np.flatnonzero(~_true(pc.equal(theirs["path"].cast(pa.large_string()), own["path"]))):
                before = theirs["path"][int(row)].as_py()
                skip[row] = not (_is_same_file(before, items[int(positions[row])]) or sources.has_moved(before))
            foreign += _texts(own["key"].filter(pa.array(skip)))
        if (differs & ~skip).any():
            changed.append((part, np.sort(positions[differs & ~skip])))
        others = rows.filter(pa.array(at < 0))
        lost = sources.lost_rows(others, foreign_images, gone_images)
        if lost.any():
            gone[part] = sorted(_texts(others["key"].filter(pa.array(lost))))
    summary = ModalitySummary(
        already=int(left_out.sum()),
        changed=_texts(items.rows(ShardTasks(items, changed).positions)["key"]),
        gone=list(chain.from_iterable(gone.values())),
    )
    if foreign_images is not None and len(foreign_images):
        skip = _true(pc.is_in(table["image_key"], foreign_images))
        left_out |= skip
        foreign = _texts(table["key"].filter(pa.array(skip)))
    summary.from_elsewhere = sorted(foreign)
    return left_out, changed, gone, summary


def _join(store: Store, modality: str, items: pa.Table) -> Iterator[tuple[int, pa.Table, Positions]]:
    """Yield number and rows of each shard, and the position of the item with the key of each row, -1 without one."""
    parts = store.parts(modality)
    keys: list[Any] = []
    counts: list[int] = []
    for part in parts:
        columns = [batch.column("key") for batch in store.batches(modality, ["key"], parts=[part])]
        keys += [column.cast(pa.large_string()) for column in columns]
        counts.append(sum(map(len, columns)))
    found = pc.index_in(pa.chunked_array(keys, pa.large_string()), items["key"])
    positions: Positions = found.fill_null(-1).to_numpy().astype(np.int64)
    start = 0
    for part, rows in zip(parts, counts, strict=True):
        batches = list(store.batches(modality, _COLUMNS[modality], parts=[part])) if rows else []
        if batches:
            yield part, pa.Table.from_batches(batches), positions[start : start + rows]
        start += rows


def _joined_splits(store: Store, items: pa.Table) -> Any:
    """Return the split of each item: that which its item has in the store, or else that of the corpus.

    An image or a video decides before texts, and of several rows the first.
    """
    names: list[Any] = []
    splits: list[Any] = []
    for modality in sorted(store.modalities, key=lambda name: name == "text"):
        wanted = ["key", "image_key", "split"] if modality == "text" else ["key", "split"]
        for batch in store.batches(modality, wanted):
            own = batch.column("key").cast(pa.large_string())
            if modality == "text":
                own = pc.coalesce(batch.column("image_key").cast(pa.large_string()), own)
            names.append(own)
            splits.append(batch.column("split").cast(pa.large_string()).fill_null(""))
    item = items["key"]
    if "image_key" in items.column_names:
        item = pc.coalesce(items["image_key"], item)
    found = pc.index_in(item, pa.chunked_array(names, pa.large_string()))
    joined = pa.chunked_array(splits, pa.large_string()).take(found)
    return pc.coalesce(joined, items["split"].cast(pa.large_string())).combine_chunks()


def _text_array(texts: Iterable[str]) -> Any:
    return pa.array(list(texts), pa.large_string())


def _texts(keys: Any) -> list[str]:
    found: list[str] = keys.to_pylist()
    return found


def _true(mask: Any) -> npt.NDArray[np.bool_]:
    """Return a mask of Arrow, null as false."""
    return np.array(mask.fill_null(False).to_numpy(zero_copy_only=False), bool)


def read_times(store: Path) -> pa.Table:
    """Return keys and recorded times of a store's inputs; none without inputs.parquet, or if it is damaged."""
    try:
        with name_or_file(store / INPUTS_FILE) as source:
            return pq.read_table(source, schema=_INPUTS)
    except (OSError, KeyError, pa.ArrowException):
        return _INPUTS.empty_table()


def write_times(store: Path, tasks: Collection[ShardTasks]) -> None:
    """Record the times of the inputs of shards in inputs.parquet."""
    tables = (task.items.rows(task.positions) for task in tasks)
    found = [table.select(["key", "mtime"]) for table in tables if "mtime" in table.column_names]
    new = pa.concat_tables([_INPUTS.empty_table(), *found]).drop_null()
    if len(new):
        before = read_times(store)
        kept = before.filter(pc.invert(pc.is_in(before["key"], new["key"])))
        write_atomically(store / INPUTS_FILE, lambda path: pq.write_table(pa.concat_tables([kept, new]), path))


def _is_same_file(before: str | None, image: ImageItem) -> bool:
    """Return True if an image was embedded from the same file, tar or table, or from one that no longer exists."""
    if before is None or before == image.path or is_url(before):
        return True
    files = [_absolute(file) for file in possible_files(before)]
    return _absolute(getattr(image.source, "file", image.path)) in files or not any(Path(f).is_file() for f in files)


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100 - links are not followed


class Sources:
    """The paths of a corpus, which separate rows whose source no longer exists from rows of other paths.

    An image was removed if it was below one of the paths. A caption was removed with its image, or if the image now has
    other captions, or none while captions were detected. A text without an image was removed if its file has others.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._roots = [_absolute(source).rstrip("/") for source in corpus.sources]
        self._containers = set(map(_absolute, corpus.containers))
        self._unusable = {_absolute(skipped.path) for skipped in corpus.skipped}
        self._keys = {"image": corpus.images.table["key"], "video": corpus.videos.table["key"]}

    def lost_rows(self, rows: pa.Table, foreign: Any, gone_images: Any) -> npt.NDArray[np.bool_]:
        """Return which rows, whose keys are not in the corpus, have a source that no longer exists: bool (n,).

        Args:
            rows: with key and path, or key and image_key.
            foreign: of texts, keys of images that the store has from other files: not of this corpus; else None.
            gone_images: keys of images whose source no longer exists.
        """
        if foreign is None:
            return np.array([self._was_below(path) for path in rows["path"].to_pylist()], bool)
        texts = self._corpus.texts.table
        images = rows["image_key"].cast(pa.large_string())
        lost = _true(pc.is_in(images, gone_images)) | _true(pc.is_in(images, texts["image_key"].drop_null()))
        if self._corpus.captions is None and texts["image_key"].null_count < len(texts):
            lost |= _true(pc.is_in(images, self._keys["image"])) | _true(pc.is_in(images, self._keys["video"]))
        lost &= ~_true(pc.is_in(images, foreign))
        if images.null_count:
            lost |= _true(pc.is_in(_files_of_lines(rows["key"]), self._text_files)) & _true(pc.is_null(images))
        return lost

    @cached_property
    def _text_files(self) -> Any:
        """The stems of the files of texts without an image."""
        texts = self._corpus.texts.table
        return _files_of_lines(texts["key"].filter(pc.is_null(texts["image_key"]))).drop_null().unique()

    def has_lost_failure(self, failure: Failure) -> bool:
        """Return True if the source of an input that failed no longer exists."""
        if not self._was_below(failure.path):
            return False
        key = pa.scalar(failure.key, pa.large_string())
        return all(pc.index(keys, key).as_py() < 0 for keys in self._keys.values())

    def has_moved(self, before: str) -> bool:
        """Return True if the tar or table that an image was embedded from was read now, and has its key no more."""
        where = _absolute(before)
        return is_within(where, self._containers) and not is_within(where, self._unusable)

    def _was_below(self, path: str | None) -> bool:
        if path is None:
            return False
        absolute = _absolute(path)
        below = any(absolute == root or absolute.startswith((f"{root}/", f"{root}#")) for root in self._roots)
        return below and not is_within(absolute, self._unusable)


def _files_of_lines(keys: Any) -> Any:
    """Return the stem of the file of each text by its key, null if it is not a key of a line."""
    keys = keys.cast(pa.large_string())
    stems = pc.replace_substring_regex(keys, pattern=_LINE, replacement="")
    return pc.if_else(pc.match_substring_regex(keys, _LINE), stems, None)


def is_within(path: str, files: set[str]) -> bool:
    """Return whether the path of an input is one of these files, or is in a tar, table or list among them."""
    return any(file in files for file in possible_files(path))
