"""Keys of many rows in bounded memory, by 64-bit hashes: 8 bytes a row.

Whoever finds equal hashes compares the keys themselves, so that a duplicate is never reported by accident.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.int64]


def key_hashes(keys: Sequence[str]) -> Hashes:
    """Return 64-bit hashes (n,) of keys, the same within one process only."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def repeated(hashes: Hashes) -> Hashes:
    """Return the values that occur in ``hashes`` more than once, ascending; sorts ``hashes`` in place."""
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def contains(ordered: Hashes, hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Return which of ``hashes`` are among the ascending ``ordered``."""
    if not len(ordered):
        return np.zeros(len(hashes), bool)
    return ordered[np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)] == hashes  # type: ignore[no-any-return]


class SplitTable:
    """The split of each of many keys, in 10 bytes a key.

    Args:
        entries: blocks of keys and their splits; keys without a split are left out.
    """

    def __init__(self, entries: Iterable[tuple[Sequence[str], Sequence[str | None]]] = ()) -> None:
        names: dict[str, int] = {}
        hashes, codes = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
        for keys, splits in entries:
            known = [(key, split) for key, split in zip(keys, splits, strict=True) if split]
            hashes.append(key_hashes([key for key, _ in known]))
            codes.append(np.array([names.setdefault(split, len(names)) for _, split in known], np.uint16))
        self._hashes, self._codes, self._names = np.concatenate(hashes), np.concatenate(codes), list(names)
        order = np.argsort(self._hashes, kind="stable")
        self._hashes, self._codes = self._hashes[order], self._codes[order]

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._hashes)

    def look_up(self, keys: Sequence[str]) -> list[str | None]:
        """Return the split of each key, None for keys that are not in the table."""
        hashes = key_hashes(keys)
        found = contains(self._hashes, hashes)
        codes = self._codes[np.searchsorted(self._hashes, hashes[found])]
        splits: list[str | None] = [None] * len(keys)
        for row, code in zip(np.flatnonzero(found), codes, strict=True):
            splits[row] = self._names[code]
        return splits
