"""The plan of an embedding run: new, changed and removed inputs.

A shard takes a fixed number of inputs, in the order of the corpus, and gets the lowest number that is free. Finished
shards take whole such blocks out of the order, so a run that was interrupted plans the same shards again.

A text has changed if its words have. An image has changed if its size in bytes has or, for a file on this machine, if
its time of modification is not the recorded one; no image is read for this. Only inputs from the given paths can be
removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..corpus import Corpus, ImageItem, ItemList, TextItem
from ..corpus.items import is_within, possible_files
from ..io.files import write_atomically
from ..io.locations import is_url, name_or_file
from ..store import Failure, Store
from ..store.item_splits import item_splits
from ..store.keys import SortedHashes, SplitTable
from ..store.manifest import ShardRecord
from ..store.shards import ShardName
from .summary import EmbedSummary, ModalitySummary

INPUTS_FILE = "inputs.parquet"
Item = TypeVar("Item", ImageItem, TextItem)
_FILE_COLUMNS = ["key", "path", "size"]
_COLUMNS = {"image": _FILE_COLUMNS, "video": _FILE_COLUMNS, "text": ["key", "caption", "image_key"]}
_TEXT_KEY = re.compile(r"(.*):\d+(#\d+)?")  # of a text without an image: the stem of its file, and its line


class ShardInputs(Generic[Item]):
    """The numbers and inputs of shards, which are read from a list when a shard is used.

    Args:
        items: the list.
        spans: of each shard its number, and where its inputs begin and end in the list.
        left_out: 1 for each item of the list that is in no shard; None if all are in one.

    Attributes:
        splits: those of items that are in the store already (`item_splits`): an input joins the split of its item.
    """

    splits = SplitTable()

    def __init__(
        self, items: ItemList[Item], spans: Sequence[tuple[int, int, int]], left_out: bytearray | None = None
    ) -> None:
        self._items: ItemList[Item] = items
        self._spans, self._left_out = spans, left_out
        self.numbers = [number for number, _, _ in spans]
        self.inputs = len(items) if left_out is None else len(left_out) - sum(left_out)

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self._spans)

    def __getitem__(self, position: int) -> tuple[int, list[Item]]:
        """Return number and inputs of a shard."""
        number, start, stop = self._spans[position]
        inputs = self._block(start, stop)
        found = self.splits.look_up(list(map(_item_key, inputs)))
        return number, [
            item if split is None else item._replace(split=split or None)
            for item, split in zip(inputs, found, strict=True)
        ]

    def _block(self, start: int, stop: int) -> list[Item]:
        if self._left_out is None:
            return self._items.block(start, stop)
        chosen: list[Item] = []
        while (start := self._left_out.find(0, start, stop)) >= 0:
            end = self._left_out.find(1, start, stop)
            end = stop if end < 0 else end
            chosen += self._items.block(start, end)
            start = end
        return chosen

    def __iter__(self) -> Iterator[tuple[int, list[Item]]]:
        """Yield number and inputs of each shard."""
        return (self[position] for position in range(len(self)))


@dataclass
class Plan(Generic[Item]):
    """The plan of one modality.

    Attributes:
        inputs: how many the corpus has.
        shards: the inputs to embed, by new shards.
        made_up_for: numbers of lost shards whose rows the new ones bring back, in shards of these or of other numbers.
        changed: the inputs that changed, by the shards that have them.
        summary: counts the other inputs, and lists changed and removed ones.
        gone_keys: keys of rows whose source has gone, in the order of their shards.
        gone: where they are in ``gone_keys``, by the number of their shard.
        gone_failures: keys of inputs that failed and whose source has gone.
        unmatched: how many rows are not of the corpus, by the number of the shard that has them.
        from_elsewhere: keys that the store has from other files, or whose images it has from other files.
    """

    inputs: int
    shards: ShardInputs[Item]
    changed: ShardInputs[Item]
    summary: ModalitySummary = field(default_factory=ModalitySummary)
    gone_keys: ItemList[str] = field(default_factory=lambda: ItemList(str))
    gone: dict[int, slice] = field(default_factory=dict)
    gone_failures: ItemList[str] = field(default_factory=lambda: ItemList(str))
    made_up_for: Sequence[int] = ()
    unmatched: dict[int, int] = field(default_factory=dict)
    from_elsewhere: ItemList[str] = field(default_factory=lambda: ItemList(str))


def plan_corpus(
    store: Store,
    corpus: Corpus,
    *,
    shard_size: int = 4096,
    retry_failed: bool = False,
    update: bool = False,
    lost: Mapping[ShardName, ShardRecord] | None = None,
    times: InputTimes | None = None,
) -> dict[str, Plan[Any]]:
    """Return the plan of each modality that the corpus or the store has.

    Args:
        store: the store.
        corpus: images, videos and texts.
        shard_size: inputs per new shard.
        retry_failed: plan what failed before, too.
        update: plan what failed before and was written since, too.
        lost: recorded shards that do not exist.
        times: when the inputs of the store were modified; None to read it.
    """
    times = InputTimes.load(store.path) if times is None else times
    options: dict[str, Any] = {
        "shard_size": shard_size,
        "retry_failed": retry_failed,
        "update": update,
        "lost": lost,
        "sources": Sources(corpus),
        "times": times,
    }
    plans: dict[str, Plan[Any]] = {}
    for modality, items in (("image", corpus.images), ("video", corpus.videos), ("text", corpus.texts)):
        if items or store.parts(modality):
            captioned = list(plans.values()) if modality == "text" else []
            plans[modality] = plan_shards(store, modality, items, captioned=captioned, **options)
    _join_splits(store, [shards for plan in plans.values() for shards in (plan.shards, plan.changed)])
    return plans


def _join_splits(store: Store, shards: Sequence[ShardInputs[Any]]) -> None:
    """Let the inputs of shards join the splits of their items: the store may have another split than the corpus."""
    if not store.modalities:
        return
    wanted = SortedHashes()
    for inputs in chain.from_iterable(shards):
        wanted.add([_item_key(item) for item in inputs[1]])
    splits = item_splits([store], wanted.missing_from())
    for each in shards:
        each.splits = splits


def _item_key(item: ImageItem | TextItem) -> str:
    return (item.image_key or item.key) if isinstance(item, TextItem) else item.key


def summarize_plan(
    store: Store, corpus: Corpus, shard_size: int, retry_failed: bool, *, update: bool, prune: bool
) -> EmbedSummary:
    """Return the summary of a run that is only planned."""
    plans = plan_corpus(store, corpus, shard_size=shard_size, retry_failed=retry_failed, update=update)
    for plan in plans.values():
        plan.summary.to_embed = plan.shards.inputs
        plan.summary.to_update = len(plan.summary.changed) if update else 0
        plan.summary.to_remove = len(plan.summary.gone) if prune else 0
    return EmbedSummary(
        store=str(store.path),
        model=store.info.model,
        precision=store.info.precision,
        backend=store.info.backend,
        modalities={name: plan.summary for name, plan in plans.items() if plan.inputs or plan.summary.gone},
        images_without_caption=corpus.images_without_caption,
        captions_without_image=corpus.captions_without_image,
        skipped=len(corpus.skipped),
        failures_in_store=len(store.recorded_failures()),
        dry_run=True,
    )


def plan_shards(
    store: Store,
    modality: str,
    items: ItemList[Item],
    *,
    shard_size: int,
    retry_failed: bool,
    update: bool = False,
    lost: Mapping[ShardName, ShardRecord] | None = None,
    sources: Sources | None = None,
    captioned: Sequence[Plan[ImageItem]] = (),
    times: InputTimes | None = None,
) -> Plan[Item]:
    """Compare the items of one modality with those in the store, and divide the others into shards.

    The numbers of ``lost`` shards are free only if enough items are to be embedded to bring their rows back.

    Args:
        store: the store.
        modality: ``image``, ``video`` or ``text``.
        items: all of the corpus.
        shard_size, retry_failed, update, lost: see `plan_corpus`.
        sources: the paths of the corpus; without them no input counts as removed.
        captioned: for texts, the plans of images and of videos.
        times: when the inputs of the store were modified, as it was recorded.
    """
    times = times or InputTimes({})
    changed = items.like()
    changed_spans: list[tuple[int, int, int]] = []
    none = ShardInputs(items.like(), [])
    plan = Plan(len(items), none, none)
    summary = plan.summary
    summary.changed = changed_keys = ItemList(str)
    foreign = [images.from_elsewhere for images in captioned if images.from_elsewhere]
    gone_images = [keys for images in captioned for keys in (images.gone_keys, images.gone_failures) if keys]
    left_out = bytearray(len(items))
    failed: set[int] = set()  # positions
    for part in store.parts(modality):
        failures = store.shard_failures(modality, part)
        failed |= {found[0] for found in items.find(failure.key for failure in failures) if found is not None}
        if sources is not None:
            lost_failures = filter(sources.has_lost_failure, failures)
            plan.gone_failures.extend(failure.key for failure in lost_failures)
        first, gone = len(changed), []
        for row, found in _match(store, modality, part, items):
            of_foreign = any(keys.has(row.get("image_key")) for keys in foreign)
            if found is not None:
                position, item = found
                left_out[position] = 1
                if isinstance(item, ImageItem) and not (
                    _is_same_file(row["path"], item) or (sources is not None and sources.has_moved(row["path"]))
                ):
                    plan.from_elsewhere.append(item.key)
                elif not of_foreign and _has_changed(item, row, times):
                    changed.append(item)
                    changed_keys.append(item.key)
                continue
            plan.unmatched[part] = plan.unmatched.get(part, 0) + 1
            if not of_foreign and sources is not None and sources.has_lost(row, gone_images):
                gone.append(row["key"])
        if len(changed) > first:
            changed_spans.append((part, first, len(changed)))
        if gone:
            plan.gone[part] = slice(len(plan.gone_keys), len(plan.gone_keys) + len(gone))
            plan.gone_keys.extend(sorted(gone))
    summary.already = sum(left_out)
    for position, item in enumerate(items if foreign else ()):
        if isinstance(item, TextItem) and any(keys.has(item.image_key) for keys in foreign):
            left_out[position] = 1
            plan.from_elsewhere.append(item.key)
    for position in sorted(failed):
        if left_out[position] or retry_failed or (update and times.differ(items[position])):
            continue
        left_out[position] = 1
        summary.failed_before += 1
    missing = {part: record.rows for (name, part), record in (lost or {}).items() if name == modality}
    plan.shards, plan.made_up_for = _new_shards(items, left_out, shard_size, store.parts(modality), missing)
    plan.changed = ShardInputs(changed, changed_spans)
    plan.from_elsewhere.sort()
    summary.gone, summary.from_elsewhere = plan.gone_keys, plan.from_elsewhere
    return plan


def _new_shards(
    items: ItemList[Item], left_out: bytearray, shard_size: int, taken: Collection[int], missing: Mapping[int, int]
) -> tuple[ShardInputs[Item], list[int]]:
    """Divide the items that are not ``left_out`` into shards with free numbers.

    Args:
        items: all of the corpus.
        left_out: 1 for each item that is not to be embedded.
        shard_size: inputs per shard.
        taken: numbers that are not free.
        missing: rows of the lost shards by number: the first that are used, if there are as many inputs.

    Returns:
        The shards, and the numbers of the lost ones that they make up for.
    """
    pending: Any = np.flatnonzero(np.frombuffer(left_out, np.uint8) == 0)
    made_up_for = sorted(missing) if len(pending) >= sum(missing.values()) else []
    others = (number for number in count() if number not in taken and number not in missing)
    numbers = chain(made_up_for, others)
    starts: list[int] = pending[::shard_size].tolist()
    ends = [*starts[1:], len(items)]
    spans = [(next(numbers), start, end) for start, end in zip(starts, ends, strict=False)]
    return ShardInputs(items, spans, left_out), made_up_for


def _match(
    store: Store, modality: str, part: int, items: ItemList[Item]
) -> Iterator[tuple[dict[str, Any], tuple[int, Item] | None]]:
    """Yield the rows of a shard, each with the position of the item with its key and the item, if there is one."""
    for batch in store.batches(modality, _COLUMNS[modality], parts=[part]):
        rows = batch.to_pylist()
        yield from zip(rows, items.find(row["key"] for row in rows), strict=True)


def _has_changed(item: ImageItem | TextItem, row: Mapping[str, Any], times: InputTimes) -> bool:
    if isinstance(item, TextItem):
        return bool(row["caption"] is not None and row["caption"] != item.caption)
    if None not in (row["size"], item.size) and row["size"] != item.size:
        return True
    return times.differ(item)


class InputTimes:
    """When the files of a store's images and videos were modified, by key: `inputs.parquet`, for `--update`."""

    def __init__(self, known: dict[str, int]) -> None:
        self._known = known

    @classmethod
    def load(cls, store: Path) -> InputTimes:
        """Read inputs.parquet; without it, or if it is damaged, no time is known."""
        try:
            with name_or_file(store / INPUTS_FILE) as source:
                table = pq.read_table(source)
            return cls(dict(zip(table.column("key").to_pylist(), table.column("mtime").to_pylist(), strict=True)))
        except (OSError, KeyError, pa.ArrowException):
            return cls({})

    def differ(self, item: ImageItem | TextItem) -> bool:
        """Return whether the file of an input has another time than the recorded one."""
        known = self._known.get(item.key)
        return known is not None and _time_of(item) not in (None, known)

    def add(self, shards: Iterable[ShardInputs[Any]]) -> bool:
        """Note the times of the inputs of shards; return whether there is something new."""
        found = {item.key: _time_of(item) for inputs in shards for _, items in inputs for item in items}
        new = {key: time for key, time in found.items() if time is not None}
        self._known |= new
        return bool(new)

    def write(self, store: Path) -> None:
        """Write inputs.parquet."""
        columns = {"key": pa.array(self._known, pa.string()), "mtime": pa.array(self._known.values(), pa.int64())}
        write_atomically(store / INPUTS_FILE, lambda path: pq.write_table(pa.table(columns), path))


def _time_of(item: ImageItem | TextItem) -> int | None:
    """Return when the file of an image or video on this machine was modified, in nanoseconds."""
    if isinstance(item, TextItem) or item.source is not None or is_url(item.path):
        return None
    try:
        return Path(item.path).stat().st_mtime_ns
    except OSError:  # deleted since the corpus was read
        return None


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
        self._roots = [_absolute(source).rstrip("/") for source in corpus.sources]
        self._corpus = corpus

    def has_lost(self, row: Mapping[str, Any], gone_images: Sequence[ItemList[str]]) -> bool:
        """Return True if the source of a row, whose key is not in the corpus, no longer exists."""
        if "path" in row:
            return self._was_below(row["path"])
        image = row["image_key"]
        if image is not None:
            if any(keys.has(image) for keys in gone_images) or self._corpus.texts.has(image, "image_key"):
                return True
            return self._captions_were_detected and self._corpus.has(image)
        match = _TEXT_KEY.fullmatch(row["key"])
        return match is not None and match[1] in self._files

    def has_lost_failure(self, failure: Failure) -> bool:
        """Return True if the source of an input that failed no longer exists."""
        return not self._corpus.has(failure.key) and self._was_below(failure.path)

    def has_moved(self, before: str) -> bool:
        """Return True if the tar or table that an image was embedded from was read now, and has its key no more."""
        where = _absolute(before)
        return is_within(where, self._containers) and not is_within(where, self._unusable)

    @cached_property
    def _containers(self) -> set[str]:
        return set(map(_absolute, self._corpus.containers))

    @cached_property
    def _captions_were_detected(self) -> bool:
        return self._corpus.captions is None and any(text.image_key is not None for text in self._corpus.texts)

    @cached_property
    def _files(self) -> set[str]:
        """The stems of the files of texts without an image."""
        alone = (_TEXT_KEY.fullmatch(text.key) for text in self._corpus.texts if text.image_key is None)
        return {match[1] for match in alone if match}

    @cached_property
    def _unusable(self) -> set[str]:
        return {_absolute(skipped.path) for skipped in self._corpus.skipped}

    def _was_below(self, path: str | None) -> bool:
        if path is None:
            return False
        absolute = _absolute(path)
        below = any(absolute == root or absolute.startswith((f"{root}/", f"{root}#")) for root in self._roots)
        return below and not is_within(absolute, self._unusable)
