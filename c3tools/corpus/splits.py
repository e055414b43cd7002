"""The split of a row: train, val or test.

Train is for fitting, val for choosing checkpoints, and test for scores. A corpus may name its
splits in its own way (``train2017``, ``restval``, ``validation``): in a field, or by the names of
its files or folders (`choose_split`). One without splits is split by a stable hash of the key, the
same on every machine and in every run; so is one that names nothing but val. The split of a row is
settled when it is written, with the name that the corpus has for it beside it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from ..seeds import stable_fractions

ALL = "all"
SALT = "c3tools split"
HASH_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
STANDARD = tuple(HASH_FRACTIONS)
_ALIASES = {
    "train": re.compile(r"(train|training|restval)[-_ ]?\d*"),
    "val": re.compile(r"(val|valid|validation|dev)[-_ ]?\d*"),
    "test": re.compile(r"(test|testing|eval|evaluation)[-_ ]?\d*"),
}
_WORD_BOUNDARY = re.compile(r"[-_. ]+")


@dataclass(frozen=True)
class ChosenSplit:
    """The split of an input as the corpus names it, None if its key decides, and what named it."""

    name: str | None
    origin: str


@lru_cache  # of millions of rows, few have different values
def choose_split(field: str | None, file: str | None, folder: str | None) -> ChosenSplit:
    """Return the split of an input: an explicit field wins over the name of an annotation file,
    and that over the name of a folder (Karpathy's splits lie across val2014/).

    Args:
        field: what the corpus has for it under ``split``, if anything.
        file: the split that its annotation file or table is named after (`split_in_name`).
        folder: the split that its folder is named after (`splits_of_folders`).
    """
    if field:
        return ChosenSplit(field, "the field split")
    if file:
        return ChosenSplit(file, "the names of files")
    if folder:
        return ChosenSplit(folder, "the names of folders")
    return ChosenSplit(None, "a hash of the keys")


def splits_of_folders(names: Iterable[str]) -> dict[str, str]:
    """Return the splits of files by their relative names, where folders beside each other are
    named after splits.

    Folders count only if all of them that contain files are named after splits, and at least two
    splits differ: train/ beside bus/ and car/ is a class. The outermost such folders count.
    """
    folder_of = {name: tuple(name.split("/")[:-1]) for name in names}
    children: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for folder in set(folder_of.values()):
        for depth, child in enumerate(folder):
            children[folder[:depth]].add(named_split(child))
    divided = {
        parent
        for parent, splits in children.items()
        if len(splits) > 1 and splits.issubset(STANDARD)
    }
    splits = {}
    for name, folder in folder_of.items():
        for depth, child in enumerate(folder):
            if folder[:depth] in divided:
                splits[name] = named_split(child)
                break
    return splits


def splits_of(keys: Sequence[str], splits: Sequence[str | None]) -> list[str]:
    """Return the split of each row: ``train``, ``val``, ``test``, or the corpus' own name for
    something else.

    Args:
        keys: decide where the corpus names no split: the key of the image, so that an image and its
            captions are in the same split.
        splits: as the corpus names them; None or an empty string for none.
    """
    names = {split: named_split(split) for split in set(splits)}
    pairs = zip(keys, splits, strict=True)
    keys_without_split = [key for key, split in pairs if not names[split]]
    hashed_splits = iter(splits_by_hash(keys_without_split))
    return [names[split] or next(hashed_splits) for split in splits]


def splits_by_hash(
    keys: Sequence[str], fractions: Iterable[float] = HASH_FRACTIONS.values(), salt: str = SALT
) -> list[str]:
    """Return the split of each key by a stable hash; each split has about its share of all keys."""
    # Where each split ends among the fractions from 0 to 1; the last one ends at 1
    ends = list(accumulate(fractions))[:-1]
    places = np.searchsorted(ends, stable_fractions(keys, salt), side="right")
    return [STANDARD[place] for place in places]


def named_split(split: str | None) -> str:
    """Return the split of a row by its name in the corpus; an empty text if its key decides."""
    name = (split or "").strip().lower()
    for standard_name, pattern in _ALIASES.items():
        if pattern.fullmatch(name):
            return standard_name
    return name


def is_val_alone(names: Iterable[str | None]) -> bool:
    """Return whether val is the only split that is named. Such rows are split by the hash of their
    keys, so that there are some to learn from.
    """
    return {named_split(name) for name in names if name} == {"val"}


def describe_hash() -> str:
    """Return the shares of the splits by hash, in words."""
    return ", ".join(f"{share:.0%} {name}" for name, share in HASH_FRACTIONS.items())


def describe_origins(origins: dict[str, set[str]], *, of: str = "Splits") -> str:
    """Return a sentence that says where the splits of a corpus come from.

    Args:
        origins: the splits that each origin (`ChosenSplit`) has named.
        of: the subject of the sentence.
    """
    parts = []
    for origin, names in origins.items():
        splits = ", ".join(sorted({named_split(name) for name in names}, key=split_order))
        parts.append(f"{origin} ({splits or describe_hash()})")
    return f"{of} come from {' and '.join(parts)}."


def describe_val_alone() -> str:
    """Return a sentence that says how rows are split where val is the only split that is named."""
    return (
        f"All rows belong to val, so a hash of the keys assigns splits instead ({describe_hash()})."
    )


def split_in_name(stem: str) -> str | None:
    """Return the split that a file is named after: ``train`` of train-00000-of-00002,
    captions_train2017 or cc12m-train-0001; None without one, or with two.
    """
    splits = {named_split(word) for word in _WORD_BOUNDARY.split(stem)}.intersection(STANDARD)
    return splits.pop() if len(splits) == 1 else None


def split_order(split: str) -> tuple[list[bool], str]:
    """Return the sort key of a split: train, val, test, then others by name."""
    return [split != name for name in STANDARD], split
