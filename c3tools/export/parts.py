"""The parts of an export: which have to be written, and writing them from the shards of a store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from ..arrays import Mask
from ..corpus.splits import ALL
from ..errors import StoreError, TransformError
from ..executors import Executor, Report, Work, cores, open_executor
from ..io.artifact import digest_of
from ..io.files import sha256_of
from ..io.locations import remove, size_of
from ..moments import Moments, unit_rows
from ..reporter import Reporter
from ..store import Store, StoreInfo
from ..store.manifest import Manifest, StoreWriter
from ..store.rewriting import REWRITING
from ..store.rows import (
    ITEM_COLUMNS,
    embedding_matrix,
    keys_of,
    match_items,
    one_array,
    own_items,
    row_splits,
)
from ..store.shards import (
    FUSED,
    ShardName,
    ShardRecord,
    SplitMoments,
    moments_of,
    part_name,
    read_header,
    shard_schema,
    shard_table,
)
from ..transforms import Pipeline
from ..transforms.fitting import MIN_ROWS_OF_A_MEAN
from ..transforms.space import Space
from ..transforms.steps import Normalize
from .formats import Format, Part
from .record import ExportRecord, Settings

# rows transformed at a time: 1 MB of float32 at 512 dimensions stays in the cache
_CACHED_ROWS = 512
_ROUNDING = 1.001  # of the norm of a row in float16


@dataclass(frozen=True)
class Recipe:
    """Recipe of an export: all that its rows depend on, beside the shard that a part is made of.

    Attributes:
        store: that is exported.
        pipeline: the fitted pipeline.
        format: of the files.
        settings: see `Settings`.
    """

    store: Store
    pipeline: Pipeline
    format: Format
    settings: Settings

    @cached_property
    def digest(self) -> str:
        """Digest of the recipe; nothing in it changes when the store grows."""
        return digest_of(self.pipeline.digest, asdict(self.settings), self.format.digest)

    def source_of(self, part: ShardName) -> ShardName:
        """Return the shard that a part is made of."""
        kind, number = part
        return ("image", number) if kind == FUSED and self.settings.fuse else part

    def made_from(self, part: ShardName) -> str:
        """Return the digest of all that the rows of a part depend on."""
        digests = [self.store.shard_digest(*self.source_of(part)), self.digest]
        if not self.settings.fuse:
            return digest_of(*digests)
        kind, number = part
        if kind == FUSED:
            images = self.images_by_part[number]
            for text_part, owners in self.texts_by_part.items():
                if pc.any(pc.is_in(owners, images)).as_py():
                    digests.append(self.store.shard_digest("text", text_part))
        return digest_of(*digests, self.once[part])

    @cached_property
    def applied(self) -> Pipeline:
        """The steps that rows go through; those of an export have gone through some already."""
        first = Space.of(self.store).applied
        return self.pipeline.part(first, first + self.settings.applied)

    @cached_property
    def info(self) -> StoreInfo:
        """The description of the rows that every part repeats."""
        source = self.store.info
        transform = self.pipeline.record()
        # Rows have length 1 if that is the last step of both roles
        steps = self.applied.steps
        normalised = bool(steps) and steps[-1].role == "both" and isinstance(steps[-1], Normalize)
        exported = {
            "store": {name: value for name, value in source.to_dict().items() if name != "extra"},
            "transform": {name: transform[name] for name in ("name", "steps", "dim", "tensors")},
            "settings": asdict(self.settings),
        }
        is_padded = self.settings.metric == "l2"
        return StoreInfo(
            source.model,
            source.dim + is_padded,
            self.settings.dtype,
            normalised=normalised and not is_padded,
            preprocessing=source.preprocessing,
            precision=source.precision,
            backend=source.backend,
            columns=source.columns,
            extra={"exported": exported},
        )

    def described(self, record: ExportRecord) -> StoreInfo:
        """Return what store.json says: the description of the rows, and the record."""
        content = self.info.to_dict()["extra"]["exported"] | record.content()
        values = vars(self.info) | {"extra": {"exported": content}}
        return StoreInfo(**values)

    def training_rows(self, modality: str) -> int:
        """Return how many rows of a modality are training inputs."""
        if self.settings.role == "auto" and modality == self.settings.train_on:
            return self.store.count(modality, "train")
        return self.store.count(modality) if self.settings.role == "training" else 0

    @cached_property
    def once(self) -> dict[ShardName, Mask]:
        """The rows, of those of its shard that are not left out, that each part of an export has in
        which items stand once: bool (n,). Parts without rows are not among them.

        An item is a row of the kind fused if it has an image and texts, else its image or its
        first text.
        """
        images = self.images_by_part
        texts = self.texts_by_part
        all_images = pa.concat_arrays(list(images.values()))
        all_texts = pa.concat_arrays(list(texts.values()))
        has_text = match_items(all_texts, all_images) >= 0
        is_of_item = np.asarray(pc.not_equal(pc.coalesce(all_texts, ""), pa.scalar("")))
        is_first = match_items(all_texts, all_texts) == np.arange(len(all_texts))
        has_image = match_items(all_images, all_texts) >= 0
        chosen = {
            FUSED: (images, has_text),
            "image": (images, ~has_text),
            "text": (texts, ~is_of_item | (is_first & ~has_image)),
        }
        parts = {}
        for kind, (by_part, is_chosen) in chosen.items():
            start = 0
            for number, items in by_part.items():
                rows = is_chosen[start : start + len(items)]
                start += len(items)
                if rows.any():
                    parts[kind, number] = rows
        return parts

    def parts(self, modalities: Collection[str]) -> dict[ShardName, int]:
        """Return the rows of the shard of every part of these modalities, by part, ascending."""
        shards = self.store.shards
        parts = self.once if self.settings.fuse else shards
        rows = {part: shards[self.source_of(part)].rows for part in parts if part[0] in modalities}
        return {part: count for part, count in rows.items() if count}

    def rows_of_modality(self, modality: str) -> int:
        """Return how many rows of a modality are exported, of all splits."""
        if not self.settings.fuse:
            return self.store.count(modality)
        return sum(int(rows.sum()) for part, rows in self.once.items() if part[0] == modality)

    def row_count(self, shard: ShardName) -> int:
        """Return how many rows of a shard are exported: those of the split, without left-out
        ones.
        """
        if self.settings.fuse:
            return int(self.once[shard].sum())
        modality, number = shard
        if self.settings.split == ALL and not self.store.left_out.has_rows_of(modality):
            return self.store.shards[shard].rows
        batches = self.store.batches(modality, ["key"], split=self.settings.split, parts=[number])
        return sum(len(batch) for batch in batches)

    def rows_of(self, shard: ShardName, report: Report) -> pa.Table:
        """Return the transformed rows of a shard, with the columns that are written."""
        modality, number = shard
        settings = self.settings
        columns = self.format.columns
        if columns is not None:
            schema = shard_schema(modality, self.store.info)
            wanted = {
                "key",
                "embedding",
                "split",
                *ITEM_COLUMNS,
                *self.store.info.columns,
                *columns,
            }
            columns = tuple(name for name in schema.names if name in wanted)
        tables = []
        for batch in self.store.batches(modality, columns, split=settings.split, parts=[number]):
            # Find the rows that are training inputs
            splits = row_splits(batch)
            is_training = np.full(len(batch), settings.role == "training")
            if settings.role == "auto" and modality == settings.train_on:
                is_training = np.array([split == "train" for split in splits], dtype=bool)

            # Transform those of each role
            embeddings = embedding_matrix(batch, self.store.info.dtype)
            keys = keys_of(batch)
            items = own_items(batch).to_pylist()
            transformed = np.empty((len(embeddings), self.info.dim), settings.dtype)
            for training in (True, False):
                numbers = np.flatnonzero(is_training == training)
                for start in range(0, len(numbers), _CACHED_ROWS):
                    block = numbers[start : start + _CACHED_ROWS]
                    transformed[block] = self.applied.transform(
                        embeddings[block],
                        modality=modality,
                        training=training,
                        seed=settings.seed,
                        keys=[keys[row] for row in block],
                        items=[items[row] for row in block],
                    )

            # Fill rows up to one length: the nearest to a query, which has 0 there, are then those
            # of the largest inner product (Bachrach et al., RecSys 2014)
            if settings.metric == "l2":
                squares = np.square(transformed, dtype=np.float64)[:, :-1].sum(axis=1)
                missing = (self.applied.longest * _ROUNDING) ** 2 - squares
                if missing.min(initial=0) < 0:
                    raise TransformError(
                        f"The {modality} row {keys[missing.argmin()]} has norm "
                        f"{np.sqrt(squares.max()):.4g}, above {self.applied.longest:.4g}, the "
                        "largest of the fit.",
                        remedy="Fit the pipeline again with --refit, or use --metric ip.",
                    )
                transformed[:, -1] = np.sqrt(missing)

            # Add their columns, with the splits and roles that they were transformed by
            values: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
            values["split"] = splits
            table = shard_table(self.info, modality, self.format.encode(transformed), values)
            if not settings.code_size:
                roles = np.where(is_training, "training", "inference")
                table = table.append_column("role", pa.array(roles, pa.string()))
            tables.append(table)
            report(len(batch), 0)
        return pa.concat_tables(tables or [shard_schema(modality, self.info).empty_table()])

    def with_texts(self, rows: pa.Table) -> pa.Table:
        """Return transformed rows of images with the caption and the transformed embedding of the
        first text of each, in the columns caption and text_embedding.
        """
        keys = rows.column("key")
        tables = []
        for part, image_keys in self.texts_by_part.items():
            if pc.any(pc.is_in(image_keys, keys)).as_py():
                tables.append(self.rows_of(("text", part), lambda done, failed: None))
        texts: Any = pa.concat_tables(tables)
        texts = texts.take(pc.index_in(keys, texts.column("image_key")))
        rows = rows.append_column("caption", texts.column("caption"))
        return rows.append_column("text_embedding", texts.column("embedding"))

    @cached_property
    def images_by_part(self) -> dict[int, Any]:
        """The keys of the images of each shard."""
        parts = self.store.parts("image")
        return {part: self.store.items_of("image", ALL, [part]) for part in parts}

    @cached_property
    def texts_by_part(self) -> dict[int, Any]:
        """The images that the texts of each shard belong to."""
        parts = self.store.parts("text")
        return {part: self.store.items_of("text", ALL, [part]) for part in parts}

    def once_of(self, part: ShardName, rows: pa.Table) -> pa.Table:
        """Return the rows of a part in which items stand once, of the transformed rows of its
        shard: for the kind fused, unit(image + first text).
        """
        rows = rows.filter(pa.array(self.once[part]))
        if part[0] != FUSED:
            return rows
        rows = self.with_texts(rows)
        texts = pa.table({"embedding": rows.column("text_embedding")})
        embeddings = unit_rows(embedding_matrix(rows) + embedding_matrix(texts))
        columns: dict[str, Any] = {name: one_array(rows.column(name)) for name in rows.column_names}
        table = shard_table(self.info, FUSED, embeddings, columns)
        return table.append_column("role", columns["role"])

    def rows_of_part(self, part: ShardName, report: Report) -> pa.Table:
        """Return the rows of a part, with the columns that are written."""
        rows = self.rows_of(self.source_of(part), report)
        return self.once_of(part, rows) if self.settings.fuse else rows

    def fused_moments(self, writer: StoreWriter) -> Moments:
        """Return the moments of the fused rows of the train split; of all, if it has too few.

        They are those that were collected while a writer wrote the parts. If some were there
        before, all are made again for them.
        """
        groups = {}
        parts = [part for part in self.once if part[0] == FUSED]
        if writer.added.keys() >= {*parts}:
            groups = {
                name: moments
                for name, moments in writer.groups.items()
                if name.startswith(f"{FUSED}/")
            }
        else:
            for part in parts:
                rows = self.rows_of_part(part, lambda done, failed: None)
                Moments.add_groups(groups, moments_of(FUSED, rows))
        train = groups.get(f"{FUSED}/train")
        if train is not None and train.n >= MIN_ROWS_OF_A_MEAN:
            return train
        return Moments.total(groups.values(), self.info.dim)


@dataclass(frozen=True)
class Plan:
    """The parts of an export that are written, and those that are removed.

    Attributes:
        shards: the shards that the parts of these modalities are made of, with their rows.
        todo: the parts to write.
        removed: the files of parts whose shard is gone.
    """

    shards: dict[ShardName, int]
    todo: list[Part]
    removed: list[str]

    @property
    def rows_to_write(self) -> int:
        """Number of rows of the parts to write, before any are left out by split."""
        return sum(self.shards[part.modality, part.number] for part in self.todo)


def plan_parts(
    recipe: Recipe, writer: StoreWriter, modalities: Collection[str], *, keeps_others: bool
) -> Plan:
    """Compare the parts of an export with the shards of its store.

    What takes the place of a part that is there is written to a folder beside it; see
    `StoreWriter.place`.

    Args:
        recipe: of the export.
        writer: of the export.
        modalities: to export.
        keeps_others: whether parts of other modalities stay as they are.
    """
    shards = recipe.parts(modalities)
    files = writer.parts()
    todo = []
    for shard in shards:
        made_from = recipe.made_from(shard)
        names = files.get(shard, [])
        if not _is_whole(recipe, writer, names, shard, made_from):
            is_replaced = bool(names) and writer.before is not None
            folder = writer.path / REWRITING if is_replaced else writer.path
            todo.append(Part(*shard, made_from, folder))
    removed = []
    for shard in sorted(files.keys() - shards.keys()):
        if shard[0] in modalities or not keeps_others:
            removed += files[shard]
    return Plan(shards, todo, removed)


def _is_whole(
    recipe: Recipe, writer: StoreWriter, names: list[str], shard: ShardName, made_from: str
) -> bool:
    """Return whether all files of a part are there, are those that the manifest lists, and have the
    rows that would be written.

    At a URL, where it would take a download, no SHA-256 is compared.
    """
    tables = [name for name in names if name.endswith(".parquet")]
    if not tables or len(names) != len(tables) + recipe.format.arrays:
        return False
    listed = writer.before or Manifest({}, {})

    # Compare what takes no time: settings, rows and sizes
    written_rows = 0
    for name in names:
        path = writer.path / name
        try:
            size = size_of(path)
            if name not in tables:
                continue
            header = read_header(path)
        except (StoreError, FileNotFoundError):
            return False
        record = listed.shards.get(shard)
        is_other_size = name == part_name(*shard) and record is not None and size != record.size
        if header.made_from != made_from or is_other_size:
            return False
        written_rows += header.rows
    if written_rows != recipe.row_count(shard):
        return False

    # Compare the content. Nothing is listed of a run that did not finish
    digests = dict(listed.files)
    if shard in listed.shards:
        digests[part_name(*shard)] = listed.shards[shard].sha256
    for name in names:
        path = writer.path / name
        if name in digests and isinstance(path, Path) and sha256_of(path) != digests[name]:
            return False
    return True


def write_parts(
    recipe: Recipe,
    writer: StoreWriter,
    plan: Plan,
    title: str,
    *,
    workers: int,
    executor: str | Executor,
    address: str | None,
    processes: int | None,
    reporter: Reporter,
) -> None:
    """Write the parts of a plan, on this machine or a cluster, and let those that went be removed.

    The files that they replace are removed when `StoreWriter.finish` puts them in place.
    """
    files = writer.parts()
    for name in plan.removed:
        writer.rewriting.remove(name)
    for part in plan.todo:
        for name in files.get((part.modality, part.number), []):
            if writer.before is None:
                remove(writer.path / name)
            else:
                writer.rewriting.remove(name)
    work = PartWork(recipe)
    with (
        open_executor(
            executor, threads=workers, address=address, processes=processes, cores=1
        ) as where,
        threadpool_limits(max(1, cores() // max(1, workers)), "blas"),
        reporter.progress(title, plan.rows_to_write) as progress,
    ):
        results = where.run(work, plan.todo, lambda rows, _: progress.advance(rows))
        for shard, moments, record in results:
            writer.add(shard, moments, record)


class WrittenPart(NamedTuple):
    """A part that a task has written.

    Attributes:
        name: of the part.
        moments: of its rows, if it is a shard of a store, or fused.
        record: for the manifest, if it is a shard of a store; None if `StoreWriter.finish` is to
            make it.
    """

    name: ShardName
    moments: SplitMoments
    record: ShardRecord | None


@dataclass
class PartWork(Work[Part, WrittenPart]):
    """Writing parts: each is made of a shard of the store."""

    recipe: Recipe

    def run(self, tasks: Iterable[Part], report: Report) -> Iterator[WrittenPart]:
        """Write parts, and yield what is known of each."""
        recipe = self.recipe
        for part in tasks:
            name = (part.modality, part.number)
            rows = recipe.rows_of_part(name, report)
            failures = recipe.store.shard_failures(*recipe.source_of(name))
            record = recipe.format.write(part, recipe.info, rows, failures)
            is_fused = recipe.settings.fuse and part.modality == FUSED
            is_counted = recipe.info.export_format is None or is_fused
            moments = moments_of(part.modality, rows) if is_counted else {}
            yield WrittenPart(name, moments, record)

    def name(self, task: Part) -> str:
        """Return a name such as ``text part 3``."""
        return f"{task.modality} part {task.number}"
