"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Repair(StrEnum):
    """What would mend a defect."""

    NONE = "none"
    REDO = "redo"
    MOMENTS = "moments"
    FAILURES = "failures"
    DESCRIPTION = "description"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        check: which check found it: description, marker, files, checksum, schema, count, moments, values, norms, keys,
            pairing, failures, unfinished.
        where: the file, relative to the store.
        what: what is wrong with it.
        remedy: what to do.
        repair: what `c3 verify --repair` does about it.
        modality, part: the shard, where it is one's.
        warning: whether the store is whole nevertheless.
    """

    check: str
    where: str
    what: str
    remedy: str
    repair: Repair = Repair.NONE
    modality: str | None = None
    part: int | None = None
    warning: bool = False

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "level": "warning" if self.warning else "defect",
            "check": self.check,
            "where": self.where,
            "what": self.what,
            "remedy": self.remedy,
            "repair": self.repair.value,
            "modality": self.modality,
            "part": self.part,
        }
