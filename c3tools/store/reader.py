"""Read a store: moments without rows, rows in batches, or everything at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..arrays import Matrix
from ..corpus.splits import ALL, STANDARD, Kept, describe_rule, kept_splits, split_order
from ..errors import StoreError, UnreachableError
from ..executors import Executor, Report, Work
from ..io.locations import SMALL_BLOCK, kind_of, location, names_in, unread_is_not_damaged
from ..io.parquet import open_checked
from ..io.spill import collect_rows
from ..moments import Moments, load_counts, load_moments, unit_rows
from ..reporter import SILENT, Reporter
from ..tables import Table
from .dataset import HubDataset
from .manifest import EXTERNAL_FILE, require_recorded
from .metadata import Failure, StoreInfo, read_failures, read_marker
from .rows import ITEM_COLUMNS, Pairs, Rows, embedding_matrix, join_tables, split_mask
from .shards import (
    MARKER,
    MOMENTS,
    ROWS,
    add_moments,
    check_schema,
    early_name,
    finished_parts,
    merge_moments,
    part_path,
)

MAX_GROUPS = 32  # their results are in memory at once
MIN_GROUP_SHARDS = 64
SplitMoments = dict[str, Moments]
ShardGroup = tuple[str, Sequence[int]]  # modality, and numbers of shards


class Store(HubDataset):
    """A store of embeddings, opened for reading; shards without their done marker are ignored.

    Attributes:
        path: the folder, or a path-like object for a URL.
        info: the content of store.json: model, dimension, dtype.
        summary: the `EmbedSummary` of the run, for a store that `c3tools.embed` returns; else None.
    """

    def __init__(self, path: Path, info: StoreInfo) -> None:
        self.path = path
        self.info = info
        self.summary: Any = None
        self._hashed_moments: dict[str, SplitMoments] = {}
        self._early: dict[str, set[int]] = {}  # modality → shards whose files have the names of early versions

    def __repr__(self) -> str:
        """Return path, model and dimension; no shard is read."""
        return f"Store({str(self.path)!r}, model={self.info.model.name!r}, dim={self.info.dim}, {self.info.dtype})"

    def _repr_html_(self) -> str:
        """Return a table of the rows by modality and split, as notebooks show the store."""
        counts = {modality: self.split_counts(modality) for modality in self.modalities}
        splits = sorted({split for by_split in counts.values() for split in by_split}, key=split_order)
        rows = [
            [modality, *(f"{by_split.get(split, 0):,}" for split in splits), f"{sum(by_split.values()):,}"]
            for modality, by_split in counts.items()
        ]
        title = f"{self.path}: embeddings of {self.info.model}, {self.info.dim} dimensions, {self.info.dtype}"
        return Table(["modality", *splits, "all"], rows, title)._repr_html_()

    @classmethod
    def open(cls, path: Store | str | Path, *, incomplete: bool = False, reporter: Reporter = SILENT) -> Store:
        """Open the store in the folder or at the URL ``path``; return an open store unchanged.

        Args:
            path: a store, its folder, or its URL.
            incomplete: open it even if recorded files are missing; for writers, which may write them again.
            reporter: gets a message if the store is unfinished.

        Raises:
            IncompleteStoreError: if files that its manifest records are missing.
            StoreError: if there is no store, or it cannot be read.
        """
        if isinstance(path, Store):
            return path
        folder = location(path)
        info = StoreInfo.load(folder)
        if not incomplete:
            require_recorded(folder, info, reporter)
        return cls(folder, info)

    @property
    def modalities(self) -> list[str]:
        """The names of the modalities that have finished shards, ``image`` and ``text`` first."""
        names = [name for name in names_in(self.path)[0] if self.parts(name)]
        known = [name for name in ("image", "text") if name in names]
        return known + sorted(set(names) - set(known))

    def parts(self, modality: str) -> list[int]:
        """Return the numbers of the finished shards of ``modality``, ascending."""
        found = finished_parts(names_in(self.path / modality)[1])
        self._early[modality] = {part for part, early in found.items() if early}
        return list(found)

    def file(self, modality: str, part: int, suffix: str) -> Path:
        """Return the path of one file of a shard, by the name it has in this store; see `part_path`."""
        if modality not in self._early:
            self.parts(modality)
        path = part_path(self.path, modality, part, suffix)
        if part in self._early[modality]:
            early = self.path / early_name(modality, part, suffix)
            return early if kind_of(early) else path  # a writer may have renamed it
        return path

    def copy_in(self, folder: Path) -> Store:
        """Return a store in ``folder`` on this machine, for copies of files of this store."""
        copy = Store(folder, self.info)
        copy._early = self._early
        return copy

    def marker(self, modality: str, part: int) -> dict[str, Any]:
        """Return the done marker of one shard: rows, failures, sha256, timings.

        Raises:
            StoreError: if it cannot be read.
        """
        return read_marker(self.file(modality, part, MARKER))

    def count(self, modality: str, split: str | None = None) -> int:
        """Return the number of rows of ``modality`` (in ``split``)."""
        if split is None or split == ALL:
            return sum(int(self.marker(modality, part)["rows"]) for part in self.parts(modality))
        if self.kept_splits is None or split not in STANDARD:
            return self.split_counts(modality).get(split.lower(), 0)
        return sum(batch.num_rows for batch in self.batches(modality, ["key"], split=split))

    def split_counts(self, modality: str) -> dict[str, int]:
        """Return the number of rows of ``modality`` in each split of the corpus, from the headers of moments."""
        counts: Counter[str] = Counter()
        for part in self.parts(modality):
            counts.update(load_counts(self.file(modality, part, MOMENTS)))
        return {split: n for split, n in counts.items() if n}

    @cached_property
    def kept_splits(self) -> Kept:
        """The splits that are used as they are, None for all: `c3tools.corpus.splits.kept_splits`."""
        for modality, part in all_parts(self):  # the first shard of most stores has rows named train
            if load_counts(self.file(modality, part, MOMENTS)).get("train"):
                return None
        return kept_splits(self._split_names())

    @property
    def split_note(self) -> str | None:
        """A message about rows that are split by hash although the corpus names their splits, or None."""
        return None if self.kept_splits is None else describe_rule(self._split_names())

    def list_splits(self, modality: str | None = None) -> str:
        """Return the splits and their numbers of rows as text."""
        names = self.modalities if modality is None else [modality]
        counts = sum((Counter(self.split_counts(name)) for name in names), Counter[str]())
        listed = ", ".join(f"{split} ({counts[split]:,})" for split in sorted(counts, key=split_order)) or "none"
        return listed if self.kept_splits is None else f"{listed}; split by hash: train, val and test"

    def _split_names(self) -> set[str]:
        return {split for modality in self.modalities for split in self.split_counts(modality)}

    def shard_failures(self, modality: str, part: int) -> list[Failure]:
        """Return the inputs of one shard that were not embedded, from its done marker."""
        return [Failure(**failure) for failure in self.marker(modality, part)["failures"]]

    def failures(self, modality: str | None = None) -> list[Failure]:
        """Return every input (of ``modality``) that was not embedded, from the done markers."""
        names = names_in(self.path)[0] if modality is None else [modality]
        return [failure for name in names for part in self.parts(name) for failure in self.shard_failures(name, part)]

    def recorded_failures(self) -> list[Failure]:
        """Return the rows of failures.parquet, or none if the file does not exist."""
        return read_failures(self.path)

    def moments(self, modality: str, split: str | None = None, executor: Executor | None = None) -> Moments:
        """Return the moments of the rows of ``modality`` in ``split`` (None or ``all``: every row).

        They are merged from the shards' moments; rows are read only to split them by hash (see `kept_splits`). For
        ``executor`` see `moments_by_split`.

        Raises:
            StoreError: if the store does not have the modality, or it has no rows in the split.
        """
        if split is None or split == ALL:
            return Moments.merge_all(self._stored_moments(modality, executor).values(), self.info.dim)
        groups = (self.moments_by_split if split in STANDARD else self._stored_moments)(modality, executor)
        found = groups.get(split.lower())
        if found is None or found.n == 0:
            raise StoreError(
                f"The store {self.path} has no {modality} rows in the split {split!r}.",
                remedy=f"Its splits of {modality} rows: {self.list_splits(modality)}.",
            )
        return found

    @property
    def external_path(self) -> Path:
        """The file of external moments: those of another corpus, loaded by `c3 means --load`."""
        return self.path / EXTERNAL_FILE

    def external_moments(self) -> tuple[dict[str, Moments], dict[str, Any]]:
        """Return the moments of another corpus that `c3 means --load` has loaded, by modality, and their header.

        Both are empty if none were loaded.
        """
        if kind_of(self.external_path) is None:
            return {}, {}
        groups, header = load_moments(self.external_path)
        return groups, {name: value for name, value in header.items() if name != "seal"}

    def fitting_moments(self, modality: str, split: str = "train", executor: Executor | None = None) -> Moments:
        """Return the moments that transforms are fitted on: loaded ones if there are any, else those of ``split``.

        They are the moments of rows of norm 1, see `unit_moments`; empty if the modality has no rows in the split.
        """
        external, _ = self.external_moments()
        if modality in external:
            return external[modality]
        there = self.count(modality, split) > 0
        return self.unit_moments(modality, split, executor) if there else Moments.empty(self.info.dim)

    def unit_moments(self, modality: str, split: str | None = None, executor: Executor | None = None) -> Moments:
        """Return the moments of the rows scaled to norm 1; the rows are read once if the store keeps norms."""
        if self.info.normalised:
            return self.moments(modality, split, executor)
        blocks = (unit_rows(embedding_matrix(batch)) for batch in self.batches(modality, split=split))
        return Moments.merge_all(map(Moments.from_rows, blocks), self.info.dim)

    def moments_by_split(self, modality: str, executor: Executor | None = None) -> dict[str, Moments]:
        """Return the moments of ``modality`` for each split, as all commands see them (`kept_splits`).

        They are merged from the moments of the shards. If rows are split by hash, the rows are read once.

        Args:
            modality: its name.
            executor: merges groups of shards; None for this process, with one group in memory. The result is the same,
                bit for bit.

        Raises:
            StoreError: if the store does not have the modality, or moments cannot be read.
        """
        kept = self.kept_splits
        if kept is None:
            return self._stored_moments(modality, executor)
        if modality not in self._hashed_moments:
            groups: SplitMoments = {}
            for batch in self.batches(modality):
                add_moments(groups, batch, kept)
            self._hashed_moments[modality] = groups
        return dict(self._hashed_moments[modality])

    def _stored_moments(self, modality: str, executor: Executor | None = None) -> SplitMoments:
        self.require(modality)
        parts = self.parts(modality)
        size = max(MIN_GROUP_SHARDS, -(-len(parts) // MAX_GROUPS))
        groups = [(modality, parts[start : start + size]) for start in range(0, len(parts), size)]
        work, silent = MergeWork(self), lambda done, failed: None  # merging is too quick to be shown
        return merge_moments(work.run(groups, silent) if executor is None else executor.run(work, groups, silent))

    def shard_moments(self, modality: str, part: int) -> dict[str, Moments]:
        """Return the moments of one shard by split.

        Raises:
            StoreError: if they cannot be read, or are of another dimension.
        """
        path = self.file(modality, part, MOMENTS)
        groups, _ = load_moments(path)
        for moments in groups.values():
            if moments.dim != self.info.dim:
                raise StoreError(
                    f"{path} has dimension {moments.dim}, but the store has dimension {self.info.dim}.",
                    remedy="Run `c3 verify --repair`.",
                )
        return groups

    def batches(
        self,
        modality: str,
        columns: Sequence[str] | None = None,
        *,
        split: str | None = None,
        batch_rows: int = 8192,
        parts: Sequence[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows of ``modality`` in the order of the shards.

        Args:
            modality: its name.
            columns: the columns to read; None for all.
            split: the rows to read, of this split only (see `split_mask`); None or ``all`` for every row.
            batch_rows: largest number of rows in a batch.
            parts: numbers of the shards to read; None for all.

        Raises:
            StoreError: if the store does not have the modality, or a shard cannot be read.
        """
        if parts is None:
            self.require(modality)
            parts = self.parts(modality)
        every = split is None or split == ALL
        kept = None if every else self.kept_splits
        wanted = None if columns is None else list(columns)
        if wanted is not None and not every:
            wanted = list(dict.fromkeys([*wanted, "key", "split", *ITEM_COLUMNS]))
        block = SMALL_BLOCK if columns and "embedding" not in columns else None
        for part in parts:
            path = self.file(modality, part, ROWS)
            try:
                with unread_is_not_damaged(path), open_checked(path, block) as file:
                    check_schema(file.schema_arrow, modality, self.info, columns or ())
                    for batch in file.iter_batches(batch_size=batch_rows, columns=wanted):
                        batch.validate(full=True)  # text that is not UTF-8 would fail later
                        chosen = batch if every else batch.filter(pa.array(split_mask(batch, split, kept)))
                        if columns is not None and not every:
                            chosen = chosen.select([name for name in columns if name in chosen.schema.names])
                        if len(chosen):
                            yield chosen
            except UnreachableError:
                raise
            except (OSError, ValueError, KeyError, MemoryError, pa.ArrowException) as error:
                raise StoreError(
                    f"The shard {path} cannot be read ({error}).",
                    remedy="Run `c3 verify --repair`, then the same `c3 embed` command again: only this shard is made "
                    "again.",
                ) from error

    def load(self, modality: str, split: str | None = None, *, spill: bool = False) -> Rows:
        """Return all rows of ``modality`` (of ``split``, or of all splits), embeddings as float32.

        Args:
            modality: its name.
            split: the rows to read, of this split only; None or ``all`` for every row.
            spill: keep embeddings that would take more than 256 MiB in a temporary file, see `Rows.embeddings`.

        Raises:
            StoreError: if the store does not have the modality, or a shard cannot be read.
            OutputError: if the temporary file cannot be written.
        """
        tables: list[pa.Table] = []

        def matrices() -> Iterator[Matrix]:
            for batch in self.batches(modality):
                rest = batch.drop_columns(["embedding"])
                chosen = split_mask(rest, split, self.kept_splits)
                tables.append(pa.Table.from_batches([rest.filter(pa.array(chosen))]))
                yield embedding_matrix(batch, self.info.dtype)[... if chosen.all() else chosen]

        embeddings = collect_rows(matrices(), (self.info.dim,), self.info.dtype, spill=spill)
        if not tables:
            raise StoreError(f"The modality {modality!r} of the store {self.path} has no rows.")
        return Rows(modality, embeddings, join_tables(tables), self.kept_splits)

    def pairs(self, first: str = "image", second: str = "text", *, split: str | None = None) -> Pairs:
        """Return the rows of two modalities (of ``split``, or of all splits) and which of them belong together.

        Raises:
            StoreError: if the store does not have a modality, or a shard cannot be read.
        """
        return Pairs.match(self.load(first, split), self.load(second, split))

    def require(self, modality: str) -> None:
        """Raise a StoreError that lists the modalities if ``modality`` is not one of them."""
        if not self.parts(modality):
            present = ", ".join(self.modalities) or "none so far"
            raise StoreError(
                f"The store {self.path} has no modality {modality!r}. Its modalities: {present}.",
                remedy="Run `c3 embed` on a corpus with this modality.",
            )


class MergeWork(Work[ShardGroup, SplitMoments]):
    """Merging the moments of a group of shards, by split."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run(self, tasks: Iterable[ShardGroup], report: Report) -> Iterator[SplitMoments]:
        """See `Work.run`."""
        for modality, parts in tasks:
            yield merge_moments(self._store.shard_moments(modality, part) for part in parts)

    def name(self, task: ShardGroup) -> str:
        """Return a name such as ``the moments of text shards 0 to 63``."""
        return f"the moments of {task[0]} shards {task[1][0]} to {task[1][-1]}"


def all_parts(store: Store) -> Iterator[tuple[str, int]]:
    """Yield modality and number of every finished shard."""
    for modality in store.modalities:
        for part in store.parts(modality):
            yield modality, part
