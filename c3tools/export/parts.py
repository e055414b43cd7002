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
        # Fused rows also depend on the shards of their texts
        kind, number = part
        if kind == FUSED:
            images = self.images_by_part[number]
            for text_part, owners in self.texts_by_part.items():
                if pc.any(pc.is_in(owners, images)).as_py():
                    digests.append(self.store.shard_digest("text", text_part))
        return digest_of(*digests, self.masks_by_part[part])

    @cached_property
    def row_pipeline(self) -> Pipeline:
        """The steps that rows go through; those of an export have gone through some already."""
        first = Space.of(self.store).applied
        return self.pipeline.part(first, first + self.settings.applied)

    @cached_property
    def info(self) -> StoreInfo:
        """The description of the rows that every part repeats."""
        source = self.store.info
        transform = self.pipeline.record()
        # Rows have length 1 if that is the last step of both roles
        steps = self.row_pipeline.steps
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
    def masks_by_part(self) -> dict[ShardName, Mask]:
        """For each part of a fused export, which rows of its shard it contains, so that each item
        is exported once: bool (n,). Left-out rows are not counted, and empty parts are missing.

        Fused parts: images with a text. Image parts: images without one. Text parts: the first text
        of an item without an image, and every text that belongs to no item.
        """
        images = self.images_by_part
        texts = self.texts_by_part
        all_images = pa.concat_arrays(list(images.values()))
        all_texts = pa.concat_arrays(list(texts.values()))

        # Choose among the rows of all shards
        has_text = match_items(all_texts, all_images) >= 0
        is_of_item = np.asarray(pc.not_equal(pc.coalesce(all_texts, ""), pa.scalar("")))
        is_first = match_items(all_texts, all_texts) == np.arange(len(all_texts))
        has_image = match_items(all_images, all_texts) >= 0
        chosen = {
            FUSED: (images, has_text),
            "image": (images, ~has_text),
            "text": (texts, ~is_of_item | (is_first & ~has_image)),
        }

        # Divide them by shard again
        masks = {}
        for kind, (items_by_part, is_chosen) in chosen.items():
            start = 0
            for number, items in items_by_part.items():
                mask = is_chosen[start : start + len(items)]
                start += len(items)
                if mask.any():
                    masks[kind, number] = mask
        return masks

    def parts(self, modalities: Collection[str]) -> dict[ShardName, int]:
        """Return the rows of the shard of every part of these modalities, by part, ascending."""
        shards = self.store.shards
        parts = self.masks_by_part if self.settings.fuse else shards
        rows = {part: shards[self.source_of(part)].rows for part in parts if part[0] in modalities}
        return {part: count for part, count in rows.items() if count}

    def rows_of_modality(self, modality: str) -> int:
        """Return how many rows of a modality are exported, of all splits."""
        if not self.settings.fuse:
            return self.store.count(modality)
        return sum(
            int(mask.sum()) for part, mask in self.masks_by_part.items() if part[0] == modality
        )

    def row_count(self, part: ShardName) -> int:
        """Return how many rows a part has: those of the split, without left-out ones."""
        if self.settings.fuse:
            return int(self.masks_by_part[part].sum())
        modality, number = part
        if self.settings.split == ALL and not self.store.left_out.has_rows_of(modality):
            return self.store.shards[part].rows
        batches = self.store.batches(modality, ["key"], split=self.settings.split, parts=[number])
        return sum(len(batch) for batch in batches)

    def transformed_rows(self, shard: ShardName, report: Report) -> pa.Table:
        """Return the transformed rows of a shard, with the columns that are written."""
        modality, number = shard
        settings = self.settings

        # Read what is written, and what the transformation needs
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
                role_rows = np.flatnonzero(is_training == training)
                for start in range(0, len(role_rows), _CACHED_ROWS):
                    block = role_rows[start : start + _CACHED_ROWS]
                    transformed[block] = self.row_pipeline.transform(
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
                longest = self.row_pipeline.longest
                squares = np.square(transformed, dtype=np.float64)[:, :-1].sum(axis=1)
                missing = (longest * _ROUNDING) ** 2 - squares
                if missing.min(initial=0) < 0:
                    raise TransformError(
                        f"The {modality} row {keys[missing.argmin()]} has norm "
                        f"{np.sqrt(squares.max()):.4g}, above {longest:.4g}, the largest of the "
                        "fit.",
                        remedy="Fit the pipeline again with --refit, or use --metric ip.",
                    )
                transformed[:, -1] = np.sqrt(missing)

            # Add their columns, with the splits and roles that they were transformed by
            others: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
            others["split"] = splits
            table = shard_table(self.info, modality, self.format.encode(transformed), others)
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
                tables.append(self.transformed_rows(("text", part), _report_nothing))
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

    def rows_of_part(self, part: ShardName, report: Report) -> pa.Table:
        """Return the rows of a part, with the columns that are written; of fused parts,
        unit(image + first text).
        """
        rows = self.transformed_rows(self.source_of(part), report)
        if not self.settings.fuse:
            return rows
        rows = rows.filter(pa.array(self.masks_by_part[part]))
        if part[0] != FUSED:
            return rows

        # Add the first text of each image
        rows = self.with_texts(rows)
        texts = pa.table({"embedding": rows.column("text_embedding")})
        embeddings = unit_rows(embedding_matrix(rows) + embedding_matrix(texts))
        columns: dict[str, Any] = {name: one_array(rows.column(name)) for name in rows.column_names}
        table = shard_table(self.info, FUSED, embeddings, columns)
        return table.append_column("role", columns["role"])

    def fused_moments(self, writer: StoreWriter) -> Moments:
        """Return the moments of the fused rows of the train split; of all, if it has too few.

        They are those that were collected while a writer wrote the parts. If some parts were there
        before, the rows of all are made again.
        """
        groups = {}
        parts = [part for part in self.masks_by_part if part[0] == FUSED]
        if writer.added.keys() >= {*parts}:
            groups = {
                name: moments
                for name, moments in writer.groups.items()
                if name.startswith(f"{FUSED}/")
            }
        else:
            for part in parts:
                rows = self.rows_of_part(part, _report_nothing)
                Moments.add_groups(groups, moments_of(FUSED, rows))
        train = groups.get(f"{FUSED}/train")
        if train is not None and train.n >= MIN_ROWS_OF_A_MEAN:
            return train
        return Moments.total(groups.values(), self.info.dim)


def _report_nothing(done: int, failed: int) -> None:
    """Report no progress on rows that are read beside those of a part."""


@dataclass(frozen=True)
class ExportPlan:
    """The parts of an export that are written, and those that are removed.

    Attributes:
        shard_rows: the rows of the shard that each part of these modalities is made of.
        todo: the parts to write.
        removed: the files of parts whose shard is gone.
    """

    shard_rows: dict[ShardName, int]
    todo: list[Part]
    removed: list[str]

    @property
    def rows_to_write(self) -> int:
        """Number of rows of the parts to write, before any are left out by split."""
        return sum(self.shard_rows[part.modality, part.number] for part in self.todo)


def plan_parts(
    recipe: Recipe, writer: StoreWriter, modalities: Collection[str], *, keeps_others: bool
) -> ExportPlan:
    """Compare the parts of an export with the shards of its store.

    What takes the place of a part that is there is written to a folder beside it; see
    `StoreWriter.place`.

    Args:
        recipe: of the export.
        writer: of the export.
        modalities: to export.
        keeps_others: whether parts of other modalities stay as they are.
    """
    shard_rows = recipe.parts(modalities)
    files = writer.parts()
    todo = []
    for name in shard_rows:
        made_from = recipe.made_from(name)
        file_names = files.get(name, [])
        if not _is_whole(recipe, writer, name, file_names, made_from):
            is_replaced = bool(file_names) and writer.before is not None
            folder = writer.path / REWRITING if is_replaced else writer.path
            todo.append(Part(*name, made_from, folder))
    removed = []
    for name in sorted(files.keys() - shard_rows.keys()):
        modality, _ = name
        if modality in modalities or not keeps_others:
            removed += files[name]
    return ExportPlan(shard_rows, todo, removed)


def _is_whole(
    recipe: Recipe, writer: StoreWriter, part: ShardName, file_names: list[str], made_from: str
) -> bool:
    """Return whether all files of a part are there, are those that the manifest lists, and have the
    rows that would be written.

    At a URL, where it would take a download, no SHA-256 is compared.
    """
    table_names = [name for name in file_names if name.endswith(".parquet")]
    if not table_names or len(file_names) != len(table_names) + recipe.format.arrays:
        return False

    # What the manifest lists: a shard of a store, or other files. Nothing of a run that did not
    # finish
    listed = writer.before or Manifest({}, {})
    shard_name = part_name(*part)
    shard_record = listed.shards.get(part)

    # Compare what takes no time: settings, rows and sizes
    written_rows = 0
    for name in file_names:
        path = writer.path / name
        try:
            size = size_of(path)
            if name not in table_names:
                continue
            header = read_header(path)
        except (StoreError, FileNotFoundError):
            return False
        if header.made_from != made_from:
            return False
        if name == shard_name and shard_record is not None and size != shard_record.size:
            return False
        written_rows += header.rows
    if written_rows != recipe.row_count(part):
        return False

    # Compare the content
    digests = dict(listed.files)
    if shard_record is not None:
        digests[shard_name] = shard_record.sha256
    for name in file_names:
        path = writer.path / name
        if name in digests and isinstance(path, Path) and sha256_of(path) != digests[name]:
            return False
    return True


def write_parts(
    recipe: Recipe,
    writer: StoreWriter,
    plan: ExportPlan,
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
    # Files of parts that went, or that are written anew, are removed when this run is done; of an
    # export that did not finish, the latter are removed at once
    files = writer.parts()
    for name in plan.removed:
        writer.rewriting.remove(name)
    for part in plan.todo:
        for name in files.get((part.modality, part.number), []):
            if writer.before is None:
                remove(writer.path / name)
            else:
                writer.rewriting.remove(name)

    # Write the parts; workers share the cores for products of matrices
    work = PartWork(recipe)
    with (
        open_executor(
            executor, threads=workers, address=address, processes=processes, cores=1
        ) as open_workers,
        threadpool_limits(max(1, cores() // max(1, workers)), "blas"),
        reporter.progress(title, plan.rows_to_write) as progress,
    ):
        results = open_workers.run(work, plan.todo, lambda rows, _: progress.advance(rows))
        for written in results:
            writer.add(written.name, written.moments, written.record)


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
