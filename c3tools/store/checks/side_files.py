"""What lies beside the shards: the list of failures, borrowed moments, what an unfinished run left."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...errors import StoreError
from ...moments import load_moments
from ..failures import FAILURES_FILE, Failure
from ..reader import BORROWED_FILE, Store
from ..seals import seal_state
from .findings import Finding, Repair

_ROWS = re.compile(r"part-(\d{5,9})\.(parquet|moments\.safetensors)")


def check_failures(store: Store) -> Iterator[Finding]:
    """failures.parquet: as it was sealed, readable, and the failures of the shards in it."""
    path = store.path / FAILURES_FILE
    remedy = "Write it anew from the done markers: c3 verify --repair"
    listed = [(f.stage, f.key) for f in _shard_failures(store)]
    if not path.exists():
        if listed:
            yield _unfinished(FAILURES_FILE, "it is not there yet", "Run the same `c3 embed` again.")
        return
    try:
        recorded = {(f.stage, f.key) for f in store.recorded_failures()}
        intact = seal_state(path) is not False
    except (StoreError, OSError) as error:
        yield Finding("failures", FAILURES_FILE, f"it cannot be read ({error})", remedy, Repair.FAILURES)
        return
    if not intact:
        yield Finding("failures", FAILURES_FILE, "it is not as it was written", remedy, Repair.FAILURES)
    elif set(listed) - recorded:
        missing = min(set(listed) - recorded)
        what = f"it lacks {len(set(listed) - recorded):,} failures of the shards, for example of {missing[1]!r}"
        yield _unfinished(FAILURES_FILE, what, "Run the same `c3 embed` again: it brings the list up to date.")


def check_borrowed(store: Store) -> Iterator[Finding]:
    """Moments taken from another corpus: as they were sealed, and of the store's dimension."""
    path = store.borrowed_path
    if not path.exists():
        return
    remedy = "Take them again with `c3 means --load FILE`, or forget them with `c3 means --unload`."
    try:
        if seal_state(path) is False:
            yield Finding("moments", BORROWED_FILE, "it is not as it was written", remedy)
            return
        groups, _ = load_moments(path)
    except (StoreError, OSError) as error:
        yield Finding("moments", BORROWED_FILE, f"it cannot be read ({error})", remedy)
        return
    if any(moments.dim != store.info.dim for moments in groups.values()):
        yield Finding("moments", BORROWED_FILE, f"they are not of dimension {store.info.dim}", remedy)


def check_unfinished(store: Store) -> Iterator[Finding]:
    """Shards that a run did not finish, and gaps in their numbers: nothing is wrong, but something is to be done."""
    again = "c3 import" if "imported" in store.info.extra else "c3 embed"
    for folder in sorted(path for path in store.path.iterdir() if path.is_dir()):
        finished = set(store.parts(folder.name))
        started = {int(match[1]) for path in folder.iterdir() if (match := _ROWS.fullmatch(path.name))}
        gaps = set(range(max(finished, default=-1) + 1)) - finished
        for part in sorted((started | gaps) - finished):
            where = f"{folder.name}/part-{part:05d}.json"
            remedy = f"Run the `{again}` that made the store again: it makes this shard."
            yield _unfinished(where, "the shard is not finished, or was dropped", remedy, folder.name, part)


def _unfinished(where: str, what: str, remedy: str, modality: str | None = None, part: int | None = None) -> Finding:
    return Finding("unfinished", where, what, remedy, modality=modality, part=part, warning=True)


def _shard_failures(store: Store) -> Iterator[Failure]:
    for modality in store.modalities:
        for part in store.parts(modality):
            try:
                yield from store.shard_failures(modality, part)
            except StoreError:
                continue  # the shard's own check says so
