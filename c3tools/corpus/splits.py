"""The split of a row: train, val or test.

Train is for fitting, val for choosing checkpoints, and test for scores. A corpus may name its
splits in its own way (``train2017``, ``restval``, ``validation``); one without splits is split by a
stable hash of the key, the same on every machine and in every run. So are, in all commands, rows of
a corpus that names no row train: see `kept_splits`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from ..seeds import stable_fractions

ALL = "all"
SALT = "c3tools split"
HASH_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
STANDARD = tuple(HASH_FRACTIONS)
Kept = frozenset[str] | None
_ALIASES = {
    "train": re.compile(r"(train|training|restval)[-_ ]?\d*"),
    "val": re.compile(r"(val|valid|validation|dev)[-_ ]?\d*"),
    "test": re.compile(r"(test|testing|eval|evaluation)[-_ ]?\d*"),
}
_NAMED = re.compile(r"(train|val|valid|validation|dev|test)(?:[-_.]?\d.*)?$")


def splits_of(keys: Sequence[str], splits: Sequence[str | None], kept: Kept = None) -> list[str]:
    """Return the split of each row: ``train``, ``val``, ``test``, or the corpus' own name for
    something else.

    Args:
        keys: decide where the corpus names no split: the key of the image, so that an image and its
            captions are in the same split.
        splits: as the corpus names them; None or an empty string for none.
        kept: the splits whose rows stay in them (`kept_splits`); the key decides for the others.
            None keeps all.
    """
    names = {split: named_split(split, kept) for split in {*splits}}
    by_key = iter(
        splits_by_hash([key for key, split in zip(keys, splits, strict=True) if not names[split]])
    )
    return [names[split] or next(by_key) for split in splits]


def splits_by_hash(
    keys: Sequence[str], fractions: Iterable[float] = HASH_FRACTIONS.values(), salt: str = SALT
) -> list[str]:
    """Return the split of each key by a stable hash; each split has about its share of all keys."""
    inner = [*accumulate(fractions)][:-1]
    return [
        STANDARD[place]
        for place in np.searchsorted(inner, stable_fractions(keys, salt), side="right")
    ]


def named_split(split: str | None, kept: Kept = None) -> str:
    """Return the split of a row by its name in the corpus; an empty text if its key decides (see
    `splits_of`).
    """
    name = (split or "").strip().lower()
    name = next((known for known, pattern in _ALIASES.items() if pattern.fullmatch(name)), name)
    return name if kept is None or name in kept else ""


def kept_splits(names: Iterable[str]) -> Kept:
    """Return the splits of a corpus whose rows stay in them, from the ``names`` of all; None if
    every row stays.

    Without rows named train, those that are neither val nor test are split by the hash of their
    keys; where all rows are named val, so are these. Rows named test are never learned from.
    """
    found = set(names)
    if "train" in found:
        return None
    if found == {"val"}:
        return frozenset()
    return frozenset({"val", "test"}) if found - {"val", "test"} else None


def describe_rule(names: Iterable[str]) -> str | None:
    """Return a sentence that says which rows are split by hash; None if every row stays in its
    split.
    """
    found = sorted(set(names))
    kept = kept_splits(found)
    if kept is None:
        return None
    which = "those that are neither val nor test are" if kept else "all are"
    shares = ", ".join(
        f"{share:.0%} {name}".replace("%", " %") for name, share in HASH_FRACTIONS.items()
    )
    return (
        f"No rows are named train (only {', '.join(found)}): {which} split by a stable hash of "
        f"their keys, {shares}."
    )


def split_in_name(stem: str) -> str | None:
    """Return the split that a file is named after: ``train`` of train-00000-of-00002, train_001 or
    train, else None.
    """
    match = _NAMED.match(stem)
    return match[1] if match else None


def split_order(split: str) -> tuple[list[bool], str]:
    """Return the sort key of a split: train, val, test, then others by name."""
    return [split != name for name in STANDARD], split
