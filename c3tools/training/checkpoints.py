"""Save a training run, so that a run that was killed can continue and gives the same result.

A folder contains the last two states, each one safetensors file that was renamed into place: tensors (weights, best
weights, the moments of the optimiser) and, in the header, the position in the run. Everything random in a step depends
on the seed and the step alone, so no generator has to be saved.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import OutputError
from ..io.files import MALFORMED, remove_leftovers, write_atomically
from ..reporter import SILENT, Reporter

NOTHING_KEPT = "No part of this training was kept; run the same command again to restart it."
_KEPT = 2
_OPTIMIZER = "optimizer/"


class CheckpointDir:
    """The folder that one training run is saved in, beside the folder that it will write.

    Args:
        path: the folder.
        overwrite: drop a run of other settings or data that is saved there, rather than refuse.
    """

    def __init__(self, path: Path, *, overwrite: bool = True) -> None:
        self.path = path
        self._overwrite = overwrite
        self._saved_step: int | None = None

    @classmethod
    def beside(cls, output: Path, *, overwrite: bool = False) -> CheckpointDir:
        """Return the folder of the run that writes ``output``: ``.NAME.run`` beside it."""
        output = output if output.name else output.absolute()
        return cls(output.with_name(f".{output.name}.run"), overwrite=overwrite)

    def save(
        self,
        identity: str,
        position: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Write a state; the state before the last one is removed.

        Args:
            identity: a digest of all that the run depends on.
            position: ``step``, and what else a run needs to continue, as JSON values.
            tensors: by group (such as ``model`` and ``best``) and name.
            optimizer: its moments are saved too.
        """
        moments = {f"{_OPTIMIZER}{number}": named for number, named in optimizer.state_dict()["state"].items()}
        flat = {
            f"{group}/{name}": value.detach().cpu().contiguous().clone()
            for group, named in {**tensors, **moments}.items()
            for name, value in named.items()
        }
        header = json.dumps({"identity": identity, "position": position})
        path = self.path / f"state-{position['step']:08d}.safetensors"
        write_atomically(path, lambda temporary: save_file(flat, temporary, metadata={"c3": header}))
        self._saved_step = position["step"]
        for old in self._states()[_KEPT:]:
            old.unlink()

    def resume(
        self, identity: str, optimizer: torch.optim.Optimizer, reporter: Reporter = SILENT
    ) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
        """Read the last readable state of the same run; its moments go into ``optimizer``.

        Returns:
            The position, and the tensors by group and name; None if there is no state to continue from.

        Raises:
            OutputError: if the run that is saved has other settings or data, and is not to be dropped.
        """
        for path in self._states():
            groups: dict[str, dict[str, Tensor]] = {}
            try:
                with safe_open(path, framework="pt") as file:
                    header = json.loads((file.metadata() or {})["c3"])
                    own, position = header["identity"], header["position"]
                    for key in file.keys():  # noqa: SIM118 - no mapping
                        group, _, name = key.rpartition("/")
                        groups.setdefault(group, {})[name] = file.get_tensor(key)
            except (SafetensorError, OSError, *MALFORMED) as error:
                reporter.message(f"The saved state {path} is cut short or damaged ({error}); the previous one is used.")
                continue
            if own == identity:
                numbered = [group for group in groups if group.startswith(_OPTIMIZER)]
                moments = {int(group.removeprefix(_OPTIMIZER)): groups.pop(group) for group in numbered}
                optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
                self._saved_step = position["step"]
                return position, groups
            if not self._overwrite:
                raise OutputError(
                    f"{self.path} contains a training that was interrupted at step {position['step']:,} and has other "
                    "settings or data.",
                    remedy="Run its command again to continue it, choose another folder with --output, or discard "
                    "it with --overwrite.",
                )
            reporter.message(f"The run saved in {self.path} has other settings or data; it is discarded.")
            self.clear()
            break
        return None

    def clear(self) -> None:
        """Remove the states, and the folder if nothing else is in it."""
        for state in self._states():
            state.unlink()
        self._saved_step = None
        with suppress(OSError):  # something else is in it, or it is not there
            self.path.rmdir()

    def kept(self, total: int) -> str:
        """Return what is kept of a run of ``total`` steps that is interrupted now, in words."""
        if self._saved_step is None:
            return NOTHING_KEPT
        return (
            f"The training is saved at step {self._saved_step:,} of {total:,}; run the same command again to continue."
        )

    def _states(self) -> list[Path]:
        if self.path.is_dir():
            remove_leftovers(self.path)
        return sorted(self.path.glob("state-*.safetensors"), reverse=True)


@contextmanager
def interrupts_held() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT (Ctrl-C) and SIGTERM back, so that a training can be saved between two steps.

    Yields a function that returns whether one has arrived. It acts when the block ends; a second one acts at once.
    Only the main thread is told of signals; in others this does nothing, as where a signal is ignored.
    """
    arrived: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) > 1:
            restore()
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                before[number] = handler
                signal.signal(number, hold)
    try:
        yield lambda: bool(arrived)
    finally:
        restore()
    if arrived:
        signal.raise_signal(arrived[0])
        raise KeyboardInterrupt
