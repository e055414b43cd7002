"""Keys of many rows in bounded memory, as 64-bit hashes.

If hashes are equal, the keys themselves are compared, so that a duplicate is never reported by accident.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np
import numpy.typing as npt

from ..io.temporary import using_temporary_files

Hashes = npt.NDArray[np.int64]
_RUN = 2**18  # hashes that are sorted in memory
_RANGES = 256  # parts of a run that are read at a time
_EDGES = np.linspace(-(2.0**63), 2.0**63, _RANGES, endpoint=False)[1:].astype(np.int64)


def key_hashes(keys: Sequence[str]) -> Hashes:
    """Return 64-bit hashes (n,) of keys, the same within one process only."""
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def contains(ordered: Hashes, hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Return which of ``hashes`` are among the ascending ``ordered``."""
    if not len(ordered):
        return np.zeros(len(hashes), bool)
    return ordered[np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)] == hashes  # type: ignore[no-any-return]


class SortedHashes:
    """Hashes of any number of keys: sorted runs in a temporary file, the last one in memory."""

    def __init__(self) -> None:
        self._pending: list[Hashes] = []
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, Hashes]] = []  # where each begins in the file, and where its ranges begin in it
        self._rest: Hashes | None = None
        self._count = 0

    def __len__(self) -> int:
        """Return how many were added."""
        return self._count

    def add(self, keys: Sequence[str]) -> None:
        """Add the hashes of keys.

        Raises:
            C3Error: if there is no room for temporary files.
        """
        self._pending.append(key_hashes(keys))
        self._rest = None
        self._count += len(keys)
        if sum(map(len, self._pending)) >= _RUN:
            self._write_run()

    def ranges(self) -> Iterator[Hashes]:
        """Yield all hashes ascending, in the same ranges of values for every collection: some may be empty."""
        if self._rest is None:
            self._rest = _sorted(self._pending)
            self._pending = [self._rest]
        starts = _starts(self._rest)
        for number in range(_RANGES):
            parts = [self._rest[starts[number] : starts[number + 1]]]
            for offset, bounds in self._runs:
                parts.append(self._read(offset + int(bounds[number]), int(bounds[number + 1] - bounds[number])))
            yield _sorted(parts) if self._runs else parts[0]

    def repeated(self) -> Hashes:
        """Return the values that were added more than once, ascending."""
        return _joined([np.unique(part[1:][part[1:] == part[:-1]]) for part in self.ranges()])

    def shared_with(self, *others: SortedHashes) -> Hashes:
        """Return the values that are in one of the others too, ascending, each once."""
        shared = []
        for part, *other_parts in zip(self.ranges(), *(other.ranges() for other in others), strict=True):
            own = np.unique(part)
            shared.append(
                own[np.any([contains(other, own) for other in other_parts], axis=0)] if other_parts else own[:0]
            )
        return _joined(shared)

    def missing_from(self, *others: SortedHashes) -> Hashes:
        """Return the values that are in none of the others, ascending, each once."""
        missing = []
        for part, *other_parts in zip(self.ranges(), *(other.ranges() for other in others), strict=True):
            left = np.unique(part)
            for other in other_parts:
                left = left[~contains(other, left)]
            missing.append(left)
        return _joined(missing)

    def _write_run(self) -> None:
        run = _sorted(self._pending)
        self._pending = []
        with using_temporary_files():
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="c3-keys-")  # noqa: SIM115 (closed with this object)
                weakref.finalize(self, self._file.close)
            self._runs.append((self._file.seek(0, 2) // run.itemsize, _starts(run)))
            self._file.write(run.tobytes())

    def _read(self, start: int, count: int) -> Hashes:
        assert self._file is not None
        with using_temporary_files():
            self._file.seek(start * 8)
            return np.frombuffer(self._file.read(count * 8), np.int64)


def _sorted(parts: Sequence[Hashes]) -> Hashes:
    joined = _joined(parts)
    joined.sort()
    return joined


def _joined(parts: Sequence[Hashes]) -> Hashes:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _starts(run: Hashes) -> Hashes:
    """Return where each range begins in an ascending run, and where the last one ends: int64 (ranges + 1,)."""
    return np.concatenate([[0], np.searchsorted(run, _EDGES), [len(run)]]).astype(np.int64)


class SplitTable:
    """The split of each of many keys, in 10 bytes a key.

    Args:
        entries: blocks of keys and their splits; keys whose split is None are left out. Of a key that comes again, the
            first split counts.
    """

    def __init__(self, entries: Iterable[tuple[Sequence[str], Sequence[str | None]]] = ()) -> None:
        names: dict[str, int] = {}
        hashes, codes = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
        for keys, splits in entries:
            known = [(key, split) for key, split in zip(keys, splits, strict=True) if split is not None]
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
