"""What lies beside the shards: the list of failures, borrowed moments, what an unfinished run left."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from ...errors import StoreError, UnreachableError
from ...io.locations import kind_of, names_in
from ...moments import load_moments
from ..failures import FAILURES_FILE, Failure
from ..reader import EXTERNAL_FILE, Store
from ..seals import seal_state
from ..writer import part_name
from .findings import Finding, Repair

_ROWS = re.compile(r"part-(\d{5,9})\.(parquet|moments\.safetensors)")


def check_failures(store: Store, failures: Collection[Failure]) -> Iterator[Finding]:
    """failures.parquet: as it was sealed, readable, and the ``failures`` of the shards in it."""
    path = store.path / FAILURES_FILE
    remedy = "Write it anew from the done markers: c3 verify --repair"
    listed = {(f.stage, f.key) for f in failures}
    if kind_of(path) is None:
        if listed:
            yield _unfinished(FAILURES_FILE, "it is not there yet", "Run the same `c3 embed` again.")
        return
    try:
        recorded = {(f.stage, f.key) for f in store.recorded_failures()}
        intact = seal_state(path) is not False
    except UnreachableError:
        raise
    except (StoreError, OSError) as error:
        yield Finding("failures", FAILURES_FILE, f"it cannot be read ({error})", remedy, Repair.FAILURES)
        return
    if not intact:
        yield Finding("failures", FAILURES_FILE, "it is not as it was written", remedy, Repair.FAILURES)
    elif listed - recorded:
        missing = min(listed - recorded)
        what = f"it lacks {len(listed - recorded):,} failures of the shards, for example of {missing[1]!r}"
        yield _unfinished(FAILURES_FILE, what, "Run the same `c3 embed` again: it brings the list up to date.")


def check_borrowed(store: Store) -> Iterator[Finding]:
    """Moments taken from another corpus: as they were sealed, and of the store's dimension."""
    path = store.external_path
    if kind_of(path) is None:
        return
    remedy = "Take them again with `c3 means --load FILE`, or forget them with `c3 means --unload`."
    try:
        if seal_state(path) is False:
            yield Finding("moments", EXTERNAL_FILE, "it is not as it was written", remedy)
            return
        groups, _ = load_moments(path)
    except UnreachableError:
        raise
    except (StoreError, OSError) as error:
        yield Finding("moments", EXTERNAL_FILE, f"it cannot be read ({error})", remedy)
        return
    if any(moments.dim != store.info.dim for moments in groups.values()):
        yield Finding("moments", EXTERNAL_FILE, f"they are not of dimension {store.info.dim}", remedy)


def check_unfinished(store: Store) -> Iterator[Finding]:
    """Shards that a run did not finish, and gaps in their numbers: nothing is wrong, but something is to be done."""
    again = "c3 import" if "imported" in store.info.extra else "c3 embed"
    for modality in names_in(store.path)[0]:
        finished = set(store.parts(modality))
        started = {int(match[1]) for match in map(_ROWS.fullmatch, names_in(store.path / modality)[1]) if match}
        gaps = set(range(max(finished, default=-1) + 1)) - finished
        for part in sorted((started | gaps) - finished):
            where = part_name(modality, part, ".json")
            remedy = f"Run the `{again}` that made the store again: it makes this shard."
            yield _unfinished(where, "the shard is not finished, or was dropped", remedy, modality, part)


def _unfinished(where: str, what: str, remedy: str, modality: str | None = None, part: int | None = None) -> Finding:
    return Finding("unfinished", where, what, remedy, modality=modality, part=part, warning=True)
