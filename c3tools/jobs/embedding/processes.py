"""One process for each device, each with its own encoder and its own shards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

import torch

from ...encoders import Encoder, load_recorded_encoder
from ...errors import C3Error
from ...store import Store
from .options import EmbedOptions, Report, cores
from .shards import Shards, embed_shards
from .summary import ModalitySummary


@dataclass(frozen=True)
class _Request:
    """What a process needs to know: all of it can be pickled."""

    device: str
    identity: dict[str, Any]
    precision: str
    compiled: bool
    threads: int
    store: str
    modality: str
    shards: Shards
    options: EmbedOptions


@dataclass(frozen=True)
class _Message:
    """What a process says: batches done, its summary, or why it stops."""

    kind: Literal["batch", "done", "refused", "crashed"]
    count: int = 0
    failed: int = 0
    summary: ModalitySummary | None = None
    text: str = ""
    remedy: str | None = None


def embed_on_devices(
    store: Store, modality: str, shards: Shards, encoder: Encoder, options: EmbedOptions, report: Report
) -> ModalitySummary:
    """As `embed_shards`, with the shards dealt out to a process for each of ``options.devices``.

    Args:
        encoder: says which model the processes load; it does not compute here.

    Raises:
        C3Error: if a process fails or is killed; the others are ended, what was finished is kept.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    devices = options.devices[: max(1, len(shards))]
    processes: list[SpawnProcess] = []
    ends: dict[Connection, str] = {}
    try:
        for number, device in enumerate(devices):
            request = _Request(
                device=device,
                identity=encoder.identity,
                precision=encoder.compute.precision,
                compiled=encoder.compiled,
                threads=max(1, cores() // len(devices)),
                store=str(store.path),
                modality=modality,
                shards=dict(list(shards.items())[number :: len(devices)]),
                options=options,
            )
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(request, sending))
            process.start()
            sending.close()
            processes.append(process)
            ends[receiving] = device
        return _listen(ends, report)
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for process in processes:
            process.join()


def _listen(ends: dict[Connection, str], report: Report) -> ModalitySummary:
    total = ModalitySummary()
    speaking = set(ends)
    while speaking:
        for end in wait(speaking):
            assert isinstance(end, Connection)
            try:
                message: _Message = end.recv()
            except EOFError:
                raise C3Error(
                    f"The process for {ends[end]} was killed.",
                    remedy="What was finished is kept. Run the same command again: it continues there.",
                ) from None
            if message.kind == "batch":
                report(message.count, message.failed)
            elif message.kind == "done" and message.summary is not None:
                total.add(message.summary)
                speaking.discard(end)
            else:
                raise C3Error(f"{ends[end]}: {message.text}", remedy=message.remedy)
    return total


def _serve(request: _Request, connection: Connection) -> None:
    """Body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        torch.set_num_threads(request.threads)
        encoder = load_recorded_encoder(
            request.identity, device=request.device, precision=request.precision, compiled=request.compiled
        )
        summary = embed_shards(
            Store.open(request.store),
            request.modality,
            request.shards,
            encoder,
            request.options,
            lambda count, failed: connection.send(_Message("batch", count, failed)),
        )
        connection.send(_Message("done", summary=summary))
    except C3Error as error:
        connection.send(_Message("refused", text=error.message, remedy=error.remedy))
    except Exception:
        connection.send(_Message("crashed", text=traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
