"""Shards on one device: decode, encode and write one after another, as work for an executor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..arrays import Indices, Matrix
from ..corpus.image_reader import read_frames
from ..corpus.items import ImageItem, ItemTable
from ..devices import limit_threads
from ..encoders import Encoder, resolve_encoder
from ..errors import StoreError, UnreachableError, remedy_of
from ..executors import Report, Work, cores
from ..io.files import sha256_of
from ..io.locations import location
from ..photos.decoding import Batch, Shards, decoded_batches, failure_of
from ..store import Failure, Store
from ..store.dataset import with_column
from ..store.rewriting import REWRITING
from ..store.rows import keys_of
from ..store.shards import (
    CORPUS_SPLIT,
    ShardRecord,
    SplitMoments,
    moments_of,
    part_name,
    shard_table,
    write_rows,
)
from .sounds import encode_sound
from .summary import ModalitySummary

# a shard's number, and the positions of its inputs in the corpus
PlannedShard = tuple[int, Indices]


@dataclass(frozen=True)
class EmbedOptions:
    """The options of `c3tools.embed` about its work and its shards, which are described there."""

    dtype: str = "float16"
    shard_size: int = 4096
    workers: int | None = None
    batch_size: int | None = None
    image_timeout: float = 60.0
    fps: float = 1.0
    retry_failed: bool = False
    update: bool = False
    prune: bool = False
    exact_decoding: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)  # see `StoreInfo.columns`


@dataclass(frozen=True)
class ShardEdit:
    """Changes of a shard that exists, made without the encoder.

    Attributes:
        removed: keys of rows and failures to leave out.
        paths: new paths of rows and failures, by their keys.
        columns: new values of the columns that rows keep, by their keys.
    """

    removed: set[str] = field(default_factory=set)
    paths: dict[str, str] = field(default_factory=dict)
    columns: dict[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardTask:
    """A shard to make.

    Attributes:
        number: of the shard.
        items: its inputs.
        edit: of the shard that exists and whose rows are replaced; None for a new shard.
    """

    number: int
    items: ItemTable[Any]
    edit: ShardEdit | None


class ShardTasks(Sequence[ShardTask]):
    """The shards to make; each task is made when it is asked for, so that a machine gets the inputs
    of its own shards alone.

    Args:
        items: the inputs of the corpus.
        planned: the shards.
        edits: of the shards that exist, by number.
    """

    def __init__(
        self,
        items: ItemTable[Any],
        planned: Sequence[PlannedShard],
        edits: Mapping[int, ShardEdit],
    ) -> None:
        self._items = items
        self._planned = planned
        self._edits = edits

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self._planned)

    def count_inputs(self) -> int:
        """Return the number of inputs of all shards."""
        return sum(len(positions) for _, positions in self._planned)

    def __getitem__(self, index: Any) -> Any:
        """Return one task."""
        number, positions = self._planned[index]
        rows: Any = self._items.table.take(pa.array(positions, pa.int64()))
        items = ItemTable(self._items.kind, rows)
        return ShardTask(number, items, self._edits.get(number))


@dataclass(frozen=True)
class MadeShard:
    """A shard that a task has written.

    Attributes:
        number: of the shard.
        record: for the manifest.
        moments: of its rows, by modality and split.
        replaced: of the rows of the shard whose place it takes, if there is one.
        summary: counts and timings.
    """

    number: int
    record: ShardRecord
    moments: SplitMoments
    replaced: SplitMoments
    summary: ModalitySummary


class EmbedWork(Work[ShardTask, MadeShard]):
    """The embedding of one modality; a task is one shard, whose bytes are the same wherever it is
    made by the same model of GPU, or by as many threads of the same kind of CPU.

    Args:
        store: the store to write to, which already exists.
        modality: ``image``, ``video``, ``audio`` or ``text``.
        encoder: is used in this process; others load the same model, once each.
        options: see there.
    """

    def __init__(
        self,
        store: Store,
        modality: str,
        encoder: Encoder,
        options: EmbedOptions,
    ) -> None:
        self.modality = modality
        self.store = store
        self._options = options
        self._cores = cores()
        self._encoder: Encoder | None = encoder
        self._model = json.dumps(encoder.identity), encoder.backend.name, encoder.compute.precision

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the encoder."""
        return {**self.__dict__, "_encoder": None}

    def load(self, device: str, threads: int) -> None:
        """Load the encoder in a worker process, and note how many cores it may use.

        Raises:
            EncoderError: if it cannot be loaded, or its weights are other ones here.
            StoreError: if the store is not to be seen from here.
        """
        Store.open(self.store.path, incomplete=True)
        limit_threads(threads)
        self._encoder = _load_once(*self._model, device)
        self._cores = threads

    def name(self, task: ShardTask) -> str:
        """Return a name such as ``text shard 3``."""
        return f"{self.modality} shard {task.number}"

    def run(self, tasks: Iterable[ShardTask], report: Report) -> Iterator[MadeShard]:
        """Embed the inputs of these shards and write them; images are decoded ahead, across shards,
        and a shard is written while the next one is encoded.

        Raises:
            StoreError: if a shard cannot be written.
        """
        assert self._encoder is not None, "load must be called first"
        encode = self._singly
        if self.modality == "image":
            encode = self._images
        elif self.modality == "text":
            encode = self._texts
        no_features = np.zeros((0, self._encoder.dim), np.float32)
        edits: dict[int, ShardEdit | None] = {}

        def inputs_of_shards() -> Iterator[tuple[int, list[Any]]]:
            for task in tasks:
                edits[task.number] = task.edit
                yield task.number, list(task.items)

        shards = inputs_of_shards()
        start = time.perf_counter()
        encoded = encode(self._encoder, shards, report)
        writing: Future[MadeShard] | None = None
        with ThreadPoolExecutor(1) as writer:
            for number, encoded_batches in groupby(encoded, key=lambda pair: pair[0].shard):
                batches = []
                features = [no_features]
                for batch, features_of_batch in encoded_batches:
                    batches.append(batch)
                    features.append(features_of_batch)
                embeddings = np.concatenate(features)
                elapsed = time.perf_counter() - start
                if writing is not None:
                    yield writing.result()
                edit = edits.pop(number)
                writing = writer.submit(
                    self._write_shard, number, batches, embeddings, elapsed, edit
                )
                start = time.perf_counter()
            if writing is not None:
                yield writing.result()

    def _write_shard(
        self,
        number: int,
        batches: Sequence[Batch],
        embeddings: Matrix,
        elapsed: float,
        edit: ShardEdit | None,
    ) -> MadeShard:
        """Write a new shard, or stage one that takes the place of the shard that is there.

        Args:
            number: of the shard.
            batches: of its inputs.
            embeddings: of their rows (n, d).
            elapsed: seconds in which they were decoded and encoded.
            edit: see `ShardTask`.
        """
        start = time.perf_counter()
        info = self.store.info
        rows = [row for batch in batches for row in batch.rows]
        failures = [failure for batch in batches for failure in batch.failures]
        names = rows[0] if rows else ("key",)
        columns = {name: [row[name] for row in rows] for name in names}
        columns[CORPUS_SPLIT] = [row["split"] for row in rows]
        columns["split"] = [row["settled"] or row["split"] for row in rows]
        kept_values = [row["columns"] or {} for row in rows]
        for name in info.columns:
            columns[name] = [values.get(name) for values in kept_values]
        table = shard_table(info, self.modality, embeddings, columns)
        recorded_failures = failures
        replaced: SplitMoments = {}
        folder = self.store.path
        with writing_to(folder):
            if edit is not None:
                folder /= REWRITING
                # The former row of an input that fails now stays, so the failure is not recorded
                table, recorded_failures, replaced = rewritten_shard(
                    self.store, self.modality, number, edit, table
                )
            path = folder / part_name(self.modality, number)
            record = write_rows(path, info, self.modality, table, recorded_failures)
        moments = moments_of(self.modality, table)

        waiting = sum(batch.waited for batch in batches)
        summary = ModalitySummary(
            truncated=sum(batch.truncated for batch in batches),
            seconds={
                "waiting": waiting,
                "encoding": elapsed - waiting,
                "writing": time.perf_counter() - start,
            },
        )
        if edit is not None:
            summary.updated = len(rows)
            summary.not_updated = [failure.key for failure in failures]
        else:
            summary.embedded = len(rows)
            summary.failed = len(failures)
        return MadeShard(number, record, moments, replaced, summary)

    def _images(
        self, encoder: Encoder, shards: Shards, report: Report
    ) -> Iterator[tuple[Batch, Matrix]]:
        for batch, features in encoded_images(encoder, shards, self._options, self._cores):
            report(len(batch.rows) + len(batch.failures), len(batch.failures))
            yield batch, features

    def _singly(
        self, encoder: Encoder, shards: Shards, report: Report
    ) -> Iterator[tuple[Batch, Matrix]]:
        """Yield the embedding (1, d) of each video or sound."""
        for number, items in shards:
            for item in items:
                row: dict[str, Any] = {
                    "key": item.key,
                    "path": item.path,
                    "size": item.size,
                    "split": item.split,
                    "settled": item.settled,
                    "columns": item.columns,
                }
                try:
                    if self.modality == "video":
                        features, waited = self._video(encoder, item, row)
                    else:
                        sound = encode_sound(encoder, item.path)
                        row["duration"] = sound.duration
                        features = sound.embedding
                        waited = sound.reading
                    row["sha256"] = sha256_of(location(item.path))
                    batch = Batch(number, [row], [], waited)
                except Exception as error:
                    # a decoder may raise anything on a damaged file, as for images
                    features = np.zeros((0, encoder.dim), np.float32)
                    batch = Batch(number, [], [failure_of(item, "decode", error)])
                report(1, len(batch.failures))
                yield batch, features

    def _video(
        self, encoder: Encoder, item: ImageItem, row: dict[str, Any]
    ) -> tuple[Matrix, float]:
        """Return the mean of the embeddings of a video's frames, at unit length, and the seconds
        that were spent on decoding; add columns to the row.
        """
        batch_size = self._options.batch_size or encoder.batch_size("image")
        time_limit = self._options.image_timeout or None
        waited = 0.0
        start = time.perf_counter()
        total = np.zeros((1, encoder.dim))
        row["frames"] = 0
        frames = read_frames(item.path, self._options.fps, time_limit)
        while some_frames := list(islice(frames, batch_size)):
            waited += time.perf_counter() - start
            seconds, image = some_frames[-1]
            row |= {"width": image.width, "height": image.height, "duration": seconds}
            row["frames"] += len(some_frames)
            images = [image for _, image in some_frames]
            features = encoder.encode_images(images, batch_size=batch_size)
            total += features.sum(axis=0, dtype=np.float64)
            start = time.perf_counter()
        norm = np.linalg.norm(total)
        if not norm > 0:
            raise ValueError("the embeddings of its frames cancel out")
        return (total / norm).astype(np.float32), waited

    def _texts(
        self, encoder: Encoder, shards: Shards, report: Report
    ) -> Iterator[tuple[Batch, Matrix]]:
        """Yield the embeddings (n, d) of the texts of each shard."""
        for number, items in shards:
            captions = [item.caption for item in items]
            tokens = encoder.tokenise(captions)
            embeddings = np.zeros((len(captions), encoder.dim), np.float32)
            token_batches = encoder.token_batches(tokens, self._options.batch_size)
            for rows, features in encoder.encode_batches("text", token_batches):
                embeddings[rows] = features
                report(len(rows), 0)
            truncated = int(encoder.truncated(captions, tokens).sum())
            text_rows = [item._asdict() for item in items]
            yield Batch(number, text_rows, [], truncated=truncated), embeddings


@contextmanager
def writing_to(store: Path) -> Iterator[None]:
    """Turn an error of the operating system in the block into one that says what is kept, and what
    to do.

    Raises:
        StoreError: if the store cannot be written.
    """
    try:
        yield
    except UnreachableError:  # has a remedy of its own
        raise
    except OSError as error:
        raise StoreError(
            f"The store {store} cannot be written ({error.strerror or error}).",
            remedy=f"Finished work is kept. {remedy_of(error)}",
        ) from error


def rewritten_shard(
    store: Store,
    modality: str,
    part: int,
    edit: ShardEdit,
    new: pa.Table | None = None,
) -> tuple[pa.Table, list[Failure], SplitMoments]:
    """Return the rows and failures of a shard without some of them, and with others in their
    places, and the moments of the rows that it has now; no embedding is computed.

    Args:
        store: the store.
        modality: of the shard.
        part: its number.
        edit: rows and failures to leave out, new paths, and new values of columns.
        new: rows that take the places of those with their keys.

    Raises:
        StoreError: if the shard cannot be read.
    """
    rows, failures = store.read_shard(modality, part)
    replaced = moments_of(modality, rows)
    keys = keys_of(rows)
    if edit.paths:
        paths = zip(keys, rows["path"].to_pylist(), strict=True)
        new_paths = [edit.paths.get(key, path) for key, path in paths]
        rows = with_column(rows, "path", pa.array(new_paths, pa.string()))
    for name in store.info.columns if edit.columns else ():
        pairs = zip(keys, rows[name].to_pylist(), strict=True)
        values = [edit.columns.get(key, {name: value})[name] for key, value in pairs]
        rows = with_column(rows, name, pa.array(values, rows.schema.field(name).type))
    places = [place for place, key in enumerate(keys) if key not in edit.removed]
    if new is not None:
        # The new rows are appended, and taken from there in place of those with their keys
        place_of_new = {key: len(keys) + row for row, key in enumerate(keys_of(new))}
        places = [place_of_new.get(keys[place], place) for place in places]
        rows = pa.concat_tables([rows, new])
    # Inputs that are removed, or have a row, are not failures of this shard
    settled_keys = {*edit.removed, *keys}
    failures = [
        replace(failure, path=edit.paths.get(failure.key, failure.path))
        for failure in failures
        if failure.key not in settled_keys
    ]
    return rows.take(pa.array(places, pa.int64())).combine_chunks(), failures, replaced


@lru_cache(maxsize=1)
def _load_once(identity: str, backend: str, precision: str, device: str) -> Encoder:
    return resolve_encoder(
        recorded=json.loads(identity), device=device, backend=backend, precision=precision
    )


def encoded_images(
    encoder: Encoder, shards: Shards, options: EmbedOptions, cores: int
) -> Iterator[tuple[Batch, Matrix]]:
    """Yield batches of images with their features (n, d); the next are decoded and encoded while
    one is used.

    Raises:
        C3Error: if no worker process can be started.
    """
    batches = decoded_batches(
        shards,
        replace(encoder.preprocess, exact=options.exact_decoding),
        batch_size=options.batch_size or encoder.batch_size("image"),
        workers=cores if options.workers is None else options.workers,
        time_limit=options.image_timeout or None,
        compute=encoder.compute,
    )
    return encoder.encode_batches("image", batches)
