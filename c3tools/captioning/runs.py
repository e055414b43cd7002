"""Saving a training run, so that one that was killed ends as if it had not been.

The folder holds the last two states, each one safetensors file that was renamed into place: weights, best weights,
AdamW's moments, and the position in the run. Everything random in a step depends on (seed, epoch, batch) alone,
so no generator has to be saved.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..io.files import remove_leftovers, write_atomically
from ..transforms import Pipeline
from .config import TrainingConfig
from .decoder import Shape
from .training import Epoch, Trainer

_KEPT = 2


class _Captions(Protocol):
    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def embeddings(self) -> npt.NDArray[np.float32]: ...
    @property
    def captions(self) -> Sequence[str]: ...


def fingerprint(
    config: Shape, training: TrainingConfig, pipeline: Pipeline, train: _Captions, val: _Captions, *more: object
) -> str:
    """A digest of all that a run depends on; a run is continued only by one with the same."""
    plain = [asdict(config), asdict(training), pipeline.config(), *more]  # type: ignore[call-overload]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode())
    for rows in (train, val):
        digest.update("\x1f".join([*rows.keys, *rows.captions]).encode())
        digest.update(np.ascontiguousarray(rows.embeddings).tobytes())
    return digest.hexdigest()


class RunFolder:
    """Where one training run is saved.

    Attributes:
        messages: what happened on resuming, for the user.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[str] = []

    def save(self, trainer: Trainer, identity: str) -> None:
        """Write the state of ``trainer``; the state before the last one is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in trainer.state.best_weights.items()}
        tensors |= {f"average/{name}": value for name, value in trainer.state.average.items()}
        for number, moments in trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in moments.items()}
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        header = {"identity": identity, "position": trainer.state.position()}
        path = self.path / f"state-{trainer.done_steps:08d}.safetensors"
        write_atomically(path, lambda temporary: save_file(plain, temporary, metadata={"c3": json.dumps(header)}))
        for old in self._states()[_KEPT:]:
            old.unlink()

    def resume(self, trainer: Trainer, identity: str) -> bool:
        """Load the last readable state of the same run into ``trainer``; False if there is none."""
        for path in self._states():
            try:
                header, tensors = _read(path)
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                self.messages.append(f"The saved state {path} is cut short or damaged ({error}); using the one before.")
                continue
            if header.get("identity") != identity:
                self.messages.append(f"The run saved in {self.path} has other settings or data; starting anew.")
                self.clear()
                return False
            _restore(trainer, header["position"], tensors)
            self.messages.append(
                f"Continuing the run saved in {self.path} at step {trainer.done_steps:,} of {trainer.total_steps:,}."
            )
            return True
        return False

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _states(self) -> list[Path]:
        if self.path.is_dir():
            remove_leftovers(self.path)
        return sorted(self.path.glob("state-*.safetensors"), reverse=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["c3"])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def _restore(trainer: Trainer, position: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "average": {}}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            number, _, entry = rest.partition("/")
            moments.setdefault(int(number), {})[entry] = value
        else:
            groups[kind][rest] = value
    trainer.model.load_state_dict(groups["model"])
    state = trainer.optimizer.state_dict()
    state["state"] = moments
    trainer.optimizer.load_state_dict(state)
    device = trainer.compute.device
    history = [Epoch(**epoch) for epoch in position.pop("history")]
    for name, value in position.items():
        setattr(trainer.state, name, value)
    trainer.state.history = history
    trainer.state.best_weights = {name: value.to(device) for name, value in groups["best"].items()}
    trainer.state.average = {name: value.to(device) for name, value in groups["average"].items()}
