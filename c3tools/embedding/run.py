"""The embedding run: read the corpus, load the model, plan the shards, have them made, sum up.

A shard takes a fixed number of inputs, in the order of the corpus, and gets the lowest number that is free. Finished
shards take whole such blocks out of the order, so a run that was interrupted plans the same shards again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from ..corpus import Corpus, ImageItem, TextItem, read_corpus
from ..devices import pick_devices
from ..encoders import Encoder, resolve_encoder
from ..errors import StoreError, UnreachableError
from ..executors import Executor, LocalExecutor, open_executor
from ..io.files import remove_leftovers
from ..io.locations import kind_of, location
from ..reporter import SILENT, Reporter, counted
from ..store import Failure, Store, StoreInfo, create_store, locked, rewrite_failures, write_failures
from ..store.rows import keys_of
from .shards import EmbedWork
from .summary import EmbedSummary, ModalitySummary

DTYPES = ("float16", "float32")
INDEX_FOLDER = ".inputs"  # in the store: the indexes of tars

Item = TypeVar("Item", ImageItem, TextItem)


def embed(
    paths: str | Path | Sequence[str | Path],
    store: str | Path = "c3-store",
    *,
    captions: str | Path | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    key_column: str | None = None,
    images_root: str | Path | None = None,
    prefix_keys: bool = False,
    download: bool = False,
    model: str | None = None,
    random_init: int | None = None,
    device: str | None = None,
    precision: str = "auto",
    compile: bool = False,
    dtype: str = "float16",
    shard_size: int = 4096,
    workers: int | None = None,
    batch_size: int | None = None,
    image_timeout: float = 60.0,
    retry_failed: bool = False,
    follow_symlinks: bool = False,
    executor: str | Executor = "local",
    address: str | None = None,
    processes: int | None = None,
    encoder: Encoder | None = None,
    reporter: Reporter = SILENT,
) -> Store:
    """Embed images and their captions, or texts, into a store: all that `c3 embed` does.

    What is in the store already stays, so the same call continues a run that was interrupted.

    Args:
        paths: folders of images, images, tars, tables and text files; see `c3tools.corpus.read_corpus`.
        store: the store's folder or URL; made if it is not there.
        captions, text_column, image_column, key_column, images_root, prefix_keys, download, follow_symlinks: see
            `c3tools.corpus.read_corpus`.
        model, random_init: see `c3tools.encoders.load_encoder`; None for the model of the store, and for a new store
            the bundled one.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or several with commas, one process each; None for every GPU,
            or the best device there is.
        precision: see `c3tools.encoders.load_encoder`; ``auto`` is that of the store, if it has one.
        compile: run the model through `torch.compile`.
        dtype, shard_size, workers, batch_size, image_timeout, retry_failed: see `embed_corpus`.
        executor, address, processes: ``local``, or ``ray`` with the address of the cluster and the number of its
            worker processes, or an open executor; see `c3tools.executors.open_executor`.
        encoder: a loaded encoder, to be used instead of ``model`` and the options of the model.
        reporter: is told what was found, and shows the progress.

    Returns:
        The store; its ``summary`` is the `EmbedSummary` of this run.

    Raises:
        CorpusError: if a path is missing, or there is nothing to embed.
        EncoderError: if the model cannot be loaded.
        StoreError: if the store holds embeddings of another model, is damaged, or is being written by another run.
        C3Error: if a worker process fails; what was finished is kept.
    """
    if dtype not in DTYPES:
        raise StoreError(f"Unknown storage type {dtype!r}.", remedy="Choose float16 or float32.")
    folder = location(store)
    corpus = read_corpus(
        paths,
        captions=captions,
        text_column=text_column,
        image_column=image_column,
        key_column=key_column,
        images_root=images_root,
        prefix_keys=prefix_keys,
        follow_symlinks=follow_symlinks,
        download=download,
        index_folder=folder / INDEX_FOLDER,
    )
    reporter.message(f"Found {counted(len(corpus.images), 'image')} and {counted(len(corpus.texts), 'text')}.")
    for note in corpus.notes:
        reporter.message(note)
    devices = pick_devices(device) if encoder is None or device else [str(encoder.compute.device)]
    if encoder is None:
        recorded = StoreInfo.load(folder) if kind_of(folder / "store.json") == "file" else None
        encoder = resolve_encoder(
            model,
            recorded=recorded.model if recorded else None,
            random_init=random_init,
            device=devices[0],
            precision=precision,
            recorded_precision=recorded.precision if recorded else None,
            compiled=compile,
            reporter=reporter,
        )
    gpu = encoder.compute.device.type == "cuda"
    with open_executor(executor, devices=devices, address=address, processes=processes, gpu=gpu) as chosen:
        summary = embed_corpus(
            corpus,
            folder,
            encoder,
            dtype=dtype,
            shard_size=shard_size,
            workers=workers,
            batch_size=batch_size,
            image_timeout=image_timeout,
            retry_failed=retry_failed,
            executor=chosen,
            reporter=reporter,
        )
    opened = Store.open(folder)
    opened.summary = summary
    return opened


def embed_corpus(
    corpus: Corpus,
    store: str | Path,
    encoder: Encoder,
    *,
    dtype: str = "float16",
    shard_size: int = 4096,
    workers: int | None = None,
    batch_size: int | None = None,
    image_timeout: float = 60.0,
    retry_failed: bool = False,
    executor: Executor | None = None,
    reporter: Reporter = SILENT,
) -> EmbedSummary:
    """Embed the part of a corpus that is not in the store yet, and add it.

    Args:
        corpus: images and texts.
        store: the store's folder or URL; made if it is not there.
        encoder: the contrastive model.
        dtype: ``float16`` or ``float32``, for storage.
        shard_size: inputs per shard, which is the most that a kill can lose.
        workers: processes that decode images beside one encoder; None for as many as there are cores to spare.
        batch_size: images or texts run at a time; None for the encoder's own.
        image_timeout: seconds that decoding one image may take (0: no limit); needs at least one worker.
        retry_failed: try again what failed in an earlier run.
        executor: the executor that makes the shards; None for this process, with the encoder given.
        reporter: shows the progress.

    Raises:
        StoreError: if the store holds embeddings of another model, is damaged, or is being written by another run.
        C3Error: if a worker process fails; what was finished is kept.
    """
    executor = executor or LocalExecutor()
    folder = location(store)
    info = StoreInfo(
        encoder.identity,
        encoder.dim,
        dtype,
        preprocessing=encoder.preprocess.config,
        precision=encoder.compute.precision,
        extra={"compiled": True} if encoder.compiled else {},
    )
    modalities: dict[str, ModalitySummary] = {}
    try:
        with locked(folder):
            create_store(folder, info)
            opened = Store.open(folder)
            inputs: dict[str, list[Any]] = {"image": corpus.images, "text": corpus.texts}
            for modality, items in inputs.items():
                if not items:
                    continue
                shards, modalities[modality] = plan_shards(
                    opened, modality, items, shard_size=shard_size, retry_failed=retry_failed
                )
                if shards:
                    work = EmbedWork(opened, modality, encoder, workers, batch_size, image_timeout)
                    _embed_shards(shards, modalities[modality], work, executor, reporter)
                    remove_leftovers(opened.path / modality)  # of workers that were lost
            failures = _roll_up_failures(opened, corpus)
    except UnreachableError:  # has a remedy of its own
        raise
    except OSError as error:
        raise StoreError(
            f"The store {folder} cannot be written ({error.strerror or error}).",
            remedy="What was finished is kept. Make room, or mend the disk, then run the same command again.",
        ) from error
    return EmbedSummary(
        store=str(folder),
        model=encoder.identity,
        precision=encoder.compute.precision,
        modalities=modalities,
        images_without_caption=corpus.images_without_caption,
        captions_without_image=corpus.captions_without_image,
        skipped=len(corpus.skipped),
        failures_in_store=len(failures),
    )


def plan_shards(
    store: Store, modality: str, items: Sequence[Item], *, shard_size: int, retry_failed: bool
) -> tuple[dict[int, list[Item]], ModalitySummary]:
    """Compare the items of one modality with those in the store, and divide the others into shards.

    Returns:
        The items to embed by the number of their shard, and a summary that counts the items left out.
    """
    summary = ModalitySummary()
    column = "size" if modality == "image" else "caption"  # changes with an input
    embedded: dict[Any, Any] = {}
    for batch in store.batches(modality, ["key", column]) if store.parts(modality) else ():
        embedded.update(zip(keys_of(batch), batch.column(column).to_pylist(), strict=True))
    failed = {failure.key for part in store.parts(modality) for failure in store.shard_failures(modality, part)}
    failed -= embedded.keys()
    pending: list[Item] = []
    for item in items:
        if item.key in embedded:
            summary.already += 1
            before, now = embedded[item.key], getattr(item, column)
            if None not in (before, now) and before != now:
                summary.changed.append(item.key)
        elif item.key in failed and not retry_failed:
            summary.failed_before += 1
        else:
            pending.append(item)
    taken = set(store.parts(modality))
    free = (number for number in count() if number not in taken)
    starts = range(0, len(pending), shard_size)
    return {next(free): pending[start : start + shard_size] for start in starts}, summary


def _embed_shards(
    shards: dict[int, list[Any]], summary: ModalitySummary, work: EmbedWork, executor: Executor, reporter: Reporter
) -> None:
    """Have the shards of one modality made, and add them to its summary."""
    failed = 0
    start = time.perf_counter()
    with reporter.progress(f"{work.modality.capitalize()}s", sum(map(len, shards.values()))) as progress:

        def report(done: int, failures: int) -> None:
            nonlocal failed
            failed += failures
            progress.advance(done, f"{failed:,} failed" if failed else "")

        for part in executor.run(work, list(shards.items()), report):
            summary.add(part)
    summary.elapsed = time.perf_counter() - start


def _roll_up_failures(store: Store, corpus: Corpus) -> list[Failure]:
    """Bring failures.parquet up to date with the failures of the shards and those found while reading the corpus."""
    any_failure = bool(corpus.skipped or store.failures() or store.recorded_failures())
    embedded = {
        key
        for modality in (store.modalities if any_failure else ())
        for batch in store.batches(modality, ["key"])
        for key in keys_of(batch)
    }
    for modality in store.modalities:
        for part in store.parts(modality):
            present = store.shard_failures(modality, part)
            left = [failure for failure in present if failure.key not in embedded]
            if len(left) != len(present):
                rewrite_failures(store.path, modality, part, left)
    skipped = [Failure(s.key, s.path, "list", s.error, s.message) for s in corpus.skipped]
    read_now = {item.path for item in corpus.images} | set(corpus.containers)
    before = [f for f in store.recorded_failures() if f.stage == "list" and not _is_within(f.path, read_now)]
    unique = {(f.stage, f.key): f for f in [*before, *skipped, *store.failures()] if f.key not in embedded}
    failures = [unique[name] for name in sorted(unique)]
    write_failures(store.path, failures)
    return failures


def _is_within(path: str, files: set[str]) -> bool:
    """Return whether a path is one of these files, or ``file#…`` of a tar, table or list among them."""
    return path in files or any(path[:i] in files for i, letter in enumerate(path) if letter == "#")
