"""What can be wrong with a store, checked part by part in bounded memory; nothing here changes a file."""

from __future__ import annotations

from .description import check_description
from .findings import Finding, Repair
from .keys import check_keys
from .shards import check_shard
from .side_files import check_borrowed, check_failures, check_unfinished

__all__ = [
    "Finding",
    "Repair",
    "check_borrowed",
    "check_description",
    "check_failures",
    "check_keys",
    "check_shard",
    "check_unfinished",
]
