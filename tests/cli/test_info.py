from __future__ import annotations

import importlib.metadata
import json

import pytest
import torch

from c3tools import __version__, devices, machine
from tests.conftest import C3


def test_this_machine_is_described(c3: C3) -> None:
    result = c3("info", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["c3tools"] == __version__
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    cpu = found["devices"][-1]
    assert cpu["name"] == "cpu"
    assert cpu["auto"] in cpu["precisions"]
    assert ("int8" in cpu["precisions"]) == devices.has_int8()
    assert len(found["devices"]) == 1 + torch.cuda.device_count() + torch.backends.mps.is_available()
    assert set(found["java"]) == {"METEOR", "SPICE"}
    shown = c3("info")
    assert shown.exit_code == 0
    assert f"c3tools {__version__}" in shown.stdout


def test_an_extra_lists_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "numpy>=1.26",
        'no-such-package>=1; extra == "cloud"',
        'numpy>=1; extra == "cloud"',
        'numpy>=1; extra == "yaml"',
        'no-such-package; extra == "dev"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert machine.missing_by_extra() == {"cloud": ["no-such-package"], "yaml": []}
