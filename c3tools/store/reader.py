"""Reading a store: moments without rows, rows in batches, or everything at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..corpus.splits import ALL
from ..errors import StoreError, UnreachableError
from ..executors import Executor, Report, Work
from ..io.locations import SMALL_BLOCK, kind_of, location, name_or_file, names_in
from ..moments import Moments, load_moments
from .failures import Failure, read_failures
from .info import StoreInfo
from .markers import read_marker
from .rows import Pairs, Rows, embedding_matrix, split_mask
from .schema import shard_schema
from .writer import part_path

EXTERNAL_FILE = "borrowed-moments.safetensors"
_MARKER = re.compile(r"part-(\d{5,9})\.json")
_TEXT_TYPES = (pa.string(), pa.large_string())
MOST_GROUPS = 32  # what they come to is in memory at once
SMALLEST_GROUP = 64  # shards
Splits = dict[str, Moments]
Group = tuple[str, Sequence[int]]  # modality, and numbers of shards


class Store:
    """A store of embeddings, opened for reading.

    Only finished shards exist: a shard without its done marker is not seen.

    Attributes:
        path: its folder or URL.
        info: the description in its store.json.
        summary: the `EmbedSummary` of the run that `c3tools.embed` returned it from, else None.
    """

    def __init__(self, path: Path, info: StoreInfo) -> None:
        self.path = path
        self.info = info
        self.summary: Any = None

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open the store in the folder, or at the URL, ``path``.

        Raises:
            StoreError: if there is none, or it cannot be read.
        """
        folder = location(path)
        return cls(folder, StoreInfo.load(folder))

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that have finished shards, ``image`` and ``text`` first."""
        names = [name for name in names_in(self.path)[0] if self.parts(name)]
        known = [name for name in ("image", "text") if name in names]
        return known + sorted(set(names) - set(known))

    def parts(self, modality: str) -> list[int]:
        """Numbers of the finished shards of ``modality``, ascending."""
        return finished_parts(self.path / modality)

    def marker(self, modality: str, part: int) -> dict[str, Any]:
        """The done marker of one shard: rows, failures, sha256, timings.

        Raises:
            StoreError: if it cannot be read.
        """
        return read_marker(part_path(self.path, modality, part, ".json"))

    def count(self, modality: str) -> int:
        """Number of rows of ``modality``."""
        return sum(int(self.marker(modality, part)["rows"]) for part in self.parts(modality))

    def shard_failures(self, modality: str, part: int) -> list[Failure]:
        """The inputs of one shard that were not embedded, from its done marker."""
        return [Failure(**failure) for failure in self.marker(modality, part)["failures"]]

    def failures(self) -> list[Failure]:
        """Every input that was not embedded, from the done markers."""
        folders = names_in(self.path)[0]
        return [f for modality in folders for part in self.parts(modality) for f in self.shard_failures(modality, part)]

    def recorded_failures(self) -> list[Failure]:
        """The rows of failures.parquet; none where it is not there."""
        return read_failures(self.path)

    def moments(self, modality: str, split: str | None = None, executor: Executor | None = None) -> Moments:
        """Moments of ``modality`` over ``split`` (None or ``all``: every row), from the shards' moments alone.

        ``executor`` is that of `moments_by_split`.

        Raises:
            StoreError: if the modality is not there.
        """
        groups = self.moments_by_split(modality, executor)
        if split not in (None, ALL):
            return groups.get(str(split), Moments.empty(self.info.dim))
        return Moments.merge_all(groups.values(), self.info.dim)

    @property
    def external_path(self) -> Path:
        """Where moments taken from another corpus are kept."""
        return self.path / EXTERNAL_FILE

    def external_moments(self) -> tuple[dict[str, Moments], dict[str, Any]]:
        """Moments taken from another corpus by `c3 means --load`, by modality, and what is said of them; else none."""
        if kind_of(self.external_path) is None:
            return {}, {}
        groups, header = load_moments(self.external_path)
        return groups, {name: value for name, value in header.items() if name != "seal"}

    def fitting_moments(self, modality: str, split: str = "train", executor: Executor | None = None) -> Moments:
        """The moments that transforms are fitted on: those taken from another corpus, else those of ``split``."""
        borrowed, _ = self.external_moments()
        return borrowed[modality] if modality in borrowed else self.moments(modality, split, executor)

    def moments_by_split(self, modality: str, executor: Executor | None = None) -> dict[str, Moments]:
        """Moments of ``modality`` for each split; a corpus without splits is split by a stable hash of the key.

        Args:
            modality: its name.
            executor: merges those of groups of shards; the result is the same, bit for bit, with any and without.

        Raises:
            StoreError: if the modality is not there, or moments cannot be read.
        """
        self.require(modality)
        return merged_moments(self, modality, executor)

    def shard_moments(self, modality: str, part: int) -> dict[str, Moments]:
        """Moments of one shard by split.

        Raises:
            StoreError: if they cannot be read, or are of another dimension.
        """
        path = part_path(self.path, modality, part, ".moments.safetensors")
        groups, _ = load_moments(path)
        for moments in groups.values():
            if moments.dim != self.info.dim:
                raise StoreError(
                    f"{path} has dimension {moments.dim}, the store {self.info.dim}.",
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
        """Stream the rows of ``modality`` in the order of the shards, at most ``batch_rows`` at a time.

        ``split`` takes the rows of this split only (None or ``all``: every row), and ``parts`` these shards only.

        Raises:
            StoreError: if the modality is not there or a shard cannot be read.
        """
        if parts is None:
            self.require(modality)
            parts = self.parts(modality)
        block = SMALL_BLOCK if columns and "embedding" not in columns else None
        for part in parts:
            path = part_path(self.path, modality, part, ".parquet")
            try:
                with name_or_file(path, block) as source, pq.ParquetFile(source) as file:
                    self._check_schema(modality, file.schema_arrow, columns or ())
                    for batch in file.iter_batches(batch_size=batch_rows, columns=columns):
                        batch.validate(full=True)  # text that is not UTF-8 would fail far from here
                        chosen = batch if split in (None, ALL) else batch.filter(pa.array(split_mask(batch, split)))
                        if len(chosen):
                            yield chosen
            except UnreachableError:
                raise
            except (OSError, ValueError, KeyError, MemoryError, pa.ArrowException) as error:
                raise StoreError(
                    f"The shard {path} cannot be read ({error}).",
                    remedy="Run `c3 verify --repair`, then the same `c3 embed` again: only this shard is made anew.",
                ) from error

    def _check_schema(self, modality: str, schema: pa.Schema, columns: Sequence[str]) -> None:
        """Raise a ValueError if a column is missing, or the embeddings are not of this store's dimension and dtype."""
        should = shard_schema(modality, self.info)
        missing = {"key", "embedding", *(name for name in columns if name in should.names)} - set(schema.names)
        if missing:
            raise ValueError(f"it has no column {min(missing)!r}")
        wanted = should.field("embedding").type
        if schema.field("embedding").type != wanted:
            raise ValueError(f"its embeddings are {schema.field('embedding').type}, the store's {wanted}")
        if schema.field("key").type not in _TEXT_TYPES:
            raise ValueError(f"its keys are {schema.field('key').type}, not text")

    def load(self, modality: str, split: str | None = None) -> Rows:
        """Return all rows of ``modality`` (of ``split``, or of all splits) in memory, embeddings as float32.

        Raises:
            StoreError: if the modality is not there or a shard cannot be read.
        """
        batches, matrices = [], []
        for batch in self.batches(modality):
            matrix, rest = embedding_matrix(batch), batch.drop_columns(["embedding"])
            if split not in (None, ALL):
                chosen = split_mask(rest, split)
                matrix, rest = matrix[chosen], rest.filter(pa.array(chosen))
            batches.append(rest)
            matrices.append(matrix)
        if not batches:
            raise StoreError(f"The modality {modality!r} of the store {self.path} has no rows.")
        table = pa.Table.from_batches(batches).replace_schema_metadata(None)
        return Rows(modality, table.column("key").to_pylist(), np.concatenate(matrices), table)

    def pairs(self, first: str = "image", second: str = "text", *, split: str | None = None) -> Pairs:
        """Return the rows of two modalities (of ``split``, or of all splits) and which of them belong together.

        Raises:
            StoreError: if a modality is not there or a shard cannot be read.
        """
        return Pairs.match(self.load(first, split), self.load(second, split))

    def require(self, modality: str) -> None:
        """Raise a StoreError that names what is there if ``modality`` is not."""
        if not self.parts(modality):
            present = ", ".join(self.modalities) or "nothing finished yet"
            raise StoreError(
                f"The store {self.path} has no modality {modality!r}; it has: {present}.",
                remedy="Run `c3 embed` on a corpus that has it.",
            )


def finished_parts(folder: Path) -> list[int]:
    """Numbers of the shards in a modality's folder that have their done marker, ascending."""
    return sorted(int(match[1]) for match in map(_MARKER.fullmatch, names_in(folder)[1]) if match)


def all_parts(store: Store) -> Iterator[tuple[str, int]]:
    """Every finished shard: modality and number."""
    for modality in store.modalities:
        for part in store.parts(modality):
            yield modality, part


class MergeWork(Work[Group, Splits]):
    """Merging the shards of a group, by split."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def run(self, tasks: Iterable[Group], report: Report) -> Iterator[Splits]:
        """See `Work.run`."""
        for modality, parts in tasks:
            yield merge_splits(self._store.shard_moments(modality, part) for part in parts)

    def name(self, task: Group) -> str:
        """Such as ``the moments of text shards 0 to 63``."""
        return f"the moments of {task[0]} shards {task[1][0]} to {task[1][-1]}"


def merged_moments(store: Store, modality: str, executor: Executor | None = None) -> Splits:
    """Moments of all rows of a modality, by split.

    Args:
        store: is read shard by shard.
        modality: one that is there.
        executor: merges groups of shards; None for this process, with one group in memory.
    """
    parts = store.parts(modality)
    size = max(SMALLEST_GROUP, -(-len(parts) // MOST_GROUPS))
    groups = [(modality, parts[start : start + size]) for start in range(0, len(parts), size)]
    work = MergeWork(store)
    return merge_splits(
        work.run(groups, _tell_nobody) if executor is None else executor.run(work, groups, _tell_nobody)
    )


def merge_splits(parts: Iterable[Splits]) -> Splits:
    """Moments by split, merged one after another."""
    total: Splits = {}
    for part in parts:
        for name, moments in part.items():
            total[name] = total[name].merge(moments) if name in total else moments
    return total


def _tell_nobody(done: int, failed: int) -> None:
    """Merging takes too short to be shown."""
