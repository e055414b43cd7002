"""Read a store: moments without rows, rows in batches, or everything at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..corpus.splits import (
    ALL,
    split_order,
)
from ..errors import C3Error, IncompleteStoreError, StoreError
from ..io.artifact import digest_of
from ..io.files import read_json, sha256_of
from ..io.hub import HubRepository
from ..io.locations import kind_of, location
from ..lists import as_list
from ..moments import Moments, load_moments, unit_rows
from ..reporter import SILENT, Reporter, counted
from .dataset import card_of, load_data_set, save_data_set
from .left_out import LEFT_OUT_FILE, LEFT_OUT_REMEDY, LeftOut
from .manifest import EXACT, EXTERNAL_FILE, MOMENTS_FILE, Manifest
from .rewriting import require_not_rewritten
from .rows import (
    ITEM_COLUMNS,
    Pairs,
    Rows,
    embedding_matrix,
    item_keys,
    keys_of,
    one_array,
    own_items,
    row_splits,
    split_mask,
)
from .shards import (
    COPY_FILE,
    FAILURES_FILE,
    INFO_FILE,
    MANIFEST_FILE,
    PIPELINE_FILE,
    Failure,
    ShardName,
    ShardRecord,
    SplitMoments,
    StoreInfo,
    add_moments,
    header_of,
    open_shard,
    part_name,
    read_failures,
    read_header,
    shard_batches,
    shard_schema,
    shards_in,
)

_LOOKS, _PAUSE = 5, 0.05  # at a file that a writer may be replacing, and seconds between them


class Store(HubRepository):
    """A store of embeddings, opened for reading: the shards that its manifest lists, or all if it
    has none.

    Attributes:
        path: the folder, or a path-like object for a URL.
        info: the content of store.json: model, dimension, dtype.
        manifest: what the store lists; None for all that is there, for writers and unfinished
            stores.
        summary: the `EmbedSummary` of the run, for a store that `c3tools.embed` returns; else None.
    """

    repository_type = "dataset"
    card, save_repository = card_of, save_data_set

    def __init__(
        self,
        path: Path,
        info: StoreInfo,
        manifest: Manifest | None = None,
        *,
        recorded: Manifest | None = None,
    ) -> None:
        self.path = path
        self.info = info
        self.manifest = manifest
        self.summary: Any = None
        # what shards are compared with, for writers too
        self._recorded = manifest or recorded
        self._verified: dict[Path, object] = {}  # see `open_shard`

    def __repr__(self) -> str:
        """Return path, model and dimension; no shard is read."""
        return (
            f"Store({str(self.path)!r}, model={self.info.model.name!r}, dim={self.info.dim}, "
            f"{self.info.dtype})"
        )

    @classmethod
    def open(
        cls,
        path: Store | str | Path,
        *,
        incomplete: bool = False,
        codes: bool = False,
        reporter: Reporter = SILENT,
    ) -> Store:
        """Open the store in the folder or at the URL ``path``; return an open store unchanged.

        Args:
            path: a store, its folder, or its URL.
            incomplete: open all shards that are there, even if listed ones are missing; for
                writers.
            codes: open an index too, whose rows have codes and no embeddings.
            reporter: gets a message if the store is unfinished.

        Raises:
            IncompleteStoreError: if files that its manifest lists are missing, or it is being
                rewritten.
            StoreError: if there is no store, it cannot be read, or ``path`` is no path.

        Example:
            >>> store = c3tools.Store.open("c3-store")
            >>> store
            Store('c3-store', model='c3-mini', dim=256, float16)
            >>> store.count("image"), store.count("text")
            (124, 620)
        """
        if isinstance(path, Store):
            return path
        if not isinstance(path, str) and not hasattr(path, "joinpath"):
            raise StoreError(
                f"A store is a folder or a URL, not a {type(path).__name__}.",
                remedy="Save arrays as files and import them into a store: c3 import --image "
                "FILE --text FILE",
            )
        folder = location(path)
        info = StoreInfo.load(folder)
        if not (codes and info.code_size):
            info.require_embeddings(folder)
        manifest = Manifest.load(folder)
        if incomplete:
            return cls(folder, info, recorded=manifest)
        opened = cls(folder, info, manifest)
        if manifest is None:
            opened.require_manifest()
            if "rows_of" not in info.extra:
                reporter.message(
                    f"{folder} has no {MANIFEST_FILE}: it is unfinished. The rows that exist are "
                    f"used; `c3 verify --store {folder}` explains what is missing."
                )
            return opened
        require_not_rewritten(folder)
        differences = manifest.compare(folder)
        if differences.missing:
            require_not_rewritten(folder)  # a writer began in between
            if Manifest.load(folder) != manifest:  # a writer ended in between
                return cls.open(folder, codes=codes, reporter=reporter)
            remedy = (
                f"Copy the store again, or run the `{info.command}` command that made it again. "
                f"`c3 verify --store {folder}` lists what is missing."
            )
            if differences.missing == [LEFT_OUT_FILE]:
                remedy = LEFT_OUT_REMEDY
            raise IncompleteStoreError(
                f"The store {folder} is incomplete: {differences.missing[0]} is missing, though "
                f"{MANIFEST_FILE} lists it.",
                remedy=remedy,
            )
        if differences.unlisted_shards:
            reporter.message(
                f"`{info.command}` is still writing to {folder} or was interrupted. Only finished "
                f"rows are used. Run the same command again to continue."
            )
        opened.require_listed(INFO_FILE)
        opened.require_listed(PIPELINE_FILE)  # of an export
        return opened

    def require_manifest(self) -> None:
        """Refuse a store that has rows that are left out, and has lost its manifest.

        Raises:
            IncompleteStoreError: with what to do.
        """
        if self._recorded is None and kind_of(self.path / LEFT_OUT_FILE):
            raise IncompleteStoreError(
                f"The store {self.path} has lost its {MANIFEST_FILE}, without which the rows that "
                f"{LEFT_OUT_FILE} lists would not be left out.",
                remedy=f"Copy {MANIFEST_FILE} again from another copy of the store, or write it "
                f"again: c3 verify --store {self.path} --repair",
            )

    def require_listed(self, name: str) -> bool:
        """Refuse a small file that is not the one listed; return False if a writer has replaced it
        since.

        Raises:
            IncompleteStoreError: if a writer is replacing files.
            StoreError: if it is missing or another one.
        """
        listed = None if self.manifest is None else self.manifest.files.get(name)
        if listed is None:
            return True
        for _ in range(_LOOKS):
            with suppress(FileNotFoundError):
                if listed == sha256_of(self.path / name):
                    return True
            require_not_rewritten(self.path)
            if Manifest.load(self.path) != self.manifest:
                return False
            time.sleep(_PAUSE)  # a writer replaces it just before it writes the manifest
        raise StoreError(
            f"{self.path / name} is not the file that {MANIFEST_FILE} lists: it is missing or "
            f"damaged, or a run did not finish.",
            remedy=f"If a run was interrupted, run the same command again; otherwise see `c3 "
            f"verify {self.path}`.",
        )

    @classmethod
    def load_repository(cls, folder: Path, **options: Any) -> Store:
        """Make a store at ``output`` of a data set; see `c3tools.store.dataset.load_data_set`."""
        return cls.open(load_data_set(cls.open(folder), **options))

    @cached_property
    def shards(self) -> dict[ShardName, ShardRecord]:
        """The record of every shard by modality and number, ascending; without a manifest it has
        neither SHA-256 nor size.
        """
        if self.manifest is not None:
            return dict(sorted(self.manifest.shards.items()))
        return {
            shard: ShardRecord(read_header(self.file(*shard)).rows, "", 0)
            for shard in shards_in(self.path)
        }

    @property
    def modalities(self) -> list[str]:
        """The names of the modalities that have rows, ``image`` and ``text`` first. Shards of
        inputs that all failed have none.
        """
        return sorted(
            {modality for (modality, _), record in self.shards.items() if record.rows},
            key=lambda name: (name not in ("image", "text"), name),
        )

    def parts(self, modality: str) -> list[int]:
        """Return the numbers of the shards of ``modality``, ascending."""
        return [part for name, part in self.shards if name == modality]

    def file(self, modality: str, part: int) -> Path:
        """Return the path of a shard."""
        return self.path / part_name(modality, part)

    def shard_digest(self, modality: str, part: int) -> str:
        """Return the SHA-256 of a shard, or of it and the keys of its rows that are left out."""
        record = self.shards[modality, part]
        digest = record.sha256 or sha256_of(self.file(modality, part))
        return digest_of(digest, record.left_out) if record.left_out else digest

    def shard_failures(self, modality: str, part: int) -> list[Failure]:
        """Return the inputs of one shard that were not embedded when it was made."""
        with self._opened_shard(modality, part, []) as shard:
            return header_of(shard, self.file(modality, part)).failures

    def read_shard(self, modality: str, part: int) -> tuple[pa.Table, list[Failure]]:
        """Return all rows of one shard, and the inputs that were not embedded when it was made.

        Raises:
            StoreError: if it cannot be read, or is not the one that the manifest lists.
        """
        schema = shard_schema(modality, self.info)
        path = self.file(modality, part)
        with self._opened_shard(modality, part) as shard:
            batches = list(shard_batches(shard, path, schema))
            failures = header_of(shard, path).failures
        return pa.Table.from_batches(batches, None if batches else schema), failures

    @contextmanager
    def _opened_shard(
        self, modality: str, part: int, columns: Sequence[str] | None = None
    ) -> Iterator[pq.ParquetFile]:
        """Open a shard and compare it with the manifest (see `open_shard`).

        Raises:
            StoreError: if it cannot be read, or is another one; also if a writer has changed the
                store since it was opened.
        """
        path = self.file(modality, part)
        record = self._recorded.shards.get((modality, part)) if self._recorded else None
        try:
            with open_shard(path, modality, columns, record, self._verified) as shard:
                yield shard
        except StoreError:
            self._require_unchanged()
            raise

    def _require_unchanged(self) -> None:
        """Refuse a store that a writer is changing, or has changed since it was opened."""
        if self.manifest is None:
            return
        require_not_rewritten(self.path)
        if Manifest.load(self.path) != self.manifest:
            raise self._changed()

    def _changed(self) -> StoreError:
        return StoreError(
            f"The store {self.path} was changed after it was opened.",
            remedy="Run the same command again when the other run has finished. In Python, open "
            "the store again.",
        )

    @property
    def copied(self) -> dict[str, Any]:
        """The content of copied.json, of a store that `c3 merge` or `c3 split` made; else empty.

        Raises:
            StoreError: if it is not the file that the manifest lists.
        """
        if self.manifest is None or COPY_FILE not in self.manifest.files:
            return {}
        if not self.require_listed(COPY_FILE):
            raise self._changed()
        record: dict[str, Any] = read_json(self.path / COPY_FILE)
        return record

    def recorded_failures(self) -> list[Failure]:
        """Return the rows of failures.parquet: the inputs that are not embedded; none if there is
        no such file.

        Raises:
            StoreError: if it is damaged, or not the file that the manifest lists.
        """
        if not self.require_listed(FAILURES_FILE):
            raise self._changed()
        return read_failures(self.path)

    def count(self, modality: str, split: str | None = None) -> int:
        """Return the number of rows of ``modality`` (in ``split``; None or ``all`` for every row
        that is not left out).
        """
        if split in (None, ALL) and not self.left_out.has_rows_of(modality):
            return self._rows_in_shards(modality)
        return self._in_split(modality, split).n

    def _rows_in_shards(self, modality: str) -> int:
        return sum(record.rows for (name, _), record in self.shards.items() if name == modality)

    @cached_property
    def left_out(self) -> LeftOut:
        """The rows that are left out, as they are named."""
        self.require_manifest()
        listed = self._recorded.files if self._recorded else {}
        try:
            return LeftOut.load(self.path, listed.get(LEFT_OUT_FILE))
        except StoreError:
            self._require_unchanged()
            raise

    @property
    def left_out_counts(self) -> dict[str, int]:
        """The number of rows that are left out, by modality that has such rows."""
        counts = {}
        for modality in self.modalities:
            left_out = self._rows_in_shards(modality) - self.count(modality)
            if left_out:
                counts[modality] = left_out
        return counts

    def split_counts(self, modality: str) -> Counter[str]:
        """Return the number of rows of ``modality`` in each split of the corpus."""
        return Counter(
            {split: moments.n for split, moments in _splits_in(self._moments, modality).items()}
        )

    @property
    def exact_moments(self) -> SplitMoments | None:
        """The stored moments by modality and split, ``image/train``, if they are those of the rows
        that are used, as integers; None for a store of an older version or without a manifest.
        """
        if self.manifest is None or MOMENTS_FILE not in self.manifest.files:
            return None
        if not self.require_listed(MOMENTS_FILE):
            return None
        moments, header = load_moments(self.path / MOMENTS_FILE)
        return moments if header == EXACT else None

    @cached_property
    def _moments(self) -> dict[str, Moments]:
        """The moments by modality and split, ``image/train``: those of the file, or of the rows."""
        listed = self.manifest is not None and MOMENTS_FILE in self.manifest.files
        if listed and self.require_listed(MOMENTS_FILE):
            return load_moments(self.path / MOMENTS_FILE)[0]
        groups: dict[str, Moments] = {}
        for modality in self.modalities:
            for batch in self.batches(modality, split=ALL):
                add_moments(groups, modality, batch)
        return groups

    def list_splits(self, modality: str | None = None) -> str:
        """Return the splits and their numbers of rows as text."""
        names = self.modalities if modality is None else [modality]
        counts = sum((self.split_counts(name) for name in names), Counter[str]())
        splits = sorted(counts, key=split_order)
        return ", ".join(f"{split} ({counts[split]:,})" for split in splits) or "none"

    def moments(self, modality: str, split: str | None = None) -> Moments:
        """Return the moments of the rows of ``modality`` in ``split`` (None or ``all``: every row
        that is not left out).

        Raises:
            StoreError: if the store does not have the modality, or it has no rows in the split.
        """
        self.require(modality)
        found = self._in_split(modality, split)
        if not found.n and split not in (None, ALL):
            raise StoreError(
                f"The store {self.path} has no {modality} rows in the split {split!r}.",
                remedy=f"Its splits of {modality} rows: {self.list_splits(modality)}. `c3 split` "
                f"assigns new ones.",
            )
        return found

    def _in_split(self, modality: str, split: str | None) -> Moments:
        groups = _splits_in(self._moments, modality)
        chosen = (
            moments
            for name, moments in groups.items()
            if split in (None, ALL) or name == str(split).lower()
        )
        return Moments.total(chosen, self.info.dim)

    def moments_by_split(self, modality: str) -> SplitMoments:
        """Return the moments of ``modality`` for each split.

        Raises:
            StoreError: if the store does not have the modality, or moments cannot be read.
        """
        self.require(modality)
        return _splits_in(self._moments, modality)

    def external_moments(self) -> tuple[dict[str, Moments], dict[str, Any]]:
        """Return the moments of another corpus that `c3 means load` has loaded, by modality, and
        their header.

        Both are empty if none were loaded.
        """
        path = self.path / EXTERNAL_FILE
        if kind_of(path) is None:
            return {}, {}
        self.require_listed(EXTERNAL_FILE)
        return load_moments(path)

    def unit_moments(self, modality: str, split: str | None = None) -> Moments:
        """Return the moments of the rows scaled to norm 1; the rows are read once if the store
        keeps norms.
        """
        if self.info.normalised:
            return self.moments(modality, split)
        blocks = (
            unit_rows(embedding_matrix(batch))
            for batch in self.batches(modality, split=split or ALL)
        )
        return Moments.total(map(Moments.from_rows, blocks), self.info.dim)

    def batches(
        self,
        modality: str,
        columns: Sequence[str] | None = None,
        *,
        split: str | None = None,
        parts: Sequence[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows of ``modality`` in the order of the shards.

        Each shard is compared with the manifest when it is opened: its SHA-256 if the embeddings
        are read, else its size and number of rows.

        Args:
            modality: its name.
            columns: the columns to read; None for all.
            split: the rows to read, of this split only (see `split_mask`); ``all`` for every row
                that is not left out, None for every row.
            parts: numbers of the shards to read; None for all.

        Raises:
            StoreError: if the store does not have the modality, a shard cannot be read or is not
                the one that the manifest lists, or the store was changed since it was opened.
        """
        columns = as_list(columns)
        if parts is None:
            self.require(modality)
            parts = self.parts(modality)
        leaves_out = split is not None and self.left_out.has_rows_of(modality)
        is_one_split = split not in (None, ALL)
        wanted = columns
        if columns is not None and (leaves_out or is_one_split):
            wanted = list(dict.fromkeys([*columns, "key", "split", *ITEM_COLUMNS]))
        schema = shard_schema(modality, self.info)
        for part in parts:
            with self._opened_shard(modality, part, wanted) as shard:
                for batch in shard_batches(shard, self.file(modality, part), schema, wanted):
                    chosen = batch
                    if leaves_out:
                        chosen, _ = self.left_out.divide(modality, batch)
                    if is_one_split:
                        is_in_split = split_mask(chosen, split)
                        chosen = chosen.filter(pa.array(is_in_split))
                    if wanted is not columns:
                        chosen = chosen.select(
                            [name for name in columns or () if name in chosen.schema.names]
                        )
                    if len(chosen):
                        yield chosen

    def load(
        self, modality: str, split: str | None = None, *, dtype: npt.DTypeLike = np.float32
    ) -> Rows:
        """Return all rows of ``modality`` (of ``split``, or all that are not left out), embeddings
        as float32 or another ``dtype``.

        Raises:
            StoreError: if the store does not have the modality, or a shard cannot be read.

        Example:
            >>> rows = store.load("image", "train")
            >>> rows.embeddings.shape
            (26, 256)
            >>> rows.keys[0], rows.column("path")[0]
            ('000000000790', 'images/000000000790.jpg')
        """
        # memory of rows that are not in the split is never touched, so the system does not give it
        embeddings: npt.NDArray[Any] = np.empty((self.count(modality), self.info.dim), dtype)
        blocks = []
        end = 0
        for batch in self.batches(modality, split=split or ALL):
            blocks.append(batch.drop_columns(["embedding"]))
            embeddings[end : end + len(batch)] = embedding_matrix(batch, dtype)
            end += len(batch)
        schema = None if blocks else shard_schema(modality, self.info).remove(1)
        table = pa.Table.from_batches(blocks, schema).combine_chunks().replace_schema_metadata(None)
        return Rows(modality, embeddings[:end], table)

    def pairs(
        self, first: str = "image", second: str = "text", *, split: str | None = None
    ) -> Pairs:
        """Return the rows of two modalities (of ``split``, or of all splits) and which of them
        belong together.

        Raises:
            StoreError: if the store does not have a modality, or a shard cannot be read.

        Example:
            >>> pairs = store.pairs(split="train")
            >>> len(pairs)
            130
            >>> pairs.second.keys[5], pairs.first.keys[pairs.item_index[5]]
            ('000000078499#0', '000000078499')
        """
        return Pairs.match(self.load(first, split), self.load(second, split))

    def items_of(
        self, modality: str, split: str | None = None, parts: Sequence[int] | None = None
    ) -> pa.Array[Any]:
        """Return the key of each row's item, null for a text of no image; see `batches`."""
        batches = self.batches(modality, ["key", *ITEM_COLUMNS], split=split, parts=parts)
        return one_array(pa.chunked_array([item_keys(batch) for batch in batches], pa.string()))

    def item_splits(self) -> dict[str, str]:
        """Return the split of every item, that of its first row: an image before its texts.

        Raises:
            StoreError: if a shard cannot be read.
        """
        item_splits: dict[str, str] = {}
        for modality in sorted(self.modalities, key=lambda name: name == "text"):
            for batch in self.batches(modality, ["key", *ITEM_COLUMNS, "split"]):
                items = own_items(batch).to_pylist()
                for item, split in zip(items, row_splits(batch), strict=True):
                    item_splits.setdefault(item, split)
        return item_splits

    def row_items(self) -> dict[str, str]:
        """Return the item of every row that is not an item itself, by the key of the row.

        Raises:
            StoreError: if a shard cannot be read.
        """
        items: dict[str, str] = {}
        for modality in self.modalities:
            for batch in self.batches(modality, ["key", *ITEM_COLUMNS]):
                for key, item in zip(keys_of(batch), own_items(batch).to_pylist(), strict=True):
                    if key != item:
                        items[key] = item
        return items

    def input_digests(self, modality: str = "image", split: str | None = None) -> dict[str, str]:
        """Return the SHA-256 of the file that each row (of ``split``) was embedded from, as
        hexadecimal digits, by key; nothing of rows that have none, such as imported ones.

        Raises:
            StoreError: if the store does not have the modality, or a shard cannot be read.
        """
        digests: dict[str, str] = {}
        for batch in self.batches(modality, ["key", "sha256"], split=split):
            if "sha256" in batch.schema.names:
                pairs = zip(keys_of(batch), batch.column("sha256").to_pylist(), strict=True)
                digests |= {key: digest for key, digest in pairs if digest is not None}
        return digests

    def require(self, modality: str) -> None:
        """Raise a StoreError that lists the modalities if ``modality`` is not one of them."""
        if modality not in self.modalities:
            present = ", ".join(self.modalities) or "none so far"
            raise StoreError(
                f"The store {self.path} has no modality {modality!r}. Its modalities: {present}.",
                remedy="Run `c3 embed` on a corpus with this modality.",
            )

    def choose_modalities(
        self, modalities: Sequence[str] | None, purpose: str, *, least: int = 2
    ) -> list[str]:
        """Return the modalities that are named, by default the first two of the store.

        Args:
            modalities: two different modalities.
            purpose: what needs them, to start the message with.
            least: 1 where one modality is enough.

        Raises:
            StoreError: if they are not two different ones, or the store lacks one.
        """
        names = list(self.modalities[:2] if modalities is None else modalities)
        if not least <= len(names) <= 2 or len(set(names)) < len(names):
            present = ", ".join(self.modalities) or "none: fill it with `c3 embed PATH`"
            raise StoreError(
                f"{purpose} needs two different modalities, not {', '.join(names) or 'none'}.",
                remedy=f"The store {self.path} has {present}.",
            )
        for name in names:
            self.require(name)
        return names


def _splits_in(groups: dict[str, Moments], modality: str) -> SplitMoments:
    """Return the moments of one modality by split."""
    found = ((name.partition("/"), moments) for name, moments in groups.items())
    return {split: moments for (name, _, split), moments in found if name == modality}


def reason_to_hold_out(split: str, *, has_val: bool) -> str:
    """Return why a tenth of the items of a split to train on is held out to validate on; empty if
    there are rows of ``val`` to do so.
    """
    if not has_val:
        return "There is no val split"
    if split == ALL:
        return "All splits are trained on"
    return "Rows of val are trained on" if split.lower() == "val" else ""


def training_split(
    store: Store, modality: str, split: str, *, error: type[C3Error]
) -> tuple[Rows, Rows, list[str]]:
    """Return the rows of a split, those to validate on, and what the user should know about them.

    Without a ``val`` split, or if it is among the rows to learn from, a tenth of the items (by a
    stable hash of their keys) is held out.

    Args:
        store: to read from.
        modality: of the rows.
        split: to learn from.
        error: raised if the split has no rows.

    Raises:
        StoreError: if the store has no such modality.
        C3Error: of the class ``error``.
    """
    train = store.load(modality, split)
    if not len(train):
        raise error(
            f"The store {store.path} has no {modality} rows in the split {split!r}. Its splits are "
            f"{store.list_splits(modality)}.",
            remedy="Divide the store with `c3 split`, or choose another split to train on, with "
            "--train-split where the command has it.",
        )
    why = reason_to_hold_out(split, has_val=store.count(modality, "val") > 0)
    if not why:
        return train, store.load(modality, "val"), []
    train, val = train.hold_out()
    captions = f"{counted(len(val), 'caption')} of " if modality == "text" else ""
    held = counted(val.item_count, "image is", "images are")
    return train, val, [f"{why}, so {captions}{held} held out for validation."]
