from __future__ import annotations

import sys
from pathlib import Path

import pytest

from c3tools.errors import MissingExtraError
from c3tools.reporter import SILENT, Progress, Reporter
from c3tools.training.tensorboard import tensorboard


class Listener(Reporter):
    def __init__(self) -> None:
        self.heard: list[object] = []

    def message(self, text: str) -> None:
        self.heard.append(text)

    def scalar(self, name: str, value: float, step: int) -> None:
        self.heard.append((name, value, step))


def test_without_a_folder_the_reporter_is_used_as_it_is() -> None:
    with tensorboard(None, SILENT) as reporter:
        assert reporter is SILENT


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_values_are_written_for_tensorboard_and_everything_is_passed_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    listener = Listener()
    with tensorboard(tmp_path, listener) as reporter:
        reporter.message("starting")
        with reporter.progress("Training", 2) as progress:
            assert isinstance(progress, Progress)
        reporter.scalar("loss/training", 2.5, 25)
        reporter.scalar("loss/training", 2.25, 50)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/training")] == [(25, 2.5), (50, 2.25)]
    assert listener.heard == ["starting", ("loss/training", 2.5, 25), ("loss/training", 2.25, 50)]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = r"(?s)--tensorboard needs.*c3tools\[tensorboard\]"
    with pytest.raises(MissingExtraError, match=message), tensorboard(tmp_path, SILENT):
        pass
