"""The plan of an embedding run: what is to be embedded, what changed since it was, and what has gone.

A shard takes a fixed number of inputs, in the order of the corpus, and gets the lowest number that is free. Finished
shards take whole such blocks out of the order, so a run that was interrupted plans the same shards again.

A text changed if its words did. An image changed if its size in bytes did or, for a file on this machine, if it was
written after it was embedded; no image is read to find out. Only what came from the paths given now can have gone.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..corpus import Corpus, ImageItem, TextItem
from ..io.locations import is_url
from ..store import Failure, Store
from ..store.manifest import ShardName, ShardRecord
from .summary import ModalitySummary

Item = TypeVar("Item", ImageItem, TextItem)
_COLUMNS = {"image": ["key", "path", "size", "split"], "text": ["key", "caption", "image_key", "split"]}
_TEXT_KEY = re.compile(r"(.*):\d+(#\d+)?")  # of a text that stands alone: the stem of its file, and its line


@dataclass
class Plan(Generic[Item]):
    """The plan of one modality.

    Attributes:
        inputs: how many the corpus has.
        shards: the inputs to embed, by the number of their new shard.
        summary: counts the inputs left out, and names those that changed and that have gone.
        changed: the inputs that changed, by the number of the shard that has them.
        gone: keys of rows whose source has gone, likewise.
        from_elsewhere: keys that the store has from other files.
    """

    inputs: int = 0
    shards: dict[int, list[Item]] = field(default_factory=dict)
    summary: ModalitySummary = field(default_factory=ModalitySummary)
    changed: dict[int, list[Item]] = field(default_factory=dict)
    gone: dict[int, set[str]] = field(default_factory=dict)
    from_elsewhere: set[str] = field(default_factory=set)


def plan_corpus(
    store: Store,
    corpus: Corpus,
    *,
    shard_size: int = 4096,
    retry_failed: bool = False,
    update: bool = False,
    lost: Mapping[ShardName, ShardRecord] | None = None,
) -> dict[str, Plan[Any]]:
    """Return the plan of each modality that the corpus or the store has.

    Args:
        store: the store.
        corpus: images and texts.
        shard_size: inputs per new shard.
        retry_failed: plan what failed before, too.
        update: plan what failed before and was written since, too.
        lost: recorded shards that do not exist.
    """
    options: dict[str, Any] = {
        "shard_size": shard_size,
        "retry_failed": retry_failed,
        "update": update,
        "lost": lost,
        "sources": Sources(corpus),
    }
    plans: dict[str, Plan[Any]] = {}
    for modality, items in (("image", corpus.images), ("text", corpus.texts)):
        if items or store.parts(modality):
            plans[modality] = plan_shards(store, modality, items, **options)
            if modality == "image":
                options["images"] = plans["image"]
    return plans


def plan_shards(
    store: Store,
    modality: str,
    items: Sequence[Item],
    *,
    shard_size: int,
    retry_failed: bool,
    update: bool = False,
    lost: Mapping[ShardName, ShardRecord] | None = None,
    sources: Sources | None = None,
    images: Plan[ImageItem] | None = None,
) -> Plan[Item]:
    """Compare the items of one modality with those in the store, and divide the others into shards.

    The numbers of ``lost`` shards are free only if enough items are to be embedded to bring their rows back.

    Args:
        store: the store.
        modality: ``image`` or ``text``.
        items: all of the corpus.
        shard_size, retry_failed, update, lost: see `plan_corpus`.
        sources: where the corpus came from; without them nothing has gone.
        images: the plan of the images, for texts.
    """
    plan: Plan[Item] = Plan(len(items))
    by_key = {item.key: item for item in items}
    gone_images = set().union(*images.gone.values()) if images else set()
    foreign = images.from_elsewhere if images else set()
    embedded: set[str] = set()
    failed: dict[str, float | None] = {}  # when their shard was begun
    for part in store.parts(modality):
        marker = store.marker(modality, part)
        began = marker["timings"].get("began")
        failed |= {failure["key"]: began for failure in marker["failures"]}
        for row in _rows(store, modality, part):
            item = by_key.get(row["key"])
            if item is not None:
                embedded.add(item.key)
                if isinstance(item, ImageItem) and not _is_same_file(row["path"], item.path):
                    plan.from_elsewhere.add(item.key)
                elif row.get("image_key") not in foreign and _has_changed(item, row, began):
                    # the split may be one that `c3 split` chose
                    plan.changed.setdefault(part, []).append(item._replace(split=item.split or row["split"]))
            elif row.get("image_key") not in foreign and sources is not None and sources.has_lost(row, gone_images):
                plan.gone.setdefault(part, set()).add(row["key"])
    pending: list[Item] = []
    for item in items:
        if item.key in embedded:
            plan.summary.already += 1
        elif item.key in failed and not retry_failed and not (update and _is_written_after(item, failed[item.key])):
            plan.summary.failed_before += 1
        else:
            pending.append(item)
    taken = set(store.parts(modality))
    missing = {part: record.rows for (name, part), record in (lost or {}).items() if name == modality}
    if len(pending) < sum(missing.values()):
        taken |= missing.keys()
    free = (number for number in count() if number not in taken)
    plan.shards = {next(free): pending[start : start + shard_size] for start in range(0, len(pending), shard_size)}
    plan.summary.changed = [item.key for changed in plan.changed.values() for item in changed]
    plan.summary.gone = [key for part in sorted(plan.gone) for key in sorted(plan.gone[part])]
    plan.summary.from_elsewhere = sorted(plan.from_elsewhere)
    return plan


def _rows(store: Store, modality: str, part: int) -> Iterator[dict[str, Any]]:
    for batch in store.batches(modality, _COLUMNS[modality], parts=[part]):
        yield from batch.to_pylist()


def _has_changed(item: ImageItem | TextItem, row: Mapping[str, Any], began: float | None) -> bool:
    if isinstance(item, TextItem):
        return bool(row["caption"] is not None and row["caption"] != item.caption)
    if None not in (row["size"], item.size) and row["size"] != item.size:
        return True
    return _is_written_after(item, began)


def _is_written_after(item: ImageItem | TextItem, began: float | None) -> bool:
    """Return whether an image is a file on this machine that was written after its shard was begun.

    A date in the future, but for a minute by which clocks may differ, tells nothing: the file may have had it then.
    """
    if began is None or isinstance(item, TextItem) or item.source is not None or is_url(item.path):
        return False
    return began < Path(item.path).stat().st_mtime <= time.time() + 60


def _is_same_file(before: str | None, now: str) -> bool:
    """Return whether an image was embedded from the same path, or from one that has gone: the folder was moved."""
    if before is None or before == now or is_url(before) or "#" in before:
        return True
    return _absolute(before) == _absolute(now) or not Path(before).exists()


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)  # noqa: PTH100 - links are not followed


def is_within(path: str, files: set[str]) -> bool:
    """Return whether a path is one of these files, or ``file#…`` of a tar, table or list among them."""
    return path in files or any(path[:i] in files for i, letter in enumerate(path) if letter == "#")


class Sources:
    """The paths of a corpus: they tell rows whose source has gone from those of other paths.

    An image has gone if it was below one of the paths. A caption has gone with its image; or if the image has other
    captions now, or none while captions were detected. A text that stands alone has gone if its file has others.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._roots = [_absolute(source).rstrip("/") for source in corpus.sources]
        self._unusable = {_absolute(skipped.path) for skipped in corpus.skipped}
        items = {text.image_key for text in corpus.texts if text.image_key is not None}
        if items and corpus.captions is None:
            items |= {image.key for image in corpus.images}
        self._items = items
        self._keys = {image.key for image in corpus.images}
        alone = (_TEXT_KEY.fullmatch(text.key) for text in corpus.texts if text.image_key is None)
        self._files = {match[1] for match in alone if match}

    def has_lost(self, row: Mapping[str, Any], gone_images: set[str]) -> bool:
        """Return whether the source of a row, whose key is not in the corpus, has gone."""
        if "path" in row:
            return self._was_below(row["path"])
        if row["image_key"] is not None:
            return row["image_key"] in gone_images or row["image_key"] in self._items
        match = _TEXT_KEY.fullmatch(row["key"])
        return match is not None and match[1] in self._files

    def has_lost_failure(self, failure: Failure) -> bool:
        """Return whether the source of an input that failed has gone."""
        return failure.key not in self._keys and self._was_below(failure.path)

    def _was_below(self, path: str | None) -> bool:
        if path is None:
            return False
        absolute = _absolute(path)
        below = any(absolute == root or absolute.startswith((f"{root}/", f"{root}#")) for root in self._roots)
        return below and not is_within(absolute, self._unusable)
