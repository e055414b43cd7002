"""The moments of shards merged, as a tree of two levels, in one order wherever it is done: the same to the last bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..executors import Executor, Report, Work
from ..moments import Moments

if TYPE_CHECKING:
    from .reader import Store

MOST_GROUPS = 32  # what they come to is in memory at once
SMALLEST_GROUP = 64  # shards
Splits = dict[str, Moments]
Group = tuple[str, Sequence[int]]  # modality, and numbers of shards


class MergeWork(Work[Group, Splits]):
    """Merging the shards of a group, by split."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run(self, tasks: Iterable[Group], report: Report) -> Iterator[Splits]:
        """See `Work.run`."""
        for modality, parts in tasks:
            yield merge_splits(self._store.shard_moments(modality, part) for part in parts)

    def name(self, task: Group) -> str:
        """Such as ``the moments of text shards 0 to 63``."""
        return f"the moments of {task[0]} shards {task[1][0]} to {task[1][-1]}"


def merged_moments(store: Store, modality: str, executor: Executor | None = None) -> Splits:
    """Moments of all rows of a modality, by split.

    Args:
        store: is read shard by shard.
        modality: one that is there.
        executor: merges groups of shards; None for this process, with one group in memory.
    """
    parts = store.parts(modality)
    size = max(SMALLEST_GROUP, -(-len(parts) // MOST_GROUPS))
    groups = [(modality, parts[start : start + size]) for start in range(0, len(parts), size)]
    work = MergeWork(store)
    return merge_splits(
        work.run(groups, _tell_nobody) if executor is None else executor.run(work, groups, _tell_nobody)
    )


def merge_splits(parts: Iterable[Splits]) -> Splits:
    """Moments by split, merged one after another."""
    total: Splits = {}
    for part in parts:
        for name, moments in part.items():
            total[name] = total[name].merge(moments) if name in total else moments
    return total


def _tell_nobody(done: int, failed: int) -> None:
    """Merging takes too short to be shown."""
