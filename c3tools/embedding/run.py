"""The embedding run: plan, have the shards made, sum up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..corpus import Corpus
from ..encoders import Encoder
from ..errors import StoreError, UnreachableError
from ..executors import Executor, LocalExecutor
from ..io.files import remove_leftovers
from ..io.locations import location
from ..reporter import SilentTracker
from ..store import Failure, Store, StoreInfo, create_store, locked, rewrite_failures, write_failures
from .options import EmbedOptions, TrackFactory
from .plan import plan_modality
from .summary import EmbedSummary, ModalitySummary
from .work import EmbedWork


def embed(
    corpus: Corpus,
    store: str | Path,
    encoder: Encoder,
    options: EmbedOptions | None = None,
    *,
    track: TrackFactory | None = None,
    executor: Executor | None = None,
) -> EmbedSummary:
    """Embed what is not embedded yet, and add it to the store.

    Args:
        corpus: images and texts.
        store: the store's folder; made when it is not there.
        encoder: the contrastive model.
        options: how.
        track: makes a progress display from a label and a total.
        executor: where shards are made; None for this process, with the encoder given.

    Returns:
        What was done.

    Raises:
        StoreError: if the store holds embeddings of another model, is damaged, or is being written by another run.
        C3Error: if a worker process fails; what was finished is kept.
    """
    options = options or EmbedOptions()
    silent: TrackFactory = lambda label, total: nullcontext(SilentTracker())  # noqa: E731
    show: TrackFactory = lambda label, total: (track if track and total else silent)(label, total)  # noqa: E731
    executor = executor or LocalExecutor()
    folder = location(store)
    try:
        with locked(folder):
            create_store(folder, store_info(encoder, options.dtype))
            opened = Store.open(folder)
            summaries = {
                modality: _embed_modality(opened, modality, items, encoder, options, show, executor)
                for modality, items in (("image", corpus.images), ("text", corpus.texts))
                if items
            }
            failures = _roll_up_failures(opened, corpus)
    except UnreachableError:  # says what to do itself
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
        modalities=summaries,
        images_without_caption=corpus.pairing.images_without_caption,
        captions_without_image=corpus.pairing.captions_without_image,
        skipped=len(corpus.skipped),
        failures_in_store=len(failures),
    )


def store_info(encoder: Encoder, dtype: str = "float16") -> StoreInfo:
    """What a store of this encoder's embeddings says about itself."""
    return StoreInfo(
        model=encoder.identity,
        dim=encoder.dim,
        dtype=dtype,
        preprocessing=encoder.preprocess.config,
        precision=encoder.compute.precision,
        extra={"compiled": True} if encoder.compiled else {},
    )


def _embed_modality(
    store: Store,
    modality: str,
    items: Sequence[Any],
    encoder: Encoder,
    options: EmbedOptions,
    show: TrackFactory,
    executor: Executor,
) -> ModalitySummary:
    plan = plan_modality(store, modality, items, shard_size=options.shard_size, retry_failed=options.retry_failed)
    failed = 0
    start = time.perf_counter()
    with show(f"{modality.capitalize()}s", plan.pending) as tracker:

        def report(count: int, failures: int) -> None:
            nonlocal failed
            failed += failures
            tracker.advance(count, f"{failed:,} failed" if failed else "")

        work = EmbedWork(store, modality, encoder, options)
        summary = ModalitySummary()
        for part in executor.run(work, list(plan.shards.items()), report):
            summary.add(part)
    remove_leftovers(store.path / modality)  # of workers that were lost
    summary.elapsed = time.perf_counter() - start
    summary.already, summary.failed_before, summary.changed = plan.done, plan.failed_before, plan.changed
    return summary


def _roll_up_failures(store: Store, corpus: Corpus) -> list[Failure]:
    """Bring failures.parquet up to date: what the shards say, and what was refused before encoding."""
    any_failure = bool(corpus.skipped or store.failures() or store.recorded_failures())
    embedded = {
        key
        for modality in (store.modalities if any_failure else ())
        for batch in store.batches(modality, ["key"])
        for key in batch.column("key").to_pylist()
    }
    for modality in store.modalities:
        for part in store.parts(modality):
            present = store.shard_failures(modality, part)
            left = [failure for failure in present if failure.key not in embedded]
            if len(left) != len(present):
                rewrite_failures(store.path, modality, part, left)
    refused = [Failure(s.key, s.path, "list", s.error, s.message) for s in corpus.skipped]
    looked_at = {item.path for item in corpus.images} | set(corpus.containers)
    before = [f for f in store.recorded_failures() if f.stage == "list" and not _is_of(f.path, looked_at)]
    unique = {(f.stage, f.key): f for f in [*before, *refused, *store.failures()] if f.key not in embedded}
    failures = [unique[name] for name in sorted(unique)]
    write_failures(store.path, failures)
    return failures


def _is_of(path: str, places: set[str]) -> bool:
    """Whether a path is one of these places, or ``place#…`` of a tar, table or list among them."""
    return path in places or any(path[:i] in places for i, letter in enumerate(path) if letter == "#")
