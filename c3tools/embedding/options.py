"""How to embed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from ..executors import cores
from ..reporter import Tracker

DEFAULT_SHARD_SIZE = 4096
DEFAULT_IMAGE_TIMEOUT = 60.0
_MOST_WORKERS = 16
TrackFactory = Callable[[str, int], AbstractContextManager[Tracker]]


@dataclass(frozen=True)
class EmbedOptions:
    """How to embed.

    Attributes:
        shard_size: inputs per shard: what a kill can lose at most.
        workers: processes that decode images beside one encoder; None for as many as there are cores to spare.
        batch_size: images or texts run at a time; None for the encoder's own.
        dtype: ``float16`` or ``float32``, for storage.
        retry_failed: try again what failed in an earlier run.
        image_timeout: seconds that decoding one image may take (0: any time); needs at least one worker.
    """

    shard_size: int = DEFAULT_SHARD_SIZE
    workers: int | None = None
    batch_size: int | None = None
    dtype: str = "float16"
    retry_failed: bool = False
    image_timeout: float = DEFAULT_IMAGE_TIMEOUT

    def worker_count(self, device: torch.device, share: int | None = None) -> int:
        """Number of decoding processes beside one encoder: on a CPU one core is left to the model.

        Args:
            device: the encoder's.
            share: cores for both; None for all.
        """
        if self.workers is not None:
            return self.workers
        share = share or cores()
        return max(1, share - 1) if device.type == "cpu" else min(share, _MOST_WORKERS)
