"""Embedding as work for an executor: one task is one shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from ..encoders import Encoder, load_recorded_encoder
from ..errors import StoreError
from ..executors import Report, Work, WorkerResources
from ..store import Store
from ..store.rewriting import intact_shard
from .options import EmbedOptions
from .shards import embed_shards
from .summary import ModalitySummary

ShardTask = tuple[int, Sequence[Any]]


class EmbedWork(Work[ShardTask, ModalitySummary]):
    """Shards of one modality; a task is a shard's number and its inputs.

    Args:
        store: where they go; made already.
        modality: ``image`` or ``text``.
        encoder: is used in this process; others load the same model, once each.
        options: how.
    """

    def __init__(self, store: Store, modality: str, encoder: Encoder, options: EmbedOptions) -> None:
        self._store = store
        self._modality = modality
        self._encoder: Encoder | None = encoder
        self._options = options
        self._identity = json.dumps(encoder.identity)
        self._precision = encoder.compute.precision
        self._compiled = encoder.compiled

    def __getstate__(self) -> dict[str, Any]:
        """All but the encoder."""
        return {**self.__dict__, "_encoder": None}

    def load(self, place: WorkerResources) -> None:
        """Load the encoder, the first time; settle what depends on the machine.

        Raises:
            EncoderError: if it cannot be loaded, or its weights are other ones here.
            StoreError: if the store is not to be seen from here.
        """
        here = Store.open(self._store.path)
        if here.info != self._store.info:
            raise StoreError(
                f"The store {here.path} is another one on this machine.",
                remedy="Keep it on storage that all machines share, or at a URL.",
            )
        torch.set_num_threads(min(place.threads, torch.get_num_threads()))  # fewer where OMP_NUM_THREADS says so
        self._encoder = _encoder_of_this_process(self._identity, place.device, self._precision, self._compiled)
        workers = self._options.worker_count(self._encoder.compute.device, place.threads)
        self._options = replace(self._options, workers=workers)

    def run(self, tasks: Iterable[ShardTask], report: Report) -> Iterator[ModalitySummary]:
        """See `Work.run`; images are decoded ahead, across shards."""
        return embed_shards(self._store, self._modality, dict(tasks), self._loaded(), self._options, report)

    def finished(self, task: ShardTask, report: Report) -> ModalitySummary | None:
        """A shard exists if its done marker does, and is that of the task if it holds the same inputs."""
        number, items = task
        if number not in self._store.parts(self._modality):
            return None
        try:
            failures = self._store.shard_failures(self._modality, number)
            with intact_shard(self._store, self._modality, number) as whole:
                batches = list(whole.batches(self._modality, ["key"], parts=[number]))
        except StoreError:
            return None
        keys = [key for batch in batches for key in batch.column("key").to_pylist()]
        if sorted([*keys, *(failure.key for failure in failures)]) != sorted(item.key for item in items):
            return None
        report(len(items), len(failures))
        summary = ModalitySummary(embedded=len(keys), failed=len(failures))
        if self._modality == "text":
            captions = [item.caption for item in items]
            summary.truncated = self._loaded().truncated(captions, self._loaded().tokenise(captions))
        return summary

    def name(self, task: ShardTask) -> str:
        """Such as ``text shard 3``."""
        return f"{self._modality} shard {task[0]}"

    def _loaded(self) -> Encoder:
        assert self._encoder is not None, "load comes first"
        return self._encoder


@lru_cache(maxsize=1)
def _encoder_of_this_process(identity: str, device: str, precision: str, compiled: bool) -> Encoder:
    return load_recorded_encoder(json.loads(identity), device=device, precision=precision, compiled=compiled)
