from __future__ import annotations

import sys
from pathlib import Path

import pytest

from c3tools.captioning.tensorboard import tensorboard
from c3tools.errors import MissingExtraError


def test_without_a_folder_nothing_is_recorded() -> None:
    with tensorboard(None) as recorder:
        assert recorder is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_values_are_written_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path) as recorder:
        assert recorder is not None
        recorder.scalar("loss/training", 2.5, 25)
        recorder.scalar("loss/training", 2.25, 50)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/training")] == [(25, 2.5), (50, 2.25)]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = r"(?s)--tensorboard needs.*c3tools\[tensorboard\]"
    with pytest.raises(MissingExtraError, match=message), tensorboard(tmp_path):
        pass
