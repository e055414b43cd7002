"""The split of a row: train, val or test.

Fitting uses train, checkpoints are chosen on val, scores come from test. A corpus may name its splits in its own
way (``train2017``, ``restval``, ``validation``); one without splits is split by a stable hash of the key, the
same on every machine and in every run.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..seeds import stable_fraction

ALL = "all"
SALT = "c3tools split"
HASH_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
_ALIASES = {
    "train": re.compile(r"(train|training|restval)[-_ ]?\d*"),
    "val": re.compile(r"(val|valid|validation|dev)[-_ ]?\d*"),
    "test": re.compile(r"(test|testing|eval|evaluation)[-_ ]?\d*"),
}
_NAMED = re.compile(r"(train|val|valid|validation|dev|test)(?:[-_.]?\d.*)?$")


def split_of(split: str | None, key: str) -> str:
    """Return the split of a row: ``train``, ``val``, ``test``, or the corpus' own name for something else.

    Args:
        split: as the corpus names it; None or an empty string where it names none.
        key: the key that decides where the corpus names none: that of the image, so that an image and its captions
            are in the same split.
    """
    name = (split or "").strip().lower()
    return _canonical_name(name) if name else hashed_split(key)


@lru_cache(maxsize=1024)  # a corpus has few names and many rows
def _canonical_name(name: str) -> str:
    for split, pattern in _ALIASES.items():
        if pattern.fullmatch(name):
            return split
    return name


def split_in_name(stem: str) -> str | None:
    """Return the split that a file is named after: ``train`` of train-00000-of-00002, train_001 or train, else None."""
    match = _NAMED.match(stem)
    return match[1] if match else None


def hashed_split(key: str) -> str:
    """Return train (80 %), val (10 %) or test (10 %) by a stable hash of ``key``."""
    position = stable_fraction(key, salt=SALT)
    edge = 0.0
    for split, fraction in HASH_FRACTIONS.items():
        edge += fraction
        if position < edge:
            return split
    return "test"
