from __future__ import annotations

from typing import Any

import pytest

from c3tools.connect.run import TrainingSettings
from c3tools.errors import ConnectError


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "triplet"},
        {"batch_size": 1},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"chunk": 0},
        {"warmup": 2.0},
        {"patience": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConnectError):
        TrainingSettings(**wrong)
