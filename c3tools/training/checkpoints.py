"""Saving a training run, so that one that was killed ends as if it had not been.

A folder holds the last two states, each one safetensors file that was renamed into place: tensors (weights, best
weights, the moments of the optimiser) and, in the header, the position in the run. Everything random in a step depends
on the seed and the step alone, so no generator has to be saved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..io.files import remove_leftovers, write_atomically
from ..reporter import SILENT, Reporter

_KEPT = 2
_OPTIMIZER = "optimizer"


class CheckpointDir:
    """The folder that one training run is saved in, beside the folder that it will write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, output: Path) -> CheckpointDir:
        """Return the folder of the run that writes ``output``: ``.NAME.run`` beside it."""
        return cls(output.with_name(f".{output.name}.run"))

    def save(
        self,
        step: int,
        identity: str,
        position: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Write a state; the state before the last one is removed.

        Args:
            step: optimiser steps done.
            identity: a digest of all that the run depends on.
            position: what else a run needs to continue, as JSON values.
            tensors: by group (such as ``model`` and ``best``) and name.
            optimizer: its moments are saved too.
        """
        flat = {f"{group}/{name}": value for group, named in tensors.items() for name, value in named.items()}
        for number, moments in optimizer.state_dict()["state"].items():
            flat |= {f"{_OPTIMIZER}/{number}/{name}": value for name, value in moments.items()}
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in flat.items()}
        header = json.dumps({"identity": identity, "position": position})
        path = self.path / f"state-{step:08d}.safetensors"
        write_atomically(path, lambda temporary: save_file(plain, temporary, metadata={"c3": header}))
        for old in self._states()[_KEPT:]:
            old.unlink()

    def resume(
        self, identity: str, optimizer: torch.optim.Optimizer, reporter: Reporter = SILENT
    ) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
        """Read the last readable state of the same run; its moments go into ``optimizer``.

        Returns:
            The position, and the tensors by group and name; None if there is no state to continue from.
        """
        for path in self._states():
            try:
                with safe_open(path, framework="pt") as file:
                    header = json.loads((file.metadata() or {})["c3"])
                    flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                reporter.message(f"The saved state {path} is cut short or damaged ({error}); using the one before.")
                continue
            if header.get("identity") != identity:
                reporter.message(f"The run saved in {self.path} has other settings or data; starting anew.")
                self.clear()
                return None
            groups: dict[str, dict[str, Tensor]] = {}
            for key, value in flat.items():
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = value
            _restore(optimizer, groups.pop(_OPTIMIZER, {}))
            return header["position"], groups
        return None

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _states(self) -> list[Path]:
        if self.path.is_dir():
            remove_leftovers(self.path)
        return sorted(self.path.glob("state-*.safetensors"), reverse=True)


def _restore(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        number, _, name = key.partition("/")
        by_parameter.setdefault(int(number), {})[name] = value
    state = optimizer.state_dict()
    state["state"] = by_parameter
    optimizer.load_state_dict(state)
