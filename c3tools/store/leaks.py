"""Rows of val or test that have a copy in train."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..corpus.tables import read_table, text_columns
from ..errors import StoreError
from ..io.locations import kind_of
from ..reporter import counted
from .reader import Store
from .rows import keys_of

DUPLICATES_FILE = "duplicates.parquet"  # of `c3 duplicates`, if it was written into the store


def notes_on_leaks(store: Store, modalities: Iterable[str], split: str | None) -> list[str]:
    """Return a note for each modality with scored rows that train has too.

    Rows that were made from equal files are noticed by the SHA-256 in the store, and other copies
    if `c3 duplicates` wrote its table into the folder of the store.

    Args:
        store: with the rows.
        modalities: of the rows.
        split: that is scored; nothing is said of train and of all rows.

    Raises:
        StoreError: if a shard or the table cannot be read.
    """
    notes: list[str] = []
    if split not in ("val", "test"):
        return notes
    for modality in modalities:
        train_digests = set(store.input_digests(modality, "train").values())
        scored_digests = store.input_digests(modality, split)
        leaked = [key for key, digest in scored_digests.items() if digest in train_digests]
        rows = f"{modality} row of {split}", f"{modality} rows of {split}"
        if leaked:
            were = f"{rows[0]} was", f"{rows[1]} were"
            notes.append(
                f"{counted(len(leaked), *were)} made from a file that train has too, for example "
                f"{leaked[0]!r}. Scores count them; `c3 duplicates` lists these and other copies."
            )
        copies = sorted(_copies_of_train(store, modality, split) - set(leaked))
        if copies:
            have = f"{rows[0]} has", f"{rows[1]} have"
            notes.append(
                f"{counted(len(copies), *have)} a copy in train by {DUPLICATES_FILE}, for example "
                f"{copies[0]!r}. Scores count them."
            )
    return notes


def _copies_of_train(store: Store, modality: str, split: str) -> set[str]:
    """Return the keys of a split that duplicates.parquet has in a group with a row of train.

    Raises:
        StoreError: if there is such a file that is not the table of `c3 duplicates`.
    """
    path = store.path / DUPLICATES_FILE
    if kind_of(path) is None:
        return set()
    columns = text_columns(read_table(path, StoreError))
    if not {"modality", "group", "key"} <= columns.keys():
        raise StoreError(
            f"{path} is not the table of `c3 duplicates`.",
            remedy=f"Remove it, or write it again: c3 duplicates --table {path}",
        )
    groups: dict[str | None, list[str]] = defaultdict(list)
    for row_modality, group, key in zip(
        columns["modality"], columns["group"], columns["key"], strict=True
    ):
        if row_modality == modality and key is not None:
            groups[group].append(key)

    # The splits of now: rows may have been left out since
    train_keys = _keys_of_split(store, modality, "train")
    scored_keys = _keys_of_split(store, modality, split)
    copies: set[str] = set()
    for keys in groups.values():
        if not train_keys.isdisjoint(keys):
            copies |= scored_keys.intersection(keys)
    return copies


def _keys_of_split(store: Store, modality: str, split: str) -> set[str]:
    batches = store.batches(modality, ["key"], split=split)
    return {key for batch in batches for key in keys_of(batch)}
