"""The embedding run: plan, encode shard by shard, write, sum up."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...corpus import Corpus, ImageItem, TextItem
from ...encoders import Encoder
from ...errors import StoreError
from ...progress import SilentTracker, Tracker
from ...store import Failure, Shard, Store, StoreInfo, create_store, rewrite_failures, write_failures, write_shard
from .loader import pixel_batches
from .plan import Plan, plan_modality
from .summary import EmbedSummary, ModalitySummary

DEFAULT_SHARD_SIZE = 4096
TrackFactory = Callable[[str, int], AbstractContextManager[Tracker]]


@dataclass(frozen=True)
class EmbedOptions:
    """How to embed.

    Attributes:
        shard_size: inputs per shard: what a kill can lose at most.
        workers: processes that decode images; None for as many as the machine has cores to spare.
        batch_size: images or texts run at a time; None for the encoder's own.
        dtype: ``float16`` or ``float32``, for storage.
        retry_failed: try again what failed in an earlier run.
    """

    shard_size: int = DEFAULT_SHARD_SIZE
    workers: int | None = None
    batch_size: int | None = None
    dtype: str = "float16"
    retry_failed: bool = False

    def worker_count(self, encoder: Encoder) -> int:
        """Number of decoding processes: on a CPU one core is left to the model."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores - 1) if encoder.compute.device.type == "cpu" else min(cores, 16)


def embed(
    corpus: Corpus,
    store: str | Path,
    encoder: Encoder,
    options: EmbedOptions | None = None,
    *,
    track: TrackFactory | None = None,
) -> EmbedSummary:
    """Embed what is not embedded yet, and add it to the store.

    Args:
        corpus: images and texts.
        store: the store's folder; made when it is not there.
        encoder: the contrastive model.
        options: how.
        track: makes a progress display from a label and a total.

    Returns:
        What was done.

    Raises:
        StoreError: if the store holds embeddings of another model, is damaged, or is being written by another run.
    """
    options = options or EmbedOptions()
    silent: TrackFactory = lambda label, total: nullcontext(SilentTracker())  # noqa: E731
    show: TrackFactory = lambda label, total: (track if track and total else silent)(label, total)  # noqa: E731
    folder = Path(store)
    info = store_info(encoder, options.dtype)
    create_store(folder, info)
    with _lock(folder):
        opened = Store.open(folder)
        summaries: dict[str, ModalitySummary] = {}
        if corpus.images:
            images = _plan(opened, "image", corpus.images, options)
            summaries["image"] = _embed_images(opened, encoder, images, options, show)
        if corpus.texts:
            texts = _plan(opened, "text", corpus.texts, options)
            summaries["text"] = _embed_texts(opened, encoder, texts, options, show)
        failures = _roll_up_failures(opened, corpus)
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
    )


def _plan(store: Store, modality: str, items: Sequence[Any], options: EmbedOptions) -> Plan[Any]:
    return plan_modality(store, modality, items, shard_size=options.shard_size, retry_failed=options.retry_failed)


def _embed_images(
    store: Store, encoder: Encoder, plan: Plan[ImageItem], options: EmbedOptions, show: TrackFactory
) -> ModalitySummary:
    summary = _begin(plan)
    rows, failures = _Rows(), list[Failure]()
    decoding, began = 0.0, time.perf_counter()
    with show("Images", plan.pending) as tracker:
        waited_since = time.perf_counter()
        for batch in pixel_batches(
            plan.shards,
            encoder.preprocess,
            batch_size=options.batch_size or encoder.image_batch,
            workers=options.worker_count(encoder),
            pin_memory=encoder.compute.device.type == "cuda",
        ):
            start = time.perf_counter()
            summary.waiting += start - waited_since
            if batch.items:
                rows.add(
                    encoder.encode_pixels(batch.pixels),
                    [
                        {"key": i.key, "path": i.path, "width": w, "height": h, "size": i.size, "split": i.split}
                        for i, (w, h) in zip(batch.items, batch.sizes, strict=True)
                    ],
                )
            failures += batch.failures
            decoding += batch.seconds
            encoded = time.perf_counter()
            summary.seconds["encoding"] += encoded - start
            if batch.last:
                timings = {"decoding": decoding, "total": encoded - began}
                _finish(store, Shard("image", batch.shard, rows.embeddings(), rows.columns(), failures, timings))
                summary.embedded += len(rows)
                summary.failed += len(failures)
                summary.seconds["decoding"] += decoding
                rows, failures, decoding, began = _Rows(), [], 0.0, time.perf_counter()
                summary.seconds["writing"] += time.perf_counter() - encoded
            tracker.advance(len(batch.items) + len(batch.failures), _failed_note(summary.failed + len(failures)))
            waited_since = time.perf_counter()
    return summary


def _embed_texts(
    store: Store, encoder: Encoder, plan: Plan[TextItem], options: EmbedOptions, show: TrackFactory
) -> ModalitySummary:
    summary = _begin(plan)
    with show("Texts", plan.pending) as tracker:
        for number, items in plan.shards.items():
            start = time.perf_counter()
            tokens = encoder.tokenise([item.caption for item in items])
            summary.truncated += encoder.truncated(tokens)
            tokenised = time.perf_counter()
            embeddings = np.zeros((len(items), encoder.dim), np.float32)
            for rows, part in encoder.encode_token_batches(tokens, batch_size=options.batch_size):
                embeddings[rows] = part
                tracker.advance(len(rows))
            encoded = time.perf_counter()
            columns = {name: [getattr(item, name) for item in items] for name in TextItem._fields}
            timings = {"reading": tokenised - start, "encoding": encoded - tokenised}
            _finish(store, Shard("text", number, embeddings, columns, [], timings))
            summary.embedded += len(items)
            summary.seconds["reading"] += tokenised - start
            summary.seconds["encoding"] += encoded - tokenised
            summary.seconds["writing"] += time.perf_counter() - encoded
    return summary


class _Rows:
    """Rows of a shard while they come in."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray[Any, Any]] = []
        self._records: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._records)

    def add(self, embeddings: np.ndarray[Any, Any], records: list[dict[str, Any]]) -> None:
        self._parts.append(embeddings)
        self._records += records

    def embeddings(self) -> np.ndarray[Any, Any]:
        return np.concatenate(self._parts) if self._parts else np.zeros((0, 1), np.float32)

    def columns(self) -> dict[str, list[Any]]:
        names = self._records[0] if self._records else {"key": None}
        return {name: [record[name] for record in self._records] for name in names}


def _begin(plan: Plan[Any]) -> ModalitySummary:
    return ModalitySummary(already=plan.done, failed_before=plan.failed_before, changed=plan.changed)


def _failed_note(failed: int) -> str:
    return f"{failed:,} failed" if failed else ""


def _finish(store: Store, shard: Shard) -> None:
    try:
        write_shard(store.path, store.info, shard)
    except OSError as error:
        raise StoreError(
            f"The {shard.modality} shard {shard.index} could not be written to {store.path} "
            f"({error.strerror or error}).",
            remedy="What was finished is kept. Make room, then run the same command again: it continues there.",
        ) from error


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
    before = [failure for failure in store.recorded_failures() if failure.stage == "list"]
    unique = {(f.stage, f.key): f for f in [*before, *refused, *store.failures()] if f.key not in embedded}
    failures = [unique[name] for name in sorted(unique)]
    write_failures(store.path, failures)
    return failures


@contextmanager
def _lock(store: Path) -> Iterator[None]:
    """Keep a second run off the store; the lock goes with the process, however it ends."""
    with (store / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(
                f"Another run is writing to {store}.", remedy="Wait for it to end, or use another --store."
            ) from None
        yield
