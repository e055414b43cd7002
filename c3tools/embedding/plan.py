"""What is still to be embedded, and in which shards.

A shard takes a fixed number of inputs, in the order of the corpus, and gets the lowest number that is free. Finished
shards take whole such blocks out of the order, so a run that was interrupted plans the same shards again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..corpus import ImageItem, TextItem
from ..store import Store

Item = TypeVar("Item", ImageItem, TextItem)


@dataclass
class Plan(Generic[Item]):
    """The work left for one modality.

    Attributes:
        shards: shard number → its inputs.
        done: how many inputs are embedded already.
        failed_before: how many failed in an earlier run and are left alone.
        changed: keys of inputs that are embedded, but have changed since.
    """

    shards: dict[int, list[Item]] = field(default_factory=dict)
    done: int = 0
    failed_before: int = 0
    changed: list[str] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Number of inputs to embed now."""
        return sum(len(items) for items in self.shards.values())


def plan_modality(
    store: Store, modality: str, items: Sequence[Item], *, shard_size: int, retry_failed: bool
) -> Plan[Item]:
    """Compare the corpus with what is in the store."""
    plan: Plan[Item] = Plan()
    present = _fingerprints(store, modality)
    failed = {failure.key for part in store.parts(modality) for failure in store.shard_failures(modality, part)}
    failed -= present.keys()
    pending: list[Item] = []
    for item in items:
        if item.key in present:
            plan.done += 1
            before, now = present[item.key], _fingerprint(item)
            if None not in (before, now) and before != now:
                plan.changed.append(item.key)
        elif item.key in failed and not retry_failed:
            plan.failed_before += 1
        else:
            pending.append(item)
    numbers = _free_numbers(set(store.parts(modality)))
    for start in range(0, len(pending), shard_size):
        plan.shards[next(numbers)] = pending[start : start + shard_size]
    return plan


def _fingerprint(item: ImageItem | TextItem) -> int | str | None:
    """What tells a changed input: the size of an image where it is known, the text of a caption."""
    return item.size if isinstance(item, ImageItem) else item.caption


def _fingerprints(store: Store, modality: str) -> dict[str, int | str | None]:
    column = "size" if modality == "image" else "caption"
    present: dict[str, int | str | None] = {}
    for batch in store.batches(modality, ["key", column]) if store.parts(modality) else ():
        present.update(zip(batch.column("key").to_pylist(), batch.column(column).to_pylist(), strict=True))
    return present


def _free_numbers(taken: set[int]) -> Iterator[int]:
    number = 0
    while True:
        if number not in taken:
            yield number
        number += 1
