"""Groups of copies."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Tier = Literal["exact", "copy", "same scene", "alike"]
"""The evidence that rows of a group are alike: equal files, rows or texts; what photos show, which
are copies or of the same scene; embeddings that are near."""
TIERS: tuple[Tier, ...] = ("exact", "copy", "same scene", "alike")
MARKED_TIERS: tuple[Tier, ...] = ("exact", "copy")
HELD_OUT = ("test", "val")


def ways_to_mark_all_splits(store: Path) -> str:
    """Return the sentence that follows the number of rows that are not in train."""
    words = ["c3", "split", "--store", str(store), "--fractions", "1,0,0", "-o", f"{store}-all"]
    return (
        "Mark them too with --mark-splits all, or work in a copy of the store with all rows in "
        f"train: {shlex.join(words)}"
    )


@dataclass(frozen=True)
class Copy:
    """A row that is like the one that is kept.

    Attributes:
        key: of the row.
        cosine: of its embedding and that of the kept row.
        agreement: of the two photos, at most 1; None where photos were not compared.
        split: of the row.
        leave_out: whether it is marked, for `c3 leave-out`.
        lost_captions: of a row that is marked, the captions that the kept row does not have.
    """

    key: str
    cosine: float
    agreement: float | None
    split: str
    leave_out: bool = False
    lost_captions: Sequence[str] = ()


@dataclass(frozen=True)
class DuplicateGroup:
    """A row that is kept, and the rows that are like it.

    Attributes:
        modality: of all of them.
        tier: ``exact`` (equal files, rows or texts), ``copy`` or ``same scene`` (by what the photos
            show), or ``alike`` (by the embeddings alone).
        kept: key of the row that is kept: of the split that is tested first, then the one with the
            most captions, then the one that shows what both show on the larger area or without a
            border, then the one with the most pixels, then the earliest key.
        kept_split: its split.
        splits: of all rows.
        copies: the others, nearest first.
    """

    modality: str
    tier: Tier
    kept: str
    kept_split: str
    splits: list[str]
    copies: list[Copy]

    @property
    def keys(self) -> list[str]:
        """The keys of all rows, that of the kept one first."""
        return [self.kept, *(copy.key for copy in self.copies)]

    @property
    def is_leak(self) -> bool:
        """Return whether a row of train has a copy in val or test, or one of val in test."""
        return len({"train", *HELD_OUT}.intersection(self.splits)) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return the group as JSON values."""
        copies = [
            {"key": copy.key, "cosine": copy.cosine, "agreement": copy.agreement}
            for copy in self.copies
        ]
        values = asdict(self)
        return {name: values[name] for name in ("modality", "kept", "tier", "splits")} | {
            "copies": copies
        }
