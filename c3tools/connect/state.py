"""Saving a run of contrastive training, so that one that was killed ends as if it had not been.

One safetensors file, renamed into place: weights, best weights, AdamW's moments, and the position in the run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..io.files import remove_leftovers, write_atomically

_KEPT = 2


class RunFolder:
    """Where one training run is saved: its last two states.

    Attributes:
        messages: what happened on resuming, for the user.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[str] = []

    def save(self, step: int, identity: str, position: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write a state; the state before the last one is removed."""
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        header = json.dumps({"identity": identity, "position": position})
        path = self.path / f"state-{step:08d}.safetensors"
        write_atomically(path, lambda temporary: save_file(plain, temporary, metadata={"c3": header}))
        for old in self._states()[_KEPT:]:
            old.unlink()

    def resume(self, identity: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Position and tensors of the last readable state of the same run; None if there is none."""
        for path in self._states():
            try:
                with safe_open(path, framework="pt") as file:
                    header = json.loads((file.metadata() or {})["c3"])
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                self.messages.append(f"The saved state {path} is cut short or damaged ({error}); using the one before.")
                continue
            if header.get("identity") != identity:
                self.messages.append(f"The run saved in {self.path} has other settings or data; starting anew.")
                self.clear()
                return None
            return header["position"], tensors
        return None

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _states(self) -> list[Path]:
        if self.path.is_dir():
            remove_leftovers(self.path)
        return sorted(self.path.glob("state-*.safetensors"), reverse=True)
